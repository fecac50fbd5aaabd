# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Train a GPT-2 or Llama with softmax or softmax-1 attention, with AdamW or OrthoAdam.

accelerate launch training/softmax1/train.py --config training/softmax1/python_small.yaml --output_dir runs/softmax1

A run that was stopped goes on from its last checkpoint in `output_dir`.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, Trainer, default_data_collator, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_methods.args import parse_args_and_config
from hf_methods.data import load_text_corpus, stream_text_corpus
from hf_methods.ortho_adam import RESIDUAL_ROTATIONS, ortho_adam_cls_and_kwargs, ortho_adam_parameter_groups
from hf_methods.softmax1.data_softmax1 import blocks_dataset, stream_blocks, token_blocks, train_tokenizer
from hf_methods.softmax1.training_softmax1 import (
    DataArguments,
    ModelArguments,
    Softmax1TrainingArguments,
    build_model,
)


def load_data(args: DataArguments, seed: int):
    """The tokenizer, and the blocks of the training and the validation split as data sets."""
    if args.streaming:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        train_texts = stream_text_corpus(args.corpus, args.corpus_config, "train").shuffle(seed, buffer_size=10_000)
        eval_texts = stream_text_corpus(args.corpus, args.corpus_config, "validation")
        train_blocks = stream_blocks(train_texts, tokenizer, args.seq_len, add_bos=True)
        return tokenizer, train_blocks, stream_blocks(eval_texts, tokenizer, args.seq_len, True).take(args.eval_blocks)
    corpus = load_text_corpus(args.corpus, args.corpus_config)
    if args.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = train_tokenizer(corpus["train"]["text"], args.vocab_size)
    train_blocks = token_blocks(corpus["train"]["text"], tokenizer, args.seq_len, add_bos=True)
    eval_blocks = token_blocks(corpus["validation"]["text"], tokenizer, args.seq_len, add_bos=True)
    return tokenizer, blocks_dataset(train_blocks), blocks_dataset(eval_blocks[: args.eval_blocks])


def build_optimizer(model, args: Softmax1TrainingArguments):
    """Class and arguments for `Trainer`; both optimizers decay the same parameters."""
    if args.optimizer == "orthoadam":
        rotations = RESIDUAL_ROTATIONS if args.rotated_axes == "residual" else None
        return ortho_adam_cls_and_kwargs(model, args, rotations, rotation=args.rotation, seed=args.seed)
    groups = ortho_adam_parameter_groups(model, args.weight_decay)
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW, {"params": groups, "lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}


def train(model_args: ModelArguments, data_args: DataArguments, args: Softmax1TrainingArguments) -> None:
    """Train, then save the model and its tokenizer in `args.output_dir`."""
    set_seed(args.seed)
    tokenizer, train_dataset, eval_dataset = load_data(data_args, args.seed)
    model = build_model(model_args, tokenizer, data_args.seq_len)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=default_data_collator,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=build_optimizer(model, args),
    )
    # Another process may not have made the folder yet.
    last_checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    train(*parse_args_and_config((ModelArguments, DataArguments, Softmax1TrainingArguments)))
