# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A classifier that was trained on real digits, and attacks on it."""

import pytest
import torch
from models_mbf import ATTACKS, make_digit_network
from torch import nn

from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.data_mbf import build_attacked_dataset, load_images, split_by_source, stack_images


@pytest.fixture(scope="session")
def digits():
    return split_by_source(load_images("digits"), (0.7, 0.12, 0.05, 0.13))


@pytest.fixture(scope="session")
def digit_classifier(digits):
    """Three convolutions, about 97 % of the test digits right."""
    torch.manual_seed(0)
    network = make_digit_network()
    classifier = PixelClassifier(network, [0.3], [0.4])
    images = stack_images(list(digits["classifier_train"]["image"]))
    labels = torch.tensor(digits["classifier_train"]["label"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(images[rows]), labels[rows]).backward()
            optimizer.step()
    return classifier.eval()


@pytest.fixture(scope="session")
def attacked(digits, digit_classifier):
    """Data sets of the splits detector_train and detector_test, and the counts of the first."""
    train, counts = build_attacked_dataset(digit_classifier, digits["detector_train"], ATTACKS)
    test, _ = build_attacked_dataset(digit_classifier, digits["detector_test"], ATTACKS, seed=7)
    return train, test, counts
