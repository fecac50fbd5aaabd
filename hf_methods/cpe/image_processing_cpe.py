# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Image processors of CPE models: resize, rescale, normalise.

Written against transformers 5.24 (`TorchvisionBackend`, `PilBackend`).
"""

from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class CPEImageProcessor(TorchvisionBackend):
    """Images to `pixel_values` (N, C, H, W), with torchvision.

    The defaults are those of the official CIFAR-10 runs: 32 x 32, bilinear, RGB, mean and deviation of ImageNet. For a
    model of grayscale images give `do_convert_rgb=False`, and a mean and a deviation of one number.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 32, "width": 32}  # noqa: RUF012 (as transformers declares it)
    do_resize = True
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True


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
