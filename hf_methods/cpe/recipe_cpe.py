# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The model and the data that a recipe describes, and the figures of what was trained."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import DatasetDict, concatenate_datasets
from transformers import AutoModel

from hf_methods.cpe.configuration_cpe import CPEConfig
from hf_methods.cpe.data_cpe import make_longtail_ssl_splits
from hf_methods.cpe.image_processing_cpe import CPEImageProcessor
from hf_methods.cpe.modeling_cpe import CPEForImageClassification
from hf_methods.cpe.training_cpe import CPETrainer
from hf_methods.data import load_image_dataset


LAST_EVALUATIONS = 20  # the field reports their mean


@dataclass
class ModelArguments:
    """A WideResNet trained from scratch, or a pretrained backbone, with experts on it. See `CPEConfig` for the fields."""

    backbone: str | None = field(default=None, metadata={"help": "Folder or Hub id of a pretrained image model."})
    depth: int = field(default=28, metadata={"help": "Layers of the WideResNet."})
    widen_factor: int = field(default=2, metadata={"help": "Width of the WideResNet."})
    bn_momentum: float = field(default=0.001, metadata={"help": "Momentum of its batch norms."})
    drop_rate: float = field(default=0.0, metadata={"help": "Dropout in its blocks."})
    image_size: int = field(default=32, metadata={"help": "Side of the images."})
    num_channels: int = field(default=3, metadata={"help": "3, or 1 for grayscale."})
    image_mean: list[float] = field(
        default_factory=lambda: [0.485, 0.456, 0.406], metadata={"help": "Mean of each channel."}
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.229, 0.224, 0.225], metadata={"help": "Deviation of each channel."}
    )
    taus: list[float] = field(
        default_factory=lambda: [0.0, 2.0, 4.0], metadata={"help": "Logit adjustment of each expert; 0 is FixMatch."}
    )
    use_cbn: bool = field(default=True, metadata={"help": "Classwise batch normalisation."})
    group_cuts: list[int] | None = field(default=None, metadata={"help": "First ranks of medium and tail classes."})
    eval_expert: int | None = field(default=None, metadata={"help": "The expert that answers."})


