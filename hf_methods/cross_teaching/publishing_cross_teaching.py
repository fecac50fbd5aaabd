# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How detectors of Cross Teaching are published; see `hf_methods.hub`."""

from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from hf_methods.cards import EXAMPLE_IMAGE, eval_results
from hf_methods.cross_teaching.configuration_cross_teaching import CrossTeachingConfig
from hf_methods.cross_teaching.detectors_cross_teaching import build_processor
from hf_methods.cross_teaching.modeling_cross_teaching import CrossTeachingModel
from hf_methods.cross_teaching.pipeline_cross_teaching import TASK, CrossTeachingDetectionPipeline
from hf_methods.hub import RepositoryRecipe


DATASETS = {  # of the recipe's `data_format`, as (type, name) in a model index
    "scenes": ("digit-scenes", "handwritten digits on photos"),
    "coco": ("coco", "images with COCO annotations"),
    "voc": ("voc", "images with VOC annotations"),
    "imagefolder": ("images", "local images"),
}
METRICS = {
    "map_50": ("map", "mAP at IoU 0.5, mean of the students (COCO, 101 points)"),
    "map": ("map", "mAP, mean of the students (COCO, 101 points)"),
    "voc07_ap50": ("map", "AP at IoU 0.5, mean of the students (VOC 2007, 11 points)"),
    "ensemble_map_50": ("map", "mAP at IoU 0.5 of the ensemble (COCO, 101 points)"),
}


def save_repository(checkpoint: str, folder: Path) -> None:
    """Write detectors, image processor and code of a checkpoint.

    Args:
        checkpoint: of a `CrossTeachingModel`, whose teachers are published, or of a `CrossTeachingForObjectDetection`.
        folder: where to write.

    Raises:
        ValueError: another kind of model.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type != CrossTeachingConfig.model_type:
        raise ValueError(f"{checkpoint} has model_type {config.model_type!r}; this is for 'cross_teaching'.")
    if CrossTeachingModel.__name__ in (config.architectures or []):
        model = CrossTeachingModel.from_pretrained(checkpoint).for_inference()
        processor = build_processor(config.detector)
    else:
        model = AutoModelForObjectDetection.from_pretrained(checkpoint)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
    CrossTeachingDetectionPipeline(model=model, image_processor=processor).save_pretrained(folder)


def card_data(results: dict, config: dict) -> ModelCardData:
    """Metadata of a card."""
    arm, train = results["arm"], results["settings"]["train"]
    names = DATASETS[train["data_format"]]
    summary = results["summary_mean_and_sd"][arm]
    split = train["scenes_split"] if train["data_format"] == "scenes" else "evaluation"
    return ModelCardData(
        model_name=f"{arm}, {names[1]}",
        library_name="transformers",
        pipeline_tag="object-detection",
        license="apache-2.0",
        datasets=[names[0]],
        metrics=["map"],
        tags=["hf_methods", "cross_teaching", "object-detection", "semi-supervised"],
        eval_results=eval_results("object-detection", names, split, summary, METRICS),
    )


RECIPE = RepositoryRecipe(
    method="cross_teaching",
    save=save_repository,
    task=TASK,
    example={"args": [EXAMPLE_IMAGE], "kwargs": {"detector": "all", "threshold": 0.02}},
    card_data=card_data,
    space_checkpoints=("ct-digit-scenes",),
    requirements=("torchvision>=0.24", "pillow>=10"),
)
