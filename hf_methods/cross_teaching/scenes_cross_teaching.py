# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Scenes of real handwritten digits on real photos: exact boxes, any number of images, no download."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from hf_methods.cross_teaching.data_cross_teaching import detection_features


# Of each split: the first and last digit of the pool, and the share of the photos from the left. Labelled and unlabelled scenes
# have the same photos: a detector that can tell them apart is not held by the labels where it labels for itself.
SCENE_SPLITS = {
    "labeled": ((0, 150), (0.0, 0.55)),
    "unlabeled": ((150, 500), (0.0, 0.55)),
    "validation": ((500, 650), (0.55, 0.7)),
    "test": ((650, 901), (0.7, 1.0)),
}


def make_digit_scenes(
    split: str, num_images: int, seed: int = 0, size: int = 64, num_labels: int = 5, max_objects: int = 3
) -> Dataset:
    """Handwritten digits (scikit-learn, 8 x 8 pixels) laid over photos (scikit-learn): exact boxes, no download.

    Splits share no digits, and those to evaluate on have parts of the photos of their own. A scene has 1 to `max_objects` digits of 16 to 30 pixels (for size
    64), turned by up to 12 degrees, at 0.55 of full contrast, with noise of 0.03.

    Args:
        split: "labeled", "unlabeled" (with its objects, for measuring pseudo labels; `drop_labels` takes them away),
            "validation" or "test".
        num_images: scenes.
        seed: of the scenes.
        size: pixels of a side.
        num_labels: digits 0 to `num_labels - 1`.
        max_objects: digits in a scene.

    Raises:
        ValueError: an unknown split.
        ImportError: scikit-learn is not installed.
    """
    if split not in SCENE_SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SCENE_SPLITS)}, got {split!r}.")
    names = [str(digit) for digit in range(num_labels)]
    rows = list(_scenes(split, num_images, seed, size, num_labels, max_objects))
    return Dataset.from_list(rows, features=detection_features(names))


def _scenes(split, num_images, seed, size, num_labels, max_objects) -> Iterator[dict[str, Any]]:
    from sklearn.datasets import load_digits, load_sample_images  # only the scenes need it

    pool, photos = load_digits(), load_sample_images().images
    (first, last), (low, high) = SCENE_SPLITS[split]
    of_labels = np.flatnonzero(pool.target < num_labels)
    share = len(of_labels) / 901  # 901 digits are 0 to 4
    order = np.random.default_rng(0).permutation(of_labels)[int(first * share) : int(last * share)]
    rng = np.random.default_rng([seed, list(SCENE_SPLITS).index(split)])
    for number in range(num_images):
        photo = photos[rng.integers(len(photos))]
        left, right = int(low * photo.shape[1]), int(high * photo.shape[1])
        side = int(rng.integers(size, min(right - left, 2 * size) + 1))
        x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(0, photo.shape[0] - side + 1))
        ground = Image.fromarray(photo[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
        scene = np.asarray(ground, np.float32) / 255
        objects: dict[str, list] = {name: [] for name in ("bbox", "category", "area", "iscrowd", "difficult")}
        for _ in range(int(rng.integers(1, max_objects + 1))):
            index = order[rng.integers(len(order))]
            edge = int(rng.integers(size // 4, size * 30 // 64 + 1))
            digit = Image.fromarray((pool.images[index] * (255 / 16)).astype(np.uint8)).resize((edge, edge))
            digit = digit.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR, expand=True)
            digit = digit.crop(digit.point(lambda value: 255 if value > 64 else 0).getbbox())
            w, h = digit.size
            for _attempt in range(20):
                x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
                if all(x >= a + c or a >= x + w or y >= b + d or b >= y + h for a, b, c, d in objects["bbox"]):
                    break
            else:
                continue
            alpha = 0.55 * np.asarray(digit, np.float32)[..., None] / 255
            patch = scene[y : y + h, x : x + w]
            ink = (1.0 if patch.mean() < 0.5 else 0.0) + rng.uniform(-0.1, 0.1, 3).astype(np.float32)
            scene[y : y + h, x : x + w] = (1 - alpha) * patch + alpha * ink
            row = ([x, y, w, h], int(pool.target[index]), w * h, False, False)
            for values, value in zip(objects.values(), row):
                values.append(value)
        scene = scene + 0.03 * rng.standard_normal(scene.shape).astype(np.float32)
        buffer = io.BytesIO()
        Image.fromarray((scene.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG")
        yield {
            "image_id": number,
            "image": {"bytes": buffer.getvalue(), "path": None},
            "width": size,
            "height": size,
            "is_labeled": True,
            "objects": objects,
        }
