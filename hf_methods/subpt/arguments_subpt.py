# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one run of CoOp, SubPT and NFL, and CoOp's schedule."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_methods.processes import check_processes
from hf_methods.subpt.losses_subpt import NFL_LOSSES
from hf_methods.subpt.subspace_subpt import PROJECTION_MODES


# README of the published code: epochs of the early phase by shots.
EARLY_EPOCHS_BY_SHOTS = {1: 10, 2: 20, 4: 30, 8: 40, 16: 50}

NO_SHARDS = (
    "FSDP and ZeRO-3 would cut the context into shards, which can't be projected; it is tiny and the rest is frozen: use "
    "DDP."
)


def coop_learning_rate(epoch: int, num_epochs: int, learning_rate: float, warmup: float = 1e-5) -> float:
    """CoOp's schedule: one epoch at `warmup`, then a cosine by epochs.

    lr(1) = warmup; lr(e) = lr0 / 2 * (1 + cos(pi (e - 2) / E)) for e >= 2: Dassl's `ConstantWarmupScheduler` around
    `CosineAnnealingLR(E)`, in closed form. The last epoch's is not 0.

    Args:
        epoch: counted from 1.
        num_epochs: E.
        learning_rate: lr0, CoOp's 0.002.
        warmup: rate of the first epoch.
    """
    if epoch <= 1:
        return warmup
    return 0.5 * learning_rate * (1 + math.cos(math.pi * (epoch - 2) / num_epochs))


def early_epochs(num_epochs: int, shots: int | None = None) -> int:
    """Epochs t_early that are collected: the published table by shots, else 0.3 E, at least 2 and at most E."""
    epochs = EARLY_EPOCHS_BY_SHOTS.get(shots, 0) if shots else 0
    return min(num_epochs, max(2, epochs or round(0.3 * num_epochs)))


