# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The losses of CPE as pure functions on tensors.

Ma, Elezi, Deng, Dong, Xu: Three Heads Are Better Than One: Complementary Experts for Long-Tailed Semi-Supervised
Learning, AAAI 2024, arXiv 2312.15702. E experts (heads) share a backbone. Each has its own intensity tau of logit
adjustment and learns from its own pseudo-labels; features have G branches (head/all, medium and tail, tail classes).

Letters of shapes: N labelled images, M unlabelled images, E experts, G branches, K classes.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


IGNORE_INDEX = -100
REDUCTIONS = ("selected", "batch")


def class_ranks(class_counts: Sequence[int]) -> Tensor:
    """Rank of each class by its number of labels: 0 is the most frequent; among equals the smaller label comes first.

    Args:
        class_counts: labels of each class, in the order of the label ids.

    Returns:
        int64 (K,).
    """
    order = sorted(range(len(class_counts)), key=lambda k: -class_counts[k])
    ranks = {label: rank for rank, label in enumerate(order)}
    return torch.tensor([ranks[label] for label in range(len(order))])


def log_class_prior(class_counts: Sequence[int], floor: float | None = None) -> Tensor:
    """log(n_k / sum n), the prior of the labelled images.

    Args:
        class_counts: labels of each class, in the order of the label ids.
        floor: smallest prior that is let through; with `None`, a class without a label is an error.

    Returns:
        float64 (K,).

    Raises:
        ValueError: no labels at all, a negative count, or a class without a label and no `floor`.
    """
    if min(class_counts, default=-1) < 0 or not any(class_counts):
        raise ValueError(f"`class_counts` must be counts with a positive sum, got {list(class_counts)}.")
    if floor is None and (empty := [k for k, count in enumerate(class_counts) if count == 0]):
        raise ValueError(
            f"`class_counts` is 0 for the classes {empty}, whose log prior is -inf; label some images of each class, or "
            "set `allow_empty_classes=True`."
        )
    total = sum(class_counts)
    prior = torch.tensor([count / total for count in class_counts], dtype=torch.float64)
    return (prior if floor is None else prior.clamp_min(floor)).log()


def logit_adjusted_cross_entropy(
    expert_logits: Tensor, labels: Tensor, log_prior: Tensor, taus: Sequence[float]
) -> Tensor:
    """Cross-entropy of softmax(logits + tau_e * log prior), the supervised loss of each expert.

    Args:
        expert_logits: (N, E, K); float16 and bfloat16 are computed in float32.
        labels: int64 (N,); -100 is left out of the mean.
        log_prior: (K,), see `log_class_prior`.
        taus: intensity of each expert; 0 is plain cross-entropy.

    Returns:
        (E,), the mean over the labelled images; 0 where there is none.
    """
    logits = _at_least_float32(expert_logits)
    # The prior is ADDED in training, so that the raw logits at test time have it taken away. No tensor is made of host
    # numbers in this file's losses: copying them to a GPU waits for it.
    logits = logits + torch.stack([tau * log_prior for tau in taus]).to(logits)
    labels = labels[:, None].expand(-1, len(taus))
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")  # (N, E)
    return losses.sum(0) / (labels != IGNORE_INDEX).sum(0).clamp_min(1)


def select_pseudo_labels(expert_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The class that each expert would label an unlabelled image with, and whether it is sure enough.

    Args:
        expert_logits: (M, E, K) of the weakly augmented images; they get no gradient.
        threshold: smallest probability of a label that is used. The comparison is in float32.

    Returns:
        Labels int64 (M, E) and mask bool (M, E).
    """
    probabilities = _at_least_float32(expert_logits.detach()).softmax(-1)
    confidence, labels = probabilities.max(-1)
    return labels, confidence >= threshold


def classwise_weights(
    pseudo_labels: Tensor, mask: Tensor, ranks: Tensor, group_cuts: Sequence[int], num_groups: int | None = None
) -> Tensor:
    """Weight 1 where a branch counts a pseudo-label: the first counts all, branch b those of rank >= group_cuts[b - 1].

    Args:
        pseudo_labels: int64 (M, E).
        mask: bool (M, E), the labels that are sure enough.
        ranks: int64 (K,), see `class_ranks`.
        group_cuts: first rank of each branch behind the first, such as (2, 4) for 10 classes.
        num_groups: number of branches G, default `len(group_cuts) + 1`; fewer leave out the last ones.

    Returns:
        float32 (M, E, G), 0 or 1.
    """
    label_ranks = ranks[pseudo_labels]  # (M, E)
    return torch.stack([mask & (label_ranks >= first) for first in [0, *group_cuts][:num_groups]], -1).float()


def classwise_consistency_loss(
    group_logits: Tensor,
    pseudo_labels: Tensor,
    weights: Tensor,
    reduction: str = "selected",
    across_ranks: bool = False,
) -> Tensor:
    """Cross-entropy of each expert's branches on the strong views with the expert's own pseudo-labels.

    Args:
        group_logits: (M, E, G, K) of the strongly augmented images; float16 and bfloat16 are computed in float32.
        pseudo_labels: int64 (M, E).
        weights: (M, E, G), see `classwise_weights`.
        reduction: "selected" divides by the sum of the expert's weights, as the official code does; "batch" by M * G,
            which with one branch is FixMatch's loss.
        across_ranks: divide by the mean over all processes of the sum of weights, so that their averaged gradient is
            that of one process with all images. Every process must call it.

    Returns:
        (E,). Exactly 0, with gradients of 0, for an expert without a sure label.

    Raises:
        ValueError: an unknown `reduction`.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"`reduction` must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
    num_images, num_experts, num_groups, num_classes = group_logits.shape
    labels = pseudo_labels[..., None].expand(-1, -1, num_groups)  # (M, E, G)
    losses = F.cross_entropy(
        _at_least_float32(group_logits).reshape(-1, num_classes), labels.reshape(-1), reduction="none"
    ).view(num_images, num_experts, num_groups)
    weights = weights.to(losses)
    total = (weights * losses).sum((0, 2))  # (E,)
    if reduction == "batch":
        return total / max(1, num_images * num_groups)
    normalizer = weights.sum((0, 2))
    if across_ranks and dist.is_initialized():
        dist.all_reduce(normalizer)
        normalizer = normalizer / dist.get_world_size()
    return total / (normalizer + 1e-12)


def shift_to_prior(logits: Tensor, target_prior: Tensor) -> Tensor:
    """Logits for test data whose classes have the probabilities `target_prior`: logits + log(target / uniform).

    Args:
        logits: (..., K) of a classifier for balanced classes, such as CPE's expert for uniform data.
        target_prior: (K,), non-negative numbers; only their ratios matter.

    Raises:
        ValueError: another length, or no probabilities.
    """
    num_classes = logits.shape[-1]
    prior = torch.as_tensor(target_prior, dtype=torch.float64).cpu()
    if prior.shape != (num_classes,):
        raise ValueError(
            f"`target_prior` must have one number for each of {num_classes} classes, got {list(prior.shape)}."
        )
    if not bool(prior.isfinite().all()) or bool((prior < 0).any()) or not bool(prior.sum() > 0):
        raise ValueError(f"`target_prior` must be non-negative numbers with a positive sum, got {prior.tolist()}.")
    return logits + (prior / prior.sum() * num_classes).log().to(logits)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
