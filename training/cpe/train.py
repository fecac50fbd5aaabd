# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Train an image classifier on few, long-tailed labels and many unlabelled images: CPE, FixMatch, or supervised.

accelerate launch training/cpe/train.py --config training/cpe/mnist_reversed.yaml --output_dir runs/cpe

A run that was stopped goes on from its last whole checkpoint in `output_dir`.
"""

import time
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.cpe import CPETrainer, CPETrainingArguments
from hf_methods.cpe.recipe_cpe import (
    DataArguments,
    ModelArguments,
    build_model,
    build_processor,
    compute_figures,
    load_splits,
    name_of_arm,
)
from hf_methods.data import image_digest
from hf_methods.metrics import make_compute_metrics
from hf_methods.resume import last_whole_checkpoint


RUN_SETTINGS = (
    "learning_rate", "weight_decay", "per_device_train_batch_size", "mu", "threshold", "lambda_u", "unsup_reduction",
    "warmup_supervised_steps", "ema_decay",
)  # fmt: skip


def train(model_args: ModelArguments, data_args: DataArguments, args: CPETrainingArguments) -> None:
    """Train, then save the model, its image processor and results.json in `args.output_dir`."""
    start = time.time()
    set_seed(args.seed)
    splits, info = load_splits(data_args, args.label_column, args.seed)
    # Reads every test image before the work.
    test_digest = image_digest(splits["test"], args.image_column, args.label_column)
    names = [str(name) for name in getattr(splits["test"].features[args.label_column], "names", [])]
    names = names or [str(k) for k in range(len(info["class_counts"]))]
    model = build_model(model_args, names, info["class_counts"])
    trainer = CPETrainer(
        model,
        args,
        train_dataset=splits["train_labeled"],
        unlabeled_dataset=splits["train_unlabeled"],
        eval_dataset=splits["test"],
        processing_class=build_processor(model_args),
        compute_metrics=make_compute_metrics(len(names), info["class_counts"], model.config.cuts),
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(args.output_dir))
    trainer.save_model()
    figures, confusions = compute_figures(trainer)
    if trainer.is_world_process_zero():
        arm = name_of_arm(model.config, is_supervised=args.mu == 0)
        settings = {**vars(model_args), **vars(data_args), **{name: getattr(args, name) for name in RUN_SETTINGS}}
        settings |= {"max_steps": trainer.state.global_step, "processes": args.world_size}
        write_results(
            Path(args.output_dir, "results.json"),
            seeds=[args.seed],
            data={
                **{f"{name} (rows)": digest for name, digest in info["sha256"].items()},
                "test": test_digest,
            },
            wall_seconds=time.time() - start,
            settings={"split": "test", "train": settings},
            class_counts=info["class_counts"],
            unlabeled_counts=info["unlabeled_counts"],
            arm=arm,
            confusions=confusions,
            summary_mean_and_sd={arm: {name: [value, None] for name, value in figures.items()}},
        )


if __name__ == "__main__":
    train(*parse_args_and_config((ModelArguments, DataArguments, CPETrainingArguments)))
    PartialState().destroy_process_group()  # before Python ends: its threads could end the process with an error
