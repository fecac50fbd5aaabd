# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The data set and the collator of the training: what each detector sees, and when.

All randomness of a sample comes from (seed, number of the sample, detector): it does not depend on workers, processes or
where a run was resumed.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_methods.cross_teaching.data_cross_teaching import BadImageError, open_image
from hf_methods.cross_teaching.views_cross_teaching import (
    ViewSettings,
    from_view_to_view,
    labels_in_view,
    random_geometry,
    render,
    strong_colors,
)


logger = logging.get_logger(__name__)

# Decoded images that a process keeps, so that small sets are decoded once.
CACHED_BYTES = 256 * 2**20


def _as_tensor(view: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).float() / 255


@dataclass
class SemiSupervisedDetectionDataset(torch.utils.data.Dataset):
    """Sample i: for each detector one labelled image, and `unlabeled_ratio` unlabelled ones in a weak and a strong view.

    Each detector goes through its own permutations of the labelled and the unlabelled images, so a set smaller than a
    batch is sampled again. An image that can't be read is counted and gives way to the next one.

    Args:
        labeled: detection data set with objects.
        unlabeled: detection data set; its objects are not used. None: supervised training.
        num_samples: samples of the whole training: steps x samples a step.
        num_detectors: M.
        unlabeled_ratio: unlabelled images for one labelled.
        shared_unlabeled: all detectors get the same unlabelled images and views.
        views: how views are made.
        seed: of the permutations and views.
        with_truth: give the objects of unlabelled images along, where known, to measure pseudo labels.
    """

    labeled: Dataset
    unlabeled: Dataset | None
    num_samples: int
    num_detectors: int = 2
    unlabeled_ratio: int = 1
    shared_unlabeled: bool = False
    views: ViewSettings = field(default_factory=ViewSettings)
    seed: int = 0
    with_truth: bool = False
    num_unreadable: int = 0

    def __post_init__(self) -> None:
        if not len(self.labeled):
            raise ValueError("`labeled` has no images.")
        if self.unlabeled is not None and not len(self.unlabeled):
            raise ValueError("`unlabeled` has no images; pass None to train on labelled images only.")
        if self.unlabeled_ratio < 1:
            raise ValueError(f"`unlabeled_ratio` must be at least 1, got {self.unlabeled_ratio}.")
        self._orders: dict[tuple, np.ndarray] = {}
        self._decoded: dict[tuple[int, int], tuple[dict[str, Any], Image.Image]] = {}
        self._decoded_bytes = 0

    def __getstate__(self) -> dict[str, Any]:  # to a worker
        return {**self.__dict__, "_decoded": {}, "_decoded_bytes": 0}

    def __len__(self) -> int:
        return self.num_samples

    def _index(self, stream: int, detector: int, position: int, size: int) -> int:
        """Which image is at `position` of a detector's endless row of permutations."""
        key = (stream, detector, position // size)
        if key not in self._orders:
            if len(self._orders) > 4 * (self.num_detectors + 1):
                self._orders.clear()
            self._orders[key] = np.random.default_rng([self.seed, *key]).permutation(size)
        return int(self._orders[key][position % size])

    def _read(self, dataset: Dataset, index: int) -> tuple[dict[str, Any], Image.Image]:
        for offset in range(len(dataset)):
            key = (id(dataset), (index + offset) % len(dataset))
            if key in self._decoded:
                return self._decoded[key]
            row = dataset[key[1]]
            try:
                found = row, open_image(row["image"], (row["width"], row["height"]))
                size = 3 * found[1].width * found[1].height
                if self._decoded_bytes + size <= CACHED_BYTES:
                    self._decoded[key] = found
                    self._decoded_bytes += size
                return found
            except BadImageError as error:
                self.num_unreadable += 1
                logger.warning(f"{error} The next image takes its place ({self.num_unreadable} so far).")
        raise ValueError("no image of the data set can be read.")

    def __getitem__(self, number: int) -> dict[str, Any]:
        num_streams, before = 1 if self.shared_unlabeled else self.num_detectors, self.num_unreadable
        unlabeled = []
        if self.unlabeled is not None:
            for detector in range(num_streams):
                positions = range(number * self.unlabeled_ratio, (number + 1) * self.unlabeled_ratio)
                unlabeled.append([self._unlabeled_sample(detector, position) for position in positions])
        labeled = [self._labeled_sample(detector, number) for detector in range(self.num_detectors)]
        # With the sample, as a worker's own count does not reach the trainer.
        return {"labeled": labeled, "unlabeled": unlabeled, "num_unreadable": self.num_unreadable - before}

    def _labeled_sample(self, detector: int, position: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, 2, detector, position])
        row, image = self._read(self.labeled, self._index(0, detector, position, len(self.labeled)))
        corners = np.asarray(row["objects"]["bbox"], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        geometry = random_geometry(*image.size, corners, self.views, rng)
        pixels = _as_tensor(render(image, geometry, self.views.fill))
        if self.views.strong_on_labeled:
            pixels = strong_colors(pixels, self.views.strong, rng)
        boxes, labels = labels_in_view(row["objects"], geometry)
        return {"pixels": self._normalise(pixels), "boxes": boxes, "labels": labels}

    def _unlabeled_sample(self, detector: int, position: int) -> dict[str, Any]:
        assert self.unlabeled is not None
        rng = np.random.default_rng([self.seed, 3, detector, position])
        row, image = self._read(self.unlabeled, self._index(1, detector, position, len(self.unlabeled)))
        weak = random_geometry(*image.size, np.zeros((0, 4)), self.views, rng)
        strong = weak
        if self.views.strong_translation:
            x, y = rng.uniform(-self.views.strong_translation, self.views.strong_translation, 2)
            x, y = x * (weak.right - weak.left), y * (weak.bottom - weak.top)
            strong = weak._replace(left=weak.left + x, right=weak.right + x, top=weak.top + y, bottom=weak.bottom + y)
        weak_pixels = _as_tensor(render(image, weak, self.views.fill))
        strong_pixels = weak_pixels if strong == weak else _as_tensor(render(image, strong, self.views.fill))
        sample = {
            "weak": self._normalise(weak_pixels),
            "strong": self._normalise(strong_colors(strong_pixels, self.views.strong, rng)),
            "weak_to_strong": torch.tensor(from_view_to_view(weak, strong), dtype=torch.float32),
        }
        if self.with_truth and row["is_labeled"]:
            sample["boxes"], sample["labels"] = labels_in_view(row["objects"], strong)
        return sample

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.views.mean, self.views.std))
        return (pixels - mean) / std


