# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The pipeline is the stock one with the stored prompt, and encodes labels once."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_subpt import make_checkpoint
from PIL import Image
from tiny_subpt import image_processor, make_model, make_siglip, make_tokenizer
from transformers import pipeline

from hf_methods.hub import upload
from hf_methods.subpt import PromptedZeroShotPipeline, export_merged
from hf_methods.subpt.pipeline_subpt import CACHED_LABEL_SETS, TASK
from hf_methods.subpt.publishing_subpt import save_repository


LABELS = ["cat", "sea lion", "ox"]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "merged"
    export_merged(make_model().eval(), folder, image_processor())
    return folder


@pytest.fixture(scope="module")
def stock(merged):
    return pipeline("zero-shot-image-classification", model=str(merged))


@pytest.fixture
def ours(merged):
    return pipeline(TASK, model=str(merged), pipeline_class=PromptedZeroShotPipeline)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 20, 18, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def scores(records):
    return {record["label"]: record["score"] for record in records}


def count_texts(classifier, monkeypatch):
    """A list that gets the number of prompts of each pass through the text tower."""
    encode, passes = classifier.model.get_text_features, []

    def counted(input_ids, **kwargs):
        passes.append(len(input_ids))
        return encode(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(classifier.model, "get_text_features", counted)
    return passes


def test_without_a_template_it_is_the_stock_pipeline_with_the_stored_one(ours, stock, images):
    template = stock.model.config.subpt_hypothesis_template
    assert template.startswith("<|ctx_0|> ") and template.endswith(" {}.")
    for image in images:
        expected = stock(image, candidate_labels=LABELS, hypothesis_template=template)
        assert scores(ours(image, candidate_labels=LABELS)) == pytest.approx(scores(expected), abs=1e-5)
    other = stock(images[0], candidate_labels=LABELS)  # the learned prompt is not the stock one
    assert max(abs(scores(other)[label] - scores(expected)[label]) for label in LABELS) > 1e-3


def test_a_template_that_is_given_goes_before_the_stored_one(ours, stock, images):
    options = {"candidate_labels": LABELS, "hypothesis_template": "a photo of {}."}
    assert scores(ours(images[0], **options)) == pytest.approx(scores(stock(images[0], **options)), abs=1e-5)


def test_a_model_without_a_stored_template_takes_the_stock_one(ours, stock, images):
    ours.model.config = copy.deepcopy(ours.model.config)
    del ours.model.config.subpt_hypothesis_template
    expected = scores(stock(images[0], candidate_labels=LABELS))
    assert scores(ours(images[0], candidate_labels=LABELS)) == pytest.approx(expected, abs=1e-5)


def test_records_are_sorted_and_similarities_are_cosines(ours, images):
    records = ours(images[1], candidate_labels=LABELS, return_similarities=True)
    assert [record["score"] for record in records] == sorted((record["score"] for record in records), reverse=True)
    assert sum(record["score"] for record in records) == pytest.approx(1)
    template = ours.model.config.subpt_hypothesis_template
    inputs = ours.tokenizer([template.format(label) for label in LABELS], return_tensors="pt", padding=True)
    pixels = ours.image_processor(images[1], return_tensors="pt")
    with torch.no_grad():
        texts = ours.model.get_text_features(**inputs).pooler_output.double()
        image = ours.model.get_image_features(**pixels).pooler_output.double()
    cosines = torch.nn.functional.cosine_similarity(image, texts)
    for record in records:
        assert record["similarity"] == pytest.approx(cosines[LABELS.index(record["label"])].item(), abs=1e-6)
    assert "similarity" not in ours(images[1], candidate_labels=LABELS)[0]
    alone = ours(images[1], candidate_labels=LABELS[:1], return_similarities=True)[0]  # whatever the other labels are
    assert alone["score"] == 1 and alone["similarity"] == pytest.approx(cosines[0].item(), abs=1e-6)


def test_a_batch_gives_what_each_image_gives_alone(ours, images):
    together = ours(images, candidate_labels=LABELS, batch_size=2)
    assert len(together) == len(images)
    for records, image in zip(together, images, strict=True):
        alone = ours(image, candidate_labels=LABELS)
        assert scores(records) == pytest.approx(scores(alone), abs=1e-5)
    assert {record["label"] for record in together[0]} == set(LABELS)


def test_labels_are_encoded_once(ours, images, monkeypatch):
    passes = count_texts(ours, monkeypatch)
    first = ours(images[0], candidate_labels=LABELS)
    assert passes == [3]
    assert ours(images, candidate_labels=LABELS, batch_size=2)[0] == [
        {**record, "score": pytest.approx(record["score"], abs=1e-5)} for record in first
    ]
    assert ours(images[0], candidate_labels=tuple(LABELS)) == first and passes == [3]
    ours(images[0], candidate_labels=LABELS[::-1])
    ours(images[0], candidate_labels=LABELS, hypothesis_template="a {}")
    assert passes == [3, 3, 3]
    ours(images[0], candidate_labels=LABELS)
    assert passes == [3, 3, 3]


def test_the_oldest_labels_leave_the_cache(ours, images, monkeypatch):
    for number in range(CACHED_LABEL_SETS + 1):
        ours(images[0], candidate_labels=[f"name {number}"])
    passes = count_texts(ours, monkeypatch)
    ours(images[0], candidate_labels=[f"name {CACHED_LABEL_SETS}"])
    assert passes == []
    ours(images[0], candidate_labels=["name 0"])
    assert passes == [1]


def test_many_labels_go_through_the_text_tower_in_parts(ours, images, monkeypatch):
    labels = [f"name {number}" for number in range(300)]
    passes = count_texts(ours, monkeypatch)
    records = ours(images[0], candidate_labels=labels)
    assert passes == [256, 44] and len(records) == 300
    whole = ours.label_features(labels)
    torch.testing.assert_close(ours.label_features(labels[250:260]), whole[250:260], rtol=0, atol=1e-5)


def test_other_weights_types_are_encoded_anew(ours, images, monkeypatch):
    ours(images[0], candidate_labels=LABELS)
    passes = count_texts(ours, monkeypatch)
    ours.model.to(torch.bfloat16)
    ours(images[0], candidate_labels=LABELS)
    assert passes == [3]


def test_siglip_scores_each_label_by_itself(images):
    model, tokenizer = make_siglip(), copy.deepcopy(make_tokenizer())
    tokenizer.model_input_names = ["input_ids"]  # as SigLIP's own
    parts = {"model": model, "tokenizer": tokenizer, "image_processor": image_processor()}
    ours = PromptedZeroShotPipeline(**parts)
    records = ours(images[0], candidate_labels=LABELS)
    texts = [f"This is a photo of {label}." for label in LABELS]
    inputs = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=40)
    pixels = parts["image_processor"](images[0], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], **pixels).logits_per_image[0]
    assert scores(records) == pytest.approx(dict(zip(LABELS, logits.sigmoid().tolist())), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate_labels": []}, "`candidate_labels` is empty"),
        ({"candidate_labels": "cat, dog"}, "must be a list of names, got the text 'cat, dog'"),
        ({"candidate_labels": ["cat", " "]}, "must be names, got ' '"),
        ({"candidate_labels": ["cat", 7]}, "must be names, got 7"),
        ({"candidate_labels": ["cat", "dog", "cat"]}, r"has labels twice: \['cat'\]"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "a photo"}, "must have one {} for the label"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "{} {}"}, "must have one {} for the label"),
        ({"candidate_labels": ["cat", 60 * "x "]}, r"x \.' is 67 tokens, more than the 40 positions"),
    ],
)
def test_bad_input_is_named(options, message, ours, images):
    with pytest.raises(ValueError, match=message):
        ours(images[0], **options)


