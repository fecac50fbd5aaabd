# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-training of the tiny CLIP: its vocabulary, captions, augmentation and loss, and the model that is published."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer, CLIPImageProcessor, pipeline

from hf_methods.args import parse_args_and_config
from hf_methods.subpt.emoji_subpt import load_emoji
from hf_methods.subpt.pretraining_subpt import (
    CONTENTS,
    TEMPLATES,
    DataCollatorForCaptions,
    EmojiCaptions,
    augment,
    caption_texts,
    contents_of,
    make_clip,
    multi_positive_loss,
    train_tokenizer,
    zero_shot_accuracy,
)


ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "model_cards" / "clip-emoji"


@pytest.fixture(scope="module")
def drawings():
    rows = load_emoji("train").select(range(0, 64, 8))
    names = rows.features["label"].names
    return Dataset.from_list(
        [
            {
                "image": row["image"].convert("RGBA"), "name": row["name"], "short_name": row["name"][:3],
                "subcategory": names[row["label"]], "category": "things", "code": row["code"], "style": "noto",
            }
            for row in rows
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def captions(drawings):
    return EmojiCaptions(drawings)


@pytest.fixture(scope="module")
def tokenizer(captions):
    return train_tokenizer(caption_texts(captions), 600)


# --- the vocabulary --------------------------------------------------------------------------------------------------


def test_any_text_has_tokens_between_start_and_end(tokenizer):
    assert len(tokenizer) <= 600
    for text in ("a picture of a animal bird.", "naïve Ω 蛇 🐍", "x\ty"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
        assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
        assert tokenizer.eos_token_id not in ids[1:-1]  # nothing is unknown
    assert tokenizer.decode(tokenizer("A Bird.")["input_ids"], skip_special_tokens=True).replace(" ", "") == "abird."
    assert len(tokenizer("picture")["input_ids"]) == 3  # a frequent word is one token


def test_the_tokenizer_survives_its_files(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer) and len(loaded) == len(tokenizer)
    for text in ("a small picture of a bird.", "Ω!"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_vocabulary_needs_room_for_all_bytes():
    assert len(train_tokenizer(["a b"], 514)) == 514
    with pytest.raises(ValueError, match="`vocab_size` must be at least 514, got 513"):
        train_tokenizer(["a b"], 513)


# --- captions, images and loss -----------------------------------------------------------------------------------------


def test_captions_are_true_of_their_image_and_of_its_relatives(captions, drawings, tokenizer):
    assert [captions.texts[i] for i in captions.contents[0]] == contents_of(drawings[0])
    assert len(contents_of(drawings[0])) == len(CONTENTS) and all("{}" in template for template in TEMPLATES)
    collator = DataCollatorForCaptions(captions, tokenizer, CLIPImageProcessor(), 32)
    torch.manual_seed(0)
    batch = collator(list(range(8)))
    assert batch["pixel_values"].shape == (8, 3, 48, 48) and batch["input_ids"].shape[1] <= 32
    assert batch["is_true"].diagonal().all() and not batch["is_true"].all()
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for column, text in enumerate(texts):
        text = text.replace(" ", "")
        for row in range(8):
            # Longest first: "bird, a type of animal bird" holds "bird".
            said = [content.lower().replace(" ", "") for content in contents_of(drawings[row])]
            if batch["is_true"][row, column]:
                assert any(content in text for content in said)
    torch.manual_seed(0)
    assert torch.equal(collator(list(range(8)))["pixel_values"], batch["pixel_values"])


def test_augmented_images_are_colours_and_backgrounds_vary(captions):
    generator = torch.Generator().manual_seed(0)
    nothing = torch.zeros(64, 4, 8, 8, dtype=torch.uint8)  # all background
    views = augment(nothing, generator)
    assert views.shape == (64, 3, 8, 8) and 0 <= views.min() and views.max() <= 1
    assert torch.allclose(views.amax((2, 3)), views.amin((2, 3)), atol=1e-5)  # one colour each
    bright = (views.mean((1, 2, 3)) > 0.75).float().mean()
    assert 0.3 < bright < 0.9  # about half are white, under brightness and contrast
    pixels = captions.pixels[:1].expand(16, -1, -1, -1)
    views = augment(pixels, generator)
    assert len({float(view.mean()) for view in views}) == 16


def test_one_true_caption_each_gives_clips_loss():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(5)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert multi_positive_loss(logits, torch.eye(5, dtype=torch.bool)) == pytest.approx(float(expected))


def test_true_captions_share_the_target():
    is_true = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    apart = torch.where(is_true, 50.0, -50.0)
    # The best that can be: ln 2 for the rows with two captions, 0 for the third.
    assert multi_positive_loss(apart, is_true) == pytest.approx(2 / 3 * 0.693147, rel=1e-5)
    assert multi_positive_loss(torch.zeros(3, 3), is_true) == pytest.approx(1.098612, rel=1e-5)


# --- the script and what it published -----------------------------------------------------------------------------------


def test_two_steps_write_a_checkpoint_for_the_stock_pipeline(tmp_path, monkeypatch, drawings):
    spec = importlib.util.spec_from_file_location("pretrain_subpt", ROOT / "training" / "subpt" / "pretrain.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    few = {split: load_emoji(split).select(range(40)) for split in ("train", "validation", "test")}
    monkeypatch.setattr(script, "load_pretrain_emoji", lambda: drawings)
    monkeypatch.setattr(script, "load_emoji", few.get)
    argv = ["--config", str(ROOT / "training" / "subpt" / "pretrain.yaml"), "--checkpoint", str(tmp_path / "clip")]
    argv += ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--per_device_train_batch_size", "4"]
    argv += [
        "--width",
        "16",
        "--vision_layers",
        "1",
        "--text_layers",
        "1",
        "--vocab_size",
        "560",
        "--disable_tqdm",
        "true",
    ]
    script.main(*parse_args_and_config((script.CLIPArguments, script.PretrainingArguments), argv))
    results = json.loads((tmp_path / "clip" / "results.json").read_text())
    assert results["train_loss"] > 0 and set(results["zero_shot_twemoji"]) == {"seen emoji", "validation", "test"}
    assert results["images_by_style"] == {"noto": 8} and results["settings"]["train"]["width"] == 16
    pipe = pipeline("zero-shot-image-classification", model=str(tmp_path / "clip"))
    answers = pipe(few["test"][0]["image"].convert("RGB"), candidate_labels=["a", "b"])
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(script, "load_emoji", lambda split: load_emoji("train").select(range(0, 64, 8)))
    with pytest.raises(ValueError, match="are among those to train on"):
        script.main(*parse_args_and_config((script.CLIPArguments, script.PretrainingArguments), argv))


@pytest.fixture(scope="module")
def published():
    model = AutoModelForZeroShotImageClassification.from_pretrained(CHECKPOINT).eval()
    return model, AutoTokenizer.from_pretrained(CHECKPOINT), CLIPImageProcessor.from_pretrained(CHECKPOINT)


def test_the_published_weights_are_halves_that_are_loaded_as_floats(published):
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} <= {torch.float16, torch.int64}  # noqa: SIM118
    assert {parameter.dtype for parameter in published[0].parameters()} == {torch.float32}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 3e6


def test_text_is_pooled_at_its_end_whatever_comes_behind(published):
    model, tokenizer, _ = published
    short = tokenizer(["a picture of a animal bird."], return_tensors="pt")["input_ids"]
    padded = torch.nn.functional.pad(short, (0, 5), value=tokenizer.pad_token_id)
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id == short[0, -1]
    features = [model.text_model(input_ids=ids).pooler_output for ids in (short, padded)]
    torch.testing.assert_close(*features)


def test_the_published_accuracies_are_those_of_the_published_weights(published):
    results = json.loads((CHECKPOINT / "results.json").read_text())
    assert results["num_parameters"] == published[0].num_parameters()
    template = results["settings"]["train"]["template"]
    for split in ("validation", "test"):
        figures = zero_shot_accuracy(*published, load_emoji(split), template)
        assert figures == pytest.approx(results["zero_shot_twemoji"][split], abs=1)  # other processors round otherwise
        assert figures["base"] > 4 * 100 / 34 and figures["novel"] > 4 * 100 / 34  # chance is 1 of 34


def test_a_random_clip_is_near_chance(published, tokenizer):
    torch.manual_seed(0)
    sizes = dict(width=16, vision_layers=1, text_layers=1, mlp_ratio=2.0, max_length=32)
    model, processor = make_clip(tokenizer, image_size=48, patch_size=8, **sizes)
    assert model.training and model.config.text_config.eos_token_id == tokenizer.eos_token_id
    figures = zero_shot_accuracy(model, tokenizer, processor, load_emoji("validation"), "a picture of a {}.")
    assert figures["harmonic_mean"] < 12 and model.training
