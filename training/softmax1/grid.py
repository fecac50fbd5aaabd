# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The four arms {softmax, softmax-1} x {AdamW, OrthoAdam} over several seeds, with every figure of the comparison.

python training/softmax1/grid.py --config training/softmax1/grid.yaml

Writes RESULTS.json, the table RESULTS.md and the plot RESULTS.png. With several learning rates it is the search for a
setting (`search.yaml`), on the validation split. Trained models stay in `output_dir` and are not trained again.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import yaml
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, atomic_write_text, write_results
from hf_methods.data import load_text_corpus, text_digest
from hf_methods.plotting import BLUE, GREY, new_figure
from hf_methods.softmax1 import inspect_model, quantization_report
from hf_methods.softmax1.data_softmax1 import token_blocks


SCALARS = (
    "perplexity", "first_token_mass_pct", "null_mass_pct", "first_token_argmax_pct", "heads_first_token_max_pct",
    "kurtosis_first", "kurtosis_rest", "maxabs_first", "maxabs_rest", "maxabs_global",
)  # fmt: skip
NAMES = {"softmax": "softmax", "softmax1": "softmax-1", "adamw": "AdamW", "orthoadam": "OrthoAdam"}


@dataclass
class GridArguments:
    """What `grid.py` runs."""

    train_config: str = field(metadata={"help": "YAML of train.py with everything that the arms share."})
    output_dir: str = field(metadata={"help": "Folder of the trained models; finished ones are not trained again."})
    results: str = field(metadata={"help": "JSON file to write; the table and the plot lie beside it."})
    adamw_learning_rates: list[float] = field(metadata={"help": "Learning rates of the AdamW arms."})
    orthoadam_learning_rates: list[float] = field(metadata={"help": "Learning rates of the OrthoAdam arms."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    jobs: int = field(default=2, metadata={"help": "Trainings at a time; they share the cores."})
    split: str = field(default="test", metadata={"help": "Split of the figures; 'validation' to search a setting."})
    eval_blocks: int = field(default=512, metadata={"help": "Blocks of the figures."})
    checkpoints: str | None = field(
        default=None, metadata={"help": "Folder for the checkpoints of the first seed, in bfloat16."}
    )


@dataclass(frozen=True)
class Arm:
    """One training of the grid."""

    attention: str
    optimizer: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.attention}-{self.optimizer}-{self.learning_rate:g}-{self.seed}"


def make_arms(args: GridArguments) -> list[Arm]:
    """Every combination, seed by seed, so that a stopped grid has whole seeds."""
    rates = {"adamw": args.adamw_learning_rates, "orthoadam": args.orthoadam_learning_rates}
    cells = [(optimizer, rate) for optimizer in rates for rate in rates[optimizer]]
    return [
        Arm(attention, optimizer, rate, seed)
        for seed, (optimizer, rate), attention in product(args.seeds, cells, ("softmax", "softmax1"))
    ]


def train_arm(args: GridArguments, arm: Arm) -> Path:
    """Train one arm in a process of its own; returns its folder."""
    folder = Path(args.output_dir) / arm.name
    if (folder / "model.safetensors").exists():
        return folder
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, str(script), "--config", args.train_config, "--output_dir", str(folder)]
    command += ["--attention", arm.attention, "--optimizer", arm.optimizer, "--seed", str(arm.seed)]
    command += ["--learning_rate", str(arm.learning_rate)]
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    with open(folder / "train.log", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads})
    return folder


