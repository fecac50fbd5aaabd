# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Attacks on a classifier, as 8-bit images; noise of the same size; and attackers who know the detector.

The attacks are those of the Adversarial Robustness Toolbox (MIT). torchattacks, which is smaller, pins requests 2.25 and
with it urllib3 1.26, so that it can't be installed beside current packages without taking those back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_methods.mbf.modeling_mbf import MBFDetector


# name: class in art.attacks.evasion, and what makes it the attack of that name
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fgsm": ("FastGradientMethod", {"norm": np.inf}),
    "bim": ("BasicIterativeMethod", {}),
    "pgd": ("ProjectedGradientDescent", {"norm": np.inf, "num_random_init": 1}),
    "pgd_l2": ("ProjectedGradientDescent", {"norm": 2, "num_random_init": 1}),
    "apgd": ("AutoProjectedGradientDescent", {"norm": np.inf, "nb_random_init": 1}),  # the core of AutoAttack
    "deepfool": ("DeepFool", {}),
    "cw_l2": ("CarliniL2Method", {}),
    "square": ("SquareAttack", {"norm": np.inf}),  # black box
}
NOISES = ("gaussian", "uniform")
ADAPTIVE_ATTACKS = ("adaptive", "feature_matching")


class PixelClassifier(nn.Module):
    """A classifier of images with values in [0, 1]: normalises, and gives the logits as a tensor.

    Args:
        classifier: called with normalised pixels alone, gives a tensor or an output with `logits`.
        mean, std: of each channel, as an image processor's `image_mean` and `image_std`.
    """

    def __init__(self, classifier: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"`mean` and `std` must be of one length, `std` positive, got {mean} and {std}.")
        self.classifier = classifier
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def pixel_values(self, images: Tensor) -> Tensor:
        """The classifier's input for images (batch, channels, height, width) in [0, 1], or 8-bit ones."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        output = self.classifier(self.pixel_values(images))
        return output if torch.is_tensor(output) else output["logits"]


@torch.no_grad()
def predict_classes(classifier: PixelClassifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """int64 (images,): the class with the largest logit, for images in [0, 1] or of 8 bits."""
    return torch.cat([classifier(part).argmax(1) for part in images.split(batch_size)])


def to_8_bits(images: Tensor) -> Tensor:
    """uint8 of the same shape: images in [0, 1] as a file keeps them."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def run_attack(
    name: str,
    classifier: PixelClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 128,
    **parameters: Any,
) -> Tensor:
    """Attack `images`, without a target class; needs the Adversarial Robustness Toolbox.

    Args:
        name: one of `ATTACKS`.
        classifier: in evaluation mode.
        images: uint8 (images, channels, height, width).
        labels: (images,) true classes.
        seed: of the attacks that draw.
        batch_size: images attacked at a time.
        **parameters: of the attack's class in `art.attacks.evasion`, such as `eps` (1 is the whole range of a pixel).

    Returns:
        uint8 of the same shape. Whether an attack succeeded must be asked again, of these: rounding undoes some.

    Raises:
        ValueError: an unknown attack or parameter, images that are not of 8 bits, or a classifier in training mode.
        ImportError: the toolbox is not installed.
    """
    check_attack(name)
    check_images(classifier, images)
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    class_name, fixed = ATTACKS[name]
    attack_class = getattr(evasion, class_name)
    known = sorted({*attack_class.attack_params} - {*fixed, "batch_size", "verbose", "targeted"})
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"the attack {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(known)}.")
    device = classifier.mean.device
    with torch.no_grad():
        num_classes = classifier(images[:1].to(device)).shape[1]
    estimator = PyTorchClassifier(
        model=classifier,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    options = {**fixed, **parameters, "batch_size": batch_size}
    if "verbose" in attack_class.attack_params:
        options["verbose"] = False
    try:
        with _seeded(seed):
            attacked = attack_class(estimator, **options).generate(
                images.cpu().float().div(255).numpy(), labels.cpu().numpy()
            )
    finally:
        classifier.zero_grad(set_to_none=True)
    return to_8_bits(torch.from_numpy(attacked)).to(images.device)


def check_attack(name: str) -> None:
    """Raise ValueError for a name that is not in `ATTACKS`, with the one that is close to it."""
    if name not in ATTACKS:
        close = get_close_matches(name, ATTACKS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ATTACKS)}."
        raise ValueError(f"unknown attack {name!r}: {hint}")


