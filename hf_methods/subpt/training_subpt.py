# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""CoOp, SubPT and NFL in one trainer: snapshots -> basis -> rewind -> projected run.

The published code trains CoOp to its end, takes the snapshots of its first epochs, and trains again: twice CoOp's cost.
`SubPTTrainer.fit` stops the first run after those epochs, under the schedule of the whole: the snapshots are the same and
the cost is (t_early + E) / E.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, set_seed
from transformers.utils import logging

from hf_methods.resume import ExamplesPerStep, last_whole_checkpoint
from hf_methods.subpt.arguments_subpt import NO_SHARDS, SubPTTrainingArguments, coop_learning_rate
from hf_methods.subpt.peft_model_subpt import PeftModelForPromptedImageClassification
from hf_methods.subpt.prompts_subpt import check_class_names
from hf_methods.subpt.subspace_subpt import Basis, SubspaceProjector, compute_basis, random_basis
from hf_methods.subpt.templates_subpt import IMAGENET_TEMPLATES


logger = logging.get_logger(__name__)

COLLECT_FOLDER, SNAPSHOT_FILE, SUBSPACE_FILE = "collect", "snapshots.safetensors", "fit.safetensors"
ADAPTIVE = ("adam", "adagrad", "rmsprop", "adafactor", "lion", "lamb", "adalomo", "shampoo")
NOT_FINITE = (
    "the trained context is not finite: look for NaN in `pixel_values` or `image_embeds` of the training data, or lower "
    "`learning_rate`."
)
NOT_LOGITS = ("ce_loss", "nfl_loss", "image_embeds", "text_embeds")


@dataclass(frozen=True)
class SubPTFitOutput:
    """What `SubPTTrainer.fit` did.

    Args:
        basis: the subspace, or None for plain CoOp.
        snapshots: (T, d), float32: the flattened context at the ends of the collected epochs; None if none were.
        start: the context that the last run started from.
        metrics: of the last run, as `Trainer.train`, with `collect_runtime` in seconds.
    """

    basis: Basis | None
    snapshots: Tensor | None
    start: Tensor
    metrics: dict[str, float]


