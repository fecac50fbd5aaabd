# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Cross Teaching: semi-supervised object detection by detectors that rectify each other's pseudo labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
from transformers.pipelines import PIPELINE_REGISTRY

from hf_methods.cross_teaching.configuration_cross_teaching import CrossTeachingConfig, TorchvisionDetectorConfig
from hf_methods.cross_teaching.fusion_cross_teaching import weighted_boxes_fusion
from hf_methods.cross_teaching.image_processing_cross_teaching import DetectionImageProcessor
from hf_methods.cross_teaching.modeling_cross_teaching import CrossTeachingModel
from hf_methods.cross_teaching.modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection
from hf_methods.cross_teaching.modeling_inference_cross_teaching import CrossTeachingForObjectDetection
from hf_methods.cross_teaching.pipeline_cross_teaching import TASK, CrossTeachingDetectionPipeline
from hf_methods.cross_teaching.rectification_cross_teaching import rectify


if TYPE_CHECKING:
    from hf_methods.cross_teaching.arguments_cross_teaching import CrossTeachingTrainingArguments
    from hf_methods.cross_teaching.training_cross_teaching import CrossTeachingTrainer

# Imported when first used: transformers' Trainer and `datasets` import much.
_LAZY = {
    "CrossTeachingTrainer": "training_cross_teaching",
    "CrossTeachingTrainingArguments": "arguments_cross_teaching",
}

AutoConfig.register(TorchvisionDetectorConfig.model_type, TorchvisionDetectorConfig, exist_ok=True)
AutoConfig.register(CrossTeachingConfig.model_type, CrossTeachingConfig, exist_ok=True)
AutoModelForObjectDetection.register(TorchvisionDetectorConfig, TorchvisionDetectorForObjectDetection, exist_ok=True)
AutoModelForObjectDetection.register(CrossTeachingConfig, CrossTeachingForObjectDetection, exist_ok=True)
AutoModel.register(CrossTeachingConfig, CrossTeachingModel, exist_ok=True)
for config_class in (TorchvisionDetectorConfig, CrossTeachingConfig):
    AutoImageProcessor.register(
        config_class, image_processor_classes={"torchvision": DetectionImageProcessor}, exist_ok=True
    )
    config_class.register_for_auto_class()
TorchvisionDetectorForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
CrossTeachingModel.register_for_auto_class("AutoModel")
CrossTeachingForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
DetectionImageProcessor.register_for_auto_class("AutoImageProcessor")
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # a second registration warns
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=CrossTeachingDetectionPipeline, pt_model=AutoModelForObjectDetection, type="image"
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
