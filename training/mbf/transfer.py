# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Why a detector sees less of attacks that it was not trained on, and what helps: trials on the validation split.

python training/mbf/transfer.py --config training/mbf/transfer.yaml
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.data import image_digest
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.baselines_mbf import moment_features
from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.data_mbf import normalization_of, stack_images
from hf_methods.mbf.extraction_mbf import MBFFeatureExtractor
from hf_methods.mbf.protocol_mbf import mbf_features, row_columns, rows_of_few_sources
from hf_methods.mbf.recipe_mbf import (
    ClassifierArguments,
    DataArguments,
    load_attacked,
    load_classifier,
    load_splits,
)
from hf_methods.metrics import detection_metrics


WHOLE = {"num_coefficients": 2}  # MBF of whole layers, centred
GROUPS = {"num_coefficients": 1, "center": None}
MBF_TRIALS: dict[str, dict[str, Any]] = {
    "MBF of whole layers": WHOLE,
    "MBF of whole layers, 1024 responses": {**WHOLE, "max_responses": 1024},
    "MBF of whole layers, 256 responses": {**WHOLE, "max_responses": 256},
    "MBF of whole layers, de-biased": {**WHOLE, "debias": True},
    "MBF of whole layers, 4 orders": {"num_coefficients": 4},
    "MBF of whole layers, centred by channel": {**WHOLE, "center": "channel"},
    "MBF of whole layers, not centred": {**WHOLE, "center": None},
    "MBF of 12 channel groups, not centred, 1 order": {**GROUPS, "channel_groups": 12},
    "MBF of 12 channel groups, not centred, 1 order, 1024 responses": {**GROUPS, "channel_groups": 12, "max_responses": 1024},
    "MBF of 12 channel groups, centred, 1 order": {"num_coefficients": 1, "channel_groups": 12},
}  # fmt: skip
MOMENTS = {"mean": [0], "sd": [1], "kurtosis": [2], "mean, sd, kurtosis": [0, 1, 2]}


@dataclass
class TransferArguments:
    """What `transfer.py` runs."""

    recipe: str = field(metadata={"help": "YAML of train.py: images, attacks, layers."})
    classifier: str = field(metadata={"help": "Folder of the classifier that grid.py left."})
    results: str = field(metadata={"help": "JSON file to write."})
    max_train_rows: int = field(default=1200, metadata={"help": "As in train.py."})
    seed: int = field(default=0, metadata={"help": "Of the splits; that of the classifier's training."})


class ZScores:
    """One class: the mean square of the features' distances from the benign mean, in standard deviations."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "ZScores":
        self.scaler = StandardScaler().fit(x[y == 0])
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return np.square(self.scaler.transform(x)).mean(1)


def make_svm(c: float, gamma: float, num_features: int):
    return make_pipeline(StandardScaler(), SVC(C=c, gamma=gamma / num_features, class_weight="balanced"))


def measure(features: dict, columns: dict, make: Callable[[int], Any], args: TransferArguments) -> dict[str, Any]:
    """Mean AUROC over attacks: trained on each, tested on it and on the others; and trained on all but each."""
    train, test = columns["train"], columns["validation"]
    attacks = sorted({*train["attack"].tolist()} - {"none"})

    def auroc_by_attack(chosen: list[str]) -> list[float]:
        rows = rows_of_few_sources(train, np.isin(train["attack"], ["none", *chosen]), args.max_train_rows, args.seed)
        detector = make(features["train"].shape[1]).fit(features["train"][rows], train["is_adversarial"][rows])
        scores = detector.decision_function(features["validation"])
        at = [np.isin(test["attack"], ["none", attack]) for attack in attacks]
        return [detection_metrics(scores[rows], test["is_adversarial"][rows])["auroc"] for rows in at]

    pairs = np.array([auroc_by_attack([attack]) for attack in attacks])
    left_out = [auroc_by_attack([b for b in attacks if b != a])[i] for i, a in enumerate(attacks)]
    return {
        "features": features["train"].shape[1],
        "known": float(pairs.diagonal().mean()),
        "transfer": float(pairs[~np.eye(len(attacks), dtype=bool)].mean()),
        "leave_one_out": float(np.mean(left_out)),
        "leave_one_out_by_attack": dict(zip(attacks, left_out, strict=True)),
    }


def main(args: TransferArguments) -> None:
    start = time.time()
    words = ["--config", args.recipe, "--output_dir", "unused", "--use_cpu", "true", "--seed", str(args.seed)]
    types = (ClassifierArguments, DataArguments, MBFTrainingArguments)
    classifier_args, data_args, run = parse_args_and_config(types, [*words, "--classifier", args.classifier])
    splits = load_splits(data_args, run.seed)
    model, processor = load_classifier(classifier_args, splits, run)
    classifier = PixelClassifier(model, *normalization_of(processor)).eval()
    names = {"train": "detector_train", "validation": "validation"}
    attacked = {k: load_attacked(classifier, splits, v, data_args, run.seed, processor)[0] for k, v in names.items()}
    images = {name: stack_images(list(dataset["image"])) for name, dataset in attacked.items()}
    columns = {name: row_columns(dataset) for name, dataset in attacked.items()}
    layers = MBFFeatureExtractor(model, MBFConfig(layers=run.layers)).layers

    def of_both(function: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, np.ndarray]:
        return {name: function(batch).numpy() for name, batch in images.items()}

    def plain_svm(num_features: int):
        return make_svm(10, 1, num_features)

    trials = {}
    for name, own in MBF_TRIALS.items():
        config = MBFConfig(layers=layers, **own)
        features = of_both(lambda batch, config=config: mbf_features(classifier, batch, config))
        trials[name] = measure(features, columns, plain_svm, args)
        print(name, json.dumps(trials[name]), flush=True)
        if name == "MBF of 12 channel groups, not centred, 1 order":
            chosen = features
    for groups in (1, 12):
        moments = of_both(
            lambda batch, groups=groups: moment_features(classifier, batch, layers, channel_groups=groups)
        )
        for name, parts in MOMENTS.items():
            if groups == 1 or len(parts) == 3:
                # (rows, layers, moments, groups)
                own = {k: v.reshape(len(v), len(layers), 3, -1)[:, :, parts].reshape(len(v), -1) for k, v in moments.items()}  # fmt: skip
                trials[f"{name} of {f'{groups} channel groups' if groups > 1 else 'whole layers'}"] = measure(
                    own, columns, plain_svm, args
                )
    both = {name: np.concatenate([chosen[name], moments[name]], 1) for name in chosen}
    trials["MBF and moments of 12 channel groups"] = measure(both, columns, plain_svm, args)
    for c, gamma in ((1, 0.1), (100, 1)):
        trials[f"MBF of 12 channel groups, C = {c}, gamma = {gamma} / features"] = measure(
            chosen, columns, lambda n, c=c, gamma=gamma: make_svm(c, gamma, n), args
        )
    trials["MBF of 12 channel groups, z-scores without attacks"] = measure(chosen, columns, lambda n: ZScores(), args)
    trials["moments of 12 channel groups, z-scores without attacks"] = measure(
        moments, columns, lambda n: ZScores(), args
    )
    write_results(
        args.results,
        seeds=[args.seed],
        data={name: image_digest(splits[split]) for name, split in names.items()},
        wall_seconds=time.time() - start,
        settings={**vars(args), "split": "validation", "layers": layers, "svm": "C 10, gamma 1 / features"},
        trials_auroc=trials,
    )


if __name__ == "__main__":
    main(*parse_args_and_config((TransferArguments,)))
