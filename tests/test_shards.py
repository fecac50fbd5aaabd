# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Weights in several files, as `save_pretrained` writes those of large models: they come back the same, and a missing file is told."""

import json

import pytest
import torch

from hf_methods import (
    CPEConfig,
    CPEForImageClassification,
    CrossTeachingConfig,
    CrossTeachingModel,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    Softmax1LlamaConfig,
    Softmax1LlamaForCausalLM,
)


DETECTOR = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 5}
LLAMA = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)


def detectors():
    return CrossTeachingModel(CrossTeachingConfig(detector=dict(DETECTOR)))


MODELS = {
    "gpt2": lambda: Softmax1GPT2LMHeadModel(Softmax1GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99)),
    "llama": lambda: Softmax1LlamaForCausalLM(Softmax1LlamaConfig(**LLAMA)),
    "cpe": lambda: CPEForImageClassification(CPEConfig(num_labels=4, class_counts=[9] * 4, depth=10, widen_factor=1)),
    "cross_teaching": detectors,
    "cross_teaching_inference": lambda: detectors().for_inference(),
}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    model = MODELS[request.param]()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 1 and set(index["weight_map"].values()) == set(shards)
    return model, tmp_path, shards


def test_a_model_comes_back_from_its_shards(saved):
    model, folder, _ = saved
    expected, found = model.state_dict(), type(model).from_pretrained(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_missing_shard_is_an_error_that_names_it(saved):
    model, folder, shards = saved
    (folder / shards[0]).unlink()
    with pytest.raises(OSError, match=shards[0]):
        type(model).from_pretrained(folder)
