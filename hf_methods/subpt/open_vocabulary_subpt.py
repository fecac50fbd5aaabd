# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Learned prompts in an open-vocabulary detector (OwlViT, Owlv2) and a zero-shot segmenter (CLIPSeg).

The paper's other two tasks. In both only the matrix of class features changes: the context is learned on base classes,
and the model is asked about any names. The images pass once, whatever the number of classes. Written against
transformers 5.24.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.owlv2.modeling_owlv2 import Owlv2ObjectDetectionOutput

from hf_methods.subpt.peft_model_subpt import PeftModelForPromptedImageClassification


def detect(model: nn.Module, pixel_values: Tensor, text_embeds: Tensor | None = None) -> Owlv2ObjectDetectionOutput:
    """Boxes and class logits of images, with the features of classes as the detector's queries.

        >>> model = get_peft_model(OwlViTForObjectDetection.from_pretrained(name), SubPTConfig(n_ctx=4, ctx_slots="reserved"))
        >>> model.set_classes(["cat", "remote control"], tokenizer)
        >>> output = detect(model, pixel_values)
        >>> image_processor.post_process_object_detection(output, threshold=0.1, target_sizes=[(height, width)])

    Equal to the detector's own forward with each class as a text query; the queries are encoded once instead of once for
    each image. A gradient reaches the context through `text_embeds`.

    Args:
        model: an OwlViT or Owlv2 with a prompt adapter, or a plain one with `text_embeds`.
        pixel_values: (batch, 3, height, width).
        text_embeds: (classes, dim), such as `encode_classes(names)` or an exported matrix; default: the set classes'.

    Returns:
        `logits` (batch, patches, classes), `pred_boxes` (batch, patches, 4) as centre, width and height in 0..1,
        `text_embeds`, and `objectness_logits` (batch, patches) of Owlv2.

    Raises:
        ValueError: another model, features of another size, or no classes.
    """
    detector = _base_model(model)
    if not (hasattr(detector, "image_embedder") and hasattr(detector, "class_predictor")):
        raise ValueError(f"`model` must be OwlViT or Owlv2 for object detection, got {type(detector).__name__}.")
    if text_embeds is None:
        text_embeds = _prompted(model, "text_embeds").encode_classes()
    _check_features(text_embeds, detector.config.text_config.hidden_size, "text_embeds")
    feature_map, _ = detector.image_embedder(pixel_values)
    patches = feature_map.flatten(1, 2)  # (batch, patches, width)
    queries = text_embeds.to(patches).expand(len(patches), -1, -1)
    logits, _ = detector.class_predictor(patches, queries)
    output = Owlv2ObjectDetectionOutput(
        logits=logits, pred_boxes=detector.box_predictor(patches, feature_map), text_embeds=text_embeds
    )
    if hasattr(detector, "objectness_predictor"):
        output.objectness_logits = detector.objectness_predictor(patches)
    return output


def segment(model: nn.Module, pixel_values: Tensor, text_features: Tensor | None = None) -> Tensor:
    """A mask of each class for each image: the class of a pixel is the argmax over them.

        >>> model = get_peft_model(CLIPSegForImageSegmentation.from_pretrained(name), SubPTConfig(n_ctx=8))
        >>> model.set_classes(["cat", "grass"], tokenizer)
        >>> segment(model, pixel_values).argmax(1)  # (batch, height, width)

    Equal to CLIPSeg's own forward for each pair of image and class, with one pass of the image tower for each image. A
    gradient reaches the context, which CLIPSeg's own forward cuts off.

    Args:
        model: a CLIPSeg for segmentation with a prompt adapter, or a plain one with `text_features`.
        pixel_values: (batch, 3, height, width).
        text_features: (classes, dim), not normalised: CLIPSeg's decoder reads their length too. Such as
            `encode_prompts(ids, normalized=False)`; default: the set classes'.

    Returns:
        Logits (batch, classes, height, width), each the log-odds of its class.

    Raises:
        ValueError: another model, features of another size, or no classes.
    """
    segmenter = _base_model(model)
    if not (hasattr(segmenter, "decoder") and hasattr(segmenter, "extract_layers")):
        raise ValueError(f"`model` must be CLIPSeg for image segmentation, got {type(segmenter).__name__}.")
    if text_features is None:
        prompted = _prompted(model, "text_features")
        if prompted.class_input_ids is None:
            raise ValueError("no classes are set; call `set_classes(names, tokenizer)` first.")
        text_features = prompted.encode_prompts(prompted.class_input_ids, normalized=False)
    _check_features(text_features, segmenter.config.projection_dim, "text_features")
    num_images, num_classes = len(pixel_values), len(text_features)
    with torch.no_grad():
        hidden_states = segmenter.clip.get_image_features(
            pixel_values, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states
    # The first hidden state is the embedding, hence + 1. Rows are image by image, class by class.
    layers = [hidden_states[index + 1].repeat_interleave(num_classes, 0) for index in segmenter.extract_layers]
    logits = segmenter.decoder(layers, text_features.to(pixel_values).repeat(num_images, 1)).logits
    return logits.unflatten(0, (num_images, num_classes))


def _base_model(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModelForPromptedImageClassification) else model


def _prompted(model: nn.Module, argument: str) -> PeftModelForPromptedImageClassification:
    if not isinstance(model, PeftModelForPromptedImageClassification):
        raise ValueError(f"a model without a prompt adapter needs `{argument}`.")  # noqa: TRY004
    return model


def _check_features(features: Tensor, dim: int, argument: str) -> None:
    if features.ndim != 2 or not len(features) or features.shape[1] != dim:
        raise ValueError(
            f"`{argument}` must be (classes, {dim}) for this model, got {tuple(features.shape)}; take them from a prompt "
            "that was learned on it."
        )
