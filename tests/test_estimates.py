# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Estimates of memory and operations against what small models hold, and against counting by hand."""

import functools
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import ViTConfig, ViTForImageClassification

from hf_methods import (
    CPEConfig,
    CPEForImageClassification,
    CrossTeachingConfig,
    CrossTeachingModel,
    OrthoAdam,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
)
from hf_methods.cpe.ema_cpe import ParameterEMA
from hf_methods.estimates import adamw_state_bytes, count_flops, estimate_memory, sgd_state_bytes
from hf_methods.ortho_adam import ortho_adam_state_bytes
from hf_methods.subpt.recipe_subpt import TINY, ModelArguments, build_model


TRAINING = Path(__file__).parents[1] / "training"
SMALL_DENSE = {"max_dense_dim": 40}  # dense and Hadamard rotations in one small model


class Perceptron(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first, self.second = nn.Linear(12, 32, dtype=dtype), nn.Linear(32, 8, dtype=dtype)

    def forward(self, x):
        return SimpleNamespace(loss=self.second(self.first(x).tanh()).square().sum())


def gpt2():
    config = Softmax1GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    tokens = torch.randint(0, 96, (3, 16))
    return Softmax1GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def cpe():
    config = CPEConfig(num_labels=4, class_counts=[9, 6, 4, 2], depth=10, widen_factor=1, image_size=12)
    images, labels = torch.randn(4, 3, 12, 12), torch.arange(4)
    views = {"pixel_values_weak": images, "pixel_values_strong": images.clone(), "threshold": 0.3}
    return CPEForImageClassification(config), {"pixel_values": images, "labels": labels, **views}


def prompts():
    model, _ = build_model(ModelArguments(TINY, n_ctx=4))
    model.set_classes(["cat", "dog"], model.tokenizer)
    return model, {"image_embeds": torch.randn(4, 32), "labels": torch.tensor([0, 1, 0, 1])}


def detectors():
    detector = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 5}
    model = CrossTeachingModel(CrossTeachingConfig(detector=detector))
    objects = {"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.5)}
    return model, {"labeled": [{"pixel_values": torch.randn(2, 3, 64, 64), "labels": [objects] * 2}] * 2}


def vit():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=12, patch_size=4,
        num_labels=4,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": torch.randn(4, 3, 12, 12), "labels": torch.arange(4)}


OPTIMIZERS = {
    "adamw": (adamw_state_bytes, torch.optim.AdamW),
    "sgd": (sgd_state_bytes, functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "orthoadam": (
        functools.partial(ortho_adam_state_bytes, **SMALL_DENSE),
        functools.partial(OrthoAdam, **SMALL_DENSE),
    ),
}


def storage_bytes(tensors):
    """Bytes of the storages behind tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def state_tensors(optimizer):
    """What an optimizer holds after a step, without step counters."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    rotations = [r for stack in getattr(optimizer, "_stacks", {}).values() for r in stack if r is not None]
    tensors += [value for rotation in rotations for value in vars(rotation).values() if torch.is_tensor(value)]
    return [tensor for tensor in tensors if tensor.ndim]


@pytest.mark.parametrize(
    ("make", "optimizer", "num_averages"),
    [(gpt2, "orthoadam", 0), (gpt2, "adamw", 0), (cpe, "sgd", 1), (prompts, "sgd", 0), (detectors, "sgd", 0), (vit, "adamw", 0)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_the_estimate_is_what_a_training_step_holds(make, optimizer, num_averages):
    torch.manual_seed(0)
    model, batch = make()
    model.train()
    state_bytes, make_optimizer = OPTIMIZERS[optimizer]
    estimate = estimate_memory(model, batch, state_bytes, num_averages)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = make_optimizer(trained)
    averages = ParameterEMA(model, 0.9).averages if num_averages else []
    model(**batch).loss.backward()
    opt.step()
    for p in trained:  # of a detector's last layers nothing may have come
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    opt.step()
    assert estimate.parameters == storage_bytes(model.parameters())
    assert estimate.buffers == storage_bytes(model.buffers())
    assert estimate.gradients == storage_bytes(p.grad for p in trained)
    assert estimate.optimizer_state == storage_bytes(state_tensors(opt)) > 0
    assert estimate.averages == storage_bytes(averages)
    assert estimate.activations > storage_bytes(v for v in batch.values() if torch.is_tensor(v))
    if optimizer == "orthoadam":
        assert {type(r).__name__ for stack in opt._stacks.values() for r in stack if r} == {
            "DenseRotation", "HadamardRotation",
        }  # fmt: skip


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activations_are_those_counted_by_hand(dtype, size):
    estimate = estimate_memory(Perceptron(dtype), {"x": torch.randn(6, 12, dtype=dtype)})
    # The input, tanh's output (which the second layer keeps too, once) and the output, which is squared.
    assert estimate.activations == 6 * (12 + 32 + 8) * size
    assert estimate.parameters == estimate.gradients == (12 * 32 + 32 + 32 * 8 + 8) * size
    assert estimate.total == estimate.activations + 4 * estimate.parameters


def test_operations_are_those_counted_by_hand():
    forward = 2 * 6 * (12 * 32 + 32 * 8)
    # Backward: both weights' gradients, and that of the second layer's input; the first one's is not needed.
    assert count_flops(Perceptron(), {"x": torch.randn(6, 12)}) == forward + forward + 2 * 6 * 32 * 8


def test_models_without_numbers_give_the_same_figures():
    torch.manual_seed(0)
    model, batch = cpe()
    real = estimate_memory(model, batch), count_flops(model, batch)
    batch = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
    model.to("meta")
    assert (estimate_memory(model, batch), count_flops(model, batch)) == real

    model, batch = gpt2()  # whose attention asks for the device
    real, flops = estimate_memory(model, batch), count_flops(model, batch)
    with FakeTensorMode():
        model, batch = gpt2()
        fake = estimate_memory(model, batch)
        assert count_flops(model, batch) == flops
    assert fake.activations == pytest.approx(real.activations, rel=0.03)  # kernels keep a little more than their fakes
    assert replace(fake, activations=real.activations) == real


def test_teachers_are_parameters_without_gradients():
    model, batch = detectors()
    estimate = estimate_memory(model, batch, sgd_state_bytes)
    assert estimate.gradients == estimate.optimizer_state == estimate.parameters / 2


def test_autocast_halves_what_matrix_products_keep():
    model, batch = gpt2()
    whole = estimate_memory(model, batch).activations
    with torch.autocast("cpu", torch.bfloat16):
        assert estimate_memory(model, batch).activations < whole


def test_the_table_of_the_presets_is_what_the_functions_say():
    spec = importlib.util.spec_from_file_location("estimate_presets", TRAINING / "estimate_presets.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = json.loads((TRAINING / "estimates.json").read_text())["estimates"]
    assert written.keys() == script.PRESETS.keys()
    assert script.estimate("softmax1/c4_gpt2_60m") == written["softmax1/c4_gpt2_60m"]
