# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Figures with one look for reports, cards and Spaces. Each function returns a figure or writes PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, LIGHT_GREY = "#2563eb", "#ea580c", "#6b7280", "#d1d5db"
COLUMNS = 6  # heat maps in a row, at most


def new_figure(width: float = 6.0, height: float = 3.2, columns: int = 1, rows: int = 1) -> tuple["Figure", list]:
    """A figure with `columns` axes in each of `rows` rows, without pyplot's global state; size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_layers(values: dict[str, list[float]], ylabel: str, log: bool = False) -> "Figure":
    """One line a name over the layers; NaN is left out. The axis begins at 0, or is logarithmic if `log`."""
    from matplotlib.ticker import LogFormatter, MaxNLocator

    figure, (axis,) = new_figure()
    axis.set_prop_cycle(color=(BLUE, ORANGE, GREY), marker=("o", "s", "^"))
    num_layers = max(len(series) for series in values.values())
    for name, series in values.items():
        axis.plot(range(1, len(series) + 1), series, label=name)
    axis.set(xlabel="layer", ylabel=ylabel, xlim=(0.5, num_layers + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if log and any(value > 0 for series in values.values() for value in series):  # not so where all is NaN
        axis.set_yscale("log")
        for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            set_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))  # 20 and 30, not 2 x 10^1
    else:
        axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return figure


def plot_attention(snapshot: list) -> "Figure":
    """Heat maps of (layers, queries, keys) attention weights on one colour scale."""
    rows = -(-len(snapshot) // COLUMNS)
    columns = -(-len(snapshot) // rows)
    figure, axes = new_figure(2.2 * columns + 1, 2.4 * rows + 0.3, columns, rows)
    for number, (axis, weights) in enumerate(zip(axes, snapshot, strict=False), start=1):
        image = axis.imshow(weights, vmin=0, vmax=0.5, cmap="magma", interpolation="nearest")
        axis.set_title(f"layer {number}", fontsize="medium")
        axis.set_xlabel("key" if number + columns > len(snapshot) else "")
        axis.set_ylabel("query" if number % columns == 1 % columns else "")
    for axis in axes[len(snapshot) :]:
        axis.remove()
    figure.colorbar(image, ax=axes[: len(snapshot)], shrink=0.8, label="weight, mean of heads", extend="max")
    return figure


def plot_quantization(rows: list[dict]) -> "Figure":
    """Bars of the perplexity that each scheme costs, with their values."""
    figure, (axis,) = new_figure()
    bars = axis.barh([row["scheme"] for row in rows], [row["delta"] for row in rows], color=BLUE)
    axis.bar_label(bars, fmt="%+.3g", padding=3)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.set(xlabel=f"perplexity added to {rows[0]['perplexity_before']:.4g}")
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
