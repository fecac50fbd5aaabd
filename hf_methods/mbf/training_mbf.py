# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one run, the classifier that it guards, and the fitted scikit-learn pipeline as a file for who wants that."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_methods.mbf.attacks_mbf import check_attack
from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.modeling_mbf import MBFDetector
from hf_methods.processes import check_processes


ESTIMATOR_TYPES = {
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
    "sklearn.svm._classes.SVC",
}


@dataclass
class ClassifierArguments:
    """The classifier to guard: one from the Hub, or a small one trained here."""

    classifier: str | None = field(default=None, metadata={"help": "Hub id or folder; default: train `architecture`."})
    classifier_revision: str | None = field(default=None, metadata={"help": "Commit or tag of the Hub id."})
    architecture: str = field(default="resnet", metadata={"help": "'resnet' or 'vit', trained from scratch."})
    hidden_size: int = field(
        default=64, metadata={"help": "Features of a 'vit', channels of a 'resnet' in its last stage."}
    )
    num_layers: int = field(default=4, metadata={"help": "Blocks of a 'vit'; stages of a 'resnet'."})
    patch_size: int = field(default=4, metadata={"help": "Pixels of a side of a 'vit' patch."})

    def __post_init__(self):
        if self.architecture not in ("resnet", "vit"):
            raise ValueError(f"`architecture` must be 'resnet' or 'vit', got {self.architecture!r}.")

    def is_on_hub(self) -> bool:
        """Is the classifier one of the Hub, and not a folder, which nobody else has?"""
        return self.classifier is not None and not Path(self.classifier).is_dir()


