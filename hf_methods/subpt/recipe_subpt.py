# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the recipe `training/subpt/train.py` is told, and the model and data that follow from it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import ClassLabel, Dataset, load_dataset
from peft import get_peft_model
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    TrainerCallback,
)

from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments
from hf_methods.subpt.data_subpt import (
    FeatureDataset,
    cache_image_features,
    clip_transform,
    few_shot_subset,
    harmonic_mean,
    image_digest,
    make_shapes_dataset,
    split_base_novel,
)
from hf_methods.subpt.emoji_subpt import load_emoji
from hf_methods.subpt.peft_config_subpt import SubPTConfig
from hf_methods.subpt.peft_model_subpt import PeftModelForPromptedImageClassification
from hf_methods.subpt.prompts_subpt import check_class_names
from hf_methods.subpt.training_subpt import SubPTTrainer, classification_accuracy


TINY = "tiny-random"


@dataclass
class ModelArguments:
    """The base model and its context."""

    base_model: str = field(
        metadata={"help": "Hub id or folder of CLIP or SigLIP, 'open_clip:RN50/openai', or 'tiny-random'."}
    )
    n_ctx: int | None = field(default=None, metadata={"help": "Context tokens; 16, or the tokens of `ctx_init`."})
    ctx_init: str | None = field(default=None, metadata={"help": "Words to start from; the default is random."})
    class_token_position: str = field(default="end", metadata={"help": "'end', 'middle' or 'front'."})
    class_specific: bool = field(default=False, metadata={"help": "A context for each class."})


