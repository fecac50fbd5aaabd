# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of the recipe, the data and the model that they describe, and the figures that it writes."""

from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedModel

from hf_methods.cross_teaching.backbones_cross_teaching import load_backbone, read_backbone
from hf_methods.cross_teaching.configuration_cross_teaching import CrossTeachingConfig, TorchvisionDetectorConfig
from hf_methods.cross_teaching.data_cross_teaching import drop_labels, label_names, split_labeled
from hf_methods.cross_teaching.evaluation_cross_teaching import pseudo_label_figures
from hf_methods.cross_teaching.formats_cross_teaching import (
    load_coco,
    load_imagefolder,
    load_unlabeled_folder,
    load_voc,
)
from hf_methods.cross_teaching.modeling_cross_teaching import CrossTeachingModel
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes
from hf_methods.cross_teaching.training_cross_teaching import CrossTeachingTrainer, default_views
from hf_methods.cross_teaching.views_cross_teaching import ViewSettings


FORMATS = ("scenes", "imagefolder", "coco", "voc")
ARMS = {"sup": "supervised", "self": "self-labelling", "mutual": "mutual teaching", "ct": "Cross Teaching"}


@dataclass
class ModelArguments:
    """The detectors and how they teach each other; what is left out is `CrossTeachingConfig`'s or the architecture's."""

    architecture: str = field(default="ssd300_vgg16", metadata={"help": "See TorchvisionDetectorConfig."})
    backbone_name: str | None = field(default=None, metadata={"help": "timm model of 'ssd_timm'."})
    backbone_weights: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an image classifier in timm's format; default random."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Pixels of a side, or of the shortest edge."})
    frozen_batch_norm: bool = field(default=False, metadata={"help": "For pretrained backbones."})
    roi_cls_loss: str = field(default="cross_entropy", metadata={"help": "'cross_entropy' or 'focal'."})
    rpn_positive_fraction: float = field(default=0.5, metadata={"help": "Of the sampled anchors."})
    checkpoints: list[str] = field(
        default_factory=list,
        metadata={"help": "Trained detectors, one a student, or one run of train.py, instead of random weights."},
    )
    num_detectors: int = field(default=2, metadata={"help": "M."})
    detector_seed: int = field(default=0, metadata={"help": "Detector i has seed detector_seed + i."})
    arm: str = field(default="ct", metadata={"help": "'sup', 'self', 'mutual' or 'ct'."})
    mode: str | None = field(default=None, metadata={"help": "'anchor' (SSD) or 'box'."})
    rule: str = field(default="crossrectify_voc", metadata={"help": "Rule of the box mode."})
    pseudo_threshold: float | None = field(default=None, metadata={"help": "Score of pseudo labels."})
    rectified_threshold: float | None = field(
        default=None, metadata={"help": "Score of rectified labels to train on, in box mode."}
    )
    unsup_weight: float | None = field(default=None, metadata={"help": "Weight of the unsupervised loss."})
    unsup_box_loss: str | None = field(
        default=None,
        metadata={"help": "'peer', 'winner' or 'none' of anchors; 'none', 'full' or 'uncertainty' of boxes."},
    )
    max_box_uncertainty: float = field(default=0.02, metadata={"help": "Of labels for the box loss ('uncertainty')."})
    ramp: str | None = field(default=None, metadata={"help": "'ssd', 'linear' or 'none'."})
    ramp_start: int = field(default=0, metadata={"help": "Step at which the ramp begins."})
    ramp_steps: int = field(default=32_000, metadata={"help": "Steps until the weight is whole."})
    ramp_down_steps: int = field(default=20_000, metadata={"help": "Last steps, in which it falls ('ssd')."})
    burn_in_steps: int = field(default=0, metadata={"help": "Supervised steps first."})
    ema_decay: float | None = field(default=None, metadata={"help": "Of the teachers."})
    ema_interval: int | None = field(default=None, metadata={"help": "Steps between two averages."})
    ema_buffers: bool = field(default=True, metadata={"help": "Average buffers too; else copy them."})
    own_source: str = field(default="student", metadata={"help": "'student' or 'ema'."})
    negatives: str = field(default="all", metadata={"help": "'all' or 'none', SSD in box mode."})
    shared_unlabeled_batch: bool = field(default=False, metadata={"help": "One unlabelled batch for all."})


