# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Image processors of CPE models: resize, rescale, normalise.

Written against transformers 5.24 (`TorchvisionBackend`, `PilBackend`).
"""

from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


def _as_grayscale(image):
    return image.convert("L") if isinstance(image, Image.Image) else image


class CPEImageProcessor(TorchvisionBackend):
    """Images to `pixel_values` (N, C, H, W), with torchvision.

    The defaults are those of the official CIFAR-10 runs: 32 x 32, bilinear, RGB, mean and deviation of ImageNet. For a
    model of grayscale images give `do_convert_rgb=False`, and a mean and a deviation of one number: PIL images of any mode
    then become grayscale, as pipelines hand over RGB.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 32, "width": 32}  # noqa: RUF012 (as transformers declares it)
    do_resize = True
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True

    def process_image(self, image, do_convert_rgb=None, **kwargs):
        """One image as a tensor or array, channels first."""
        image = _as_grayscale(image) if len(self.image_mean) == 1 and not do_convert_rgb else image
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


class CPEImageProcessorPil(PilBackend):
    """`CPEImageProcessor` with PIL and NumPy, where torchvision is missing."""

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 32, "width": 32}  # noqa: RUF012
    do_resize = True
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True

    def process_image(self, image, do_convert_rgb=None, **kwargs):
        """One image as a tensor or array, channels first."""
        image = _as_grayscale(image) if len(self.image_mean) == 1 and not do_convert_rgb else image
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
