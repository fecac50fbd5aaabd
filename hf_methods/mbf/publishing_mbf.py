# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How detectors are published; see `hf_methods.hub`."""

from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoImageProcessor

from hf_methods.cards import EXAMPLE_IMAGE, dataset_names, eval_results
from hf_methods.hub import RepositoryRecipe
from hf_methods.mbf.modeling_mbf import CLASSIFIER_FOLDER, MBFDetector
from hf_methods.mbf.pipeline_mbf import TASK, AdversarialDetectionPipeline


DATASETS = {  # of hf_methods.mbf.data_mbf, as (type, name) in a model index
    "mnist5k": ("mnist", "a part of MNIST's digits"),
    "digits": ("digits", "digits of scikit-learn"),
    "digits28": ("digits", "digits of scikit-learn"),
}
METRICS = {
    "known_auroc": "AUROC, known attacks",
    "transfer_auroc": "AUROC, trained on another attack",
    "leave_one_out_auroc": "AUROC, trained on all other attacks",
    "other_source_auroc": "AUROC, images of another source",
}


def save_repository(checkpoint: str, folder: Path) -> None:
    """Write detector, image processor and code of a checkpoint, and the classifier that has no Hub id of its own.

    Raises:
        ValueError: another kind of model, or an image processor that leaves images as large as they are.
    """
    model_type = AutoConfig.from_pretrained(checkpoint).model_type
    if model_type != "mbf":
        raise ValueError(f"{checkpoint} has model_type {model_type!r}; this is for 'mbf'.")
    detector = MBFDetector.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    if getattr(processor, "do_resize", True) is False:
        raise ValueError(
            f"the image processor of {checkpoint} has `do_resize` false: features depend on the size of the images, so set "
            "it true in preprocessor_config.json."
        )
    AdversarialDetectionPipeline(model=detector, image_processor=processor).save_pretrained(folder)
    if detector.config.classifier_id is None:
        processor.save_pretrained(Path(folder, CLASSIFIER_FOLDER))  # so that it is also usable by itself


def card_data(results: dict, config: dict) -> ModelCardData:
    """Metadata of a card."""
    arm, train = results["arm"], results["settings"]["train"]
    summary = results["summary_mean_and_sd"][arm]
    images = train["images"]
    names = dataset_names(images, DATASETS)
    metrics = {figure: ("roc_auc", name) for figure, name in METRICS.items() if figure in summary}
    return ModelCardData(
        model_name=f"{arm}, {images}, {train['architecture']}",
        library_name="transformers",
        base_model=config["classifier_id"],
        pipeline_tag="image-classification",
        license="apache-2.0",
        datasets=[names[0]],
        metrics=["roc_auc"],
        tags=["hf_methods", "mbf", "adversarial-detection", "security"],
        eval_results=eval_results("image-classification", names, results["settings"]["split"], summary, metrics),
    )


RECIPE = RepositoryRecipe(
    method="mbf",
    save=save_repository,
    task=TASK,
    example={"args": [EXAMPLE_IMAGE], "kwargs": {"top_k_layers": 100, "return_coefficients": True}},
    card_data=card_data,
    space_checkpoints=("mbf-mnist5k",),
    requirements=("torchvision>=0.24", "pillow>=10"),
)
