# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""SSD and Faster R-CNN of torchvision as one transformers model for object detection.

Written against torchvision 0.29 (`SSD`, `FasterRCNN`) and transformers 5.24. Images come processed: torchvision's own
resizing and normalising, image by image, is passed by.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.ops import FrozenBatchNorm2d, box_convert, box_iou, clip_boxes_to_image
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .architectures_cross_teaching import build_faster_rcnn, build_ssd, num_classes
from .configuration_cross_teaching import TorchvisionDetectorConfig


CLS_LOSSES = ("classification", "loss_objectness", "loss_classifier")
BOX_LOSSES = ("bbox_regression", "loss_rpn_box_reg", "loss_box_reg")


@dataclass
class DetectionOutput(ModelOutput):
    """Output of `TorchvisionDetectorForObjectDetection`, in the convention of DETR.

    Args:
        loss (`torch.Tensor` of shape `()`): sum of the parts that were asked for.
        loss_dict (`dict[str, torch.Tensor]`): each loss under torchvision's name.
        logits (`torch.Tensor` of shape `(batch, N, num_labels + 1)`): background last. SSD: every default box. Faster
            R-CNN: detections after NMS, each with its label and the background only, so that the softmax is its score.
        pred_boxes (`torch.Tensor` of shape `(batch, N, 4)`): centre x, centre y, width, height as shares of the image
            (without its padding), clipped to it.
    """

    loss: Tensor | None = None
    loss_dict: dict | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """`training` of this module alone, not of its children: torchvision's RPN has no other switch."""
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before


