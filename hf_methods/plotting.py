# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Figures with one look for reports, cards and Spaces. Each function returns a figure or writes PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"


def new_figure(width: float = 6.0, height: float = 3.2, columns: int = 1) -> tuple["Figure", list]:
    """A figure of `columns` axes side by side, without pyplot's global state; size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_layers(values: dict[str, list[float]], ylabel: str, log: bool = False) -> "Figure":
    """One line a name over the layers."""
    figure, (axis,) = new_figure()
    for (name, series), colour in zip(values.items(), (BLUE, ORANGE, GREY), strict=False):
        axis.plot(range(1, len(series) + 1), series, marker="o", color=colour, label=name)
    axis.set(xlabel="layer", ylabel=ylabel)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if log:
        axis.set_yscale("log")
    axis.legend(frameon=False)
    return figure


def plot_attention(snapshot: list) -> "Figure":
    """Heat maps of (layers, queries, keys) attention weights on one colour scale."""
    figure, axes = new_figure(2.4 * len(snapshot), 2.6, len(snapshot))
    for number, (axis, weights) in enumerate(zip(axes, snapshot, strict=True), start=1):
        image = axis.imshow(weights, vmin=0, vmax=0.5, cmap="magma", interpolation="nearest")
        axis.set(title=f"layer {number}", xlabel="key", ylabel="query" if number == 1 else "")
    figure.colorbar(image, ax=axes, shrink=0.8, label="weight")
    return figure


def plot_quantization(rows: list[dict]) -> "Figure":
    """Bars of the perplexity that each scheme costs."""
    figure, (axis,) = new_figure()
    axis.barh([row["scheme"] for row in rows], [row["delta"] for row in rows], color=BLUE)
    axis.invert_yaxis()
    axis.set(xlabel="perplexity after - before")
    return figure


def plot_report(report, folder: str | Path) -> list[Path]:
    """Write the figures of a `ModelReport` into `folder`; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    by_layer = [sum(heads) / len(heads) for heads in report.first_token_mass_pct_by_head]
    argmax = [sum(heads) / len(heads) for heads in report.first_token_argmax_pct_by_head]
    kurtosis = {"first token": report.kurtosis_first_by_layer, "other tokens": report.kurtosis_rest_by_layer}
    maxabs = {"first token": report.maxabs_first_by_layer, "other tokens": report.maxabs_rest_by_layer}
    figures = {
        "attention": plot_attention(report.attention_snapshot),
        "first_token": plot_layers({"mass": by_layer, "largest weight": argmax}, "on the first token, %"),
        "kurtosis": plot_layers(kurtosis, "kurtosis", log=True),
        "maxabs": plot_layers(maxabs, "largest magnitude"),
    }
    if report.quantization:
        figures["quantization"] = plot_quantization(report.quantization)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]
