# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-training of a tiny CLIP on emoji: a base model for prompt tuning that needs no download.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv 2103.00020; with several
true captions in a batch, as emoji of a subcategory share theirs.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, Trainer

from hf_methods.subpt.data_subpt import clip_transform, harmonic_mean, split_base_novel


TEMPLATES = (
    "a picture of a {}.", "a picture of {}.", "a photo of a {}.", "a photo of the {}.", "an emoji of a {}.", "an icon of a {}.",
    "a drawing of a {}.", "a drawing of the {}.", "a small picture of a {}.", "a bright picture of a {}.", "a sign of {}.",
    "the {}.", "a {}.", "{}.", "this is a {}.", "a good picture of a {}.",
)  # fmt: skip
# What a caption says about an image, and how often.
CONTENTS = {"name": 0.35, "short_name": 0.1, "named_kind": 0.15, "subcategory": 0.35, "category": 0.05}
WHITE_SHARE = 0.5  # of the backgrounds


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> CLIPTokenizer:
    """A CLIP tokenizer with few tokens: all bytes, each also at the end of a word, and the merges that `texts` need most.

    Args:
        texts: the captions.
        vocab_size: tokens, at most; at least 514 for the bytes and the two special ones.

    Raises:
        ValueError: a smaller `vocab_size`.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    if (room := vocab_size - len(tokens) - 2) < 0:
        raise ValueError(f"`vocab_size` must be at least {len(tokens) + 2}, got {vocab_size}.")
    backend = CLIPTokenizer().backend_tokenizer
    bpe: Any = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, end_of_word_suffix="</w>", initial_alphabet=symbols, show_progress=False
        ),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"][:room]]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab: Any = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, merges)  # type: ignore[arg-type]  # pairs, as the backend takes them


def make_clip(
    tokenizer: CLIPTokenizer,
    *,
    image_size: int,
    patch_size: int,
    width: int,
    vision_layers: int,
    text_layers: int,
    mlp_ratio: float,
    max_length: int,
) -> tuple[CLIPModel, CLIPImageProcessor]:
    """A random CLIP for the tokenizer, pooled at its end of text, and its image processor."""
    tower: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": int(mlp_ratio * width),
        "num_attention_heads": 4,
    }
    text = {
        **tower,
        "num_hidden_layers": text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "num_hidden_layers": vision_layers, "image_size": image_size, "patch_size": patch_size}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    edge = {"height": image_size, "width": image_size}
    return CLIPModel(config), CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=edge)


def contents_of(row: dict[str, Any]) -> list[str]:
    """What can be said about an emoji, in the order of `CONTENTS`."""
    return [
        row["name"], row["short_name"], f"{row['name']}, a type of {row['subcategory']}", row["subcategory"], row["category"],
    ]  # fmt: skip


class EmojiCaptions(torch.utils.data.Dataset):
    """All images as one tensor, and all that can be said about each. An item is its own number.

    Args:
        dataset: of `load_pretrain_emoji`.

    Attributes:
        pixels: (n, 4, height, width), uint8, RGBA.
        contents: (n, 5), int64: numbers in `texts`.
        texts: all distinct contents.
    """

    def __init__(self, dataset: Dataset):
        rows = list(dataset)
        self.pixels = torch.from_numpy(np.stack([np.asarray(row["image"].convert("RGBA")) for row in rows]))
        self.pixels = self.pixels.permute(0, 3, 1, 2).contiguous()
        said = [contents_of(row) for row in rows]
        self.texts = sorted({text for texts in said for text in texts})
        number = {text: index for index, text in enumerate(self.texts)}
        self.contents = torch.tensor([[number[text] for text in texts] for texts in said])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> int:
        return index


def augment(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Random size, place, slope, mirror, background and colours of a batch, all at once.

    Args:
        pixels: (n, 4, height, width), uint8, RGBA.
        generator: of the draw; default torch's global one.

    Returns:
        (n, 3, height, width), float32 in 0..1.
    """
    n = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    rgba = pixels.float() / 255
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)  # so that borders are not mixed with hidden colours
    size, angle = uniform(0.5, 1.25), uniform(-0.25, 0.25)  # of the window: below 1 it shows a part of the image
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift = uniform(-1, 1, 2) * ((1 - size).abs() + 0.1)[:, None]
    cos, sin = size * angle.cos(), size * angle.sin()
    theta = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1
    )
    rgba = F.grid_sample(rgba, F.affine_grid(theta, list(rgba.shape), align_corners=False), align_corners=False)
    background = torch.where((uniform(0, 1) < WHITE_SHARE)[:, None], 1.0, uniform(0, 1, 3))
    image = rgba[:, :3] + (1 - rgba[:, 3:]) * background[:, :, None, None]
    grey = image.mean(1, keepdim=True)
    image = grey + uniform(0.4, 1.3, 1, 1, 1) * (image - grey)  # saturation
    image = image.mean((1, 2, 3), keepdim=True).lerp(image, uniform(0.7, 1.2, 1, 1, 1))  # contrast
    return (image * uniform(0.8, 1.15, 3, 1, 1)).clamp(0, 1)  # brightness, and a tint


