# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Configuration of an image classifier whose class weights are the text features of learned prompts."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


VISION_TYPES = ("clip_vision_model", "metaclip_2_vision_model", "siglip_vision_model", "siglip2_vision_model")


@strict
class PromptedImageClassifierConfig(PreTrainedConfig):
    """Configuration of `PromptedImageClassifier`.

    Args:
        vision_config (`dict`, *optional*): the configuration of the image tower, with its `model_type`: one of
            `VISION_TYPES`. The default is CLIP's default tower.
        embed_dim (`int`, *optional*, defaults to 512): size of the common space of images and texts.

    The names of the classes are `id2label`, as in every image classifier.

    Raises:
        ValueError: an unknown image tower.
    """

    model_type = "subpt_image_classifier"

    vision_config: dict[str, Any] | None = None
    embed_dim: int = 512

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {"model_type": "clip_vision_model"}
        super().__post_init__(**kwargs)

    def validate_vision_config(self):
        """Refuse towers that the model can't build."""
        kind = (self.vision_config or {}).get("model_type", "clip_vision_model")
        if kind not in VISION_TYPES:
            raise ValueError(f"`vision_config['model_type']` must be one of {', '.join(VISION_TYPES)}, got {kind!r}.")
