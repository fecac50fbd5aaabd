# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The four arms {softmax, softmax-1} x {AdamW, OrthoAdam} over several seeds, with every figure of the comparison.

python training/softmax1/grid.py --config training/softmax1/grid.yaml --output_dir runs/grid --results results.json
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
import yaml
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.data import load_text_corpus, text_digest
from hf_methods.softmax1 import inspect_model, quantization_report
from hf_methods.softmax1.data_softmax1 import token_blocks


SCALARS = (
    "perplexity", "first_token_argmax_pct", "heads_first_token_max_pct", "first_token_mass_pct", "null_mass_pct",
    "kurtosis_first", "kurtosis_rest", "maxabs_first", "maxabs_rest", "maxabs_global",
)  # fmt: skip


@dataclass
class GridArguments:
    """What `grid.py` runs."""

    train_config: str = field(metadata={"help": "YAML of train.py with everything that the arms share."})
    output_dir: str = field(metadata={"help": "Folder of the trained models; finished ones are not trained again."})
    results: str = field(metadata={"help": "JSON file to write."})
    orthoadam_learning_rate: float = field(metadata={"help": "Learning rate of the OrthoAdam arms."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    jobs: int = field(default=2, metadata={"help": "Trainings at a time, one thread each."})
    split: str = field(default="test", metadata={"help": "Split of the figures; 'validation' to search a setting."})
    eval_blocks: int = field(default=512, metadata={"help": "Blocks of the figures."})


def train_arm(args: GridArguments, attention: str, optimizer: str, seed: int) -> Path:
    """Train one arm in a process of its own; returns its folder."""
    folder = Path(args.output_dir) / f"{attention}-{optimizer}-{seed}"
    if (folder / "model.safetensors").exists():
        return folder
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, str(script), "--config", args.train_config, "--output_dir", str(folder)]
    command += ["--attention", attention, "--optimizer", optimizer, "--seed", str(seed)]
    if optimizer == "orthoadam":
        command += ["--learning_rate", str(args.orthoadam_learning_rate)]
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    with open(folder / "train.log", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads})
    return folder


def evaluate_arm(folder: Path, corpus, args: GridArguments) -> dict:
    """Inspection and every quantisation scheme of one trained model."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seq_len = model.config.n_positions
    blocks = token_blocks(corpus[args.split]["text"], tokenizer, seq_len, add_bos=True)[: args.eval_blocks]
    # Calibration text is training text, never the text of the figures.
    calibration = token_blocks(corpus["train"]["text"][:50], tokenizer, seq_len, add_bos=True)[:256]
    report = inspect_model(model, blocks, max_blocks=len(blocks), batch_size=64)
    rows = quantization_report(model, blocks, calibration, batch_size=64)
    figures = {name: getattr(report, name) for name in SCALARS}
    return {**figures, **{f"delta_{row['scheme']}": row["delta"] for row in rows}}


def main(args: GridArguments) -> None:
    start = time.time()
    runs = list(product(("softmax", "softmax1"), ("adamw", "orthoadam"), args.seeds))
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(tqdm(pool.map(lambda run: train_arm(args, *run), runs), total=len(runs), desc="train"))
    corpus = load_text_corpus(yaml.safe_load(Path(args.train_config).read_text())["corpus"])
    torch.manual_seed(0)
    arms: dict[str, list[dict]] = {}
    for (attention, optimizer, _), folder in zip(runs, tqdm(folders, desc="evaluate"), strict=True):
        arms.setdefault(f"{attention}+{optimizer}", []).append(evaluate_arm(folder, corpus, args))
    summary = {
        arm: {name: [mean(r[name] for r in rows), stdev(r[name] for r in rows) if len(rows) > 1 else 0.0]
              for name in rows[0]}
        for arm, rows in arms.items()
    }  # fmt: skip
    write_results(
        args.results,
        seeds=args.seeds,
        data={split: text_digest(corpus[split]) for split in corpus},
        wall_seconds=time.time() - start,
        settings={**vars(args), "train": yaml.safe_load(Path(args.train_config).read_text())},
        summary_mean_and_sd=summary,
        runs=arms,
    )


if __name__ == "__main__":
    main(*parse_args_and_config((GridArguments,)))
