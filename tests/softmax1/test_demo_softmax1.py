# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""`hf-methods demo` on the committed checkpoints, and the checkpoints themselves."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.softmax1 import perplexity
from hf_methods.softmax1.data_softmax1 import token_blocks
from hf_methods.softmax1.demo_softmax1 import run_demo


ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("softmax*/config.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_checkpoint_is_small_and_as_good_as_its_results_say(folder):
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= 3e6
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.attention_softmax == folder.name.split("-")[0]
    results = json.loads((folder / "results.json").read_text())
    # A text of its own: the figures' corpus is another one with another version of Python.
    texts = [Path(module.__file__).read_text() for module in (json, re)]
    assert (
        perplexity(model, token_blocks(texts, tokenizer, 64, add_bos=True), batch_size=64)
        < 2 * results["runs"][results["arm"]][0]["perplexity"]
    )


def test_there_are_checkpoints_of_the_first_and_the_last_arm():
    assert [folder.name for folder in FOLDERS] == ["softmax-adamw", "softmax1-orthoadam"]


@pytest.mark.slow
def test_the_demo_shows_every_checkpoint_and_a_model_trained_now(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = run_demo(tmp_path, steps=2)
    report = (tmp_path / "report.html").read_text()
    for name in [*(folder.name for folder in FOLDERS), "trained now, 2 steps"]:
        assert name in table and f"<h2>{name}</h2>" in report
    assert report.count("<img") == 3 * 5 and 'src="http' not in report


def test_without_checkpoints_the_demo_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        run_demo(tmp_path, steps=2)
