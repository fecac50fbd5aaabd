# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics against closed forms."""

import math

import numpy as np
import pytest

from hf_methods.metrics import TokenPerplexity, token_perplexity, voc07_average_precision


def test_a_uniform_guess_over_fifty_tokens_has_perplexity_fifty():
    assert token_perplexity([3 * math.log(50), math.log(50)], [3, 1]) == pytest.approx(50)


def test_every_token_counts_alike():
    assert token_perplexity([9 * math.log(2), math.log(8)], [9, 1]) == pytest.approx(2**1.2)


@pytest.mark.parametrize(
    ("nll", "num_tokens", "message"), [([], [], "at least one"), ([1.0], [0], "at least one"), ([1.0], [1, 2], "1 and 2")]
)  # fmt: skip
def test_nothing_to_measure_raises(nll, num_tokens, message):
    with pytest.raises(ValueError, match=message):
        token_perplexity(nll, num_tokens)


def test_the_evaluate_metric_gathers_batches_to_the_same_number(tmp_path):
    metric = TokenPerplexity(cache_dir=str(tmp_path))
    metric.add_batch(nll=[1.0, 2.0], num_tokens=[3, 4])
    metric.add_batch(nll=[5.0], num_tokens=[2])
    assert metric.compute()["perplexity"] == pytest.approx(token_perplexity([1.0, 2.0, 5.0], [3, 4, 2]))


BOX, FAR = [0, 0, 10, 10], [50, 50, 60, 60]


def detections(*rows):
    """(box, score, label) as one image's detections."""
    boxes, scores, labels = zip(*rows) if rows else ([], [], [])
    return {
        "boxes": np.array(boxes, float).reshape(-1, 4),
        "scores": np.array(scores),
        "labels": np.array(labels, int),
    }


def truth(*rows, ignore=None):
    boxes, labels = zip(*rows) if rows else ([], [])
    found = {"boxes": np.array(boxes, float).reshape(-1, 4), "labels": np.array(labels, int)}
    return found if ignore is None else {**found, "ignore": np.array(ignore)}


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        # hit, miss, hit of two objects: precision 1 to recall 1/2 (6 points), then 2/3 (5 points)
        ([(BOX, 0.9, 0), ([20, 20, 30, 30], 0.8, 0), (FAR, 0.7, 0)], [(BOX, 0), (FAR, 0)], (6 + 5 * 2 / 3) / 11),
        ([(BOX, 0.9, 0)], [(BOX, 0), (FAR, 0)], 6 / 11),
        ([(BOX, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0)], 1.0),  # a second box of one object counts against, behind
        ([(BOX, 0.8, 0), ([20, 20, 30, 30], 0.9, 0)], [(BOX, 0)], 0.5),
        ([([0, 0, 10, 5], 0.9, 0)], [(BOX, 0)], 1.0),  # IoU of exactly a half
        ([([0, 0, 10, 4.9], 0.9, 0)], [(BOX, 0)], 0.0),
        ([(BOX, 0.9, 1)], [(BOX, 0)], 0.0),
        ([], [(BOX, 0)], 0.0),
        ([(BOX, 0.9, 0), (FAR, 0.9, 1)], [(BOX, 0), (BOX, 1)], 0.5),  # mean over the labels that occur
    ],
)
def test_voc07_average_precision_on_hand_made_cases(found, true, expected):
    assert voc07_average_precision([detections(*found)], [truth(*true)], 3) == pytest.approx(expected)


def test_ignored_objects_count_neither_for_nor_against():
    true = truth((BOX, 0), (FAR, 0), ignore=[False, True])
    for extra in ([], [(FAR, 0.95, 0)], [(FAR, 0.95, 0), (FAR, 0.94, 0)]):
        assert voc07_average_precision([detections((BOX, 0.9, 0), *extra)], [true], 1) == 1
    assert math.isnan(voc07_average_precision([detections()], [truth((BOX, 0), ignore=[True])], 1))


def test_images_are_ranked_together_and_must_be_as_many():
    found = [detections((BOX, 0.9, 0)), detections((FAR, 0.95, 0))]
    assert voc07_average_precision(found, [truth((BOX, 0)), truth()], 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="of one length, got 2 and 1"):
        voc07_average_precision(found, [truth()], 1)


def test_eleven_points_of_many_random_detections_are_close_to_torchmetrics_hundred_and_one():
    torchmetrics, torch = pytest.importorskip("torchmetrics.detection"), pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    found, true = [], []
    for _ in range(60):
        corner = rng.uniform(0, 80, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 20, (4, 2))], 1)
        true.append(truth(*[(box, int(label)) for box, label in zip(boxes, rng.integers(0, 3, 4))]))
        moved = boxes + rng.normal(0, 2.0, boxes.shape)
        found.append(detections(*[(box, rng.random(), label) for box, label in zip(moved, true[-1]["labels"])]))
    metric = torchmetrics.MeanAveragePrecision(iou_thresholds=[0.5])
    metric.update(
        *([{name: torch.tensor(x) for name, x in image.items()} for image in rows] for rows in (found, true))
    )
    ours = voc07_average_precision(found, true, 3)
    assert 0.3 < ours < 0.95 and ours == pytest.approx(float(metric.compute()["map_50"]), abs=0.05)
