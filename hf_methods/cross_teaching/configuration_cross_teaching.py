# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Configurations of the torchvision detectors and of several detectors that teach each other."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


# Side of the square image (SSD) or shortest edge (Faster R-CNN), score and NMS thresholds, detections an image, candidates
# before NMS. SSD300: the official evaluation; Faster R-CNN: torchvision's.
DEFAULTS: dict[str, tuple[int, float, float, int, int]] = {
    "ssd300_vgg16": (300, 0.01, 0.45, 200, 200),
    "ssd_timm": (320, 0.01, 0.45, 200, 200),
    "ssd_tiny": (64, 0.01, 0.45, 200, 200),
    "fasterrcnn_resnet50_fpn": (800, 0.05, 0.5, 100, 1000),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 0.05, 0.5, 100, 150),
}


EXPORT_HINT = (
    "this checkpoint holds several detectors that taught each other. For one of them: "
    "CrossTeachingModel.from_pretrained(path).export_detector(0).save_pretrained(new_path); for all: `for_inference()`."
)


def _validate_choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{field}` must be one of {', '.join(allowed)}, got {value!r}.")


def _validate_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"`{field}` must be between {low:g} and {high:g}, got {value!r}.")


@strict
class TorchvisionDetectorConfig(PreTrainedConfig):
    """Configuration of an SSD or Faster R-CNN whose modules are torchvision's.

    Args:
        architecture (`str`, *optional*, defaults to `"ssd300_vgg16"`): "ssd300_vgg16", "ssd_timm" (any timm backbone),
            "ssd_tiny" (190 thousand parameters with 5 labels, for 64-pixel images), "fasterrcnn_resnet50_fpn" or
            "fasterrcnn_mobilenet_v3_large_320_fpn".
        backbone_name (`str`, *optional*): timm model of "ssd_timm", such as "tf_efficientnet_lite0".
        image_size (`int`, *optional*): pixels; side of SSD's square input, or shortest edge for Faster R-CNN. Defaults to
            300, 320, 64, 800 and 320 in the order above.
        max_image_size (`int`, *optional*): longest edge for Faster R-CNN; defaults to 5/3 of `image_size`.
        image_mean, image_std (`list[float]`, *optional*): normalisation of pixels from 0 to 1 that the weights were trained
            with; default ImageNet's, and for "ssd300_vgg16" the mean alone is taken from pixels from 0 to 255.
        anchor_preset (`str`, *optional*, defaults to `"official"`): default boxes of "ssd300_vgg16": "official" (30, 60,
            111, 162, 213, 264 and 315 pixels, centres clipped to the image) or "torchvision" (21, 45, 99, 153, 207, 261,
            315).
        anchor_scales (`list[float]`, *optional*): scales of SSD's default boxes instead of the preset's, as shares of the
            image; one more than there are feature maps.
        anchor_ratios (`list[list[float]]`, *optional*): aspect ratios of each feature map.
        anchor_steps (`list[int]`, *optional*): pixels between the default boxes of each feature map.
        frozen_batch_norm (`bool`, *optional*, defaults to `False`): batch statistics of the backbone that never change
            (needs pretrained weights); torchvision decides this by whether weights were given, and weights of one kind
            do not load into the other.
        trainable_layers (`int`, *optional*): backbone stages that are trained, from the last; defaults to all, and with
            `frozen_batch_norm` to 3.
        score_threshold, nms_threshold (`float`, *optional*): of the final detections; default 0.01 and 0.45 (SSD), 0.05
            and 0.5 (Faster R-CNN).
        max_detections, pre_nms_topk (`int`, *optional*): detections an image; candidates of a label (SSD) or proposals
            (Faster R-CNN) before NMS.
        roi_cls_loss (`str`, *optional*, defaults to `"cross_entropy"`): or "focal" (Unbiased Teacher).
        focal_gamma (`float`, *optional*, defaults to 1.5): exponent of the focal loss.
        rpn_positive_fraction (`float`, *optional*, defaults to 0.5): torchvision's; Unbiased Teacher has 0.25.

    Raises:
        ValueError: an unknown value, or one out of range.
    """

    model_type = "cross_teaching_detector"

    architecture: str = "ssd300_vgg16"
    backbone_name: str | None = None
    image_size: int | None = None
    max_image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    anchor_preset: str = "official"
    anchor_scales: list[float] | None = None
    anchor_ratios: list[list[float]] | list[list[int]] | None = None
    anchor_steps: list[int] | None = None
    frozen_batch_norm: bool = False
    trainable_layers: int | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_detections: int | None = None
    pre_nms_topk: int | None = None
    roi_cls_loss: str = "cross_entropy"
    focal_gamma: float = 1.5
    rpn_positive_fraction: float = 0.5

    def __post_init__(self, **kwargs):
        size, score, nms, detections, topk = DEFAULTS.get(self.architecture, (300, 0.01, 0.45, 200, 200))
        self.image_size = size if self.image_size is None else self.image_size
        self.max_image_size = self.image_size * 5 // 3 if self.max_image_size is None else self.max_image_size
        self.score_threshold = score if self.score_threshold is None else self.score_threshold
        self.nms_threshold = nms if self.nms_threshold is None else self.nms_threshold
        self.max_detections = detections if self.max_detections is None else self.max_detections
        self.pre_nms_topk = topk if self.pre_nms_topk is None else self.pre_nms_topk
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As the base class, but for a checkpoint of several detectors an error that says how to get one."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == CrossTeachingConfig.model_type:
            raise ValueError(f"{pretrained_model_name_or_path}: {EXPORT_HINT}")
        return config_dict, kwargs

    @property
    def is_ssd(self) -> bool:
        """Whether anchors are classified directly, in one stage."""
        return self.architecture.startswith("ssd")

    def validate_detector(self):
        """Refuse unknown values and values out of range."""
        _validate_choice("architecture", self.architecture, tuple(DEFAULTS))
        _validate_choice("anchor_preset", self.anchor_preset, ("official", "torchvision"))
        _validate_choice("roi_cls_loss", self.roi_cls_loss, ("cross_entropy", "focal"))
        for name in ("score_threshold", "nms_threshold", "rpn_positive_fraction"):
            _validate_range(name, getattr(self, name), 0, 1)
        if (self.architecture == "ssd_timm") != (self.backbone_name is not None):
            raise ValueError(
                f"`backbone_name` is for architecture 'ssd_timm', which needs it; got {self.backbone_name!r} with "
                f"{self.architecture!r}."
            )
        if self.architecture == "ssd300_vgg16" and self.image_size != 300:
            raise ValueError(f"`image_size` of 'ssd300_vgg16' is 300, got {self.image_size}; use 'ssd_timm'.")
        if self.image_size < 32:
            raise ValueError(f"`image_size` must be at least 32 pixels, got {self.image_size}.")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or name == "image_std" and min(values) <= 0):
                raise ValueError(f"`{name}` must be three numbers{', above 0' * (name == 'image_std')}, got {values}.")
        scales, ratios = self.anchor_scales, self.anchor_ratios
        if scales is not None and ratios is not None and len(scales) != len(ratios) + 1:
            raise ValueError(
                f"`anchor_scales` must have one more than `anchor_ratios`, got {len(scales)} and {len(ratios)}."
            )


BOX_RULE_NAMES = ("ct_v1", "crossrectify_voc", "crossrectify_coco")


@strict
class CrossTeachingConfig(PreTrainedConfig):
    """Configuration of M detectors of one kind that teach each other, with their EMA teachers.

    Args:
        detector (`dict`): configuration of one detector, with its `model_type`; any that `AutoModelForObjectDetection`
            knows. Filled by `CrossTeachingModel.from_detectors`.
        num_detectors (`int`, *optional*, defaults to 2): M. The released code has 2; with 1, "ct" is "self".
        seeds (`list[int]`, *optional*): seeds of the detectors' random weights; defaults to 0, 1, ...
        arm (`str`, *optional*, defaults to `"ct"`): "sup" (labelled images only), "self" (own pseudo labels), "mutual"
            (the peer's as they are) or "ct" (rectified).
        mode (`str`, *optional*): "anchor" (SSD300's rule, on default boxes; SSD only) or "box" (teachers' detections).
            Defaults to "anchor" for SSD, else "box".
        rule (`str`, *optional*, defaults to `"crossrectify_voc"`): rule of the box mode: "ct_v1", "crossrectify_voc" or
            "crossrectify_coco".
        rule_options (`dict`, *optional*): arguments of `label_rectification` in place of the rule's.
        score_threshold (`float`, *optional*): of pseudo labels; defaults to 0.5 in anchor mode, 0.7 in box mode.
        nms_threshold (`float`, *optional*, defaults to 0.5): of pseudo labels.
        rectified_threshold (`float`, *optional*): in box mode, score that a rectified label must be above to be trained on;
            default all. The rule for COCO rectifies boxes above 0.5 and trains on those above 0.9.
        max_pseudo_boxes (`int`, *optional*): defaults to 20 in anchor mode, 100 in box mode.
        unsup_weight (`float`, *optional*): weight of the unsupervised loss; defaults to 1 in anchor mode, 2 in box mode.
        unsup_box_loss (`str`, *optional*): anchor mode: "peer" (squared error to the peer's offsets, default), "winner" or
            "none"; box mode: "none" (default), "full" (the detector's own box loss) or, of Faster R-CNN, "uncertainty": the
            box loss of the second stage on labels whose box hardly moves when it is jittered, and its class loss with
            background regions weighted by the teacher's background score (the published rule for COCO).
        max_box_uncertainty (`float`, *optional*, defaults to 0.02): with `unsup_box_loss="uncertainty"`, uncertainty that a
            label must be below for the box loss: standard deviation of the refined box as a share of its sides.
        ramp (`str`, *optional*): "ssd" (exp(-5 (1 - t)^2), then down at the end), "linear" or "none"; defaults to "ssd" in
            anchor mode, else "none".
        ramp_start (`int`, *optional*, defaults to 0): step at which the ramp begins; the published one begins with the
            training, so that 12000 steps of burn-in end at 0.14.
        ramp_steps (`int`, *optional*, defaults to 32000): steps from there until the weight is whole.
        ramp_down_steps (`int`, *optional*, defaults to 20000): steps before the end of training over which "ssd" goes
            down as exp(-12.5 t^2).
        burn_in_steps (`int`, *optional*, defaults to 0): supervised steps first; teachers start as copies at their end.
        ema_decay (`float`, *optional*): defaults to 0.99 in anchor mode, 0.999 in box mode.
        ema_interval (`int`, *optional*): optimizer steps from one EMA to the next; defaults to 10 in anchor mode, else 1.
        ema_buffers (`bool`, *optional*, defaults to `True`): average buffers too; False copies them.
        negatives (`str`, *optional*, defaults to `"all"`): in SSD's box mode: "none" leaves hard negatives out of the loss
            on pseudo labels, which miss objects.
        own_source (`str`, *optional*, defaults to `"student"`): in anchor mode who makes the own prediction: "student"
            (the forward pass that is trained, as published) or "ema" (the own teacher, in eval mode).
        shared_unlabeled_batch (`bool`, *optional*, defaults to `False`): all detectors see one unlabelled batch.

    Raises:
        ValueError: an unknown value, one out of range, or options that contradict each other.
    """

    model_type = "cross_teaching"
    sub_configs: ClassVar[dict[str, type]] = {"detector": AutoConfig}

    detector: dict | PreTrainedConfig | None = None
    num_detectors: int = 2
    seeds: list[int] | None = None
    arm: str = "ct"
    mode: str | None = None
    rule: str = "crossrectify_voc"
    rule_options: dict | None = None
    score_threshold: float | None = None
    rectified_threshold: float | None = None
    nms_threshold: float = 0.5
    max_pseudo_boxes: int | None = None
    unsup_weight: float | None = None
    unsup_box_loss: str | None = None
    max_box_uncertainty: float = 0.02
    ramp: str | None = None
    ramp_start: int = 0
    ramp_steps: int = 32_000
    ramp_down_steps: int = 20_000
    burn_in_steps: int = 0
    ema_decay: float | None = None
    ema_interval: int | None = None
    ema_buffers: bool = True
    negatives: str = "all"
    own_source: str = "student"
    shared_unlabeled_batch: bool = False

    def __post_init__(self, **kwargs):
        if self.detector is None:
            self.detector = TorchvisionDetectorConfig()
        elif isinstance(self.detector, dict):
            values = dict(self.detector)
            model_type = values.pop("model_type", None)
            if model_type is None:
                raise ValueError("`detector` must name its `model_type`, such as 'cross_teaching_detector'.")
            if (
                model_type == TorchvisionDetectorConfig.model_type
            ):  # known also where only the files of a checkpoint are
                self.detector = TorchvisionDetectorConfig(**values)
            else:
                self.detector = AutoConfig.for_model(model_type, **values)
        if self.mode is None:
            self.mode = "anchor" if getattr(self.detector, "is_ssd", False) else "box"
        is_anchor = self.mode == "anchor"
        for name, anchor, box in (
            ("score_threshold", 0.5, 0.7),
            ("max_pseudo_boxes", 20, 100),
            ("unsup_weight", 1.0, 2.0),
            ("unsup_box_loss", "peer", "none"),
            ("ramp", "ssd", "none"),
            ("ema_decay", 0.99, 0.999),
            ("ema_interval", 10, 1),
        ):
            if getattr(self, name) is None:
                setattr(self, name, anchor if is_anchor else box)
        if self.seeds is None:
            self.seeds = list(range(max(0, self.num_detectors)))
        super().__post_init__(**kwargs)
        self.id2label = self.detector.id2label
        self.label2id = self.detector.label2id

    def peers(self, number: int) -> list[int]:
        """Detectors whose predictions student `number` learns from, besides its own."""
        if self.arm == "self" or self.num_detectors == 1:
            return []
        if self.arm == "mutual":
            return [(number + 1) % self.num_detectors]
        return [other for other in range(self.num_detectors) if other != number]

    def validate_cross_teaching(self):
        """Refuse unknown values, values out of range and contradictions."""
        if self.num_detectors < 1:
            raise ValueError(f"`num_detectors` must be at least 1, got {self.num_detectors}.")
        if len(self.seeds) != self.num_detectors:
            raise ValueError(f"`seeds` must have {self.num_detectors}, one a detector, got {len(self.seeds)}.")
        _validate_choice("arm", self.arm, ("sup", "self", "mutual", "ct"))
        _validate_choice("mode", self.mode, ("anchor", "box"))
        _validate_choice("rule", self.rule, BOX_RULE_NAMES)
        _validate_choice("ramp", self.ramp, ("ssd", "linear", "none"))
        _validate_choice("negatives", self.negatives, ("all", "none"))
        _validate_choice("own_source", self.own_source, ("student", "ema"))
        allowed = ("peer", "winner", "none") if self.mode == "anchor" else ("none", "full", "uncertainty")
        _validate_choice("unsup_box_loss", self.unsup_box_loss, allowed)
        if self.unsup_box_loss == "uncertainty" and getattr(self.detector, "is_ssd", True):
            kind = getattr(self.detector, "architecture", self.detector.model_type)
            raise ValueError(
                "`unsup_box_loss='uncertainty'` refines boxes by the second stage of Faster R-CNN, which a detector "
                f"{kind!r} does not have; use 'none' or 'full', or an architecture 'fasterrcnn_...'."
            )
        if self.max_box_uncertainty <= 0:
            raise ValueError(f"`max_box_uncertainty` must be above 0, got {self.max_box_uncertainty}.")
        for name in ("score_threshold", "nms_threshold", "ema_decay"):
            _validate_range(name, getattr(self, name), 0, 1)
        if self.rectified_threshold is not None:
            _validate_range("rectified_threshold", self.rectified_threshold, 0, 1)
            if self.mode == "anchor":
                raise ValueError(
                    "`rectified_threshold` is for mode='box'; anchors are chosen by `score_threshold` alone."
                )
        for name, low in (
            ("burn_in_steps", 0),
            ("ramp_start", 0),
            ("ramp_steps", 0),
            ("ramp_down_steps", 0),
            ("ema_interval", 1),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"`{name}` must be at least {low}, got {getattr(self, name)}.")
        if self.mode == "anchor" and not getattr(self.detector, "is_ssd", False):
            raise ValueError("`mode='anchor'` is SSD's; use mode='box' for detectors without default boxes.")
