# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Long-tailed labelled and unlabelled splits of any labelled image data set, and the batches of a training step."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image
from torch import Tensor
from torch.utils.data import Sampler

from hf_methods.data import read_rows


MAX_CLASSES = 1_000_000  # ids above are no numbers of classes, and would take memory as if they were
UNLABELED_SHAPES = ("consistent", "uniform", "reversed", "middle", "head-tail", "random", "custom", "rest")


def long_tailed_counts(max_count: int, gamma: float, num_classes: int, uniform_mode: str = "total") -> list[int]:
    """How many images each class has, from the most to the least frequent: int(max_count * mu^k), mu = gamma^(-1/(K-1)).

    Args:
        max_count: images of the first class; for `gamma=1` see `uniform_mode`.
        gamma: the first class' images over the last one's; below 0 the list is reversed, as in the official code.
        num_classes: K.
        uniform_mode: for gamma 1, `max_count` is the "total" of all classes (official) or "per_class".

    Raises:
        ValueError: |gamma| below 1, a class without an image, or an unknown mode.
    """
    if uniform_mode not in ("total", "per_class"):
        raise ValueError(f"`uniform_mode` must be 'total' or 'per_class', got {uniform_mode!r}.")
    if not 1 <= abs(gamma) < np.inf:
        raise ValueError(f"gamma must be at least 1, or at most -1 for the reversed order, got {gamma}.")
    if not max_count < np.inf:
        raise ValueError(f"the number of images must be finite, got {max_count}.")
    if gamma == 1:
        counts = [max_count // num_classes if uniform_mode == "total" else max_count] * num_classes
    else:
        mu = np.power(
            1 / abs(gamma), 1 / max(1, num_classes - 1)
        )  # in this order: rounding decides about whole numbers
        counts = [int(max_count * np.power(mu, k)) for k in range(num_classes - 1)] + [int(max_count / abs(gamma))]
    if min(counts) < 1:
        raise ValueError(f"n={max_count} and gamma={gamma} leave classes without an image: {counts}; take a larger n.")
    return counts if gamma > 0 else counts[::-1]


def unlabeled_counts(
    shape: str, m1: int, gamma: float, num_classes: int, uniform_mode: str = "total", seed: int = 0
) -> list[int]:
    """How many unlabelled images each rank of the labelled classes has.

    Args:
        shape: "consistent" falls as the labelled counts do, "reversed" rises, "uniform" is flat, "middle" has its peak in
            the middle, "head-tail" at both ends, "random" is shuffled.
        m1: images of the most frequent class; for "uniform" and `gamma=1` see `uniform_mode` of `long_tailed_counts`.
        gamma: imbalance, at least 1; negative is "reversed".
        num_classes: K.
        uniform_mode: see `long_tailed_counts`.
        seed: of "random".
    """
    if shape == "uniform" or gamma == 1:
        return long_tailed_counts(m1, 1, num_classes, uniform_mode)
    counts = long_tailed_counts(m1, gamma, num_classes)
    descending = sorted(counts, reverse=True)
    up, down = list(range(num_classes))[::-1], list(range(num_classes))
    up_even, down_odd = [k for k in up if (num_classes - k) % 2 == 0], [k for k in down if (num_classes - k) % 2]
    if shape == "reversed":
        return descending[::-1]
    if shape == "middle":
        return [descending[k] for k in up_even + down_odd]
    if shape == "head-tail":
        return [descending[k] for k in down_odd + up_even]
    if shape == "random":
        return [descending[k] for k in np.random.default_rng(seed).permutation(num_classes)]
    return counts


def make_longtail_ssl_splits(
    dataset: Dataset | DatasetDict,
    *,
    n1: int,
    gamma_l: float,
    m1: int | None = None,
    gamma_u: float | None = None,
    unlabeled: str = "consistent",
    seed: int = 0,
    label_column: str = "label",
    uniform_mode: str = "total",
    class_order: Sequence[int] | None = None,
    custom_counts: Sequence[int] | None = None,
    include_labeled_in_unlabeled: bool = False,
) -> tuple[DatasetDict, dict[str, Any]]:
    """A long-tailed labelled split and an unlabelled one of any shape, with the images that the official code takes.

    Class k (in the order of the labels) has its images shuffled by `numpy.random.RandomState(seed)`, which goes from class
    to class; the first n_k are labelled, the next m_k unlabelled. On CIFAR and STL-10 that gives the official indices.

    Args:
        dataset: images with a column of labels; of a `DatasetDict` the split `train` is taken, and `test` passed on.
        n1: labelled images of the most frequent class.
        gamma_l: labelled images of the most over those of the least frequent class; 1 is balanced, see `uniform_mode`.
        m1: unlabelled images of their most frequent class; not for "custom" and "rest".
        gamma_u: imbalance of the unlabelled images, default `abs(gamma_l)`; negative is "reversed".
        unlabeled: shape of the unlabelled images over the ranks of the labelled classes, one of "consistent", "uniform",
            "reversed", "middle", "head-tail", "random", "custom" (`custom_counts`) and "rest" (all images that have no
            place in the labelled split, those without a label too).
        seed: of the choice of images.
        label_column: column of class ids; -1 and `None` are images without a label, which only "rest" can use.
        uniform_mode: whether a flat split's `m1` (or `n1`) is the "total" of all classes, as in the official code, or
            "per_class", as in ACR and SimPro. The two differ by a factor of K: never compare their results.
        class_order: class ids from the most to the least frequent, default 0, 1, 2, ...
        custom_counts: unlabelled images of each class, in the order of the labels.
        include_labeled_in_unlabeled: put the labelled images into the unlabelled split too (official for STL-10).

    Returns:
        `DatasetDict` with `train_labeled`, `train_unlabeled` (its labels are for diagnostics only) and, if there was one,
        `test`; and a dict with `class_counts` (for `CPEConfig`), `unlabeled_counts`, both in the order of the labels,
        `sha256` of the indices of both splits, and the arguments.

    Raises:
        ValueError: an argument that makes no sense, or more images asked for than there are; the classes are named.
    """
    if isinstance(dataset, DatasetDict) and "train" not in dataset:
        raise ValueError(f"the data set has no split 'train', only {', '.join(dataset)}.")
    train = dataset["train"] if isinstance(dataset, DatasetDict) else dataset
    labels, names = _read_labels(train, label_column)
    num_classes = len(names)
    if unlabeled not in UNLABELED_SHAPES:
        raise ValueError(f"`unlabeled` must be one of {', '.join(UNLABELED_SHAPES)}, got {unlabeled!r}.")
    if (custom_counts is None) == (unlabeled == "custom"):
        raise ValueError("`custom_counts` and unlabeled='custom' belong together.")
    if (m1 is None) != (unlabeled in ("custom", "rest")):
        raise ValueError(f"`m1` must be {'given' if m1 is None else 'left out'} for unlabeled={unlabeled!r}.")
    if unlabeled != "rest" and (unknown := int((labels < 0).sum())):
        raise ValueError(f"{unknown} images have no label; only unlabeled='rest' can use them.")
    order = list(range(num_classes)) if class_order is None else list(class_order)
    if sorted(order) != list(range(num_classes)):
        raise ValueError(f"`class_order` must be a permutation of 0 to {num_classes - 1}, got {order}.")

    of_rank = long_tailed_counts(n1, gamma_l, num_classes, uniform_mode)
    class_counts = [of_rank[order.index(k)] for k in range(num_classes)]
    available = np.bincount(labels[labels >= 0], minlength=num_classes)
    if unlabeled == "rest":
        counts = [max(0, int(n)) for n in available - class_counts]
    elif unlabeled == "custom":
        counts = list(custom_counts or [])
        if len(counts) != num_classes or min(counts) < 0:
            raise ValueError(f"`custom_counts` must be {num_classes} counts, one for each class, got {counts}.")
    else:
        gamma = abs(gamma_l) if gamma_u is None else gamma_u
        of_rank = unlabeled_counts(unlabeled, m1 or 0, gamma, num_classes, uniform_mode, seed)
        counts = [of_rank[order.index(k)] for k in range(num_classes)]
    if missing := [
        f"{names[k]} ({class_counts[k]} + {counts[k]} of {available[k]})"
        for k in range(num_classes)
        if class_counts[k] + counts[k] > available[k]
    ]:
        raise ValueError(f"more images asked for than there are, labelled + unlabelled: {', '.join(missing)}.")

    rng = np.random.RandomState(seed)  # the generator of `numpy.random.seed`, which the official code uses
    labeled_rows: list[int] = []
    unlabeled_rows: list[int] = []
    for k in range(num_classes):
        rows = np.where(labels == k)[0]
        rng.shuffle(rows)
        labeled_rows += rows[: class_counts[k]].tolist()
        unlabeled_rows += rows[class_counts[k] : class_counts[k] + counts[k]].tolist()
    unlabeled_rows += np.where(labels < 0)[0].tolist()
    if include_labeled_in_unlabeled:
        unlabeled_rows = labeled_rows + unlabeled_rows
    splits = DatasetDict(train_labeled=train.select(labeled_rows), train_unlabeled=train.select(unlabeled_rows))
    if isinstance(dataset, DatasetDict) and "test" in dataset:
        splits["test"] = dataset["test"]
    arguments: dict[str, Any] = {
        "n1": n1,
        "gamma_l": gamma_l,
        "m1": m1,
        "gamma_u": gamma_u,
        "unlabeled": unlabeled,
        "seed": seed,
    }
    arguments |= {"uniform_mode": uniform_mode, "class_order": order}
    arguments |= {"include_labeled_in_unlabeled": include_labeled_in_unlabeled}
    digests = {name: _digest(rows) for name, rows in (("labeled", labeled_rows), ("unlabeled", unlabeled_rows))}
    return splits, {"class_counts": class_counts, "unlabeled_counts": counts, "sha256": digests, **arguments}


def _digest(rows: list[int]) -> str:
    return hashlib.sha256(np.asarray(rows, dtype="<i8").tobytes()).hexdigest()


def _read_labels(dataset: Dataset, label_column: str) -> tuple[np.ndarray, list[str]]:
    """Labels int64 with -1 for none, and the names of the classes."""
    if label_column not in dataset.column_names:
        raise ValueError(f"the data set has no column {label_column!r}, only {', '.join(dataset.column_names)}.")
    values = [-1 if label is None else label for label in dataset.with_format(None)[label_column]]
    labels = np.asarray(values)
    if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"the column {label_column!r} must hold class ids, got {values[:3]}.")
    if labels.max() > MAX_CLASSES:
        raise ValueError(
            f"the column {label_column!r} has the class id {labels.max()}: number the classes from 0, as "
            "`dataset.class_encode_column` does."
        )
    feature = dataset.features[label_column]
    names = feature.names if isinstance(feature, ClassLabel) else [str(k) for k in range(int(labels.max()) + 1)]
    if labels.max() >= len(names) or labels.min() < -1:
        raise ValueError(f"the column {label_column!r} must hold ids from 0 to {len(names) - 1}, got {labels.max()}.")
    return labels.astype(np.int64), list(names)


