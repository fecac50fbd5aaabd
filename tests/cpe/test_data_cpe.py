# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Split counts of the official logs, indices against the official procedure, and the batches of a step."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_methods.cpe import CPEImageProcessor, make_longtail_ssl_splits
from hf_methods.cpe.data_cpe import (
    DataCollatorForImageClassification,
    TwoStreamBatchSampler,
    TwoStreamDataset,
    images_to_tensor,
    long_tailed_counts,
    unlabeled_counts,
)


# Totals are lines of the official logs.
OFFICIAL_COUNTS = {
    (1500, 100): ([1500, 899, 539, 323, 193, 116, 69, 41, 25, 15], 3720),
    (3000, 100): ([3000, 1798, 1078, 646, 387, 232, 139, 83, 50, 30], 7443),
    (1500, 150): ([1500, 859, 492, 282, 161, 92, 53, 30, 17, 10], 3496),
    (3000, 150): ([3000, 1719, 985, 564, 323, 185, 106, 60, 34, 20], 6996),
    (500, 100): ([500, 299, 179, 107, 64, 38, 23, 13, 8, 5], 1236),
    (4000, 100): ([4000, 2397, 1437, 861, 516, 309, 185, 111, 66, 40], 9922),
    (500, 150): ([500, 286, 164, 94, 53, 30, 17, 10, 5, 3], 1162),
    (4000, 150): ([4000, 2292, 1313, 752, 431, 247, 141, 81, 46, 26], 9329),
    (150, 10): ([150, 116, 89, 69, 53, 41, 32, 25, 19, 15], 609),
    (150, 20): ([150, 107, 77, 55, 39, 28, 20, 14, 10, 7], 507),
    (450, 10): ([450, 348, 269, 208, 161, 125, 96, 75, 58, 45], 1835),
    (450, 20): ([450, 322, 231, 165, 118, 85, 61, 43, 31, 22], 1528),
}


@pytest.mark.parametrize(("n", "gamma"), OFFICIAL_COUNTS)
def test_counts_are_the_official_ones(n, gamma):
    counts, total = OFFICIAL_COUNTS[n, gamma]
    assert long_tailed_counts(n, gamma, 10) == counts and sum(counts) == total
    assert long_tailed_counts(n, -gamma, 10) == counts[::-1]


@pytest.mark.parametrize(
    ("n", "gamma", "total"),
    [(150, 10, 5835), (150, 15, 5153), (150, 20, 4741), (300, 10, 11720), (300, 15, 10352), (300, 20, 9527)],
)
def test_totals_of_a_hundred_classes_are_the_official_ones(n, gamma, total):
    assert sum(long_tailed_counts(n, gamma, 100)) == total


def test_counts_are_rounded_as_in_the_official_code():
    # (1 / gamma) ** (k / (K - 1)) would give 15 here: the official code takes powers of one rounded factor.
    assert long_tailed_counts(512, 128, 50)[35] == 16


def test_a_flat_split_has_two_meanings():
    assert long_tailed_counts(3000, 1, 10) == [300] * 10
    assert long_tailed_counts(3000, 1, 10, "per_class") == [3000] * 10
    assert unlabeled_counts("uniform", 4000, 100, 10) == [400] * 10


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ("consistent", [4000, 2397, 1437, 861, 516, 309, 185, 111, 66, 40]),
        ("reversed", [40, 66, 111, 185, 309, 516, 861, 1437, 2397, 4000]),
        ("middle", [66, 185, 516, 1437, 4000, 2397, 861, 309, 111, 40]),  # of SimPro
        ("head-tail", [2397, 861, 309, 111, 40, 66, 185, 516, 1437, 4000]),  # of SimPro
    ],
)
def test_shapes_of_unlabeled_sets(shape, counts):
    assert unlabeled_counts(shape, 4000, 100, 10) == counts
    assert unlabeled_counts("consistent", 4000, -100, 10) == OFFICIAL_COUNTS[4000, 100][0][::-1]


