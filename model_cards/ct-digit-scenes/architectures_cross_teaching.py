# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""torchvision's SSD and Faster R-CNN with random weights, as a `TorchvisionDetectorConfig` says.

Written against torchvision 0.29 (`SSD`, `FasterRCNN`).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import vgg
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG
from torchvision.ops import FrozenBatchNorm2d

from .configuration_cross_teaching import TorchvisionDetectorConfig


SSD300_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD300_STEPS = [8, 16, 32, 64, 100, 300]
SSD300_SCALES = {  # of 300 pixels
    "official": [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
    "torchvision": [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
}
TINY_RATIOS, TINY_SCALES = [[2], [2]], [0.22, 0.32, 0.45]


class OfficialDefaultBoxes(DefaultBoxGenerator):
    """Default boxes whose centres are clipped to the image, as SSD's authors have it."""

    def _grid_default_boxes(self, grid_sizes, image_size, dtype=torch.float32) -> Tensor:
        boxes = super()._grid_default_boxes(grid_sizes, image_size, dtype)  # centre and size, as shares of the image
        return boxes.clamp(max=1) if self.clip else boxes


class TinyBackbone(nn.Module):
    """Seven convolutions with batch norm; maps of 64 channels at strides 8 and 16.

    Args:
        norm_layer: class of the norm.
    """

    out_channels: ClassVar[list[int]] = [64, 64]

    def __init__(self, norm_layer: Any):
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            layers = (nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm_layer(outputs), nn.ReLU(inplace=True))
            return nn.Sequential(*layers)

        self.stem = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 32, 1), conv(32, 64, 2), conv(64, 64, 1))
        self.last = nn.Sequential(conv(64, 64, 2), conv(64, 64, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images)
        return {"0": fine, "1": self.last(fine)}


class TimmBackbone(nn.Module):
    """Feature maps of a timm model at strides 8 to 32, and convolutions of stride 2 behind them.

    Args:
        name: timm model.
        num_maps: feature maps in all.
        norm_layer: class of the norm; None: the model's own.
    """

    def __init__(self, name: str, num_maps: int, norm_layer: Any):
        super().__init__()
        import timm  # only this architecture needs it

        options = {} if norm_layer is None else {"norm_layer": norm_layer}
        body: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
        self.body = body
        reductions = body.feature_info.reduction()
        self.used = [index for index, reduction in enumerate(reductions) if reduction >= 8][:num_maps]
        self.out_channels = [body.feature_info.channels()[index] for index in self.used]
        self.extra = nn.ModuleList()
        for _ in range(num_maps - len(self.used)):
            self.extra.append(
                nn.Sequential(
                    nn.Conv2d(self.out_channels[-1], 128, 1), nn.ReLU(inplace=True),
                    nn.Conv2d(128, 256, 3, 2, 1), nn.ReLU(inplace=True),
                )
            )  # fmt: skip
            self.out_channels.append(256)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        maps = [features[index] for index in self.used]
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        return {str(index): features for index, features in enumerate(maps)}


def num_classes(config: TorchvisionDetectorConfig) -> int:
    """Labels and the background."""
    return len(config.id2label or ()) + 1


def build_ssd(config: TorchvisionDetectorConfig) -> SSD:
    """torchvision's `SSD` with random weights."""
    size = config.image_size
    steps, generator_class = config.anchor_steps, DefaultBoxGenerator
    norm_layer = FrozenBatchNorm2d if config.frozen_batch_norm else nn.BatchNorm2d
    backbone: nn.Module
    scales: list[float] | None
    if config.architecture == "ssd300_vgg16":
        ratios = config.anchor_ratios or SSD300_RATIOS
        scales, steps = config.anchor_scales or SSD300_SCALES[config.anchor_preset], steps or SSD300_STEPS
        if config.anchor_preset == "official":
            generator_class = OfficialDefaultBoxes
        # not torchvision.models.vgg16: its classifier, thrown away, is 124 million parameters
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
        for layer in features:
            if isinstance(layer, nn.Conv2d):  # as `VGG.__init__`
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                layer.bias.data.zero_()  # type: ignore[union-attr]
        stages = [0, *(i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d))][:-1]
        trained = len(stages) if config.trainable_layers is None else config.trainable_layers
        for layer in features[: len(features) if trained == 0 else stages[len(stages) - trained]]:
            layer.requires_grad_(False)
        backbone = SSDFeatureExtractorVGG(features, highres=False)
    elif config.architecture == "ssd_tiny":
        ratios, scales = config.anchor_ratios or TINY_RATIOS, config.anchor_scales or TINY_SCALES
        backbone = TinyBackbone(norm_layer)
    else:
        ratios, scales = config.anchor_ratios or [[2, 3]] * 5, config.anchor_scales
        assert config.backbone_name is not None  # the configuration refuses it
        backbone = TimmBackbone(config.backbone_name, len(ratios), norm_layer if config.frozen_batch_norm else None)
    detector = SSD(
        backbone,
        generator_class(ratios, scales=scales, steps=steps),
        (size, size),
        num_classes(config),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.max_detections,
        topk_candidates=config.pre_nms_topk,
    )
    return detector


def build_faster_rcnn(config: TorchvisionDetectorConfig) -> FasterRCNN:
    """torchvision's `FasterRCNN` with a feature pyramid and random weights."""
    norm_layer = FrozenBatchNorm2d if config.frozen_batch_norm else nn.BatchNorm2d
    is_mobile = config.architecture == "fasterrcnn_mobilenet_v3_large_320_fpn"
    trainable = config.trainable_layers
    if trainable is None:
        trainable = 3 if config.frozen_batch_norm else (6 if is_mobile else 5)
    common = dict(
        rpn_positive_fraction=config.rpn_positive_fraction,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.max_detections,
        rpn_pre_nms_top_n_test=config.pre_nms_topk,
    )
    if is_mobile:
        backbone = mobilenet_backbone(
            backbone_name="mobilenet_v3_large",
            weights=None,
            fpn=True,
            norm_layer=norm_layer,
            trainable_layers=trainable,
        )
        anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
        common |= dict(rpn_anchor_generator=anchors, rpn_post_nms_top_n_test=150, rpn_score_thresh=0.05)
    else:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=norm_layer, trainable_layers=trainable
        )
    return FasterRCNN(backbone, num_classes(config), **common)
