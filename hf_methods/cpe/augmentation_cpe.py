# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The weak and the strong augmentation of FixMatch for a whole batch on its device, bit for bit what PIL gives.

What is random is drawn first, on the host, as one vector of uniform numbers for each image. `weak_augment` and
`strong_augment` apply it to a batch, `weak_augment_pil` and `strong_augment_pil` to one image: the reference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor


CUTOUT_COLOR = (125, 123, 114)
CUTOUT_GRAY = 123  # the same as a luminance
NUM_WEAK, NUM_CUTOUT = 3, 3  # uniform numbers for crop and flip, and for cutout


@dataclass(frozen=True)
class Augmentation:
    """Settings of both augmentations; the defaults are the official code's.

    Args:
        crop_padding: pixels that are reflected at each border before a crop of the image's size is taken.
        horizontal_flip: mirror half of the images; not for digits and letters.
        num_ops: operations of RandAugment, drawn with replacement, each with a magnitude of its own.
        max_cutout: largest side of the square that is cut out, as a share of the width; 0 cuts nothing out.
    """

    crop_padding: int = 4
    horizontal_flip: bool = True
    num_ops: int = 3
    max_cutout: float = 0.5

    def draw(self, num_images: int, seed: tuple[int, ...]) -> Tensor:
        """Uniform numbers for `num_images` images, float64 (N, D) on the host: the same for the same `seed`.

        The first three columns are those of the weak augmentation.
        """
        generator = torch.Generator().manual_seed(_mix(seed))
        width = NUM_WEAK + 2 * self.num_ops + NUM_CUTOUT
        return torch.rand(num_images, width, dtype=torch.float64, generator=generator)


def _mix(seed: tuple[int, ...]) -> int:
    """One 63-bit seed of several numbers (splitmix64), so that neighbours have nothing in common."""
    state = 0
    for number in seed:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std as float32 (N, C, H, W) of uint8 images; mean and std are (C,)."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def weak_augment(images: Tensor, uniforms: Tensor, settings: Augmentation) -> Tensor:
    """Crop with reflected borders, and flip.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3, on any device.
        uniforms: float64 (N, D) on the host, see `Augmentation.draw`.
        settings: see `Augmentation`.

    Returns:
        uint8 of the same shape.

    Raises:
        TypeError: images that are not uint8.
        ValueError: images too small for the padding.
    """
    _check_images(images, settings)
    height, width = images.shape[2:]
    offsets = (uniforms[:, :2] * (2 * settings.crop_padding + 1)).long() - settings.crop_padding  # (N, 2) of y and x
    flip = (uniforms[:, 2] < 0.5) & settings.horizontal_flip
    host = torch.cat([offsets, flip[:, None]], 1).to(images.device, non_blocking=True)
    y = _reflect(host[:, :1] + torch.arange(height, device=images.device), height)  # (N, H)
    x = torch.arange(width, device=images.device).expand(len(images), -1)
    x = _reflect(host[:, 1:2] + torch.where(host[:, 2:].bool(), width - 1 - x, x), width)  # (N, W)
    return _gather_pixels(images, y[:, :, None] * width + x[:, None])


def strong_augment(images: Tensor, uniforms: Tensor, settings: Augmentation) -> Tensor:
    """Crop, flip, RandAugment and Cutout; arguments, result and errors as for `weak_augment`."""
    images = weak_augment(images, uniforms, settings)
    operations, magnitudes, cutout = _split(uniforms, settings)
    for chosen, magnitude in zip(operations.T, magnitudes.T):
        for index, operation in enumerate(OPERATIONS):
            rows = (chosen == index).nonzero()[:, 0]  # on the host: which images an operation gets is known there
            if operation.batched is not None and len(rows):
                values = operation.low + magnitude[rows] * (operation.high - operation.low)
                rows = rows.to(images.device, non_blocking=True)
                images[rows] = operation.batched(images[rows], values)
    if not settings.max_cutout:
        return images
    return _cut_out(images, _cutout_boxes(cutout, images.shape[3], images.shape[2], settings.max_cutout))


def weak_augment_pil(image: Image.Image, uniforms: Tensor, settings: Augmentation) -> Image.Image:
    """`weak_augment` of one image of mode RGB or L, with uniform numbers (D,)."""
    width, height = image.size
    padding = settings.crop_padding
    image = Image.fromarray(
        np.pad(np.asarray(image), ((padding, padding),) * 2 + ((0, 0),) * (image.mode == "RGB"), "reflect")
    )
    y, x = (int(u * (2 * padding + 1)) for u in uniforms[:2].tolist())
    image = image.crop((x, y, x + width, y + height))
    return ImageOps.mirror(image) if settings.horizontal_flip and float(uniforms[2]) < 0.5 else image


