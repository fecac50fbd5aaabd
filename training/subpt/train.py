# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Tune the prompt of a CLIP-like model with CoOp, SubPT and NFL, and test it on base and novel classes.

python training/subpt/train.py --config training/subpt/dtd.yaml --output_dir runs/dtd

Writes the adapter, the merged model for the stock zero-shot pipeline, and results.json into `output_dir`; the last two
with the adapter in `output_dir`/merged, which can be published. With `--save_strategy epoch`, a run that was stopped goes on from its last checkpoint.
"""

import shutil
import time
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments
from hf_methods.subpt.export_subpt import export_merged, export_text_embeddings
from hf_methods.subpt.recipe_subpt import (
    AccuracyCurve,
    DataArguments,
    ModelArguments,
    PromptData,
    build_model,
    compute_figures,
    load_classes,
    load_data,
    name_of_arm,
)
from hf_methods.subpt.training_subpt import SubPTTrainer


RUN_SETTINGS = (
    "subspace_rank", "subspace_epochs", "subspace_source", "nfl_weight", "nfl_loss", "anchor_names", "stop_epochs",
    "learning_rate", "num_train_epochs",
)  # fmt: skip


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: SubPTTrainingArguments,
    data: PromptData | None = None,
) -> PromptData:
    """Train, then save the adapter, the merged model and results.json in `args.output_dir`.

    Args:
        model_args, data_args, args: the run.
        data: features that a run with the same data, base model and seed returned; by default the images are encoded.

    Returns:
        The features.
    """
    start = time.time()
    set_seed(args.seed)
    train_images, test_images, names = load_classes(data_args)
    base_names = names[: (len(names) + 1) // 2] if data_args.base_to_novel else names
    model, image_processor = build_model(model_args, base_names)
    model.to(args.device)
    if data is None:
        data = load_data(data_args, train_images, test_images, names, model, image_processor, args.seed)
    model.set_classes(data.names)
    if args.nfl_weight and args.anchor_names != "base" and args.nfl_names is None:
        if data_args.nfl_protocol == "inductive" or "novel" not in data.tests:
            raise ValueError(
                "NFL needs names: give `nfl_names`, or a base-to-novel run with the transductive protocol."
            )
        args.nfl_names = data.tests["novel"][2]
    zero_shot = compute_figures(data.tests, lambda names: model.encode_templates(names, [data_args.template]))
    trainer = SubPTTrainer(model, args, train_dataset=data.train)
    curve = AccuracyCurve(trainer, data.tests)
    trainer.add_callback(curve)
    output = trainer.fit(resume=args.save_strategy != "no")
    if not trainer.is_world_process_zero():
        return data
    folder = Path(trainer.folder)
    model.save_pretrained(folder / "adapter")
    export_text_embeddings(model, folder / "adapter", None if model_args.class_specific else names)
    if not model_args.class_specific and hasattr(model.get_base_model(), "save_pretrained"):  # else open_clip's
        export_merged(model, folder / "merged", image_processor)
        model.save_pretrained(folder / "merged" / "adapter")
    figures, arm = compute_figures(data.tests, model.encode_classes), name_of_arm(args)
    settings = {**vars(model_args), **vars(data_args), **{name: getattr(args, name) for name in RUN_SETTINGS}}
    if args.nfl_weight:
        settings["nfl_names"] = args.nfl_names
    write_results(
        folder / "results.json",
        seeds=[args.seed],
        data=data.digests,
        wall_seconds=time.time() - start,
        settings={"split": data_args.test_split, "train": settings},
        arm=arm,
        summary_mean_and_sd={
            name: {key: [value, None] for key, value in row.items()}
            for name, row in (("zero-shot CLIP", zero_shot), (arm, figures))
        },
        explained_variance=output.basis.explained_variance_ratio.tolist() if output.basis else None,
        curve=curve.rows,
        ce_loss_by_epoch=[row["ce_loss"] for row in trainer.state.log_history if "ce_loss" in row],
    )
    if (folder / "merged").is_dir():
        shutil.copyfile(folder / "results.json", folder / "merged" / "results.json")
    return data


if __name__ == "__main__":
    train(*parse_args_and_config((ModelArguments, DataArguments, SubPTTrainingArguments)))
    PartialState().destroy_process_group()  # before Python ends: its threads could end the process with an error
