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
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image
from transformers import AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .configuration_cross_teaching import CrossTeachingConfig
from .detections_cross_teaching import PaddedDetections, map_boxes, pad_detections, stack_detections
from .detectors_cross_teaching import build_detector, build_processor, finish_composite
from .image_processing_cross_teaching import DetectionImageProcessor
from .modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection, sum_of_parts
from .modeling_inference_cross_teaching import CrossTeachingForObjectDetection
from .pseudo_labels_cross_teaching import as_detr, class_loss, count_right, padded_truth
from .rectification_cross_teaching import (
    BOX_RULES,
    Rectified,
    RectifiedAnchors,
    label_rectification,
    rectify_anchors,
)


logger = logging.get_logger(__name__)


@dataclass
class CrossTeachingOutput(ModelOutput):
    """Output of a training step.

    Args:
        loss (`torch.Tensor` of shape `()`): sum over the students.
        logs (`dict[str, torch.Tensor]`): scalars of each student i: `loss_sup_i`, `loss_unsup_i`, `pseudo_i` (pseudo labels
            an image), `score_i` (their mean score), `changed_i` (share that rectification replaced), and where the truth
            is given counts: `right_own_i` of `used_own_i` before, `right_i` of `used_i` after rectification.
    """

    loss: Tensor | None = None
    logs: dict | None = None