@dataclass
class SubPTTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the recipe of CoOp, SubPT and NFL. The defaults are SubPT's base-to-novel setting.

    Changed defaults: SGD, learning_rate 2e-3, weight_decay 5e-4, 100 epochs, batch 32 (test 100), no clipping, CoOp's schedule, no checkpoints.

    Baselines: `subspace_rank=0` is CoOp, with `stop_epochs` stopped early; `subspace_source="random"` is a random
    subspace, "late" that of the last `subspace_epochs` of a whole run; `anchor_names="base", nfl_loss="l2", nfl_weight=8` is like KgCoOp; zero-shot CLIP is
    `model.encode_templates`.

    Raises:
        ValueError: a value out of range, or values that don't go together.
    """

    subspace_rank: int = field(default=10, metadata={"help": "Directions r of SubPT; 0: plain CoOp."})
    subspace_epochs: int | None = field(
        default=None, metadata={"help": "Epochs t_early to collect; default: the table by `shots`, else 0.3 E."}
    )
    shots: int | None = field(default=None, metadata={"help": "Shots a class, for the table of `subspace_epochs`."})
    subspace_source: str = field(
        default="snapshots", metadata={"help": "'snapshots' of the first epochs; 'late' or 'random' (controls)."}
    )
    subspace_center: bool = field(default=True, metadata={"help": "Take the mean off the snapshots."})
    projection: str = field(default="grad", metadata={"help": "'grad' (paper), or 'update' for adaptive optimizers."})
    rewind: str = field(
        default="init", metadata={"help": "Where the projected run starts: 'init', 'first_snapshot' or 'none'."}
    )
    stop_epochs: int | None = field(default=None, metadata={"help": "Stop after these epochs of the whole schedule."})
    nfl_weight: float = field(default=0.0, metadata={"help": "Lambda of NFL; the paper's is 1, 0 is off."})
    nfl_names: list[str] | None = field(default=None, metadata={"help": "Auxiliary class names of NFL."})
    nfl_loss: str = field(default="cosine", metadata={"help": "'cosine' (paper) or 'l2'."})
    nfl_templates: list[str] | None = field(
        default=None, metadata={"help": "Hand-written prompts of the targets; default: OpenAI's 80."}
    )
    nfl_extra_template: str | None = field(
        default=None, metadata={"help": "The data set's own prompt, in addition (paper, except for ImageNet)."}
    )
    nfl_names_per_step: int | None = field(
        default=None, metadata={"help": "Names drawn a step; default: all (paper)."}
    )
    anchor_names: str = field(
        default="auxiliary", metadata={"help": "'auxiliary' (NFL), 'base' (like KgCoOp) or 'both'."}
    )
    class_chunk_size: int | None = field(default=None, metadata={"help": "Prompts encoded at once; less memory."})
    schedule: str = field(default="coop", metadata={"help": "'coop', or 'trainer' for `lr_scheduler_type`."})
    warmup_learning_rate: float = field(default=1e-5, metadata={"help": "Rate of the first epoch of 'coop'."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of SGD."})

    optim: str = field(default="sgd", metadata={"help": "Optimizer; 'sgd' is CoOp's."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of epoch 2."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay, inside of SGD."})
    num_train_epochs: float = field(default=100, metadata={"help": "Epochs E; a whole number."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images a step and device."})
    per_device_eval_batch_size: int = field(default=100, metadata={"help": "Images a step and device in evaluation."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clipping; CoOp has none."})
    drop_last_train_batch: bool = field(
        default=True, metadata={"help": "Drop an incomplete batch in training, unless it is the only one (CoOp)."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The base model doesn't name our columns."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Column of labels."})
    save_strategy: str = field(default="no", metadata={"help": "When checkpoints are written."})

    def __post_init__(self):
        super().__post_init__()
        check_processes(self)
        for name, allowed in (
            ("subspace_source", ("snapshots", "late", "random")),
            ("projection", PROJECTION_MODES),
            ("rewind", ("init", "first_snapshot", "none")),
            ("nfl_loss", NFL_LOSSES),
            ("anchor_names", ("auxiliary", "base", "both")),
            ("schedule", ("coop", "trainer")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.max_steps > 0 or self.num_train_epochs != int(self.num_train_epochs) or self.num_train_epochs < 1:
            raise ValueError(
                f"SubPT counts epochs: `num_train_epochs` must be a whole number, 1 or more, without `max_steps`; got "
                f"{self.num_train_epochs} and {self.max_steps}."
            )
        epochs = int(self.num_train_epochs)
        if self.stop_epochs is not None and not 1 <= self.stop_epochs <= epochs:
            raise ValueError(f"`stop_epochs` must be in 1..{epochs}, got {self.stop_epochs}.")
        if self.subspace_rank < 0:
            raise ValueError(f"`subspace_rank` must be 0 or more, got {self.subspace_rank}.")
        if self.subspace_rank and self.subspace_source != "random":
            if self.subspace_epochs is None:
                self.subspace_epochs = early_epochs(epochs, self.shots)
            if not 2 <= self.subspace_epochs <= epochs:
                raise ValueError(f"`subspace_epochs` must be in 2..{epochs} (epochs), got {self.subspace_epochs}.")
            if self.subspace_rank > (limit := self.subspace_epochs - int(self.subspace_center)):
                raise ValueError(
                    f"`subspace_rank` must be at most {limit} with {self.subspace_epochs} snapshots, got "
                    f"{self.subspace_rank}; collect more epochs (`subspace_epochs`) or lower it."
                )
        if not 0 <= self.nfl_weight < float("inf"):
            raise ValueError(f"`nfl_weight` must be 0 or more and finite, got {self.nfl_weight}.")
        if self.class_chunk_size is not None and self.class_chunk_size < 1:
            raise ValueError(f"`class_chunk_size` must be at least 1, got {self.class_chunk_size}.")
        if self.fsdp:
            raise ValueError(NO_SHARDS)
