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
        ValueError: another number of images.
    """
    if len(detections) != len(truths):
        raise ValueError(f"`detections` and `truths` must be of one length, got {len(detections)} and {len(truths)}.")
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
