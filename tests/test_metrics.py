# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics against closed forms, and against scikit-learn."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, roc_curve

from hf_methods.metrics import (
    AdversarialDetection,
    LongTailedClassification,
    TokenPerplexity,
    detection_intervals,
    detection_metrics,
    long_tailed_classification,
    make_compute_metrics,
    token_perplexity,
    voc07_average_precision,
)


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


# Recalls 1/2, 1, 0 and 3/4; the classes' counts are not sorted.
REFERENCES = [0, 0, 1, 2, 3, 3, 3, 3]
PREDICTIONS = [0, 1, 1, 0, 3, 3, 3, 2]
CLASS_COUNTS = [50, 500, 5, 120]


def test_long_tailed_accuracies_are_those_of_the_definition():
    metrics = long_tailed_classification(PREDICTIONS, REFERENCES, 4, CLASS_COUNTS, (1, 3))
    assert metrics.pop("per_class") == [0.5, 1, 0, 0.75]
    assert metrics == pytest.approx(
        {
            "accuracy": 5 / 8,
            "balanced_accuracy": 2.25 / 4,
            "gmean": (0.5 * 1 * 0.75 / 400) ** 0.25,
            "macro_f1": (2 * 1 / (2 + 2) + 2 * 1 / (1 + 2) + 0 + 2 * 3 / (4 + 3)) / 4,
            "worst_class": 0,
            "many_shot": (1 + 0.75) / 2,
            "medium_shot": 0.5,
            "few_shot": 0,
            "head": 1,
            "medium": (0.75 + 0.5) / 2,
            "tail": 0,
        }
    )


def test_metrics_agree_with_scikit_learn():
    sklearn_metrics = sklearn.metrics
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 6, 300), rng.integers(0, 6, 300)
    metrics = long_tailed_classification(predictions, references, 6)
    assert metrics["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(references, predictions)
    )
    assert metrics["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(references, predictions, average="macro"))
    recalls = sklearn_metrics.recall_score(references, predictions, average=None)
    assert metrics["per_class"] == pytest.approx(list(recalls))


def test_a_class_without_test_images_leaves_the_means():
    metrics = long_tailed_classification([0, 1], [0, 0], 3, [200, 10, 5], (1,))
    assert metrics["balanced_accuracy"] == metrics["worst_class"] == metrics["head"] == 0.5
    assert math.isnan(metrics["per_class"][1]) and math.isnan(metrics["tail"])


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    metrics = long_tailed_classification(logits, [0, 1, 1], 2)
    assert metrics["ece"] == pytest.approx((abs(0.8 * 2 - 1) + abs(0.6 - 1)) / 3)
    assert metrics["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 2), "got 0 and 0"),
        (([0], [0, 1], 2), "got 1 and 2"),
        (([0, 2], [0, 1], 2), "`predictions` must be from 0 to 1, got 0 to 2"),
        (([0, 1], [0, -1], 2), "`references`"),
        (([[0.0, 1, 2]], [0], 2), "2 classes, got 3"),
        (([0], [0], 2, None, (1,)), "`class_counts`"),
        (([0], [0], 2, [1]), "2 counts, got 1"),
        (([0], [0], 2, [1, 2], (1, 2, 3)), "one or two ranks"),
    ],
)
def test_nothing_to_classify_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tailed_classification(*arguments)


@pytest.mark.parametrize("config_name", [None, "logits"])
def test_the_long_tailed_metric_gathers_batches_to_the_same_numbers(config_name, tmp_path):
    metric = LongTailedClassification(config_name=config_name, cache_dir=str(tmp_path))
    predictions = np.eye(4)[PREDICTIONS].tolist() if config_name else PREDICTIONS
    metric.add_batch(predictions=predictions[:3], references=REFERENCES[:3])
    metric.add_batch(predictions=predictions[3:], references=REFERENCES[3:])
    result = metric.compute(num_classes=4, class_counts=CLASS_COUNTS, group_cuts=(1, 3))
    assert result == long_tailed_classification(predictions, REFERENCES, 4, CLASS_COUNTS, (1, 3))
    assert ("ece" in result) == (config_name == "logits")


def test_trainer_gets_single_numbers():
    prediction = SimpleNamespace(predictions=np.eye(4)[PREDICTIONS], label_ids=np.array(REFERENCES))
    metrics = make_compute_metrics(4, CLASS_COUNTS, (1, 3))(prediction)
    assert metrics["balanced_accuracy"] == 2.25 / 4 and all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize("decimals", [8, 1])  # without and with ties
