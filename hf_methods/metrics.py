# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics as functions on arrays, and as `evaluate.Metric` classes that need no download."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


def token_perplexity(nll: Sequence[float], num_tokens: Sequence[int]) -> float:
    """exp(sum of negative log likelihoods / number of predicted tokens).

    Every token counts alike: the mean of the perplexities of batches would weigh short batches more.

    Args:
        nll: sum of the negative log likelihoods (natural logarithm) of each text, block or batch.
        num_tokens: how many tokens each of these sums covers.

    Raises:
        ValueError: no predicted tokens, or the two differ in length.
    """
    if len(nll) != len(num_tokens):
        raise ValueError(f"`nll` and `num_tokens` must be of one length, got {len(nll)} and {len(num_tokens)}.")
    total = int(np.sum(num_tokens))
    if total < 1:
        raise ValueError(f"`num_tokens` must count at least one predicted token, got {total}.")
    return float(np.exp(np.sum(np.asarray(nll, dtype=np.float64)) / total))


class TokenPerplexity(evaluate.Metric):
    """`token_perplexity` for `evaluate`: `add_batch(nll=..., num_tokens=...)`, then `compute()["perplexity"]`.

    `evaluate`'s own metric "perplexity" loads a model by its id; this one takes what any model computed.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of a causal language model, every token counted alike.",
            citation="",
            inputs_description="nll: sums of negative log likelihoods; num_tokens: tokens that each sum covers.",
            features=datasets.Features({"nll": datasets.Value("float64"), "num_tokens": datasets.Value("int64")}),
        )

    def _compute(self, nll, num_tokens) -> dict[str, float]:
        return {"perplexity": token_perplexity(nll, num_tokens)}


ECE_BINS = 15


def long_tailed_classification(
    predictions: Sequence[int] | Sequence[Sequence[float]],
    references: Sequence[int],
    num_classes: int,
    class_counts: Sequence[int] | None = None,
    group_cuts: Sequence[int] = (),
) -> dict[str, Any]:
    """Accuracy of a classifier trained on long-tailed labels, over all classes and over groups of them.

    Args:
        predictions: class ids, or logits (n, num_classes).
        references: true class ids.
        num_classes: K.
        class_counts: labelled training images of each class: needed for the groups.
        group_cuts: ranks (0 is the most frequent class) where the medium and the tail classes begin, such as (2, 4).

    Returns:
        `accuracy`; `balanced_accuracy`, the mean recall of the classes; `gmean`, their geometric mean, where a recall of 0
        counts as 1 / (100 K) as is usual in this field; `macro_f1`; `worst_class`, the smallest recall; `per_class`, all of
        them, NaN for a class that `references` does not have (which the means leave out). With `class_counts` also the
        mean recalls `many_shot`, `medium_shot` and `few_shot` (more than 100, 20 to 100, fewer than 20 labels), with
        `group_cuts` too `head`, `medium` and `tail`; a group without classes is NaN. With logits also `ece`, the expected
        calibration error (15 bins of equal width).

    Raises:
        ValueError: nothing to measure, lengths that differ, ids out of range, logits that are NaN, or `group_cuts` without
            `class_counts`.
    """
    labels, answers = np.asarray(references), np.asarray(predictions)
    if len(labels) == 0 or len(labels) != len(answers):
        raise ValueError(
            f"`predictions` and `references` must be of one length > 0, got {len(answers)} and {len(labels)}."
        )
    scores = None
    if answers.ndim == 2:
        if answers.shape[1] != num_classes:
            raise ValueError(f"logits must have one column for each of {num_classes} classes, got {answers.shape[1]}.")
        scores, answers = answers.astype(np.float64), answers.argmax(1)
        if bad := int((np.isnan(scores) | np.isposinf(scores)).any(1).sum()):
            raise ValueError(f"logits of {bad} of {len(scores)} `predictions` are NaN or infinite.")
    for name, ids in (("references", labels), ("predictions", answers)):
        if ids.min() < 0 or ids.max() >= num_classes:
            raise ValueError(f"`{name}` must be from 0 to {num_classes - 1}, got {ids.min()} to {ids.max()}.")
    correct = answers == labels
    totals = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[correct], minlength=num_classes)
    seen = totals > 0
    recalls = np.where(seen, hits / np.maximum(totals, 1), np.nan)
    f1 = 2 * hits[seen] / (totals + np.bincount(answers, minlength=num_classes))[seen]
    floored = np.where(recalls[seen] > 0, recalls[seen], 1 / (100 * num_classes))
    result: dict[str, Any] = {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(recalls[seen].mean()),
        "gmean": float(np.exp(np.log(floored).mean())),
        "macro_f1": float(f1.mean()),
        "worst_class": float(recalls[seen].min()),
        "per_class": recalls.tolist(),
    }
    for name, classes in _class_groups(num_classes, class_counts, group_cuts).items():
        group = recalls[classes & seen]
        result[name] = float(group.mean()) if group.size else float("nan")
    if scores is not None:
        exponentials = np.exp(scores - scores.max(1, keepdims=True))
        confidence = exponentials.max(1) / exponentials.sum(1)
        bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        gaps = np.bincount(bins, weights=confidence - correct, minlength=ECE_BINS)
        result["ece"] = float(np.abs(gaps).sum() / len(labels))
    return result


def _class_groups(num_classes: int, class_counts, group_cuts) -> dict[str, np.ndarray]:
    """Which classes (K,) belong to each group."""
    if class_counts is None:
        if len(group_cuts):
            raise ValueError("`group_cuts` are ranks of classes by `class_counts`: give these too.")
        return {}
    counts = np.asarray(class_counts)
    if counts.shape != (num_classes,):
        raise ValueError(f"`class_counts` must have {num_classes} counts, got {len(counts)}.")
    groups = {"many_shot": counts > 100, "medium_shot": (counts <= 100) & (counts >= 20), "few_shot": counts < 20}
    ranks = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    if len(group_cuts) == 2:
        medium, tail = group_cuts
        groups |= {"head": ranks < medium, "medium": (ranks >= medium) & (ranks < tail), "tail": ranks >= tail}
    elif len(group_cuts) == 1:
        groups |= {"head": ranks < group_cuts[0], "tail": ranks >= group_cuts[0]}
    elif len(group_cuts):
        raise ValueError(f"`group_cuts` must be one or two ranks, got {list(group_cuts)}.")
    return groups


class LongTailedClassification(evaluate.Metric):
    """`long_tailed_classification` for `evaluate`: `add_batch(...)`, then `compute(num_classes=..., class_counts=...)`.

    `config_name="logits"` takes rows of logits as predictions, and so has `ece`; the default takes class ids.
    """

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        logits = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Accuracy, its means over classes and over groups of them, and calibration.",
            citation="",
            inputs_description="predictions: class ids or logits; references: class ids.",
            features=datasets.Features(
                {"predictions": logits if self.config_name == "logits" else number, "references": number}
            ),
        )

    def _compute(self, predictions, references, num_classes, class_counts=None, group_cuts=()) -> dict[str, Any]:
        return long_tailed_classification(predictions, references, num_classes, class_counts, group_cuts)


def make_compute_metrics(
    num_classes: int, class_counts: Sequence[int] | None = None, group_cuts: Sequence[int] = ()
) -> Callable[[Any], dict[str, float]]:
    """`compute_metrics` for `Trainer`: the single numbers of `long_tailed_classification` of its logits and labels."""

    def compute_metrics(prediction) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        metrics = long_tailed_classification(logits, prediction.label_ids, num_classes, class_counts, group_cuts)
        return {name: value for name, value in metrics.items() if name != "per_class"}

    return compute_metrics


DETECTION_METRICS = ("auroc", "aupr", "tpr_at_5_fpr", "accuracy")


def detection_metrics(
    scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray, threshold: float | None = None
) -> dict[str, float]:
    """How well scores tell two classes apart.

    Args:
        scores: larger means class 1.
        labels: 0 or 1.
        threshold: a score above it is a detection; for `accuracy` alone. Chosen on other data.

    Returns:
        `auroc`: probability that a score of class 1 is above one of class 0, ties counted half; `aupr`: average precision
        of class 1; `tpr_at_5_fpr`: the largest share of class 1 detected by a threshold that at most 5 % of class 0 are
        above; `accuracy`: at `threshold`, with the share of detections right in each class weighed alike, NaN without.

    Raises:
        ValueError: lengths that differ, labels other than 0 and 1, one class only, or scores that are not finite.
    """
    score, label = _check_detection(scores, labels)
    order = np.argsort(-score, kind="stable")
    score, label = score[order], label[order]
    last_of_tie = np.append(np.diff(score) != 0, True)
    hits = np.cumsum(label)[last_of_tie]
    alarms = np.cumsum(1 - label)[last_of_tie]
    tpr, fpr, precision = hits / hits[-1], alarms / alarms[-1], hits / (hits + alarms)
    before = np.append(0.0, tpr[:-1])
    accuracy = float("nan")
    if threshold is not None:
        accuracy = (np.mean(score[label == 1] > threshold) + np.mean(score[label == 0] <= threshold)) / 2
    return {
        "auroc": float(np.sum(np.diff(fpr, prepend=0.0) * (tpr + before) / 2)),
        "aupr": float(np.sum((tpr - before) * precision)),
        "tpr_at_5_fpr": float(np.max(tpr[fpr <= 0.05], initial=0.0)),
        "accuracy": float(accuracy),
    }


def detection_intervals(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    sources: Sequence[int] | np.ndarray,
    threshold: float | None = None,
    *,
    confidence: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of `detection_metrics`: all rows of a source are drawn together.

    Rows made from one image are alike, so drawing rows one by one would give intervals that are too narrow.

    Args:
        scores, labels, threshold: see `detection_metrics`.
        sources: which image a row was made from.
        confidence: share of the samples inside.
        num_samples: samples; those without one of the classes are drawn again.
        seed: of the drawing.

    Raises:
        ValueError: as `detection_metrics`; `confidence` outside (0, 1), fewer than 2 sources or 1 sample.
    """
    score, label = _check_detection(scores, labels)
    source = np.asarray(sources)
    if source.shape != score.shape:
        raise ValueError(f"`sources` must be as long as `scores`, got {len(source)} and {len(score)}.")
    if not 0 < confidence < 1 or num_samples < 1:
        raise ValueError(
            f"`confidence` must be in (0, 1) and `num_samples` positive, got {confidence}, {num_samples}."
        )
    order = np.argsort(source, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(source[order])) + 1)
    if len(rows_of) < 2:
        raise ValueError("`sources` must name at least two images: one can't tell how results differ between images.")
    generator = np.random.default_rng(seed)
    samples: list[list[float]] = []
    while len(samples) < num_samples:
        rows = np.concatenate([rows_of[index] for index in generator.integers(len(rows_of), size=len(rows_of))])
        if 0 < label[rows].sum() < len(rows):
            samples.append(list(detection_metrics(score[rows], label[rows], threshold).values()))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.array(samples), [tail, 100 - tail], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(DETECTION_METRICS, low, high)}