class CrossTeachingModel(PreTrainedModel):
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

    def _peers(self, number: int) -> list[int]:
        """Detectors whose predictions student `number` learns from, besides its own."""
        num = len(self.students)
        if self.config.arm == "self" or num == 1:
            return []
        if self.config.arm == "mutual":
            return [(number + 1) % num]
        return [other for other in range(num) if other != number]

    # On default boxes: section 1.3 of the method's description, SSD300.

    def _anchor_step(self, number: int, labeled: dict, batch: dict | None, logs: dict, cache: dict) -> tuple[Any, Any]:
        student: Any = self.students[number]
        images = labeled["pixel_values"]
        size = (images.shape[-2], images.shape[-1])
        num_labeled = len(images)
        if batch is not None:
            images = torch.cat([images, batch["strong"]])
        targets = student.prepare_targets(labeled["labels"], size)
        logits, offsets, anchors = student.ssd_heads(student.extract_features(images), size)
        losses = student.ssd_losses(logits[:num_labeled], offsets[:num_labeled], anchors, targets)
        loss_sup = sum_of_parts(losses, ("cls", "box"))
        if batch is None:
            return loss_sup, None
        logits, offsets = logits[num_labeled:], offsets[num_labeled:]
        pseudo = self._pseudo_anchors(number, logits.detach(), offsets.detach(), anchors, batch, size, logs, cache)
        count = pseudo.valid.sum().clamp_min(1)
        rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(pseudo.anchor)
        loss_cls = F.cross_entropy(logits[rows, pseudo.anchor].transpose(1, 2), pseudo.label, reduction="none")
        loss = (loss_cls * pseudo.valid).sum() / count
        if self.config.unsup_box_loss != "none":
            distance = (offsets[rows, pseudo.anchor] - pseudo.offsets).square().mean(-1)
            loss = loss + (distance * pseudo.valid).sum() / count
        return loss_sup, loss

    @torch.no_grad()
    def _pseudo_anchors(
        self, number: int, logits: Tensor, offsets: Tensor, anchors: Tensor, batch: dict, size, logs: dict, cache: dict
    ) -> RectifiedAnchors:
        def by_teacher(index: int) -> tuple[Tensor, Tensor]:
            if index not in cache:
                teacher: Any = self.teachers[index]
                cache[index] = teacher.ssd_heads(teacher.extract_features(batch["strong"]), size)[:2]
            return cache[index]

        peers = [by_teacher(peer) for peer in self._peers(number)]
        own = (logits, offsets) if self.config.own_source == "student" else by_teacher(number)
        if self.config.arm == "mutual" and peers:  # the peer's predictions as they are
            own = peers[0]
        peer_logits, peer_offsets = (torch.stack(parts) for parts in zip(*(peers or [own])))
        student: Any = self.students[number]
        boxes = student.decode(own[1], anchors, size)
        pseudo = rectify_anchors(
            *own, peer_logits, peer_offsets, boxes,
            score_threshold=self.config.score_threshold or 0.0,
            top_k=self.config.max_pseudo_boxes or 20,
            nms_threshold=self.config.nms_threshold,
            box_target="winner" if self.config.unsup_box_loss == "winner" else "peer",
        )  # fmt: skip
        chosen = boxes.gather(1, pseudo.anchor[..., None].expand(-1, -1, 4))
        scores = own[0].float().softmax(-1).amax(-1).gather(1, pseudo.anchor)
        changed = (pseudo.label != pseudo.own_label) & pseudo.valid
        self._log_pseudo(number, pseudo.valid, scores, changed, logs)
        if "truth" in batch:
            truth = padded_truth(batch["truth"])
            for when, labels in (("_own", pseudo.own_label), ("", pseudo.label)):
                logs[f"right{when}_{number}"] = count_right(chosen, labels - 1, pseudo.valid, truth)
                logs[f"used{when}_{number}"] = pseudo.valid.sum()
        return pseudo

    # On detections: sections 1.4 and 1.5, Faster R-CNN and other detectors.

    def _box_step(self, number: int, labeled: dict, batch: dict | None, logs: dict, cache: dict) -> tuple[Any, Any]:
        student: Any = self.students[number]
        strong: Any = None
        targets: list[dict[str, Tensor]] = []
        mask = None
        if batch is not None:
            targets = self._pseudo_boxes(number, batch, logs, cache)
            rows = [row for row, target in enumerate(targets) if len(target["labels"])]
            targets = [targets[row] for row in rows]
            strong = batch["strong"][rows]
            mask = batch["strong_mask"][rows] if "strong_mask" in batch else None
        full = self.config.unsup_box_loss == "full"
        if not isinstance(student, TorchvisionDetectorForObjectDetection):
            loss_sup = student(**labeled).loss
            if strong is None or not targets:
                return loss_sup, 0 * loss_sup
            labels = [as_detr(target, strong.shape[-2:]) for target in targets]
            output = student(pixel_values=strong, labels=labels, **({} if mask is None else {"pixel_mask": mask}))
            return loss_sup, output.loss if full else class_loss(output.loss_dict)
        images, size = labeled["pixel_values"], labeled["pixel_values"].shape[-2:]
        labels = student.prepare_targets(labeled["labels"], (size[0], size[1]))
        num_labeled = len(images)
        together = strong is not None and targets and strong.shape[-2:] == size
        features = student.extract_features(torch.cat([images, strong]) if together else images)
        own = {name: maps[:num_labeled] for name, maps in features.items()}
        losses = student.losses(own, images, labels, labeled.get("pixel_mask"))
        loss_sup = sum_of_parts(losses, ("cls", "box"))
        if strong is None or not targets:
            return loss_sup, 0 * loss_sup
        if together:
            features = {name: maps[num_labeled:] for name, maps in features.items()}
        else:
            features = student.extract_features(strong)
        targets = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        losses = student.losses(features, strong, targets, mask, negatives=self.config.negatives == "all")
        return loss_sup, sum_of_parts(losses, ("cls", "box") if full else ("cls",))

    @torch.no_grad()
    def _pseudo_boxes(self, number: int, batch: dict, logs: dict, cache: dict) -> list[dict[str, Tensor]]:
        """Pseudo labels of student `number` in the strong views: dict(boxes xyxy in pixels, labels from 0) an image."""

        def by_teacher(index: int) -> PaddedDetections:
            if index not in cache:
                cache[index] = self.predict(
                    self.teachers[index], batch["weak"], batch.get("weak_mask"), self.config.score_threshold or 0.0
                )
            return cache[index]

        peers = [by_teacher(peer) for peer in self._peers(number)]
        own = peers[0] if self.config.arm == "mutual" and peers else by_teacher(number)
        pseudo: PaddedDetections | Rectified = own
        changed = torch.zeros_like(own.valid)
        if self.config.arm == "ct" and peers:
            others = stack_detections(peers)
            options = {**BOX_RULES[self.config.rule], **(self.config.rule_options or {})}
            rectified = label_rectification(own, others, **options)
            pseudo, changed = rectified, rectified.source > 0
        self._log_pseudo(number, pseudo.valid, pseudo.scores, changed, logs)
        size = (batch["strong"].shape[-2], batch["strong"].shape[-1])
        boxes = clip_boxes_to_image(map_boxes(pseudo.boxes, batch["weak_to_strong"]), size)
        valid = pseudo.valid & (boxes[..., 2:] - boxes[..., :2] > 1).all(-1)  # what left the view
        if self.config.rectified_threshold is not None:
            valid = valid & (pseudo.scores > self.config.rectified_threshold)
        if "truth" in batch:
            truth = padded_truth(batch["truth"])
            own_boxes = clip_boxes_to_image(map_boxes(own.boxes, batch["weak_to_strong"]), size)
            logs[f"right_own_{number}"] = count_right(own_boxes, own.labels, own.valid, truth)
            logs[f"used_own_{number}"] = own.valid.sum()
            logs[f"right_{number}"] = count_right(boxes, pseudo.labels, valid, truth)
            logs[f"used_{number}"] = valid.sum()
        return [
            {"boxes": corners[keep], "labels": labels[keep]}
            for corners, labels, keep in zip(boxes, pseudo.labels, valid)
        ]

    @torch.no_grad()
    def predict(
        self, detector: nn.Module, pixel_values: Tensor, pixel_mask: Tensor | None, threshold: float
    ) -> PaddedDetections:
        """Detections of a detector in eval mode, in pixels of `pixel_values`; labels from 0.

        Args:
            detector: a student or teacher; its mode comes back as it was.
            pixel_values: (B, 3, H, W).
            pixel_mask: (B, H, W) or None.
            threshold: scores must be above it.
        """
        self._processor = self._processor or build_processor(detector.config)  # type: ignore[arg-type]
        training = detector.training
        detector.eval()
        options: dict[str, Any] = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        outputs = detector(pixel_values=pixel_values, **options)
        detector.train(training)
        height, width = pixel_values.shape[-2:]
        sizes = torch.tensor([[height, width]] * len(pixel_values), device=pixel_values.device)
        if pixel_mask is not None and isinstance(detector, TorchvisionDetectorForObjectDetection):
            sizes = torch.stack([pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0, :].sum(1)], 1)
        options = {}
        if isinstance(self._processor, DetectionImageProcessor) and detector.config.is_ssd:  # type: ignore[union-attr]
            options = {"nms_threshold": self.config.nms_threshold, "max_detections": self.config.max_pseudo_boxes}
        detections = self._processor.post_process_object_detection(outputs, threshold, sizes, **options)
        for image in detections:
            image["boxes"] = clip_boxes_to_image(image["boxes"], (height, width))
        return pad_detections(detections)[0]

    def _log_pseudo(self, number: int, valid: Tensor, scores: Tensor, changed: Tensor, logs: dict) -> None:
        count = valid.sum()
        logs[f"pseudo_{number}"] = count / max(1, len(valid))
        logs[f"score_{number}"] = (scores * valid).sum() / count
        logs[f"changed_{number}"] = changed.sum() / count


def _comparable(config: PreTrainedConfig) -> dict[str, Any]:
    """What must be equal in detectors that teach each other."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("_name_or_path", "architectures", "transformers_version", "auto_map", "dtype")
    }
