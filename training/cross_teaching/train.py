# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Train detectors that teach each other, from few labelled and many unlabelled images.

accelerate launch training/cross_teaching/train.py --config training/cross_teaching/digit_scenes.yaml --output_dir runs/ct

A run that was stopped goes on from its last whole checkpoint in `output_dir`.
"""

import time
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.cross_teaching.arguments_cross_teaching import CrossTeachingTrainingArguments
from hf_methods.cross_teaching.data_cross_teaching import detection_digest, label_names
from hf_methods.cross_teaching.recipe_cross_teaching import (
    ARMS,
    DataArguments,
    ModelArguments,
    build_model,
    build_views,
    compute_figures,
    load_data,
)
from hf_methods.cross_teaching.training_cross_teaching import CrossTeachingTrainer
from hf_methods.resume import last_whole_checkpoint


RUN_SETTINGS = (
    "optim",
    "learning_rate",
    "weight_decay",
    "per_device_train_batch_size",
    "unlabeled_ratio",
    "max_steps",
)


def train(model_args: ModelArguments, data_args: DataArguments, args: CrossTeachingTrainingArguments) -> None:
    """Train and evaluate, then save the model and results.json in `args.output_dir`."""
    start = time.time()
    set_seed(args.seed)
    labeled, unlabeled, evaluation, notes = load_data(data_args)
    model = build_model(model_args, label_names(labeled))
    trainer = CrossTeachingTrainer(
        model=model,
        args=args,
        labeled_dataset=labeled,
        unlabeled_dataset=unlabeled,
        eval_dataset=evaluation,
        views=build_views(data_args, model),
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(args.output_dir))
    figures = compute_figures(trainer)
    trainer.save_model()
    if trainer.is_world_process_zero():
        sets = {"labeled": labeled, "unlabeled": unlabeled, "evaluation": evaluation}
        settings = {**vars(model_args), **vars(data_args), **{name: getattr(args, name) for name in RUN_SETTINGS}}
        write_results(
            Path(args.output_dir, "results.json"),
            seeds=[args.seed],
            data={name: detection_digest(dataset) for name, dataset in sets.items() if dataset is not None},
            wall_seconds=time.time() - start,
            settings={"train": settings, "samples_per_step": trainer.samples_per_step},
            data_notes=notes,
            arm=ARMS[model_args.arm],
            skipped_steps=trainer.num_skipped_steps,
            log=[entry for entry in trainer.state.log_history if "loss" in entry],
            evaluator={"map, map_50, map_75": "COCO, 101 points (torchmetrics)", "voc07_ap50": "VOC 2007, 11 points"},
            summary_mean_and_sd={ARMS[model_args.arm]: {name: [value, None] for name, value in figures.items()}},
        )


if __name__ == "__main__":
    train(*parse_args_and_config((ModelArguments, DataArguments, CrossTeachingTrainingArguments)))
    PartialState().destroy_process_group()  # before Python ends: its threads could end the process with an error