@dataclass
class DataArguments:
    """Images, their splits, and the attacks."""

    images: str = field(
        metadata={"help": "'digits', 'digits28', 'mnist5k', a Hub id or a folder; see hf_methods.mbf.data_mbf."}
    )
    images_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub data set."})
    images_split: str = field(default="train", metadata={"help": "Split of the Hub data set."})
    other_images: str | None = field(
        default=None, metadata={"help": "Another source of images of the same classes, only tested on; as `images`."}
    )
    max_other_images: int | None = field(default=None, metadata={"help": "Use so many of them, from the front."})
    max_images: int | None = field(default=None, metadata={"help": "Use so many images, from the front."})
    split_sizes: list[float] = field(
        default_factory=lambda: [0.6, 0.2, 0.05, 0.15],
        metadata={"help": "Shares of classifier_train, detector_train, validation and detector_test."},
    )
    attacks: dict | str | None = field(
        default=None, metadata={"help": "Parameters by attack, as YAML or JSON: {pgd: {eps: 0.1, max_iter: 10}}."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Keep attacked data sets in this folder."})

    def __post_init__(self):
        if isinstance(self.attacks, str):
            try:
                self.attacks = json.loads(self.attacks)
            except ValueError as error:
                raise ValueError(f"`attacks` is no JSON: {error}") from error
        if not isinstance(self.attacks, dict) or not self.attacks:
            raise ValueError(f"`attacks` must name at least one attack with its parameters, got {self.attacks!r}.")
        for name, parameters in self.attacks.items():
            check_attack(name)
            self.attacks[name] = {key: _number(name, key, value) for key, value in (parameters or {}).items()}


def _number(attack: str, key: str, value: Any) -> Any:
    """YAML reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"`attacks`: `{key}` of {attack!r} must be a number, got {value!r}.") from None
    return value


@dataclass
class MBFTrainingArguments(TrainingArguments):
    """`TrainingArguments` of the classifier, with the detector's settings.

    Changed defaults: learning_rate 1e-3, no columns removed. The paper's values are not known: its body could not be read.
    """

    layers: list[str] | None = field(default=None, metadata={"help": "Layers or patterns; default: a preset."})
    num_coefficients: int | None = field(default=None, metadata={"help": "Orders; default: by the layer's size."})
    center: str | None = field(default="layer", metadata={"help": "'layer', 'channel' or null."})
    debias: bool = field(default=False, metadata={"help": "Subtract the finite-sample floor."})
    channel_groups: int = field(default=1, metadata={"help": "Groups of channels measured apart."})
    max_responses: int | None = field(default=None, metadata={"help": "Of a layer; default: all."})
    target_fpr: float = field(default=0.05, metadata={"help": "False-positive rate of the verdict."})
    svm_c: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0], metadata={"help": "Candidates for C."})
    svm_gamma: list[float] = field(
        default_factory=lambda: [0.3, 1.0, 3.0], metadata={"help": "Candidates for gamma, times 1 / features."}
    )
    num_folds: int = field(default=5, metadata={"help": "Of the cross-validation."})
    max_train_rows: int | None = field(
        default=None,
        metadata={"help": "Train detectors on the sources that have so many rows together; default: all."},
    )
    compare: bool = field(default=True, metadata={"help": "Also train and test the baselines, on each attack."})
    bootstrap_samples: int = field(default=1000, metadata={"help": "Of the intervals."})
    adaptive_eps: float = field(default=0.1, metadata={"help": "Radius of the adaptive attacks, of 1."})
    adaptive_steps: int = field(default=100, metadata={"help": "Steps of the adaptive attacks; 0: none."})
    adaptive_images: int = field(default=200, metadata={"help": "Images that they are tried on."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the classifier."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Columns become pixels on the fly."})

    def __post_init__(self):
        super().__post_init__()
        self.detector_config()  # a bad value is an error before the classifier is trained
        if self.num_folds < 2 or not self.svm_c or not self.svm_gamma:
            raise ValueError("`num_folds` must be at least 2, and `svm_c` and `svm_gamma` need a candidate.")
        for name in ("svm_c", "svm_gamma"):
            if not all(0 < value < float("inf") for value in getattr(self, name)):
                raise ValueError(f"`{name}` must be positive numbers, got {getattr(self, name)}.")
        for name in ("max_train_rows", "bootstrap_samples", "adaptive_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.adaptive_steps < 0 or not 0 < self.adaptive_eps <= 1:
            raise ValueError(
                f"`adaptive_steps` must be at least 0 and `adaptive_eps` in (0, 1], got {self.adaptive_steps} and "
                f"{self.adaptive_eps}."
            )
        check_processes(self)

    def detector_config(self, **more: Any) -> MBFConfig:
        """The configuration of the detector before training."""
        fields = ("layers", "num_coefficients", "center", "debias", "channel_groups", "max_responses", "target_fpr")
        return MBFConfig(**{name: getattr(self, name) for name in fields}, **more)

    def svm_options(self) -> dict[str, Any]:
        """Arguments of `fit_svm`."""
        return {"c": self.svm_c, "gamma": self.svm_gamma, "num_folds": self.num_folds, "seed": self.seed}


class ClassifierTrainer(Trainer):
    """`Trainer` of the classifier, which also goes on from a checkpoint whose parameters have other names on disk, as ViT's.

    Trainer itself would tell of missing parameters in a warning, and go on with random ones.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        classifier: Any = self.model
        classifier.load_state_dict(type(classifier).from_pretrained(resume_from_checkpoint).state_dict())


def build_classifier(
    args: ClassifierArguments, dataset: Dataset
) -> tuple[ResNetForImageClassification | ViTForImageClassification, ViTImageProcessor]:
    """A randomly initialised classifier for the images of `dataset`, and the processor that only normalises them."""
    image = dataset[0]["image"]
    num_channels = 1 if image.mode == "L" else 3
    names = dataset.features["label"].names
    labels: dict[str, Any] = {
        "num_channels": num_channels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    model: ResNetForImageClassification | ViTForImageClassification
    if args.architecture == "vit":
        sizes: dict[str, Any] = {
            "hidden_size": args.hidden_size,
            "num_hidden_layers": args.num_layers,
            "num_attention_heads": 4,
        }
        model = ViTForImageClassification(
            ViTConfig(
                image_size=image.size[0],
                patch_size=args.patch_size,
                intermediate_size=2 * args.hidden_size,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **sizes,
                **labels,
            )
        )
    else:
        widths = [max(8, args.hidden_size >> (args.num_layers - 1 - stage)) for stage in range(args.num_layers)]
        model = ResNetForImageClassification(
            ResNetConfig(
                embedding_size=widths[0],
                hidden_sizes=widths,
                depths=[1] * args.num_layers,
                layer_type="basic",
                **labels,
            )
        )
    processor = ViTImageProcessor(  # an image of that size stays as it is
        size={"height": image.size[1], "width": image.size[0]},
        image_mean=[0.5] * num_channels,
        image_std=[0.5] * num_channels,
        do_convert_rgb=False,
    )
    return model, processor


def classifier_accuracy(model: PreTrainedModel, dataset: Dataset, batch_size: int = 256) -> float:
    """Share of the rows (`pixel_values`, `labels`) whose largest logit is the label's."""
    num_right = 0
    with torch.no_grad():
        for batch in DataLoader(dataset, batch_size=batch_size):  # type: ignore[arg-type]
            logits = model(batch["pixel_values"].to(model.device)).logits
            num_right += int((logits.argmax(1).cpu() == batch["labels"]).sum())
    return num_right / len(dataset)


def save_estimator(detector: MBFDetector, path: str | Path) -> None:
    """Write the scikit-learn pipeline of a detector that was fitted in this process, in skops' format: no pickle.

    Raises:
        ValueError: the detector was loaded and not fitted here: its file holds tensors, not scikit-learn's objects.
        ImportError: skops is not installed.
    """
    import skops.io

    if not hasattr(detector, "estimator_"):
        raise ValueError("only a detector that was fitted in this process has a scikit-learn pipeline: call `fit`.")
    skops.io.dump(detector.estimator_, path)


def load_estimator(path: str | Path) -> Any:
    """The scikit-learn pipeline of `save_estimator`: features -> decision function.

    Raises:
        ValueError: the file holds anything else than a scaler and a support vector machine.
        ImportError: skops is not installed.
    """
    import skops.io
    from sklearn.pipeline import Pipeline

    try:
        if untrusted := skops.io.get_untrusted_types(file=path):
            raise ValueError(f"{path} holds {', '.join(untrusted)}, which no file of `save_estimator` does.")
        estimator = skops.io.load(path, trusted=[])
    except (KeyError, OSError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no file of `save_estimator`: {error}") from error
    steps = [estimator, *(step for _, step in estimator.steps)] if isinstance(estimator, Pipeline) else [estimator]
    kinds = {f"{type(step).__module__}.{type(step).__qualname__}" for step in steps}
    if kinds != ESTIMATOR_TYPES:
        raise ValueError(f"{path} holds {', '.join(sorted(kinds))}, not a scaler and a support vector machine.")
    return estimator
