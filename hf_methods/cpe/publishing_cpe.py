# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How CPE models are published; see `hf_methods.hub`."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_methods.cpe.pipeline_cpe import TASK, CPEImageClassificationPipeline
from hf_methods.hub import RepositoryRecipe


DATASETS = {"mnist": ("mnist", "a part of MNIST's digits")}  # of hf_methods.data, as (type, name) in a model index
METRICS = {
    "balanced_accuracy": ("accuracy", "balanced accuracy"),
    "tail": ("accuracy", "accuracy of the tail classes"),
}
# A grey picture of 28 x 28 with a white bar, which every process has: the verification needs the same image twice.
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAHElEQVR42mNgGEqAEYX3H1WACZ/OUcnBKDm0AACl"
    "WQEgw484FAAAAABJRU5ErkJggg=="
)


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
    is_hub_id = dataset.count("/") == 1 and not Path(dataset).exists()
    dataset_type, dataset_name = DATASETS.get(dataset, (dataset, dataset) if is_hub_id else ("images", "local images"))
    shape = results["settings"]["train"]["unlabeled"]
    summary = results["summary_mean_and_sd"][arm]
    return ModelCardData(
        model_name=f"{arm}, {dataset}, {shape}",
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        datasets=[dataset_type],
        metrics=["accuracy"],
        tags=["hf_methods", "cpe", "long-tailed", "semi-supervised"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_type,
                dataset_name=dataset_name,
                dataset_split=split,
                metric_type=metric_type,
                metric_name=name,
                metric_value=round(summary[metric][0], 4),
            )
            for metric, (metric_type, name) in METRICS.items()
        ],
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
