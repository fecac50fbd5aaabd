# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Trainers of tiny detectors."""

from hf_methods import CrossTeachingConfig, CrossTeachingModel, CrossTeachingTrainer, CrossTeachingTrainingArguments
from hf_methods.cross_teaching.training_cross_teaching import default_views


DETECTOR = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 5}


def make_model(**options):
    options = {"score_threshold": 0.25, "ramp": "none", "ema_interval": 1, "burn_in_steps": 2, **options}
    return CrossTeachingModel(CrossTeachingConfig(detector=dict(DETECTOR), **options))


def make_trainer(folder, scenes, model=None, **options):
    model = model or make_model()
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, **options,
    }  # fmt: skip
    args = CrossTeachingTrainingArguments(output_dir=str(folder), **settings)
    views = default_views(model, flip=0.0, translation=0.1, strong="light")
    return CrossTeachingTrainer(model, args, *scenes, views=views)