@dataclass
class DataArguments:
    """Images, their split and their classes."""

    dataset: str = field(metadata={"help": "Hub id or folder of images, 'emoji', or 'shapes' (drawn)."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to draw from."})
    test_split: str = field(default="test", metadata={"help": "Split to test on."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    label_column: str = field(default="label", metadata={"help": "Column of class numbers."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names in the order of the numbers; default: those of the column."}
    )
    num_shots: int = field(default=4, metadata={"help": "Images a class."})
    base_to_novel: bool = field(default=True, metadata={"help": "Train on the first half of the classes only."})
    nfl_protocol: str = field(
        default="transductive",
        metadata={
            "help": "Names of NFL where `nfl_names` is not given: 'transductive' takes those of the novel classes."
        },
    )
    template: str = field(default="a photo of a {}.", metadata={"help": "Hand-written prompt of zero-shot CLIP."})
    views: int = field(default=8, metadata={"help": "Augmentations of a training image that are cached."})

    def __post_init__(self):
        if self.nfl_protocol not in ("transductive", "inductive"):
            raise ValueError(
                f"`nfl_protocol` must be 'transductive' or 'inductive' (give `nfl_names`), got {self.nfl_protocol!r}."
            )


@dataclass
class PromptData:
    """Cached features of the training images, and of the test images by group of classes.

    Args:
        train: the few shots.
        names: names of the classes that are trained.
        tests: "base" and "novel", or "all": image features (n, dim), labels (n,), names.
        digests: of the training images and of the test labels.
    """

    train: FeatureDataset
    names: list[str]
    tests: dict[str, tuple[Tensor, Tensor, list[str]]]
    digests: dict[str, str]


def build_model(args: ModelArguments, class_names: list[str] | None = None):
    """The prompted model, with its tokenizer, and the image processor of its base."""
    base: Any
    if args.base_model == TINY:
        base, tokenizer, image_processor = make_tiny_clip()
    elif args.base_model.startswith("open_clip:"):
        base, tokenizer, image_processor = load_open_clip(args.base_model.removeprefix("open_clip:"))
    else:
        base = AutoModelForZeroShotImageClassification.from_pretrained(args.base_model)
        tokenizer = AutoTokenizer.from_pretrained(args.base_model)
        image_processor = AutoImageProcessor.from_pretrained(args.base_model)
    config = SubPTConfig(
        n_ctx=args.n_ctx,
        ctx_init=args.ctx_init,
        class_token_position=args.class_token_position,
        class_specific=args.class_specific,
        class_names=class_names if args.class_specific else None,
    )
    model: Any = get_peft_model(base, config)
    assert isinstance(model, PeftModelForPromptedImageClassification)
    model.tokenizer = tokenizer
    return model, image_processor


def make_tiny_clip():
    """A random CLIP of 0.1 M parameters with a tokenizer of bytes, for smoke runs."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    text = dict(**tower, vocab_size=len(tokens), max_position_embeddings=77, eos_token_id=2, bos_token_id=0)
    config = CLIPConfig(text_config=text, vision_config=dict(**tower, image_size=32, patch_size=8), projection_dim=32)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPModel(config), tokenizer, processor


def load_open_clip(name: str):
    """A model of open_clip by "architecture/weights", such as "RN50/openai": the ResNets are not in transformers."""
    import open_clip

    architecture, _, pretrained = name.partition("/")
    base = open_clip.create_model(architecture, pretrained=pretrained or None)
    edge = base.visual.image_size
    edge = edge[0] if isinstance(edge, (tuple, list)) else edge
    processor = CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
    return base.eval(), open_clip.get_tokenizer(architecture), processor


def load_classes(args: DataArguments) -> tuple[Dataset, Dataset, list[str]]:
    """The training and test images with a `ClassLabel` column, and the names of the classes.

    Raises:
        ValueError: no such column, or numbers without names.
    """
    if args.dataset == "shapes":
        train, test = make_shapes_dataset(max(4, args.num_shots), seed=0), make_shapes_dataset(4, seed=1)
    elif args.dataset == "emoji":
        train, test = load_emoji(args.train_split), load_emoji(args.test_split)
    else:
        train, test = (
            load_dataset(args.dataset, args.dataset_config, split=split)
            for split in (args.train_split, args.test_split)
        )
    for column in (args.image_column, args.label_column):
        if column not in train.column_names:
            raise ValueError(f"{args.dataset} has no column {column!r}, only {', '.join(train.column_names)}.")
    feature = train.features[args.label_column]
    names = args.class_names or (feature.names if isinstance(feature, ClassLabel) else None)
    if names is None:
        raise ValueError(f"`{args.label_column}` of {args.dataset} has no names; give `class_names`.")
    names = check_class_names(names)
    label = ClassLabel(names=names)
    return train.cast_column(args.label_column, label), test.cast_column(args.label_column, label), names


def load_data(
    args: DataArguments,
    train: Dataset,
    test: Dataset,
    names: list[str],
    model: PeftModelForPromptedImageClassification,
    image_processor: Any,
    seed: int,
) -> PromptData:
    """Draw the shots, split the classes, and encode all images once.

    The shots are drawn before the split, as in CoOp's code. In a base-to-novel run each group is tested among its own
    names only.
    """
    label = args.label_column
    shots = few_shot_subset(train, args.num_shots, seed, label)
    groups = {"all": test}
    if args.base_to_novel:
        (shots, _), (base, novel) = split_base_novel(shots, label), split_base_novel(test, label)
        groups = {"base": base, "novel": novel}
    columns: dict[str, Any] = {"image_column": args.image_column, "label_column": label}
    tests = {}
    for group, rows in groups.items():
        cached = cache_image_features(model, rows, transform=clip_transform(image_processor, train=False), **columns)
        tests[group] = (cached.image_embeds[0], cached.labels, list(rows.features[label].names))
    torch.manual_seed(seed)
    transform = clip_transform(image_processor, train=True)
    cached = cache_image_features(model, shots, transform=transform, views=args.views, **columns)
    digests = {"train": image_digest(shots, args.image_column, label)}
    return PromptData(cached, list(shots.features[label].names), tests, digests)


def name_of_arm(args: SubPTTrainingArguments) -> str:
    """What the settings are called in tables."""
    sources = {"snapshots": " + SubPT", "late": " + late subspace", "random": " + random subspace"}
    subspace = sources[args.subspace_source] if args.subspace_rank else ""
    anchor = {"auxiliary": " + NFL", "base": " + anchor on base names", "both": " + NFL and base anchor"}
    stopped = f" stopped at epoch {args.stop_epochs}" if args.stop_epochs else ""
    return f"CoOp{subspace}{anchor[args.anchor_names] if args.nfl_weight else ''}{stopped}"


def compute_figures(tests: dict[str, tuple[Tensor, Tensor, list[str]]], features_of) -> dict[str, float]:
    """Accuracy in percent of each group, and the harmonic mean of base and novel.

    Args:
        tests: of `PromptData`.
        features_of: names -> class features (classes, dim), such as `model.encode_classes`.
    """
    figures = {}
    for group, (image_embeds, labels, names) in tests.items():
        with torch.no_grad():
            figures[group] = 100 * classification_accuracy(image_embeds, labels, features_of(names))
    if "novel" in figures:
        figures["harmonic_mean"] = harmonic_mean(figures["base"], figures["novel"])
    return figures


class AccuracyCurve(TrainerCallback):
    """Accuracies at the end of each epoch of the last run, from cached features.

    Args:
        trainer: the trainer.
        tests: of `PromptData`.

    Attributes:
        rows: one dictionary an epoch: `epoch`, the accuracies in percent, `harmonic_mean`.
    """

    def __init__(self, trainer: SubPTTrainer, tests: dict[str, tuple[Tensor, Tensor, list[str]]]):
        self.trainer, self.tests = trainer, tests
        self.rows: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.rows = []  # of the phase before

    def on_epoch_end(self, args, state, control, **kwargs):
        figures = compute_figures(self.tests, self.trainer.prompt_model.encode_classes)
        self.rows.append({"epoch": round(state.epoch), **figures})