@pytest.mark.parametrize("num_classes", [2, 3, 7, 8])
@pytest.mark.parametrize("shape", ["middle", "head-tail", "random"])
def test_every_shape_orders_the_same_counts(shape, num_classes):
    descending = long_tailed_counts(300, 30, num_classes)
    counts = unlabeled_counts(shape, 300, 30, num_classes, seed=1)
    assert sorted(counts, reverse=True) == descending
    peak = counts.index(300)
    if shape == "middle" and num_classes > 2:
        assert counts[:peak] == sorted(counts[:peak]) and counts[peak:] == sorted(counts[peak:], reverse=True)
    if shape == "head-tail" and num_classes > 3:
        valley = counts.index(descending[-1])
        assert counts[:valley] == sorted(counts[:valley], reverse=True) and counts[valley:] == sorted(counts[valley:])
        assert 0 < valley < num_classes - 1


def make(num_classes=4, per_class=60, extra=0, seed=3):
    """Rows with a number, so that a split can be told from its rows, and shuffled labels."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(num_classes), per_class)).tolist()
    features = Features({"row": Value("int64"), "label": ClassLabel(names=[f"class {k}" for k in range(num_classes)])})
    return Dataset.from_dict({"row": range(len(labels) + extra), "label": labels + [-1] * extra}, features=features)


def official_split(labels, labeled_counts, unlabeled_counts, seed):
    """The procedure of the official code, with numpy's global generator."""
    state = np.random.get_state()
    np.random.seed(seed)
    labeled, unlabeled = [], []
    for k, (n, m) in enumerate(zip(labeled_counts, unlabeled_counts)):
        rows = np.where(np.array(labels) == k)[0]
        np.random.shuffle(rows)
        labeled.extend(rows[:n])
        unlabeled.extend(rows[n : n + m])
    np.random.set_state(state)
    return labeled, unlabeled


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("unlabeled", ["consistent", "uniform", "reversed", "middle", "head-tail", "random"])
def test_the_images_are_those_that_the_official_code_takes(unlabeled, seed):
    dataset = make()
    splits, info = make_longtail_ssl_splits(dataset, n1=20, gamma_l=10, m1=36, unlabeled=unlabeled, seed=seed)
    counts = unlabeled_counts(unlabeled, 36, 10, 4, seed=seed)
    labeled, others = official_split(dataset["label"], [20, 9, 4, 2], counts, seed)
    assert splits["train_labeled"]["row"][:] == labeled and splits["train_unlabeled"]["row"][:] == others
    assert info["class_counts"] == [20, 9, 4, 2] and info["unlabeled_counts"] == counts
    assert splits["train_labeled"].features["label"].names == dataset.features["label"].names
    assert not set(labeled) & set(others)


def test_the_digest_tells_splits_apart():
    arguments = dict(n1=20, gamma_l=10, m1=30)
    first, again, other = (make_longtail_ssl_splits(make(), **arguments, seed=s)[1]["sha256"] for s in (0, 0, 1))
    assert first == again != other


def test_the_most_frequent_class_may_be_any():
    order = [2, 0, 3, 1]
    splits, info = make_longtail_ssl_splits(make(), n1=20, gamma_l=10, m1=30, unlabeled="reversed", class_order=order)
    assert info["class_counts"] == [9, 2, 20, 4]
    assert Counter(splits["train_labeled"]["label"]) == {2: 20, 0: 9, 3: 4, 1: 2}
    assert Counter(splits["train_unlabeled"]["label"]) == {2: 3, 0: 6, 3: 13, 1: 30}


def test_the_rest_takes_images_without_a_label_too():
    dataset = make(extra=50)
    splits, info = make_longtail_ssl_splits(dataset, n1=20, gamma_l=10, unlabeled="rest")
    rows = splits["train_labeled"]["row"][:] + splits["train_unlabeled"]["row"][:]
    assert sorted(rows) == list(range(290)) and info["unlabeled_counts"] == [40, 51, 56, 58]
    stl = make_longtail_ssl_splits(dataset, n1=20, gamma_l=10, unlabeled="rest", include_labeled_in_unlabeled=True)[0]
    assert sorted(stl["train_unlabeled"]["row"]) == list(range(290))
    assert stl["train_unlabeled"]["row"][:35] == stl["train_labeled"]["row"][:]


