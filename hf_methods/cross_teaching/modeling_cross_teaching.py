# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detectors that teach each other: students, their EMA teachers, and the losses of one step.

Two modes, as published: on SSD's default boxes (`mode="anchor"`) and on teachers' detections (`mode="box"`), the latter for
every detector that `AutoModelForObjectDetection` knows. Written against transformers 5.24.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .anchor_step_cross_teaching import AnchorStepMixin
from .box_step_cross_teaching import BoxStepMixin
from .configuration_cross_teaching import CrossTeachingConfig
from .detectors_cross_teaching import build_detector, finish_composite
from .modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection
from .modeling_inference_cross_teaching import CrossTeachingForObjectDetection


logger = logging.get_logger(__name__)


@dataclass
class CrossTeachingOutput(ModelOutput):
    """Output of a training step.

    Args:
        loss (`torch.Tensor` of shape `()`): sum over the students.
        logs (`dict[str, torch.Tensor]`): scalars of each student i: `loss_sup_i`, `loss_unsup_i`, `pseudo_i` (pseudo labels
            an image), `score_i` (their mean score), `changed_i` (share that rectification replaced); in box mode, an image
            each, `unsound_i` (boxes of the teachers without area or with NaN, left out before rectification), `dropped_i`
            and `added_i` (own boxes that the rule drops, peers' that it adds), and with `unsup_box_loss="uncertainty"`
            `certain_i` (labels of the box loss); and where the truth is given counts: `right_own_i` of `used_own_i`
            before, `right_i` of `used_i` after rectification.
    """

    loss: Tensor | None = None
    logs: dict | None = None


