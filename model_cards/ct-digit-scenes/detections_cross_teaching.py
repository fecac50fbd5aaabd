# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detections of a batch of images as tensors of one shape, and what all detectors need of boxes.

Ragged detections are lists of `dict(boxes (n, 4) xyxy, scores (n,), labels (n,))`, as torchvision gives them; `PaddedDetections`
hold the same in one tensor each, on which functions neither wait for the device nor change shapes with the data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms


TABLE_ROWS = 64  # boxes an image up to which one table of all images is faster than image by image, on a CPU


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


def inverse_map(scale_and_shift: Tensor) -> Tensor:
    """The map (..., 4) of `map_boxes` the other way round."""
    scale, shift = scale_and_shift[..., [0, 2]], scale_and_shift[..., [1, 3]]
    return torch.stack([1 / scale, -shift / scale], -1).flatten(-2)


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
    longest = valid.shape[-1]
    if valid.device.type == "cpu":  # where looking costs nothing
        longest = int(valid.sum(-1).max()) if valid.numel() else 0
        if longest > TABLE_ROWS:
            return _nms_by_image(boxes, scores, valid, iou_threshold)
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    everything = torch.zeros_like(valid)
    order = order[..., :longest]  # valid boxes come first
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


def _nms_by_image(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """The same by torchvision's function, image by image: on a CPU faster for many boxes, whose table leaves the cache."""
    flat = valid.flatten(0, -2) if valid.dim() > 1 else valid[None]
    boxes = (boxes if boxes.dtype == torch.float64 else boxes.float()).reshape(*flat.shape, 4)
    scores = scores.reshape(flat.shape)
    keep = torch.zeros_like(flat)
    # Given in the precision of the boxes, and ranks for scores: an IoU at the threshold and equal scores are as in the table.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    for image, row in enumerate(flat.nonzero()[:, 1].split(flat.sum(-1).tolist())):
        row = row[scores[image, row].argsort(descending=True, stable=True)]
        ranks = torch.arange(len(row), 0, -1, dtype=boxes.dtype)
        keep[image, row[nms(boxes[image, row], ranks, threshold)]] = True
    return keep.view(valid.shape)


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


def check_detections(detections: Sequence[dict[str, Tensor]]) -> None:
    """See that detections are one dict(boxes (n, 4), scores (n,), labels (n,) of an integer type) of tensors an image.

    Raises:
        ValueError: fields that are missing, no tensors or of other shapes; the image is named.
    """
    for number, image in enumerate(detections):
        if not isinstance(image, (dict, Mapping)):  # a dict is told faster
            raise ValueError(  # noqa: TRY004
                f"detections of image {number} must be a dict(boxes, scores, labels), got {type(image).__name__}."
            )
        if not ("boxes" in image and "scores" in image and "labels" in image):
            missing = sorted({"boxes", "scores", "labels"} - image.keys())
            raise ValueError(f"detections of image {number} have no {', '.join(missing)}.")
        boxes, scores, labels = image["boxes"], image["scores"], image["labels"]
        if not (isinstance(boxes, Tensor) and isinstance(scores, Tensor) and isinstance(labels, Tensor)):
            raise ValueError(f"boxes, scores and labels of image {number} must be tensors.")  # noqa: TRY004
        shape = boxes.shape
        if len(shape) != 2 or shape[1] != 4 or not scores.shape == labels.shape == shape[:1]:
            raise ValueError(
                f"detections of image {number} must have boxes (n, 4), scores (n,) and labels (n,), got "
                f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels of image {number} must be integers, got {labels.dtype}.")


def pad_detections(detections: list[dict[str, Tensor]]) -> tuple[PaddedDetections, int]:
    """Detections of a batch of images in one tensor each; boxes without area or with NaN are left out and counted.

    Args:
        detections: one dict(boxes (n, 4) xyxy, scores (n,), labels (n,) of any integer type) an image.

    Returns:
        Fields (B, N, ...) with the largest N, boxes and scores at least float32, and the number of boxes that were left out.

    Raises:
        ValueError: see `check_detections`.
    """
    check_detections(detections)
    counts = [len(image["scores"]) for image in detections]
    if not detections:
        empty = torch.zeros(0, 0)
        return PaddedDetections(empty[..., None].expand(-1, -1, 4), empty, empty.long(), empty.bool()), 0
    dtype = torch.float64 if any(image["boxes"].dtype == torch.float64 for image in detections) else torch.float32
    device = detections[0]["boxes"].device
    boxes = pad_sequence([image["boxes"].to(dtype) for image in detections], batch_first=True)
    scores = pad_sequence([image["scores"].to(dtype) for image in detections], batch_first=True)
    labels = pad_sequence([image["labels"].long() for image in detections], batch_first=True)
    there = torch.arange(boxes.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
    sound = is_sound_box(boxes, scores) & there
    # NaN would spread through the sums that are masked afterwards
    padded = PaddedDetections(boxes.masked_fill(~sound[..., None], 0), scores.masked_fill(~sound, 0), labels, sound)
    return padded, sum(counts) - int(sound.sum())


def unpad_detections(padded: Any) -> list[dict[str, Tensor]]:
    """The valid rows of `PaddedDetections` or `Rectified` (B, N, ...), an image a dict(boxes, scores, labels), in order.

    Waits for the device, once.
    """
    counts = padded.valid.sum(-1).tolist()
    fields = (getattr(padded, name)[padded.valid].split(counts) for name in ("boxes", "scores", "labels"))
    return [dict(zip(("boxes", "scores", "labels"), image)) for image in zip(*fields)]
