# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of a run, and the weight of the unsupervised losses over its steps."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_methods.cross_teaching.configuration_cross_teaching import CrossTeachingConfig
from hf_methods.processes import check_processes


@dataclass
class CrossTeachingTrainingArguments(TrainingArguments):
    """`TrainingArguments` with SGD and the recipe of SSD300 on VOC (arXiv 2201.10734).

    Changed defaults: optim "sgd" with `momentum` 0.9, learning_rate 1e-3, weight_decay 5e-4, no clipping of gradients, a
    constant learning rate times 0.1 at `lr_milestones`, samples in their own order (they are random already). `max_steps`
    must be given: ramp and burn-in are in steps.
    """

    optim: str = field(default="sgd", metadata={"help": "Optimizer; 'sgd' has `momentum`."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of 'sgd'."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay, not of biases and norms."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients at this norm; 0: not."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Schedule without milestones."})
    lr_milestones: list[int] = field(
        default_factory=list, metadata={"help": "Steps at which the learning rate is divided by ten."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches have their own form."})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "Must be 'sequential'."})
    unlabeled_ratio: int = field(default=1, metadata={"help": "Unlabelled images for one labelled."})
    measure_pseudo_labels: bool = field(
        default=False, metadata={"help": "Log the precision of pseudo labels where unlabelled images have objects."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_sampling_strategy != "sequential":
            raise ValueError(f"`train_sampling_strategy` must be 'sequential', got {self.train_sampling_strategy!r}.")
        if self.unlabeled_ratio < 1:
            raise ValueError(f"`unlabeled_ratio` must be at least 1, got {self.unlabeled_ratio}.")
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs in one process (DataParallel) can't share these batches: use `accelerate launch`."
            )
        check_processes(self)


def ramp_weight(step: int, config: CrossTeachingConfig, max_steps: int) -> float:
    """Weight of the unsupervised losses at a step, as a share of `config.unsup_weight`.

    "ssd": exp(-5 (1 - t)^2) up, with t from 0 to 1 over `ramp_steps`, and exp(-12.5 t^2) down over the last
    `ramp_down_steps`; exactly 0 at the ramp's first step.

    Args:
        step: steps done.
        config: ramp, ramp_start, ramp_steps, ramp_down_steps.
        max_steps: steps of the training.
    """
    if config.ramp == "none":
        return 1.0
    done = step - config.ramp_start
    if done < config.ramp_steps:
        share = max(0.0, done / config.ramp_steps)
        if config.ramp == "linear" or share == 0:
            return share
        return math.exp(-5 * (1 - share) ** 2)
    left = max_steps - step
    if config.ramp == "ssd" and left < config.ramp_down_steps:
        return math.exp(-12.5 * (1 - left / config.ramp_down_steps) ** 2)
    return 1.0