def strong_augment_pil(image: Image.Image, uniforms: Tensor, settings: Augmentation) -> Image.Image:
    """`strong_augment` of one image of mode RGB or L, with uniform numbers (D,)."""
    image = weak_augment_pil(image, uniforms, settings)
    operations, magnitudes, cutout = _split(uniforms[None], settings)
    for index, magnitude in zip(operations[0].tolist(), magnitudes[0].tolist()):
        operation = OPERATIONS[index]
        image = operation.pil(image, operation.low + magnitude * (operation.high - operation.low))
    if not settings.max_cutout:
        return image
    image = image.copy()
    box = _cutout_boxes(cutout, *image.size, settings.max_cutout)[0].tolist()
    ImageDraw.Draw(image).rectangle(box, CUTOUT_COLOR if image.mode == "RGB" else CUTOUT_GRAY)
    return image


def augment_one_by_one(
    augment: Callable[..., Image.Image], images: Tensor, uniforms: Tensor, settings: Augmentation
) -> Tensor:
    """`weak_augment_pil` or `strong_augment_pil` of each image of a batch; arguments, result and errors as for these."""
    _check_images(images, settings)
    results = []
    for image, row in zip(images.cpu(), uniforms):
        pil = Image.fromarray(
            image.permute(1, 2, 0).squeeze(2).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
        )
        results.append(
            torch.from_numpy(np.array(augment(pil, row, settings))).view(*image.shape[1:], -1).permute(2, 0, 1)
        )
    return torch.stack(results).to(images.device)


def _check_images(images: Tensor, settings: Augmentation) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"augmentation needs uint8 images, got {images.dtype}; normalise afterwards.")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, C, H, W) with 1 or 3 channels, got {list(images.shape)}.")
    if min(images.shape[2:]) <= settings.crop_padding:
        raise ValueError(
            f"images of {list(images.shape[2:])} pixels are too small for crop_padding={settings.crop_padding}."
        )


def _split(uniforms: Tensor, settings: Augmentation) -> tuple[Tensor, Tensor, Tensor]:
    """Operations (N, num_ops), their magnitudes (N, num_ops), and the numbers of cutout (N, 3)."""
    _, operations, magnitudes, cutout = uniforms.split(
        [NUM_WEAK, settings.num_ops, settings.num_ops, NUM_CUTOUT], dim=1
    )
    return (operations * len(OPERATIONS)).long(), magnitudes, cutout


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


