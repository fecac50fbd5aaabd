# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Published methods on the Hugging Face stack; importing this registers their Auto classes."""

from importlib.metadata import version

from hf_methods.cross_teaching import (
    CrossTeachingConfig,
    CrossTeachingModel,
    CrossTeachingTrainer,
    CrossTeachingTrainingArguments,
    TorchvisionDetectorConfig,
    TorchvisionDetectorForObjectDetection,
    rectify,
    weighted_boxes_fusion,
)
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


__version__ = version("hf_methods")
__all__ = [
    "CrossTeachingConfig",
    "CrossTeachingModel",
    "CrossTeachingTrainer",
    "CrossTeachingTrainingArguments",
    "ModelReport",
    "OrthoAdam",
    "RoundToNearestConfig",
    "Softmax1GPT2Config",
    "Softmax1GPT2LMHeadModel",
    "Softmax1LlamaConfig",
    "Softmax1LlamaForCausalLM",
    "TorchvisionDetectorConfig",
    "TorchvisionDetectorForObjectDetection",
    "convert_to_softmax1",
    "inspect_model",
    "load_softmax1",
    "ortho_adam_parameter_groups",
    "rectify",
    "softmax1",
    "weighted_boxes_fusion",
]