@dataclass
class DataArguments:
    """Labelled, unlabelled and evaluation images."""

    data_format: str = field(metadata={"help": "'scenes', 'imagefolder', 'coco' or 'voc'."})
    labeled: str | None = field(default=None, metadata={"help": "Folder, COCO JSON or VOC folder."})
    labeled_images: str | None = field(default=None, metadata={"help": "Images of the COCO JSON."})
    labeled_split: str = field(default="trainval", metadata={"help": "List of the VOC folder."})
    unlabeled: str | None = field(default=None, metadata={"help": "Folder of images, COCO JSON or VOC folder."})
    unlabeled_images: str | None = field(default=None, metadata={"help": "Images of the COCO JSON."})
    unlabeled_split: str = field(default="trainval", metadata={"help": "List of the VOC folder."})
    evaluation: str | None = field(default=None, metadata={"help": "As `labeled`, to evaluate on."})
    evaluation_images: str | None = field(default=None, metadata={"help": "Images of the COCO JSON."})
    evaluation_split: str = field(default="test", metadata={"help": "List of the VOC folder."})
    keep_empty: bool = field(default=True, metadata={"help": "Labelled images without objects are background."})
    labeled_percent: float | None = field(
        default=None, metadata={"help": "Use this share of `labeled` with labels, the rest without."}
    )
    fold: int = field(default=0, metadata={"help": "Which split of that share."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits, and of the scenes."})
    num_scenes: list[int] = field(
        default_factory=lambda: [100, 600, 300], metadata={"help": "Labelled, unlabelled, evaluation scenes."}
    )
    scenes_split: str = field(default="validation", metadata={"help": "'validation' or 'test'."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a mirrored view."})
    expand: float = field(default=0.0, metadata={"help": "Probability of a canvas 1 to 4 times as wide."})
    crop: float = field(default=0.0, metadata={"help": "Probability of a random crop."})
    translation: float = field(default=0.0, metadata={"help": "Largest shift, a share of the side."})
    strong: str = field(default="unbiased_teacher", metadata={"help": "'none', 'light', 'ssd', 'unbiased_teacher'."})
    strong_on_labeled: bool = field(default=False, metadata={"help": "Labelled images get it too."})
    strong_translation: float = field(default=0.0, metadata={"help": "Shift of the strong view against the weak."})
    image_sizes: list[int] = field(default_factory=list, metadata={"help": "Shortest edges to choose from."})

    def __post_init__(self):
        if self.data_format not in FORMATS:
            raise ValueError(f"`data_format` must be one of {', '.join(FORMATS)}, got {self.data_format!r}.")
        if self.data_format == "scenes":
            if len(self.num_scenes) != 3 or min(self.num_scenes) < 1:
                raise ValueError(f"`num_scenes` must be three positive numbers, got {self.num_scenes}.")
            return
        if self.labeled is None or self.evaluation is None:
            raise ValueError(f"`labeled` and `evaluation` must be given with data_format={self.data_format!r}.")
        if self.data_format == "coco" and (self.labeled_images is None or self.evaluation_images is None):
            raise ValueError("`labeled_images` and `evaluation_images` must be given with data_format='coco'.")


def load_data(args: DataArguments) -> tuple[Dataset, Dataset | None, Dataset, dict[str, Any]]:
    """The labelled, the unlabelled and the evaluation set, and what is worth telling of them.

    Raises:
        ValueError: data that can't be read, or unlabelled data neither given nor split off.
    """
    if args.data_format == "scenes":
        counts, seed = args.num_scenes, args.split_seed
        return (
            make_digit_scenes("labeled", counts[0], seed),
            make_digit_scenes("unlabeled", counts[1], seed),
            make_digit_scenes(args.scenes_split, counts[2], seed),
            {},
        )
    labeled, notes = _load(args, "labeled", None)
    names = label_names(labeled)
    evaluation, more = _load(args, "evaluation", names)
    notes |= more
    unlabeled = None
    if args.labeled_percent is not None:
        labeled, unlabeled, indices = split_labeled(labeled, args.labeled_percent, args.fold, args.split_seed)
        notes["labeled_indices"] = indices
    elif args.unlabeled is not None and args.data_format == "imagefolder":
        unlabeled, report = load_unlabeled_folder(args.unlabeled, names)
        notes["unlabeled"] = dict(report.counts)
    elif args.unlabeled is not None:
        unlabeled, more = _load(args, "unlabeled", names)
        unlabeled, notes = drop_labels(unlabeled), notes | more
    return labeled, unlabeled, evaluation, notes


def _load(args: DataArguments, which: str, names: list[str] | None) -> tuple[Dataset, dict[str, Any]]:
    path, keep_empty = getattr(args, which), args.keep_empty or which != "labeled"
    if args.data_format == "imagefolder":
        dataset, report = load_imagefolder(path, names, keep_empty)
    elif args.data_format == "coco":
        dataset, report = load_coco(path, getattr(args, f"{which}_images"), keep_empty)
    else:
        dataset, report = load_voc(path, getattr(args, f"{which}_split"), keep_empty=keep_empty)
    return dataset, {which: dict(report.counts)}


def build_model(args: ModelArguments, names: list[str]) -> CrossTeachingModel:
    """Students with random weights, perhaps but for their backbones, or from `args.checkpoints`.

    Args:
        args: the detectors.
        names: labels of the data.
    """
    own = {f.name for f in fields(CrossTeachingConfig)}
    options = {name: value for name, value in vars(args).items() if name in own and name != "num_detectors"}
    options["score_threshold"] = args.pseudo_threshold
    if args.checkpoints:
        if args.backbone_weights:
            raise ValueError("give `checkpoints`, which have their backbones, or `backbone_weights`, not both.")
        return CrossTeachingModel.from_detectors(_load_detectors(args.checkpoints), **options)
    weights, mean, std = read_backbone(args.backbone_weights) if args.backbone_weights else (None, None, None)
    detector = TorchvisionDetectorConfig(
        architecture=args.architecture,
        backbone_name=args.backbone_name,
        image_size=args.image_size,
        frozen_batch_norm=args.frozen_batch_norm,
        roi_cls_loss=args.roi_cls_loss,
        rpn_positive_fraction=args.rpn_positive_fraction,
        image_mean=mean,
        image_std=std,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    seeds = [args.detector_seed + number for number in range(args.num_detectors)]
    config = CrossTeachingConfig(detector=detector, num_detectors=args.num_detectors, seeds=seeds, **options)
    model = CrossTeachingModel(config)
    if weights is not None:
        for student in model.students:
            load_backbone(student, weights, args.backbone_weights or "")  # type: ignore[arg-type]
        model.copy_to_teachers()
    return model


def _load_detectors(checkpoints: list[str]) -> list[PreTrainedModel | str]:
    """The detectors of the checkpoints; of a single one with several detectors, these."""
    if len(checkpoints) > 1 or AutoConfig.from_pretrained(checkpoints[0]).model_type != CrossTeachingConfig.model_type:
        return list(checkpoints)
    config = CrossTeachingConfig.from_pretrained(checkpoints[0])
    if CrossTeachingModel.__name__ in (config.architectures or []):
        return list(CrossTeachingModel.from_pretrained(checkpoints[0]).students)  # type: ignore[arg-type]
    return list(AutoModelForObjectDetection.from_pretrained(checkpoints[0]).detectors)


def compute_figures(trainer: CrossTeachingTrainer) -> dict[str, float]:
    """The figures of results.json: of the evaluation set, and of the pseudo labels where they were measured.

    Returns:
        `map_50`, `map`, `voc07_ap50`: means of the students; `teacher_map_50`: of the teachers; `ensemble_map_50`,
        `ensemble_map`; `images`, how many were read; those of `pseudo_label_figures`; and `<name>_map_50` of each detector.
    """
    metrics = trainer.evaluate()
    num = trainer.model.config.num_detectors

    def mean_of(kind: str, key: str) -> float:
        return sum(metrics[f"eval_{kind}_{number}_{key}"] for number in range(num)) / num

    figures = {key: mean_of("student", key) for key in ("map_50", "map", "voc07_ap50")}
    figures |= {"teacher_map_50": mean_of("teacher", "map_50")}
    figures |= {f"ensemble_{key}": metrics[f"eval_ensemble_{key}"] for key in ("map_50", "map")}
    figures |= {"images": metrics["eval_images"], **pseudo_label_figures(trainer.state.log_history)}
    return figures | {
        f"{kind}_{number}_map_50": metrics[f"eval_{kind}_{number}_map_50"]
        for kind in ("student", "teacher")
        for number in range(num)
    }


def build_views(args: DataArguments, model: CrossTeachingModel) -> ViewSettings:
    """Training views: the detector's size and normalisation, and the augmentation of the settings."""
    own = {f.name for f in fields(ViewSettings)} & vars(args).keys()
    options = {name: getattr(args, name) for name in own if name != "image_sizes"}
    return default_views(model, **options, image_sizes=args.image_sizes or None)
