# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer of each method on images and texts without meaning: tiny for tests, or with the networks of published recipes.

Batches are smaller than the recipes', so that a step takes seconds on a CPU; on a machine with a GPU they train there.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import get_peft_model
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, Trainer, default_data_collator

from hf_methods import (
    CPETrainer,
    CPETrainingArguments,
    CrossTeachingConfig,
    CrossTeachingModel,
    CrossTeachingTrainer,
    CrossTeachingTrainingArguments,
    SubPTConfig,
    SubPTTrainer,
    SubPTTrainingArguments,
)
from hf_methods.cpe import recipe_cpe as cpe
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes
from hf_methods.cross_teaching.training_cross_teaching import default_views
from hf_methods.mbf import recipe_mbf as mbf
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.mbf.training_mbf import ClassifierTrainer
from hf_methods.ortho_adam import ortho_adam_cls_and_kwargs
from hf_methods.softmax1 import recipe_softmax1 as softmax1
from hf_methods.softmax1.arguments_softmax1 import Softmax1TrainingArguments
from hf_methods.subpt.recipe_subpt import make_tiny_clip
from hf_methods.subpt.subspace_subpt import random_basis


COMMON = {
    "use_cpu": not torch.cuda.is_available(), "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
}  # fmt: skip


class Tokenizer(SimpleNamespace):
    """A vocabulary's size and special tokens, without the vocabulary."""

    def __len__(self):
        return self.size


def random_images(num: int, side: int, num_labels: int) -> Dataset:
    """Noise with the labels in turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    names = [f"class {i}" for i in range(num_labels)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    rows = {"image": [Image.fromarray(row) for row in pixels], "label": [i % num_labels for i in range(num)]}
    return Dataset.from_dict(rows, features=features)


def make_softmax1(folder: Path, steps: int, tiny: bool, **options: Any) -> Trainer:
    """GPT-2 with softmax-1 and OrthoAdam; as large as the paper's of 60 million parameters, 4 sequences a step."""
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2} if tiny else {}
    seq_len, vocabulary = (16, 99) if tiny else (256, 50257)
    tokenizer: Any = Tokenizer(size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=None)
    model = softmax1.build_model(softmax1.ModelArguments(**sizes), tokenizer, seq_len)
    args = Softmax1TrainingArguments(str(folder), per_device_train_batch_size=4, max_steps=steps, **options)
    blocks = torch.randint(vocabulary, (64, seq_len), generator=torch.Generator().manual_seed(0)).tolist()
    return Trainer(
        model, args, train_dataset=[{"input_ids": block, "labels": block} for block in blocks],
        data_collator=default_data_collator, optimizer_cls_and_kwargs=ortho_adam_cls_and_kwargs(model, args, None),
    )  # fmt: skip


def make_cpe(folder: Path, steps: int, tiny: bool, **options: Any) -> CPETrainer:
    """WideResNet with three experts; the paper's WideResNet-28-2 with a quarter of its images a step."""
    settings = cpe.ModelArguments(depth=10, widen_factor=1, image_size=8) if tiny else cpe.ModelArguments()
    labeled = random_images(40, settings.image_size, 10)
    model = cpe.build_model(settings, labeled.features["label"].names, [4] * 10)
    args = CPETrainingArguments(
        str(folder),
        per_device_train_batch_size=4 if tiny else 16,
        threshold=0.1,
        crop_padding=2,
        max_steps=steps,
        **options,
    )
    return CPETrainer(model, args, labeled, labeled, processing_class=cpe.build_processor(settings))


def make_subpt(folder: Path, steps: int, tiny: bool, **options: Any) -> SubPTTrainer:
    """A context in CLIP's text tower, projected, with NFL; the tower of ViT-B and RN50, 24 classes and as many novel ones."""
    base, tokenizer, _ = make_tiny_clip()
    if not tiny:
        base = CLIPModel(CLIPConfig())
    model: Any = get_peft_model(base, SubPTConfig(n_ctx=4 if tiny else 16, eos_token_id=tokenizer.eos_token_id))
    letters = [chr(97 + i) for i in range(4 if tiny else 24)]
    model.set_classes(letters, tokenizer)
    dim = base.config.projection_dim
    features = normalize(torch.randn(32 * steps, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    rows = [{"image_embeds": row, "labels": i % len(letters)} for i, row in enumerate(features)]
    args = SubPTTrainingArguments(
        str(folder), nfl_weight=1.0, nfl_names=[2 * letter for letter in letters], nfl_templates=["a photo of a {}."],
        subspace_rank=3, subspace_source="random", num_train_epochs=1, **options,
    )  # fmt: skip
    trainer = SubPTTrainer(model, args, train_dataset=rows)
    trainer.basis = random_basis(model.context.numel(), 3, seed=0)
    return trainer


def make_cross_teaching(folder: Path, steps: int, tiny: bool, **options: Any) -> CrossTeachingTrainer:
    """Two SSDs that teach each other; SSD300s, one labelled and one unlabelled image a detector and step."""
    detector = {"architecture": "ssd_tiny" if tiny else "ssd300_vgg16", "num_labels": 5}
    config = CrossTeachingConfig(
        detector={"model_type": "cross_teaching_detector", **detector},
        burn_in_steps=0,
        ema_interval=1,
        score_threshold=0.1,
    )
    model = CrossTeachingModel(config)
    args = CrossTeachingTrainingArguments(str(folder), per_device_train_batch_size=1, max_steps=steps, **options)
    labeled, unlabeled = make_digit_scenes("labeled", 5), make_digit_scenes("unlabeled", 5)
    return CrossTeachingTrainer(model, args, labeled, unlabeled, views=default_views(model, strong="light"))


def make_mbf(folder: Path, steps: int, tiny: bool, **options: Any) -> Trainer:
    """The classifier that MBF guards; the ResNet for CIFAR-10 with its batch."""
    settings = mbf.ClassifierArguments(hidden_size=16 if tiny else 256, num_layers=2 if tiny else 3)
    images = random_images(16 if tiny else 256, 8 if tiny else 32, 10)
    model, processor = mbf.build_classifier(settings, images)
    pixels = processor(list(images["image"]), return_tensors="pt")["pixel_values"]
    rows = [{"pixel_values": row, "labels": label} for row, label in zip(pixels, images["label"], strict=True)]
    args = MBFTrainingArguments(
        str(folder), per_device_train_batch_size=8 if tiny else 128, max_steps=steps, **options
    )
    return ClassifierTrainer(model=model, args=args, train_dataset=rows, data_collator=default_data_collator)


TRAINERS = {
    "softmax1": make_softmax1,
    "cpe": make_cpe,
    "subpt": make_subpt,
    "cross_teaching": make_cross_teaching,
    "mbf": make_mbf,
}


def make_trainer(method: str, folder: Path, steps: int, tiny: bool = False, **options: Any) -> Any:
    """The trainer of `method`; from the same seed, the same weights and data.

    Args:
        method: name of the method's folder.
        folder: its `output_dir`.
        steps: of the training.
        tiny: networks with which a step takes milliseconds.
        options: of its `TrainingArguments`.
    """
    torch.manual_seed(0)
    return TRAINERS[method](folder, steps, tiny, **{**COMMON, **options})
