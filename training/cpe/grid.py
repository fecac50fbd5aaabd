# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Arms of one recipe over several seeds: CPE and its baselines on the same splits.

python training/cpe/grid.py --config training/cpe/grid_reversed.yaml

Writes RESULTS.json and the plot RESULTS.png. Trained models stay in `output_dir` and are not trained again.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from tqdm.auto import tqdm

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_json, write_results
from hf_methods.cpe.publishing_cpe import save_repository
from hf_methods.plotting import BLUE, GREY, new_figure


SHARED_BY_SEEDS = ("class_counts", "unlabeled_counts")


@dataclass
class GridArguments:
    """What `grid.py` runs."""

    train_config: str = field(metadata={"help": "YAML of train.py with everything that the arms share."})
    output_dir: str = field(metadata={"help": "Folder of the trained models; finished ones are not trained again."})
    results: str = field(metadata={"help": "JSON file to write; the plot lies beside it."})
    arms: dict = field(default_factory=dict, metadata={"help": "Name of each arm: its own options of train.py."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    jobs: int = field(default=2, metadata={"help": "Runs at the same time; the processor's threads are shared."})
    checkpoint: str | None = field(default=None, metadata={"help": "Folder for the last arm's checkpoint of seed 0."})

    def __post_init__(self):
        if not self.arms:
            raise ValueError("`arms` is empty: give a mapping of names to options of train.py in the YAML.")


def train_arm(args: GridArguments, arm: str, seed: int) -> Path:
    """Train one arm in a process of its own; returns its folder."""
    folder = Path(args.output_dir) / f"{re.sub(r'[^a-z0-9]+', '-', arm.lower())}-{seed}"
    if (folder / "results.json").exists():
        return folder
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, str(script), "--config", args.train_config, "--output_dir", str(folder)]
    command += ["--seed", str(seed)]
    for name, value in args.arms[arm].items():
        command += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    with open(folder / "train.log", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads})
    return folder


def summarize(rows: list[dict[str, list]]) -> dict[str, list]:
    """[mean, standard deviation] of each figure over the seeds of an arm."""
    columns = {name: [row[name][0] for row in rows] for name in rows[0]}
    complete = {name: values for name, values in columns.items() if None not in values}
    return {name: [mean(v), stdev(v) if len(v) > 1 else None] for name, v in complete.items()}


def plot_summary(results: dict):
    """Bars of the figures that the paper is about, one panel a figure; lines are standard deviations."""
    panels = {"balanced_accuracy": "balanced accuracy, %", "head": "head", "medium": "medium", "tail": "tail"}
    summary = results["summary_mean_and_sd"]
    figure, axes = new_figure(12, 0.8 + 0.3 * len(summary), columns=len(panels))
    colours = [GREY] * (len(summary) - 1) + [BLUE]
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        means, deviations = ([100 * (arm[name][part] or 0) for arm in summary.values()] for part in (0, 1))
        axis.barh(range(len(summary)), means, xerr=deviations, color=colours)
        axis.set_yticks(range(len(summary)), list(summary) if axis is axes[0] else [])
        axis.set_xlim(max(0, 10 * ((min(means) - 15) // 10)), 100)
        axis.invert_yaxis()
        axis.set_title(label, fontsize=10)
    return figure


def save_checkpoint(folder: Path, out: Path, results: dict, arm: str) -> None:
    """A Hub repository of one run: weights, image processor, code, and the figures of all arms."""
    run = json.loads((folder / "results.json").read_text())

    def save(aside: Path) -> None:
        save_repository(str(folder), aside)
        of_run = {name: run[name] for name in (*SHARED_BY_SEEDS, "confusions")}
        write_json(aside / "results.json", {**results, **of_run, "data": run["data"], "arm": arm})
        plot_summary(results).savefig(aside / "results.png")

    atomic_save(out, save)


def main(args: GridArguments) -> None:
    pairs = [(arm, seed) for seed in args.seeds for arm in args.arms]  # a stopped grid has whole seeds
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(tqdm(pool.map(lambda pair: train_arm(args, *pair), pairs), total=len(pairs), desc="train"))
    runs: dict[str, list[dict]] = {arm: [] for arm in args.arms}
    seconds = 0.0  # of the runs, since finished ones are not trained again
    for (arm, _), folder in zip(pairs, folders, strict=True):
        results = json.loads((folder / "results.json").read_text())
        runs[arm].append(results["summary_mean_and_sd"][results["arm"]])
        seconds += results["wall_seconds"]
    path = Path(args.results)
    write_results(
        path,
        seeds=args.seeds,
        data=results["data"],
        wall_seconds=seconds,
        settings={**vars(args), "split": "test", "train": results["settings"]["train"]},
        **{name: results[name] for name in SHARED_BY_SEEDS},
        summary_mean_and_sd={arm: summarize(rows) for arm, rows in runs.items()},
        runs={arm: [{name: value[0] for name, value in row.items()} for row in rows] for arm, rows in runs.items()},
    )
    results = json.loads(path.read_text())
    plot_summary(results).savefig(path.with_suffix(".png"))
    if args.checkpoint:
        last = list(args.arms)[-1]
        save_checkpoint(folders[pairs.index((last, args.seeds[0]))], Path(args.checkpoint), results, last)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
