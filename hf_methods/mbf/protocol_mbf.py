# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""MBF and its baselines on the same rows: known attacks, unseen attacks, and attackers who know the detector."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_methods.mbf.attacks_mbf import ADAPTIVE_ATTACKS, PixelClassifier, adaptive_attack, predict_classes
from hf_methods.mbf.baselines_mbf import (
    MahalanobisFeatures,
    feature_squeezing_score,
    lid_features,
    max_softmax_score,
    moment_features,
)
from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.data_mbf import stack_images
from hf_methods.mbf.extraction_mbf import MBFFeatureExtractor
from hf_methods.mbf.features_mbf import mbf
from hf_methods.mbf.modeling_mbf import MBFDetector
from hf_methods.mbf.svm_mbf import conformal_threshold, fit_svm


UNTRAINED = ("max_softmax", "feature_squeezing")  # scores as they are


@torch.no_grad()
def mbf_features(classifier: PixelClassifier, images: Tensor, config: MBFConfig, batch_size: int = 64) -> Tensor:
    """float64 (images, features) of uint8 images, on the CPU."""
    extractor = MBFFeatureExtractor(classifier.classifier, config)
    parts = [extractor(classifier.pixel_values(part)).features.double().cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


def compute_feature_sets(
    classifier: PixelClassifier,
    config: MBFConfig,
    splits: dict[str, Dataset],
    clean_images: Tensor,
    clean_labels: Tensor,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """What each detector measures of the rows of each split.

    Args:
        classifier: in evaluation mode.
        config: of MBF; its layers are those of the baselines too.
        splits: attacked data sets by name, see `build_attacked_dataset`.
        clean_images: uint8 images of the classifier's training split: reference of LID and Mahalanobis.
        clean_labels: their classes.
        seed: of LID's mini-batches.

    Returns:
        For each detector and split float64 (rows, features): "mbf" as configured, "mbf_debiased", "mbf_logits" (of the
        logits alone), "moments", "lid", "mahalanobis", and the scores `UNTRAINED` as one column.
    """
    model = classifier.classifier
    layers = MBFFeatureExtractor(model, config).layers
    fields = ("layers", "num_coefficients", "center", "max_responses")
    debiased = MBFConfig(debias=not config.debias, **{name: getattr(config, name) for name in fields})
    mahalanobis = MahalanobisFeatures(classifier, layers, clean_images, clean_labels)
    sets: dict[str, dict[str, np.ndarray]] = {}
    for split, dataset in splits.items():
        images = stack_images(list(dataset["image"])).to(classifier.mean.device)
        columns = {
            "mbf": mbf_features(classifier, images, config),
            "mbf_debiased": mbf_features(classifier, images, debiased),
            "mbf_logits": logit_features(classifier, images),
        }
        columns["moments"] = moment_features(classifier, images, layers)
        columns["lid"] = lid_features(classifier, images, clean_images, layers, seed=seed)
        columns["mahalanobis"] = mahalanobis(images)
        columns["max_softmax"] = max_softmax_score(classifier, images)[:, None]
        columns["feature_squeezing"] = feature_squeezing_score(classifier, images)[:, None]
        for name, values in columns.items():
            sets.setdefault(name, {})[split] = values.numpy()
    return sets


@torch.no_grad()
def logit_features(classifier: PixelClassifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """float64 (images, 2): coefficients of the logits around their mean, however few classes there are."""
    logits = torch.cat([classifier(part).double().cpu() for part in images.split(batch_size)])
    return mbf(logits - logits.mean(1, keepdim=True), 2, 1)


def row_columns(dataset: Dataset) -> dict[str, np.ndarray]:
    """The columns that the protocol needs of a data set of attacked images, as arrays."""
    return {name: np.asarray(dataset[name]) for name in ("attack", "is_adversarial", "source")}


def compare_detectors(
    sets: dict[str, dict[str, np.ndarray]],
    train: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    *,
    fpr: float = 0.05,
    seed: int = 0,
    num_samples: int = 1000,
    **svm: Any,
) -> list[dict[str, Any]]:
    """Train on each attack, and on all but each, and test on every attack.

    The rows of an attack are its successful images, the noise as large as it, and all clean images. A detector's threshold
    comes from held-out folds of its training rows; `UNTRAINED` ones take it from the same rows without training.

    Args:
        sets: of `compute_feature_sets`, with the splits "train" and "test".
        train, test: of `row_columns`, in the order of the features.
        fpr: that the thresholds are chosen for.
        seed: of folds and bootstrap.
        num_samples: of the bootstrap.
        **svm: `c`, `gamma` and `num_folds` of `fit_svm`.

    Returns:
        One record for each detector, training choice and tested attack: `detector`, `setting` ("known": trained on it,
        "transfer": on one other, "leave_one_out": on all others), `train` (attacks), `test` (attack), `metrics` (value, low
        and high of each of `detection_metrics`) and `fpr` (share of benign test rows above the threshold).
    """
    from hf_methods.metrics import detection_intervals, detection_metrics  # `evaluate` is slow to import

    attacks = sorted({*train["attack"].tolist()} - {"none"})
    choices = [[attack] for attack in attacks]
    if len(attacks) > 2:  # with two, all others are one other
        choices += [[other for other in attacks if other != attack] for attack in attacks]
    records = []
    for detector, features in sets.items():
        for chosen in choices:
            rows = np.isin(train["attack"], ["none", *chosen])
            x, y, groups = features["train"][rows], train["is_adversarial"][rows], train["source"][rows]
            if detector in UNTRAINED:
                benign, scores = x[y == 0, 0], features["test"][:, 0]
            else:
                estimator, held_out = fit_svm(x, y, groups, seed=seed, **svm)
                benign, scores = held_out[y == 0], estimator.decision_function(features["test"])
            threshold = conformal_threshold(np.sort(benign), fpr)
            for attack in attacks if len(chosen) == 1 else [a for a in attacks if a not in chosen]:
                at = np.isin(test["attack"], ["none", attack])
                arguments = (scores[at], test["is_adversarial"][at], test["source"][at], threshold)
                values = detection_metrics(*arguments[:2], threshold)
                intervals = detection_intervals(*arguments, num_samples=num_samples, seed=seed)
                records.append(
                    {
                        "detector": detector,
                        "setting": "known"
                        if attack in chosen
                        else "transfer"
                        if len(chosen) == 1
                        else "leave_one_out",
                        "train": chosen,
                        "test": attack,
                        "metrics": {name: [value, *intervals[name]] for name, value in values.items()},
                        "fpr": float(np.mean(arguments[0][arguments[1] == 0] > threshold)),
                    }
                )
    return records


def measure_adaptive(
    detector: MBFDetector,
    classifier: PixelClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    max_iter: int,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """How often attackers who know the detector fool the classifier, and how often they are seen.

    Args:
        detector: fitted, bound to `classifier.classifier`.
        classifier: in evaluation mode.
        images: uint8, all classified right.
        labels: (images,) their classes.
        eps, max_iter, seed: of `adaptive_attack`.

    Returns:
        For each of `ADAPTIVE_ATTACKS`: `fooled`, the share of images that fool the classifier; `detected`, the share of
        these above the detector's threshold, NaN where there are none; `evaded`, the share of all that do both.
    """
    results = {}
    for kind in ADAPTIVE_ATTACKS:
        attacked = adaptive_attack(
            detector, classifier, images, labels, eps=eps, max_iter=max_iter, kind=kind, seed=seed
        )
        is_fooled = predict_classes(classifier, attacked) != labels
        with torch.no_grad():
            parts = [detector.decision_function(classifier.pixel_values(part)) for part in attacked.split(128)]
        is_seen = torch.cat(parts) > detector.threshold()
        results[kind] = {
            "fooled": is_fooled.double().mean().item(),
            "detected": is_seen[is_fooled].double().mean().item(),
            "evaded": (is_fooled & ~is_seen.to(is_fooled.device)).double().mean().item(),
        }
    return results