@dataclass
class DataArguments:
    """Labelled images, and which of them keep their labels. See `make_longtail_ssl_splits` for the fields."""

    dataset: str = field(metadata={"help": "'mnist', a Hub id or a folder with the splits train and test."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub data set."})
    n1: int = field(default=1500, metadata={"help": "Labelled images of the most frequent class."})
    gamma_l: float = field(default=100.0, metadata={"help": "Imbalance of the labelled images."})
    m1: int | None = field(default=None, metadata={"help": "Unlabelled images of their most frequent class."})
    gamma_u: float | None = field(default=None, metadata={"help": "Imbalance of the unlabelled images."})
    unlabeled: str = field(default="consistent", metadata={"help": "Shape of the unlabelled images."})
    uniform_mode: str = field(
        default="total", metadata={"help": "Whether a flat split's number is 'total' or 'per_class'."}
    )
    include_labeled_in_unlabeled: bool = field(default=False, metadata={"help": "Labelled images are unlabelled too."})
    unlabeled_split: str | None = field(default=None, metadata={"help": "A further split, of images without labels."})


def load_splits(args: DataArguments, label_column: str, seed: int) -> tuple[DatasetDict, dict[str, Any]]:
    """`make_longtail_ssl_splits` of the data set; the split changes with the seed, as in the official code.

    Raises:
        ValueError: see `load_image_dataset` and `make_longtail_ssl_splits`.
    """
    dataset = load_image_dataset(args.dataset, args.dataset_config)
    if args.unlabeled_split:
        if args.unlabeled_split not in dataset:
            raise ValueError(f"{args.dataset!r} has no split {args.unlabeled_split!r}, only {list(dataset)}.")
        further = dataset[args.unlabeled_split]
        further = further.remove_columns(label_column) if label_column in further.column_names else further
        labels = dataset["train"].features[label_column]
        further = further.add_column(label_column, [-1] * len(further)).cast_column(label_column, labels)
        dataset["train"] = concatenate_datasets(
            [dataset["train"], further.select_columns(dataset["train"].column_names)]
        )
    return make_longtail_ssl_splits(
        dataset,
        n1=args.n1,
        gamma_l=args.gamma_l,
        m1=args.m1,
        gamma_u=args.gamma_u,
        unlabeled=args.unlabeled,
        seed=seed,
        label_column=label_column,
        uniform_mode=args.uniform_mode,
        include_labeled_in_unlabeled=args.include_labeled_in_unlabeled,
    )


def build_model(args: ModelArguments, names: list[str], class_counts: list[int]) -> CPEForImageClassification:
    """A model for the classes `names`, of which `class_counts` images are labelled."""
    fields = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "class_counts": class_counts,
        **{name: getattr(args, name) for name in ("taus", "use_cbn", "group_cuts", "eval_expert")},
        **{name: getattr(args, name) for name in ("image_size", "num_channels")},
    }
    if args.backbone is not None:
        return CPEForImageClassification.from_backbone(AutoModel.from_pretrained(args.backbone), **fields)
    sizes = {name: getattr(args, name) for name in ("depth", "widen_factor", "bn_momentum", "drop_rate")}
    return CPEForImageClassification(CPEConfig(**fields, **sizes))


def build_processor(args: ModelArguments) -> CPEImageProcessor:
    """The image processor of the model."""
    return CPEImageProcessor(
        size={"height": args.image_size, "width": args.image_size},
        image_mean=args.image_mean,
        image_std=args.image_std,
        do_convert_rgb=args.num_channels == 3,
    )


def name_of_arm(config: CPEConfig, is_supervised: bool = False) -> str:
    """What the settings are called in tables."""
    if config.num_experts > 1:
        name = "CPE" if config.use_cbn else "CPE without CBN"
        return f"{name}, supervised only" if is_supervised else name
    name = "supervised" if is_supervised else "FixMatch"
    adjusted = f"{name} + LA" if any(config.taus) else name
    return f"{adjusted} + CBN" if config.use_cbn else adjusted


def compute_figures(trainer: CPETrainer) -> tuple[dict[str, float], list[list[list[int]]]]:
    """The figures of results.json, of the evaluation split and the averaged model.

    Returns:
        Two values. Figures: the metrics of the last evaluation, `expert<e>_balanced_accuracy` of each expert by itself, and where training was
        evaluated as it went, `last_20_balanced_accuracy`, their mean, and `best_balanced_accuracy`, which was selected on
        the evaluation split and must be called so. Confusions of each expert (experts, true classes, predicted classes), in
        images.
    """
    config = trainer.model.config
    figures = {
        name.removeprefix("eval_"): value for name, value in trainer.evaluate().items() if name.startswith("eval_")
    }
    for noise in ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time"):
        figures.pop(noise, None)
    answering, fusion = config.eval_expert, config.fusion
    confusions = []
    try:
        config.fusion = "expert"
        for e in range(config.num_experts):
            config.eval_expert = e
            answer = trainer.predict(trainer.eval_dataset, metric_key_prefix="expert")  # type: ignore[arg-type]
            figures[f"expert{e}_balanced_accuracy"] = answer.metrics["expert_balanced_accuracy"]
            logits = answer.predictions[0] if isinstance(answer.predictions, tuple) else answer.predictions
            pairs = answer.label_ids * config.num_classes + logits.argmax(-1)
            counts = np.bincount(pairs, minlength=config.num_classes**2)
            confusions.append(counts.reshape(config.num_classes, config.num_classes).tolist())
    finally:
        config.eval_expert, config.fusion = answering, fusion
    history = [
        entry["eval_balanced_accuracy"] for entry in trainer.state.log_history if "eval_balanced_accuracy" in entry
    ]
    while_training = history[:-1]  # the last is that of this function
    if while_training:
        last = while_training[-LAST_EVALUATIONS:]
        figures["last_20_balanced_accuracy"] = sum(last) / len(last)
        figures["best_balanced_accuracy"] = max(while_training)
    return figures, confusions
