# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Weak and strong views of images with their geometry.

A view's geometry is a crop of the image (which may reach over its edge), scaled to the view, perhaps mirrored: four numbers
and a bit, so that boxes of one view map exactly into another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from hf_methods.cross_teaching.detections_cross_teaching import map_boxes


class Geometry(NamedTuple):
    """Where a view of `width` x `height` pixels comes from: a box of the image in pixels, perhaps mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool
    width: int
    height: int

    def scale_and_shift(self) -> tuple[float, float, float, float]:
        """(ax, bx, ay, by): the view's x is ax * x + bx of the image's, and y alike."""
        scale_x, scale_y = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        shift_x, shift_y = -self.left * scale_x, -self.top * scale_y
        return (
            (-scale_x, self.width - shift_x, scale_y, shift_y)
            if self.mirrored
            else (scale_x, shift_x, scale_y, shift_y)
        )


def from_view_to_view(source: Geometry, target: Geometry) -> tuple[float, float, float, float]:
    """The map for `map_boxes` from pixels of one view to those of another view of the same image."""
    ax, bx, ay, by = source.scale_and_shift()
    cx, dx, cy, dy = target.scale_and_shift()
    return cx / ax, dx - cx * bx / ax, cy / ay, dy - cy * by / ay


def render(image: Image.Image, geometry: Geometry, fill: tuple[int, int, int]) -> Image.Image:
    """The view of an RGB image; what lies over its edge is `fill`."""
    left, top, right, bottom = geometry[:4]
    size = (geometry.width, geometry.height)
    inside = 0 <= left and 0 <= top and right <= image.width and bottom <= image.height
    if not inside:
        # Shrink first, so that the canvas has at most about twice the view's side.
        factor = min(1.0, max(2 * geometry.width / (right - left), 2 * geometry.height / (bottom - top)))
        if factor < 1:
            small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            scale_x, scale_y = small[0] / image.width, small[1] / image.height
            image = image.resize(small, Image.Resampling.BILINEAR)
            left, right, top, bottom = left * scale_x, right * scale_x, top * scale_y, bottom * scale_y
        low = (min(0, int(np.floor(left))), min(0, int(np.floor(top))))
        high = (max(image.width, int(np.ceil(right))), max(image.height, int(np.ceil(bottom))))
        canvas = Image.new("RGB", (high[0] - low[0], high[1] - low[1]), fill)
        canvas.paste(image, (-low[0], -low[1]))
        image, left, right, top, bottom = canvas, left - low[0], right - low[0], top - low[1], bottom - low[1]
    box = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))  # rounding
    view = image.resize(size, Image.Resampling.BILINEAR, box=box)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.mirrored else view


@dataclass
class ViewSettings:
    """How views are made.

    Args:
        image_size: pixels of a square view; or with `keep_aspect` of the shortest edge, one of `image_sizes` at random.
        keep_aspect: keep the image's aspect ratio, longest edge at most `max_image_size`.
        image_sizes: shortest edges to choose from.
        max_image_size: longest edge.
        flip: probability of a mirrored view.
        expand: probability that the image is laid on a canvas 1 to 4 times as wide (SSD).
        crop: probability of a random crop: with objects one that overlaps one of them (SSD), without any.
        translation: largest shift, as a share of the view's side.
        strong: "none", "ssd" (brightness, contrast, saturation, hue; also on labelled images, as published),
            "unbiased_teacher" (colour jitter, grey, blur, three erasures) or "light" (brightness, noise, one erasure).
        strong_on_labeled: labelled images get the strong colours too.
        strong_translation: shift of the strong view against the weak one.
        mean, std: of the normalisation, for values 0 to 1.
    """

    image_size: int = 300
    keep_aspect: bool = False
    image_sizes: list[int] | None = None
    max_image_size: int = 1333
    flip: float = 0.5
    expand: float = 0.0
    crop: float = 0.0
    translation: float = 0.0
    strong: str = "unbiased_teacher"
    strong_on_labeled: bool = False
    strong_translation: float = 0.0
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.strong not in ("none", "ssd", "unbiased_teacher", "light"):
            raise ValueError(f"`strong` must be one of none, ssd, unbiased_teacher, light, got {self.strong!r}.")
        for name in ("flip", "expand", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a probability, got {getattr(self, name)}.")

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue


def plain_geometry(width: int, height: int, settings: ViewSettings, shortest: int | None = None) -> Geometry:
    """The whole image, scaled as for evaluation."""
    if settings.keep_aspect:
        scale = (shortest or settings.image_size) / min(width, height)
        scale = min(scale, settings.max_image_size / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
    else:
        size = (settings.image_size, settings.image_size)
    return Geometry(0, 0, width, height, False, *size)


def random_geometry(
    width: int, height: int, boxes: np.ndarray, settings: ViewSettings, rng: np.random.Generator
) -> Geometry:
    """A weak view's geometry.

    Args:
        width, height: of the image.
        boxes: (n, 4) xyxy in pixels, of a labelled image; (0, 4) else: unlabelled images are cropped blindly.
        settings: what may happen.
        rng: random numbers.
    """
    shortest = None
    if settings.keep_aspect and settings.image_sizes:
        shortest = settings.image_sizes[rng.integers(len(settings.image_sizes))]
    plain = plain_geometry(width, height, settings, shortest)
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if rng.random() < settings.expand:
        ratio = rng.uniform(1, 4)
        left, top = -rng.uniform(0, width * (ratio - 1)), -rng.uniform(0, height * (ratio - 1))
        right, bottom = left + width * ratio, top + height * ratio
    if rng.random() < settings.crop:
        left, top, right, bottom = _random_crop((left, top, right, bottom), boxes, rng)
    if settings.translation:
        x, y = rng.uniform(-settings.translation, settings.translation, 2) * (right - left, bottom - top)
        left, top, right, bottom = left + x, top + y, right + x, bottom + y
    mirrored = bool(rng.random() < settings.flip)
    return Geometry(left, top, right, bottom, mirrored, plain.width, plain.height)


def _random_crop(frame, boxes: np.ndarray, rng: np.random.Generator):
    """SSD's crop: sides of 0.3 to 1 of the frame, aspect ratio at most 2; overlaps an object and holds a centre."""
    left, top, right, bottom = frame
    least = rng.choice([0.1, 0.3, 0.7, 0.9, -1.0])
    for _ in range(50):
        width, height = rng.uniform(0.3, 1, 2) * (right - left, bottom - top)
        if not 0.5 <= height / width <= 2:
            continue
        x, y = rng.uniform(left, right - width), rng.uniform(top, bottom - height)
        if len(boxes):
            sides = np.minimum(boxes[:, 2:], (x + width, y + height)) - np.maximum(boxes[:, :2], (x, y))
            overlap = sides.clip(0).prod(1)
            iou = overlap / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + width * height - overlap)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((centre > (x, y)) & (centre < (x + width, y + height))).all(1)
            if not (inside & (iou >= least)).any():
                continue
        return x, y, x + width, y + height
    return frame


