# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Both image processors against torchvision's plain transforms."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from transformers import AutoImageProcessor

from hf_methods.cpe import CPEConfig, CPEImageProcessor, CPEImageProcessorPil


PROCESSORS = [CPEImageProcessor, CPEImageProcessorPil]
IMAGENET = [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)]


def picture(mode="RGB", size=(32, 32)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("processor_class", PROCESSORS)
def test_evaluation_images_are_those_of_the_official_transform(processor_class):
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*IMAGENET)])(picture())
    pixel_values = processor_class()(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, expected[None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("processor_class", PROCESSORS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb_of_the_right_size(processor_class, mode):
    pixel_values = processor_class()([picture(mode, (40, 20))], return_tensors="pt")["pixel_values"]
    resize = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(*IMAGENET)])
    expected = resize(picture(mode, (40, 20)).convert("RGB"))
    assert pixel_values.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixel_values[0], expected, rtol=0, atol=0.02)  # a level of uint8, rounded differently


@pytest.mark.parametrize("processor_class", PROCESSORS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grayscale_images_stay_grayscale_also_if_a_pipeline_made_them_rgb(mode, processor_class):
    size = {"height": 28, "width": 28}
    processor = processor_class(do_convert_rgb=False, size=size, image_mean=[0.13], image_std=[0.31])
    image = picture("L", (28, 28))
    expected = (torch.from_numpy(np.array(image)) / 255 - 0.13) / 0.31
    torch.testing.assert_close(
        processor(image, return_tensors="pt")["pixel_values"][0, 0], expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("processor_class", PROCESSORS)
def test_a_processor_is_loaded_as_it_was_saved(processor_class, tmp_path):
    processor_class(image_mean=[0.1, 0.2, 0.3], size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    CPEConfig().save_pretrained(tmp_path)
    backend = "pil" if processor_class is CPEImageProcessorPil else "torchvision"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is processor_class and list(loaded.image_mean) == [0.1, 0.2, 0.3]
    assert loaded(picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