class SubPTTrainer(Trainer):
    """Trains the context of a `PeftModelForPromptedImageClassification`.

    `fit()` is the whole method; `collect()` and `train()` are its phases. Rows of the data sets have `pixel_values`, or
    `image_embeds` (see `cache_image_features`), and `labels`.

        >>> model.set_classes(base_names, tokenizer)
        >>> trainer = SubPTTrainer(model, SubPTTrainingArguments("out", nfl_weight=1.0, nfl_names=novel_names), train_dataset=train)
        >>> trainer.fit()
        >>> model.save_pretrained("adapter")

    Args:
        model: the model, with its classes set.
        args: `SubPTTrainingArguments`.
        kwargs: of `Trainer`, except `optimizers`: each phase makes its own.

    Raises:
        ValueError: no classes, a model of another kind, a frozen or merged context, a rank above its size, NFL
            without names, `optimizers`, FSDP or ZeRO-3.
    """

    args: SubPTTrainingArguments

    def __init__(self, model: nn.Module, args: SubPTTrainingArguments, **kwargs: Any):
        if not isinstance(model, PeftModelForPromptedImageClassification):
            raise ValueError(  # noqa: TRY004
                f"`model` must be a PeftModelForPromptedImageClassification, got {type(model).__name__}; make it with "
                "`get_peft_model(clip, SubPTConfig())`."
            )
        if model.class_input_ids is None:
            raise ValueError("the model has no classes; call `model.set_classes(names, tokenizer)` first.")
        if not model.context.requires_grad:
            raise ValueError("the context is frozen; load the adapter with `is_trainable=True`.")
        if model.prompt_layer.merged:
            raise ValueError("the context is merged into the embedding; call `model.unmerge_adapter()` to train it.")
        if args.subspace_rank > model.context.numel():
            raise ValueError(
                f"`subspace_rank` = {args.subspace_rank} is more than the {model.context.numel()} values of the context "
                f"{tuple(model.context.shape)}; lower it."
            )
        if kwargs.get("optimizers", (None, None)) != (None, None):
            raise ValueError(
                "each phase makes its own optimizer; give `optimizer_cls_and_kwargs` instead of `optimizers`."
            )
        if len(model.class_input_ids) == 1:
            warnings.warn("there is one class: its cross entropy is 0 whatever the context.", stacklevel=2)
        adaptive = args.optim.lower().startswith(ADAPTIVE) or "adam" in args.optim.lower()
        if args.subspace_rank and args.projection == "grad" and adaptive:
            warnings.warn(
                f"`optim={args.optim!r}` leaves the subspace of projected gradients; `projection='update'` keeps it in.",
                stacklevel=2,
            )
        super().__init__(model, args, **kwargs)
        # Both may come from the launcher's configuration as well as from `args`.
        deepspeed = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if self.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3):
            raise ValueError(NO_SHARDS)
        self.prompt_model = model
        model.class_chunk_size = args.class_chunk_size
        if model.prompt_config.class_names is None:  # the adapter remembers what it was trained on
            model.prompt_config.class_names = list(model.class_names or ())
        self.basis: Basis | None = None
        self.snapshots: dict[int, Tensor] = {}
        self._collecting = False
        self._stop_after: int | None = None
        self._parts: dict[str, list[Tensor]] = {"ce_loss": [], "nfl_loss": []}
        self._set_anchors()
        self.add_callback(_Phase(self))
        self.add_callback(ExamplesPerStep())

    def _set_anchors(self) -> None:
        args, model = self.args, self.prompt_model
        if not args.nfl_weight:
            model.set_anchors(None)
            return
        if args.anchor_names != "base" and not args.nfl_names:
            raise ValueError("`nfl_weight` needs `nfl_names`, or `anchor_names='base'`.")
        auxiliary = check_class_names(args.nfl_names, "nfl_names") if args.nfl_names else []
        base = list(model.class_names or ())
        names = {"auxiliary": auxiliary, "base": base, "both": [*base, *auxiliary]}[args.anchor_names]
        if args.anchor_names != "base" and (shared := sorted(set(auxiliary) & set(base))):
            warnings.warn(f"`nfl_names` repeats the classes {shared}: their anchors act on the classes.", stacklevel=3)
            names = list(dict.fromkeys(names))
        templates = list(args.nfl_templates or IMAGENET_TEMPLATES)
        if args.nfl_extra_template:
            templates.append(args.nfl_extra_template)
        # Frozen: computed once, not in every step.
        targets = model.encode_templates(names, templates)
        model.set_anchors(names, targets, weight=args.nfl_weight, kind=args.nfl_loss, per_step=args.nfl_names_per_step)

    @property
    def folder(self) -> Path:
        """`output_dir`."""
        return Path(self.args.output_dir or "trainer_output")

    # --- the method -------------------------------------------------------------------------------------------------

    def fit(self, resume: bool = False) -> SubPTFitOutput:
        """Collect, compute the basis, rewind and train with projection; with `subspace_rank=0` train once.

        Args:
            resume: go on from the last whole checkpoint in `output_dir`, in either phase. Needs a `save_strategy`. A run
                that was resumed equals one that was not.

        Raises:
            ValueError: snapshots that span too few directions, a checkpoint whose steps had another number of examples, or
                a context that is not finite at the end.
        """
        args, context = self.args, self.prompt_model.context
        start, collect_metrics = context.detach().clone(), {}
        done = self.folder / SUBSPACE_FILE
        if args.subspace_rank and resume and done.is_file():
            stored = load_file(done)
            start = stored.pop("start").to(context)
            self.snapshots = dict(enumerate(stored.pop("snapshots", torch.empty(0)), 1))
            self.basis = Basis(**stored)
        elif args.subspace_rank:
            if args.subspace_source == "random":
                self.basis = random_basis(context.numel(), args.subspace_rank, args.seed)
            else:
                self.basis = self.collect(resume)
                start = self._collect_start.to(context)
                collect_metrics = {"collect_runtime": self._collect_metrics.get("train_runtime", 0.0)}
            if args.rewind == "first_snapshot" and self.snapshots:
                start = self.snapshots[1].view_as(context).to(context)
            elif args.rewind == "none":
                start = context.detach().clone()
            self._write(done, {"start": start, **self.basis.state_dict(), **self._stacked()})
        self._set_context(start)
        self.prompt_model.basis = self.basis
        self._reset()
        checkpoint = last_whole_checkpoint(self.folder) if resume else None
        output = self.train(resume_from_checkpoint=checkpoint)
        if not bool(context.isfinite().all()):  # Trainer's log leaves such losses out
            raise ValueError(NOT_FINITE)
        snapshots = self._stacked().get("snapshots")
        return SubPTFitOutput(self.basis, snapshots, start, {**output.metrics, **collect_metrics})

    def collect(self, resume: bool = False) -> Basis:
        """The first `subspace_epochs` epochs of a CoOp run (with NFL, if it is on), and the basis of their snapshots.

        With `subspace_source="late"` all epochs, and the basis of the last `subspace_epochs` snapshots.
        The context stays where those epochs led; `fit` rewinds it.

        Args:
            resume: as for `fit`.

        Returns:
            The basis, the same in all processes.
        """
        args, context = self.args, self.prompt_model.context
        assert args.subspace_epochs is not None
        folder = self.folder / COLLECT_FOLDER
        self._collect_start, self.snapshots, self._collect_metrics = context.detach().cpu().clone(), {}, {}
        checkpoint = last_whole_checkpoint(folder) if resume else None
        if checkpoint is not None and (folder / SNAPSHOT_FILE).is_file():
            stored = load_file(folder / SNAPSHOT_FILE)
            self._collect_start = stored["start"]
            self.snapshots = dict(enumerate(stored["snapshots"], 1))
        epochs = int(args.num_train_epochs) if args.subspace_source == "late" else args.subspace_epochs
        if len(self.snapshots) < epochs:
            self._collecting, self._stop_after = True, epochs
            try:
                self._reset()
                self._collect_metrics = self.train(resume_from_checkpoint=checkpoint).metrics
            finally:
                self._collecting, self._stop_after = False, None
        else:  # stopped behind the last snapshot
            self._set_context(self.snapshots[epochs].view_as(context))
        basis = compute_basis(
            self._stacked()["snapshots"][-args.subspace_epochs :], args.subspace_rank, args.subspace_center
        )
        if self.args.world_size > 1:
            # The snapshots are alike in all processes; the rounding of an SVD need not be.
            device = self.accelerator.device
            basis = Basis(**{name: broadcast(tensor.to(device)).cpu() for name, tensor in basis.state_dict().items()})
        return basis

    def _reset(self) -> None:
        """A fresh optimizer, schedule, seed and wrapper, so that a phase repeats the order of batches."""
        self.optimizer, self.lr_scheduler, self.model_wrapped = None, None, self.prompt_model
        set_seed(self.args.seed)

    @torch.no_grad()
    def _set_context(self, values: Tensor) -> None:
        self.prompt_model.context.copy_(values)

    def _stacked(self) -> dict[str, Tensor]:
        rows = [self.snapshots[epoch] for epoch in sorted(self.snapshots)]
        return {"snapshots": torch.stack(rows)} if rows else {}

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if self.args.save_strategy != "no" and self.is_world_process_zero():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".aside")
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
            os.replace(aside, path)

    def take_snapshot(self, epoch: int) -> None:
        """Remember the context at the end of `epoch`, counted from 1: (d,), float32, on the CPU."""
        context = self.prompt_model.context.detach()
        self.snapshots = {number: row for number, row in self.snapshots.items() if number < epoch}  # of a resumed run
        self.snapshots[epoch] = context.flatten().float().cpu().clone()
        folder = self.folder / COLLECT_FOLDER
        self._write(folder / SNAPSHOT_FILE, {"start": self._collect_start, **self._stacked()})

    def evaluate_classes(self, image_embeds: Tensor, labels: Tensor, class_names: list[str]) -> float:
        """Top-1 accuracy among any class names, over all images (CoOp's metric), from image features.

        Args:
            image_embeds: (n, dim), normalised.
            labels: (n,), indices into `class_names`.
            class_names: the closed set of names.
        """
        with torch.no_grad():
            features = self.prompt_model.encode_classes(class_names, chunk_size=256)
        return classification_accuracy(image_embeds, labels, features)

    # --- what Trainer asks ------------------------------------------------------------------------------------------

    def get_train_dataloader(self):
        """Without an incomplete last batch. `dataloader_drop_last` would leave out test images as well."""
        args, dataset = self.args, cast(Any, self.train_dataset)
        before = args.dataloader_drop_last
        # As CoOp: with fewer images than a batch there would be no step at all.
        is_enough = hasattr(dataset, "__len__") and len(dataset) >= args.train_batch_size * args.world_size
        args.dataloader_drop_last = before or (args.drop_last_train_batch and is_enough)
        try:
            return super().get_train_dataloader()
        finally:
            args.dataloader_drop_last = before

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """CoOp's SGD on the context, or what `optim` or `optimizer_cls_and_kwargs` says."""
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None and self.args.optim == "sgd":
            args = self.args
            self.optimizer = torch.optim.SGD(
                [self.prompt_model.context], args.learning_rate, args.momentum, weight_decay=args.weight_decay
            )
            return self.optimizer
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """CoOp's schedule by epochs, or `lr_scheduler_type`."""
        if self.lr_scheduler is not None or self.args.schedule == "trainer":
            return super().create_scheduler(num_training_steps, optimizer)
        args, epochs = self.args, int(self.args.num_train_epochs)
        steps_per_epoch = max(1, num_training_steps // epochs)

        def factor(step: int) -> float:
            rate = coop_learning_rate(
                step // steps_per_epoch + 1, epochs, args.learning_rate, args.warmup_learning_rate
            )
            return rate / args.learning_rate if args.learning_rate else 0.0

        optimizer = optimizer if optimizer is not None else self.optimizer
        assert optimizer is not None  # Trainer makes it first
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross entropy + lambda * NFL, as the model returns it; the parts are logged."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            for name, values in self._parts.items():
                if outputs.get(name) is not None:
                    values.append(outputs[name].mean())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the two parts of the loss since the last log."""
        if "loss" in logs:
            for name, values in self._parts.items():
                if values:
                    logs[name] = round(float(torch.stack(values).mean()), 6)
                    values.clear()
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits only: features of classes don't belong to images."""
        return super().prediction_step(model, inputs, prediction_loss_only, [*(ignore_keys or ()), *NOT_LOGITS])

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, COLLECT_FOLDER) if self._collecting else folder


