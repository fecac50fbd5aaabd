# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Weighted boxes fusion: the detections of several models as one set."""

import math

from torch import Tensor
from transformers.utils import logging

from .detections_cross_teaching import check_detections, is_sound_box


logger = logging.get_logger(__name__)


def weighted_boxes_fusion(
    detections: list[list[dict[str, Tensor]]],
    iou_threshold: float = 0.6,
    skip_score: float = 1e-4,
    weights: list[float] | None = None,
) -> list[dict[str, Tensor]]:
    """Fuse the detections of several models into one set (Solovyev et al., arXiv 1910.13302); defaults of CrossRectify.

    In the order of scores, a box joins the fused box of its label with the highest IoU above `iou_threshold`, or begins a
    new one. A fused box is the mean of its boxes, weighted by their scores; its score is their mean times
    min(number of boxes, W) / W, with W the sum of the weights, so that what only one model saw counts less.

    Args:
        detections: for each model, one dict(boxes (n, 4) xyxy, scores (n,), labels (n,)) an image.
        iou_threshold: IoU with a fused box above which a box joins it.
        skip_score: boxes with a score below it are left out.
        weights: of the models; default 1 each.

    Returns:
        One dict an image, sorted by score, with the dtypes and device of the first model's. Boxes without area or with NaN
        are left out with a warning.

    Raises:
        ValueError: no model, another number of images or weights, a number out of range, or detections without the three
            fields.
    """
    if not detections:
        raise ValueError("`detections` must have those of at least one model.")
    if lengths := [len(model) for model in detections if len(model) != len(detections[0])]:
        raise ValueError(f"all models must have the same images, got {len(detections[0])} and {lengths[0]}.")
    weights = [1.0] * len(detections) if weights is None else weights
    if len(weights) != len(detections) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"`weights` must be {len(detections)} positive numbers, got {weights}.")
    if not 0 <= iou_threshold <= 1 or not math.isfinite(skip_score):
        raise ValueError(
            f"`iou_threshold` must be between 0 and 1 and `skip_score` finite, got {iou_threshold} and {skip_score}."
        )
    for model in detections:
        check_detections(model)
    fused = [_fuse_image(models, iou_threshold, skip_score, weights) for models in zip(*detections)]
    if dropped := sum(count for _, count in fused):
        logger.warning(
            f"`weighted_boxes_fusion` left out {dropped} boxes without area or with numbers that are not finite."
        )
    return [image for image, _ in fused]


def _fuse_image(
    models, iou_threshold: float, skip_score: float, weights: list[float]
) -> tuple[dict[str, Tensor], int]:
    """The fused detections of an image, and how many boxes were no boxes."""
    rows, dropped = [], 0  # (weighted score, label, box)
    for image, weight in zip(models, weights):
        sound = is_sound_box(image["boxes"], image["scores"])
        dropped += len(sound) - int(sound.sum())
        sound = sound & (image["scores"] >= skip_score)
        scores, labels = (image["scores"][sound].double() * weight).tolist(), image["labels"][sound].tolist()
        rows += list(zip(scores, labels, image["boxes"][sound].double().tolist()))
    rows.sort(key=lambda row: -row[0])
    clusters: dict[int, list[list]] = {}  # of each label: [sum of scores, number, sum of score * box, fused box]
    for score, label, box in rows:
        of_label = clusters.setdefault(label, [])
        overlaps = [_iou(box, cluster[3]) for cluster in of_label]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)  # the first of equals
        if best is None or overlaps[best] <= iou_threshold:
            of_label.append([score, 1, [score * x for x in box], box])
        else:
            cluster = of_label[best]
            cluster[0], cluster[1] = cluster[0] + score, cluster[1] + 1
            cluster[2] = [total + score * x for total, x in zip(cluster[2], box)]
            cluster[3] = [x / cluster[0] for x in cluster[2]] if cluster[0] > 0 else cluster[3]
    total = sum(weights)
    fused = [
        (scores / number * min(number, total) / total, label, box)
        for label, of_label in clusters.items()
        for scores, number, _, box in of_label
    ]
    fused.sort(key=lambda row: -row[0])
    first = models[0]
    detections = {
        "boxes": first["boxes"].new_tensor([box for *_, box in fused]).reshape(-1, 4),
        "scores": first["scores"].new_tensor([score for score, *_ in fused]),
        "labels": first["labels"].new_tensor([label for _, label, _ in fused]),
    }
    return detections, dropped


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)
