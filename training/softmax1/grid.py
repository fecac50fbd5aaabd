# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Arms of one recipe over several seeds, with every figure of the comparison.

python training/softmax1/grid.py --config training/softmax1/grid.yaml

`grid.yaml` holds the four arms {softmax, softmax-1} x {AdamW, OrthoAdam} on the test split, `search.yaml` the search for
their learning rates on the validation split. Writes RESULTS.json and the plot RESULTS.png. Trained models stay in
`output_dir` and are not trained again.
"""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_json, write_results
from hf_methods.data import load_text_corpus, text_digest
from hf_methods.grid import ArmsArguments, mean_and_sd, plot_arms, run_script
from hf_methods.softmax1.data_softmax1 import token_blocks
from hf_methods.softmax1.recipe_softmax1 import compute_figures


@dataclass
class GridArguments(ArmsArguments):
    """What `grid.py` runs."""

    jobs: int = field(default=2, metadata={"help": "Runs at the same time; the processor's threads are shared."})
    split: str = field(default="test", metadata={"help": "Split of the figures; 'validation' to search a setting."})
    eval_blocks: int = field(default=512, metadata={"help": "Blocks of the figures."})
    checkpoints: str | None = field(
        default=None, metadata={"help": "Folder for the checkpoints of the first seed, in bfloat16."}
    )
    checkpoint_arms: list[str] = field(default_factory=list, metadata={"help": "Arms whose checkpoints it gets."})

    def __post_init__(self):
        super().__post_init__()
        if unknown := sorted(set(self.checkpoint_arms) - set(self.arms)):
            raise ValueError(f"`checkpoint_arms` has {unknown}, which are not in `arms`: {list(self.arms)}.")


def train_arm(args: GridArguments, arm: str, seed: int) -> Path:
    """Train one arm in a process of its own; returns its folder."""
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    script, options = Path(__file__).with_name("train.py"), {"seed": seed, **args.arms[arm]}
    return run_script(script, args.folder(arm, seed), args.train_config, options, threads, "model.safetensors")


def checkpoint_name(arm: str) -> str:
    """The name of an arm's checkpoint: "softmax-1 + AdamW" -> "softmax1-adamw"."""
    return re.sub(r"[^a-z0-9]+", "-", arm.lower().replace("softmax-1", "softmax1")).strip("-")


def evaluate_arm(folder: Path, corpus, args: GridArguments) -> dict[str, float]:
    """Inspection and every quantisation scheme of one trained model."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seq_len = model.config.max_position_embeddings
    blocks = token_blocks(corpus[args.split]["text"], tokenizer, seq_len, add_bos=True)[: args.eval_blocks]
    # Calibration text is training text, never the text of the figures.
    calibration = token_blocks(corpus["train"]["text"][:50], tokenizer, seq_len, add_bos=True)[:256]
    return compute_figures(model, blocks, calibration)


def plot_summary(results: dict):
    """Bars of the figures that the paper is about, one panel a figure; lines are standard deviations."""
    panels = {
        "perplexity": "perplexity",
        "first_token_mass_pct": "attention on the\nfirst token, %",
        "kurtosis_first": "kurtosis,\nfirst token",
        "maxabs_global": "largest\nactivation",
        "delta_w4-zeropoint-tensor": "4-bit per tensor,\nΔ perplexity",
    }
    return plot_arms(results["summary_mean_and_sd"], panels)[0]


def save_checkpoint(folder: Path, out: Path, results: dict, arm: str) -> None:
    """A Hub repository of one arm: weights in bfloat16, tokenizer, code, and the figures of all arms."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def save(aside: Path) -> None:
        model.bfloat16().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / "results.json", {**results, "arm": arm})
        plot_summary(results).savefig(aside / "results.png")

    atomic_save(out, save)


def main(args: GridArguments) -> None:
    start = time.time()
    train_settings = yaml.safe_load(Path(args.train_config).read_text())
    corpus = load_text_corpus(train_settings["corpus"])
    pairs = [(arm, seed) for seed in args.seeds for arm in args.arms]  # a stopped grid has whole seeds
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(tqdm(pool.map(lambda pair: train_arm(args, *pair), pairs), total=len(pairs), desc="train"))
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for (arm, _), folder in zip(pairs, tqdm(folders, desc="evaluate"), strict=True):
        runs[arm].append(evaluate_arm(folder, corpus, args))
    path = Path(args.results)
    write_results(
        path,
        seeds=args.seeds,
        data={split: text_digest(corpus[split]) for split in corpus},
        wall_seconds=time.time() - start,
        settings={**vars(args), "train": train_settings},
        summary_mean_and_sd={arm: mean_and_sd(rows) for arm, rows in runs.items()},
        runs=runs,
    )
    results = json.loads(path.read_text())
    plot_summary(results).savefig(path.with_suffix(".png"))
    for arm, folder in zip(args.arms if args.checkpoints else (), folders):
        if arm in args.checkpoint_arms:
            save_checkpoint(folder, Path(args.checkpoints) / checkpoint_name(arm), results, arm)


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
