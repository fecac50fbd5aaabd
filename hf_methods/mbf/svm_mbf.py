# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The support vector machine on any features: trained with scikit-learn, its decision function in torch, its threshold."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)
MIN_SAMPLES = 10


def svm_decision(
    u: Tensor, support_vectors: Tensor, dual_coefficients: Tensor, intercept: Tensor, gamma: float
) -> Tensor:
    """sum_s dual_s exp(-gamma |u - v_s|^2) + intercept, as scikit-learn's `SVC.decision_function`; differentiable.

    Args:
        u: (batch, features), standardised.
        support_vectors: (vectors, features).
        dual_coefficients: (vectors,).
        intercept: ().
        gamma: of the kernel.

    Returns:
        (batch,) in the dtype of the tensors.
    """
    squares = u.square().sum(1, keepdim=True) + support_vectors.square().sum(1) - 2 * u @ support_vectors.T
    return (-gamma * squares.clamp_min(0)).exp() @ dual_coefficients + intercept


def fit_svm(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    *,
    c: Iterable[float] = (1.0, 10.0, 100.0),
    gamma: Iterable[float] = (0.3, 1.0, 3.0),
    num_folds: int = 5,
    seed: int = 0,
) -> tuple[Any, np.ndarray]:
    """The scikit-learn pipeline of `MBFDetector.fit_features`, whose arguments and errors these are, on any features.

    Raises:
        ImportError: scikit-learn is not installed.

    Returns:
        The fitted pipeline, and the decision value (rows,) of each row by a pipeline that was fitted without its fold.
    """
    try:  # transformers skips such a block when it checks what the code of a repository needs
        from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError("`fit` needs scikit-learn: `pip install scikit-learn`.") from error

    _check_training_data(x, y, groups, num_folds)
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), SVC(kernel="rbf", class_weight="balanced"))
    grid = {"svc__C": list(c), "svc__gamma": [value / x.shape[1] for value in gamma]}
    search = GridSearchCV(pipeline, grid, scoring="roc_auc", cv=folds, error_score="raise").fit(x, y, groups=groups)
    # Training rows lie further from the border than new ones: probabilities and thresholds need held-out scores.
    held_out = cross_val_predict(search.best_estimator_, x, y, groups=groups, cv=folds, method="decision_function")
    return search.best_estimator_, held_out


def fit_calibration(scores: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope (not negative) and offset of Platt's calibration: probability of 1 = sigmoid(slope * score + offset)."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("`fit` needs scikit-learn: `pip install scikit-learn`.") from error

    logistic = LogisticRegression(C=1e3).fit(scores[:, None], y)
    return max(0.0, float(logistic.coef_[0, 0])), float(logistic.intercept_[0])


def conformal_threshold(benign_scores: np.ndarray, fpr: float) -> float:
    """Of n ascending benign scores the one of rank ceil((n + 1) (1 - fpr)): a new one is above it with probability <= fpr.

    The largest, with a warning, where n is too small for that.

    Raises:
        ValueError: `fpr` outside (0, 1).
    """
    if not 0 < fpr < 1:
        raise ValueError(f"`fpr` must be between 0 and 1, both excluded, got {fpr}.")
    count = len(benign_scores)
    rank = math.ceil((count + 1) * (1 - fpr) - 1e-9)
    if rank > count:
        logger.warning_once(f"{count} held-out benign scores are too few for a false-positive rate of {fpr}.")
    return float(benign_scores[min(rank, count) - 1])


def _check_training_data(x, y, groups, num_folds: int) -> None:
    if x.ndim != 2 or not len(x) == len(y) == len(groups):
        raise ValueError(f"features, labels and sources differ in rows: {x.shape}, {y.shape}, {groups.shape}.")
    if len(x) < MIN_SAMPLES:
        raise ValueError(f"`fit` needs at least {MIN_SAMPLES} rows, got {len(x)}.")
    if sorted(set(y.tolist())) != [0, 1]:
        raise ValueError(f"`is_adversarial` must hold both 0 and 1, got {sorted(set(y.tolist()))}.")
    if not (abs(x) < math.inf).all():
        raise ValueError("`features` has NaN or infinite values.")
    for label in (0, 1):
        if (count := len(set(groups[y == label].tolist()))) < num_folds:
            raise ValueError(
                f"rows with `is_adversarial` {label} come from {count} sources, too few for {num_folds} folds: give more "
                "images, or a smaller `num_folds`."
            )
