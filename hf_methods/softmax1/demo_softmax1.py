# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What `hf-methods demo` shows of Softmax-1 + OrthoAdam."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.data import load_text_corpus
from hf_methods.report import Section, text_table, write_report
from hf_methods.softmax1.data_softmax1 import token_blocks
from hf_methods.softmax1.inspection_softmax1 import inspect_model
from hf_methods.softmax1.quantization_softmax1 import RoundToNearestConfig, quantization_report


STEPS = 150
CHECKPOINTS = Path("model_cards")
PROMPT = "def read_"
COLUMNS = {
    "perplexity": "perplexity",
    "first_token_mass_pct": "first-token mass %",
    "null_mass_pct": "null mass %",
    "kurtosis_first": "kurtosis first",
    "kurtosis_rest": "kurtosis rest",
    "maxabs_global": "max |x|",
}
SCHEMES = ("w8a8-coarse", "w4-zeropoint-tensor", "w4-zeropoint")
CAPTION = (
    "Tiny GPT-2 models trained on the source text of Python's standard library, measured on held-out files. "
    "Δ: what a quantisation scheme adds to the perplexity. Kurtosis is 3 for a Gaussian; an even causal head gives the "
    "first of 64 tokens 6 % of its attention. The models share everything but attention and optimizer."
)


def run_demo(out: Path, steps: int) -> str:
    """Inspect and quantise the trained arms, generate text, and train one more for a moment.

    Args:
        out: folder of `report.html` and the plots.
        steps: training steps of the recipe.

    Returns:
        The table, as text.

    Raises:
        FileNotFoundError: not run in a checkout with its `model_cards/`.
    """
    folders = sorted(path.parent for path in CHECKPOINTS.glob("softmax*/config.json"))
    if not folders:
        raise FileNotFoundError(f"{CHECKPOINTS}/softmax* is missing: run the demo in a checkout of hf_methods.")
    corpus = load_text_corpus("python")
    with tempfile.TemporaryDirectory() as trained:
        seconds = _train(Path(trained), steps)
        arms = [_show(folder, folder.name, corpus, out) for folder in folders]
        arms.append(_show(Path(trained), f"trained now, {steps} steps", corpus, out))
    figures = [*COLUMNS.values(), *(f"Δ {scheme}" for scheme in SCHEMES), "file MB", "4-bit file MB"]
    header = ["", *(arm["name"] for arm in arms)]
    rows = [[name, *(f"{arm['values'][i]:.2f}" for arm in arms)] for i, name in enumerate(figures)]
    sections = [Section(arm["name"], arm["text"], arm["plots"]) for arm in arms]
    write_report(out / "report.html", "Softmax-1 + OrthoAdam", CAPTION, header, rows, sections)
    return f"{text_table(header, rows)}\ntrained {steps} steps in {seconds:.0f} s; report: {out / 'report.html'}"


def _train(folder: Path, steps: int) -> float:
    start = time.time()
    command = [sys.executable, "training/softmax1/train.py", "--config", "training/softmax1/python_small.yaml"]
    command += ["--output_dir", str(folder), "--max_steps", str(steps), "--warmup_steps", str(steps // 10)]
    subprocess.run(command, check=True)
    return time.time() - start


def _show(folder: Path, name: str, corpus, out: Path) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # figures want full precision
    seq_len = model.config.n_positions
    blocks = token_blocks(corpus["test"]["text"], tokenizer, seq_len, add_bos=True)[:128]
    calibration = token_blocks(corpus["train"]["text"][:50], tokenizer, seq_len, add_bos=True)[:128]
    report = inspect_model(model, blocks, max_blocks=128, batch_size=32)
    report.quantization = quantization_report(model, blocks, calibration, SCHEMES, batch_size=64)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=48, do_sample=False, repetition_penalty=1.2)
    values = [getattr(report, column) for column in COLUMNS] + [row["delta"] for row in report.quantization]
    plots = report.plot(out / name.split(",")[0].replace(" ", "-"))
    sizes = [_megabytes(folder), _packed_megabytes(folder)]
    return {"name": name, "values": values + sizes, "plots": plots, "text": tokenizer.decode(tokens[0])}


def _packed_megabytes(folder: Path) -> float:
    """Size of the weights when the linear layers are stored in 4 bits."""
    quantized = AutoModelForCausalLM.from_pretrained(folder, quantization_config=RoundToNearestConfig(bits=4))
    with tempfile.TemporaryDirectory() as packed:
        quantized.save_pretrained(packed)
        return _megabytes(Path(packed))


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
