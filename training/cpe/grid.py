# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Arms of one recipe over several seeds: CPE and its baselines on the same splits.

python training/cpe/grid.py --config training/cpe/grid_reversed.yaml

Writes RESULTS.json and the plot RESULTS.png. Trained models stay in `output_dir` and are not trained again.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_json, write_results
from hf_methods.cpe.publishing_cpe import save_repository
from hf_methods.grid import ArmsArguments, mean_and_sd, plot_arms, run_script


SHARED_BY_SEEDS = ("class_counts", "unlabeled_counts")


@dataclass
class GridArguments(ArmsArguments):
    """What `grid.py` runs."""

    jobs: int = field(default=2, metadata={"help": "Runs at the same time; the processor's threads are shared."})
    checkpoint: str | None = field(default=None, metadata={"help": "Folder for the last arm's checkpoint of seed 0."})


def train_arm(args: GridArguments, arm: str, seed: int) -> Path:
    """Train one arm in a process of its own; returns its folder."""
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    script, options = Path(__file__).with_name("train.py"), {"seed": seed, **args.arms[arm]}
    return run_script(script, args.folder(arm, seed), args.train_config, options, threads)


def plot_summary(results: dict):
    """Bars of the figures that the paper is about, one panel a figure; lines are standard deviations."""
    panels = {"balanced_accuracy": "balanced accuracy, %", "head": "head", "medium": "medium", "tail": "tail"}
    figure, axes = plot_arms(results["summary_mean_and_sd"], panels, factor=100)
    for axis in axes:
        axis.set_xlim(max(0, 10 * ((min(bar.get_width() for bar in axis.patches) - 15) // 10)), 100)
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
        figures = results["summary_mean_and_sd"][results["arm"]]
        runs[arm].append({name: value[0] for name, value in figures.items()})
        seconds += results["wall_seconds"]
    path = Path(args.results)
    write_results(
        path,
        seeds=args.seeds,
        data=results["data"],
        wall_seconds=seconds,
        settings={**vars(args), "split": "test", "train": results["settings"]["train"]},
        **{name: results[name] for name in SHARED_BY_SEEDS},
        summary_mean_and_sd={arm: mean_and_sd(rows) for arm, rows in runs.items()},
        runs=runs,
    )
    results = json.loads(path.read_text())
    plot_summary(results).savefig(path.with_suffix(".png"))
    if args.checkpoint:
        last = list(args.arms)[-1]
        save_checkpoint(folders[pairs.index((last, args.seeds[0]))], Path(args.checkpoint), results, last)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
