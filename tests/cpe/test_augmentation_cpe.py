# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The batched augmentation against PIL, the PIL path against the recipe of the official code."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import functional as TF

from hf_methods.cpe.augmentation_cpe import (
    OPERATIONS,
    Augmentation,
    normalize,
    strong_augment,
    strong_augment_pil,
    weak_augment,
    weak_augment_pil,
)


def batch(n, channels, size, seed=0):
    """Smooth images with noise, uint8: operations on histograms and edges have something to do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (200 * smooth + 30 * torch.rand(n, channels, size, size, generator=generator)).byte()


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy())


def to_tensor(image):
    return torch.from_numpy(np.array(image)).view(*image.size[::-1], -1).permute(2, 0, 1)


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.batched], ids=lambda op: op.name)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_an_operation_on_a_batch_is_pils_to_the_bit(operation, channels, size):
    images = batch(100, channels, size)
    images[0], images[1] = 7, torch.arange(size)  # one level; a ramp
    shares = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    magnitudes = operation.low + shares * (operation.high - operation.low)
    expected = [to_tensor(operation.pil(to_pil(image), float(v))) for image, v in zip(images, magnitudes)]
    assert torch.equal(operation.batched(images, magnitudes), torch.stack(expected))


@pytest.mark.parametrize(("channels", "size", "padding"), [(3, 32, 4), (1, 28, 3), (3, 17, 0)])
def test_both_augmentations_of_a_batch_are_pils_to_the_bit(channels, size, padding):
    settings = Augmentation(crop_padding=padding, horizontal_flip=channels == 3)
    images, uniforms = batch(150, channels, size), settings.draw(150, (3, 4))
    for batched, reference in ((weak_augment, weak_augment_pil), (strong_augment, strong_augment_pil)):
        expected = [to_tensor(reference(to_pil(image), row, settings)) for image, row in zip(images, uniforms)]
        assert torch.equal(batched(images, uniforms, settings), torch.stack(expected))


def test_the_weak_augmentation_is_a_reflected_crop_and_a_flip():
    images, settings = batch(60, 3, 32), Augmentation()
    uniforms = settings.draw(60, (0,))
    for image, row, result in zip(images, uniforms, weak_augment(images, uniforms, settings)):
        top, left = (int(u * 9) for u in row[:2])
        expected = TF.crop(TF.pad(to_pil(image), [4], padding_mode="reflect"), top, left, 32, 32)
        expected = TF.hflip(expected) if row[2] < 0.5 else expected
        assert torch.equal(result, to_tensor(expected))


def test_the_operations_and_their_magnitudes_are_the_official_ones():
    ranges = {operation.name: (operation.low, operation.high) for operation in OPERATIONS}
    assert len(OPERATIONS) == len(ranges) == 14
    assert {ranges[name] for name in ("Brightness", "Color", "Contrast", "Sharpness")} == {(0.05, 0.95)}
    assert {ranges[name] for name in ("ShearX", "ShearY", "TranslateX", "TranslateY")} == {(-0.3, 0.3)}
    assert (ranges["Rotate"], ranges["Posterize"], ranges["Solarize"]) == ((-30, 30), (4, 8), (0, 256))
    assert {"AutoContrast", "Equalize", "Identity"} < ranges.keys()


def test_cutout_covers_a_square_in_the_official_color():
    settings = Augmentation(crop_padding=0, horizontal_flip=False, num_ops=0)
    images, uniforms = batch(80, 3, 32), settings.draw(80, (5,))
    for image, row, result in zip(images, uniforms, strong_augment(images, uniforms, settings)):
        side, x, y = float(row[5]) * 0.5 * 32, float(row[3]) * 32, float(row[4]) * 32
        left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
        expected = to_pil(image)
        ImageDraw.Draw(expected).rectangle((left, top, min(32, left + side), min(32, top + side)), (125, 123, 114))
        assert torch.equal(result, to_tensor(expected))


def test_operations_are_drawn_alike_and_with_replacement():
    settings = Augmentation()
    drawn = (settings.draw(7000, (1,))[:, 3:6] * 14).long()
    counts = torch.bincount(drawn.flatten(), minlength=14)
    assert counts.sum() == 21000 and (counts - 1500).abs().max() < 5 * 1500**0.5
    assert 0.1 < float((drawn[:, 0] == drawn[:, 1]).float().mean()) * 14 / 10 < 0.2


def test_the_same_seed_draws_the_same_and_another_something_else():
    draw = Augmentation().draw
    seeds = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (-1, 0, 0)]
    numbers = [draw(4, seed) for seed in seeds]
    assert torch.equal(draw(4, (0, 0, 0)), numbers[0])
    assert all(not torch.equal(a, b) for i, a in enumerate(numbers) for b in numbers[:i])


def test_images_given_are_left_as_they_were():
    images, settings = batch(20, 3, 32), Augmentation()
    before = images.clone()
    strong_augment(images, settings.draw(20, (0,)), settings)
    assert torch.equal(images, before)


def test_normalisation_is_that_of_torchvision():
    images, mean, std = batch(3, 3, 8), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1])
    expected = torch.stack(
        [TF.normalize(TF.to_tensor(to_pil(image)), mean.tolist(), std.tolist()) for image in images]
    )
    torch.testing.assert_close(normalize(images, mean, std), expected)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8), TypeError, "uint8 images, got torch.float32"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), ValueError, r"1 or 3 channels, got \[1, 2, 8, 8\]"),
        (torch.zeros(1, 3, 4, 8, dtype=torch.uint8), ValueError, "too small for crop_padding=4"),
    ],
)
def test_bad_images_raise(images, error, message):
    with pytest.raises(error, match=message):
        weak_augment(images, Augmentation().draw(1, (0,)), Augmentation())
