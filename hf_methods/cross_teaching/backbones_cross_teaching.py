# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Weights of an image classifier, such as one trained on ImageNet, as the backbone of a torchvision detector.

They are read from a folder or Hub repository in timm's format: `model.safetensors` and `config.json`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_methods.cross_teaching.modeling_detectors_cross_teaching import TorchvisionDetectorForObjectDetection


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # where config.json has none
FULLY_CONNECTED = (
    ("pre_logits.fc1", "pre_logits.fc2"),
    ("classifier.0", "classifier.3"),
)  # VGG of timm, of torchvision


def read_backbone(source: str) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """Weights of a classifier, and the mean and deviation that its images were normalised by.

    Args:
        source: folder with `model.safetensors` and `config.json`, or a Hub id such as "timm/resnet50.tv_in1k".

    Raises:
        ValueError: a folder without these files.
    """
    names = ("config.json", "model.safetensors")
    if Path(source).is_dir():
        if missing := [name for name in names if not Path(source, name).is_file()]:
            raise ValueError(
                f"`backbone_weights` {source} has no {', '.join(missing)}: give a model in timm's format."
            )
        paths = [Path(source, name) for name in names]
    elif source.count("/") == 1:
        paths = [Path(hf_hub_download(source, name)) for name in names]
    else:
        raise ValueError(f"`backbone_weights` must be a folder or a Hub id OWNER/NAME, got {source!r}.")
    settings = json.loads(paths[0].read_text("utf-8"))
    settings = settings.get("pretrained_cfg", settings)
    return load_file(paths[1]), list(settings.get("mean", IMAGENET[0])), list(settings.get("std", IMAGENET[1]))


@torch.no_grad()
def load_backbone(
    detector: TorchvisionDetectorForObjectDetection, weights: dict[str, Tensor], source: str = ""
) -> None:
    """Put a classifier's weights into a detector's backbone; heads, feature pyramid and extra layers stay random.

    SSD300's fc6 and fc7 are the classifier's fully connected layers, of which every fourth output and every third row and
    column is taken, as SSD's authors have it.

    Args:
        detector: any torchvision detector but "ssd_tiny".
        weights: the classifier's, by timm's or torchvision's names.
        source: where they come from, for errors.

    Raises:
        ValueError: weights of another architecture.
    """
    if detector.config.architecture == "ssd_tiny":
        raise ValueError("`backbone_weights` is not for 'ssd_tiny', whose backbone no classifier has.")
    backbone: Any = detector.detector.backbone
    if detector.config.architecture == "ssd300_vgg16":
        own = dict(_vgg_targets(backbone))
        weights = _reduced_vgg(weights)
    else:
        own = {name: value for name, value in backbone.body.state_dict().items() if "num_batches" not in name}
        weights = {name.removeprefix("features."): value for name, value in weights.items()}
    missing = [name for name in own if name not in weights]
    wrong = [name for name in own if name not in missing and own[name].shape != weights[name].shape]
    if missing or wrong:
        bad = (missing or wrong)[0]
        found = "missing" if missing else f"{tuple(weights[bad].shape)} in place of {tuple(own[bad].shape)}"
        raise ValueError(
            f"{source or 'the weights'} do not fit the backbone of {detector.config.architecture!r}: {bad} is {found} "
            f"({len(missing)} missing, {len(wrong)} of another shape). Give weights of the same architecture."
        )
    for name, value in own.items():
        value.copy_(weights[name])


def _vgg_targets(backbone: Any):
    """(name, tensor) of each convolution of SSD300's backbone, in VGG's order: conv0 ... conv12, fc6, fc7."""
    extra = backbone.extra[0]
    convolutions = [
        layer for part in (backbone.features, extra) for layer in part.modules() if isinstance(layer, nn.Conv2d)
    ]
    names = [*(f"conv{number}" for number in range(len(convolutions) - 2)), "fc6", "fc7"]
    for name, layer in zip(names, convolutions, strict=True):
        yield from ((f"{name}.{part}", getattr(layer, part).data) for part in ("weight", "bias"))


def _reduced_vgg(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VGG16 classifier by the names of `_vgg_targets`, with fc6 and fc7 reduced."""
    numbers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("features.")})
    reduced = {
        f"conv{order}.{part}": weights[f"features.{number}.{part}"]
        for order, number in enumerate(numbers)
        for part in ("weight", "bias")
    }
    for first, second in FULLY_CONNECTED:
        if f"{first}.weight" in weights and f"{second}.weight" in weights:
            fc6 = weights[f"{first}.weight"].reshape(4096, 512, 7, 7)
            fc7 = weights[f"{second}.weight"].reshape(4096, 4096, 1, 1)
            reduced |= {"fc6.weight": fc6[::4, :, ::3, ::3], "fc6.bias": weights[f"{first}.bias"][::4]}
            reduced |= {"fc7.weight": fc7[::4, ::4], "fc7.bias": weights[f"{second}.bias"][::4]}
    return reduced
