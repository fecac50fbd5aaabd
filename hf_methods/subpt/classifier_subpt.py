# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""From a base model and class features to a `PromptedImageClassifier`."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_methods.subpt.configuration_subpt import VISION_TYPES, PromptedImageClassifierConfig
from hf_methods.subpt.modeling_subpt import PromptedImageClassifier
from hf_methods.subpt.towers_subpt import logit_scale_and_bias


def check_has_classifier(base: nn.Module) -> None:
    """Refuse a base model whose image tower the classifier can't hold.

    Raises:
        ValueError: not CLIP, MetaCLIP 2, SigLIP or SigLIP 2 of transformers.
    """
    vision_config = getattr(getattr(base, "config", None), "vision_config", None)
    if getattr(vision_config, "model_type", None) not in VISION_TYPES:
        raise ValueError(
            f"a classifier can be built from CLIP, MetaCLIP 2, SigLIP and SigLIP 2 of transformers, got "
            f"{type(base).__name__}; for others use `encode_classes` and `encode_images`."
        )


def classifier_from(base: Any, names: list[str], features: Tensor) -> PromptedImageClassifier:
    """A classifier with a copy of the image tower of `base`, in its dtype and on its device.

    Args:
        base: HF CLIP, MetaCLIP 2, SigLIP or SigLIP 2, see `check_has_classifier`.
        names: of the classes.
        features: (classes, dim), normalised; kept in float32 on a half-precision model too.
    """
    is_projected = hasattr(base, "visual_projection")
    settings = base.config.vision_config.to_dict()
    if is_projected:
        settings["projection_dim"] = base.projection_dim
    config = PromptedImageClassifierConfig(
        vision_config=settings,
        embed_dim=features.shape[1],
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    classifier: Any = PromptedImageClassifier(config)
    classifier.to(features.device, base.dtype)
    tower = base.vision_model.state_dict()
    if is_projected:
        tower = {f"vision_model.{name}": tensor for name, tensor in tower.items()}
        tower["visual_projection.weight"] = base.visual_projection.weight
    classifier.vision_tower.load_state_dict(tower)
    scale, bias = logit_scale_and_bias(base)
    classifier.class_weight = (scale * features).detach()
    classifier.class_bias = torch.zeros_like(classifier.class_weight[:, 0]) + (0.0 if bias is None else bias.detach())
    return classifier.eval()
