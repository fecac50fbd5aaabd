# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Training of CPE with `Trainer`. FixMatch, FixMatch with logit adjustment and supervised training are other settings of it."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_methods.cpe.augmentation_cpe import (
    Augmentation,
    augment_one_by_one,
    normalize,
    strong_augment,
    strong_augment_pil,
    weak_augment,
    weak_augment_pil,
)
from hf_methods.cpe.data_cpe import DataCollatorForImageClassification, TwoStreamBatchSampler, TwoStreamDataset
from hf_methods.cpe.diagnostics_cpe import PseudoLabelCounter
from hf_methods.cpe.ema_cpe import ParameterEMA
from hf_methods.cpe.losses_cpe import REDUCTIONS
from hf_methods.cpe.modeling_cpe import CPEForImageClassification
from hf_methods.cpe.normalization_cpe import ClasswiseBatchNorm
from hf_methods.processes import check_processes
from hf_methods.resume import ExamplesPerStep


logger = logging.get_logger(__name__)

EMA_NAME = "ema.safetensors"


@dataclass
class CPETrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of CPE's official CIFAR and STL-10 runs.

    Changed defaults: SGD with learning_rate 0.03 (constant), weight_decay 5e-4 on matrices and convolutions, no clipping
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

    optimizer: str = field(default="sgd", metadata={"help": "'sgd' or 'adamw'."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of SGD."})
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
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"`optimizer` must be 'sgd' or 'adamw', got {self.optimizer!r}.")
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


class EMACallback(TrainerCallback):
    """Updates the averages behind each step of the optimizer."""

    def __init__(self, ema: ParameterEMA):
        self.ema = ema

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.ema.update()


class CPETrainer(Trainer):
    """`Trainer` for labelled and unlabelled images.

    Each step takes B labelled images (weakly augmented) and mu * B unlabelled ones (weakly and strongly augmented) through
    the model at once. Batches and augmentations follow from the seed and the step alone, so that a resumed run is the
    uninterrupted one, with any number of workers.

    Args:
        model: what is trained. `config.class_counts` is filled in from `train_dataset` if it is `None`.
        args: see `CPETrainingArguments`.
        train_dataset: labelled images, a `datasets.Dataset` with the columns `args.image_column` and `args.label_column`.
        unlabeled_dataset: unlabelled images; without it training is supervised. A column of labels is counted in the
            diagnostics, and not used otherwise.
        eval_dataset: labelled images.
        processing_class: image processor; its mean and deviation normalise the training images too.
        kwargs: passed to `Trainer`.

    Raises:
        TypeError: another model, or no image processor.
        ValueError: data that do not fit the model, several GPUs in one process, or `sync_batchnorm` of batch norms on CPU.
    """

    args: CPETrainingArguments
    model: CPEForImageClassification

    def __init__(
        self,
        model: CPEForImageClassification,
        args: CPETrainingArguments,
        train_dataset: Dataset | None = None,
        unlabeled_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class=None,
        **kwargs,
    ):
        if not isinstance(model, CPEForImageClassification):
            raise TypeError(f"`model` must be a CPEForImageClassification, got {type(model).__name__}.")
        if getattr(processing_class, "image_mean", None) is None:
            raise TypeError("`processing_class` must be an image processor with `image_mean` and `image_std`.")
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process: start one for each with `accelerate launch`.")
        config = model.config
        if len(processing_class.image_mean) != config.num_channels:
            raise ValueError(
                f"`processing_class.image_mean` has {len(processing_class.image_mean)} numbers for images of "
                f"num_channels={config.num_channels}."
            )
        if processing_class.size.get("height", config.image_size) != config.image_size:
            raise ValueError(
                f"`processing_class.size` is {dict(processing_class.size)}, but training images have "
                f"config.image_size={config.image_size}."
            )
        self.two_streams: TwoStreamDataset | None = None
        if train_dataset is not None:
            self.two_streams = TwoStreamDataset(
                train_dataset, unlabeled_dataset if args.mu else None, size=config.image_size,
                num_channels=config.num_channels, num_labels=config.num_classes, image_column=args.image_column,
                label_column=args.label_column, cache=args.cache_images,
            )  # fmt: skip
            self._check_class_counts(model, self.two_streams)
        self._synchronize(model, args)
        if "data_collator" not in kwargs:
            kwargs["data_collator"] = DataCollatorForImageClassification(
                processing_class, args.image_column, args.label_column
            )
        if "optimizers" not in kwargs and "optimizer_cls_and_kwargs" not in kwargs:
            kwargs["optimizer_cls_and_kwargs"] = self._optimizer_cls_and_kwargs(args)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("averaged parameters need whole ones: train with DDP, not with FSDP or DeepSpeed.")
        self.augmentation = Augmentation(
            args.crop_padding, args.horizontal_flip, args.randaugment_ops, args.max_cutout
        )
        self.counter = PseudoLabelCounter(config.num_experts, config.num_classes, args.device)
        self.ema = ParameterEMA(model, args.ema_decay, args.ema_buffers == "average") if args.ema_decay else None
        if self.ema is not None:
            self.add_callback(EMACallback(self.ema))
        self.add_callback(ExamplesPerStep())
        self._last_augmented = (-1, 0)  # step, micro-batch
        self._mean_and_std: tuple[Tensor, Tensor] | None = None

    # --- set-up --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _check_class_counts(model: CPEForImageClassification, data: TwoStreamDataset) -> None:
        config = model.config
        labels = data.labels[: data.num_labeled].numpy()
        counts = np.bincount(labels, minlength=config.num_classes).tolist()
        if config.class_counts is None:
            config.class_counts = counts
            config.validate()
        elif list(config.class_counts) != counts:
            raise ValueError(
                f"`config.class_counts` is {list(config.class_counts)}, but `train_dataset` has {counts}: the prior would be "
                "wrong. Set `model.config.class_counts` to the counts of the data (or to None)."
            )

    @staticmethod
    def _synchronize(model: CPEForImageClassification, args: CPETrainingArguments) -> None:
        if not args.sync_batchnorm or args.world_size == 1:
            return
        if args.device.type == "cpu" and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
        ):
            raise ValueError(
                "`sync_batchnorm` of a backbone with batch norms needs GPUs: torch has no such layer for CPU."
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        for module in model.modules():
            if isinstance(module, ClasswiseBatchNorm):
                module.synchronize = True

    @staticmethod
    def _optimizer_cls_and_kwargs(args: CPETrainingArguments) -> tuple[type, dict[str, Any]]:
        if args.optimizer == "adamw":
            betas = (args.adam_beta1, args.adam_beta2)
            return torch.optim.AdamW, {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}
        nesterov = args.nesterov and args.momentum > 0
        return torch.optim.SGD, {"lr": args.learning_rate, "momentum": args.momentum, "nesterov": nesterov}

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of matrices and convolutions. Classwise batch norms have rows of affine parameters: they are none."""
        norms = [module for module in model.modules() if isinstance(module, ClasswiseBatchNorm)]
        affine = {id(parameter) for norm in norms for parameter in norm.parameters()}
        return [
            name for name, parameter in model.named_parameters() if parameter.ndim > 1 and id(parameter) not in affine
        ]

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process for all steps. One epoch is the whole run, so that resuming skips batches unread."""
        if self.two_streams is None:
            raise ValueError("training needs `train_dataset`.")
        args, data = self.args, self.two_streams
        self._last_augmented = (-1, 0)
        sampler = TwoStreamBatchSampler(
            data.num_labeled, data.num_unlabeled, args.per_device_train_batch_size, args.mu,
            args.max_steps * args.gradient_accumulation_steps, args.seed, args.process_index, args.world_size,
        )  # fmt: skip
        return DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=_as_it_is,  # `__getitems__` gives a batch
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    # --- a step --------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        return self._make_views(inputs["images"], inputs["labels"]) if "images" in inputs else inputs

    def _make_views(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Augmented and normalised views of uint8 images (B + M, C, H, W)."""
        args, num_labeled = self.args, self.args.per_device_train_batch_size
        step, micro_batch = self.state.global_step, 0
        if self._last_augmented[0] == step:
            micro_batch = self._last_augmented[1] + 1
        self._last_augmented = (step, micro_batch)

        if self._mean_and_std is None:
            processor: Any = self.processing_class
            mean, std = torch.tensor([processor.image_mean, processor.image_std]).to(images.device)
            self._mean_and_std = (mean, std)
        mean_and_std = self._mean_and_std

        def view(images: Tensor, kind: int) -> Tensor:
            # Numbers for the images of all processes: together they do what one process would.
            uniforms = self.augmentation.draw(len(images) * args.world_size, (args.seed, step, micro_batch, kind))
            uniforms = uniforms[len(images) * args.process_index :][: len(images)]
            if not args.augment_on_device:
                one = strong_augment_pil if kind == 2 else weak_augment_pil
                images = augment_one_by_one(one, images, uniforms, self.augmentation)
            else:
                images = (strong_augment if kind == 2 else weak_augment)(images, uniforms, self.augmentation)
            return normalize(images, *mean_and_std).to(self.model.dtype)

        views = {"pixel_values": view(images[:num_labeled], 0), "labels": labels[:num_labeled]}
        if len(images) > num_labeled:
            unlabeled = images[num_labeled:]
            views["pixel_values_weak"], views["pixel_values_strong"] = view(unlabeled, 1), view(unlabeled, 2)
            views["true_labels"] = labels[num_labeled:]
        return views

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """sum_e (supervised_e + lambda_u * unsupervised_e), from one forward pass of the model."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args = self.args
        true_labels = inputs.pop("true_labels", None)
        outputs = model(
            **inputs,
            threshold=args.threshold,
            lambda_u=args.lambda_u if self.state.global_step >= args.warmup_supervised_steps else 0.0,
            unsup_reduction=args.unsup_reduction,
            normalize_across_ranks=args.normalizer_scope == "global",
        )
        self.counter.update(
            outputs.supervised_loss,
            outputs.unsupervised_loss,
            outputs.pseudo_labels,
            outputs.pseudo_label_mask,
            true_labels,
        )
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model, grad_norm=None):
        # Without clipping the norm of the gradients would be computed in each step to be logged.
        return None if grad_norm is None else super()._get_grad_norm(model, grad_norm)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: transformers' estimate is for tokens."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, in training with the experts' numbers since the last time; see `PseudoLabelCounter.read`."""
        tables: dict[str, Any] = {}
        if "loss" in logs:
            numbers, tables = self.counter.read(self.accelerator)
            logs = {**logs, **numbers}
        super().log(logs, start_time)
        if tables:  # not for the trackers, which take single numbers
            self.state.log_history.append({**tables, "step": self.state.global_step})

    # --- averages ------------------------------------------------------------------------------------------------------

    def averaged(self, wanted: bool = True):
        """Context in which the model has its averaged parameters (if there are any, and they are `wanted`)."""
        return self.ema.swapped() if self.ema is not None and wanted else nullcontext()

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """`Trainer.evaluate` with the averages, unless `eval_with_ema` is off."""
        with self.averaged(self.args.eval_with_ema):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """`Trainer.predict` with the averages, unless `eval_with_ema` is off."""
        with self.averaged(self.args.eval_with_ema):
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the averages, unless `save_ema_as_main` is off; a checkpoint that training resumes from has both."""
        is_resumable = _internal_call and not self.args.save_only_model
        with self.averaged(self.args.save_ema_as_main and not is_resumable):
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.ema is not None and self.args.should_save:
            self.ema.save(Path(output_dir, EMA_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Not `Trainer`'s own: parameters of some backbones (ViT) have other names on disk, and it does not translate them.
        stored = type(self.model).from_pretrained(resume_from_checkpoint)
        self.model.load_state_dict(stored.state_dict())
        self._load_averages(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_averages(self, checkpoint: str) -> None:
        if self.ema is None:
            return
        path = Path(checkpoint, EMA_NAME)
        if path.is_file():
            self.ema.load(path)
        else:
            logger.warning(f"{checkpoint} has no {EMA_NAME}: the averages begin anew at its weights.")
            self.ema.restart()


def _as_it_is(batch):
    return batch
