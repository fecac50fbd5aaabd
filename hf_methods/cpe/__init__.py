# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Complementary experts for long-tailed semi-supervised image classification."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from hf_methods.cpe.configuration_cpe import CPEConfig
from hf_methods.cpe.conversion_cpe import convert_official_checkpoint
from hf_methods.cpe.image_processing_cpe import CPEImageProcessor, CPEImageProcessorPil
from hf_methods.cpe.modeling_cpe import CPEForImageClassification, CPEModel
from hf_methods.cpe.normalization_cpe import ClasswiseBatchNorm
from hf_methods.cpe.pipeline_cpe import TASK, CPEImageClassificationPipeline


if TYPE_CHECKING:
    from hf_methods.cpe.arguments_cpe import CPETrainingArguments
    from hf_methods.cpe.data_cpe import make_longtail_ssl_splits
    from hf_methods.cpe.training_cpe import CPETrainer

# Imported when first used: transformers' Trainer and `datasets` import much.
_LAZY = {
    "CPETrainer": "training_cpe",
    "CPETrainingArguments": "arguments_cpe",
    "make_longtail_ssl_splits": "data_cpe",
}

AutoConfig.register(CPEConfig.model_type, CPEConfig, exist_ok=True)
AutoModel.register(CPEConfig, CPEModel, exist_ok=True)
AutoModelForImageClassification.register(CPEConfig, CPEForImageClassification, exist_ok=True)
AutoImageProcessor.register(
    CPEConfig,
    image_processor_classes={"torchvision": CPEImageProcessor, "pil": CPEImageProcessorPil},
    exist_ok=True,
)
CPEConfig.register_for_auto_class()
CPEImageProcessor.register_for_auto_class("AutoImageProcessor")
CPEImageProcessorPil.register_for_auto_class("AutoImageProcessor")
CPEModel.register_for_auto_class("AutoModel")
CPEForImageClassification.register_for_auto_class("AutoModelForImageClassification")
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # a second registration warns
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=CPEImageClassificationPipeline, pt_model=AutoModelForImageClassification, type="image"
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
