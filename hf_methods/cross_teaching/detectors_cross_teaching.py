# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""One detector and its image processor, by its configuration: torchvision's, or any of transformers."""

from typing import Any

from torch import nn
from transformers import AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel, RTDetrImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from .configuration_cross_teaching import TorchvisionDetectorConfig
from .image_processing_cross_teaching import DetectionImageProcessor
from .modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection


# They use RT-DETR's processor, but transformers' table does not say so.
RT_DETR_KIND = ("d_fine", "rt_detr", "rt_detr_v2")


def build_detector(config: PreTrainedConfig) -> PreTrainedModel:
    """A detector with random weights; a torchvision one also where its class is not registered."""
    # by the name: code that came with a checkpoint may be there twice, and with it the class of the configuration
    if config.model_type == TorchvisionDetectorConfig.model_type:
        return TorchvisionDetectorForObjectDetection(config)  # type: ignore[arg-type]
    return AutoModelForObjectDetection.from_config(config)


def build_processor(config: PreTrainedConfig) -> Any:
    """The image processor whose `post_process_object_detection` fits the detector's output.

    Raises:
        ValueError: the detector's processor has no such method.
    """
    if config.model_type == TorchvisionDetectorConfig.model_type:
        return DetectionImageProcessor.for_detector(config)  # type: ignore[arg-type]
    if config.model_type in RT_DETR_KIND:
        return RTDetrImageProcessor()
    if type(config) not in IMAGE_PROCESSOR_MAPPING:
        raise ValueError(f"{type(config).__name__} has no image processor, so its output can't be read as detections.")
    classes: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
    for processor_class in classes.values() if isinstance(classes, dict) else classes:
        if processor_class is not None and hasattr(processor_class, "post_process_object_detection"):
            return processor_class()
    raise ValueError(f"{type(config).__name__} has no image processor with `post_process_object_detection`.")


def finish_composite(model: PreTrainedModel, **groups: nn.ModuleList) -> None:
    """End of the initialisation of a model whose children are lists of detectors: these have their weights already.

    Args:
        model: the model; its `post_init` is called.
        groups: its lists of detectors, by attribute.
    """
    if next(model.parameters()).device.type != "meta":
        for module in model.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]
    model.post_init()
    for name, group in groups.items():
        for number, detector in enumerate(group):  # transformers looks for tied weights in direct children only
            for target, source in (getattr(detector, "all_tied_weights_keys", None) or {}).items():
                model.all_tied_weights_keys[f"{name}.{number}.{target}"] = f"{name}.{number}.{source}"