class TorchvisionDetectorForObjectDetection(PreTrainedModel):
    """SSD300, SSD on a timm backbone, or Faster R-CNN with a feature pyramid, with the interface of DETR.

    The modules are torchvision's, so weights of `torchvision.models.detection` load into `model.detector`. Labels are 0 to
    `num_labels - 1` outside; torchvision's background 0 is inside only.

    Example:

    ```python
    >>> model = TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(architecture="ssd_tiny", num_labels=5))
    >>> model(torch.randn(2, 3, 64, 64)).pred_boxes.shape
    torch.Size([2, 320, 4])
    ```
    """

    config: TorchvisionDetectorConfig
    config_class = TorchvisionDetectorConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: TorchvisionDetectorConfig):
        super().__init__(config)
        self.detector: Any = build_ssd(config) if config.is_ssd else build_faster_rcnn(config)
        self._anchors: dict[Any, Tensor] = {}
        parameter = next(self.parameters())
        if parameter.device.type != "meta":  # torchvision's initialisation is there already, and is the published one
            for module in self.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.post_init()

    def _init_weights(self, module):
        """Weights that a checkpoint does not have, such as a head for other labels."""
        if isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
        elif isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        if getattr(module, "bias", None) is not None and isinstance(module.bias, Tensor):
            init.zeros_(module.bias)
        if isinstance(module, SSDFeatureExtractorVGG):
            init.constant_(module.scale_weight, 20.0)

    def networks(self) -> list[nn.Module]:
        """Backbone and the head on its feature maps: what does the same to each batch, whatever is found in it."""
        return [self.detector.backbone, self.detector.head if self.config.is_ssd else self.detector.rpn.head]

    def extract_features(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Feature maps of images (batch, 3, height, width).

        Raises:
            ValueError: SSD and another image size than `config.image_size`.
        """
        height, width = pixel_values.shape[-2:]
        if self.config.is_ssd and (height, width) != (self.config.image_size, self.config.image_size):
            raise ValueError(
                f"images must be {self.config.image_size} x {self.config.image_size} pixels, got {height} x {width}: "
                "process them with `DetectionImageProcessor.for_detector(model.config)`."
            )
        return self.detector.backbone(pixel_values)

    def ssd_heads(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """SSD's raw predictions.

        Returns:
            Logits (batch, anchors, num_labels + 1) with the background first, encoded offsets (batch, anchors, 4), both
            float32, and default boxes (anchors, 4), xyxy in pixels.
        """
        maps = list(features.values())
        heads = self.detector.head(maps)
        device = maps[0].device
        key = (image_size, device)
        if key not in self._anchors:
            blank = torch.empty(1, 3, *image_size, device=device)
            self._anchors[key] = self.detector.anchor_generator(ImageList(blank, [image_size]), maps)[0].float()
        return heads["cls_logits"].float(), heads["bbox_regression"].float(), self._anchors[key]

    def decode(self, offsets: Tensor, anchors: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Offsets (batch, n, 4) from anchors (n, 4), or (batch, n, 4), as boxes xyxy in pixels, clipped to the image."""
        anchors = anchors.expand(offsets.shape).reshape(-1, 4)
        boxes = self.detector.box_coder.decode_single(offsets.reshape(-1, 4), anchors)
        return clip_boxes_to_image(boxes, image_size).view(offsets.shape)

    def ssd_losses(
        self,
        logits: Tensor,
        offsets: Tensor,
        anchors: Tensor,
        targets: list[dict[str, Tensor]],
        negatives: bool = True,
    ) -> dict[str, Tensor]:
        """MultiBox loss: matching at IoU 0.5, three hard negatives a positive, divided by the positives of the batch.

        Args:
            logits, offsets, anchors: of `ssd_heads`.
            targets: one dict(boxes (n, 4) xyxy in pixels, labels (n,) from 1) an image.
            negatives: False leaves the hard negatives out, for targets that miss objects.
        """
        matches = []
        for target in targets:
            if len(target["boxes"]):
                matches.append(self.detector.proposal_matcher(box_iou(target["boxes"], anchors)))
            else:
                matches.append(torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device))
        heads = {"cls_logits": logits, "bbox_regression": offsets}
        ratio = self.detector.neg_to_pos_ratio
        self.detector.neg_to_pos_ratio = ratio if negatives else 0.0
        try:
            return self.detector.compute_loss(targets, heads, [anchors] * len(targets), matches)
        finally:
            self.detector.neg_to_pos_ratio = ratio

    def faster_rcnn_losses(
        self, features: dict[str, Tensor], images: ImageList, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN, in train and in eval mode.

        Args:
            features: of `extract_features`.
            images: batch and the size of each image.
            targets: one dict(boxes (n, 4) xyxy in pixels, labels (n,) from 1) an image.
        """
        proposals, losses = self.rpn_losses(features, images, targets)
        regions, _, labels, regression_targets = self.detector.roi_heads.select_training_samples(proposals, targets)
        class_logits, box_regression = self.classify_regions(features, images.image_sizes, regions)
        _, box_loss = fastrcnn_loss(class_logits, box_regression, labels, regression_targets)
        cls_loss = self.region_losses(class_logits, torch.cat(labels)).mean()
        return {**losses, "loss_classifier": cls_loss, "loss_box_reg": box_loss}

    def rpn_losses(
        self, features: dict[str, Tensor], images: ImageList, targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals for training, (n, 4) xyxy in pixels an image, and the two losses of the first stage."""
        with _mode(self.detector.rpn, True):
            return self.detector.rpn(images, features, targets)

    def classify_regions(
        self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]], regions: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The second stage of Faster R-CNN.

        Args:
            features: of `extract_features`.
            image_sizes: height and width of each image, without its padding.
            regions: (n, 4) xyxy in pixels an image; R in all.

        Returns:
            Logits (R, num_labels + 1) with the background first, and encoded offsets (R, 4 (num_labels + 1)), both float32.
        """
        heads = self.detector.roi_heads
        pooled = heads.box_head(heads.box_roi_pool(features, regions, image_sizes))
        class_logits, box_regression = heads.box_predictor(pooled)
        return class_logits.float(), box_regression.float()

    def region_losses(self, class_logits: Tensor, labels: Tensor) -> Tensor:
        """Classification loss (R,) of each region with its label from 1, 0 for the background."""
        cross_entropy = F.cross_entropy(class_logits, labels, reduction="none")
        if self.config.roi_cls_loss == "focal":  # Unbiased Teacher, whose mean is over the sampled regions too
            return (1 - (-cross_entropy).exp()) ** self.config.focal_gamma * cross_entropy
        return cross_entropy

    def faster_rcnn_detections(self, features: dict[str, Tensor], images: ImageList) -> list[dict[str, Tensor]]:
        """Detections after NMS: one dict(boxes xyxy in pixels, scores, labels from 1) an image."""
        with _mode(self.detector.rpn, False):
            proposals, _ = self.detector.rpn(images, features)
        class_logits, box_regression = self.classify_regions(features, images.image_sizes, proposals)
        rows = self.detector.roi_heads.postprocess_detections(
            class_logits, box_regression, proposals, images.image_sizes
        )
        return [dict(boxes=boxes, scores=scores, labels=labels) for boxes, scores, labels in zip(*rows)]

    def losses(
        self, features: dict[str, Tensor], pixel_values: Tensor, targets: list[dict[str, Tensor]], pixel_mask=None,
        negatives: bool = True,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Losses of either architecture from feature maps; targets as in `ssd_losses`."""
        if self.config.is_ssd:
            heads = self.ssd_heads(features, _size(pixel_values))
            return self.ssd_losses(*heads, targets, negatives)
        return self.faster_rcnn_losses(features, image_list(pixel_values, pixel_mask), targets)

    def prepare_targets(self, labels: list[dict[str, Tensor]], image_size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """From DETR's labels to torchvision's targets.

        Args:
            labels: one dict(class_labels (n,), boxes (n, 4): centre x, y, width, height as shares of the batch's images)
                an image; n may be 0.
            image_size: height and width of the batch's images, padding included.

        Raises:
            ValueError: a label that the model does not have, a box without area or outside of its image (such as one in
                pixels), or more boxes than labels.
        """
        height, width = image_size
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        targets = []
        for number, label in enumerate(labels):
            boxes, classes = label["boxes"].float().reshape(-1, 4), label["class_labels"].long()
            if len(boxes) != len(classes):
                raise ValueError(f"image {number} has {len(boxes)} boxes and {len(classes)} labels.")
            sound = boxes.isfinite().all(-1) & (boxes[:, 2:] > 0).all(-1)
            sound &= (boxes[:, :2] >= 0).all(-1) & (boxes[:, :2] <= 1).all(-1)
            if len(boxes) and not bool(sound.all()):
                raise ValueError(
                    f"image {number} has the box {boxes[~sound][0].tolist()}: centres must be "
                    "between 0 and 1, as shares of the image and not pixels, and sides must be above 0."
                )
            targets.append(
                {"boxes": box_convert(boxes * scale.to(boxes.device), "cxcywh", "xyxy"), "labels": classes + 1}
            )
        every = torch.cat([target["labels"] for target in targets]) - 1 if targets else torch.zeros(0)
        num_labels = num_classes(self.config) - 1
        if len(every) and not 0 <= int(every.min()) <= int(every.max()) < num_labels:
            raise ValueError(
                f"labels must be between 0 and {num_labels - 1} (the background has none), got "
                f"{int(every.min())} to {int(every.max())}."
            )
        return targets

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        loss_parts: Sequence[str] = ("cls", "box"),
        return_dict: bool | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> DetectionOutput | tuple:
        """Detect, and with `labels` compute the loss, in train and in eval mode.

        Args:
            pixel_values: (batch, 3, height, width), normalised.
            pixel_mask: (batch, height, width), 0 where an image is padded (right and below). SSD needs none.
            labels: as DETR's: see `prepare_targets`.
            loss_parts: of `loss`: "cls", "box".
            return_dict: False for a tuple.
            features: of `extract_features`, where they are there already.

        Returns:
            `DetectionOutput`; Faster R-CNN in train mode with labels has no predictions, for speed.

        Raises:
            ValueError: images of the wrong size, labels that the model does not have.
        """
        size = _size(pixel_values)
        targets = self.prepare_targets(labels, size) if labels is not None else None
        features = self.extract_features(pixel_values) if features is None else features
        output = DetectionOutput()
        loss_dict = None
        if self.config.is_ssd:
            logits, offsets, anchors = self.ssd_heads(features, size)
            if targets is not None:
                loss_dict = self.ssd_losses(logits, offsets, anchors, targets)
            output.logits = torch.cat([logits[..., 1:], logits[..., :1]], -1)
            boxes = self.decode(offsets, anchors, size)
            output.pred_boxes = box_convert(boxes / boxes.new_tensor(size[::-1] * 2), "xyxy", "cxcywh")
        else:
            images = image_list(pixel_values, pixel_mask)
            if targets is not None:
                loss_dict = self.faster_rcnn_losses(features, images, targets)
            if targets is None or not self.training:
                detections = self.faster_rcnn_detections(features, images)
                output.logits, output.pred_boxes = self._pad(detections, images.image_sizes)
        if loss_dict is not None:
            output.loss_dict = loss_dict
            output.loss = sum_of_parts(loss_dict, loss_parts)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def _pad(self, detections: list[dict[str, Tensor]], image_sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        num_rows = self.config.max_detections or 0
        device = detections[0]["boxes"].device
        logits = torch.full((len(detections), num_rows, num_classes(self.config)), -torch.inf, device=device)
        logits[..., -1] = 0  # rows without a detection are background for sure
        boxes = torch.zeros(len(detections), num_rows, 4, device=device)
        for row, (image, (height, width)) in enumerate(zip(detections, image_sizes)):
            num = len(image["scores"])
            scores = image["scores"].double()
            logits[row, torch.arange(num, device=device), image["labels"] - 1] = scores.log().float()
            logits[row, :num, -1] = (1 - scores).clamp_min(1e-12).log().float()
            scale = boxes.new_tensor([width, height, width, height])
            boxes[row, :num] = box_convert(image["boxes"].float() / scale, "xyxy", "cxcywh")
        return logits, boxes


def sum_of_parts(loss_dict: dict[str, Tensor], parts: Sequence[str]) -> Tensor:
    """Sum of torchvision's losses that belong to `parts` ("cls", "box").

    Raises:
        ValueError: no part, or an unknown one.
    """
    if not parts or set(parts) - {"cls", "box"}:
        raise ValueError(f"`loss_parts` must be of 'cls' and 'box', got {tuple(parts)}.")
    names = CLS_LOSSES * ("cls" in parts) + BOX_LOSSES * ("box" in parts)
    return torch.stack([loss_dict[name] for name in names if name in loss_dict]).sum()


def _size(pixel_values: Tensor) -> tuple[int, int]:
    height, width = pixel_values.shape[-2:]
    return height, width


def image_list(pixel_values: Tensor, pixel_mask: Tensor | None) -> ImageList:
    """A batch with the size of each image without its padding, as torchvision's heads take it."""
    if pixel_mask is None:
        return ImageList(pixel_values, [_size(pixel_values)] * len(pixel_values))
    heights, widths = pixel_mask[:, :, 0].sum(1).tolist(), pixel_mask[:, 0, :].sum(1).tolist()
    return ImageList(pixel_values, list(zip(map(int, heights), map(int, widths))))
