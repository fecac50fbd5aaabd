# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Every YAML of training/ parses into the dataclasses of its script, with numbers as numbers."""

import sys
from pathlib import Path

import pytest

from hf_methods.args import parse_args_and_config
from hf_methods.softmax1.training_softmax1 import DataArguments, ModelArguments, Softmax1TrainingArguments


ROOT = Path(__file__).parent.parent / "training"


@pytest.mark.parametrize("path", sorted((ROOT / "softmax1").glob("*.yaml")), ids=lambda p: p.stem)
def test_yaml_parses(path, tmp_path, monkeypatch):
    if path.stem.startswith("grid"):
        monkeypatch.syspath_prepend(str(ROOT / "softmax1"))
        sys.modules.pop("grid", None)
        types = (__import__("grid").GridArguments,)
        (args,) = parse_args_and_config(types, ["--config", str(path), "--output_dir", "o", "--results", "r"])
        assert isinstance(args.orthoadam_learning_rate, float) and (ROOT.parent / args.train_config).exists()
        return
    types = (ModelArguments, DataArguments, Softmax1TrainingArguments)
    model, data, training = parse_args_and_config(types, ["--config", str(path), "--output_dir", str(tmp_path)])
    assert isinstance(training.learning_rate, float) and data.seq_len > 1 and model.hidden_size % model.num_heads == 0