def test_braces_in_a_label_are_text(ours, images):
    assert {record["label"] for record in ours(images[0], candidate_labels=["{}", "{x}"])} == {"{}", "{x}"}


# What somebody without the package runs.
ELSEWHERE = """
import json, sys
sys.modules["hf_methods"] = None
sys.modules["peft"] = None
from PIL import Image
from transformers import pipeline
image, labels = Image.radial_gradient("L").convert("RGB"), ["cat", "sea lion"]
try:
    pipeline("prompted-zero-shot-image-classification", model=sys.argv[1])
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("loaded without trust")
custom = pipeline(model=sys.argv[1], trust_remote_code=True)  # the task is in config.json
assert type(custom).__name__ == "PromptedZeroShotPipeline", type(custom)
stock = pipeline("zero-shot-image-classification", model=sys.argv[1])  # runs no code of the repository
template = stock.model.config.subpt_hypothesis_template
print(json.dumps([
    custom(image, candidate_labels=labels, return_similarities=True),
    stock(image, candidate_labels=labels, hypothesis_template=template),
]))
"""


@pytest.mark.slow
def test_elsewhere_the_published_pipeline_gives_the_same_numbers(hub, tmp_path):
    make_checkpoint(tmp_path / "checkpoint")
    save_repository(str(tmp_path / "checkpoint"), tmp_path / "repository")
    upload(tmp_path / "repository", "tester/prompted", tag="v1")
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, "tester/prompted"], env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    custom, stock = json.loads(result.stdout.splitlines()[-1])
    image = Image.radial_gradient("L").convert("RGB")
    ours = pipeline(TASK, model=str(tmp_path / "checkpoint"), pipeline_class=PromptedZeroShotPipeline)
    here = ours(image, candidate_labels=LABELS[:2], return_similarities=True)
    for record, expected, plain in zip(custom, here, stock, strict=True):
        assert record["label"] == expected["label"] == plain["label"]
        assert record["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert record["score"] == pytest.approx(plain["score"], abs=1e-5)
        assert record["similarity"] == pytest.approx(expected["similarity"], abs=1e-6)
