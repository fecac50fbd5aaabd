# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The pipeline's experts and priors against the model's own logits; everything else is `image-classification`."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_methods.cpe import CPEConfig, CPEForImageClassification, CPEImageClassificationPipeline, CPEImageProcessor


COUNTS = [9, 5, 2]
NAMES = {0: "ant", 1: "bee", 2: "cat"}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    config = CPEConfig(id2label=NAMES, class_counts=COUNTS, depth=10, widen_factor=1, image_size=16, group_cuts=[1, 2])
    model = CPEForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # answers that differ
    return CPEImageClassificationPipeline(
        model=model, image_processor=CPEImageProcessor(size={"height": 16, "width": 16})
    )


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="module")
def expert_logits(classifier, images):
    inputs = classifier.image_processor(images, return_tensors="pt")
    with torch.no_grad():
        return classifier.model(**inputs).expert_logits.double()  # (images, experts, classes)


def scores(records):
    return {record["label"]: record["score"] for record in records}


def expected(logits):
    return {NAMES[k]: pytest.approx(value, abs=1e-6) for k, value in enumerate(logits.softmax(-1).tolist())}


@pytest.mark.parametrize(
    ("expert", "index"), [("long_tailed", 0), ("uniform", 1), ("inverse", 2), (0, 0), (2, 2), (None, 1)]
)
def test_the_expert_that_is_asked_answers(expert, index, classifier, images, expert_logits):
    options = {} if expert is None else {"expert": expert}
    for image, logits in zip(images, expert_logits, strict=True):
        assert scores(classifier(image, **options)) == expected(logits[index])


def test_mean_is_the_mean_of_probabilities(classifier, images, expert_logits):
    mean = expert_logits.softmax(-1).mean(1)
    for image, probabilities in zip(images, mean, strict=True):
        assert scores(classifier(image, expert="mean")) == expected(probabilities.log())


def test_a_prior_multiplies_probabilities(classifier, images, expert_logits):
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    for image, logits in zip(images, expert_logits, strict=True):
        product = logits[1].softmax(-1) * prior
        assert scores(classifier(image, target_prior=[7, 2, 1])) == expected((product / product.sum()).log())


def test_a_class_that_cannot_occur_is_not_answered(classifier, images):
    for image in images:
        assert scores(classifier(image, target_prior=[1, 0, 1]))["bee"] == 0


def test_the_experts_scores_and_their_agreement(classifier, images, expert_logits):
    for image, logits in zip(images, expert_logits, strict=True):
        records = classifier(image, return_experts=True)
        assert scores(records) == scores(classifier(image))
        for record in records:
            k = list(NAMES.values()).index(record["label"])
            assert record["expert_scores"] == pytest.approx(logits.softmax(-1)[:, k].tolist(), abs=1e-6)
            assert record["agreement"] == (logits.argmax(-1) == k).double().mean()
        assert sum(record["agreement"] for record in records) == pytest.approx(1)


def test_a_batch_gives_what_each_image_gives_alone(classifier, images):
    options = {"return_experts": True, "top_k": 2, "target_prior": [1, 2, 3]}
    together = classifier(images, batch_size=3, **options)
    for records, image in zip(together, images, strict=True):
        alone = classifier(image, **options)
        assert [record["label"] for record in records] == [record["label"] for record in alone]
        assert [record["score"] for record in records] == pytest.approx(
            [record["score"] for record in alone], abs=1e-5
        )


def test_without_options_it_is_image_classification(classifier, images):
    stock = pipeline("image-classification", model=classifier.model, image_processor=classifier.image_processor)
    assert classifier(images) == stock(images)
    assert classifier(images[0], top_k=1) == stock(images[0], top_k=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert": "tail"}, "`expert` must be one of long_tailed, uniform, inverse, mean or 0 to 2, got 'tail'"),
        ({"expert": 3}, "got 3"),
        ({"expert": True}, "got True"),
        ({"target_prior": [1, 2]}, "one number for each of 3 classes"),
        ({"target_prior": [1, -1, 1]}, "non-negative"),
        ({"target_prior": [0, 0, 0]}, "positive sum"),
    ],
)
def test_bad_options_are_named(options, message, classifier, images):
    with pytest.raises(ValueError, match=message):
        classifier(images[0], **options)
