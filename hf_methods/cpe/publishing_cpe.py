# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How CPE models are published; see `hf_methods.hub`."""

from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_methods.cards import EXAMPLE_IMAGE, dataset_names, eval_results
from hf_methods.cpe.pipeline_cpe import TASK, CPEImageClassificationPipeline
from hf_methods.hub import RepositoryRecipe


DATASETS = {"mnist": ("mnist", "a part of MNIST's digits")}  # of hf_methods.data, as (type, name) in a model index
METRICS = {
    "balanced_accuracy": ("accuracy", "balanced accuracy"),
    "tail": ("accuracy", "accuracy of the tail classes"),
}


def save_repository(checkpoint: str, folder: Path) -> None:
    """Write model, image processor and code of a CPE checkpoint.

    Raises:
        ValueError: another kind of model.
    """
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    if model.config.model_type != "cpe":
        raise ValueError(f"{checkpoint} has model_type {model.config.model_type!r}; this is for 'cpe'.")
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    CPEImageClassificationPipeline(model=model, image_processor=processor).save_pretrained(folder)


def card_data(results: dict, config: dict) -> ModelCardData:
    """Metadata of a CPE card."""
    arm, split = results["arm"], results["settings"]["split"]
    dataset = results["settings"]["train"]["dataset"]
    names = dataset_names(dataset, DATASETS)
    shape = results["settings"]["train"]["unlabeled"]
    summary = results["summary_mean_and_sd"][arm]
    return ModelCardData(
        model_name=f"{arm}, {dataset}, {shape}",
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        datasets=[names[0]],
        metrics=["accuracy"],
        tags=["hf_methods", "cpe", "long-tailed", "semi-supervised"],
        eval_results=eval_results("image-classification", names, split, summary, METRICS),
    )


RECIPE = RepositoryRecipe(
    method="cpe",
    save=save_repository,
    task=TASK,
    example={"args": [EXAMPLE_IMAGE], "kwargs": {"return_experts": True}},
    card_data=card_data,
    space_checkpoints=("cpe-mnist-reversed",),
    requirements=("torchvision>=0.24", "pillow>=10"),
)
