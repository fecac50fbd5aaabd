# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A saved checkpoint loads where the package is not installed, with the same numbers."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from hf_methods.softmax1 import Softmax1GPT2Config, Softmax1GPT2LMHeadModel


CODE = """
import sys
sys.modules["hf_methods"] = None  # importing the package is an error from here on
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.arange(12)[None]
save_file({"logits": model(ids).logits, "new": model.generate(ids, max_new_tokens=5, do_sample=False)}, out)
try:
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
except ValueError:
    print("refused without the flag")
"""


def test_checkpoint_loads_as_remote_code(tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=None)
    model = Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**sizes, pad_token_id=0, norm_type="rmsnorm_single")).eval()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_softmax1.Softmax1GPT2Config",
        "AutoModelForCausalLM": "modeling_softmax1.Softmax1GPT2LMHeadModel",
    }
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", CODE, str(folder), str(tmp_path / "out.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert "refused without the flag" in result.stdout
    out, ids = load_file(tmp_path / "out.safetensors"), torch.arange(12)[None]
    torch.testing.assert_close(out["logits"], model(ids).logits, rtol=0, atol=0)
    assert torch.equal(out["new"], model.generate(ids, max_new_tokens=5, do_sample=False))