class _Phase(TrainerCallback):
    """Snapshots and the early stop while collecting, projection in the run after it."""

    def __init__(self, trainer: SubPTTrainer):
        self.trainer = trainer
        self.projector: SubspaceProjector | None = None

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        trainer = self.trainer
        if trainer.basis is not None and not trainer._collecting:
            # Here and not earlier: a checkpoint is loaded and the model wrapped by now.
            inner = getattr(optimizer, "optimizer", optimizer)
            context = trainer.prompt_model.context
            self.projector = SubspaceProjector(context, trainer.basis, args.projection, inner).attach()

    def on_epoch_end(self, args, state, control, **kwargs):
        trainer, epoch = self.trainer, round(state.epoch)
        if trainer._collecting:
            trainer.take_snapshot(epoch)
        stop = trainer._stop_after if trainer._collecting else args.stop_epochs
        if stop is not None and epoch >= stop:
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if self.projector is not None:
            self.projector.detach()
            self.projector = None


def classification_accuracy(image_embeds: Tensor, labels: Tensor, class_features: Tensor) -> float:
    """Share of images whose nearest class feature (by cosine) is that of their label.

    Args:
        image_embeds: (n, dim), normalised.
        labels: (n,).
        class_features: (classes, dim), normalised: of `encode_classes`, or of `encode_templates` for zero-shot CLIP.

    Raises:
        ValueError: no images, or labels that are no index of a class.
    """
    if not len(labels):
        raise ValueError("there are no images to classify.")
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_features):
        raise ValueError(
            f"`labels` must be from 0 to {len(class_features) - 1}, got {int(labels.min())} to {int(labels.max())}."
        )
    predictions = (image_embeds.to(class_features) @ class_features.T).argmax(-1)
    return float((predictions == labels.to(predictions.device)).double().mean())
