# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Benford-Fourier coefficients of a classifier's responses, and a detector of adversarial inputs on them."""

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.extraction_mbf import MBFFeatureExtractor, MBFFeatures, preset_layers
from hf_methods.mbf.features_mbf import estimate_shape, generalized_gaussian_mbf, mbf
from hf_methods.mbf.modeling_mbf import MBFDetector, MBFDetectorOutput, weights_digest
from hf_methods.mbf.pipeline_mbf import TASK, AdversarialDetectionPipeline


AutoConfig.register(MBFConfig.model_type, MBFConfig, exist_ok=True)
AutoModel.register(MBFConfig, MBFDetector, exist_ok=True)
MBFConfig.register_for_auto_class()
MBFDetector.register_for_auto_class("AutoModel")
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # a second registration warns
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=AdversarialDetectionPipeline, pt_model=AutoModel, type="image"
    )
