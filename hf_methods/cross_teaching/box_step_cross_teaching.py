# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The losses of one student on its teachers' detections: Faster R-CNN and other detectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from .configuration_cross_teaching import CrossTeachingConfig
from .detections_cross_teaching import PaddedDetections, inverse_map, map_boxes, pad_detections, stack_detections
from .detectors_cross_teaching import build_processor
from .image_processing_cross_teaching import DetectionImageProcessor
from .modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection, image_list, sum_of_parts
from .pseudo_labels_cross_teaching import as_detr, class_loss, count_right, log_pseudo_labels, padded_truth
from .rectification_cross_teaching import BOX_RULES, Rectified, label_rectification
from .uncertainty_cross_teaching import NUM_JITTERS, box_uncertainty, rectified_uncertainty, uncertainty_losses


class WeakView(NamedTuple):
    """What a teacher makes of the weak views of a batch."""

    detections: PaddedDetections
    num_unsound: int
    features: dict[str, Tensor] | None  # these two of `unsup_box_loss="uncertainty"` only
    uncertainty: Tensor | None


class BoxStepMixin:
    """What `CrossTeachingModel` does in a step with `mode="box"`."""

    config: CrossTeachingConfig
    students: nn.ModuleList
    teachers: nn.ModuleList
    _processor: Any

    def _box_step(self, number: int, labeled: dict, batch: dict | None, logs: dict, cache: dict) -> tuple[Any, Any]:
        student: Any = self.students[number]
        strong, mask, targets, rows = None, None, [], []
        if batch is not None:
            targets = self._pseudo_boxes(number, batch, logs, cache)
            rows = [row for row, target in enumerate(targets) if len(target["labels"])]
            targets = [targets[row] for row in rows]
            strong = batch["strong"][rows] if rows else None
            mask = batch["strong_mask"][rows] if rows and "strong_mask" in batch else None
        if not isinstance(student, TorchvisionDetectorForObjectDetection):
            loss_sup = student(**labeled).loss
            if strong is None:
                return loss_sup, 0 * loss_sup
            return loss_sup, self._transformer_loss(student, strong, mask, targets)
        loss_sup, features = self._supervised_loss(student, labeled, strong)
        if strong is None:
            return loss_sup, 0 * loss_sup
        targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        if self.config.unsup_box_loss == "uncertainty":
            assert batch is not None
            score = self._background_scores(number, batch, rows, cache)
            losses = uncertainty_losses(student, features, image_list(strong, mask), targets, score)
            return loss_sup, sum_of_parts(losses, ("cls", "box"))
        losses = student.losses(features, strong, targets, mask, negatives=self.config.negatives == "all")
        return loss_sup, sum_of_parts(losses, ("cls", "box") if self.config.unsup_box_loss == "full" else ("cls",))

    def _transformer_loss(self, student: Any, strong: Tensor, mask: Tensor | None, targets: list[dict]) -> Tensor:
        """Loss of a DETR or its kin on pseudo labels."""
        labels = [as_detr(target, strong.shape[-2:]) for target in targets]
        output = student(pixel_values=strong, labels=labels, **({} if mask is None else {"pixel_mask": mask}))
        return output.loss if self.config.unsup_box_loss == "full" else class_loss(output.loss_dict)

    @staticmethod
    def _supervised_loss(
        student: TorchvisionDetectorForObjectDetection, labeled: dict, strong: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on labelled images, and features of the strong views, in one pass where their sizes are the same."""
        images, size = labeled["pixel_values"], labeled["pixel_values"].shape[-2:]
        labels = student.prepare_targets(labeled["labels"], (size[0], size[1]))
        inputs = images if strong is None or strong.shape[-2:] != size else torch.cat([images, strong])
        features = student.extract_features(inputs)
        own = {name: maps[: len(images)] for name, maps in features.items()}
        losses = student.losses(own, images, labels, labeled.get("pixel_mask"))
        if len(inputs) > len(images):
            features = {name: maps[len(images) :] for name, maps in features.items()}
        elif strong is not None:
            features = student.extract_features(strong)
        return sum_of_parts(losses, ("cls", "box")), features

    def _teachers_of(self, number: int) -> list[int]:
        """The teachers that student `number` learns from; what they see is rectified in this order."""
        peers = self.config.peers(number)
        if self.config.arm == "mutual" and peers:  # the peer's predictions as they are
            return peers
        return [number, *peers]

    @torch.no_grad()
    def _pseudo_boxes(self, number: int, batch: dict, logs: dict, cache: dict) -> list[dict[str, Tensor]]:
        """Pseudo labels of student `number` in the strong views.

        Returns:
            One dict(boxes (n, 4) xyxy in pixels, labels from 0, confident and certain (n,) bool) an image: which train the
            classification, and the boxes.
        """
        views = [self._weak_view(index, batch, cache) for index in self._teachers_of(number)]
        own, uncertainty = views[0].detections, views[0].uncertainty
        pseudo: PaddedDetections | Rectified = own
        changed = torch.zeros_like(own.valid)
        if len(views) > 1:
            others = stack_detections([view.detections for view in views[1:]])
            options = {**BOX_RULES[self.config.rule], **(self.config.rule_options or {})}
            pseudo = rectified = label_rectification(own, others, **options)
            changed = rectified.source > 0
            if uncertainty is not None:
                uncertainty = rectified_uncertainty(rectified, [view.uncertainty for view in views])  # type: ignore[misc]
        log_pseudo_labels(logs, number, pseudo.valid, pseudo.scores, changed)
        num_images, num_own = own.valid.shape
        logs[f"unsound_{number}"] = torch.tensor(sum(view.num_unsound for view in views) / max(1, num_images))
        logs[f"dropped_{number}"] = (own.valid & ~pseudo.valid[:, :num_own]).sum() / max(1, num_images)
        logs[f"added_{number}"] = pseudo.valid[:, num_own:].sum() / max(1, num_images)
        size = (batch["strong"].shape[-2], batch["strong"].shape[-1])
        boxes = clip_boxes_to_image(map_boxes(pseudo.boxes, batch["weak_to_strong"]), size)
        valid = pseudo.valid & (boxes[..., 2:] - boxes[..., :2] > 1).all(-1)  # what left the view
        confident = certain = valid
        if self.config.rectified_threshold is not None:
            confident = certain = valid & (pseudo.scores > self.config.rectified_threshold)
        if uncertainty is not None:
            certain = valid & (uncertainty < self.config.max_box_uncertainty)
            logs[f"certain_{number}"] = certain.sum() / max(1, num_images)
        if "truth" in batch:
            truth = padded_truth(batch["truth"])
            own_boxes = clip_boxes_to_image(map_boxes(own.boxes, batch["weak_to_strong"]), size)
            logs[f"right_own_{number}"] = count_right(own_boxes, own.labels, own.valid, truth)
            logs[f"used_own_{number}"] = own.valid.sum()
            logs[f"right_{number}"] = count_right(boxes, pseudo.labels, confident, truth)
            logs[f"used_{number}"] = confident.sum()
        names, fields = ("boxes", "labels", "confident", "certain"), (boxes, pseudo.labels, confident, certain)
        keeps = confident | certain
        return [dict(zip(names, (value[keep] for value in image))) for keep, *image in zip(keeps, *fields)]

    def _weak_view(self, index: int, batch: dict, cache: dict) -> WeakView:
        """Detections of a teacher in the weak views; made once for all students that share the batch."""
        if index in cache:
            return cache[index]
        teacher: Any = self.teachers[index]
        images, mask = batch["weak"], batch.get("weak_mask")
        needs_uncertainty = self.config.unsup_box_loss == "uncertainty"
        features = teacher.extract_features(images) if needs_uncertainty else None
        options = {} if features is None else {"features": features}
        detections, num_unsound = self.predict(teacher, images, mask, self.config.score_threshold or 0.0, **options)
        uncertainty = None
        if features is not None:
            noise = torch.randn(NUM_JITTERS, *detections.boxes.shape, device=images.device)
            sizes = image_list(images, mask).image_sizes
            uncertainty = box_uncertainty(teacher, features, sizes, detections, noise)
        cache[index] = WeakView(detections, num_unsound, features, uncertainty)
        return cache[index]

    def _background_scores(
        self, number: int, batch: dict, rows: list[int], cache: dict
    ) -> Callable[[list[Tensor]], Tensor]:
        """Of regions in the strong views `rows`, (n, 4) xyxy in pixels an image: the own teacher's scores as background."""
        index = self._teachers_of(number)[0]
        teacher: Any = self.teachers[index]
        of_all = self._weak_view(index, batch, cache).features
        assert of_all is not None
        features = {name: maps[rows] for name, maps in of_all.items()}
        every_size = image_list(batch["weak"], batch.get("weak_mask")).image_sizes
        sizes = [every_size[row] for row in rows]
        to_weak = inverse_map(batch["weak_to_strong"][rows])

        @torch.no_grad()
        def score(regions: list[Tensor]) -> Tensor:
            in_weak = [
                clip_boxes_to_image(map_boxes(boxes, image), size)
                for boxes, image, size in zip(regions, to_weak, sizes)
            ]
            logits, _ = teacher.classify_regions(features, sizes, in_weak)
            return logits.softmax(-1)[:, 0]

        return score

    @torch.no_grad()
    def predict(
        self,
        detector: nn.Module,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        threshold: float,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[PaddedDetections, int]:
        """Detections of a detector in eval mode, in pixels of `pixel_values`; labels from 0.

        Args:
            detector: a student or teacher; its mode comes back as it was.
            pixel_values: (B, 3, H, W).
            pixel_mask: (B, H, W) or None.
            threshold: scores must be above it.
            features: of a torchvision detector's `extract_features`, where they are there already.

        Returns:
            As `pad_detections`: the detections, and how many were left out as boxes without area or with NaN.
        """
        self._processor = self._processor or build_processor(detector.config)  # type: ignore[arg-type]
        training = detector.training
        detector.eval()
        options: dict[str, Any] = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        options |= {} if features is None else {"features": features}
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
        return pad_detections(detections)
