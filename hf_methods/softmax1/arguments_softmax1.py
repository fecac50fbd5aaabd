# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one training run."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_methods.processes import check_processes


@dataclass
class Softmax1TrainingArguments(TrainingArguments):
    """`TrainingArguments` with OrthoAdam and the recipe's defaults.

    Changed defaults: learning_rate 1e-3, weight_decay 0.1, adam_beta2 0.95, cosine schedule. The paper's own values are
    not all known: `training/README.md` says where each comes from.
    """

    optimizer: str = field(default="orthoadam", metadata={"help": "'orthoadam' or 'adamw'."})
    rotation: str = field(default="auto", metadata={"help": "Rotation of OrthoAdam, see its docstring."})
    rotated_axes: str = field(
        default="all", metadata={"help": "'all', or 'residual': only the residual stream's axis of each parameter."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Decoupled weight decay of matrices."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay rate of the second moment."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer not in ("orthoadam", "adamw"):
            raise ValueError(f"`optimizer` must be 'orthoadam' or 'adamw', got {self.optimizer!r}.")
        if self.rotated_axes not in ("all", "residual"):
            raise ValueError(f"`rotated_axes` must be 'all' or 'residual', got {self.rotated_axes!r}.")
        check_processes(self)
