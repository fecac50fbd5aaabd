# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Attacks stay in their ball and fool the classifier as 8-bit images; noise is as large; who knows the detector evades it."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_methods.mbf.attacks_mbf import (
    ATTACKS,
    PixelClassifier,
    adaptive_attack,
    matched_noise,
    predict_classes,
    run_attack,
    to_8_bits,
)
from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.data_mbf import select_attacks, stack_images, with_pixel_values
from hf_methods.mbf.modeling_mbf import MBFDetector


SMALL = {
    "fgsm": {"eps": 0.25},
    "bim": {"eps": 0.2, "eps_step": 0.05, "max_iter": 10},
    "pgd": {"eps": 0.2, "eps_step": 0.05, "max_iter": 10},
    "pgd_l2": {"eps": 1.5, "eps_step": 0.4, "max_iter": 10},
    "apgd": {"eps": 0.2, "eps_step": 0.1, "max_iter": 10},
    "deepfool": {"max_iter": 20},
    "cw_l2": {"max_iter": 10, "binary_search_steps": 1, "learning_rate": 0.2, "initial_const": 10.0},
    "square": {"eps": 0.3, "max_iter": 50},
}


@pytest.fixture(scope="module")
def batch(digits, digit_classifier):
    images, labels = stack_images(list(digits["validation"]["image"])), torch.tensor(digits["validation"]["label"])
    is_right = predict_classes(digit_classifier, images) == labels
    assert is_right.float().mean() > 0.9
    return images[is_right][:32], labels[is_right][:32]


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_fool_the_classifier_in_their_ball_as_8_bit_images(name, digit_classifier, batch):
    images, labels = batch
    attacked = run_attack(name, digit_classifier, images, labels, **SMALL[name])
    assert attacked.dtype == torch.uint8 and attacked.shape == images.shape
    # DeepFool's change is as small as it can be: rounding to 8 bits takes some of it back.
    fooled = (predict_classes(digit_classifier, attacked) != labels).float().mean()
    assert fooled > (0.25 if name == "deepfool" else 0.5)
    change = (attacked.float() - images.float()) / 255
    eps, rounding = SMALL[name].get("eps", 1.0), 0.5 / 255
    if name == "pgd_l2":
        assert change.square().sum((1, 2, 3)).sqrt().max() <= eps + rounding * 8
    else:
        assert change.abs().max() <= eps + rounding + 1e-6