def strong_colors(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Colours, blur and erasures of a strong view; boxes stay where they are.

    Args:
        image: float (3, height, width), values 0 to 1.
        kind: as `ViewSettings.strong`.
        rng: random numbers.
    """
    if kind == "none":
        return image
    if kind == "light":
        image = (image * rng.uniform(0.7, 1.3) + rng.uniform(-0.1, 0.1)).clamp(0, 1)
        noise = rng.standard_normal(image.shape).astype(np.float32)
        image = (image + 0.05 * torch.from_numpy(noise)).clamp(0, 1)
        return _erase(image, rng, 0.5, (0.02, 0.1), (0.3, 3.3))
    if kind == "ssd":
        if rng.random() < 0.5:
            image = (image + rng.uniform(-32, 32) / 255).clamp(0, 1)
        if rng.random() < 0.5:
            image = (image * rng.uniform(0.5, 1.5)).clamp(0, 1)
        if rng.random() < 0.5:
            image = tvF.adjust_saturation(image, rng.uniform(0.5, 1.5))
        return tvF.adjust_hue(image, rng.uniform(-0.05, 0.05)) if rng.random() < 0.5 else image
    if rng.random() < 0.8:
        for which in rng.permutation(4):
            if which == 0:
                image = tvF.adjust_brightness(image, rng.uniform(0.6, 1.4))
            elif which == 1:
                image = tvF.adjust_contrast(image, rng.uniform(0.6, 1.4))
            elif which == 2:
                image = tvF.adjust_saturation(image, rng.uniform(0.6, 1.4))
            else:
                image = tvF.adjust_hue(image, rng.uniform(-0.1, 0.1))
    if rng.random() < 0.2:
        image = tvF.rgb_to_grayscale(image, 3)
    if rng.random() < 0.5:
        sigma = rng.uniform(0.1, 2)
        size = 2 * int(np.ceil(2 * sigma)) + 1
        if min(image.shape[-2:]) > size:
            image = tvF.gaussian_blur(image, [size, size], [sigma, sigma])
    for p, scale, ratio in (
        (0.7, (0.05, 0.2), (0.3, 3.3)),
        (0.5, (0.02, 0.2), (0.1, 6)),
        (0.3, (0.02, 0.2), (0.05, 8)),
    ):
        image = _erase(image, rng, p, scale, ratio)
    return image


def _erase(image: Tensor, rng: np.random.Generator, p: float, scale, ratio) -> Tensor:
    if rng.random() >= p:
        return image
    height, width = image.shape[-2:]
    area = rng.uniform(*scale) * height * width
    aspect = np.exp(rng.uniform(*np.log(ratio)))
    h, w = min(height, max(1, round(np.sqrt(area * aspect)))), min(width, max(1, round(np.sqrt(area / aspect))))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    image = image.clone()
    image[:, y : y + h, x : x + w] = torch.from_numpy(rng.random((3, h, w), dtype=np.float32))
    return image


def labels_in_view(objects: dict[str, list], geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Objects (crowds left out) whose centres are in the view: boxes (n, 4) xyxy in its pixels, and labels (n,)."""
    keep = [row for row, crowd in enumerate(objects["iscrowd"]) if not crowd]
    boxes = torch.tensor([objects["bbox"][row] for row in keep], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1)
    labels = torch.tensor([objects["category"][row] for row in keep], dtype=torch.long)
    boxes = map_boxes(boxes, torch.tensor(geometry.scale_and_shift()))
    size = torch.tensor([geometry.width, geometry.height])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    limit = size.repeat(2).to(boxes)
    boxes = torch.minimum(boxes.clamp_min(0), limit)
    inside = ((centre > 0) & (centre < size)).all(1) & (boxes[:, 2:] - boxes[:, :2] > 1e-3).all(1)
    return boxes[inside], labels[inside]
