# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detections of trained detectors in a data set, and their mean average precision."""

import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_methods.cross_teaching.data_cross_teaching import BadImageError, open_image
from hf_methods.cross_teaching.detectors_cross_teaching import build_processor
from hf_methods.cross_teaching.sampling_cross_teaching import stack_images
from hf_methods.cross_teaching.views_cross_teaching import ViewSettings, plain_geometry, render


logger = logging.get_logger(__name__)


@torch.no_grad()
def detect(
    detectors: dict[str, Any], dataset: Dataset, views: ViewSettings, batch_size: int, device: Any = "cpu"
) -> tuple[dict[str, list[dict[str, Tensor]]], list[dict[str, Tensor]], int]:
    """Final detections of each detector in a data set, batch by batch; only boxes are kept.

    Args:
        detectors: by name; they are put in eval mode, and back.
        dataset: a detection data set.
        views: size and normalisation.
        batch_size: images at a time; one by one where their sizes differ.
        device: of the images.

    Returns:
        For each name one dict(boxes (n, 4) xyxy in pixels of the image, scores, labels) an image; the truths, dict(boxes,
        labels, ignore); and how many images could not be read, which are left out.
    """
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in detectors}
    truths: list[dict[str, Tensor]] = []
    num_bad = 0
    modes = {name: detector.training for name, detector in detectors.items()}
    processor = build_processor(next(iter(detectors.values())).config)
    batch_size = 1 if views.keep_aspect else batch_size
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.mean, views.std))
    for start in range(0, len(dataset), batch_size):
        images, sizes = [], []
        for row in dataset.select(range(start, min(start + batch_size, len(dataset)))):
            try:
                image = open_image(row["image"], (row["width"], row["height"]))
            except BadImageError as error:
                logger.warning(str(error))
                num_bad += 1
                continue
            view = render(image, plain_geometry(*image.size, views), views.fill)
            images.append((torch.from_numpy(np.array(view)).permute(2, 0, 1).float() / 255 - mean) / std)
            sizes.append((image.height, image.width))
            truths.append(_truth(row["objects"]))
        if not images:
            continue
        batch = stack_images(images)[0].to(device)
        for name, detector in detectors.items():
            detector.eval()
            outputs = detector(pixel_values=batch)
            threshold = getattr(detector.config, "score_threshold", None) or 0.0
            target_sizes = torch.tensor(sizes, device=device)
            for image_found in processor.post_process_object_detection(outputs, threshold, target_sizes):
                best = image_found["scores"].argsort(descending=True, stable=True)[:200]
                found[name].append({key: image_found[key][best].float().cpu() for key in ("boxes", "scores")})
                found[name][-1]["labels"] = image_found["labels"][best].cpu()
    for name, detector in detectors.items():
        detector.train(modes[name])
    return found, truths, num_bad


def average_precisions(
    detections: list[dict[str, Tensor]], truths: list[dict[str, Tensor]], num_labels: int
) -> dict[str, float]:
    """`map`, `map_50`, `map_75` (COCO's, torchmetrics) and `voc07_ap50`; 0 where the truth has no object at all.

    Args:
        detections: one dict(boxes, scores, labels) an image.
        truths: one dict(boxes, labels, ignore) an image.
        num_labels: labels are 0 to `num_labels - 1`.
    """
    from torchmetrics.detection import MeanAveragePrecision  # slow to import, as `evaluate` is

    from hf_methods.metrics import voc07_average_precision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    metric.warn_on_many_detections = False
    metric.update(
        detections,
        [dict(boxes=image["boxes"], labels=image["labels"], iscrowd=image["ignore"].int()) for image in truths],
    )
    values = metric.compute()
    figures = {name: max(0.0, float(values[name])) for name in ("map", "map_50", "map_75")}
    voc = voc07_average_precision(detections, truths, num_labels)
    return {**figures, "voc07_ap50": 0.0 if math.isnan(voc) else voc}


def pseudo_label_figures(log_history: list[dict[str, float]]) -> dict[str, float]:
    """Precision of the pseudo labels of all students over a training, before and after rectification.

    Args:
        log_history: of the trainer's state, of a training with `measure_pseudo_labels`.

    Returns:
        `precision_own` and `precision`, the labels that they are shares of (`used_own`, `used`), and `changed`, the mean share
        that rectification changed; nothing where no pseudo labels were measured.
    """
    totals: dict[str, float] = {}
    changed = []
    for entry in log_history:
        for name, value in entry.items():
            kind, _, number = name.rpartition("_")
            if kind in ("right_own", "used_own", "right", "used") and number.isdigit():
                totals[kind] = totals.get(kind, 0) + value
            elif kind == "changed" and number.isdigit():
                changed.append(value)
    if not totals.get("used_own") or not totals.get("used"):
        return {}
    return {
        "precision_own": totals["right_own"] / totals["used_own"],
        "precision": totals["right"] / totals["used"],
        "used_own": totals["used_own"],
        "used": totals["used"],
        "changed": sum(changed) / max(1, len(changed)),
    }


def _truth(objects: dict[str, list]) -> dict[str, Tensor]:
    boxes = torch.tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4)
    ignore = [crowd or hard for crowd, hard in zip(objects["iscrowd"], objects["difficult"])]
    return {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1),
        "labels": torch.tensor(objects["category"], dtype=torch.long),
        "ignore": torch.tensor(ignore, dtype=torch.bool),
    }
