# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer of detectors that teach each other, and their evaluation."""

import copy
import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_methods.checkpoints import write_json
from hf_methods.cross_teaching.arguments_cross_teaching import CrossTeachingTrainingArguments, ramp_weight
from hf_methods.cross_teaching.checks_cross_teaching import RUN_FILE, check_resume, check_run
from hf_methods.cross_teaching.data_cross_teaching import label_names
from hf_methods.cross_teaching.detectors_cross_teaching import build_processor
from hf_methods.cross_teaching.evaluation_cross_teaching import average_precisions, detect
from hf_methods.cross_teaching.fusion_cross_teaching import weighted_boxes_fusion
from hf_methods.cross_teaching.modeling_cross_teaching import CrossTeachingModel
from hf_methods.cross_teaching.sampling_cross_teaching import (
    DataCollatorForCrossTeaching,
    SemiSupervisedDetectionDataset,
)
from hf_methods.cross_teaching.views_cross_teaching import ViewSettings
from hf_methods.resume import last_whole_checkpoint


logger = logging.get_logger(__name__)

FEW_PSEUDO_LABELS = 0.05  # an image
MANY_PSEUDO_LABELS = 3  # for each object of a labelled image
COUNTS = ("right_", "used_")  # of pseudo labels: summed in the log, where other figures are averaged


