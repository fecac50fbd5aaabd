# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""MBF and its baselines on the same rows: known attacks, unseen attacks, and attackers who know the detector."""

from functools import partial
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
from hf_methods.mbf.data_mbf import KINDS, stack_images
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
        For each detector and split float64 (rows, features): "mbf" as configured, "mbf_debiased" (or not, if it is
        configured), "mbf_logits" (of the logits alone), "moments", where groups of channels are configured also
        "mbf_whole_layers" and "moments_of_groups", "lid", "mahalanobis", and the scores `UNTRAINED` as one column.
    """
    model = classifier.classifier
    layers = MBFFeatureExtractor(model, config).layers
    fields = ("layers", "num_coefficients", "center", "debias", "channel_groups", "max_responses")
    settings = {name: getattr(config, name) for name in fields}
    variants = {"mbf": settings, "mbf_debiased": {**settings, "debias": not config.debias}}
    if config.channel_groups != 1:
        variants["mbf_whole_layers"] = {**settings, "channel_groups": 1}
    mahalanobis = MahalanobisFeatures(classifier, layers, clean_images, clean_labels)
    sets: dict[str, dict[str, np.ndarray]] = {}
    for split, dataset in splits.items():
        images = stack_images(list(dataset["image"])).to(classifier.mean.device)
        columns = {name: mbf_features(classifier, images, MBFConfig(**own)) for name, own in variants.items()}
        columns["mbf_logits"] = logit_features(classifier, images)
        columns["moments"] = moment_features(classifier, images, layers)
        if isinstance(config.channel_groups, int) and config.channel_groups > 1:
            columns["moments_of_groups"] = moment_features(
                classifier, images, layers, channel_groups=config.channel_groups
            )
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
    return {name: np.asarray(dataset[name]) for name in ("attack", "is_adversarial", "source", "kind")}


def rows_of_few_sources(
    columns: dict[str, np.ndarray], rows: np.ndarray, max_rows: int | None, seed: int
) -> np.ndarray:
    """Of `rows` (bool), those of as many sources as have `max_rows` rows together at most, drawn by `seed`; all if None.

    Raises:
        ValueError: `max_rows` is less than one source's rows.
    """
    if max_rows is None or rows.sum() <= max_rows:
        return rows
    sources, counts = np.unique(columns["source"][rows], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sources))
    kept = sources[order][counts[order].cumsum() <= max_rows]
    if not len(kept):
        raise ValueError(f"`max_rows` must hold one source's rows at least, got {max_rows}, there are {counts.max()}.")
    return rows & np.isin(columns["source"], kept)


def compare_detectors(
    sets: dict[str, dict[str, np.ndarray]],
    train: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    other: dict[str, np.ndarray] | None = None,
    *,
    fpr: float = 0.05,
    max_train_rows: int | None = None,
    seed: int = 0,
    num_samples: int = 1000,
    **svm: Any,
) -> list[dict[str, Any]]:
    """Train on each attack, and on all but each, and test on every attack.

    The rows of an attack are its successful images, the noise as large as it, and all clean images. A detector's threshold
    comes from held-out folds of its training rows; `UNTRAINED` ones take it from the same rows without training.

    Args:
        sets: of `compute_feature_sets`, with the splits "train" and "test", and "other" where that is given.
        train, test: of `row_columns`, in the order of the features.
        other: the same of images from another source.
        fpr: that the thresholds are chosen for.
        max_train_rows: see `rows_of_few_sources`.
        seed: of folds and bootstrap.
        num_samples: of the bootstrap.
        **svm: `c`, `gamma` and `num_folds` of `fit_svm`.

    Returns:
        One record for each detector, training choice and tested attack: `detector`, `setting` ("known": trained on it,
        "transfer": on one other, "leave_one_out": on all others, "other_source": on it, tested on `other`), `train`
        (attacks), `test` (attack), `metrics` (value, low and high of each of `detection_metrics`) and `fpr` (share above the
        threshold of the "clean" test rows and of each noise; None where there are none).
    """
    attacks = sorted({*train["attack"].tolist()} - {"none"})
    choices = [[attack] for attack in attacks]
    if len(attacks) > 2:  # with two, all others are one other
        choices += [[other for other in attacks if other != attack] for attack in attacks]
    records = []
    for detector, features in sets.items():
        for chosen in choices:
            rows = rows_of_few_sources(train, np.isin(train["attack"], ["none", *chosen]), max_train_rows, seed)
            x, y, groups = features["train"][rows], train["is_adversarial"][rows], train["source"][rows]
            if detector in UNTRAINED:
                benign, score = x[y == 0, 0], lambda x: x[:, 0]
            else:
                estimator, held_out = fit_svm(x, y, groups, seed=seed, **svm)
                benign, score = held_out[y == 0], estimator.decision_function
            threshold = conformal_threshold(np.sort(benign), fpr)
            head = {"detector": detector, "train": chosen}
            measure = partial(_measure, threshold=threshold, num_samples=num_samples, seed=seed)
            scores = score(features["test"])
            if len(chosen) > 1:
                (left_out,) = set(attacks) - set(chosen)
                records.append({**head, "setting": "leave_one_out", **measure(scores, test, left_out)})
                continue
            for attack in attacks:
                setting = "known" if attack in chosen else "transfer"
                records.append({**head, "setting": setting, **measure(scores, test, attack)})
            if other is not None:
                scores = score(features["other"])
                records.append({**head, "setting": "other_source", **measure(scores, other, chosen[0])})
    return records


def _measure(scores: np.ndarray, columns: dict[str, np.ndarray], attack: str, threshold: float, **bootstrap) -> dict:
    """The fields of a record that depend on the tested rows."""
    from hf_methods.metrics import detection_intervals, detection_metrics  # `evaluate` is slow to import

    at = np.isin(columns["attack"], ["none", attack])
    scores, labels, sources, kinds = (
        scores[at],
        *(columns[name][at] for name in ("is_adversarial", "source", "kind")),
    )
    values = detection_metrics(scores, labels, threshold)
    intervals = detection_intervals(scores, labels, sources, threshold, **bootstrap)
    is_above = scores > threshold
    benign = {kind: kinds == kind for kind in KINDS if kind != "adversarial"}
    return {
        "test": attack,
        "metrics": {name: [value, *intervals[name]] for name, value in values.items()},
        "fpr": {kind: float(is_above[rows].mean()) if rows.any() else None for kind, rows in benign.items()},
    }


def summarize_records(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each detector the means over attacks of `setting_metric`, and of the false-positive rates `fpr_kind` where known."""
    groups: dict[str, dict[str, list[float]]] = {}
    for record in records:
        columns = groups.setdefault(record["detector"], {})
        for name, (value, *_) in record["metrics"].items():
            columns.setdefault(f"{record['setting']}_{name}", []).append(value)
        if record["setting"] == "known":
            for kind, value in record["fpr"].items():
                if value is not None:
                    columns.setdefault(f"fpr_{kind}", []).append(value)
    return {
        detector: {name: float(np.mean(values)) for name, values in columns.items()}
        for detector, columns in groups.items()
    }


@torch.no_grad()
def measure_detector(
    detector: MBFDetector, classifier: PixelClassifier, dataset: Dataset, num_samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """How well one fitted detector tells each attack of an attacked data set from its clean and noisy images.

    Args:
        detector: fitted, bound to `classifier.classifier`.
        classifier: in evaluation mode.
        dataset: see `build_attacked_dataset`.
        num_samples, seed: of the bootstrap.

    Returns:
        For each attack [value, low, high] of each of `detection_metrics`, and `fpr` as in `compare_detectors`.
    """
    images, columns = stack_images(list(dataset["image"])).to(classifier.mean.device), row_columns(dataset)
    parts = [detector.decision_function(classifier.pixel_values(part)) for part in images.split(64)]
    bootstrap = {"threshold": detector.threshold(), "num_samples": num_samples, "seed": seed}
    attacks = sorted({*columns["attack"].tolist()} - {"none"})
    rows = {attack: _measure(torch.cat(parts).cpu().numpy(), columns, attack, **bootstrap) for attack in attacks}
    return {attack: {**row["metrics"], "fpr": row["fpr"]} for attack, row in rows.items()}


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
