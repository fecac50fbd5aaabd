# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What `hf-methods demo cpe` shows."""

import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_methods.grid import run_script
from hf_methods.plotting import BLUE, GREY, LIGHT_GREY, ORANGE, new_figure
from hf_methods.report import Section, text_table, write_report


STEPS = 150
CHECKPOINT = Path("model_cards/cpe-mnist-reversed")
RECIPE = Path("training/cpe/train.py")
ARMS: dict[str, dict] = {  # name: options of train.py
    "FixMatch": {"taus": [0], "use_cbn": False, "unsup_reduction": "batch"},
    "FixMatch + LA": {"taus": [1], "use_cbn": False, "unsup_reduction": "batch"},
    "CPE": {},
    "CPE, batch normaliser": {"unsup_reduction": "batch"},
}
FIGURES = {
    "balanced_accuracy": "balanced accuracy",
    "gmean": "geometric mean",
    "head": "head classes",
    "medium": "medium classes",
    "tail": "tail classes",
}
CAPTION = (
    "Digits of MNIST: 184 labels, 60 of the most and 2 of the least frequent class, and 928 unlabelled images that are "
    "distributed the other way round. Accuracy on 1000 test images in %. The networks that are trained now stop early; "
    "the columns behind them are the figures of the committed checkpoint's results.json."
)


def run_demo(out: Path, steps: int) -> str:
    """Train the arms for a moment, and put them beside the trained checkpoint's figures.

    Args:
        out: folder of `report.html` and the plot.
        steps: training steps of each arm.

    Returns:
        The table, as text.

    Raises:
        FileNotFoundError: not run in a checkout with its `model_cards/`.
    """
    if not CHECKPOINT.is_dir():
        raise FileNotFoundError(f"{CHECKPOINT} is missing: run the demo in a checkout of hf_methods.")
    start = time.time()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(len(ARMS), os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda arm: _train(Path(folder), arm, steps), ARMS))
    seconds = time.time() - start
    columns = {f"{arm}, {steps} steps": result for arm, result in zip(ARMS, results, strict=True)}
    trained = json.loads((CHECKPOINT / "results.json").read_text())["summary_mean_and_sd"]
    columns |= {f"{arm}, trained": figures for arm, figures in trained.items() if arm in ARMS}
    header = ["", *columns]
    rows = [[label, *(_cell(column[name]) for column in columns.values())] for name, label in FIGURES.items()]
    out.mkdir(parents=True, exist_ok=True)
    figure = plot_groups(columns)
    figure.savefig(out / "groups.png")
    report = out / "report.html"
    write_report(report, "CPE", CAPTION, header, rows, [Section("Accuracy of class groups", "", [out / "groups.png"])])
    return f"{text_table(header, rows)}\ntrained {len(ARMS)} x {steps} steps in {seconds:.0f} s; report: {report}"


def _train(folder: Path, arm: str, steps: int) -> dict[str, list]:
    output = folder / arm.replace(" ", "-")
    options = {"max_steps": steps, "eval_strategy": "no", "seed": 0, **ARMS[arm]}
    run_script(RECIPE, output, "training/cpe/mnist_reversed.yaml", options, threads=1)
    results = json.loads((output / "results.json").read_text())
    return results["summary_mean_and_sd"][results["arm"]]


def _cell(value: list) -> str:
    mean, deviation = value
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation else "")


def plot_groups(columns: dict[str, dict[str, list]]):
    """Bars of the accuracy of head, medium and tail classes, one group of bars a group of classes."""
    figure, (axis,) = new_figure(9, 3.6)
    groups = ("head", "medium", "tail")
    width = 0.8 / len(columns)
    colors = [LIGHT_GREY, GREY, ORANGE, BLUE]
    for i, (name, figures) in enumerate(columns.items()):
        places = [place + (i - (len(columns) - 1) / 2) * width for place in range(len(groups))]
        heights = [100 * figures[group][0] for group in groups]
        errors = [100 * (figures[group][1] or 0) for group in groups]
        is_trained = name.endswith("trained")
        axis.bar(places, heights, 0.9 * width, yerr=errors if is_trained else None, label=name, color=colors[i % len(colors)],
                 alpha=1 if is_trained else 0.4)  # fmt: skip
    axis.set(ylabel="accuracy, %", ylim=(0, 100))
    axis.set_xticks(range(len(groups)), [f"{group} classes" for group in groups])
    figure.legend(frameon=False, loc="outside right upper")
    return figure