def test_custom_counts_and_a_test_split():
    dataset = DatasetDict(train=make(), test=make(seed=9), validation=make())
    splits, _ = make_longtail_ssl_splits(dataset, n1=8, gamma_l=1, unlabeled="custom", custom_counts=[0, 5, 1, 58])
    assert Counter(splits["train_labeled"]["label"]) == dict.fromkeys(range(4), 2)
    assert Counter(splits["train_unlabeled"]["label"]) == {1: 5, 2: 1, 3: 58}
    assert set(splits) == {"train_labeled", "train_unlabeled", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(gamma_l=0.5), "at least 1.*got 0.5"),
        (dict(n1=5, gamma_l=10), r"n=5 and gamma=10 leave classes without an image: \[5, 2, 1, 0\]"),
        (dict(m1=3), "without an image"),
        (dict(m1=50), r"class 0 \(20 \+ 50 of 60\)"),
        (dict(m1=200, unlabeled="uniform", uniform_mode="per_class"), r"class 0 .*, class 1 .*, class 3"),
        (dict(unlabeled="flat"), "`unlabeled` must be one of.*'flat'"),
        (dict(uniform_mode="mean"), "'total' or 'per_class', got 'mean'"),
        (dict(m1=None), "`m1` must be given"),
        (dict(unlabeled="rest"), "`m1` must be left out"),
        (dict(unlabeled="custom", m1=None), "belong together"),
        (dict(custom_counts=[1, 2, 3, 4]), "belong together"),
        (dict(unlabeled="custom", m1=None, custom_counts=[1, 2]), "4 counts"),
        (dict(class_order=[0, 1, 2, 2]), "permutation of 0 to 3"),
        (dict(label_column="fine_label"), "no column 'fine_label', only row, label"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_longtail_ssl_splits(make(), **{**dict(n1=20, gamma_l=10, m1=30), **arguments})


def test_bad_labels_raise():
    arguments = dict(n1=2, gamma_l=1, m1=2)
    with pytest.raises(ValueError, match="5 images have no label; only unlabeled='rest'"):
        make_longtail_ssl_splits(make(extra=5), **arguments)
    with pytest.raises(ValueError, match="must hold class ids"):
        make_longtail_ssl_splits(Dataset.from_dict({"label": [0.5, 1.0]}), **arguments)
    with pytest.raises(ValueError, match="must hold class ids"):
        make_longtail_ssl_splits(Dataset.from_dict({"label": []}), **arguments)
    plain = Dataset.from_dict({"label": [0, 1, None, 1, 0]})
    splits, _ = make_longtail_ssl_splits(plain, n1=2, gamma_l=1, unlabeled="rest")
    assert len(splits["train_labeled"]) == 2 and len(splits["train_unlabeled"]) == 3


# --- batches of a step -------------------------------------------------------------------------------------------------


def sampler(**arguments):
    return TwoStreamBatchSampler(
        **{**dict(num_labeled=10, num_unlabeled=25, batch_size=4, mu=2, num_batches=100), **arguments}
    )


def test_each_stream_is_a_chain_of_permutations():
    batches = list(sampler())
    assert len(batches) == 100
    labeled = [i for batch in batches for i in batch[:4]]
    unlabeled = [i for batch in batches for i in batch[4:]]
    for start in range(0, 400, 10):
        assert sorted(labeled[start : start + 10]) == list(range(10))
    for start in range(0, 800, 25):
        assert sorted(unlabeled[start : start + 25]) == list(range(10, 35))
    assert labeled[:10] != labeled[10:20]


def test_the_batches_depend_on_the_seed_only():
    assert list(sampler()) == list(sampler()) != list(sampler(seed=1))
    assert list(islice(sampler(), 7)) == list(sampler(num_batches=7))


def test_processes_together_see_what_one_would():
    whole = list(sampler(batch_size=4))
    parts = [list(sampler(batch_size=2, process=process, num_processes=2)) for process in range(2)]
    for batch, first, second in zip(whole, *parts):
        assert first[:2] + second[:2] == batch[:4] and first[2:] + second[2:] == batch[4:]


def test_a_set_smaller_than_its_share_repeats():
    batches = list(sampler(num_labeled=2, num_unlabeled=3, num_batches=3))
    assert Counter(i for batch in batches for i in batch[:4]) == {0: 6, 1: 6}
    assert Counter(i for batch in batches for i in batch[4:]) == {2: 8, 3: 8, 4: 8}


@pytest.mark.parametrize("arguments", [dict(mu=0), dict(num_unlabeled=0)])
def test_without_unlabeled_images_batches_are_labeled(arguments):
    assert all(len(batch) == 4 and max(batch) < 10 for batch in sampler(**arguments))


@pytest.mark.parametrize("arguments", [dict(batch_size=0), dict(mu=-1), dict(num_batches=0), dict(num_labeled=0)])
def test_batches_of_nothing_raise(arguments):
    with pytest.raises(ValueError, match="at least"):
        sampler(**arguments)


def pictures(n, size=8, labels=None, seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).convert(mode) for _ in range(n)]
    columns = {"image": images} if labels is None else {"image": images, "label": labels}
    features = {"image": ImageFeature()} if labels is None else {"image": ImageFeature(), "label": Value("int64")}
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("hidden", [None, [3, -1, None, 9]], ids=["no column", "some labels"])
def test_a_batch_holds_both_sets_in_order(cache, hidden):
    labeled, unlabeled = pictures(3, labels=[2, 0, 1]), pictures(4, labels=hidden, seed=1)
    dataset = TwoStreamDataset(labeled, unlabeled, size=8, num_channels=3, num_labels=4, cache=cache)
    batch = dataset.__getitems__([2, 0, 4, 3])
    images = [labeled[2]["image"], labeled[0]["image"], unlabeled[1]["image"], unlabeled[0]["image"]]
    assert torch.equal(batch["images"], images_to_tensor(images, 8, 3))
    assert batch["labels"].tolist() == [1, 2, -1, -1 if hidden is None else 3]
    assert len(dataset) == 7 and dataset[6]["labels"] == -1 and torch.equal(dataset[2]["images"], batch["images"][0])


