# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detections of a batch of images as tensors of one shape, and what all detectors need of boxes.

Ragged detections are lists of `dict(boxes (n, 4) xyxy, scores (n,), labels (n,))`, as torchvision gives them; `PaddedDetections`
hold the same in one tensor each, on which functions neither wait for the device nor change shapes with the data.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PaddedDetections(NamedTuple):
    """Detections of a batch, padded to one number N: `valid` says which are there."""

    boxes: Tensor  # (..., N, 4) xyxy
    scores: Tensor  # (..., N)
    labels: Tensor  # (..., N) int64
    valid: Tensor  # (..., N) bool


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each box of `a` with each of `b`, 0 where the union has no area.

    Args:
        a: (..., N, 4) xyxy, any float type; half precision is computed in float32, whose areas can't overflow.
        b: (..., K, 4).

    Returns:
        (..., N, K), float32 or float64.
    """
    a, b = (boxes if boxes.dtype == torch.float64 else boxes.float() for boxes in (a, b))
    a, b = a[..., :, None, :], b[..., None, :, :]
    # Side by side and in place: the tables are the whole cost.
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    intersection = width.mul_(height)  # (..., N, K)
    area_a, area_b = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (a, b))
    union = torch.add(area_a, area_b, out=height).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def map_boxes(boxes: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Boxes (..., N, 4) xyxy through x -> a x + b, y -> c y + d with (..., 4) = (a, b, c, d); stays xyxy if mirrored."""
    scale = scale_and_shift[..., None, [0, 2]]  # (..., 1, 2)
    shift = scale_and_shift[..., None, [1, 3]]
    first, second = boxes[..., :2] * scale + shift, boxes[..., 2:] * scale + shift
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def is_sound_box(boxes: Tensor, scores: Tensor | None = None, image_size: tuple[int, int] | None = None) -> Tensor:
    """Which boxes have an area and finite numbers, and are not wholly outside the image.

    Args:
        boxes: (..., 4) xyxy.
        scores: (...,), finite for a sound box; optional.
        image_size: (height, width) in the unit of the boxes; None: boxes may be anywhere.

    Returns:
        bool (...,).
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    sound = boxes.isfinite().all(-1) & (high > low).all(-1)
    if scores is not None:
        sound = sound & scores.isfinite()
    if image_size is not None:
        size = boxes.new_tensor((image_size[1], image_size[0]))
        sound = sound & (high > 0).all(-1) & (low < size).all(-1)
    return sound


def greedy_nms(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Class-agnostic greedy non-maximum suppression of a batch, without waiting for the device.

    Of two boxes whose IoU is above `iou_threshold`, the one with the lower score goes; of equal scores, the later one.

    Args:
        boxes: (..., N, 4) xyxy.
        scores: (..., N).
        valid: (..., N) bool.
        iou_threshold: between 0 and 1.

    Returns:
        bool (..., N), True for valid boxes that stay.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    everything = torch.zeros_like(valid)
    if valid.device.type == "cpu":  # where looking costs nothing: valid boxes come first
        order = order[..., : int(valid.sum(-1).max()) if valid.numel() else 0]
    boxes = boxes.gather(-2, order[..., None].expand(*order.shape, 4))
    valid = valid.gather(-1, order)
    # (..., suppressed, by): only a box that comes before, in the order of scores, suppresses
    suppresses = (box_iou(boxes, boxes) > iou_threshold).tril_(-1).float()
    keep = valid
    # Each round settles at least one more box for good; on a CPU, where looking costs nothing, stop when all are.
    for _ in range(boxes.shape[-2]):
        settled = valid & ((suppresses @ keep.float()[..., None]).squeeze(-1) == 0)
        if keep.device.type == "cpu" and torch.equal(settled, keep):
            break
        keep = settled
    return everything.scatter(-1, order, keep)


def peers_of(detections: PaddedDetections) -> PaddedDetections:
    """The peers of each of M detectors: (M, ...) becomes (M - 1, M, ...), in the order of the detectors.

    With it one call rectifies all detectors: `label_rectification(detections, peers_of(detections))`.
    """
    num = detections.scores.shape[0]
    # (M - 1, M): row k has, for each detector, its k-th peer
    others = torch.tensor([[j for j in range(num) if j != i] for i in range(num)], dtype=torch.long).view(num, -1).T
    others = others.to(detections.scores.device)
    return PaddedDetections(*(field[others] for field in detections))


def stack_detections(detections: Sequence[PaddedDetections]) -> PaddedDetections:
    """Several detectors' detections of the same images, padded to one number of rows, stacked in front."""
    num_rows = max(padded.scores.shape[-1] for padded in detections)

    def grow(field: Tensor, dim: int) -> Tensor:
        shape = list(field.shape)
        shape[dim] = num_rows - shape[dim]
        return torch.cat([field, field.new_zeros(shape)], dim)

    grown = [
        PaddedDetections(grow(boxes, -2), grow(scores, -1), grow(labels, -1), grow(valid, -1))
        for boxes, scores, labels, valid in detections
    ]
    return PaddedDetections(*(torch.stack(fields) for fields in zip(*grown)))