def evaluate_arm(arm: Arm, folder: Path, corpus, args: GridArguments) -> dict:
    """Inspection and every quantisation scheme of one trained model."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seq_len = model.config.max_position_embeddings
    blocks = token_blocks(corpus[args.split]["text"], tokenizer, seq_len, add_bos=True)[: args.eval_blocks]
    # Calibration text is training text, never the text of the figures.
    calibration = token_blocks(corpus["train"]["text"][:50], tokenizer, seq_len, add_bos=True)[:256]
    report = inspect_model(model, blocks, max_blocks=len(blocks), batch_size=64)
    rows = quantization_report(model, blocks, calibration, batch_size=64)
    figures = {name: getattr(report, name) for name in SCALARS}
    return {**vars(arm), **figures, **{f"delta_{row['scheme']}": row["delta"] for row in rows}}


def summarize(runs: list[dict]) -> list[dict]:
    """Mean and standard deviation over the seeds of each arm."""
    cells: dict[tuple, list[dict]] = {}
    for run in runs:
        cells.setdefault((run["attention"], run["optimizer"], run["learning_rate"]), []).append(run)
    keys = ("attention", "optimizer", "learning_rate", "seed")
    return [
        {
            **dict(zip(keys, cell)),
            "mean": {name: mean(run[name] for run in rows) for name in rows[0] if name not in keys},
            "sd": {name: stdev([r[name] for r in rows]) if len(rows) > 1 else 0.0 for name in rows[0] if name not in keys},
        }
        for cell, rows in cells.items()
    ]  # fmt: skip


def render_table(results: dict) -> str:
    """The summary as a Markdown table, one column an arm."""
    cells = results["summary"]
    title = lambda c: f"{NAMES[c['attention']]} + {NAMES[c['optimizer']]} ({c['learning_rate']:g})"  # noqa: E731
    lines = ["| | " + " | ".join(title(cell) for cell in cells) + " |", "|---|" + "---:|" * len(cells)]
    for name in cells[0]["mean"]:
        digits = 3 if name.startswith("delta") else 2
        values = [f"{cell['mean'][name]:.{digits}f} ± {cell['sd'][name]:.{digits}f}" for cell in cells]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def plot_summary(results: dict):
    """Bars of the figures that the paper is about, one panel a figure; lines are standard deviations."""
    panels = {
        "perplexity": "perplexity",
        "first_token_mass_pct": "attention on the\nfirst token, %",
        "kurtosis_first": "kurtosis,\nfirst token",
        "maxabs_global": "largest\nactivation",
        "delta_w4-zeropoint-tensor": "4-bit per tensor,\nΔ perplexity",
    }
    figure, axes = new_figure(12, 3, len(panels))
    cells = results["summary"]
    labels = [f"{NAMES[cell['attention']]}\n{NAMES[cell['optimizer']]}" for cell in cells]
    colours = [BLUE if (c["attention"], c["optimizer"]) == ("softmax1", "orthoadam") else GREY for c in cells]
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        means, deviations = ([cell[part][name] for cell in cells] for part in ("mean", "sd"))
        axis.bar(range(len(cells)), means, yerr=deviations, color=colours)
        axis.set_xticks(range(len(cells)), labels, rotation=90, fontsize=8)
        axis.set_title(label, fontsize=10)
    return figure


def save_checkpoint(folder: Path, out: Path, run: dict, results: Path) -> None:
    """A Hub repository of one arm: weights in bfloat16, tokenizer, code and its figures."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def save(aside: Path) -> None:
        model.bfloat16().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        whole = json.loads(results.read_text())
        own = {name: whole[name] for name in ("command", "environment", "data", "settings")} | {"run": run}
        atomic_write_text(aside / "results.json", json.dumps(own, indent=1) + "\n")

    atomic_save(out, save)


def main(args: GridArguments) -> None:
    start = time.time()
    arms = make_arms(args)
    corpus = load_text_corpus(yaml.safe_load(Path(args.train_config).read_text())["corpus"])
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(tqdm(pool.map(lambda arm: train_arm(args, arm), arms), total=len(arms), desc="train"))
    pairs = zip(arms, tqdm(folders, desc="evaluate"), strict=True)
    runs = [evaluate_arm(arm, folder, corpus, args) for arm, folder in pairs]
    write_results(
        args.results,
        seeds=args.seeds,
        data={split: text_digest(corpus[split]) for split in corpus},
        wall_seconds=time.time() - start,
        settings={**vars(args), "train": yaml.safe_load(Path(args.train_config).read_text())},
        summary=summarize(runs),
        runs=runs,
    )
    path = Path(args.results)
    results = json.loads(path.read_text())
    atomic_write_text(path.with_suffix(".md"), render_table(results))
    plot_summary(results).savefig(path.with_suffix(".png"))
    for arm, folder, run in zip(arms, folders, runs, strict=True):
        if args.checkpoints and arm.seed == args.seeds[0]:
            save_checkpoint(folder, Path(args.checkpoints) / f"softmax1-{arm.attention}-{arm.optimizer}", run, path)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
