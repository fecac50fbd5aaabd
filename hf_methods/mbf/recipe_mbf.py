# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The classifier, the images and the attacks that a recipe describes, and the figures of its runs."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    default_data_collator,
)

from hf_methods.checkpoints import atomic_save
from hf_methods.data import image_digest
from hf_methods.grid import mean_and_sd
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.mbf.attacks_mbf import PixelClassifier, check_attack
from hf_methods.mbf.data_mbf import build_attacked_dataset, load_images, split_by_source
from hf_methods.mbf.modeling_mbf import weights_digest
from hf_methods.mbf.protocol_mbf import summarize_records
from hf_methods.mbf.training_mbf import ClassifierTrainer
from hf_methods.resume import ExamplesPerStep, last_whole_checkpoint


SEED_OF_SPLIT = {"detector_train": 0, "detector_test": 100, "validation": 200, "other": 300}


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


def transform_of(processor):
    """Rows with images and labels -> rows that the classifier takes."""
    return lambda batch: {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}


def load_classifier(args: ClassifierArguments, splits, training_args: MBFTrainingArguments):
    """The classifier and its image processor: loaded, or trained on the split classifier_train."""
    if args.classifier is not None:
        options = {"revision": args.classifier_revision}
        processor = AutoImageProcessor.from_pretrained(args.classifier, **options)
        return AutoModelForImageClassification.from_pretrained(args.classifier, **options).eval(), processor
    model, processor = build_classifier(args, splits["classifier_train"])
    trainer = ClassifierTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["classifier_train"].with_transform(transform_of(processor)),
        data_collator=default_data_collator,
        callbacks=[ExamplesPerStep()],
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(training_args.output_dir or "."))
    return model.eval(), processor


def load_splits(args: DataArguments, seed: int) -> DatasetDict:
    """The four splits of the images, and "other", the images of the other source, where there is one."""
    images = load_images(args.images, args.images_config, args.images_split)
    images = images.select(range(min(len(images), args.max_images or len(images))))
    splits = split_by_source(images, tuple(args.split_sizes), seed)
    if args.other_images is not None:
        other = load_images(args.other_images)
        other = other.select(range(min(len(other), args.max_other_images or len(other))))
        splits["other"] = other.add_column("source", list(range(len(other))))
    return splits


def load_attacked(
    classifier: PixelClassifier, splits: DatasetDict, split: str, args: DataArguments, seed: int, processor
):
    """The attacked data set of a split and its counts, from `cache_dir` if they were made before."""
    dataset, seed = splits[split], 1000 * seed + SEED_OF_SPLIT[split]
    parts = (weights_digest(classifier), image_digest(dataset), json.dumps([args.attacks, seed], sort_keys=True))
    folder = Path(args.cache_dir or "", hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16])
    if args.cache_dir and (folder / "counts.json").is_file():
        return Dataset.load_from_disk(folder), json.loads((folder / "counts.json").read_text("utf-8"))
    attacks: Any = args.attacks  # text has become a dictionary
    attacked, counts = build_attacked_dataset(classifier, dataset, attacks, seed=seed, image_processor=processor)

    def save(aside: Path) -> None:
        attacked.save_to_disk(aside)
        (aside / "counts.json").write_text(json.dumps(counts), "utf-8")

    if args.cache_dir:
        atomic_save(folder, save)
    return attacked, counts


ARMS = {  # detector of a record: its name in tables
    "max_softmax": "max-softmax",
    "feature_squeezing": "feature squeezing",
    "mahalanobis": "Mahalanobis",
    "lid": "LID",
    "moments": "moments",
    "moments_of_groups": "moments of channel groups",
    "mbf_logits": "MBF of the logits",
    "mbf_whole_layers": "MBF of whole layers",
    "mbf_debiased": "MBF of channel groups, de-biased",
    "mbf": "MBF of channel groups",
}
OF_FIRST = ("counts", "accuracy", "published")  # figures of the first seed's run that the results repeat


def summarize_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures over seeds, and those of the first seed with their intervals.

    Args:
        runs: of each seed the dictionary with `records` (see `compare_detectors`), `adaptive` (see `measure_adaptive`) and
            `OF_FIRST`.

    Returns:
        `arm`, the name of MBF in the tables; `summary_mean_and_sd`: {arm: {figure: [mean, standard deviation]}}, see
        `summarize_records`; `adaptive`: the same for each attack; `known`, `leave_one_out` and `other_source`, of the first
        seed: {arm: {tested attack: {metric: [value, low, high]}}}; `transfer_auroc`: {arm: {trained on: {tested: AUROC}}};
        `runs`: the summaries of each seed; and `OF_FIRST`.
    """
    first = runs[0]
    summaries = [summarize_records(run["records"]) for run in runs]
    by_arm = {label: [summary[name] for summary in summaries] for name, label in ARMS.items() if name in summaries[0]}
    return {
        "arm": ARMS["mbf"],
        **{name: first[name] for name in OF_FIRST if name in first},
        "summary_mean_and_sd": {label: mean_and_sd(rows) for label, rows in by_arm.items()},
        "adaptive": {kind: mean_and_sd([run["adaptive"][kind] for run in runs]) for kind in first["adaptive"]},
        **{setting: table_of(first["records"], setting) for setting in ("known", "leave_one_out", "other_source")},
        "transfer_auroc": transfer_of(first["records"]),
        "runs": by_arm,
    }


def table_of(records: list[dict], setting: str) -> dict[str, dict[str, dict]]:
    """{arm: {tested attack: {metric: [value, low, high]}}} of one run."""
    table: dict[str, dict[str, dict]] = {}
    for record in records:
        if record["setting"] == setting:
            table.setdefault(ARMS[record["detector"]], {})[record["test"]] = record["metrics"]
    return table


def transfer_of(records: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """{arm: {attack trained on: {attack tested: AUROC}}} of one run."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        if record["setting"] in ("known", "transfer"):
            (trained,) = record["train"]
            row = table.setdefault(ARMS[record["detector"]], {}).setdefault(trained, {})
            row[record["test"]] = record["metrics"]["auroc"][0]
    return table
