# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How learned prompts are published; see `hf_methods.hub`."""

import shutil
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

from hf_methods.hub import RepositoryRecipe
from hf_methods.subpt.pipeline_subpt import TASK, PromptedZeroShotPipeline


METRICS = {
    "base": "accuracy of the base classes",
    "novel": "accuracy of the novel classes",
    "harmonic_mean": "harmonic mean of both",
    "all": "accuracy",
}
ADAPTERS = "adapter*"  # folders beside the merged model: the learned contexts as PEFT adapters
# A grey picture of 28 x 28 with a white bar, which every process has: the verification needs the same image twice.
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAHElEQVR42mNgGEqAEYX3H1WACZ/OUcnBKDm0AACl"
    "WQEgw484FAAAAABJRU5ErkJggg=="
)


def save_repository(checkpoint: str, folder: Path) -> None:
    """Write the merged model, tokenizer, image processor and pipeline of a checkpoint, and its adapters.

    Raises:
        ValueError: a model that holds no learned prompt.
    """
    model = AutoModelForZeroShotImageClassification.from_pretrained(checkpoint)
    if getattr(model.config, "subpt_hypothesis_template", None) is None:
        raise ValueError(
            f"{checkpoint} has no `subpt_hypothesis_template` in its configuration: `export_merged` writes one."
        )
    tokenizer, processor = AutoTokenizer.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
    PromptedZeroShotPipeline(model=model, tokenizer=tokenizer, image_processor=processor).save_pretrained(folder)
    for weights in Path(checkpoint).glob("model*.safetensors*"):  # half precision that is loaded as float32 stays half
        shutil.copyfile(weights, Path(folder, weights.name))
    for adapter in sorted(Path(checkpoint).glob(ADAPTERS)):
        shutil.copytree(adapter, Path(folder, adapter.name), ignore=shutil.ignore_patterns("README.md"))


def card_data(results: dict, config: dict) -> ModelCardData:
    """Metadata of a card."""
    arm, train = results["arm"], results["settings"]["train"]
    summary = results["summary_mean_and_sd"][arm]
    dataset = train["dataset"]
    is_hub_id = dataset.count("/") == 1 and not Path(dataset).exists()
    dataset_type, dataset_name = (dataset, dataset) if is_hub_id else ("images", "local images")
    return ModelCardData(
        model_name=f"{arm}, {train['num_shots']} shots",
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license="apache-2.0",
        datasets=[dataset_type],
        metrics=["accuracy"],
        tags=["hf_methods", "subpt", "prompt-tuning", "peft"],
        eval_results=[
            EvalResult(
                task_type="zero-shot-image-classification",
                dataset_type=dataset_type,
                dataset_name=dataset_name,
                dataset_split=results["settings"]["split"],
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(summary[metric][0], 2),
            )
            for metric, name in METRICS.items()
            if metric in summary
        ],
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
