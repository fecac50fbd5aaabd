# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What `hf-methods demo subpt` shows."""

import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from hf_methods.grid import run_script
from hf_methods.plotting import BLUE, GREY, ORANGE, new_figure
from hf_methods.report import Section, text_table, write_report


STEPS = 320
NUM_BASE_CLASSES, BATCH_SIZE = 34, 32
CHECKPOINT = Path("model_cards/clip-emoji-subpt")
RECIPE = Path("training/subpt/train.py")
GRID = Path("training/subpt/grid.yaml")
ZERO_SHOT = "zero-shot CLIP"
ARMS = {"CoOp": "CoOp", "SubPT + NFL": "SubPT + NFL, unrelated names"}  # label: arm of the grid
FIGURES = {"base": "base classes", "novel": "novel classes", "harmonic_mean": "harmonic mean"}
CAPTION = (
    "The prompt of a tiny CLIP, which was pre-trained on emoji of other artists, is tuned on a few Twemoji of each of 34 "
    "base classes, and tested on other Twemoji of these and of 34 novel classes, each half among its own names. NFL is given "
    "names that have nothing to do with the novel classes. Accuracy in %. What is trained now has one seed; the columns "
    "behind it are the committed grid's, mean and standard deviation over its seeds."
)


def run_demo(out: Path, steps: int) -> str:
    """Tune the prompt with CoOp and with SubPT + NFL, and put both beside the committed grid's figures.

    Args:
        out: folder of `report.html` and the plot.
        steps: training steps of each arm, in whole epochs; at least as many epochs as SubPT needs.

    Returns:
        The table, as text.

    Raises:
        FileNotFoundError: not run in a checkout with its `model_cards/`.
    """
    if not CHECKPOINT.is_dir():
        raise FileNotFoundError(f"{CHECKPOINT} is missing: run the demo in a checkout of hf_methods.")
    start, grid = time.time(), yaml.safe_load(GRID.read_text("utf-8"))
    setting = yaml.safe_load(Path(grid["train_config"]).read_text("utf-8"))
    least = setting["subspace_rank"] + 1  # snapshots of as many epochs span the directions
    epochs = max(least, steps // max(1, NUM_BASE_CLASSES * setting["num_shots"] // BATCH_SIZE))
    early = max(least, round(epochs * setting["subspace_epochs"] / setting["num_train_epochs"]))
    options = {"num_train_epochs": epochs, "subspace_epochs": early}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(len(ARMS), os.cpu_count() or 1)) as pool:
        train = lambda arm: _train(  # noqa: E731
            Path(folder), arm, grid["train_config"], {**options, **grid["arms"][ARMS[arm]]}
        )
        results = dict(zip(ARMS, pool.map(train, ARMS), strict=True))
    seconds = time.time() - start
    columns = {ZERO_SHOT: results["CoOp"]["summary_mean_and_sd"][ZERO_SHOT]}
    columns |= {f"{arm}, now": result["summary_mean_and_sd"][result["arm"]] for arm, result in results.items()}
    trained = json.loads((CHECKPOINT / "results.json").read_text("utf-8"))["summary_mean_and_sd"]
    columns |= {f"{label}, grid": trained[arm] for label, arm in ARMS.items()}
    header = ["", *columns]
    rows = [[label, *(_cell(column[name]) for column in columns.values())] for name, label in FIGURES.items()]
    out.mkdir(parents=True, exist_ok=True)
    plot_curves({arm: result["curve"] for arm, result in results.items()}, columns[ZERO_SHOT]).savefig(
        out / "curves.png"
    )
    every_arm = [[arm, *(_cell(figures[name]) for name in FIGURES)] for arm, figures in trained.items()]
    sections = [
        Section("Accuracy during training, now", "", [out / "curves.png"]),
        Section("All arms of the grid", text_table(["", *FIGURES.values()], every_arm), [CHECKPOINT / "curves.png"]),
    ]
    report = out / "report.html"
    write_report(report, "SubPT + NFL", CAPTION, header, rows, sections)
    return f"{text_table(header, rows)}\ntrained {len(ARMS)} x {epochs} epochs in {seconds:.0f} s; report: {report}"


def _train(folder: Path, arm: str, config: str, options: dict) -> dict:
    output = folder / arm.replace(" ", "-")
    run_script(RECIPE, output, config, {"seed": 0, **options}, threads=1)
    return json.loads((output / "results.json").read_text("utf-8"))


def _cell(value: list) -> str:
    mean, deviation = value
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def plot_curves(curves: dict[str, list[dict[str, float]]], zero_shot: dict[str, list]):
    """Base and novel accuracy by epochs, a line for each arm; dashed: zero-shot CLIP.

    Args:
        curves: rows of `epoch`, `base` and `novel` for each arm.
        zero_shot: `base` and `novel`, as [mean, deviation].
    """
    figure, axes = new_figure(9, 3.4, columns=2)
    for axis, name in zip(axes, ("base", "novel"), strict=True):
        for (arm, rows), color in zip(curves.items(), (ORANGE, BLUE), strict=True):
            axis.plot([row["epoch"] for row in rows], [row[name] for row in rows], color=color, label=arm)
        axis.axhline(zero_shot[name][0], color=GREY, linestyle="--", label=ZERO_SHOT)
        axis.set(xlabel="epoch", ylabel="accuracy, %", title=FIGURES[name])
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure
