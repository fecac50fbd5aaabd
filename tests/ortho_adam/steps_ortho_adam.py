# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Parameters, gradients and steps, and a reference in float64."""

import io

import torch
from torch import nn


SHAPES = {"a": (16, 32), "b": (16, 32), "bias": (7,), "conv": (3, 4, 2), "scale": ()}
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
ROTATIONS = ["auto", "kronecker", "full", "hadamard"]


def parameters(shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def gradients(step, shapes=SHAPES):
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def run(opt, params, steps):
    for step in steps:
        for name, grad in gradients(step).items():
            params[name].grad = grad.to(params[name].dtype)
        opt.step()


def through_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def reference(param, grads, q, lr, betas, eps, weight_decay):
    """Algorithm 1 in float64 with a dense Q."""
    theta, q = param.detach().double().flatten(), q.double()
    m = v = torch.zeros_like(theta)
    for t, grad in enumerate(grads, start=1):
        g = q @ grad.double().flatten()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        s = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        theta = (1 - lr * weight_decay) * theta - lr * (q.T @ s)
    return theta.view(param.shape)