def test_fgsm_is_a_step_along_the_sign_of_the_gradient(digit_classifier, batch):
    images, labels = batch
    pixels = (images.float() / 255).requires_grad_()
    loss = nn.functional.cross_entropy(digit_classifier(pixels), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    expected = to_8_bits((pixels.detach() + 0.1 * gradient.sign()).clamp(0, 1))
    assert torch.equal(run_attack("fgsm", digit_classifier, images, labels, eps=0.1), expected)
    assert all(parameter.grad is None for parameter in digit_classifier.parameters())


def test_attacks_follow_their_seed_and_leave_the_global_generators_alone(digit_classifier, batch):
    images, labels = batch
    states = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    first, same, other = (
        run_attack("pgd", digit_classifier, images, labels, seed=seed, **SMALL["pgd"]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert (np.random.get_state()[1] == states[0]).all() and torch.equal(torch.random.get_rng_state(), states[1])


def test_noise_is_as_large_as_the_attack(digit_classifier, batch):
    images, labels = batch
    attacked = run_attack("fgsm", digit_classifier, images, labels, eps=0.15)

    def norms(changed):
        change = (changed.float() - images.float()) / 255
        return change.square().sum((1, 2, 3)).sqrt(), change.abs().amax((1, 2, 3))

    torch.testing.assert_close(
        norms(matched_noise(images, attacked, "gaussian"))[0], norms(attacked)[0], rtol=0.02, atol=0
    )
    uniform = norms(matched_noise(images, attacked, "uniform"))[1]
    assert (uniform <= norms(attacked)[1] + 0.5 / 255).all() and (uniform > 0.8 * norms(attacked)[1]).all()
    noise = [matched_noise(images, attacked, "gaussian", seed) for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert torch.equal(matched_noise(images, images, "gaussian"), images)  # no change, no noise
    with pytest.raises(ValueError, match="`kind` must be one of gaussian, uniform, got 'salt'"):
        matched_noise(images, attacked, "salt")


def test_pixels_are_normalised_and_8_bits_are_a_255th():
    classifier = PixelClassifier(nn.Flatten(), [0.5, 0.2], [0.5, 0.1])
    images = torch.tensor([[[[255]], [[51]]]], dtype=torch.uint8)
    torch.testing.assert_close(classifier(images), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(classifier(images / 255), torch.tensor([[1.0, 0.0]]))
    assert to_8_bits(torch.tensor([-1.0, 0.4999 / 255, 0.51 / 255, 2.0])).tolist() == [0, 0, 1, 255]
    with pytest.raises(ValueError, match="`mean` and `std` must be of one length, `std` positive"):
        PixelClassifier(nn.Flatten(), [0.5], [0.0])


@pytest.fixture(scope="module")
def detector(attacked, digit_classifier):
    rows = with_pixel_values(select_attacks(attacked[0], ["pgd"]), digit_classifier)
    return MBFDetector(MBFConfig(), digit_classifier.classifier).fit(rows, batch_size=256, c=[10.0], gamma=[1.0])


@pytest.mark.parametrize("kind", ["adaptive", "feature_matching"])
def test_an_attacker_who_knows_the_detector_is_seen_less(kind, detector, digit_classifier, batch):
    images, labels = batch
    eps = SMALL["pgd"]["eps"]
    plain = run_attack("pgd", digit_classifier, images, labels, **SMALL["pgd"])
    adapted = adaptive_attack(detector, digit_classifier, images, labels, eps=eps, max_iter=30, kind=kind)
    assert ((adapted.float() - images.float()) / 255).abs().max() <= eps + 0.5 / 255 + 1e-6
    fooled = predict_classes(digit_classifier, adapted) != labels
    assert fooled.float().mean() > 0.6
    assert torch.equal(adapted[~fooled], images[~fooled])
    with torch.no_grad():
        scores = [
            detector.decision_function(digit_classifier.pixel_values(changed))[fooled] for changed in (plain, adapted)
        ]
    assert scores[1].mean() < scores[0].mean() - 0.2 and (scores[1] > detector.threshold()).float().mean() < 0.1
    assert detector.extractor.gradient_floor == 0


def test_a_smoothed_gradient_leaves_the_features_as_they_are(detector, digit_classifier, batch):
    pixels = digit_classifier.pixel_values(batch[0][:4]).requires_grad_()
    gradients, features = [], []
    for floor in (0.0, 0.3):
        detector.extractor.gradient_floor = floor
        features.append(detector.extractor(pixels).features)
        gradients.append(torch.autograd.grad(features[-1].sum(), pixels)[0])
    detector.extractor.gradient_floor = 0.0
    torch.testing.assert_close(*features)
    assert gradients[1].abs().max() < gradients[0].abs().max() and (gradients[0] * gradients[1]).sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, x, y: run_attack("pdg", c, x, y), "unknown attack 'pdg': did you mean 'pgd'"),
        (lambda c, x, y: run_attack("zzz", c, x, y), "there are fgsm, bim"),
        (lambda c, x, y: run_attack("fgsm", c, x, y, epsilon=1), "'fgsm' has no parameter epsilon; it has eps"),
        (lambda c, x, y: run_attack("pgd", c, x, y, norm=2), "'pgd' has no parameter norm"),
        (lambda c, x, y: run_attack("fgsm", c, x / 255, y), "must be uint8 .*, got torch.float32"),
        (lambda c, x, y: run_attack("fgsm", c, x[:0], y), r"got torch.uint8 \(0, 1, 8, 8\)"),
        (lambda c, x, y: adaptive_attack(MBFDetector(MBFConfig()), c, x, y, eps=0.1), "bound to the very module"),
        (lambda c, x, y: adaptive_attack(None, c, x, y, eps=0.1, kind="x"), "`kind` must be one of adaptive, feature_matching"),
    ],
)  # fmt: skip
def test_bad_attacks_are_refused(call, message, digit_classifier, batch):
    with pytest.raises(ValueError, match=message):
        call(digit_classifier, *batch)


def test_a_classifier_in_training_mode_is_refused(batch):
    network = PixelClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), [0.0], [1.0])
    with pytest.raises(ValueError, match="in training mode"):
        run_attack("fgsm", network, *batch, eps=0.1)
