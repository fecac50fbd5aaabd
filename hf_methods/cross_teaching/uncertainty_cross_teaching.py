# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The published rule for COCO, which Soft Teacher began: which boxes a Faster R-CNN is certain of, and losses that use it.

A box that the second stage refines to one place from wherever it starts is certain, whatever the score of its label.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from .detections_cross_teaching import PaddedDetections
from .modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection
from .rectification_cross_teaching import Rectified


NUM_JITTERS = 10
JITTER_SCALE = 0.06  # standard deviation of a coordinate, as a share of the box's width or height


@torch.no_grad()
def box_uncertainty(
    detector: TorchvisionDetectorForObjectDetection,
    features: dict[str, Tensor],
    image_sizes: list[tuple[int, int]],
    detections: PaddedDetections,
    noise: Tensor,
) -> Tensor:
    """How much boxes move when they are jittered and refined again.

    Each box is moved `NUM_JITTERS` times, refined by the offsets of its label and clipped to its image. Its uncertainty is
    the standard deviation of the refined boxes as a share of the sides of their mean, itself the mean of four coordinates.

    Args:
        detector: a Faster R-CNN.
        features: of its `extract_features`.
        image_sizes: height and width of each image, without its padding.
        detections: (B, N), xyxy in pixels, labels from 0.
        noise: (NUM_JITTERS, B, N, 4), standard normal.

    Returns:
        (B, N) float32, infinite where there is no box.
    """
    valid = detections.valid
    uncertainty = torch.full(valid.shape, torch.inf, device=valid.device)
    counts = valid.sum(-1).tolist()
    if not sum(counts):
        return uncertainty
    boxes = detections.boxes[valid].float()  # (n, 4)
    jittered = boxes + JITTER_SCALE * _sides(boxes) * noise[:, valid]  # (J, n, 4)
    regions = [of_image.flatten(0, 1) for of_image in jittered.split(counts, 1)]
    _, offsets = detector.classify_regions(features, image_sizes, regions)
    refined = detector.detector.roi_heads.box_coder.decode(
        offsets, regions
    )  # (J n, num_labels + 1, 4), image by image
    of_label = []
    rows = zip(refined.split([len(noise) * count for count in counts]), detections.labels[valid].split(counts))
    for (of_image, labels), size in zip(rows, image_sizes):
        of_image = of_image.unflatten(0, (len(noise), len(labels)))
        of_image = of_image[:, torch.arange(len(labels), device=labels.device), labels + 1]  # (J, n of the image, 4)
        of_label.append(clip_boxes_to_image(of_image, size))
    moved = torch.cat(of_label, 1)  # (J, n, 4)
    uncertainty[valid] = (moved.std(0) / _sides(moved.mean(0))).mean(-1)
    return uncertainty


def _sides(boxes: Tensor) -> Tensor:
    """Width, height, width, height (n, 4) of boxes (n, 4), at least a pixel."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(1)[:, [0, 1, 0, 1]]


def rectified_uncertainty(rectified: Rectified, uncertainties: list[Tensor]) -> Tensor:
    """The uncertainty that came with each rectified box.

    Args:
        rectified: (B, N').
        uncertainties: (B, N_k), of the detections of the own detector and of each of the others.

    Returns:
        (B, N').
    """
    num_rows = max(values.shape[-1] for values in uncertainties)
    padded = [pad(values, (0, num_rows - values.shape[-1])) for values in uncertainties]
    return torch.cat(padded, -1).gather(-1, rectified.source * num_rows + rectified.row)


def uncertainty_losses(
    student: TorchvisionDetectorForObjectDetection,
    features: dict[str, Tensor],
    images: ImageList,
    targets: list[dict[str, Tensor]],
    background_scores: Callable[[list[Tensor]], Tensor],
) -> dict[str, Tensor]:
    """The four losses of Faster R-CNN on pseudo labels of two kinds.

    Confident labels train the RPN and the classification of the second stage, where each background region is weighted by
    the score that a teacher gives it as background: objects that the labels miss do not count as background. Certain labels
    train the boxes of the second stage, for which regions are sampled anew.

    Args:
        student: a Faster R-CNN.
        features: of its `extract_features`.
        images: batch and the size of each image.
        targets: one dict(boxes (n, 4) xyxy in pixels, labels (n,) from 1, confident and certain (n,) bool) an image.
        background_scores: from regions (n, 4) an image to the teacher's background scores, one a region of them all.
    """
    confident, certain = (
        [{name: target[name][target[which]] for name in ("boxes", "labels")} for target in targets]
        for which in ("confident", "certain")
    )
    heads = student.detector.roi_heads
    proposals, losses = student.rpn_losses(features, images, confident)
    regions, _, of_image, _ = heads.select_training_samples(proposals, confident)
    labels = torch.cat(of_image)
    class_logits, _ = student.classify_regions(features, images.image_sizes, regions)
    weights = torch.where(labels > 0, 1.0, background_scores(regions))
    cls_loss = (weights * student.region_losses(class_logits, labels)).sum() / weights.sum().clamp_min(1)
    regions, _, of_image, offsets = heads.select_training_samples(proposals, certain)
    _, box_loss = fastrcnn_loss(*student.classify_regions(features, images.image_sizes, regions), of_image, offsets)
    return {**losses, "loss_classifier": cls_loss, "loss_box_reg": box_loss}
