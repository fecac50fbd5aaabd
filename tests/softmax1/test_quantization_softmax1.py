# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Rounding against its definition, and the quantizer against the fake-quantised model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimum.quanto import freeze, qint8
from optimum.quanto import quantize as quanto_quantize
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis
from torchao.quantization.quant_primitives import MappingType
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from hf_methods.softmax1 import (
    QUANT_SCHEMES,
    RoundToNearestConfig,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    quantization_report,
    quantize_tensor,
)
from hf_methods.softmax1.quantization_softmax1 import RoundToNearestLinear, block_linears, pack, unpack


TOKENS = dict(bos_token_id=0, eos_token_id=None, pad_token_id=0)
IDS = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def gpt2(n_embd=32):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, n_positions=32, n_embd=n_embd, n_layer=2, n_head=4, initializer_range=0.2)
    return Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**sizes, **TOKENS)).eval()


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.2, **sizes, **TOKENS)).eval()


def by_definition(values, bits, scheme):
    values = values.double()
    if scheme == "absmax":
        top = 2 ** (bits - 1) - 1
        scale = values.abs().max() / top
        return (values / scale).round().clamp(-top, top) * scale if scale > 0 else values
    low, high = min(values.min().item(), 0), max(values.max().item(), 0)
    scale = (high - low) / (2**bits - 1)
    if scale == 0:
        return values
    zero = torch.tensor(-low / scale).round()
    return (((values / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(["absmax", "zeropoint"]),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    axis=st.integers(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_rounding_is_its_definition_and_within_its_bound(seed, bits, scheme, granularity, axis):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    x_hat, q, scale, zero = quantize_tensor(x, bits, scheme, granularity, axis, group_size=3)
    rows, hats = (x, x_hat) if axis == 0 else (x.T, x_hat.T)
    pieces = {"tensor": [(rows, hats)], "channel": list(zip(rows, hats))}.get(granularity) or [
        pair for row, hat in zip(rows, hats) for pair in zip(row.split(3), hat.split(3))
    ]
    assert len(pieces) == scale.numel() == zero.numel()
    for (piece, hat), step in zip(pieces, scale.flatten()):
        # float32 may round a value that lies between two levels the other way
        assert (hat.double() - by_definition(piece, bits, scheme)).abs().max() <= step * 1.001
        assert ((hat.double() - by_definition(piece, bits, scheme)).abs() > step / 2).sum() <= 1
        bound = 0.5 if scheme == "absmax" else 1.0
        assert (hat - piece).abs().max() <= bound * step * (1 + 1e-4)
    assert q.max() - q.min() < 2**bits


def test_zeros_stay_zero_and_values_on_the_grid_stay():
    assert (quantize_tensor(torch.zeros(3, 3), 4)[0] == 0).all()
    grid = torch.tensor([[-7.0, 3.0, 7.0], [14.0, -2.0, 0.0]])
    torch.testing.assert_close(quantize_tensor(grid, 4, "absmax", "channel")[0], grid)


@pytest.mark.parametrize("bits", [2, 4])
def test_unpacking_inverts_packing(bits):
    q = torch.randint(0, 2**bits, (3, 7), generator=torch.Generator().manual_seed(0))
    packed = pack(q, 8 // bits)
    assert packed.shape == (3, -(-7 * bits // 8)) and torch.equal(unpack(packed, 8 // bits, 7).long(), q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bits=1), "bits"),
        (dict(bits=9), "bits"),
        (dict(bits=4, group_size=0), "group_size"),
        (dict(bits=4, scheme="float"), "absmax, zeropoint"),
        (dict(bits=4, granularity="row"), "tensor, channel, group"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        quantize_tensor(torch.zeros(2, 2), **options)
    with pytest.raises(ValueError, match=message):
        RoundToNearestConfig(**options)


def test_values_that_are_not_finite_raise():
    with pytest.raises(ValueError, match="1 are not"):
        quantize_tensor(torch.tensor([1.0, torch.nan]), 4)


def test_report_restores_the_weights_and_more_bits_hurt_less():
    model = gpt2().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = quantization_report(model, IDS, IDS)
    assert [row["scheme"] for row in rows] == list(QUANT_SCHEMES) and model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    delta = {row["scheme"]: abs(row["delta"]) for row in rows}
    assert 0 < delta["w8a8-moderate"] < delta["w4-zeropoint-tensor"]


def test_only_linear_layers_of_the_blocks_are_quantised():
    names = [name for name, _ in block_linears(gpt2())]
    assert len(names) == 8 and all(name.startswith("transformer.h.") for name in names)


def test_static_activation_scales_need_calibration_text():
    with pytest.raises(ValueError, match="calib_blocks"):
        quantization_report(gpt2(), IDS, schemes=["w8a8-coarse"])
    assert quantization_report(gpt2(), IDS, schemes=["w8a8-coarse"], dynamic=True)[0]["delta"] != 0


def test_an_unknown_scheme_raises_before_the_work():
    with pytest.raises(ValueError, match="w4-zeropoint"):
        quantization_report(gpt2(), IDS, schemes=["w3"])


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("scheme", ["absmax", "zeropoint"])
def test_quantised_model_equals_fake_quantisation_and_reloads(make, bits, granularity, scheme, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "full")
    config = RoundToNearestConfig(bits, scheme, granularity, group_size=20)
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config)
    with torch.no_grad():
        for _, module in block_linears(model):
            axis = 1 if isinstance(module, Conv1D) else 0
            module.weight.copy_(quantize_tensor(module.weight, bits, scheme, granularity, axis, 20)[0])
    logits = quantized(IDS).logits
    torch.testing.assert_close(logits, model(IDS).logits, rtol=0, atol=1e-5)
    quantized.save_pretrained(tmp_path / "packed")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(reloaded(IDS).logits, logits, rtol=0, atol=0)


def test_four_bit_files_are_small(tmp_path):
    model = gpt2(n_embd=256)
    model.save_pretrained(tmp_path / "full")
    config = RoundToNearestConfig(4, granularity="group", group_size=128)
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config)
    quantized.save_pretrained(tmp_path / "packed")
    weights = sum(module.weight.numel() for _, module in block_linears(model))
    rest = 4 * (sum(p.numel() for p in model.parameters()) - weights)
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert (size - rest) / weights <= 0.62


def test_named_layers_stay_unquantised(tmp_path):
    gpt2().save_pretrained(tmp_path)
    config = RoundToNearestConfig(modules_to_not_convert=["mlp.c_proj"])
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert sum(1 for _ in block_linears(quantized)) == 2
    quantized.save_pretrained(tmp_path / "packed")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(reloaded(IDS).logits, quantized(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_reload_bit_identically(dtype, tmp_path):
    gpt2().to(dtype).save_pretrained(tmp_path / "full")
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=RoundToNearestConfig(), dtype=dtype
    )
    quantized.save_pretrained(tmp_path / "packed")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=dtype)
    torch.testing.assert_close(reloaded(IDS).logits, quantized(IDS).logits, rtol=0, atol=0)


def linear_and_names():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16))
    for module in model:
        nn.init.normal_(module.weight, std=0.3)
    return model, ["0", "1"]


def round_to_nearest(model, **options):
    return nn.Sequential(*(RoundToNearestLinear.from_linear(m, RoundToNearestConfig(**options)) for m in model))


def test_four_bit_zero_point_equals_torchaos_asymmetric_quantiser():
    model, names = linear_and_names()
    x = torch.randn(5, 64)
    ours = round_to_nearest(model, bits=4)(x)
    config = IntxWeightOnlyConfig(torch.int4, PerAxis(0), mapping_type=MappingType.ASYMMETRIC)
    quantize_(model, config, filter_fn=lambda module, name: name in names)
    torch.testing.assert_close(ours, model(x), rtol=0, atol=1e-5)


def test_eight_bit_absmax_equals_quantos_quantiser():
    model, names = linear_and_names()
    x = torch.randn(5, 64)
    ours, before = round_to_nearest(model, bits=8, scheme="absmax")(x), model(x)
    quanto_quantize(model, weights=qint8, include=names)
    freeze(model)
    torch.testing.assert_close(ours, model(x), rtol=0, atol=1e-5)
    assert (ours - before).abs().max() > 1e-3
