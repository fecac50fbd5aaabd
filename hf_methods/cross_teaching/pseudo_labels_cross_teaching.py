# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Pseudo labels: what is logged of them, how many are right, and the form that detectors train on."""

import torch
from torch import Tensor

from .detections_cross_teaching import PaddedDetections, box_iou, pad_detections


CLASS_LOSSES = ("loss_ce", "loss_vfl", "loss_class")  # of DETR and its kin; their weight in the sum is 1


def log_pseudo_labels(logs: dict[str, Tensor], number: int, valid: Tensor, scores: Tensor, changed: Tensor) -> None:
    """Add the figures of student `number` to `logs`, from the labels (B, N) of a batch."""
    count = valid.sum()
    logs[f"pseudo_{number}"] = count / max(1, len(valid))
    logs[f"score_{number}"] = (scores * valid).sum() / count
    logs[f"changed_{number}"] = changed.sum() / count


def count_right(boxes: Tensor, labels: Tensor, valid: Tensor, truth: PaddedDetections) -> Tensor:
    """How many pseudo labels are right: an object of that label at IoU 0.5 or more; -1, the background: none at all.

    Args:
        boxes: (B, N, 4) xyxy.
        labels: (B, N) from 0, or -1.
        valid: (B, N) bool.
        truth: objects (B, K).

    Returns:
        int64 scalar.
    """
    if not truth.valid.shape[-1]:
        right = labels < 0
    else:
        hit = (box_iou(boxes, truth.boxes) >= 0.5) & truth.valid[..., None, :]  # (B, N, K)
        same = hit & (labels[..., :, None] == truth.labels[..., None, :])
        right = torch.where(labels < 0, ~hit.any(-1), same.any(-1))
    return (right & valid).sum()


def padded_truth(truth: list[dict[str, Tensor]]) -> PaddedDetections:
    """The objects of a batch: one dict(boxes (n, 4) xyxy, labels (n,)) an image."""
    return pad_detections([{**image, "scores": torch.ones_like(image["boxes"][:, 0])} for image in truth])[0]


def as_detr(target: dict[str, Tensor], size) -> dict[str, Tensor]:
    """A target dict(boxes (n, 4) xyxy in pixels, labels) of a view of `size` (height, width) as DETR's labels."""
    scale = target["boxes"].new_tensor([size[1], size[0]])
    low, high = target["boxes"][:, :2] / scale, target["boxes"][:, 2:] / scale
    return {"class_labels": target["labels"], "boxes": torch.cat([(low + high) / 2, high - low], -1)}


def class_loss(loss_dict: dict[str, Tensor]) -> Tensor:
    """Sum of the classification losses of DETR or its kin, auxiliary ones included.

    Raises:
        ValueError: there is none.
    """
    losses = [value for name, value in loss_dict.items() if name.startswith(CLASS_LOSSES)]
    if not losses:
        raise ValueError(f"no classification loss among {', '.join(loss_dict)}; use unsup_box_loss='full'.")
    return torch.stack(losses).sum()
