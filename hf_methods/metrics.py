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
        ValueError: nothing to measure, lengths that differ, ids out of range, or `group_cuts` without `class_counts`.
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