def check_images(classifier: PixelClassifier, images: Tensor) -> None:
    """Raise ValueError unless these are 8-bit images for a classifier in evaluation mode."""
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images must be uint8 (n, channels, height, width), got {images.dtype} {tuple(images.shape)}."
        )
    if any(module.training for module in classifier.modules()):
        raise ValueError(
            "the classifier is in training mode, where batches change it: call `classifier.eval()` first."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The toolbox draws from NumPy's and torch's global generators; they come back as they were."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(state)


def matched_noise(images: Tensor, attacked: Tensor, kind: str, seed: int = 0) -> Tensor:
    """`images` with noise as large as the attack's change, the control that tells a detector of attacks from one of noise.

    Args:
        images: uint8 (images, channels, height, width).
        attacked: the same after an attack.
        kind: "gaussian", of the same L2 norm for each image (after clipping and rounding, as near as they allow), or
            "uniform", of the same L-infinity norm.
        seed: of the noise.

    Returns:
        uint8 of the same shape.
    """
    if kind not in NOISES:
        raise ValueError(f"`kind` must be one of {', '.join(NOISES)}, got {kind!r}.")
    generator = torch.Generator().manual_seed(seed)
    clean, change = images.cpu().float() / 255, (attacked.cpu().float() - images.cpu().float()) / 255
    if kind == "uniform":
        noise = 2 * torch.rand(clean.shape, generator=generator) - 1
        return to_8_bits(clean + noise * change.abs().amax((1, 2, 3), keepdim=True)).to(images.device)
    noise = torch.randn(clean.shape, generator=generator)
    target = change.square().sum((1, 2, 3), keepdim=True).sqrt()
    scale = target / noise.square().sum((1, 2, 3), keepdim=True).sqrt()
    for _ in range(10):  # clipping takes away from the noise, most where the image is black or white
        noisy = to_8_bits(clean + scale * noise)
        size = (noisy.float() / 255 - clean).square().sum((1, 2, 3), keepdim=True).sqrt()
        scale = scale * (target / size.clamp_min(1e-6)).clamp(0.5, 2)
    return noisy.to(images.device)


def adaptive_attack(
    detector: MBFDetector,
    classifier: PixelClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    eps_step: float | None = None,
    max_iter: int = 100,
    kind: str = "adaptive",
    margin: float = 0.5,
    gradient_floor: float = 0.3,
    seed: int = 0,
    batch_size: int = 128,
) -> Tensor:
    """PGD in the L-infinity ball against classifier and detector together, by an attacker who has both.

    Each step goes against the true class until another leads by `margin`, then against the detection (selective PGD, arXiv
    2106.15023: a weighted sum of both fails here, since one gradient drowns the other). Gradients go through the features
    and the support vector machine. Of all iterates, rounded to 8 bits, an image keeps the least detected one that fools the
    classifier.

    Args:
        detector: fitted, bound to `classifier.classifier`.
        classifier: in evaluation mode.
        images: uint8 (images, channels, height, width).
        labels: (images,) true classes.
        eps: radius; 1 is the whole range of a pixel.
        eps_step: step, default 2.5 eps / max_iter.
        max_iter: steps.
        kind: what the attacker lowers: "adaptive" the detector's score, "feature_matching" the mean squared distance of
            the features from their means over benign images, in standard deviations.
        margin: logits by which the wrong class shall win.
        gradient_floor: smooths the features' gradient, see `coefficient_sums`: the exact one leads nowhere.
        seed: of the random start.
        batch_size: images at a time.

    Returns:
        uint8 of the same shape; unchanged where the classifier was never fooled.

    Raises:
        ValueError: as `run_attack`, or a `kind` that is not known.
    """
    if kind not in ADAPTIVE_ATTACKS:
        raise ValueError(f"`kind` must be one of {', '.join(ADAPTIVE_ATTACKS)}, got {kind!r}.")
    check_images(classifier, images)
    if detector.extractor is None or detector.extractor.model is not classifier.classifier:
        raise ValueError("the detector must be bound to the very module `classifier.classifier`: call `bind`.")
    generator = torch.Generator().manual_seed(seed)
    step = 2.5 * eps / max_iter if eps_step is None else eps_step
    floor_before, detector.extractor.gradient_floor = detector.extractor.gradient_floor, gradient_floor
    parts = []
    try:
        for clean_8_bits, true in zip(images.split(batch_size), labels.split(batch_size)):
            clean = clean_8_bits.float() / 255
            start = (2 * torch.rand(clean.shape, generator=generator) - 1).to(clean.device)
            attacked = (clean + eps * start).clamp(0, 1)
            best, lowest = clean_8_bits.clone(), torch.full((len(clean),), torch.inf, device=clean.device)
            for iteration in range(max_iter + 1):
                attacked = attacked.detach().requires_grad_()
                lead, detection = _lead_and_detection(detector, classifier, attacked, true, kind)
                (gradient,) = torch.autograd.grad(torch.where(lead > -margin, lead, detection).sum(), attacked)
                with torch.no_grad():
                    rounded = to_8_bits(attacked)
                    lead, detection = _lead_and_detection(detector, classifier, rounded, true, kind)
                    is_better = (lead < 0) & (detection < lowest)
                    best[is_better], lowest[is_better] = rounded[is_better], detection[is_better]
                    size = step * (1 if iteration < max_iter // 2 else 0.25)
                    attacked = clean + (attacked - size * gradient.sign() - clean).clamp(-eps, eps)
                    attacked = attacked.clamp(0, 1)
            parts.append(best)
    finally:
        detector.extractor.gradient_floor = floor_before
    return torch.cat(parts)


def _lead_and_detection(detector, classifier, images: Tensor, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """By how much the true class leads the others (images,), and what the attacker wants low (images,)."""
    output = detector(classifier.pixel_values(images))
    logits = output.logits.float()
    true = logits.gather(1, labels[:, None])[:, 0]
    lead = true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    if kind == "adaptive":
        return lead, output.scores.float()
    z = (output.features.to(detector.benign_mean) - detector.benign_mean) / detector.benign_std.clamp_min(1e-6)
    return lead, z.square().mean(1).float()
