# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny models, and the official code's names of their parameters."""

import torch
from transformers import (
    ConvNextConfig,
    ResNetConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from hf_methods.cpe import (
    CPEConfig,
    CPEForImageClassification,
)


COUNTS = [40, 25, 12, 6, 3]
SMALL = dict(num_labels=5, class_counts=COUNTS, depth=10, widen_factor=1)
BACKBONES = {
    "resnet": ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, layer_type="basic"),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2),
    "vit": ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    ),
    "timm": TimmWrapperConfig(
        architecture="resnet10t", model_args={"channels": [8, 8, 8, 16], "layers": [1, 1, 1, 1], "stem_width": 8}
    ),
}


def make(seed=0, **fields):
    """A model none of whose parameters and statistics has a special value."""
    torch.manual_seed(seed)
    model = CPEForImageClassification(CPEConfig(**{**SMALL, **fields}))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor += torch.rand_like(tensor)
            elif tensor.is_floating_point():
                tensor += 0.05 * torch.randn_like(tensor)
    return model


def images(n=6, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def official_names(model, official=None):
    """The state of a model under the names of the official code, dead batch norms included."""
    official = {} if official is None else official
    state = model.state_dict()
    for key, value in state.items():
        if key.startswith("backbone.encoder.stages."):
            stage, block, *rest = key.removeprefix("backbone.encoder.stages.").split(".")
            rest = [{"shortcut": "convShortcut"}.get(part, part) for part in rest]
            official[f"backbone.block{int(stage) + 1}.layer.{block}.{'.'.join(rest)}"] = value
        elif key.startswith("backbone.encoder."):
            name = key.removeprefix("backbone.encoder.").replace("stem", "conv1").replace("norm", "bn1")
            official[f"backbone.{name}"] = value
    weights, biases = (state[f"classifier.{name}"].chunk(3) for name in ("weight", "bias"))
    for e, head in enumerate(("backbone.classifier", "classifier2", "classifier3")):
        official |= {f"{head}.weight": weights[e], f"{head}.bias": biases[e]}
    for b, branch in enumerate("HMT"):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            official[f"backbone.BN{branch}.{name}"] = state[f"classwise_norm.{name}"]
        for name in ("weight", "bias"):
            official[f"backbone.BN{branch}.{name}"] = state[f"classwise_norm.{name}"][b]
    return official