class CrossTeachingModel(AnchorStepMixin, BoxStepMixin, PreTrainedModel):
    """M students and their EMA teachers, of one kind and of different initial weights.

    The teachers are not trained: `update_teachers` moves them. One forward pass makes all losses of a step, so that it can
    be wrapped for several processes.

    Example:

    ```python
    >>> config = CrossTeachingConfig(detector={"model_type": "cross_teaching_detector", "architecture": "ssd_tiny"})
    >>> model = CrossTeachingModel(config)
    >>> model.export_detector(0).save_pretrained("detector")
    ```
    """

    config: CrossTeachingConfig
    config_class = CrossTeachingConfig
    main_input_name = "labeled"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: CrossTeachingConfig):
        super().__init__(config)
        students = []
        for seed in config.seeds or []:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                students.append(build_detector(copy.deepcopy(config.detector)))  # type: ignore[arg-type]
        self.students = nn.ModuleList(students)
        self.teachers = nn.ModuleList(copy.deepcopy(student) for student in students)
        self.teachers.requires_grad_(False)
        self._processor: Any = None
        finish_composite(self, students=self.students, teachers=self.teachers)
        self.train(False)

    def _init_weights(self, module):
        """Nothing: every weight belongs to a detector, which initialises it."""

    @classmethod
    def from_detectors(cls, detectors: Sequence[PreTrainedModel | str], **options: Any) -> "CrossTeachingModel":
        """Students from trained detectors, for example of a burn-in; teachers are copies.

        Args:
            detectors: models, folders or Hub ids, of one kind.
            options: fields of `CrossTeachingConfig`.

        Raises:
            ValueError: none, or detectors that differ in more than their weights.
        """
        if not detectors:
            raise ValueError("`detectors` must have at least one detector.")
        models = [
            AutoModelForObjectDetection.from_pretrained(detector) if isinstance(detector, str) else detector
            for detector in detectors
        ]
        first = models[0].config
        for number, model in enumerate(models[1:], 1):
            own, other = _comparable(first), _comparable(model.config)
            if different := sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key)):
                values = ", ".join(f"{key}: {own.get(key)!r} and {other.get(key)!r}" for key in different)
                raise ValueError(f"detectors 0 and {number} must have one configuration, but differ in {values}.")
        config = CrossTeachingConfig(detector=copy.deepcopy(first), num_detectors=len(models), **options)
        result = cls(config)
        for student, model in zip(result.students, models):
            student.load_state_dict(model.state_dict())
        result.copy_to_teachers()
        result.warn_if_alike()
        return result

    def warn_if_alike(self) -> bool:
        """Whether two students have the same weights, which a warning tells: they could not disagree."""
        weights = [torch.cat([p.detach().flatten()[:1000] for p in student.parameters()]) for student in self.students]
        alike = any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
        if alike:
            logger.warning("two students start from the same weights: they will hardly disagree. Give other `seeds`.")
        return alike

    def export_detector(self, index: int = 0, ema: bool = True) -> PreTrainedModel:
        """One detector by itself, as any other of its kind.

        Args:
            index: which, from 0.
            ema: its teacher (the average), else the student.

        Raises:
            ValueError: no such detector.
        """
        if not 0 <= index < len(self.students):
            raise ValueError(f"`index` must be between 0 and {len(self.students) - 1}, got {index}.")
        detector = copy.deepcopy(self.students[index]).eval()
        if ema:
            detector.load_state_dict(self.teachers[index].state_dict())
        detector.config.architectures = [type(detector).__name__]  # type: ignore[union-attr]
        if isinstance(
            detector, TorchvisionDetectorForObjectDetection
        ):  # its code goes with it, also without the package
            type(detector).register_for_auto_class("AutoModelForObjectDetection")
            type(detector.config).register_for_auto_class()
        return detector  # type: ignore[return-value]

    def for_inference(self, ema: bool = True) -> CrossTeachingForObjectDetection:
        """All detectors in one model that the pipelines run, without what only training needs.

        Args:
            ema: the teachers (averages), else the students.
        """
        config = copy.deepcopy(self.config)
        config.architectures = [CrossTeachingForObjectDetection.__name__]
        if hasattr(config, "auto_map"):  # of this class, whose file will not travel
            del config.auto_map
        model = CrossTeachingForObjectDetection(config)
        model.detectors.load_state_dict((self.teachers if ema else self.students).state_dict())
        CrossTeachingForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args: Any, **kwargs: Any):
        """As the base class.

        Raises:
            ValueError: a model of `for_inference`, which has no students.
        """
        config = kwargs.get("config")
        if config is None and pretrained_model_name_or_path is not None:
            config = CrossTeachingConfig.from_pretrained(pretrained_model_name_or_path)
        if CrossTeachingForObjectDetection.__name__ in (getattr(config, "architectures", None) or []):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds detectors without their students: load it with "
                "AutoModelForObjectDetection. To train on: CrossTeachingModel.from_detectors(list(model.detectors))."
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def train(self, mode: bool = True) -> "CrossTeachingModel":
        """Train mode for the students only: teachers predict."""
        super().train(mode)
        self.teachers.eval()
        return self

    def compile_networks(self, **options: Any) -> None:
        """Compile the detectors' networks in place.

        Targets, pseudo labels and losses stay as they are: their shapes follow the number of objects, so that they would
        break the graph and be compiled anew in many steps.

        Args:
            options: of `torch.compile`, such as `mode`.
        """
        for detector in [*self.students, *self.teachers]:
            is_torchvision = isinstance(detector, TorchvisionDetectorForObjectDetection)
            for network in detector.networks() if is_torchvision else [detector.base_model]:
                network.compile(**options)

    @torch.no_grad()
    def copy_to_teachers(self) -> None:
        """Teachers become copies of their students."""
        self.update_teachers(0.0)

    @torch.no_grad()
    def update_teachers(self, decay: float | None = None) -> None:
        """teacher <- decay * teacher + (1 - decay) * student.

        Args:
            decay: default `config.ema_decay`. Whole numbers, and with `config.ema_buffers=False` all buffers, are copied.
        """
        decay = self.config.ema_decay if decay is None else decay
        assert decay is not None
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        for student, teacher in zip(self.students, self.teachers):
            averages += list(teacher.parameters())
            currents += list(student.parameters())
            for average, current in zip(teacher.buffers(), student.buffers()):
                if average.is_floating_point() and self.config.ema_buffers:
                    averages.append(average)
                    currents.append(current)
                else:
                    average.copy_(current)
        if decay == 0:
            torch._foreach_copy_(averages, currents)
        else:
            torch._foreach_lerp_(averages, currents, 1 - decay)

    def forward(
        self,
        labeled: list[dict[str, Any]],
        unlabeled: list[dict[str, Any]] | None = None,
        unsup_weight: float = 0.0,
    ) -> CrossTeachingOutput:
        """The losses of one step.

        Args:
            labeled: for each student dict(pixel_values (B, 3, H, W), labels (as DETR's), pixel_mask optional).
            unlabeled: for each student, or one if shared, dict(weak, strong (U, 3, H, W), weak_to_strong (U, 4), and
                optional weak_mask, strong_mask, truth). None, or `arm="sup"`: supervised losses only.
            unsup_weight: weight of the unsupervised losses.

        Raises:
            ValueError: batches for another number of students.
        """
        num = len(self.students)
        if len(labeled) != num or unlabeled and len(unlabeled) not in (1, num):
            raise ValueError(
                f"{num} students need {num} labelled and {num} (or one shared) unlabelled batches, got {len(labeled)} and "
                f"{len(unlabeled or [])}."
            )
        logs: dict[str, Tensor] = {}
        step = self._anchor_step if self.config.mode == "anchor" else self._box_step
        batches = list(unlabeled or []) if self.config.arm != "sup" else []
        shared = len(batches) == 1 and num > 1
        batches = batches * num if shared else batches
        cache: dict[Any, Any] = {}  # teachers' predictions on a shared batch
        total = []
        for number in range(num):
            batch = batches[number] if batches else None
            losses: tuple[Any, Any] = step(number, labeled[number], batch, logs, cache if shared else {})
            loss_sup, loss_unsup = losses
            logs[f"loss_sup_{number}"] = loss_sup.detach()
            total.append(loss_sup)
            if batch is not None:
                logs[f"loss_unsup_{number}"] = loss_unsup.detach()
                total.append(unsup_weight * loss_unsup)
        return CrossTeachingOutput(loss=torch.stack(total).sum(), logs=logs)


def _comparable(config: PreTrainedConfig) -> dict[str, Any]:
    """What must be equal in detectors that teach each other."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("_name_or_path", "architectures", "transformers_version", "auto_map", "dtype")
    }