def stack_images(images: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Images (3, h, w) padded with 0, right and below, to one size: (n, 3, H, W) and the mask (n, H, W), None if not padded."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(images), None
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    return batch, mask


def as_detr_labels(boxes: Tensor, labels: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Boxes xyxy in pixels as DETR's: dict(class_labels, boxes: centre x, y, width, height as shares of the batch's images)."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    scale = boxes.new_tensor([width, height])
    return {"class_labels": labels, "boxes": torch.cat([centre / scale, size / scale], -1)}


class DataCollatorForCrossTeaching:
    """Samples of `SemiSupervisedDetectionDataset` as one batch, detector by detector.

    Returns:
        `labeled`: for each detector dict(pixel_values (B, 3, H, W), labels, and if padded pixel_mask); `unlabeled`: for
        each detector (or one, if shared) dict(weak, strong (r B, 3, H, W), weak_to_strong (r B, 4), truth, and masks);
        `num_unreadable`: how often an image could not be read.
    """

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        labeled = [self._labeled(list(column)) for column in zip(*(sample["labeled"] for sample in samples))]
        unlabeled = [
            self._unlabeled([sample for samples in column for sample in samples])
            for column in zip(*(sample["unlabeled"] for sample in samples))
        ]
        num_unreadable = sum(sample["num_unreadable"] for sample in samples)
        return {"labeled": labeled, "unlabeled": unlabeled, "num_unreadable": num_unreadable}

    @staticmethod
    def _labeled(samples: list[dict[str, Any]]) -> dict[str, Any]:
        pixel_values, mask = stack_images([sample["pixels"] for sample in samples])
        size = pixel_values.shape[-2:]
        labels = [as_detr_labels(sample["boxes"], sample["labels"], *size) for sample in samples]
        batch = {"pixel_values": pixel_values, "labels": labels}
        return batch if mask is None else {**batch, "pixel_mask": mask}

    @staticmethod
    def _unlabeled(samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"weak_to_strong": torch.stack([sample["weak_to_strong"] for sample in samples])}
        for view in ("weak", "strong"):
            batch[view], mask = stack_images([sample[view] for sample in samples])
            if mask is not None:
                batch[f"{view}_mask"] = mask
        if all("boxes" in sample for sample in samples):
            batch["truth"] = [{"boxes": sample["boxes"], "labels": sample["labels"]} for sample in samples]
        return batch
