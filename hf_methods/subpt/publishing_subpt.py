# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How learned prompts are published; see `hf_methods.hub`."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

from hf_methods.cards import EXAMPLE_IMAGE, dataset_names, eval_results, is_hub_id
from hf_methods.hub import RepositoryRecipe
from hf_methods.subpt.pipeline_subpt import TASK, PromptedZeroShotPipeline


DATASETS = {  # of hf_methods, as (type, name) in a model index
    "emoji": ("twemoji", "Twemoji"),
    "shapes": ("shapes", "drawn shapes"),
}
METRICS = {
    "base": "accuracy of the base classes",
    "novel": "accuracy of the novel classes",
    "harmonic_mean": "harmonic mean of both",
    "all": "accuracy",
}
ADAPTERS = ("adapter", "adapter_coop")  # beside the merged model: its context, and for comparison CoOp's, for PEFT


def save_repository(checkpoint: str, folder: Path) -> None:
    """Write the merged model, tokenizer, image processor and pipeline of a checkpoint, and its adapters.

    Raises:
        ValueError: no adapter, or a model that holds no learned prompt.
    """
    if not Path(checkpoint, ADAPTERS[0], "adapter_config.json").is_file():
        raise ValueError(
            f"{checkpoint} has no {ADAPTERS[0]}/ with the adapter: give the folder `merged` that train.py writes."
        )
    model = AutoModelForZeroShotImageClassification.from_pretrained(checkpoint)
    if getattr(model.config, "subpt_hypothesis_template", None) is None:
        raise ValueError(
            f"{checkpoint} has no `subpt_hypothesis_template` in its configuration: `export_merged` writes one."
        )
    tokenizer, processor = AutoTokenizer.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
    PromptedZeroShotPipeline(model=model, tokenizer=tokenizer, image_processor=processor).save_pretrained(folder)
    for weights in Path(checkpoint).glob("model*.safetensors*"):  # half precision that is loaded as float32 stays half
        shutil.copyfile(weights, Path(folder, weights.name))
    for name in ADAPTERS:
        if Path(checkpoint, name).is_dir():  # without PEFT's own card, an empty form
            shutil.copytree(Path(checkpoint, name), Path(folder, name), ignore=shutil.ignore_patterns("README.md"))


def card_data(results: dict, config: dict) -> ModelCardData:
    """Metadata of a card."""
    arm, train = results["arm"], results["settings"]["train"]
    summary = results["summary_mean_and_sd"][arm]
    names = dataset_names(train["dataset"], DATASETS)
    metrics = {figure: ("accuracy", name) for figure, name in METRICS.items() if figure in summary}
    return ModelCardData(
        model_name=f"{arm}, {train['num_shots']} shots",
        library_name="transformers",
        base_model=train["base_model"] if is_hub_id(train["base_model"]) else None,
        pipeline_tag="zero-shot-image-classification",
        license="apache-2.0",
        datasets=[names[0]],
        metrics=["accuracy"],
        tags=["hf_methods", "subpt", "prompt-tuning", "peft"],
        eval_results=eval_results(
            "zero-shot-image-classification", names, results["settings"]["split"], summary, metrics, digits=2
        ),
    )


RECIPE = RepositoryRecipe(
    method="subpt",
    save=save_repository,
    task=TASK,
    example={"args": [EXAMPLE_IMAGE, ["cat", "dog"]], "kwargs": {"return_similarities": True}},
    card_data=card_data,
    space_checkpoints=("clip-emoji-subpt",),
    requirements=("torchvision>=0.24", "pillow>=10"),
)
