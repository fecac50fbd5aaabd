# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe over several seeds: MBF and its baselines on the same images, known and unseen attacks, and adaptive ones.

python training/mbf/grid.py --config training/mbf/grid_resnet.yaml

Writes RESULTS.json and the plot RESULTS.png. Finished runs stay in `output_dir` and are not made again.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_json, write_results
from hf_methods.grid import GridArguments as SharedArguments
from hf_methods.grid import plot_arms, run_script
from hf_methods.mbf.recipe_mbf import summarize_runs


@dataclass
class GridArguments(SharedArguments):
    """What `grid.py` runs; a seed is of the split, the network and the attacks, and each run has every arm."""

    checkpoint: str | None = field(default=None, metadata={"help": "Folder for the first seed's checkpoint."})


def run_seed(args: GridArguments, seed: int) -> Path:
    """Run the recipe in a process of its own; returns its folder."""
    script, folder = Path(__file__).with_name("train.py"), Path(args.output_dir) / f"seed-{seed}"
    return run_script(script, folder, args.train_config, {"seed": seed}, threads=1)


def plot_summary(results: dict):
    """Bars of the AUROC in each setting, one panel a setting; lines are standard deviations over seeds."""
    summary = results["summary_mean_and_sd"]
    panels = {
        "known_auroc": "known attack",
        "transfer_auroc": "trained on another attack",
        "leave_one_out_auroc": "trained on all others",
        "other_source_auroc": "other images",
    }
    panels = {name: label for name, label in panels.items() if all(name in arm for arm in summary.values())}
    titles = {name: f"{label}, AUROC" for name, label in panels.items()}
    figure, axes = plot_arms(summary, titles)
    for axis in axes:
        axis.axvline(0.5, color="black", linewidth=0.8)  # chance
        axis.set_xlim(0.3, 1)
    return figure


def save_checkpoint(folder: Path, out: Path, results: dict) -> None:
    """The run's repository (detector, classifier, image processor, code) with the figures of all seeds."""
    leave_out = shutil.ignore_patterns("results.json", "train.log", "checkpoint-*", "training_args.bin")

    def save(aside: Path) -> None:
        shutil.copytree(folder, aside, ignore=leave_out, dirs_exist_ok=True)
        for weights in aside.rglob("*.safetensors"):
            weights.chmod(0o644)
        write_json(aside / "results.json", results)
        plot_summary(results).savefig(aside / "results.png")

    atomic_save(out, save)


def main(args: GridArguments) -> None:
    folders = [run_seed(args, seed) for seed in tqdm(args.seeds, desc="seeds")]
    of_seeds = [json.loads((folder / "results.json").read_text()) for folder in folders]
    first = of_seeds[0]
    path = Path(args.results)
    write_results(
        path,
        seeds=args.seeds,
        data=first["data"],
        wall_seconds=sum(run["wall_seconds"] for run in of_seeds),  # finished runs are not made again
        settings={**vars(args), **first["settings"]},
        **summarize_runs([run["run"] for run in of_seeds]),
    )
    results = json.loads(path.read_text())
    plot_summary(results).savefig(path.with_suffix(".png"))
    if args.checkpoint:
        save_checkpoint(folders[0], Path(args.checkpoint), results)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
