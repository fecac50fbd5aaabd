# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Train a GPT-2 or Llama with softmax or softmax-1 attention, with AdamW or OrthoAdam.

accelerate launch training/softmax1/train.py --config training/softmax1/python_small.yaml --output_dir runs/softmax1

A run that was stopped goes on from its last whole checkpoint in `output_dir`.
"""

import time
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, Trainer, default_data_collator, set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.ortho_adam import RESIDUAL_ROTATIONS, ortho_adam_cls_and_kwargs, ortho_adam_parameter_groups
from hf_methods.resume import ExamplesPerStep, last_whole_checkpoint
from hf_methods.softmax1.arguments_softmax1 import Softmax1TrainingArguments
from hf_methods.softmax1.recipe_softmax1 import (
    DataArguments,
    ModelArguments,
    build_model,
    compute_figures,
    load_data,
    name_of_arm,
)


RUN_SETTINGS = ("optimizer", "learning_rate", "weight_decay", "per_device_train_batch_size")  # of a card


def build_optimizer(model, args: Softmax1TrainingArguments):
    """Class and arguments for `Trainer`; both optimizers decay the same parameters."""
    if args.optimizer == "orthoadam":
        rotations = RESIDUAL_ROTATIONS if args.rotated_axes == "residual" else None
        return ortho_adam_cls_and_kwargs(model, args, rotations, rotation=args.rotation, seed=args.seed)
    groups = ortho_adam_parameter_groups(model, args.weight_decay)
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW, {"params": groups, "lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}


def train(model_args: ModelArguments, data_args: DataArguments, args: Softmax1TrainingArguments) -> None:
    """Train, then save the model, its tokenizer and results.json in `args.output_dir`."""
    start = time.time()
    set_seed(args.seed)
    tokenizer, train_dataset, eval_dataset, digests = load_data(data_args, args.seed)
    model = build_model(model_args, tokenizer, data_args.seq_len)
    tokenizer.model_max_length = data_args.seq_len  # what pipelines can cut a long prompt to
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=default_data_collator,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=build_optimizer(model, args),
        callbacks=[ExamplesPerStep()],
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(args.output_dir))
    trainer.save_model()
    if trainer.is_world_process_zero():
        figures = measure(args.output_dir, eval_dataset, train_dataset)
        arm = name_of_arm(model_args, args)
        settings = {**vars(model_args), **vars(data_args), **{name: getattr(args, name) for name in RUN_SETTINGS}}
        settings["max_steps"] = trainer.state.global_step
        write_results(
            Path(args.output_dir, "results.json"),
            seeds=[args.seed],
            data=digests,
            wall_seconds=time.time() - start,
            settings={"split": "validation", "train": settings},
            arm=arm,
            summary_mean_and_sd={arm: {name: [value, None] for name, value in figures.items()}},
        )


def measure(folder: str, eval_dataset, train_dataset) -> dict[str, float]:
    """The figures of the saved model, on at most 64 blocks of the validation split."""
    blocks, calibration = (
        torch.stack([row["input_ids"] for row in islice(data, 64)]) for data in (eval_dataset, train_dataset)
    )
    return compute_figures(AutoModelForCausalLM.from_pretrained(folder), blocks, calibration)


if __name__ == "__main__":
    train(*parse_args_and_config((ModelArguments, DataArguments, Softmax1TrainingArguments)))
    PartialState().destroy_process_group()  # before Python ends: its threads could end the process with an error
