# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The protocols of prompt tuning: few-shot draws, base and novel classes, their harmonic mean; image features."""

import hashlib
import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as DatasetImage
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from hf_methods.data import iterate_images, read_rows


if TYPE_CHECKING:
    from hf_methods.subpt.peft_model_subpt import PeftModelForPromptedImageClassification


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
    if num_missing := max(by_class) + 1 - len(by_class):
        first = list(islice((label for label in range(max(by_class)) if label not in by_class), 5))
        more = f" and {num_missing - len(first)} more" if num_missing > len(first) else ""
        raise ValueError(f"the classes {first}{more} have no example; number the classes from 0 without gaps.")
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
        ValueError: no such column, another type, rows without a class, or fewer than 2 classes.
    """
    _check_column(dataset, label_column)
    feature = dataset.features[label_column]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"`{label_column}` must be a ClassLabel, got {feature}; use `class_encode_column`.")  # noqa: TRY004
    labels = list(dataset[label_column])
    if bad := [row for row, label in enumerate(labels) if label is None or label < 0]:
        raise ValueError(f"the column {label_column!r} has no class in the rows {_first(bad)}. Leave them out.")
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


class FeatureDataset(TorchDataset):
    """Cached image features with several views of each image, one of which is drawn each time.

    Args:
        image_embeds: (views, n, dim).
        labels: (n,), int64, 0 or more.

    Rows are `image_embeds` (dim,) and `labels`, drawn with torch's global generator, which `set_seed` sets.

    Raises:
        ValueError: shapes that don't match, features that are not finite, or negative labels; images are named.
    """

    def __init__(self, image_embeds: Tensor, labels: Tensor):
        if image_embeds.ndim != 3 or image_embeds.shape[1] != len(labels):
            raise ValueError(
                f"`image_embeds` must be (views, {len(labels)}, dim) for {len(labels)} labels, got "
                f"{tuple(image_embeds.shape)}."
            )
        if bad := (~image_embeds.isfinite()).any(2).any(0).nonzero().flatten().tolist():
            raise ValueError(
                f"`image_embeds` of {len(bad)} of the {len(labels)} images are not finite: rows {_first(bad)}. Leave them "
                "out, or look for NaN in their pixels."
            )
        if bad := (labels < 0).nonzero().flatten().tolist():
            raise ValueError(f"`labels` must be 0 or more; rows {_first(bad)} have no class. Leave them out.")
        self.image_embeds, self.labels = image_embeds, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        views = len(self.image_embeds)
        view = int(torch.randint(views, ())) if views > 1 else 0
        return {"image_embeds": self.image_embeds[view, index], "labels": int(self.labels[index])}


def cache_image_features(
    model: "PeftModelForPromptedImageClassification",
    dataset: Any,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    views: int = 1,
    batch_size: int = 64,
    image_column: str = "image",
    label_column: str = "label",
) -> FeatureDataset:
    """Features of all images, computed once: the image tower is frozen, so a training step needs no image at all.

    The same training as with images where `transform` is deterministic; with `views` > 1 the random augmentations are a
    fixed pool of that many per image instead of new ones in each epoch.

    Args:
        model: the prompted model; its adapter does not matter.
        dataset: rows with an image (or, without `transform`, `pixel_values`) and a label.
        transform: image -> pixel_values (3, height, width), such as `clip_transform(...)`.
        views: times that each image is transformed.
        batch_size: images at once.
        image_column, label_column: names of the columns.

    Returns:
        `FeatureDataset`, on the CPU in float32.

    Raises:
        ValueError: `views` below 1, no images, images that can't be used (see `hf_methods.data.read_rows`), or features
            that are not finite.
    """
    if views < 1:
        raise ValueError(f"`views` must be at least 1, got {views}.")
    if not len(dataset):
        raise ValueError("there are no images.")
    by_view, labels = [], []
    for view in range(views):
        features = []
        for start in range(0, len(dataset), batch_size):
            rows = range(start, min(start + batch_size, len(dataset)))
            batch = read_rows(dataset, rows, image_column if transform else "pixel_values")
            images = [transform(image) for image in batch[image_column]] if transform else batch["pixel_values"]
            pixel_values = torch.stack([torch.as_tensor(image) for image in images])
            weight = next(model.parameters())
            features.append(model.encode_images(pixel_values.to(model.device, weight.dtype)).float().cpu())
            if view == 0:
                labels += [int(label) for label in batch[label_column]]
        by_view.append(torch.cat(features))
    return FeatureDataset(torch.stack(by_view), torch.tensor(labels))


def clip_transform(image_processor: Any, *, train: bool) -> Callable[[Any], Tensor]:
    """CoOp's image transform: PIL image -> (3, height, width).

    Training: RandomResizedCrop(scale (0.08, 1), bicubic) and a horizontal flip; test: resize of the shorter edge and
    centre crop. Size, mean and standard deviation are the image processor's.

    Args:
        image_processor: of CLIP or SigLIP.
        train: with the random augmentation.
    """
    from torchvision.transforms import v2

    size = image_processor.size
    crop = getattr(image_processor, "crop_size", None) or size
    edge = (crop["height"], crop["width"])
    bicubic = v2.InterpolationMode.BICUBIC
    if train:
        steps = [v2.RandomResizedCrop(edge, scale=(0.08, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()]
    elif "shortest_edge" in size:
        steps = [v2.Resize(size["shortest_edge"], interpolation=bicubic), v2.CenterCrop(edge)]
    else:
        steps = [v2.Resize(edge, interpolation=bicubic)]
    return v2.Compose(
        [
            v2.RGB(),
            *steps,
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(image_processor.image_mean, image_processor.image_std),
        ]
    )


SHAPES, COLORS = ("circle", "square", "triangle"), ("red", "green", "blue", "yellow")


def make_shapes_dataset(images_per_class: int, seed: int = 0, size: int = 32) -> Dataset:
    """Drawn shapes in colours, 12 classes such as "red circle": needs no download; for smoke runs and tests, not results.

    Args:
        images_per_class: images of each class; place, size and background differ.
        seed: of the drawing.
        size: width and height in pixels.

    Returns:
        Features `image` and `label`, a `ClassLabel`.
    """
    names = [f"{color} {shape}" for shape in SHAPES for color in COLORS]
    rows: dict[str, list] = {"image": [], "label": []}
    generator = random.Random(seed)
    for label, name in enumerate(names):
        color, shape = name.split()
        for _ in range(images_per_class):
            image = Image.new("RGB", (size, size), tuple(generator.randrange(64) for _ in range(3)))
            radius = generator.uniform(size / 5, size / 3)
            x, y = (generator.uniform(radius, size - radius) for _ in range(2))
            box, draw = (x - radius, y - radius, x + radius, y + radius), ImageDraw.Draw(image)
            if shape == "circle":
                draw.ellipse(box, fill=color)
            elif shape == "square":
                draw.rectangle(box, fill=color)
            else:
                draw.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=color)
            rows["image"].append(image)
            rows["label"].append(label)
    return Dataset.from_dict(rows, features=Features({"image": DatasetImage(), "label": ClassLabel(names=names)}))


def image_digest(dataset: Dataset, image_column: str = "image", label_column: str = "label") -> str:
    """SHA-256 (first 16 hex digits) over the pixels and labels of a data set, for results.json."""
    digest = hashlib.sha256()
    for image, label in zip(iterate_images(dataset, image_column), dataset[label_column], strict=True):
        digest.update(f"{image.size}{label}".encode() + image.convert("RGB").tobytes())
    return digest.hexdigest()[:16]


def _check_column(dataset: Dataset, label_column: str) -> None:
    if label_column not in dataset.column_names:
        raise ValueError(f"there is no column {label_column!r}, only {', '.join(dataset.column_names)}.")


def _first(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
