# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-train the tiny CLIP of the emoji recipe, and test it on artwork and emoji that it has not seen.

python training/subpt/fetch_emoji.py
python training/subpt/pretrain.py --config training/subpt/pretrain.yaml

Writes the model (float16 weights), tokenizer, image processor and results.json into `checkpoint`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import CLIPModel, TrainerCallback, TrainingArguments, set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import atomic_save, write_results
from hf_methods.subpt.data_subpt import image_digest
from hf_methods.subpt.emoji_subpt import IMAGE_SIZE, load_emoji, load_pretrain_emoji
from hf_methods.subpt.export_subpt import save_half_precision
from hf_methods.subpt.pretraining_subpt import (
    CLIPPretrainingTrainer,
    DataCollatorForCaptions,
    EmojiCaptions,
    caption_texts,
    make_clip,
    train_tokenizer,
    zero_shot_accuracy,
)


@dataclass
class CLIPArguments:
    """The model, and where it goes."""

    checkpoint: str = field(metadata={"help": "Folder to write; what is there is replaced."})
    vocab_size: int = field(default=2048, metadata={"help": "Tokens of the vocabulary."})
    max_length: int = field(default=32, metadata={"help": "Positions of the text tower."})
    patch_size: int = field(default=8, metadata={"help": "Pixels of a patch's side."})
    width: int = field(default=128, metadata={"help": "Width of both towers and of the common space."})
    vision_layers: int = field(default=3, metadata={"help": "Layers of the image tower."})
    text_layers: int = field(default=2, metadata={"help": "Layers of the text tower."})
    mlp_ratio: float = field(default=2.0, metadata={"help": "Width of the hidden layers over `width`."})
    template: str = field(default="a picture of a {}.", metadata={"help": "Prompt of the zero-shot figures."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` whose batches are made by the collator, and of which all are whole."""

    output_dir: str | None = field(default="runs/clip_emoji", metadata={"help": "Folder of Trainer's checkpoints."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "An item is a number."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an incomplete batch."})


class ValidationCurve(TrainerCallback):
    """Zero-shot accuracy on the validation emoji every few epochs, to look at: nothing is chosen by it."""

    def __init__(self, trainer: CLIPPretrainingTrainer, measure, every: int = 5):
        self.trainer, self.measure, self.every = trainer, measure, every
        self.rows: list[dict[str, float]] = []

    def on_epoch_end(self, args, state, control, **kwargs):
        if round(state.epoch) % self.every == 0:
            self.rows.append({"epoch": round(state.epoch), **self.measure(self.trainer.model)})
            self.trainer.log({f"validation_{name}": value for name, value in self.rows[-1].items()})


def main(clip_args: CLIPArguments, args: PretrainingArguments) -> None:
    """Train, save, load what was saved, and measure that."""
    start = time.time()
    set_seed(args.seed)
    pretrain, validation, test = load_pretrain_emoji(), load_emoji("validation"), load_emoji("test")
    if seen := set(pretrain["code"]) & {*validation["code"], *test["code"]}:
        raise ValueError(f"emoji to validate or test on are among those to train on: {sorted(seen)[:5]}.")
    captions = EmojiCaptions(pretrain)
    tokenizer = train_tokenizer(caption_texts(captions, args.seed), clip_args.vocab_size)
    sizes = ("patch_size", "width", "vision_layers", "text_layers", "mlp_ratio", "max_length")
    options = {name: getattr(clip_args, name) for name in sizes}
    model, image_processor = make_clip(tokenizer, image_size=IMAGE_SIZE, **options)

    def measure(model: CLIPModel, dataset=validation) -> dict[str, float]:
        return zero_shot_accuracy(model, tokenizer, image_processor, dataset, clip_args.template)

    trainer = CLIPPretrainingTrainer(
        model,
        args,
        train_dataset=captions,
        data_collator=DataCollatorForCaptions(captions, tokenizer, image_processor, clip_args.max_length),
    )
    curve = ValidationCurve(trainer, measure)
    trainer.add_callback(curve)
    metrics = trainer.train().metrics

    def save(aside: Path) -> None:
        save_half_precision(model.cpu(), aside)
        tokenizer.save_pretrained(aside)
        image_processor.save_pretrained(aside)
        saved = CLIPModel.from_pretrained(aside, dtype=torch.float32)
        splits = {"seen emoji": load_emoji("train"), "validation": validation, "test": test}
        write_results(
            aside / "results.json",
            seeds=[args.seed],
            data={"pretrain": image_digest(pretrain, label_column="name"), "test": image_digest(test)},
            wall_seconds=time.time() - start,
            settings={
                "split": "test",
                "train": {**vars(clip_args), **{name: getattr(args, name) for name in SETTINGS}},
            },
            num_parameters=model.num_parameters(),
            images_by_style={style: pretrain["style"].count(style) for style in dict.fromkeys(pretrain["style"])},
            train_loss=metrics["train_loss"],
            zero_shot_twemoji={split: measure(saved, dataset) for split, dataset in splits.items()},
            validation_curve=curve.rows,
        )

    atomic_save(clip_args.checkpoint, save)


SETTINGS = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "weight_decay", "warmup_steps")

if __name__ == "__main__":
    main(*parse_args_and_config((CLIPArguments, PretrainingArguments)))