def _gather_pixels(images: Tensor, index: Tensor) -> Tensor:
    """Pixels of flat positions (N, H, W) in each image's plane."""
    num_images, channels, height, width = images.shape
    index = index.view(num_images, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(num_images, channels, height, width)


# --- operations on a batch (n, C, H, W) with magnitudes float64 (n,) on the host, rounding as PIL does -----------------


def _affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Nearest-neighbour transform with matrices (n, 6) from output to input positions, black outside.

    PIL counts in 1/65536 of a pixel, and so does this.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(1)
    fixed = torch.stack([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2], 1)
    fixed = (fixed * 65536 + 0.5).floor().long().to(images.device, non_blocking=True)[:, :, None, None]
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    source_x = (fixed[:, 2] + fixed[:, 0] * x + fixed[:, 1] * y) >> 16  # (n, H, W)
    source_y = (fixed[:, 5] + fixed[:, 3] * x + fixed[:, 4] * y) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    index = source_y.clamp(0, height - 1) * width + source_x.clamp(0, width - 1)
    return _gather_pixels(images, index) * inside[:, None]


def _matrices(values: Tensor, **entries: Tensor) -> Tensor:
    """Identity matrices (n, 6) with some entries, named a to f, replaced."""
    columns = {
        **dict.fromkeys("bcdf", torch.zeros_like(values)),
        **dict.fromkeys("ae", torch.ones_like(values)),
        **entries,
    }
    return torch.stack([columns[name] for name in "abcdef"], 1)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    radians = -torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    y, x = (size / 2 for size in images.shape[2:])
    return _affine(
        images, _matrices(degrees, a=cos, b=sin, c=x - cos * x - sin * y, d=-sin, e=cos, f=y + sin * x - cos * y)
    )


def _shear_x(images: Tensor, shear: Tensor) -> Tensor:
    return _affine(images, _matrices(shear, b=shear))


def _shear_y(images: Tensor, shear: Tensor) -> Tensor:
    return _affine(images, _matrices(shear, d=shear))


def _translate_x(images: Tensor, share: Tensor) -> Tensor:
    return _affine(images, _matrices(share, c=share * images.shape[3]))


def _translate_y(images: Tensor, share: Tensor) -> Tensor:
    return _affine(images, _matrices(share, f=share * images.shape[2]))


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Each pixel's value in a table uint8 (n, C or 1, 256)."""
    tables = tables.expand(-1, images.shape[1], -1)
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = (
        images.flatten(2).amin(2, keepdim=True).long(),
        images.flatten(2).amax(2, keepdim=True).long(),
    )  # (n, C, 1)
    # PIL rounds down in float64, where 255 / (high - low) * ... may be just under a whole number.
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    span = (high - low).clamp_min(1).to(dtype)
    scale = torch.full_like(span, 255.0) / span  # 255.0 / span would be the reciprocal, rounded, times 255
    tables = (_levels(images) * scale + -low * scale).long().clamp(0, 255)
    return _look_up(images, torch.where(high > low, tables, _levels(images)).byte())


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    pixels = images.flatten(2).long()
    histograms = torch.zeros(*pixels.shape[:2], 256, dtype=torch.long, device=images.device)
    histograms = histograms.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = histograms.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    before = histograms.cumsum(2) - histograms
    tables = ((step // 2 + before) // step.clamp_min(1)).clamp_max(255)
    return _look_up(images, torch.where(step > 0, tables, _levels(images)).byte())


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    masks = 256 - 2 ** (8 - bits.long().clamp_min(1))
    return images & masks.byte().to(images.device, non_blocking=True)[:, None, None, None]


def _solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    # Below a threshold of whole levels is what is below it rounded up.
    levels = thresholds.ceil().long().to(images.device, non_blocking=True)
    return torch.where(images < levels[:, None, None, None], images, 255 - images)


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate), rounded down."""
    degenerate = degenerate.float()
    factors = factors.float().to(images.device, non_blocking=True)[:, None, None, None]
    return (degenerate + factors * (images - degenerate)).byte()


def _luminance(images: Tensor) -> Tensor:
    """int32 (n, 1, H, W)."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images[:, :1, :1, :1]), images, factors)


def _color(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(_luminance(images), images, factors)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    count = images.shape[2] * images.shape[3]
    total = _luminance(images).flatten(1).sum(1)
    return _blend(((2 * total + count) // (2 * count))[:, None, None, None], images, factors)


def _sharpness(images: Tensor, factors: Tensor) -> Tensor:
    values = images.int()
    smooth = values.clone()  # PIL leaves the border as it is
    if min(images.shape[2:]) > 2:
        rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
        sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = (2 * sums + 13) // 26  # sums / 13, rounded
    return _blend(smooth, images, factors)


def _cutout_boxes(uniforms: Tensor, width: int, height: int, max_cutout: float) -> Tensor:
    """Left, top, right, bottom (N, 4), all of them inside the square, of uniform numbers (N, 3) for x, y and side."""
    side = uniforms[:, 2] * max_cutout * width
    left = (uniforms[:, 0] * width - side / 2).clamp_min(0).long()
    top = (uniforms[:, 1] * height - side / 2).clamp_min(0).long()
    return torch.stack([left, top, (left + side).clamp_max(width).long(), (top + side).clamp_max(height).long()], 1)


def _cut_out(images: Tensor, boxes: Tensor) -> Tensor:
    left, top, right, bottom = boxes.to(images.device, non_blocking=True)[:, :, None].unbind(1)  # (N, 1)
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    inside = ((y >= top) & (y <= bottom))[:, :, None] & ((x >= left) & (x <= right))[:, None]
    color = torch.tensor(CUTOUT_COLOR if images.shape[1] == 3 else [CUTOUT_GRAY], dtype=torch.uint8)
    return torch.where(inside[:, None], color.to(images.device, non_blocking=True)[:, None, None], images)


def _pil_affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


@dataclass(frozen=True)
class Operation:
    """An operation of RandAugment, its magnitudes, and its two forms."""

    name: str
    low: float
    high: float
    batched: Callable[[Tensor, Tensor], Tensor] | None  # None: leaves images as they are
    pil: Callable[[Image.Image, float], Image.Image]


OPERATIONS = (
    Operation("AutoContrast", 0, 1, _auto_contrast, lambda image, _: ImageOps.autocontrast(image)),
    Operation("Brightness", 0.05, 0.95, _brightness, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    Operation("Color", 0.05, 0.95, _color, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    Operation("Contrast", 0.05, 0.95, _contrast, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    Operation("Equalize", 0, 1, _equalize, lambda image, _: ImageOps.equalize(image)),
    Operation("Identity", 0, 1, None, lambda image, _: image),
    Operation("Posterize", 4, 8, _posterize, lambda image, v: ImageOps.posterize(image, max(1, int(v)))),
    Operation("Rotate", -30, 30, _rotate, lambda image, v: image.rotate(v)),
    Operation("Sharpness", 0.05, 0.95, _sharpness, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    Operation("ShearX", -0.3, 0.3, _shear_x, lambda image, v: _pil_affine(image, 1, v, 0, 0, 1, 0)),
    Operation("ShearY", -0.3, 0.3, _shear_y, lambda image, v: _pil_affine(image, 1, 0, 0, v, 1, 0)),
    Operation("Solarize", 0, 256, _solarize, lambda image, v: ImageOps.solarize(image, math.ceil(v))),
    Operation("TranslateX", -0.3, 0.3, _translate_x, lambda i, v: _pil_affine(i, 1, 0, v * i.size[0], 0, 1, 0)),
    Operation("TranslateY", -0.3, 0.3, _translate_y, lambda i, v: _pil_affine(i, 1, 0, 0, 0, 1, v * i.size[1])),
)
