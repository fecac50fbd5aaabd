# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Published methods on the Hugging Face stack; importing this registers their Auto classes."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hf_methods.cpe import CPEConfig, CPEForImageClassification
from hf_methods.cross_teaching import (
    CrossTeachingConfig,
    CrossTeachingModel,
    TorchvisionDetectorConfig,
    TorchvisionDetectorForObjectDetection,
    rectify,
    weighted_boxes_fusion,
)
from hf_methods.mbf import MBFConfig, MBFDetector, generalized_gaussian_mbf, mbf
from hf_methods.ortho_adam import OrthoAdam, ortho_adam_parameter_groups
from hf_methods.softmax1 import (
    ModelReport,
    RoundToNearestConfig,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    Softmax1LlamaConfig,
    Softmax1LlamaForCausalLM,
    convert_to_softmax1,
    inspect_model,
    load_softmax1,
    softmax1,
)


if TYPE_CHECKING:
    from hf_methods.cpe import CPETrainer, CPETrainingArguments, make_longtail_ssl_splits
    from hf_methods.cross_teaching import CrossTeachingTrainer, CrossTeachingTrainingArguments
    from hf_methods.subpt import (
        AutoPromptModel,
        PromptedImageClassifier,
        SubPTConfig,
        SubPTTrainer,
        SubPTTrainingArguments,
        SubspaceProjector,
        compute_basis,
    )

__version__ = version("hf_methods")
# Imported when first used: transformers' Trainer, PEFT and `datasets` import much. `hf_methods.subpt` registers its adapters then.
_LAZY = {
    "AutoPromptModel": "hf_methods.subpt",
    "CPETrainer": "hf_methods.cpe",
    "CPETrainingArguments": "hf_methods.cpe",
    "CrossTeachingTrainer": "hf_methods.cross_teaching",
    "CrossTeachingTrainingArguments": "hf_methods.cross_teaching",
    "PromptedImageClassifier": "hf_methods.subpt",
    "SubPTConfig": "hf_methods.subpt",
    "SubPTTrainer": "hf_methods.subpt",
    "SubPTTrainingArguments": "hf_methods.subpt",
    "SubspaceProjector": "hf_methods.subpt",
    "compute_basis": "hf_methods.subpt",
    "make_longtail_ssl_splits": "hf_methods.cpe",
}
__all__ = [
    "AutoPromptModel",
    "CPEConfig",
    "CPEForImageClassification",
    "CPETrainer",
    "CPETrainingArguments",
    "CrossTeachingConfig",
    "CrossTeachingModel",
    "CrossTeachingTrainer",
    "CrossTeachingTrainingArguments",
    "MBFConfig",
    "MBFDetector",
    "ModelReport",
    "OrthoAdam",
    "PromptedImageClassifier",
    "RoundToNearestConfig",
    "Softmax1GPT2Config",
    "Softmax1GPT2LMHeadModel",
    "Softmax1LlamaConfig",
    "Softmax1LlamaForCausalLM",
    "SubPTConfig",
    "SubPTTrainer",
    "SubPTTrainingArguments",
    "SubspaceProjector",
    "TorchvisionDetectorConfig",
    "TorchvisionDetectorForObjectDetection",
    "compute_basis",
    "convert_to_softmax1",
    "generalized_gaussian_mbf",
    "inspect_model",
    "load_softmax1",
    "make_longtail_ssl_splits",
    "mbf",
    "ortho_adam_parameter_groups",
    "rectify",
    "softmax1",
    "weighted_boxes_fusion",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
