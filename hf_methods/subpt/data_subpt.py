# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The protocols of prompt tuning: few-shot draws, base and novel classes, and their harmonic mean."""

import random
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset


def few_shot_indices(labels: Sequence[int], k: int, seed: int) -> list[int]:
    """Indices of `k` examples of each class, drawn without replacement; all of a class that has fewer.

    The protocol of CoOp (`generate_fewshot_dataset`), with a generator of its own: the draw of a class depends neither
    on global state nor on the other classes' sizes.

    Args:
        labels: class of each example.
        k: shots a class, at least 1.
        seed: of the draw.

    Returns:
        Ascending indices into `labels`.

    Raises:
        ValueError: `k` below 1, no examples, or a class that `labels` skips.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(index)
    if not by_class:
        raise ValueError("there are no examples to draw from.")
    if min(by_class) < 0:
        raise ValueError(f"labels must be 0 or more, got {min(by_class)}.")
    if missing := sorted(set(range(max(by_class) + 1)) - by_class.keys()):
        raise ValueError(f"the classes {missing} have no example; number the classes from 0 without gaps.")
    chosen: list[int] = []
    for label, indices in by_class.items():
        chosen += random.Random(f"{seed}/{label}").sample(indices, min(k, len(indices)))
    return sorted(chosen)


def few_shot_subset(dataset: Dataset, k: int, seed: int, label_column: str = "label") -> Dataset:
    """The rows of `few_shot_indices`.

    Args:
        dataset: a data set with a column of class numbers.
        k: shots a class.
        seed: of the draw.
        label_column: the column.

    Raises:
        ValueError: as `few_shot_indices`; no such column; or a class of a `ClassLabel` without an example.
    """
    _check_column(dataset, label_column)
    labels = dataset[label_column]
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel) and (empty := sorted(set(range(feature.num_classes)) - set(labels))):
        names = [feature.names[label] for label in empty]
        raise ValueError(f"these classes have no example to draw: {names}.")
    return dataset.select(few_shot_indices(labels, k, seed))


def base_novel_split(labels_or_names: Sequence[Any]) -> tuple[list, list]:
    """The first half of the classes (rounded up) for training, the second as new ones.

    `subsample_classes` of CoOp's data sets: base = the first ceil(n / 2) classes in the order of their numbers.

    Args:
        labels_or_names: class numbers, repeated or not, which are sorted; or distinct class names in the order of their
            numbers.

    Returns:
        Base and novel classes.

    Raises:
        ValueError: fewer than 2 classes, or a name twice.
    """
    if all(isinstance(item, str) for item in labels_or_names):
        classes = list(labels_or_names)
        if len(set(classes)) < len(classes):
            repeated = sorted({name for name in classes if classes.count(name) > 1})
            raise ValueError(f"class names must differ, these are there twice: {repeated}.")
    else:
        classes = sorted({int(label) for label in labels_or_names})
    if len(classes) < 2:
        raise ValueError(f"a split into base and novel needs at least 2 classes, got {len(classes)}.")
    half = (len(classes) + 1) // 2
    return classes[:half], classes[half:]


def split_base_novel(dataset: Dataset, label_column: str = "label") -> tuple[Dataset, Dataset]:
    """`dataset` in its base and its novel classes, each numbered from 0 with a `ClassLabel` of its own names.

    Args:
        dataset: a data set whose `label_column` is a `ClassLabel`.
        label_column: the column.

    Raises:
        ValueError: no such column, another type, or fewer than 2 classes.
    """
    _check_column(dataset, label_column)
    feature = dataset.features[label_column]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"`{label_column}` must be a ClassLabel, got {feature}; use `class_encode_column`.")  # noqa: TRY004
    labels = list(dataset[label_column])
    parts = []
    for half in base_novel_split(range(feature.num_classes)):
        rows = [index for index, label in enumerate(labels) if label in set(half)]
        relabelled = [half.index(labels[index]) for index in rows]
        names = ClassLabel(names=[feature.names[label] for label in half])
        part = dataset.select(rows).remove_columns(label_column)
        parts.append(part.add_column(label_column, relabelled).cast_column(label_column, names))
    return parts[0], parts[1]


def harmonic_mean(base: float, novel: float) -> float:
    """H = 2 b n / (b + n) of base and novel accuracy; 0 where both are 0.

    Raises:
        ValueError: a negative value.
    """
    if base < 0 or novel < 0:
        raise ValueError(f"accuracies can't be negative, got {base} and {novel}.")
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def _check_column(dataset: Dataset, label_column: str) -> None:
    if label_column not in dataset.column_names:
        raise ValueError(f"there is no column {label_column!r}, only {', '.join(dataset.column_names)}.")
