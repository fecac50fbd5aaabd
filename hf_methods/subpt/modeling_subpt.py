# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""An image classifier whose class weights are the text features of learned prompts, computed once.

Needs neither PEFT nor a text tower: one pass of the image tower and one (batch, dim) x (dim, classes) product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    MetaClip2VisionConfig,
    MetaClip2VisionModelWithProjection,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel

from .configuration_subpt import PromptedImageClassifierConfig


VISION_TOWERS = {
    "clip_vision_model": (CLIPVisionConfig, CLIPVisionModelWithProjection),
    "metaclip_2_vision_model": (MetaClip2VisionConfig, MetaClip2VisionModelWithProjection),
    "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel),
    "siglip2_vision_model": (Siglip2VisionConfig, Siglip2VisionModel),
}


class PromptedImageClassifier(PreTrainedModel):
    """Logits = scale * cosine(image, class prompt) + bias, with the class prompts' features as a buffer.

        >>> classifier = prompted_model.build_classifier(["cat", "dog"])
        >>> classifier.save_pretrained("cats-and-dogs")
        >>> pipeline("image-classification", model="cats-and-dogs", image_processor=processor)("image.png")

    Args:
        config: `PromptedImageClassifierConfig`.
    """

    config: PromptedImageClassifierConfig
    config_class = PromptedImageClassifierConfig
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: PromptedImageClassifierConfig):
        super().__init__(config)
        settings = dict(config.vision_config or {})
        config_class, model_class = VISION_TOWERS[settings.pop("model_type", "clip_vision_model")]
        self.vision_tower = model_class(config_class(**settings))
        # exp(logit_scale) * normalised text features (classes, dim), and the bias of each class.
        num_labels = len(config.id2label or {})
        self.class_weight: Tensor
        self.class_bias: Tensor
        self.register_buffer("class_weight", torch.zeros(num_labels, config.embed_dim))
        self.register_buffer("class_bias", torch.zeros(num_labels))
        self.post_init()

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (batch, 3, height, width), or patches (SigLIP 2).
            labels: (batch,), int64; gives `loss`, the cross entropy.
            kwargs: of the image tower, such as SigLIP 2's `pixel_attention_mask` and `spatial_shapes`.

        Returns:
            `logits` (batch, classes) in float32.

        Raises:
            ValueError: no `pixel_values`.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing.")
        output = self.vision_tower(pixel_values=pixel_values, **kwargs)
        features = output.image_embeds if "image_embeds" in output else output.pooler_output
        image_embeds = F.normalize(features.float(), dim=-1)
        logits = image_embeds @ self.class_weight.float().T + self.class_bias.float()
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
