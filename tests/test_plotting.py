# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The figures show the report's numbers, for any number of layers."""

import math

import pytest
from PIL import Image

from hf_methods.plotting import plot_attention, plot_layers, plot_quantization, plot_report
from hf_methods.softmax1 import ModelReport


ROWS = [
    {"scheme": "w8a8-coarse", "perplexity_before": 20.0, "perplexity_after": 19.5, "delta": -0.5},
    {"scheme": "w4-zeropoint", "perplexity_before": 20.0, "perplexity_after": 320.0, "delta": 300.0},
]


def report(num_layers, kurtosis=3.0, rows=()):
    """A report of uniform attention over 6 tokens, with two heads a layer."""
    layers = range(num_layers)
    return ModelReport(
        num_blocks=1,
        seq_len=6,
        perplexity=20.0,
        first_token_argmax_pct=50.0,
        heads_first_token_max_pct=50.0,
        first_token_mass_pct=15.0,
        null_mass_pct=0.0,
        kurtosis_first=kurtosis,
        kurtosis_rest=kurtosis,
        maxabs_first=2.0,
        maxabs_rest=1.0,
        maxabs_global=2.0,
        n_degenerate=0,
        kurtosis_first_by_layer=[kurtosis * 10**layer for layer in layers],
        kurtosis_rest_by_layer=[kurtosis] * num_layers,
        maxabs_first_by_layer=[2.0 + layer for layer in layers],
        maxabs_rest_by_layer=[1.0] * num_layers,
        first_token_argmax_pct_by_head=[[40.0, 60.0]] * num_layers,
        first_token_mass_pct_by_head=[[10.0, 20.0 + 2 * layer] for layer in layers],
        null_mass_pct_by_head=[[0.0, 0.0]] * num_layers,
        attention_snapshot=[[[1 / (q + 1) if k <= q else 0.0 for k in range(6)] for q in range(6)]] * num_layers,
        quantization=list(rows),
    )


@pytest.mark.parametrize(
    ("num_layers", "kurtosis", "rows"),
    [(1, 3.0, ()), (1, math.nan, ROWS), (12, 3.0, ROWS)],
    ids=["plain", "nan", "deep"],
)
def test_a_report_becomes_png_files_with_something_on_them(num_layers, kurtosis, rows, tmp_path):
    paths = plot_report(report(num_layers, kurtosis, rows), tmp_path / "new" / "folder")
    names = ["attention", "first_token", "kurtosis", "maxabs"] + (["quantization"] if rows else [])
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert sorted(tmp_path.glob("new/folder/*")) == sorted(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 200 and max(image.size) < 2000
            low, high = image.convert("L").getextrema()  # also reads every pixel
        assert low < 100 and high == 255


def test_first_token_figure_shows_the_mean_over_heads(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "hf_methods.plotting.plot_layers",
        lambda values, *args, **kwargs: shown.update(values) or plot_layers(values, ""),
    )
    plot_report(report(3), tmp_path)
    assert shown["mass"] == [15.0, 16.0, 17.0] and shown["largest weight"] == [50.0] * 3
    assert shown["first token"] == [2.0, 3.0, 4.0] and shown["other tokens"] == [1.0] * 3  # maxabs, the last figure


def drawn_labels(figure, axis):
    figure.draw_without_rendering()
    low, high = axis.get_xlim()
    return [tick.get_text() for tick in axis.get_xticklabels() if low <= tick.get_position()[0] <= high]


@pytest.mark.parametrize("num_layers", [1, 2, 4, 12, 80])
def test_layers_are_counted_from_one_in_whole_numbers(num_layers):
    figure = plot_layers({"a": [float(i) for i in range(num_layers)], "b": [1.0] * num_layers}, "y")
    (axis,) = figure.axes
    assert [list(line.get_xdata()) for line in axis.lines] == [list(range(1, num_layers + 1))] * 2
    assert list(axis.lines[0].get_ydata()) == [float(i) for i in range(num_layers)]
    labels = drawn_labels(figure, axis)
    assert labels and all(label.isdigit() and 1 <= int(label) <= num_layers for label in labels)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert axis.get_ylabel() == "y" and axis.get_ylim()[0] == 0


def test_lines_differ_in_colour_and_marker():
    lines = plot_layers({name: [1.0] for name in "abc"}, "y").axes[0].lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3


@pytest.mark.parametrize("values", [[2.5, 2.7, 3.1], [3.0, 40.0, 900.0], [3.0, 1e7], [math.nan, 3.0]])
def test_a_logarithmic_axis_has_plain_numbers(values):
    figure = plot_layers({"a": values}, "y", log=True)
    (axis,) = figure.axes
    figure.draw_without_rendering()
    low, high = axis.get_ylim()
    ticks = [*axis.yaxis.get_major_ticks(), *axis.yaxis.get_minor_ticks()]
    labels = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    labels = [label for label in labels if label]
    assert labels and not any("times" in label for label in labels)
    assert all(low <= float(label) <= high for label in labels) and axis.get_yscale() == "log"


@pytest.mark.parametrize(("num_layers", "rows", "columns"), [(1, 1, 1), (6, 1, 6), (7, 2, 4), (12, 2, 6), (24, 4, 6)])
def test_heat_maps_wrap_into_rows_in_reading_order(num_layers, rows, columns):
    snapshot = [[[float(layer == 0), 0.1], [0.2, 0.3]] for layer in range(num_layers)]
    figure = plot_attention(snapshot)
    *maps, colour_bar = figure.axes
    assert [axis.get_title() for axis in maps] == [f"layer {i + 1}" for i in range(num_layers)]
    assert [axis.get_images()[0].get_array().tolist() for axis in maps] == snapshot
    spec = maps[0].get_subplotspec().get_gridspec()
    assert (spec.nrows, spec.ncols) == (rows, columns)
    # Outer labels only: `query` at the left of each row, `key` under the last map of each column.
    assert [axis.get_ylabel() for axis in maps] == ["" if i % columns else "query" for i in range(num_layers)]
    assert [bool(axis.get_xlabel()) for axis in maps] == [i + columns >= num_layers for i in range(num_layers)]
    assert {axis.get_images()[0].get_clim() for axis in maps} == {(0, 0.5)} and "weight" in colour_bar.get_ylabel()


def test_bars_show_what_each_scheme_adds_in_the_order_of_the_rows():
    figure = plot_quantization(ROWS)
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [-0.5, 300.0]
    assert [text.get_text() for text in axis.texts] == ["-0.5", "+300"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["w8a8-coarse", "w4-zeropoint"]
    assert axis.yaxis_inverted() and axis.get_xlabel() == "perplexity added to 20"
    low, high = axis.get_xlim()
    assert low < -0.5 and high > 300
