# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A saved checkpoint carries its code and loads where the package is not installed, with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hf_methods
from hf_methods import (
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    Softmax1LlamaConfig,
    Softmax1LlamaForCausalLM,
)


PACKAGE = Path(hf_methods.__file__).parent
CHECKPOINTS = sorted(path.parent for path in (PACKAGE.parent / "model_cards").glob("*/pipeline_*.py"))
FILES = ["attention_softmax1.py", "configuration_softmax1.py", "modeling_softmax1.py"]
IDS = torch.arange(12)[None]
COMMON = dict(vocab_size=50, bos_token_id=0, eos_token_id=None, pad_token_id=0, initializer_range=0.3)
GPT2 = dict(n_positions=64, n_embd=32, n_layer=2, n_head=4, **COMMON)
LLAMA = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, **COMMON,
)  # fmt: skip
CASES = {
    "gpt2": (Softmax1GPT2Config, Softmax1GPT2LMHeadModel, GPT2),
    "gpt2_single": (Softmax1GPT2Config, Softmax1GPT2LMHeadModel, {**GPT2, "norm_type": "rmsnorm_single"}),
    "gpt2_no_bias": (Softmax1GPT2Config, Softmax1GPT2LMHeadModel, {**GPT2, "mlp_bias": False}),
    "gpt2_softmax": (Softmax1GPT2Config, Softmax1GPT2LMHeadModel, {**GPT2, "attention_softmax": "softmax"}),
    "llama": (Softmax1LlamaConfig, Softmax1LlamaForCausalLM, LLAMA),
    "llama_single": (Softmax1LlamaConfig, Softmax1LlamaForCausalLM, {**LLAMA, "norm_type": "rmsnorm_single"}),
}
# What somebody without the package runs.
CODE = """
import sys
sys.modules["hf_methods"] = None  # importing the package is an error from here on
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
ids = torch.arange(12)[None]
for folder in sys.argv[1:]:
    for flag in ({"trust_remote_code": False}, {}):  # left out: a question on the terminal, which is closed
        try:
            AutoModelForCausalLM.from_pretrained(folder, **flag)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError("loaded without trust")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    tokens = model.generate(ids, max_new_tokens=5, do_sample=False)
    save_file({"logits": model(ids).logits, "tokens": tokens}, f"{folder}/out.safetensors")
    model.save_pretrained(f"{folder}/again")
"""


def make(name):
    config_class, model_class, sizes = CASES[name]
    torch.manual_seed(0)
    model = model_class(config_class(**sizes)).eval()
    with torch.no_grad():
        for param in model.parameters():  # biases and the scales of norms too
            param.add_(0.1 * torch.randn_like(param))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of checkpoints, each loaded, run and saved again by one process without the package."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in CASES:
        make(name).save_pretrained(root / name)
    folders = [str(root / name) for name in CASES]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", CODE, *folders],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=root, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return root


def check_code_files(folder):
    """All travelling files, byte for byte, and no other."""
    assert sorted(path.name for path in folder.glob("*.py")) == FILES
    for name in FILES:
        assert (folder / name).read_bytes() == (PACKAGE / "softmax1" / name).read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_a_saved_checkpoint_carries_its_code_unchanged(name, saved):
    config_class, model_class, _ = CASES[name]
    check_code_files(saved / name)
    assert json.loads((saved / name / "config.json").read_text())["auto_map"] == {
        "AutoConfig": f"configuration_softmax1.{config_class.__name__}",
        "AutoModelForCausalLM": f"modeling_softmax1.{model_class.__name__}",
    }


@pytest.mark.parametrize("name", CASES)
def test_without_the_package_the_numbers_are_the_same(name, saved):
    model, out = make(name), load_file(saved / name / "out.safetensors")
    torch.testing.assert_close(out["logits"], model(IDS).logits, rtol=0, atol=1e-6)
    assert torch.equal(out["tokens"], model.generate(IDS, max_new_tokens=5, do_sample=False))


def test_the_compared_numbers_tell_the_cases_apart(saved):
    logits = {name: load_file(saved / name / "out.safetensors")["logits"] for name in CASES}
    for first, second in (("gpt2", "gpt2_softmax"), ("gpt2", "gpt2_single"), ("llama", "llama_single")):
        assert (logits[first] - logits[second]).abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_what_was_saved_without_the_package_still_carries_its_code(name, saved):
    again = saved / name / "again"
    check_code_files(again)
    assert json.loads((again / "config.json").read_text())["auto_map"]["AutoModelForCausalLM"].startswith("modeling_")
    reloaded = AutoModelForCausalLM.from_pretrained(again)  # here the package is there: no flag, the package's class
    assert type(reloaded) is CASES[name][1]
    torch.testing.assert_close(reloaded(IDS).logits, make(name)(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_code_of_a_committed_checkpoint_is_the_packages(folder):
    config = json.loads((folder / "config.json").read_text())
    named = {*config.get("auto_map", {}).values(), *(item["impl"] for item in config["custom_pipelines"].values())}
    stems = {reference.partition(".")[0] for reference in named}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    methods = {method for method in folders if all(stem.endswith(f"_{method}") for stem in stems)}
    assert len(methods) == 1
    code = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    of_package = PACKAGE / methods.pop()
    assert code == {path.name: path.read_bytes() for path in of_package.glob("*.py") if path.name in code}
    assert {f"{stem}.py" for stem in stems} <= code.keys()
