# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""DETR's image processor with non-maximum suppression behind it.

Written against transformers 5.24 (`DetrImageProcessor`).
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert
from transformers import DetrImageProcessor
from transformers.models.detr.image_processing_detr import DetrImageProcessorKwargs

from .configuration_cross_teaching import TorchvisionDetectorConfig


class DetectionImageProcessorKwargs(DetrImageProcessorKwargs, total=False):
    """Arguments of `DetectionImageProcessor` besides DETR's; see there."""

    nms_threshold: float | None
    max_detections: int | None
    pre_nms_topk: int | None


class DetectionImageProcessor(DetrImageProcessor):
    """`DetrImageProcessor` for detectors that need non-maximum suppression (NMS).

    Args:
        nms_threshold (`float`, *optional*): IoU above which the lower of two boxes of one label goes; `None`: no NMS, one
            label a row, which is DETR's post-processing.
        max_detections (`int`, *optional*, defaults to 100): best detections of an image that are kept.
        pre_nms_topk (`int`, *optional*, defaults to 400): best candidates of each label that enter NMS.

    All other arguments are those of `DetrImageProcessor`.
    """

    valid_kwargs = DetectionImageProcessorKwargs
    nms_threshold = None
    max_detections = 100
    pre_nms_topk = 400

    @classmethod
    def for_detector(cls, config: TorchvisionDetectorConfig, **kwargs: Any) -> "DetectionImageProcessor":
        """The processor that a torchvision detector was made for: its image size, normalisation and NMS.

        Args:
            config: configuration of the detector.
            kwargs: arguments in place of these.
        """
        size = config.image_size
        options: dict[str, Any] = {
            "nms_threshold": config.nms_threshold,
            "max_detections": config.max_detections,
            "pre_nms_topk": config.pre_nms_topk,
        }
        if config.is_ssd:
            options |= {"size": {"height": size, "width": size}, "do_pad": False}
        else:
            options |= {"size": {"shortest_edge": size, "longest_edge": config.max_image_size}, "do_pad": True}
        if config.architecture == "ssd300_vgg16":  # the mean is subtracted from 0...255, nothing is divided
            options |= {"image_mean": [0.48235, 0.45882, 0.40784], "image_std": [1 / 255] * 3}
        for name in ("image_mean", "image_std"):
            if getattr(config, name) is not None:
                options[name] = getattr(config, name)
        return cls(**{**options, **kwargs})

    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes=None, nms_threshold=None, max_detections=None
    ) -> list[dict[str, Tensor]]:
        """Final detections.

        Args:
            outputs: with `logits` (batch, N, labels + 1), background last, and `pred_boxes` (batch, N, 4): centre x,
                centre y, width, height as shares of the image.
            threshold: scores must be above it.
            target_sizes: height and width of each image in pixels, (batch, 2) or a list; None: boxes stay shares.
            nms_threshold, max_detections: in place of the processor's own.

        Returns:
            One dict(scores (n,), labels (n,), boxes (n, 4) xyxy) an image, best first, clipped to the image. With NMS a row
            may give several labels, as in the evaluation of SSD.

        Raises:
            ValueError: another number of target sizes than images.
        """
        nms_threshold = self.nms_threshold if nms_threshold is None else nms_threshold
        max_detections = self.max_detections if max_detections is None else max_detections
        logits, boxes = outputs.logits, outputs.pred_boxes
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"`target_sizes` must be {len(logits)}, one an image, got {len(target_sizes)}.")
        probabilities = logits.float().softmax(-1)[..., :-1]  # (batch, N, labels)
        boxes = box_convert(boxes.float(), "cxcywh", "xyxy").clamp(0, 1)
        results = []
        for number, (scores, corners) in enumerate(zip(probabilities, boxes)):
            if target_sizes is not None:
                height, width = (float(side) for side in target_sizes[number])
                corners = corners * corners.new_tensor([width, height, width, height])
            if nms_threshold is None:
                best, labels = scores.max(-1)
                row = best > threshold
                best, labels, corners = best[row], labels[row], corners[row]
                order = best.argsort(descending=True, stable=True)
            else:
                topk = min(self.pre_nms_topk, len(scores))
                best, row = scores.topk(topk, dim=0)  # (topk, labels): of each label
                labels = torch.arange(scores.shape[1], device=scores.device).expand_as(row)
                keep = best > threshold
                best, labels, corners = best[keep], labels[keep], corners[row[keep]]
                order = batched_nms(corners, best, labels, nms_threshold)
            order = order[:max_detections]
            results.append({"scores": best[order], "labels": labels[order], "boxes": corners[order]})
        return results
