# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""SubPT and NFL: prompt tuning of CLIP-like models that keeps new class names working.

Importing this registers the method with PEFT, so that `PeftModel.from_pretrained` knows its adapters.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peft import PeftType
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForZeroShotImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from hf_methods.subpt.auto_subpt import AutoPromptModel
from hf_methods.subpt.configuration_subpt import PromptedImageClassifierConfig
from hf_methods.subpt.export_subpt import (
    export_merged,
    export_onnx,
    export_text_embeddings,
    export_trainable_tokens,
)
from hf_methods.subpt.losses_subpt import nfl_loss
from hf_methods.subpt.modeling_subpt import PromptedImageClassifier
from hf_methods.subpt.peft_config_subpt import PEFT_NAME, TASK, SubPTConfig
from hf_methods.subpt.peft_model_subpt import PeftModelForPromptedImageClassification
from hf_methods.subpt.peft_tuner_subpt import SubPTLayer, SubPTModel
from hf_methods.subpt.pipeline_subpt import TASK as PIPELINE_TASK
from hf_methods.subpt.pipeline_subpt import PromptedZeroShotPipeline
from hf_methods.subpt.prompts_subpt import extend_tokenizer, prompt_template
from hf_methods.subpt.subspace_subpt import Basis, SubspaceCollector, SubspaceProjector, compute_basis, random_basis
from hf_methods.subpt.templates_subpt import DATASET_TEMPLATES, IMAGENET_TEMPLATES


if TYPE_CHECKING:
    from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments
    from hf_methods.subpt.data_subpt import (
        FeatureDataset,
        base_novel_split,
        cache_image_features,
        clip_transform,
        few_shot_subset,
        harmonic_mean,
        split_base_novel,
    )
    from hf_methods.subpt.open_vocabulary_subpt import detect, segment
    from hf_methods.subpt.training_subpt import SubPTFitOutput, SubPTTrainer, classification_accuracy

# Imported when first used: transformers' Trainer and `datasets` import much.
_LAZY = {
    "FeatureDataset": "data_subpt",
    "SubPTFitOutput": "training_subpt",
    "SubPTTrainer": "training_subpt",
    "SubPTTrainingArguments": "arguments_subpt",
    "base_novel_split": "data_subpt",
    "cache_image_features": "data_subpt",
    "classification_accuracy": "training_subpt",
    "clip_transform": "data_subpt",
    "detect": "open_vocabulary_subpt",
    "few_shot_subset": "data_subpt",
    "harmonic_mean": "data_subpt",
    "segment": "open_vocabulary_subpt",
    "split_base_novel": "data_subpt",
}

if PeftType[PEFT_NAME.upper()] not in PEFT_TYPE_TO_CONFIG_MAPPING:  # a reloaded module is registered already
    register_peft_method(name=PEFT_NAME, config_cls=SubPTConfig, model_cls=SubPTModel)
MODEL_TYPE_TO_PEFT_MODEL_MAPPING[TASK] = PeftModelForPromptedImageClassification
AutoConfig.register(PromptedImageClassifierConfig.model_type, PromptedImageClassifierConfig, exist_ok=True)
AutoModelForImageClassification.register(PromptedImageClassifierConfig, PromptedImageClassifier, exist_ok=True)
PromptedImageClassifierConfig.register_for_auto_class()
PromptedImageClassifier.register_for_auto_class("AutoModelForImageClassification")
if PIPELINE_TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # a second registration warns
    PIPELINE_REGISTRY.register_pipeline(
        PIPELINE_TASK,
        pipeline_class=PromptedZeroShotPipeline,
        pt_model=AutoModelForZeroShotImageClassification,
        type="multimodal",
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
