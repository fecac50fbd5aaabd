# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detection data sets: their features, how images are opened, splits and digests.

Images stay encoded until they are used. Sources: `formats_cross_teaching.py` and `scenes_cross_teaching.py`.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from transformers.utils import logging


logger = logging.get_logger(__name__)

MAX_PIXELS = 100_000_000
# Reading more images only to compare or hash them would take too long.
MAX_HASHED_IMAGES = 20_000


def detection_features(names: Iterable[str]) -> Features:
    """Features of a detection data set.

    Args:
        names: labels, in order.

    Returns:
        `image` (encoded), `image_id`, `width`, `height`, and `objects`, a dict of lists: `bbox` [x, y, width, height] in
        pixels, `category`, `area`, `iscrowd`, `difficult`. `is_labeled` is False where objects are not known.
    """
    return Features(
        {
            "image_id": Value("int64"),
            "image": ImageFeature(decode=False),
            "width": Value("int32"),
            "height": Value("int32"),
            "is_labeled": Value("bool"),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(ClassLabel(names=list(names))),
                "area": List(Value("float32")),
                "iscrowd": List(Value("bool")),
                "difficult": List(Value("bool")),
            },
        }
    )


def label_names(dataset: Dataset) -> list[str]:
    """Names of the labels of a detection data set."""
    return dataset.features["objects"]["category"].feature.names


@dataclass
class DataReport:
    """What a data set had that was left out or mended: a count and up to five examples of each kind.

    Args:
        source: what was read.
        num_images: images that are used.
        counts: how many of each kind of fault.
        examples: where, at most five of each kind.
    """

    source: str
    num_images: int = 0
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: object) -> None:
        """Count one fault."""
        self.counts[kind] += 1
        if len(self.examples.setdefault(kind, [])) < 5:
            self.examples[kind].append(str(where))

    def log(self) -> None:
        """Warn of all faults, one line a kind."""
        for kind, count in self.counts.items():
            logger.warning(f"{self.source}: {count} x {kind}, such as {', '.join(self.examples[kind])}.")


class BadImageError(ValueError):
    """An image that can't be read."""


def open_image(image: Any, size: tuple[int, int] | None = None) -> Image.Image:
    """An encoded, stored or open image as RGB, the right way up.

    Grey images get three equal channels; transparent ones lie on white.

    Args:
        image: dict(bytes, path) as `datasets` stores it, a path, bytes, or a PIL image.
        size: width and height that the annotation is in. If these are the stored ones and the EXIF orientation would swap
            them, the image stays as it is stored, since its boxes are.

    Raises:
        BadImageError: no image, a broken one, one of more than 8 bits a channel, or of more than 100 megapixels.
    """
    where = image
    try:
        if isinstance(image, dict):
            where = image.get("path") or "bytes"
            image = io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]
        elif isinstance(image, bytes):
            where, image = "bytes", io.BytesIO(image)
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        if image.mode.startswith(("I", "F")):  # conversion would make all but the darkest pixels white
            raise BadImageError(f"{where} has more than 8 bits a channel (mode {image.mode}); scale it to 8 bits.")
        if not image.width or not image.height:
            raise BadImageError(f"{where} has no pixels.")
        if image.width * image.height > MAX_PIXELS:
            raise BadImageError(f"{where} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}.")
        stored = image.size
        upright = ImageOps.exif_transpose(image)
        if size is not None and size == stored != upright.size:
            upright = image
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        return upright.convert("RGB")
    except BadImageError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
        raise BadImageError(f"{where} can't be read as an image: {error}") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"{where} is too large: {error}") from error


def split_labeled(
    dataset: Dataset, percent: float, fold: int = 0, seed: int = 0
) -> tuple[Dataset, Dataset, list[int]]:
    """A random share of the images with their labels, and the others without.

    Args:
        dataset: a detection data set.
        percent: of the images, above 0 and at most 100; at least one image.
        fold: another split of the same seed; the published protocols have five.
        seed: of the random numbers.

    Returns:
        The labelled part, the other part with `is_labeled` False and without objects, and the indices of the labelled
        part, sorted.

    Raises:
        ValueError: `percent` out of range, a negative fold, or an empty data set.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"`percent` must be above 0 and at most 100, got {percent}.")
    if fold < 0 or not len(dataset):
        raise ValueError(
            f"`fold` must not be negative and the data set not empty, got {fold} and {len(dataset)} images."
        )
    order = np.random.default_rng([seed, fold]).permutation(len(dataset))
    num_labeled = max(1, round(percent / 100 * len(dataset)))
    labeled, rest = sorted(order[:num_labeled].tolist()), sorted(order[num_labeled:].tolist())
    return dataset.select(labeled), drop_labels(dataset.select(rest)), labeled


def drop_labels(dataset: Dataset) -> Dataset:
    """The same images without their objects."""
    nothing: dict[str, list] = {name: [] for name in ("bbox", "category", "area", "iscrowd", "difficult")}
    return dataset.map(
        lambda row: {"objects": nothing, "is_labeled": False}, features=dataset.features, desc="dropping labels"
    )


def image_digests(dataset: Dataset) -> set[str]:
    """SHA-256 of each image as it is stored."""
    digests = set()
    for image in dataset["image"]:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        digests.add(hashlib.sha256(content).hexdigest())
    return digests


def detection_digest(dataset: Dataset) -> str:
    """SHA-256 (first 16 hex digits) over images and boxes, for results.json; of large sets over file names and boxes."""
    digest = hashlib.sha256()
    for row in dataset:
        image = row["image"]
        if image["bytes"] is not None:
            digest.update(image["bytes"])
        else:
            path = Path(image["path"])
            digest.update(path.read_bytes() if len(dataset) <= MAX_HASHED_IMAGES else path.name.encode())
        digest.update(json.dumps(row["objects"]).encode())
    return digest.hexdigest()[:16]
