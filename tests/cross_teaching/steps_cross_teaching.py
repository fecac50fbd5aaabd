# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny students and a batch of random views."""

import torch

from hf_methods import (
    CrossTeachingConfig,
    CrossTeachingModel,
)


TINY = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 3}
SIZE = 64


def make(detector=None, **options):
    options = {"score_threshold": 0.3, "unsup_weight": 1.0, "ramp": "none", **options}
    return CrossTeachingModel(CrossTeachingConfig(detector=detector or dict(TINY), **options)).train()


def sharpen(model, factor=6.0):
    """Larger class heads, so that untrained detectors are sure of something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classification_head" in name and name.endswith("weight"):
                parameter.mul_(factor)
    return model


def make_batch(num_detectors=2, num_labeled=2, num_unlabeled=3, seed=0, size=SIZE, shared=False):
    generator = torch.Generator().manual_seed(seed)

    def images(count):
        return torch.randn(count, 3, size, size, generator=generator)

    def labels(count):
        rows = []
        for number in range(count):
            boxes = torch.rand(number % 3, 4, generator=generator) * 0.3 + 0.3
            rows.append({"class_labels": torch.randint(0, 3, (len(boxes),), generator=generator), "boxes": boxes})
        return rows

    labeled = [{"pixel_values": images(num_labeled), "labels": labels(num_labeled)} for _ in range(num_detectors)]
    unlabeled = []
    for _ in range(1 if shared else num_detectors):
        identity = torch.tensor([[1.0, 0, 1, 0]]).repeat(num_unlabeled, 1)
        views = {"weak": images(num_unlabeled), "strong": images(num_unlabeled), "weak_to_strong": identity}
        unlabeled.append(views)
    return labeled, unlabeled


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def frozen_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    return model