class TeacherCallback(TrainerCallback):
    """Moves the teachers behind each step, and leaves out steps whose gradients are not finite."""

    def __init__(self, trainer: "CrossTeachingTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and self.trainer.model.config.burn_in_steps == 0:
            self.trainer.model.copy_to_teachers()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step_was_skipped = False
        if self.trainer.accelerator.scaler is not None:
            return  # which skips such steps itself
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        if not bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
            self.trainer.skip_step()

    def on_step_end(self, args, state, control, **kwargs):
        config = self.trainer.model.config
        if self.trainer.step_was_skipped or self.trainer.accelerator.optimizer_step_was_skipped:
            return
        if config.burn_in_steps and state.global_step == config.burn_in_steps:
            self.trainer.model.copy_to_teachers()
        elif state.global_step % config.ema_interval == 0:
            self.trainer.model.update_teachers()

    def on_save(self, args, state, control, **kwargs):
        if self.trainer.is_world_process_zero():
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if folder.is_dir():
                write_json(folder / RUN_FILE, self.trainer.run_settings())


class CrossTeachingTrainer(Trainer):
    """`Trainer` for `CrossTeachingModel`: burn-in, ramp, EMA teachers, and evaluation of every detector.

    Args:
        model: a `CrossTeachingModel`.
        args: `CrossTeachingTrainingArguments`; `torch_compile` compiles the detectors' networks.
        labeled_dataset: a detection data set (`hf_methods.cross_teaching.data_cross_teaching`).
        unlabeled_dataset: the like; its objects are not used. None for `arm="sup"`.
        eval_dataset: a labelled detection data set.
        views: how training views are made; default: squares of the detector's size with its normalisation.
        kwargs: passed to `Trainer`.

    Raises:
        ValueError: another kind of model, data that does not fit the model or the arm, steps that do not fit, FSDP or DeepSpeed.
    """

    model: Any

    def __init__(
        self,
        model: CrossTeachingModel,
        args: CrossTeachingTrainingArguments,
        labeled_dataset: Dataset,
        unlabeled_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        views: ViewSettings | None = None,
        **kwargs: Any,
    ):
        check_run(model, args, labeled_dataset, unlabeled_dataset, eval_dataset)
        if args.torch_compile:
            model.compile_networks(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
            args = copy.copy(args)
            args.torch_compile_backend = "no"  # `Trainer` would compile the model as a whole
        config = model.config
        self.views = views or default_views(model)
        self.samples_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        uses_unlabeled = config.arm != "sup"
        train_dataset = SemiSupervisedDetectionDataset(
            labeled=labeled_dataset,
            unlabeled=unlabeled_dataset if uses_unlabeled else None,
            num_samples=args.max_steps * self.samples_per_step,
            num_detectors=config.num_detectors,
            unlabeled_ratio=args.unlabeled_ratio,
            shared_unlabeled=config.shared_unlabeled_batch,
            views=self.views,
            seed=args.seed,
            with_truth=args.measure_pseudo_labels,
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            data_collator=DataCollatorForCrossTeaching(),
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "detectors are evaluated one by one, as whole ones: train with DDP, not with FSDP or DeepSpeed."
            )
        self.model_accepts_loss_kwargs = False
        self.step_was_skipped = False
        self.num_skipped_steps = 0
        self.num_unreadable_images = 0
        self._last_logs: dict[str, Tensor] = {}
        self._sums: dict[str, list[Tensor]] = {}
        self.add_callback(TeacherCallback(self))
        if config.num_detectors > 1:
            model.warn_if_alike()

    def run_settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        data: SemiSupervisedDetectionDataset = self.train_dataset  # type: ignore[assignment]
        return {
            "seed": self.args.seed,
            "max_steps": self.args.max_steps,
            "samples_per_step": self.samples_per_step,
            "unlabeled_ratio": data.unlabeled_ratio,
            "num_labeled": len(data.labeled),
            "num_unlabeled": 0 if data.unlabeled is None else len(data.unlabeled),
        }

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`.

        Raises:
            ValueError: the checkpoint is of another configuration, seed or data.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir or ".")
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no whole checkpoint to go on from.")
        if resume_from_checkpoint:
            check_resume(Path(resume_from_checkpoint), self.model.config, self.run_settings())
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum of the students' losses, from one forward pass."""
        config, step = self.model.config, self.state.global_step
        is_burn_in = step < config.burn_in_steps
        weight = 0.0 if is_burn_in else config.unsup_weight * ramp_weight(step, config, self.args.max_steps)
        unlabeled = None if is_burn_in or not inputs["unlabeled"] else inputs["unlabeled"]
        outputs = model(labeled=inputs["labeled"], unlabeled=unlabeled, unsup_weight=weight)
        self._last_logs = outputs.logs
        self.num_unreadable_images += inputs["num_unreadable"]
        for name, value in (self._count_objects(inputs["labeled"]) | outputs.logs).items():
            self._sums.setdefault(name, []).append(value.float())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    @staticmethod
    def _count_objects(labeled: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Objects of a labelled image, by student."""
        counts = [[len(target["class_labels"]) for target in batch["labels"]] for batch in labeled]
        return {f"objects_{number}": torch.tensor(sum(of) / len(of)) for number, of in enumerate(counts)}

    def floating_point_ops(self, inputs) -> int:
        """Not counted: the estimate is for one model on tokens."""
        return 0

    def skip_step(self) -> None:
        """Take this step's gradients away, and say which student's loss was not finite."""
        self.step_was_skipped = True
        self.num_skipped_steps += 1
        losses = {name: value for name, value in self._last_logs.items() if name.startswith("loss_")}
        bad = [name for name, value in losses.items() if not bool(value.isfinite())]
        for parameter in self.model.parameters():
            parameter.grad = None
        logger.warning(
            f"step {self.state.global_step}: gradients are not finite ({', '.join(bad) or 'the losses are'}); the step is "
            f"left out ({self.num_skipped_steps} so far)."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`, with the means of the students' figures since the last time."""
        if "loss" in logs and self._sums:
            steps = {name: torch.stack(values) for name, values in self._sums.items()}
            counts = {name: int(values.sum()) for name, values in steps.items() if name.startswith(COUNTS)}
            means = {name: values.nanmean().item() for name, values in steps.items() if name not in counts}
            self._sums.clear()
            logs |= {name: value for name, value in means.items() if math.isfinite(value)} | counts
            for name, count in counts.items():
                if name.startswith("right") and (used := counts[name.replace("right", "used")]):
                    logs[name.replace("right", "precision")] = count / used
            self._warn_of_pseudo_labels(means)
            logs["skipped_steps"] = self.num_skipped_steps
            if self.num_unreadable_images:
                logs["unreadable_images"] = self.num_unreadable_images
        super().log(logs, start_time)

    def _warn_of_pseudo_labels(self, means: dict[str, float]) -> None:
        """Tell once of too few pseudo labels, and of students that find many more objects than labelled images have."""
        pseudo = {name: value for name, value in means.items() if name.startswith("pseudo_")}
        if few := [name for name, value in pseudo.items() if value < FEW_PSEUDO_LABELS]:
            logger.warning_once(
                f"fewer than {FEW_PSEUDO_LABELS} pseudo labels an image ({', '.join(few)}): a longer burn-in or a "
                "lower `score_threshold` may help."
            )
        objects = {name: means[name.replace("pseudo", "objects")] for name in pseudo}
        if many := [name for name, value in pseudo.items() if value > MANY_PSEUDO_LABELS * max(1, objects[name])]:
            logger.warning_once(
                f"{pseudo[many[0]]:.1f} pseudo labels an image ({', '.join(many)}), but {objects[many[0]]:.1f} objects in a "
                "labelled one: the labels run away. Labelled and unlabelled images may differ in a way that the detectors "
                "see: give both the same augmentation (`strong_on_labeled=True`) and take both from one source."
            )

    def create_optimizer(self, model=None):
        """One optimizer; for each student a group with weight decay and one without."""
        if self.optimizer is None and self.args.optim == "sgd":
            decayed = set(self.get_decay_parameter_names(self.model))
            groups = []
            for number, student in enumerate(self.model.students):
                for decay in (True, False):
                    parameters = [
                        parameter
                        for name, parameter in student.named_parameters()
                        if parameter.requires_grad and (f"students.{number}.{name}" in decayed) == decay
                    ]
                    groups.append({"params": parameters, "weight_decay": self.args.weight_decay * decay})
            groups = [group for group in groups if group["params"]]
            momentum = self.args.momentum  # type: ignore[attr-defined]
            self.optimizer = torch.optim.SGD(groups, lr=self.args.learning_rate, momentum=momentum)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Warm-up, then a tenth at each of `lr_milestones`; without these as `Trainer`."""
        milestones = self.args.lr_milestones  # type: ignore[attr-defined]
        if self.lr_scheduler is None and milestones:
            warmup = self.args.get_warmup_steps(num_training_steps)

            def factor(step: int) -> float:
                return min(1.0, (step + 1) / max(1, warmup)) * 0.1 ** sum(step >= at for at in milestones)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
        return super().create_scheduler(num_training_steps, optimizer)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`, but broken off it leaves each file of the folder as it was, not half written."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or ".")
            aside = folder / f".{secrets.token_hex(4)}"
            try:
                self._save(str(aside))
                for path in aside.iterdir():
                    os.replace(path, folder / path.name)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Mean average precision of each student, each teacher and the teachers' ensemble.

        Of each: `map` and `map_50` (COCO, 101 points, torchmetrics) and `voc07_ap50` (11 points); and `map_50_mean`, the
        mean of the students. Processes share the images, each of which counts once.

        Raises:
            ValueError: no data set.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("`evaluate` needs an `eval_dataset`.")
        model = self.model
        indices = list(range(self.args.process_index, len(dataset), self.args.world_size))
        named = {f"student_{i}": student for i, student in enumerate(model.students)}
        named |= {f"teacher_{i}": teacher for i, teacher in enumerate(model.teachers)}
        detections, truths, num_bad = detect(
            named, dataset.select(indices), self.views, self.args.eval_batch_size, self.args.device
        )
        if self.args.world_size > 1:
            detections = {name: gather_object(rows) for name, rows in detections.items()}
            truths, num_bad = gather_object(truths), sum(gather_object([num_bad]))
        teachers = [detections[name] for name in detections if name.startswith("teacher")]
        detections["ensemble"] = weighted_boxes_fusion(teachers)
        metrics: dict[str, float] = {}
        for name, rows in detections.items():
            for key, value in average_precisions(rows, truths, len(label_names(dataset))).items():
                metrics[f"{metric_key_prefix}_{name}_{key}"] = value
        of_students = [metrics[f"{metric_key_prefix}_student_{i}_map_50"] for i in range(len(model.students))]
        metrics[f"{metric_key_prefix}_map_50_mean"] = float(np.mean(of_students))
        metrics[f"{metric_key_prefix}_images"] = len(truths)
        if num_bad:
            metrics[f"{metric_key_prefix}_unreadable_images"] = num_bad
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def default_views(model: CrossTeachingModel, **options: Any) -> ViewSettings:
    """Views of the size and normalisation of the model's detectors.

    Args:
        model: the model.
        options: fields of `ViewSettings` in place of these.
    """
    processor = build_processor(model.config.detector)  # type: ignore[arg-type]
    size = processor.size
    side = size["height"] if "height" in size else size["shortest_edge"]
    found = {"image_size": side, "mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    if not processor.do_normalize:
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if "height" not in size:
        found |= {"keep_aspect": True, "max_image_size": size["longest_edge"]}
    return ViewSettings(**{**found, **options})