@dataclass
class DataCollatorForCaptions:
    """A batch of augmented images, a random caption each, and which captions are true of which images.

    Args:
        captions: the images and texts.
        tokenizer: of the model.
        image_processor: for mean and standard deviation.
        max_length: positions of the text tower.
    """

    captions: EmojiCaptions
    tokenizer: CLIPTokenizer
    image_processor: CLIPImageProcessor
    max_length: int

    def __call__(self, items: list[int]) -> dict[str, Tensor]:
        """Returns `pixel_values` (n, 3, height, width), `input_ids` (n, length) and `is_true` (images, captions), bool."""
        captions, rows = self.captions, torch.tensor(items)
        weights = torch.tensor(list(CONTENTS.values())).expand(len(items), -1)
        chosen = captions.contents[rows].gather(1, torch.multinomial(weights, 1)).squeeze(1)
        templates = torch.randint(len(TEMPLATES), (len(items),)).tolist()
        texts = [TEMPLATES[t].format(captions.texts[c]) for t, c in zip(templates, chosen.tolist(), strict=True)]
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        mean, std = (
            torch.tensor(getattr(self.image_processor, f"image_{name}")).view(3, 1, 1) for name in ("mean", "std")
        )
        return {
            "pixel_values": (augment(captions.pixels[rows]) - mean) / std,
            "input_ids": encoded["input_ids"],
            "is_true": (captions.contents[rows][:, None] == chosen[None, :, None]).any(-1),
        }


def multi_positive_loss(logits: Tensor, is_true: Tensor) -> Tensor:
    """CLIP's loss where several captions of a batch are true of an image: they share the target.

    Args:
        logits: (images, captions).
        is_true: (images, captions), bool, with one at least in each row and column.

    Returns:
        Scalar: the mean of both directions' cross entropies.
    """
    target = is_true.to(logits.dtype)
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


class CLIPPretrainingTrainer(Trainer):
    """`Trainer` with `multi_positive_loss`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of a batch of `DataCollatorForCaptions`."""
        outputs = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        loss = multi_positive_loss(outputs.logits_per_image, inputs["is_true"])
        return (loss, outputs) if return_outputs else loss


def caption_texts(captions: EmojiCaptions, seed: int = 0) -> list[str]:
    """Each content in three templates, to train a tokenizer on."""
    generator = random.Random(seed)
    return [template.format(text) for text in captions.texts for template in generator.sample(TEMPLATES, 3)]


@torch.no_grad()
def zero_shot_accuracy(
    model: CLIPModel, tokenizer: CLIPTokenizer, image_processor: CLIPImageProcessor, dataset: Dataset, template: str
) -> dict[str, float]:
    """Accuracy in percent on base and on novel classes, each among its own names, and their harmonic mean.

    Args:
        model, tokenizer, image_processor: the CLIP.
        dataset: of `load_emoji`.
        template: a prompt with `{}` for the name.
    """
    was_training, transform = model.training, clip_transform(image_processor, train=False)
    model.eval()
    figures = {}
    for group, part in zip(("base", "novel"), split_base_novel(dataset), strict=True):
        pixel_values = torch.stack([transform(image) for image in part["image"]])
        texts = [template.format(name) for name in part.features["label"].names]
        input_ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        logits = model(input_ids=input_ids, pixel_values=pixel_values.to(model.dtype)).logits_per_image
        figures[group] = 100 * float((logits.argmax(-1) == torch.tensor(part["label"])).double().mean())
    model.train(was_training)
    return {**figures, "harmonic_mean": harmonic_mean(figures["base"], figures["novel"])}