def images_to_tensor(images: Sequence[Image.Image], size: int, num_channels: int) -> Tensor:
    """PIL images as uint8 (N, num_channels, size, size), resized (bilinear) where they have another size.

    Args:
        images: of any mode; `None` is an error.
        size: side in pixels.
        num_channels: 3 (RGB) or 1 (luminance).

    Raises:
        ValueError: another number of channels.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"`num_channels` must be 1 or 3, got {num_channels}.")
    result = torch.empty(len(images), num_channels, size, size, dtype=torch.uint8)
    for row, image in zip(result, images):
        image = image.convert("RGB" if num_channels == 3 else "L")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        row.copy_(torch.from_numpy(np.array(image)).view(size, size, num_channels).permute(2, 0, 1))
    return result


class TwoStreamDataset(torch.utils.data.Dataset):
    """Labelled images, then unlabelled ones, under one index; a list of indices is a batch.

    Args:
        labeled: data set with images and labels.
        unlabeled: data set with images; `None` for supervised training. Its labels, if it has any, are for diagnostics.
        size: side of the images in pixels.
        num_channels: 3 or 1.
        image_column, label_column: names of the columns.
        num_labels: K, to check the labels.
        cache: decode all images now and keep them as uint8.

    Raises:
        ValueError: no images, a missing column, a label out of range, or images that can't be used (see
            `hf_methods.data.read_rows`; without `cache` when they are wanted).
    """

    def __init__(
        self,
        labeled: Dataset,
        unlabeled: Dataset | None,
        *,
        size: int,
        num_channels: int,
        num_labels: int,
        image_column: str = "image",
        label_column: str = "label",
        cache: bool = True,
    ):
        for name, dataset in (("labelled", labeled), ("unlabelled", unlabeled)):
            if dataset is not None and len(dataset) == 0:
                raise ValueError(f"the {name} data set is empty.")
            if dataset is not None and image_column not in dataset.column_names:
                raise ValueError(f"the {name} data set has no column {image_column!r}, only {dataset.column_names}.")
        labels, _ = _read_labels(labeled, label_column)
        if labels.min() < 0 or labels.max() >= num_labels:
            raise ValueError(
                f"labels of labelled images must be from 0 to {num_labels - 1}, got {labels.min()} to {labels.max()}."
            )
        self.num_labeled, self.num_unlabeled = len(labeled), 0 if unlabeled is None else len(unlabeled)
        hidden = np.full(self.num_unlabeled, -1)
        if unlabeled is not None and label_column in unlabeled.column_names:
            values = unlabeled.with_format(None)[label_column]
            hidden = np.array([-1 if label is None else int(label) for label in values])
        # Unlabelled images whose class is unknown to the model count as unknown.
        hidden = np.where((hidden >= 0) & (hidden < num_labels), hidden, -1)
        self.labels = torch.from_numpy(np.concatenate([labels, hidden])).long()
        self.size, self.num_channels, self.image_column = size, num_channels, image_column
        self.sources = [dataset.with_format(None) for dataset in (labeled, unlabeled) if dataset is not None]
        self.images = self._read(range(len(self))) if cache else None

    def __len__(self) -> int:
        return self.num_labeled + self.num_unlabeled

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        images = self._read(indices) if self.images is None else self.images[torch.as_tensor(indices)]
        return {"images": images, "labels": self.labels[torch.as_tensor(indices)]}

    def _read(self, indices: Sequence[int]) -> Tensor:
        images = []
        for name, start, source in zip(("labelled", "unlabelled"), (0, self.num_labeled), self.sources):
            rows = [i - start for i in indices if start <= i < start + len(source)]
            for at in range(0, len(rows), 512):  # not all of a large set as PIL images at once
                chunk = read_rows(source, rows[at : at + 512], self.image_column, f"{name} data set")
                images.append(images_to_tensor(chunk[self.image_column], self.size, self.num_channels))
        return torch.cat(images)


class TwoStreamBatchSampler(Sampler[list[int]]):
    """Batches of labelled and unlabelled indices; each stream is an endless chain of permutations.

    Batch i of process r is batch i * num_processes + r of the chain, so that processes together see what one process with
    all of their images would. A set smaller than its share of a batch repeats.

    Args:
        num_labeled, num_unlabeled: sizes of the two sets; unlabelled indices follow the labelled ones.
        batch_size: labelled images of a batch.
        mu: unlabelled images for each labelled one; 0, or no unlabelled images, for supervised training.
        num_batches: length; training stops by steps, not by epochs.
        seed: of the permutations.
        process, num_processes: which part of the chain.

    Raises:
        ValueError: a number that makes no batch.
    """

    def __init__(
        self,
        num_labeled: int,
        num_unlabeled: int,
        batch_size: int,
        mu: int,
        num_batches: int,
        seed: int = 0,
        process: int = 0,
        num_processes: int = 1,
    ):
        if batch_size < 1 or mu < 0 or num_batches < 1 or num_labeled < 1:
            raise ValueError(
                "`batch_size`, `num_batches` and the number of labelled images must be at least 1 and `mu` at least 0, got "
                f"{batch_size}, {num_batches}, {num_labeled} and {mu}."
            )
        self.num_labeled, self.num_unlabeled = num_labeled, num_unlabeled
        self.sizes = (batch_size, batch_size * mu if num_unlabeled else 0)
        self.num_batches, self.seed = num_batches, seed
        self.process, self.num_processes = process, num_processes

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        labeled = self._chain(0, self.num_labeled, self.sizes[0])
        unlabeled = self._chain(1, self.num_unlabeled, self.sizes[1])
        for _ in range(self.num_batches):
            yield next(labeled) + [self.num_labeled + i for i in next(unlabeled)]

    def _chain(self, stream: int, population: int, size: int) -> Iterator[list[int]]:
        """This process' parts of the chain of permutations, `size` indices each."""
        cycle, pool = 0, np.empty(0, dtype=np.int64)
        while True:
            needed = size * self.num_processes
            while len(pool) < needed:
                rng = np.random.default_rng((self.seed, stream, cycle))
                pool, cycle = np.concatenate([pool, rng.permutation(population)]), cycle + 1
            yield pool[size * self.process : size * (self.process + 1)].tolist()
            pool = pool[needed:]


class DataCollatorForImageClassification:
    """Rows with an image and a label as `pixel_values` and `labels`, for evaluation.

    Args:
        image_processor: makes `pixel_values`.
        image_column, label_column: names of the columns.
    """

    def __init__(self, image_processor, image_column: str = "image", label_column: str = "label"):
        self.image_processor, self.image_column, self.label_column = image_processor, image_column, label_column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixel_values = self.image_processor([row[self.image_column] for row in rows], return_tensors="pt")[
            "pixel_values"
        ]
        batch = {"pixel_values": pixel_values}
        if self.label_column in rows[0]:
            batch["labels"] = torch.tensor([row[self.label_column] for row in rows])
        return batch
