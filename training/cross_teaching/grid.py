# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Arms of one recipe over several sets of scenes: Cross Teaching and its baselines, all from one burn-in a set.

python training/cross_teaching/grid.py --config training/cross_teaching/grid_scenes.yaml

Writes RESULTS.json and the plot RESULTS.png. Trained models stay in `output_dir` and are not trained again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from tqdm.auto import tqdm

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_json, write_results
from hf_methods.cross_teaching.publishing_cross_teaching import save_repository
from hf_methods.grid import ArmsArguments, mean_and_sd, run_script
from hf_methods.plotting import BLUE, GREY, ORANGE, new_figure


BURN_IN = "burn-in"
OURS, SELF, SUPERVISED = "Cross Teaching", "self-labelling", "supervised"


@dataclass
class GridArguments(ArmsArguments):
    """What `grid.py` runs; a seed is a set: of scenes, initial weights and orders."""

    burn_in: dict = field(
        default_factory=dict, metadata={"help": "Options of train.py of the run that all arms go on from."}
    )
    threads: int = field(default=1, metadata={"help": "Of the processor, for each run; one run at a time."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "Folder for the last arm's checkpoint of the first set."}
    )


def train_arm(args: GridArguments, arm: str, seed: int) -> Path:
    """Train one arm on one set in a process of its own; returns its folder."""
    options = args.burn_in if arm == BURN_IN else args.arms[arm]
    # Fresh scenes, initial weights and order of images on every set; two detectors have seeds 2 s and 2 s + 1.
    options = {**options, "seed": seed, "split_seed": seed, "detector_seed": 2 * seed}
    if arm != BURN_IN:
        options["checkpoints"] = [args.folder(BURN_IN, seed)]
    script = Path(__file__).with_name("train.py")
    return run_script(script, args.folder(arm, seed), args.train_config, options, args.threads)


def compare(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict]:
    """Differences of Cross Teaching to the other arms on each set, and what was expected to repeat.

    The expectations were written down before these sets were drawn: the first two only guard against a broken trainer.
    """
    ours = runs[OURS]
    differences = {
        f"{OURS} - {arm}": [100 * (a["map_50"] - b["map_50"]) for a, b in zip(ours, rows, strict=True)]
        for arm, rows in runs.items()
        if arm != OURS
    }
    effect = {
        arm: [100 * (row["precision"] - row["precision_own"]) for row in rows]
        for arm, rows in runs.items()
        if "precision" in rows[0]
    }
    expected = {
        "mean map_50 at most 3 points below self-labelling": mean(differences[f"{OURS} - {SELF}"]) >= -3,
        "mean map_50 at most 3 points below supervised": mean(differences[f"{OURS} - {SUPERVISED}"]) >= -3,
        "own labels at least as precise as those of self-labelling, on every set": all(
            a["precision_own"] >= b["precision_own"] for a, b in zip(ours, runs[SELF], strict=True)
        ),
        "fewer labels used than by self-labelling, on every set": all(
            a["used_own"] < b["used_own"] for a, b in zip(ours, runs[SELF], strict=True)
        ),
        "rectification changes labels, on every set": all(row["changed"] > 0 for row in ours),
    }
    return {
        "difference_map_50_points": differences,
        "difference_mean_and_sd": mean_and_sd([dict(zip(differences, row)) for row in zip(*differences.values())]),
        "effect_of_rectification_on_precision_points": effect,
        "expected": expected,
    }


def plot_summary(results: dict):
    """Mean average precision of each arm with every set, and the precision of labels before and after rectification."""
    runs = results["runs"]
    figure, (scores, labels) = new_figure(11, 0.9 + 0.34 * len(runs), columns=2)
    for row, (arm, rows) in enumerate(runs.items()):
        values = [100 * run["map_50"] for run in rows]
        scores.plot(values, [row] * len(values), "o", color=GREY, markersize=4)
        scores.plot([mean(values)], [row], "|", color=BLUE if arm == OURS else GREY, markersize=16, markeredgewidth=3)
        if "precision" in rows[0]:
            for when, color, shift in (("precision_own", GREY, -0.12), ("precision", ORANGE, 0.12)):
                labels.plot(
                    [100 * run[when] for run in rows], [row + shift] * len(rows), "o", color=color, markersize=4
                )
    for axis, title in ((scores, "mAP at IoU 0.5 of the students, %"), (labels, "precision of pseudo labels, %")):
        axis.set_yticks(range(len(runs)), list(runs) if axis is scores else [])
        axis.set_ylim(len(runs) - 0.5, -0.5)
        axis.set_title(title, fontsize=10)
    labels.plot([], [], "o", color=GREY, markersize=4, label="own")
    labels.plot([], [], "o", color=ORANGE, markersize=4, label="rectified")
    labels.legend(frameon=False, fontsize=8)
    return figure


def save_checkpoint(folder: Path, out: Path, results: dict, arm: str) -> None:
    """A Hub repository of one run: detectors, image processor, code, and the figures of all arms."""
    run = json.loads((folder / "results.json").read_text())

    def save(aside: Path) -> None:
        save_repository(str(folder), aside)
        write_json(aside / "results.json", {**results, "data": run["data"], "arm": arm})
        plot_summary(results).savefig(aside / "results.png")

    atomic_save(out, save)


def main(args: GridArguments) -> None:
    runs: dict[str, list[dict]] = {arm: [] for arm in args.arms}
    data, seconds = {}, 0.0  # of the runs, since finished ones are not trained again
    pairs = [(arm, seed) for seed in args.seeds for arm in (BURN_IN, *args.arms)]  # a stopped grid has whole sets
    for arm, seed in tqdm(pairs, desc="train"):
        results = json.loads((train_arm(args, arm, seed) / "results.json").read_text())
        seconds += results["wall_seconds"]
        if arm != BURN_IN:
            figures = results["summary_mean_and_sd"][results["arm"]]
            runs[arm].append({name: value[0] for name, value in figures.items()})
            data |= {f"{name}, set {seed}": digest for name, digest in results["data"].items()}
    path = Path(args.results)
    write_results(
        path,
        seeds=args.seeds,
        data=data,
        wall_seconds=seconds,
        settings={**vars(args), "split": results["settings"]["train"]["scenes_split"], **results["settings"]},
        evaluator=results["evaluator"],
        summary_mean_and_sd={arm: mean_and_sd(rows) for arm, rows in runs.items()},
        **compare(runs),
        runs=runs,
    )
    results = json.loads(path.read_text())
    plot_summary(results).savefig(path.with_suffix(".png"))
    if args.checkpoint:
        last = list(args.arms)[-1]
        save_checkpoint(args.folder(last, args.seeds[0]), Path(args.checkpoint), results, last)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
