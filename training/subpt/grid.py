# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Arms of one recipe over several seeds: CoOp, SubPT, NFL and controls on the same shots.

python training/subpt/grid.py --config training/subpt/grid.yaml

Writes RESULTS.json, the bars RESULTS.png and the curves RESULTS_curves.png. The arms of a seed share their image features.
Trained contexts stay in `output_dir` and are not trained again.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from tqdm.auto import tqdm
from train import train  # the script beside this one
from transformers import CLIPModel

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_json, write_results
from hf_methods.grid import ArmsArguments, as_words, mean_and_sd, plot_arms
from hf_methods.plotting import BLUE, GREY, ORANGE, new_figure
from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments
from hf_methods.subpt.export_subpt import save_half_precision
from hf_methods.subpt.publishing_subpt import save_repository
from hf_methods.subpt.recipe_subpt import DataArguments, ModelArguments, PromptData


ZERO_SHOT = "zero-shot CLIP"
GROUPS = {"base": "base classes", "novel": "novel classes", "harmonic_mean": "harmonic mean"}


@dataclass
class GridArguments(ArmsArguments):
    """What `grid.py` runs."""

    curves: list[str] = field(default_factory=list, metadata={"help": "Arms whose curves are drawn; default: all."})
    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder for the last arm's model of the first seed, beside the first arm's adapter."},
    )

    def __post_init__(self):
        super().__post_init__()
        if unknown := sorted(set(self.curves) - set(self.arms)):
            raise ValueError(f"`curves` names arms that are none: {unknown}; the arms are {list(self.arms)}.")


def train_arm(args: GridArguments, arm: str, seed: int, data: PromptData | None) -> PromptData | None:
    """Train one arm, unless it was; returns the features that it used."""
    folder = args.folder(arm, seed)
    if (folder / "results.json").exists():
        return data
    options = {"output_dir": folder, "seed": seed, "disable_tqdm": True, **args.arms[arm]}
    argv = ["--config", args.train_config, *as_words(options)]
    settings = parse_args_and_config((ModelArguments, DataArguments, SubPTTrainingArguments), argv)
    return train(*settings, data=data)


def figures_of(run: dict) -> dict[str, float]:
    """Figures of one run: accuracies at its end, the best novel accuracy on the way, the last epoch's cross entropy."""
    figures = {name: value for name, (value, _) in run["summary_mean_and_sd"][run["arm"]].items()}
    figures["peak_novel"] = max(row["novel"] for row in run["curve"])
    return {**figures, "last_ce_loss": run["ce_loss_by_epoch"][-1]}


def mean_curve(runs: list[dict]) -> dict[str, list[float]]:
    """Accuracies by epoch, as means over the seeds."""
    rows = list(zip(*(run["curve"] for run in runs), strict=True))
    curve: dict[str, list[float]] = {"epoch": [row[0]["epoch"] for row in rows]}
    return curve | {name: [mean(run[name] for run in row) for row in rows] for name in GROUPS}


def plot_summary(results: dict):
    """Bars of the accuracies at the end, one panel a group; lines are standard deviations over the seeds."""
    summary = results["summary_mean_and_sd"]
    figure, axes = plot_arms(summary, {name: f"{label}, accuracy in %" for name, label in GROUPS.items()})
    for axis, name in zip(axes, GROUPS, strict=True):
        axis.axvline(summary[ZERO_SHOT][name][0], color=GREY, linewidth=0.8, linestyle=":")
        axis.set_xlim(max(0, 10 * ((min(bar.get_width() for bar in axis.patches) - 5) // 10)))
    return figure


def plot_curves(results: dict, arms: list[str]):
    """Base and novel accuracy over the epochs, means of the seeds; the dotted line is zero-shot CLIP."""
    figure, axes = new_figure(10, 4, columns=2)
    for axis, name in zip(axes, ("base", "novel"), strict=True):
        axis.set_prop_cycle(color=(ORANGE, BLUE, "#16a34a", "#9333ea", GREY, "#111827"))
        for arm in arms:
            axis.plot(results["curves"][arm]["epoch"], results["curves"][arm][name], label=arm)
        axis.axhline(results["summary_mean_and_sd"][ZERO_SHOT][name][0], color=GREY, linewidth=0.8, linestyle=":")
        axis.set(xlabel="epoch", ylabel="accuracy, %" if axis is axes[0] else None)
        axis.set_title(GROUPS[name], fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def save_checkpoint(args: GridArguments, results: dict) -> None:
    """The last arm's merged model of the first seed, its adapter, the first arm's adapter, figures and plots."""
    first, last = next(iter(args.arms)), list(args.arms)[-1]
    folder = args.folder(last, args.seeds[0])
    run = json.loads((folder / "results.json").read_text())
    coop = args.folder(first, args.seeds[0]) / "adapter"

    def save(aside: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            merged = shutil.copytree(folder / "merged", Path(scratch, "merged"))
            save_half_precision(CLIPModel.from_pretrained(merged), merged)
            shutil.copytree(coop, merged / "adapter_coop")
            save_repository(str(merged), aside)
        write_json(aside / "results.json", {**results, "data": run["data"], "arm": last})
        plot_summary(results).savefig(aside / "results.png")
        plot_curves(results, args.curves or list(args.arms)).savefig(aside / "curves.png")

    atomic_save(Path(args.checkpoint or ""), save)


def main(args: GridArguments) -> None:
    progress = tqdm(total=len(args.seeds) * len(args.arms), desc="train")
    for seed in args.seeds:  # a stopped grid has whole seeds
        data: PromptData | None = None
        for arm in args.arms:
            data = train_arm(args, arm, seed, data)
            progress.update()
    runs = {
        arm: [json.loads((args.folder(arm, seed) / "results.json").read_text()) for seed in args.seeds]
        for arm in args.arms
    }
    shared = next(iter(runs.values()))  # zero-shot CLIP is the same in all
    rows = {ZERO_SHOT: [{k: v[0] for k, v in run["summary_mean_and_sd"][ZERO_SHOT].items()} for run in shared]}
    rows |= {arm: [figures_of(run) for run in of_arm] for arm, of_arm in runs.items()}
    path, last = Path(args.results), runs[list(args.arms)[-1]][0]
    write_results(
        path,
        seeds=args.seeds,
        data=last["data"],
        wall_seconds=sum(run["wall_seconds"] for of_arm in runs.values() for run in of_arm),
        settings={**vars(args), "split": last["settings"]["split"], "train": last["settings"]["train"]},
        summary_mean_and_sd={arm: mean_and_sd(of_arm) for arm, of_arm in rows.items()},
        runs=rows,
        curves={arm: mean_curve(of_arm) for arm, of_arm in runs.items()},
    )
    results = json.loads(path.read_text())
    plot_summary(results).savefig(path.with_suffix(".png"))
    plot_curves(results, args.curves or list(args.arms)).savefig(path.with_name(f"{path.stem}_curves.png"))
    if args.checkpoint:
        save_checkpoint(args, results)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