def _check_detection(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"`scores` and `labels` must be of one length, got {score.shape} and {label.shape}.")
    if sorted(set(label.tolist())) != [0, 1]:
        raise ValueError(f"`labels` must hold both 0 and 1, got {sorted(set(label.tolist()))}.")
    if not np.isfinite(score).all():
        raise ValueError("`scores` has NaN or infinite values.")
    return score, label.astype(np.int64)


class AdversarialDetection(evaluate.Metric):
    """`detection_metrics` with intervals for `evaluate`.

    `add_batch(scores=..., labels=..., sources=...)`, then `compute(threshold=...)`: each metric, and its 95 % interval
    over sources as `<metric>_low` and `<metric>_high`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="AUROC, average precision, true-positive rate at 5 % false positives, and accuracy.",
            citation="",
            inputs_description="scores: larger is more adversarial; labels: 1 adversarial; sources: image of each row.",
            features=datasets.Features(
                {
                    "scores": datasets.Value("float64"),
                    "labels": datasets.Value("int64"),
                    "sources": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, scores, labels, sources, threshold=None, num_samples=1000, seed=0) -> dict[str, float]:
        values = detection_metrics(scores, labels, threshold)
        intervals = detection_intervals(scores, labels, sources, threshold, num_samples=num_samples, seed=seed)
        bounds = {
            f"{name}_{end}": pair[i] for name, pair in intervals.items() for i, end in enumerate(("low", "high"))
        }
        return {**values, **bounds}


def voc07_average_precision(
    detections: Sequence[dict], truths: Sequence[dict], num_labels: int, iou_threshold: float = 0.5
) -> float:
    """Pascal VOC 2007's mean average precision: 11 points, mean over the labels that occur.

    Differs from COCO's at the same IoU by several points: name the evaluator with the number. Boxes are continuous; the
    development kit counts the last pixel in (its sides are longer by one).

    Args:
        detections: one dict(boxes (n, 4) xyxy, scores (n,), labels (n,)) an image, arrays or CPU tensors.
        truths: one dict(boxes (k, 4), labels (k,), and optional ignore (k,)) an image; detections of an ignored object
            (difficult, crowd) count neither for nor against.
        num_labels: labels are 0 to `num_labels - 1`.
        iou_threshold: IoU that a detection needs.

    Returns:
        Between 0 and 1; NaN where no label occurs.

    Raises:
        ValueError: another number of images, a label out of range, or scores that are NaN.
    """
    if len(detections) != len(truths):
        raise ValueError(f"`detections` and `truths` must be of one length, got {len(detections)} and {len(truths)}.")
    for number, images in enumerate(zip(detections, truths)):
        if any(not 0 <= label < num_labels for image in images for label in np.asarray(image["labels"]).tolist()):
            raise ValueError(f"labels of image {number} must be from 0 to {num_labels - 1}.")
        if np.isnan(np.asarray(images[0]["scores"])).any():
            raise ValueError(f"scores of image {number} are NaN: such detections have no order.")
    precisions = []
    for label in range(num_labels):
        rows = []  # (score, image, box) of the label
        objects, ignored = [], []  # of each image
        for number, (found, truth) in enumerate(zip(detections, truths)):
            mine = np.asarray(truth["labels"]) == label
            objects.append(np.asarray(truth["boxes"], dtype=np.float64).reshape(-1, 4)[mine])
            ignored.append(np.asarray(truth.get("ignore", np.zeros(len(mine))), dtype=bool)[mine])
            keep = np.asarray(found["labels"]) == label
            boxes = np.asarray(found["boxes"], dtype=np.float64).reshape(-1, 4)[keep]
            rows += [(score, number, box) for score, box in zip(np.asarray(found["scores"])[keep].tolist(), boxes)]
        num_objects = sum(int((~flags).sum()) for flags in ignored)
        if num_objects:
            precisions.append(_eleven_points(rows, objects, ignored, num_objects, iou_threshold))
    return float(np.mean(precisions)) if precisions else float("nan")


def _eleven_points(rows, objects, ignored, num_objects: int, iou_threshold: float) -> float:
    seen = [np.zeros(len(boxes), dtype=bool) for boxes in objects]
    hits = []
    for _, number, box in sorted(rows, key=lambda row: -row[0]):
        boxes = objects[number]
        sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
        overlap = sides.clip(0).prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - overlap
        iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
        best = int(iou.argmax()) if len(iou) else -1
        if best < 0 or iou[best] < iou_threshold:
            hits.append(False)
        elif not ignored[number][best]:
            hits.append(not seen[number][best])
            seen[number][best] = True
    found = np.cumsum(hits)
    recall, precision = found / num_objects, found / np.arange(1, len(hits) + 1)
    return float(np.mean([precision[recall >= point - 1e-12].max(initial=0.0) for point in np.linspace(0, 1, 11)]))