def test_images_are_resized_and_converted():
    images = [row["image"] for row in pictures(3, size=12)]
    gray = images_to_tensor(images, 12, 1)
    assert torch.equal(gray[0, 0], torch.from_numpy(np.array(images[0].convert("L"))))
    resized = torch.from_numpy(np.array(images[1].resize((8, 8), Image.Resampling.BILINEAR)))
    assert torch.equal(images_to_tensor(images, 8, 3)[1], resized.permute(2, 0, 1))
    with pytest.raises(ValueError, match="1 or 3, got 4"):
        images_to_tensor(images, 8, 4)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        (pictures(0, labels=[]), None, "labelled data set is empty"),
        (pictures(2, labels=[0, 1]), pictures(0), "unlabelled data set is empty"),
        (pictures(2, labels=[0, 4]), None, "from 0 to 3, got 0 to 4"),
        (pictures(2, labels=[0, -1]), None, "from 0 to 3, got -1 to 0"),
        (pictures(2), None, "no column 'label'"),
        (pictures(2, labels=[0, 1]), Dataset.from_dict({"img": [1]}), "no column 'image', only"),
    ],
)
def test_bad_data_sets_raise(labeled, unlabeled, message):
    with pytest.raises(ValueError, match=message):
        TwoStreamDataset(labeled, unlabeled, size=8, num_channels=3, num_labels=4)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
def test_images_that_cannot_be_used_are_named_with_their_set(kind, cache):
    bad = Dataset.from_dict(
        {"image": [{"bytes": b"broken", "path": "a.png"}, None], "label": [0, 1]},
        features=pictures(1, labels=[0]).features,
    )
    sets = {"labelled": pictures(2, labels=[0, 1]), "unlabelled": pictures(2), kind: bad}
    with pytest.raises(
        ValueError, match=rf"2 of 2 images in the column 'image' of the {kind} data set .* row 0 \(a\.png"
    ):
        dataset = TwoStreamDataset(*sets.values(), size=8, num_channels=3, num_labels=2, cache=cache)
        dataset.__getitems__([0, 1, 2, 3])


def test_evaluation_rows_become_pixel_values_and_labels():
    rows, processor = list(pictures(3, labels=[2, 0, 1])), CPEImageProcessor(size={"height": 8, "width": 8})
    batch = DataCollatorForImageClassification(processor)(rows)
    expected = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    assert batch["labels"].tolist() == [2, 0, 1] and torch.equal(batch["pixel_values"], expected)
    assert set(DataCollatorForImageClassification(processor)(list(pictures(2)))) == {"pixel_values"}
