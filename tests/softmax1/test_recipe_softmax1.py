# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe: resume, two processes, streams, and both architectures."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.softmax1.arguments_softmax1 import Softmax1TrainingArguments
from hf_methods.softmax1.data_softmax1 import token_blocks, train_tokenizer
from hf_methods.softmax1.recipe_softmax1 import (
    DataArguments,
    ModelArguments,
    build_model,
)


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


def run(output_dir, corpus, *options, launcher=()):
    """Run the script in processes of its own if there is a launcher, else, which saves the imports, in this one."""
    command = ["training/softmax1/train.py", "--config", "training/softmax1/smoke.yaml", "--corpus", str(corpus)]
    command += ["--vocab_size", "280", "--output_dir", str(output_dir), *options]
    if launcher:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run([*launcher, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
    else:
        with mock.patch.object(sys, "argv", command):
            runpy.run_path(command[0], run_name="__main__")
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
    (tmp_path / "stopped" / "checkpoint-6").mkdir()  # where it was stopped
    (tmp_path / "stopped" / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    torch.manual_seed(1)  # as nothing of the first run were left
    resumed = run(tmp_path / "stopped", corpus, *options)
    assert differing(whole, resumed) == [] and differing(whole, halfway)


TWO_PROCESSES = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
TWO_PROCESSES += ["--config_file", "training/accelerate/cpu_2.yaml"]


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(corpus, tmp_path):
    steps = ("--max_steps", "3", "--learning_rate", "1e-2", "--use_cpu", "true")
    one = run(tmp_path / "one", corpus, *steps, "--per_device_train_batch_size", "4")
    two = run(tmp_path / "two", corpus, *steps, "--per_device_train_batch_size", "2", launcher=TWO_PROCESSES)
    assert differing(one, two, tolerance=2e-6) == []
    half = run(tmp_path / "half", corpus, *steps, "--per_device_train_batch_size", "2")
    assert differing(one, half, tolerance=1e-3)  # half of the data gives other weights


@pytest.mark.slow
def test_processes_that_would_not_work_together_are_refused(corpus, tmp_path):
    with pytest.raises(AssertionError, match="2 processes were started, but Trainer sees 1"):
        run(tmp_path, corpus, launcher=TWO_PROCESSES)


def test_a_streamed_corpus_trains_and_evaluates(corpus, tmp_path):
    options = ("--streaming", "true", "--tokenizer", str(corpus / "tokenizer"), "--eval_strategy", "steps")
    run(tmp_path / "run", corpus, *options, "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "2")
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize(
    ("architecture", "norm", "attention"),
    [("gpt2", "layernorm", "softmax"), ("llama", "rmsnorm", "softmax1"), ("llama", "rmsnorm_single", "softmax")],
)
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


@pytest.mark.parametrize("option", ["attention", "norm"])
def test_an_unknown_attention_or_norm_raises(option):
    tokenizer = train_tokenizer(TEXTS, 280)
    with pytest.raises(StrictDataclassClassValidationError, match="got .none."):
        build_model(ModelArguments(**{option: "none"}), tokenizer, 32)


@pytest.mark.slow
def test_random_weights_depend_on_the_seed(corpus, tmp_path):
    first, again, other = (run(tmp_path / str(i), corpus, "--seed", str(seed)) for i, seed in enumerate((1, 1, 2)))
    assert differing(first, again) == [] and differing(first, other)
    assert all(torch.isfinite(weight).all() for weight in first.values())
