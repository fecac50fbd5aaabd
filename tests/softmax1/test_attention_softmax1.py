# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Softmax-1 and its backends against closed forms and float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention

from hf_methods.softmax1 import softmax1, softmax1_attention
from hf_methods.softmax1.attention_softmax1 import flash_is_exact


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 30.0, 300.0]))
@settings(max_examples=50, deadline=None)
def test_identities(seed, n, scale):
    x = randn(3, n, seed=seed) * scale
    y, lse = softmax1(x), x.logsumexp(-1, keepdim=True)
    close = dict(rtol=0, atol=1e-12)
    torch.testing.assert_close(y, F.pad(x, (1, 0)).softmax(-1)[:, 1:], **close)
    torch.testing.assert_close(y, x.softmax(-1) * lse.sigmoid(), **close)
    torch.testing.assert_close(y.sum(-1, keepdim=True), lse.sigmoid(), **close)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(softmax1(x[:, order]), y[:, order], **close)
    torch.testing.assert_close(softmax1(F.pad(x, (0, 2), value=-torch.inf))[:, :n], y, **close)


def test_shift_moves_between_softmax_and_nothing():
    x = randn(5)
    torch.testing.assert_close(softmax1(x + 50), x.softmax(-1), rtol=0, atol=1e-12)
    assert softmax1(x - 800).sum() == 0
    torch.testing.assert_close(softmax1(torch.zeros(4, dtype=torch.float64)), torch.full((4,), 0.2).double())


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(torch.float32).min])
def test_masked_rows_are_exactly_zero(fill):
    assert (softmax1(torch.full((2, 3), fill)) == 0).all()


@pytest.mark.parametrize("value", [1e4, -1e4, 88.8, -104.0])
def test_large_scores_neither_overflow_nor_divide_by_zero(value):
    expected = torch.tensor(value).double().sigmoid().float()
    torch.testing.assert_close(softmax1(torch.tensor([value])), expected[None])


def test_gradcheck_to_second_order():
    x = randn(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(softmax1, x) and torch.autograd.gradgradcheck(softmax1, x)
    y = torch.func.jacrev(softmax1)(x[0].detach())
    p = softmax1(x[0].detach())
    torch.testing.assert_close(y, torch.diag(p) - torch.outer(p, p))


def test_half_precision_is_computed_in_float32():
    x = randn(4, 100).bfloat16()
    expected = softmax1(x.float())
    torch.testing.assert_close(softmax1(x), expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(softmax1(x, dtype=torch.float32), expected, rtol=0, atol=0)


def test_empty_dim_gives_an_empty_tensor():
    assert softmax1(torch.zeros(3, 0)).shape == (3, 0)


def test_integers_raise():
    with pytest.raises(TypeError, match="int64"):
        softmax1(torch.arange(3))


def reference(query, key, value, mask):
    """float64, with the null key written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return F.pad(scores, (1, 0)).softmax(-1)[..., 1:] @ value


def masks(kind, batch=2, length=24):
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if kind == "none":
        return None, False, None
    if kind == "causal":
        return None, True, causal
    if kind == "padding":  # rows of padding see nothing at all
        valid = torch.arange(length) >= torch.tensor([[0], [5]])
        mask = causal & valid[:, None, None, :] & valid[:, None, :, None]
        return mask, False, mask
    if kind == "window":
        mask = causal & ~causal.tril(-8)
        return mask, False, mask
    mask = randn(batch, 1, length, length, seed=9)
    return mask, False, mask


@pytest.mark.parametrize("backend", ["auto", "flash", "zero_key", "eager"])
@pytest.mark.parametrize("kind", ["none", "causal", "padding", "window", "additive"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_backends_match_float64_forward_and_backward(backend, kind, kv_heads):
    inputs = [randn(2, h, 24, 16, seed=i) for i, h in enumerate((4, kv_heads, kv_heads))]
    grad = randn(2, 4, 24, 16, seed=7)
    mask, is_causal, full_mask = masks(kind)
    exact = [x.clone().requires_grad_() for x in inputs]
    expected = reference(*exact, full_mask)
    expected_grads = torch.autograd.grad(expected, exact, grad)
    single = [x.float().requires_grad_() for x in inputs]
    mask = mask.float() if mask is not None and mask.dtype == torch.float64 else mask
    output = softmax1_attention(*single, mask, is_causal, backend=backend)
    grads = torch.autograd.grad(output, single, grad.float())
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)
    for got, want in zip(grads, expected_grads):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


def test_one_sink_logit_of_zero_is_gpt_oss_attention():
    query, key, value = randn(2, 4, 10, 8), randn(2, 2, 10, 8, seed=1), randn(2, 2, 10, 8, seed=2)
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups, module.training = torch.zeros(4).double(), 2, False
    mask = torch.zeros(10, 10).double().masked_fill(~torch.ones(10, 10).bool().tril(), -torch.inf)[None, None]
    expected, _ = gpt_oss_attention(module, query, key, value, mask, scaling=0.3)
    output = softmax1_attention(query, key, value, mask, scale=0.3, backend="eager")
    torch.testing.assert_close(output.transpose(1, 2), expected, rtol=0, atol=1e-6)


def test_flash_passes_its_probe_here():
    assert flash_is_exact("cpu")


def test_bfloat16_scores_keep_their_accuracy():
    inputs = [randn(1, 2, 32, 16, seed=i) * (6 if i < 2 else 1) for i in range(3)]
    expected = reference(*[x.bfloat16().double() for x in inputs], None)
    for backend in ("eager", "flash", "zero_key"):
        output = softmax1_attention(*[x.bfloat16() for x in inputs], backend=backend)
        assert (output.double() - expected).abs().max() < 3e-2


def test_dropout_keeps_the_mean():
    inputs = [randn(1, 1, 4, 8, seed=i, dtype=torch.float32) for i in range(3)]
    torch.manual_seed(0)
    many = [x.expand(20000, 1, -1, -1) for x in inputs]
    for backend in ("auto", "eager"):
        mean = softmax1_attention(*many, dropout_p=0.2, backend=backend).mean(0)
        torch.testing.assert_close(mean, softmax1_attention(*inputs)[0], rtol=0, atol=0.02)


def test_weights_reproduce_the_output():
    inputs = [randn(1, 2, 6, 8, seed=i) for i in range(3)]
    output, weights = softmax1_attention(*inputs, is_causal=True, return_weights=True)
    torch.testing.assert_close(weights @ inputs[2], output)
    assert (weights.triu(1) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(backend="fast"), "auto, flash, zero_key, eager"),
        (dict(attn_mask=torch.ones(3, 5).bool()), r"\(3, 5\)"),
        (dict(attn_mask=torch.ones(4, 4).bool(), is_causal=True), "not both"),
        (dict(key=torch.zeros(1, 3, 4, 8), value=torch.zeros(1, 3, 4, 8)), "heads"),
        (dict(backend="flash", dropout_p=0.1), "dropout"),
    ],
)
def test_bad_inputs_raise(change, message):
    inputs = dict(query=torch.zeros(1, 4, 4, 8), key=torch.zeros(1, 4, 4, 8), value=torch.zeros(1, 4, 4, 8))
    with pytest.raises(ValueError, match=message):
        softmax1_attention(**{**inputs, **change})
