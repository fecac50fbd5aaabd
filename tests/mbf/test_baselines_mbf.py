# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Baselines against SciPy, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.stats import kurtosis
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from torch import nn

from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.baselines_mbf import (
    MahalanobisFeatures,
    feature_squeezing_score,
    kept_responses,
    lid_features,
    max_softmax_score,
    moment_features,
)


IMAGES = torch.randint(0, 256, (60, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    return PixelClassifier(network, [0.5], [0.5]).eval()


@pytest.fixture(scope="module")
def responses(classifier):
    with torch.no_grad(), kept_responses(classifier.classifier, ["0", "3"]) as outputs:
        classifier(IMAGES)
    return {name: output.double().numpy() for name, output in outputs.items()}


def test_moments_are_scipys(classifier, responses):
    columns = []
    for name in ("0", "3"):
        rows = responses[name].reshape(60, -1)
        columns += [rows.mean(1), rows.std(1), kurtosis(rows, 1, fisher=False)]
    np.testing.assert_allclose(moment_features(classifier, IMAGES, ["0", "3"], 7), np.stack(columns, 1), rtol=1e-5)


def test_moments_of_groups_are_those_of_their_channels(classifier, responses):
    # three channels in three groups; the linear layer's four in two, since three do not divide them
    parts = [*(responses["0"][:, c].reshape(60, -1) for c in range(3)), responses["3"][:, :2], responses["3"][:, 2:]]
    moments = [np.array([x.mean(1), x.std(1), kurtosis(x, 1, fisher=False)]) for x in parts]
    expected = np.concatenate([np.concatenate(np.stack(moments[at], 1)) for at in (slice(3), slice(3, 5))]).T
    features = moment_features(classifier, IMAGES, ["0", "3"], channel_groups=3)
    np.testing.assert_allclose(features, expected, rtol=1e-4)


def test_lid_follows_the_distances_of_scikit_learns_neighbours(classifier, responses):
    rows = responses["0"].reshape(60, -1)
    neighbours = NearestNeighbors(n_neighbors=6).fit(rows)
    distances = neighbours.kneighbors(rows)[0][:, 1:]  # without the image itself
    expected = -1 / np.log(distances / distances[:, -1:]).mean(1)
    lid = lid_features(classifier, IMAGES, IMAGES, ["0"], num_neighbors=5, batch_size=60)
    np.testing.assert_allclose(lid[:, 0], expected, rtol=1e-4)


def test_the_lid_of_points_in_a_cube_is_its_dimension():
    # The estimate from k distances has the mean dimension * k / (k - 1).
    generator = torch.Generator().manual_seed(0)
    network = PixelClassifier(nn.Sequential(nn.Flatten(), nn.Identity()), [0.0], [1.0]).eval()
    points = torch.rand(2000, 1, 1, 3, generator=generator)
    lid = lid_features(network, points[:500], points, ["1"], num_neighbors=20, batch_size=2000)
    assert lid.median().item() == pytest.approx(3, rel=0.15)


def test_mahalanobis_distances_are_scikit_learns(classifier, responses):
    labels = torch.arange(60) % 3
    features = MahalanobisFeatures(classifier, ["0", "3"], IMAGES, labels)(IMAGES)
    for column, x in enumerate((responses["0"].mean((2, 3)), responses["3"])):
        means = np.stack([x[labels == label].mean(0) for label in range(3)])
        tied = EmpiricalCovariance(assume_centered=True).fit(x - means[labels.numpy()])
        expected = np.min([tied.mahalanobis(x - mean) for mean in means], axis=0)
        np.testing.assert_allclose(features[:, column], expected, rtol=1e-4)


def test_max_softmax_is_one_minus_the_largest_probability(classifier):
    with torch.no_grad():
        expected = 1 - classifier(IMAGES).double().softmax(1).amax(1)
    torch.testing.assert_close(max_softmax_score(classifier, IMAGES, 7), expected)


def test_squeezing_is_fewer_bits_and_scipys_median(classifier):
    pixels = IMAGES.float().numpy() / 255
    # a window of 3 has one middle value, and a median is the same for both
    medians = np.stack([median_filter(image[0], 3, mode="mirror")[None] for image in pixels])
    squeezed = [np.round(pixels * 15) / 15, medians]
    with torch.no_grad():
        own = classifier(IMAGES).double().softmax(1)
        changes = [
            (classifier(torch.tensor(other).float()).double().softmax(1) - own).abs().sum(1) for other in squeezed
        ]
    expected = torch.stack(changes).amax(0)
    torch.testing.assert_close(feature_squeezing_score(classifier, IMAGES, 4, 3), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="`bits` must be between 1 and 7, got 8"):
        feature_squeezing_score(classifier, IMAGES, bits=8)


def test_hooks_are_gone_afterwards(classifier):
    with pytest.raises(RuntimeError, match="stop"), kept_responses(classifier.classifier, ["0"]):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in classifier.modules())
