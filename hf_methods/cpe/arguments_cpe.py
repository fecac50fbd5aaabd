# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one training run."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_methods.cpe.losses_cpe import REDUCTIONS
from hf_methods.processes import check_processes


@dataclass
class CPETrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of CPE's official CIFAR and STL-10 runs.

    Changed defaults: optim "sgd" with learning_rate 0.03 (constant), weight_decay 5e-4 on matrices and convolutions, no clipping
    (max_grad_norm 0), max_steps 262144, 64 labelled images a device, eval_steps and save_steps 1024; and
    remove_unused_columns, logging_nan_inf_filter (which waits for the device in each step) and ddp_broadcast_buffers off.
    Training is counted in steps: a data set has no end here.
    """

    learning_rate: float = field(default=0.03, metadata={"help": "Learning rate."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of parameters with several axes."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning rate schedule."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 does not."})
    max_steps: int = field(default=262144, metadata={"help": "Training steps."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "B, labelled images of a step and device."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Images of an evaluation step."})
    eval_steps: float = field(default=1024, metadata={"help": "Steps between evaluations."})
    save_steps: float = field(default=1024, metadata={"help": "Steps between checkpoints."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave false: images are no argument."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave out losses that are not finite."})
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Each process has its own statistics."}
    )

    optim: str = field(default="sgd", metadata={"help": "Optimizer; 'sgd' has `momentum` and `nesterov`."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of 'sgd'."})
    nesterov: bool = field(default=True, metadata={"help": "Nesterov's form of it."})
    mu: int = field(default=2, metadata={"help": "Unlabelled images for each labelled one; 0 is supervised training."})
    threshold: float = field(default=0.95, metadata={"help": "Smallest probability of a pseudo-label that is used."})
    lambda_u: float = field(default=1.0, metadata={"help": "Weight of the unsupervised loss."})
    unsup_reduction: str = field(
        default="selected",
        metadata={
            "help": "'selected' divides the unsupervised loss by the labels that were used, 'batch' (FixMatch) by all."
        },
    )
    normalizer_scope: str = field(
        default="rank", metadata={"help": "Count the labels that were used in each 'rank' (official), or 'global'."}
    )
    warmup_supervised_steps: int = field(default=0, metadata={"help": "First steps without the unsupervised loss."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of the averaged parameters; 0 keeps no average."})
    ema_buffers: str = field(
        default="copy",
        metadata={"help": "Statistics of batch norms: 'copy' the current ones (official), or 'average'."},
    )
    eval_with_ema: bool = field(default=True, metadata={"help": "Evaluate and predict with the averages."})
    save_ema_as_main: bool = field(
        default=True, metadata={"help": "`save_model` saves the averages. Checkpoints always hold both."}
    )
    sync_batchnorm: bool = field(default=False, metadata={"help": "Batch statistics over all processes (official)."})
    augment_on_device: bool = field(default=True, metadata={"help": "False: the same with PIL, image by image."})
    crop_padding: int = field(default=4, metadata={"help": "Reflected border of the random crop, in pixels."})
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the images; not for digits."})
    randaugment_ops: int = field(default=3, metadata={"help": "Operations of the strong augmentation."})
    max_cutout: float = field(default=0.5, metadata={"help": "Largest side that is cut out, as a share of the width."})
    cache_images: bool = field(default=True, metadata={"help": "Decode all images once and keep them as uint8."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column of the labels."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, got {self.max_steps}: training is counted in steps.")
        if self.unsup_reduction not in REDUCTIONS:
            raise ValueError(
                f"`unsup_reduction` must be one of {', '.join(REDUCTIONS)}, got {self.unsup_reduction!r}."
            )
        if self.normalizer_scope not in ("rank", "global"):
            raise ValueError(f"`normalizer_scope` must be 'rank' or 'global', got {self.normalizer_scope!r}.")
        if self.ema_buffers not in ("copy", "average"):
            raise ValueError(f"`ema_buffers` must be 'copy' or 'average', got {self.ema_buffers!r}.")
        for name in ("mu", "lambda_u", "threshold", "warmup_supervised_steps", "crop_padding", "randaugment_ops"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be finite and at least 0, got {getattr(self, name)}.")
        for name in ("ema_decay", "max_cutout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}.")
        check_processes(self)