def pad_detections(detections: list[dict[str, Tensor]], num_rows: int | None = None) -> tuple[PaddedDetections, int]:
    """Detections of a batch of images in one tensor each; boxes without area or with NaN are left out and counted.

    Args:
        detections: one dict(boxes (n, 4) xyxy, scores (n,), labels (n,) of any integer type) an image.
        num_rows: rows to pad to; default the largest n.

    Returns:
        Fields (B, N, ...), boxes and scores at least float32, and the number of boxes that were left out.

    Raises:
        ValueError: fields that are missing or of other shapes.
    """
    for number, image in enumerate(detections):
        if missing := {"boxes", "scores", "labels"} - image.keys():
            raise ValueError(f"detections of image {number} have no {', '.join(sorted(missing))}.")
        boxes, scores, labels = image["boxes"], image["scores"], image["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or not (len(boxes) == len(scores) == len(labels)):
            raise ValueError(
                f"detections of image {number} must have boxes (n, 4), scores (n,) and labels (n,), got "
                f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels of image {number} must be integers, got {labels.dtype}.")
    num_rows = max((len(image["scores"]) for image in detections), default=0) if num_rows is None else num_rows
    if not detections:
        empty = torch.zeros(0, num_rows)
        return PaddedDetections(empty[..., None].expand(-1, -1, 4), empty, empty.long(), empty.bool()), 0
    dtype = torch.float64 if any(image["boxes"].dtype == torch.float64 for image in detections) else torch.float32
    boxes = torch.cat([image["boxes"] for image in detections]).to(dtype)
    scores = torch.cat([image["scores"] for image in detections]).to(dtype)
    labels = torch.cat([image["labels"] for image in detections]).long()
    sound = is_sound_box(boxes, scores)
    # NaN would spread through the sums that are masked afterwards
    boxes, scores = boxes.masked_fill(~sound[:, None], 0), scores.masked_fill(~sound, 0)
    counts = [len(image["scores"]) for image in detections]
    # where each detection goes, known without asking the device
    rows = torch.tensor(
        [row * num_rows + n for row, count in enumerate(counts) for n in range(count)], dtype=torch.long
    )
    rows = rows.to(boxes.device)
    shape = (len(detections), num_rows)
    flat = boxes.new_zeros(len(detections) * num_rows, 4)
    padded = PaddedDetections(
        flat.index_copy(0, rows, boxes).view(*shape, 4),
        flat[:, 0].index_copy(0, rows, scores).view(shape),
        torch.zeros_like(flat[:, 0], dtype=torch.long).index_copy(0, rows, labels).view(shape),
        torch.zeros_like(flat[:, 0], dtype=torch.bool).index_copy(0, rows, sound).view(shape),
    )
    return padded, len(sound) - int(sound.sum())


def unpad_detections(padded: Any) -> list[dict[str, Tensor]]:
    """The valid rows of `PaddedDetections` or `Rectified`, an image a dict(boxes, scores, labels); waits for the device."""
    return [
        {"boxes": boxes[valid], "scores": scores[valid], "labels": labels[valid]}
        for boxes, scores, labels, valid in zip(padded.boxes, padded.scores, padded.labels, padded.valid)
    ]
