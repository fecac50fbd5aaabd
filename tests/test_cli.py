# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The command line, as a user calls it."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from hf_methods.cli import app
from hf_methods.softmax1.data_softmax1 import train_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model and a text file of plain transformers."""
    folder = tmp_path_factory.mktemp("plain")
    text = "the cat sat on the mat and the dog ran away. " * 60
    (folder / "text.txt").write_text(text)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=270, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    train_tokenizer([text], 270).save_pretrained(folder)
    return folder


def test_inspect_works_on_a_plain_transformers_checkpoint(checkpoint, tmp_path):
    options = ["--text", str(checkpoint / "text.txt"), "--out", str(tmp_path), "--seq-len", "32", "--quant", "all"]
    result = CliRunner().invoke(app, ["inspect", str(checkpoint), *options], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert 100 < report["perplexity"] < 600 and len(report["quantization"]) == 7
    assert (tmp_path / "quantization.png").exists() and "kurtosis_first" in result.output


def test_quantize_writes_a_smaller_checkpoint_that_loads(checkpoint, tmp_path):
    arguments = ["quantize", str(checkpoint), "--out", str(tmp_path / "q"), "--bits", "4"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "q", checkpoint)]
    assert sizes[0] < 0.6 * sizes[1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "q").config.quantization_config.bits == 4


def test_env_prints_json():
    assert "torch" in json.loads(CliRunner().invoke(app, ["env"]).output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "nowhere", "--out", "x", "--bits", "11"],
        ["inspect", "no-such-folder", "--text", "nothing", "--out", "x"],
        ["train", "no_method"],
    ],
)
def test_a_wrong_argument_gives_one_line(arguments, tmp_path):
    command = [sys.executable, "-m", "hf_methods.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("hf-methods: ")
