# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics as functions on arrays, and as `evaluate.Metric` classes that need no download."""

from collections.abc import Sequence

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
