# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe, started as its users start it: resume, two processes, streams, and both architectures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.softmax1.data_softmax1 import token_blocks, train_tokenizer
from hf_methods.softmax1.training_softmax1 import DataArguments, ModelArguments, Softmax1TrainingArguments


ROOT = Path(__file__).parents[2]
TEXTS = [f"def f_{i}(x):\n    return {i} * x + {i * i}\n" * 3 for i in range(120)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with the splits train and validation, as a Hub data set would have them."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, texts in (("train", TEXTS), ("validation", TEXTS[::10])):
        rows = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts))
        (folder / f"{split}.jsonl").write_text(rows)
    train_tokenizer(TEXTS, 280).save_pretrained(folder / "tokenizer")
    return folder


def run(output_dir, corpus, *options, launcher=(sys.executable,)):
    command = [*launcher, "training/softmax1/train.py", "--config", "training/softmax1/smoke.yaml"]
    command += ["--corpus", str(corpus), "--vocab_size", "280", "--output_dir", str(output_dir), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(output_dir / "model.safetensors")


def differing(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    return [name for name in a if (a[name] - b[name]).abs().max() > tolerance]


@pytest.mark.parametrize("optimizer", ["orthoadam", "adamw"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(optimizer, corpus, tmp_path):
    options = ("--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3", "--optimizer", optimizer)
    whole = run(tmp_path / "whole", corpus, *options)
    (tmp_path / "stopped").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "stopped" / "checkpoint-3")
    halfway = load_file(tmp_path / "stopped" / "checkpoint-3" / "model.safetensors")
    resumed = run(tmp_path / "stopped", corpus, *options)
    assert differing(whole, resumed) == [] and differing(whole, halfway)


def test_two_processes_give_the_weights_of_one(corpus, tmp_path):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", "training/accelerate/cpu_2.yaml")
    launcher += ("--main_process_port", "0")
    steps = ("--max_steps", "3", "--learning_rate", "1e-2")
    one = run(tmp_path / "one", corpus, *steps, "--per_device_train_batch_size", "4")
    two = run(tmp_path / "two", corpus, *steps, "--per_device_train_batch_size", "2", launcher=launcher)
    assert differing(one, two, tolerance=2e-5) == []
    shorter = run(tmp_path / "shorter", corpus, *steps, "--per_device_train_batch_size", "2")
    assert differing(one, shorter, tolerance=2e-5)  # half of the data gives other weights


def test_a_streamed_corpus_trains_and_evaluates(corpus, tmp_path):
    options = ("--streaming", "true", "--tokenizer", str(corpus / "tokenizer"), "--eval_strategy", "steps")
    run(tmp_path / "run", corpus, *options, "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "2")
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize(("architecture", "norm"), [("gpt2", "layernorm"), ("llama", "rmsnorm")])
@pytest.mark.parametrize("attention", ["softmax1", "softmax"])
def test_the_trained_folder_loads_as_what_was_asked_for(architecture, norm, attention, corpus, tmp_path):
    options = ("--architecture", architecture, "--norm", norm, "--attention", attention, "--intermediate_size", "24")
    weights = run(tmp_path / "run", corpus, *options)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run"),
        AutoTokenizer.from_pretrained(corpus / "tokenizer"),
    )
    assert model.config.attention_softmax == attention and model.config.norm_type == norm
    assert model.config.model_type == f"softmax1_{architecture}"
    assert any(24 in weight.shape for weight in weights.values())
    blocks = token_blocks(TEXTS, tokenizer, 32, add_bos=True)[:2]
    assert model(blocks).logits.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelArguments(architecture="bert"), "'gpt2' or 'llama'.*'bert'"),
        (lambda: ModelArguments(hidden_size=10, num_heads=3), "multiple.*10 and 3"),
        (lambda: DataArguments(corpus="a/b", streaming=True), "tokenizer"),
        (lambda: Softmax1TrainingArguments(output_dir="x", optimizer="sgd"), "'orthoadam' or 'adamw'.*'sgd'"),
    ],
)  # fmt: skip
def test_bad_settings_raise_before_the_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_attention_or_norm_raises(corpus, tmp_path):
    for option in ("--attention", "--norm"):
        with pytest.raises(AssertionError, match="got 'none'"):
            run(tmp_path / option, corpus, option, "none")


def test_random_weights_depend_on_the_seed(corpus, tmp_path):
    first, again, other = (run(tmp_path / str(i), corpus, "--seed", str(seed)) for i, seed in enumerate((1, 1, 2)))
    assert differing(first, again) == [] and differing(first, other)
    assert all(torch.isfinite(weight).all() for weight in first.values())
