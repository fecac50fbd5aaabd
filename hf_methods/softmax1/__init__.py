# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Softmax-1 attention in Hugging Face model classes; inspection; round-to-nearest quantisation."""

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pipelines import PIPELINE_REGISTRY

from hf_methods.softmax1.attention_softmax1 import softmax1, softmax1_attention
from hf_methods.softmax1.configuration_softmax1 import Softmax1GPT2Config, Softmax1LlamaConfig
from hf_methods.softmax1.inspection_softmax1 import ModelReport, inspect_model, perplexity, token_kurtosis
from hf_methods.softmax1.modeling_softmax1 import (
    SingleScaleRMSNorm,
    Softmax1GPT2LMHeadModel,
    Softmax1LlamaForCausalLM,
    convert_to_softmax1,
    load_softmax1,
    register_softmax1,
)
from hf_methods.softmax1.pipeline_softmax1 import TASK, Softmax1TextGenerationPipeline
from hf_methods.softmax1.quantization_softmax1 import (
    QUANT_SCHEMES,
    RoundToNearestConfig,
    quantization_report,
    quantize_tensor,
)


for config_class, model_class in (
    (Softmax1GPT2Config, Softmax1GPT2LMHeadModel),
    (Softmax1LlamaConfig, Softmax1LlamaForCausalLM),
):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # a second registration warns
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=Softmax1TextGenerationPipeline, pt_model=AutoModelForCausalLM, type="text"
    )
