# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Emoji as a benchmark: the committed images, their splits, and how they were made."""

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from hf_methods.subpt import emoji_subpt
from hf_methods.subpt.emoji_subpt import EMOJI_DIGESTS, TWEMOJI_FILE, load_emoji, load_pretrain_emoji
from hf_methods.subpt.recipe_subpt import DataArguments, load_classes


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fetch():
    spec = importlib.util.spec_from_file_location("fetch_emoji", ROOT / "training" / "subpt" / "fetch_emoji.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def splits():
    return {split: load_emoji(split) for split in EMOJI_DIGESTS}


def test_the_splits_hold_all_classes_and_share_no_emoji(splits, fetch):
    assert TWEMOJI_FILE.stat().st_size < 1.5e6
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 885, "validation": 148, "test": 460}
    names = splits["train"].features["label"].names
    assert len(names) == 68 and names == sorted(names)
    codes = [set(rows["code"]) for rows in splits.values()]
    assert len(set.union(*codes)) == sum(map(len, codes)) == 1493
    # The woman, the man and the person of an emoji are on one side, within their class.
    side = {}
    for split, rows in splits.items():
        assert set(rows["label"]) == set(range(68)) and rows.features["label"].names == names
        for name, label in zip(rows["name"], rows["label"], strict=True):
            assert side.setdefault((label, fetch.group_of(name)), split) == split
    assert min(list(splits["train"]["label"]).count(label) for label in range(68)) == 5


def test_images_are_small_and_on_white(splits):
    for row in splits["test"].select(range(0, 460, 40)):
        assert row["image"].size == (48, 48) and row["split"] == "test"
    corners = [row["image"].convert("RGB").getpixel((0, 0)) for row in splits["test"]]
    assert corners.count((255, 255, 255)) > 300


def test_the_recipe_takes_them(splits):
    train, test, names = load_classes(DataArguments("emoji"))
    assert (len(train), len(test), len(names)) == (885, 460, 68)
    assert names[:2] == ["alphanum", "animal bird"] and train.features["label"].names == names
    _, validation, _ = load_classes(DataArguments("emoji", test_split="validation"))
    assert validation["code"] == splits["validation"]["code"]


def test_other_images_other_splits_and_missing_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of train, validation, test, got 'dev'"):
        load_emoji("dev")
    with pytest.raises(FileNotFoundError, match=r"there is no .*none.parquet; make it with .*fetch_emoji.py"):
        load_emoji("test", tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match="pretrain.parquet"):
        load_pretrain_emoji(tmp_path / "pretrain.parquet")
    rows = load_dataset("parquet", data_files=str(TWEMOJI_FILE), split="train")
    rows.select(range(len(rows) - 1)).to_parquet(tmp_path / "other.parquet")
    broken = rows[-1]["split"]
    with pytest.raises(ValueError, match=f"the images of '{broken}' in .* have the digest"):
        load_emoji(broken, tmp_path / "other.parquet")


def test_the_pretrained_clip_has_seen_no_emoji_that_is_tested(splits):
    """Of the file that was trained on, where it is; its digest is that of the published model in any case."""
    results = json.loads((ROOT / "model_cards" / "clip-emoji" / "results.json").read_text())
    assert results["data"]["test"] == EMOJI_DIGESTS["test"] and results["seeds"] == [0]
    if not emoji_subpt.PRETRAIN_FILE.is_file():
        pytest.skip("the artwork of the pre-training isn't here; training/subpt/fetch_emoji.py fetches it.")
    pretrain = load_pretrain_emoji()
    assert not set(pretrain["code"]) & {*splits["validation"]["code"], *splits["test"]["code"]}
    assert results["images_by_style"] == {
        style: pretrain["style"].count(style) for style in dict.fromkeys(pretrain["style"])
    }


# --- how they were made ----------------------------------------------------------------------------------------------


def test_a_class_is_split_by_groups(fetch):
    names = [f"{who} {what}" for what in "abcdefgh" for who in ("man", "woman", "person")]
    split = fetch.split_class(names, "x")
    assert split == fetch.split_class(names[::-1], "x") and set(split) == set(names)
    for what in "abcdefgh":
        assert len({split[f"{who} {what}"] for who in ("man", "woman", "person")}) == 1
    counts = {name: list(split.values()).count(name) for name in ("test", "validation", "train")}
    assert counts == {"test": 9, "validation": 3, "train": 12}  # 30 % of 24 is 7: three groups; 10 %: one
    assert list(fetch.split_class(list("abcdefgh"), "y").values()).count("test") == 2


def test_names_are_cleaned(fetch):
    assert fetch.class_name("sky & weather") == "sky and weather" and fetch.class_name("animal-bird") == "animal bird"
    assert fetch.code_of("2639-FE0F") == "2639" and fetch.code_of("1f468-200d-2695-fe0f") == "1f468-200d-2695"
    assert fetch.group_of("woman firefighter") == fetch.group_of("man firefighter") == "firefighter"
    assert fetch.group_of("manual wheelchair") == "manual wheelchair"


def test_pretraining_leaves_out_the_emoji_to_test_on(fetch, monkeypatch):
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    styles = {"a": picture, "b": picture, "c": picture, "d": picture}
    monkeypatch.setattr(fetch, "bitmap_images", lambda *_: styles)
    monkeypatch.setattr(fetch, "vector_images", lambda *_: {})
    row = {"slug": None, "short_name": "s", "subcategory": "k", "category": "c"}
    emoji = [
        row | {"code": code, "name": code, "split": split}
        for code, split in (("a", "train"), ("b", "test"), ("c", "validation"), ("d", None), ("e", "train"))
    ]
    made = fetch.make_pretrain(emoji, dict.fromkeys(fetch.PACKAGES))
    assert isinstance(made, Dataset) and sorted(made["code"]) == ["a", "a", "d", "d"]
    assert set(made["style"]) == {"noto", "fluent-3d"}
    assert made[0]["image"].mode == "RGBA" and made[0]["image"].size == (48, 48)
    twemoji = fetch.make_twemoji([e | {"subcategory": e["code"]} for e in emoji[:4]], None)
    assert twemoji.features["label"].names == ["a", "b", "c"] and twemoji["split"] == ["train", "test", "validation"]
    assert twemoji[0]["image"].convert("RGB").getpixel((20, 20)) == (255, 127, 127)  # half red on white
