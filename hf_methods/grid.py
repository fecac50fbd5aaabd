# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Arms of a recipe over several seeds: their runs, their summary and its plot, for the `grid.py` and the demo of every method."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from hf_methods.plotting import BLUE, GREY, new_figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class GridArguments:
    """What a `grid.py` runs."""

    train_config: str = field(metadata={"help": "YAML of train.py with everything that the runs share."})
    output_dir: str = field(metadata={"help": "Folder of the runs; finished ones are not made again."})
    results: str = field(metadata={"help": "JSON file to write; the plots lie beside it."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})


@dataclass
class ArmsArguments(GridArguments):
    """What a `grid.py` runs whose arms are runs of their own."""

    arms: dict = field(default_factory=dict, metadata={"help": "Name of each arm: its own options of train.py."})

    def __post_init__(self):
        if not self.arms:
            raise ValueError("`arms` is empty: give a mapping of names to options of train.py in the YAML.")

    def folder(self, arm: str, seed: int) -> Path:
        """Where a run lies: "CPE, official" with seed 0 -> OUTPUT_DIR/cpe-official-0."""
        return Path(self.output_dir) / f"{re.sub('[^a-z0-9]+', '-', arm.lower()).strip('-')}-{seed}"


def as_words(options: dict[str, Any]) -> list[str]:
    """Options of a script as the words of its command line."""
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return words


def run_script(
    script: Path, folder: Path, config: str, options: dict[str, Any], threads: int, finished: str = "results.json"
) -> Path:
    """Run a recipe in a process of its own, unless its folder has the file `finished`; its output goes to train.log.

    Args:
        script: the recipe's train.py.
        folder: its `output_dir`.
        config: its YAML.
        options: what this run has besides.
        threads: of the processor. With 1 sums do not depend on the number of cores: a seed gives the same weights again.
        finished: name of the file that the recipe writes last.

    Returns:
        `folder`.

    Raises:
        ChildProcessError: the recipe failed; the last line of its log says why.
    """
    if (folder / finished).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), "--config", config, "--output_dir", str(folder), *as_words(options)]
    with open(folder / "train.log", "w") as log:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        result = subprocess.run(command, check=False, stdout=log, stderr=log, env=env)
    if result.returncode:
        *_, last = ["no message", *(folder / "train.log").read_text(errors="replace").splitlines()]
        raise ChildProcessError(f"{script} failed for {folder.name} with status {result.returncode}: {last}")
    return folder


def mean_and_sd(rows: Sequence[Mapping[str, float | None]]) -> dict[str, list]:
    """[mean, standard deviation] of each figure over seeds; no deviation (None) with one seed, no figure where a seed has none."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    complete = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return {
        name: [mean(values), stdev(values) if len(values) > 1 else None]
        for name, values in complete.items()
        if len(values) == len(rows)
    }


def plot_arms(
    summary: dict[str, dict[str, list]], panels: dict[str, str], factor: float = 1.0
) -> tuple["Figure", list]:
    """Bars of an arm's figures, one panel a figure; lines are standard deviations. The last arm, ours, is blue.

    Args:
        summary: {arm: {figure: [mean, standard deviation]}}.
        panels: {figure: title}.
        factor: by which figures are multiplied, 100 for shares in %.

    Returns:
        The figure and its axes.
    """
    figure, axes = new_figure(12, 0.8 + 0.3 * len(summary), columns=len(panels))
    colours = [GREY] * (len(summary) - 1) + [BLUE]
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        means, deviations = ([factor * (arm[name][part] or 0) for arm in summary.values()] for part in (0, 1))
        axis.barh(range(len(summary)), means, xerr=deviations, color=colours)
        axis.set_yticks(range(len(summary)), list(summary) if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
    return figure, axes
