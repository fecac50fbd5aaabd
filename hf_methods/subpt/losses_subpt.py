# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Novel Feature Learning (NFL): learned features of names stay near the frozen model's.

Ma et al., arXiv 2211.02219; `trainers/coop_nfl.py` of the published code. The same losses on the training classes
instead of further names give an anchor like KgCoOp's (Yao et al., CVPR 2023).
"""

import torch.nn.functional as F
from torch import Tensor


NFL_LOSSES = ("cosine", "l2")


def nfl_loss(features: Tensor, targets: Tensor, kind: str = "cosine") -> Tensor:
    """Mean distance between the features of n names and their targets.

    "cosine": mean_i (1 - cos(w_i, w*_i)), the published code's `CosineEmbeddingLoss`. "l2": mean over names and
    dimensions of (w_i - w*_i)^2 of the normalised features, which is 2/dim times "cosine".

    Args:
        features: (n, dim), features with the learned context; normalised here.
        targets: (n, dim), frozen features; normalised here.
        kind: "cosine" or "l2".

    Returns:
        Scalar in float32 (float64 for float64 features).

    Raises:
        ValueError: unknown kind, shapes that differ, or no names.
    """
    if kind not in NFL_LOSSES:
        raise ValueError(f"the NFL loss must be one of {', '.join(NFL_LOSSES)}, got {kind!r}.")
    if features.shape != targets.shape or features.ndim != 2 or not len(features):
        raise ValueError(
            f"features and targets must be (n, dim) alike with n >= 1, got {tuple(features.shape)} and "
            f"{tuple(targets.shape)}."
        )
    features, targets = normalize(features), normalize(targets)
    if kind == "cosine":
        return (1 - (features * targets).sum(-1)).mean()
    return (features - targets).square().mean()


def normalize(features: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least: half precision costs two digits of a cosine."""
    dtype = features.dtype if features.dtype.itemsize >= 4 else None
    return F.normalize(features if dtype else features.float(), dim=-1)


def average_templates(features: Tensor) -> Tensor:
    """A name's target: the normalised mean over templates of normalised features (`zsclip.py`, published code).

    Args:
        features: (templates, n, dim).

    Returns:
        (n, dim), rows of length 1.
    """
    return normalize(normalize(features).mean(0))
