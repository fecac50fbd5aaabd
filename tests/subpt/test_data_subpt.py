# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Few-shot draws, the base/novel split, the harmonic mean."""

import random
from collections import Counter
from statistics import harmonic_mean as oracle

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_subpt import image_processor, make_model

from hf_methods.subpt.data_subpt import (
    FeatureDataset,
    base_novel_split,
    cache_image_features,
    clip_transform,
    few_shot_indices,
    few_shot_subset,
    harmonic_mean,
    image_digest,
    split_base_novel,
)


LABELS = [label for label in range(5) for _ in range(4 + label)] + [2, 0]


def dataset(labels=LABELS, names="abcde"):
    features = Features({"label": ClassLabel(names=list(names)), "row": Value("int64")})
    return Dataset.from_dict({"label": labels, "row": list(range(len(labels)))}, features=features)


@pytest.mark.parametrize("k", [1, 4, 6, 100])
def test_each_class_has_k_distinct_examples_or_all_it_has(k):
    indices = few_shot_indices(LABELS, k, seed=1)
    assert len(set(indices)) == len(indices) and indices == sorted(indices)
    sizes = Counter(LABELS)
    assert Counter(LABELS[index] for index in indices) == {label: min(k, sizes[label]) for label in sizes}


def test_the_draw_follows_from_its_seed_alone():
    state = random.getstate()
    first = few_shot_indices(LABELS, 2, seed=1)
    assert random.getstate() == state
    random.random()
    assert few_shot_indices(LABELS, 2, seed=1) == first != few_shot_indices(LABELS, 2, seed=2)
    more = few_shot_indices([*LABELS, 4, 4, 4], 2, seed=1)  # other classes' draws stay
    assert {index for index in more if index < len(LABELS) and LABELS[index] < 4} == {
        index for index in first if LABELS[index] < 4
    }


@pytest.mark.parametrize("k", [0, -3])
def test_no_shots_are_refused(k):
    with pytest.raises(ValueError, match=f"`k` must be at least 1, got {k}"):
        few_shot_indices(LABELS, k, 0)


def test_an_empty_class_is_named():
    with pytest.raises(ValueError, match=r"classes \[1, 2\] have no example"):
        few_shot_indices([0, 3, 3], 1, 0)
    with pytest.raises(ValueError, match="no examples"):
        few_shot_indices([], 1, 0)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        few_shot_indices([-1, 0], 1, 0)
    with pytest.raises(ValueError, match=r"no example to draw: \['d', 'e'\]"):
        few_shot_subset(dataset([0, 1, 2], "abcde"), 1, 0)
    with pytest.raises(ValueError, match="no column 'class', only label, row"):
        few_shot_subset(dataset(), 1, 0, label_column="class")


def test_a_subset_has_the_rows_of_the_indices():
    subset = few_shot_subset(dataset(), 2, seed=3)
    assert subset["row"] == few_shot_indices(LABELS, 2, 3)
    assert subset.features["label"].names == list("abcde")


@pytest.mark.parametrize(
    ("classes", "base", "novel"),
    [
        ([3, 0, 1, 1, 2, 4], [0, 1, 2], [3, 4]),
        (list(range(4)), [0, 1], [2, 3]),
        (["z", "a", "m"], ["z", "a"], ["m"]),
    ],
)
def test_the_first_half_rounded_up_is_base(classes, base, novel):
    assert base_novel_split(classes) == (base, novel)


@pytest.mark.parametrize(
    ("classes", "sizes"), [(1000, (500, 500)), (37, (19, 18)), (397, (199, 198)), (47, (24, 23)), (101, (51, 50))]
)
def test_the_sizes_are_those_of_the_papers_data_sets(classes, sizes):
    assert tuple(map(len, base_novel_split(range(classes)))) == sizes


def test_a_split_of_one_class_or_of_repeated_names_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        base_novel_split([3, 3])
    with pytest.raises(ValueError, match=r"twice: \['cat'\]"):
        base_novel_split(["cat", "dog", "cat"])


def test_both_halves_are_numbered_from_0_with_their_own_names():
    base, novel = split_base_novel(dataset())
    assert base.features["label"].names == ["a", "b", "c"] and novel.features["label"].names == ["d", "e"]
    for half, shift in ((base, 0), (novel, 3)):
        assert [label + shift for label in half["label"]] == [LABELS[row] for row in half["row"]]
    assert sorted([*base["row"], *novel["row"]]) == list(range(len(LABELS)))
    with pytest.raises(ValueError, match="must be a ClassLabel"):
        split_base_novel(Dataset.from_dict({"label": [0, 1]}))


def test_the_harmonic_mean():
    assert harmonic_mean(82.69, 63.22) == pytest.approx(oracle([82.69, 63.22])) == pytest.approx(71.66, abs=0.005)
    assert harmonic_mean(0, 0) == harmonic_mean(0, 50) == 0
    with pytest.raises(ValueError, match="negative"):
        harmonic_mean(-1, 2)


def test_rows_without_a_class_are_not_dropped_in_silence():
    with pytest.raises(ValueError, match=r"'label' has no class in the rows 1, 4\. Leave them out"):
        split_base_novel(dataset([0, -1, 1, 2, None]))
    with pytest.raises(ValueError, match=r"rows 0, 1, 2, 3, 4 and 3 more have no class"):
        FeatureDataset(torch.ones(1, 8, 4), torch.full((8,), -1))


def test_features_that_are_not_finite_are_named_by_their_images():
    features = torch.ones(2, 5, 3)
    features[1, 2, 0], features[0, 4, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"2 of the 5 images are not finite: rows 2, 4\."):
        FeatureDataset(features, torch.zeros(5, dtype=torch.long))


def test_images_that_cannot_be_used_are_named():
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    images = [Image.new("RGB", (8, 8)), {"bytes": b"broken", "path": "a.png"}, None, Image.new("I;16", (8, 8))]
    bad = Dataset.from_dict({"image": images, "label": [0] * 4}, features=features)
    transform = clip_transform(image_processor(), train=True)
    for use in (image_digest, lambda rows: cache_image_features(make_model(), rows, transform=transform)):
        with pytest.raises(
            ValueError, match=r"3 of 4 .* row 1 \(a\.png: not an image.* row 2 \(there is none\), row 3 \(mode I;16"
        ):
            use(bad)
