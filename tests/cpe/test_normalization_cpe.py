# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Classwise batch normalisation against batch norms of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_methods.cpe import (
    ClasswiseBatchNorm,
)


# --- classwise batch normalisation -------------------------------------------------------------------------------------


def three_batch_norms(norm):
    """A `BatchNorm2d` for each branch, with its affine parameters and the same statistics."""
    layers = []
    for weight, bias in zip(norm.weight.detach(), norm.bias.detach()):
        layer = nn.BatchNorm2d(len(weight), eps=norm.eps, momentum=norm.momentum).to(weight.dtype)
        layer.load_state_dict(
            {"weight": weight, "bias": bias, **{name: buffer for name, buffer in norm.named_buffers()}}
        )
        layers.append(layer)
    return layers


def random_norm(dtype, channels=4, groups=3):
    generator = torch.Generator().manual_seed(0)
    norm = ClasswiseBatchNorm(channels, groups).to(dtype)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
def test_classwise_batch_norm_equals_a_batch_norm_for_each_branch(training, dtype, tolerance):
    norm = random_norm(dtype).train(training)
    layers = [layer.train(training) for layer in three_batch_norms(norm)]
    features = torch.randn(5, 4, 3, 2, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 3 + 1
    weights = torch.randn(5, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(2))
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    branches = norm.branches(norm(ours))
    expected = torch.stack([layer(theirs).mean((2, 3)) for layer in layers], 1)
    torch.testing.assert_close(branches, expected, rtol=0, atol=tolerance)
    (branches * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=tolerance)
    torch.testing.assert_close(norm.weight.grad, torch.stack([layer.weight.grad for layer in layers]))
    torch.testing.assert_close(norm.bias.grad, torch.stack([layer.bias.grad for layer in layers]))
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(buffer, getattr(layers[1], name), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm.mean_branch(norm(features)), norm.branches(norm(features)).mean(1))


def test_pooled_features_are_normalised_as_by_batch_norm_1d():
    norm = random_norm(torch.float64)
    features = torch.randn(7, 4, dtype=torch.float64)
    z = F.batch_norm(features, None, None, training=True, eps=norm.eps)
    torch.testing.assert_close(norm(features), z, rtol=0, atol=1e-12)


def test_a_mean_far_above_the_deviation_does_not_cancel():
    norm, features = random_norm(torch.float32), torch.randn(64, 4, 8, 8) + 3000
    expected = random_norm(torch.float64)(features.double())
    torch.testing.assert_close(norm(features).double(), expected, rtol=0, atol=2e-3)
    naive = features.square().mean((0, 2, 3)) - features.mean((0, 2, 3)).square()
    assert (naive - 1).abs().max() > 0.3  # E[x^2] - E[x]^2 does


def test_one_value_per_channel_has_no_variance():
    norm = ClasswiseBatchNorm(4, 3)
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm(torch.zeros(1, 4))
    norm(torch.zeros(1, 4, 2, 2))
    norm.eval()(torch.zeros(1, 4))