@pytest.mark.parametrize("size", [5, 300])
def test_detection_metrics_are_scikit_learns(size, decimals):
    generator = np.random.default_rng(size)
    labels = generator.integers(2, size=size)
    labels[:2] = 0, 1
    scores = (generator.normal(size=size) + labels).round(decimals)
    metrics = detection_metrics(scores, labels, 0.5)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["aupr"] == pytest.approx(average_precision_score(labels, scores))
    assert metrics["accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores > 0.5))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert metrics["tpr_at_5_fpr"] == pytest.approx(tpr[fpr <= 0.05].max())


def test_detection_by_hand():
    assert detection_metrics([1, 2, 3, 4], [0, 0, 1, 1], 2.5) == {
        "auroc": 1,
        "aupr": 1,
        "tpr_at_5_fpr": 1,
        "accuracy": 1,
    }
    assert detection_metrics([1, 1], [0, 1], 1)["auroc"] == 0.5
    worst = detection_metrics([2, 1], [0, 1])
    assert worst["auroc"] == 0 and worst["tpr_at_5_fpr"] == 0 and math.isnan(worst["accuracy"])


def test_intervals_draw_whole_sources():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    scores = generator.normal(size=200) + labels
    sources = np.arange(200) // 2
    once = detection_intervals(scores, labels, sources, 0.5, num_samples=300)
    metrics = detection_metrics(scores, labels, 0.5)
    assert all(low <= metrics[name] <= high for name, (low, high) in once.items())
    # The same rows ten times over are no new images: by source the interval stays, by row it would shrink.
    tenfold = [np.tile(array, 10) for array in (scores, labels, sources)]
    repeated = detection_intervals(*tenfold, 0.5, num_samples=300)
    assert repeated["auroc"] == pytest.approx(once["auroc"], abs=1e-9)
    by_row = detection_intervals(*tenfold[:2], np.arange(2000), num_samples=300)
    assert np.diff(by_row["auroc"]) < 0.5 * np.diff(once["auroc"])
    assert once != detection_intervals(scores, labels, sources, 0.5, num_samples=300, seed=1)


def test_intervals_of_a_mean_have_the_known_width():
    # accuracy is a mean over 400 images of each class: standard error sqrt(0.8 * 0.2 / 800)
    labels = np.repeat([0, 1], 400)
    scores = np.where(np.arange(800) % 5 == 0, 1 - labels, labels)
    low, high = detection_intervals(scores, labels, np.arange(800), 0.5)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 800), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [0, 1], [0, 1]), "of one length"),
        (([1.0, 2.0], [1, 1], [0, 1]), r"hold both 0 and 1, got \[1\]"),
        (([1.0, 2.0], [0, 2], [0, 1]), r"got \[0, 2\]"),
        (([1.0, math.nan], [0, 1], [0, 1]), "NaN or infinite"),
        (([1.0, 2.0], [0, 1], [0]), "`sources` must be as long"),
        (([1.0, 2.0], [0, 1], [3, 3]), "at least two images"),
    ],
)
def test_detections_that_can_not_be_measured_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        detection_intervals(*arguments)
    with pytest.raises(ValueError, match="`confidence` must be"):
        detection_intervals([1.0, 2.0], [0, 1], [0, 1], confidence=1.0)


def test_the_evaluate_metric_of_detection_gathers_batches_to_the_same_numbers(tmp_path):
    metric = AdversarialDetection(cache_dir=str(tmp_path))
    rows = [(0.1, 0, 0), (0.9, 1, 0), (0.3, 0, 1), (0.2, 1, 1), (0.5, 1, 2), (0.4, 0, 2)]
    for part in (rows[:2], rows[2:]):
        metric.add_batch(**{name: [row[i] for row in part] for i, name in enumerate(("scores", "labels", "sources"))})
    result = metric.compute(threshold=0.45, num_samples=50)
    columns = [list(column) for column in zip(*rows, strict=True)]
    expected = detection_metrics(*columns[:2], 0.45)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    low, high = detection_intervals(*columns, 0.45, num_samples=50)["auroc"]
    assert (result["auroc_low"], result["auroc_high"]) == pytest.approx((low, high))


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
