# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Small classifiers of 28 x 28 grey images with random weights, one of each family."""

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification


ATTACKS = {"fgsm": {"eps": 0.25}, "pgd": {"eps": 0.2, "eps_step": 0.05, "max_iter": 10}}


def make_vit():
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return ViTForImageClassification(
        ViTConfig(image_size=28, patch_size=7, num_channels=1, num_labels=10, initializer_range=0.2, **sizes)
    )


def make_resnet():
    sizes = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))


def make_timm_efficientnet():
    import timm

    return timm.create_model("test_efficientnet", in_chans=1, num_classes=10)  # norm layers that hold the activation


def make_timm_vit():
    import timm

    return timm.create_model("test_vit", in_chans=1, num_classes=10, img_size=28, patch_size=7)


def make_plain():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 13 * 13, 10)
    )


def make_digit_network():
    """Of 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


FAMILIES = {
    "vit": make_vit,
    "resnet": make_resnet,
    "timm_efficientnet": make_timm_efficientnet,
    "timm_vit": make_timm_vit,
    "plain": make_plain,
}


def make_classifier(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():  # biases and norms too, and tokens that differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
