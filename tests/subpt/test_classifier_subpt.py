# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The cached classifier and cached image features: the same numbers as the prompted model."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from tiny_subpt import (
    DIM,
    NAMES,
    OTHERS,
    embeddings,
    image_processor,
    images,
    make_clip,
    make_model,
    make_open_clip,
    make_siglip,
)
from transformers import AutoModelForImageClassification, pipeline

from hf_methods.subpt import (
    FeatureDataset,
    PromptedImageClassifier,
    PromptedImageClassifierConfig,
    cache_image_features,
    clip_transform,
)


CLEAN = [name.replace("_", " ") for name in NAMES]


@pytest.mark.parametrize("maker", [make_clip, make_siglip])
def test_the_classifier_has_the_logits_of_the_prompted_model(maker, tmp_path):
    model = make_model(maker).eval()
    with torch.no_grad():
        expected = model(images()).logits
    classifier = model.build_classifier()
    assert classifier.config.id2label == dict(enumerate(CLEAN)) and classifier.config.num_labels == len(NAMES)
    output = classifier(images(), labels=torch.arange(4))
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(expected, torch.arange(4)))
    classifier.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is PromptedImageClassifier
    torch.testing.assert_close(loaded(images()).logits, output.logits, rtol=0, atol=0)
    assert not any("text" in name for name in loaded.state_dict())
    others = model.build_classifier(OTHERS, chunk_size=2)
    assert list(others.config.id2label.values()) == OTHERS and model.class_names == CLEAN
    model.set_classes(OTHERS)
    with torch.no_grad():
        torch.testing.assert_close(others(images()).logits, model(images()).logits, rtol=1e-5, atol=1e-5)


def test_the_classifier_is_a_copy():
    model = make_model().eval()
    classifier = model.build_classifier()
    before = classifier(images()).logits
    with torch.no_grad():
        model.context.zero_()
        for param in model.get_base_model().vision_model.parameters():
            param.zero_()
    assert torch.equal(classifier(images()).logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_gives_a_classifier_of_its_dtype_with_float32_logits(dtype, tmp_path):
    model = make_model(lambda: make_clip().to(dtype)).eval()
    classifier = model.build_classifier()
    assert classifier.vision_tower.dtype == dtype and classifier.class_weight.dtype == torch.float32
    with torch.no_grad():
        expected = model(images().to(dtype)).logits
        torch.testing.assert_close(classifier(images().to(dtype)).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_stock_pipeline_runs_the_classifier(tmp_path):
    model = make_model().eval()
    classifier = model.build_classifier()
    classifier.save_pretrained(tmp_path)
    image_processor().save_pretrained(tmp_path)
    image = Image.new("RGB", (20, 18), (200, 30, 60))
    answers = pipeline("image-classification", model=str(tmp_path))(image, top_k=5)
    with torch.no_grad():
        expected = model(image_processor()(image, return_tensors="pt")["pixel_values"]).logits.softmax(-1)[0]
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        dict(zip(CLEAN, expected.tolist())), abs=1e-4
    )


CODE = """
import sys
sys.modules["hf_methods"] = sys.modules["peft"] = None  # importing them is an error from here on
import torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
images = torch.load(sys.argv[2])
torch.save(model(images).logits, sys.argv[3])
"""


@pytest.mark.slow
def test_a_checkpoint_carries_its_code(tmp_path):
    folder = tmp_path / "checkpoint"
    classifier = make_model().build_classifier()
    classifier.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["auto_map"] == {
        "AutoConfig": "configuration_subpt.PromptedImageClassifierConfig",
        "AutoModelForImageClassification": "modeling_subpt.PromptedImageClassifier",
    }
    torch.save(images(), tmp_path / "images.pt")
    paths = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", CODE, *paths], check=True, env=environment, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), classifier(images()).logits, rtol=0, atol=1e-6)


def test_what_has_no_classifier_is_named():
    with pytest.raises(ValueError, match="SigLIP and SigLIP 2 of transformers, got CLIP"):
        make_model(make_open_clip).build_classifier()
    with pytest.raises(StrictDataclassClassValidationError, match="must be one of clip_vision_model, .*'vit'"):
        PromptedImageClassifierConfig(vision_config={"model_type": "vit"})
    with pytest.raises(ValueError, match="`pixel_values` is missing"):
        make_model().build_classifier()()


# --- cached image features -------------------------------------------------------------------------------------------


def picture_rows(number=6):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (number, 18, 27, 3), generator=generator, dtype=torch.uint8).numpy()
    return [{"image": Image.fromarray(picture), "label": index % 5} for index, picture in enumerate(pictures)]


def test_cached_features_are_those_of_the_images():
    model, rows, transform = make_model(), picture_rows(), clip_transform(image_processor(), train=False)
    cached = cache_image_features(model, rows, transform=transform, batch_size=4)
    pixel_values = torch.stack([transform(row["image"]) for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    expected = model(pixel_values, labels=labels)
    stored = torch.stack([cached[index]["image_embeds"] for index in range(len(cached))])
    torch.testing.assert_close(stored, expected.image_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(image_embeds=stored, labels=cached.labels).loss, expected.loss)
    hub = Dataset.from_list(rows)
    torch.testing.assert_close(
        cache_image_features(model, hub, transform=transform).image_embeds, cached.image_embeds, rtol=1e-5, atol=1e-6
    )


def test_the_test_transform_is_the_image_processors():
    for row in picture_rows(3):
        expected = image_processor()(row["image"], return_tensors="pt")["pixel_values"][0]
        ours = clip_transform(image_processor(), train=False)(row["image"])
        assert ours.shape == (3, 16, 16) and (ours - expected).abs().max() < 0.05  # two resizers' rounding


def test_views_are_different_augmentations_drawn_with_the_seed():
    model, rows = make_model(), picture_rows()
    torch.manual_seed(0)
    cached = cache_image_features(model, rows, transform=clip_transform(image_processor(), train=True), views=3)
    assert cached.image_embeds.shape == (3, 6, DIM) and cached.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert (cached.image_embeds[0] - cached.image_embeds[1]).norm(dim=-1).min() > 1e-3
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.stack([cached[index]["image_embeds"] for index in range(6)]))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_bad_caches_are_named():
    with pytest.raises(ValueError, match="`views` must be at least 1, got 0"):
        cache_image_features(make_model(), picture_rows(), views=0)
    with pytest.raises(ValueError, match="no images"):
        cache_image_features(make_model(), [])
    with pytest.raises(ValueError, match=r"must be \(views, 4, dim\) for 4 labels, got \(3, 24\)"):
        FeatureDataset(embeddings(3), torch.arange(4))
