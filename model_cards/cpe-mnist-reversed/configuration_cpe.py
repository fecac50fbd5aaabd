# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Configuration of CPE models: the backbone, the experts, and the label counts that they were trained for."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING


FUSIONS = ("expert", "mean_logit", "mean_prob")
MAX_DEPTH = 1000  # a file can't ask for more time and memory than that


@strict
class CPEConfig(PreTrainedConfig):
    """Configuration of a classifier with complementary experts (arXiv 2312.15702).

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): configuration of any image model of transformers,
            `TimmWrapperConfig` included; `None` is the native WideResNet, which the next nine fields describe.
        depth (`int`, *optional*, defaults to 28): layers of the WideResNet, 6 n + 4.
        widen_factor (`int`, *optional*, defaults to 2): its width.
        num_channels (`int`, *optional*, defaults to 3): channels of the images.
        image_size (`int`, *optional*, defaults to 32): side of the images in training.
        drop_rate (`float`, *optional*, defaults to 0.0): dropout between the convolutions of a block.
        leaky_slope (`float`, *optional*, defaults to 0.1): negative slope of LeakyReLU.
        bn_momentum (`float`, *optional*, defaults to 0.001): momentum of the batch norms of the WideResNet.
        bn_eps (`float`, *optional*, defaults to 1e-5): epsilon of those in the blocks.
        final_bn_eps (`float`, *optional*, defaults to 1e-3): epsilon of the last one.
        keep_dead_bn (`bool`, *optional*, defaults to `False`): keep two batch norms whose output the official code
            computes and drops; they have no gradient.
        taus (`list[float]`, *optional*, defaults to `(0, 2, 4)`): logit adjustment of each expert, in its order.
            `(0,)` is FixMatch, `(1,)` FixMatch with logit adjustment.
        class_counts (`list[int]`, *optional*): labelled training images of each class, in the order of `id2label`; gives
            the prior and the ranks of the classes. Needed for training.
        allow_empty_classes (`bool`, *optional*, defaults to `False`): let `class_counts` have zeros; their prior is 1e-12.
        use_cbn (`bool`, *optional*, defaults to `True`): classwise batch normalisation with `len(group_cuts) + 1` branches;
            without it there is one branch, without normalisation.
        group_cuts (`list[int]`, *optional*): first rank of the medium and of the tail classes; `None` is
            `default_cuts(num_labels)`.
        cbn_momentum (`float`, *optional*, defaults to 0.1): momentum of classwise batch normalisation.
        cbn_eps (`float`, *optional*, defaults to 1e-5): its epsilon.
        eval_expert (`int`, *optional*): the expert that answers; default 1 (tau 2), or 0 if there is only one.
        fusion (`str`, *optional*, defaults to `"expert"`): "expert", or "mean_logit" or "mean_prob" over all experts.

    Raises:
        ValueError: a field that contradicts another; the message names both.
    """

    model_type = "cpe"
    # Not of the predictions of `Trainer`.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "expert_logits", "group_logits", "pooled_features", "supervised_loss", "unsupervised_loss", "pseudo_labels",
        "pseudo_label_mask",
    ]  # fmt: skip

    backbone_config: PreTrainedConfig | dict | None = None
    depth: int = 28
    widen_factor: int = 2
    num_channels: int = 3
    image_size: int = 32
    drop_rate: float | int = 0.0
    leaky_slope: float | int = 0.1
    bn_momentum: float | int = 0.001
    bn_eps: float = 1e-5
    final_bn_eps: float = 1e-3
    keep_dead_bn: bool = False
    taus: list[float | int] | tuple[float | int, ...] = (0.0, 2.0, 4.0)
    class_counts: list[int] | tuple[int, ...] | None = None
    allow_empty_classes: bool = False
    use_cbn: bool = True
    group_cuts: list[int] | tuple[int, ...] | None = None
    cbn_momentum: float | int = 0.1
    cbn_eps: float = 1e-5
    eval_expert: int | None = None
    fusion: str = "expert"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)  # sets num_labels
        if isinstance(self.backbone_config, dict):
            values = dict(self.backbone_config)
            if (model_type := values.pop("model_type", None)) not in CONFIG_MAPPING:
                raise ValueError(
                    f"`backbone_config` needs a `model_type` that transformers knows, got {model_type!r}."
                )
            self.backbone_config = CONFIG_MAPPING[model_type].from_dict(values)
        if self.eval_expert is None:
            self.eval_expert = min(1, len(self.taus) - 1)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As `PreTrainedConfig.from_dict`; fields of `kwargs` replace the stored ones before they are checked together."""
        together = {"id2label", "taus", "class_counts", "allow_empty_classes", "use_cbn", "group_cuts", "eval_expert"}
        replaced = {name: kwargs.pop(name) for name in together & kwargs.keys()}
        return super().from_dict({**config_dict, **replaced}, **kwargs)

    @staticmethod
    def default_cuts(num_labels: int) -> tuple[int, ...]:
        """First ranks of the medium and of the tail classes: official for 10 and 100 classes, in proportion otherwise.

        Two classes have one cut and two branches, a single class none.
        """
        if num_labels in (10, 100):
            return (2, 4) if num_labels == 10 else (35, 70)
        medium = max(1, round(0.35 * num_labels))
        tail = max(medium + 1, round(0.7 * num_labels))
        return tuple(cut for cut in (medium, tail) if cut < num_labels)

    @property
    def cuts(self) -> tuple[int, ...]:
        """`group_cuts`, or their default for the number of classes."""
        return self.default_cuts(self.num_classes) if self.group_cuts is None else tuple(self.group_cuts)

    @property
    def num_classes(self) -> int:
        """K, the same as `num_labels`."""
        return len(self.id2label or {})

    @property
    def num_experts(self) -> int:
        """E, the number of heads."""
        return len(self.taus)

    @property
    def num_groups(self) -> int:
        """G, the number of branches."""
        return len(self.cuts) + 1 if self.use_cbn else 1

    def validate_wide_resnet(self):
        """Refuse sizes that give no network."""
        if self.backbone_config is None and (not 10 <= self.depth <= MAX_DEPTH or (self.depth - 4) % 6):
            raise ValueError(f"`depth` must be 6 n + 4, such as 10, 16 or 28, at most {MAX_DEPTH}, got {self.depth}.")
        for field in ("widen_factor", "num_channels", "image_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")

    def validate_experts(self):
        """Refuse experts that do not exist."""
        if not self.taus or not all(math.isfinite(tau) for tau in self.taus):
            raise ValueError(f"`taus` must be one finite number for each expert, got {list(self.taus)}.")
        if not 0 <= self.eval_expert < len(self.taus):
            raise ValueError(
                f"`eval_expert` must be the index of one of {len(self.taus)} experts (`taus`), got {self.eval_expert}."
            )
        if self.fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {', '.join(FUSIONS)}, got {self.fusion!r}.")

    def validate_classes(self):
        """Refuse counts and cuts that do not fit the number of classes."""
        cuts = list(self.cuts)
        if cuts != sorted(set(cuts)) or cuts and not 0 < cuts[0] <= cuts[-1] < self.num_labels:
            raise ValueError(
                f"`group_cuts` must be increasing ranks from 1 to num_labels - 1 = {self.num_labels - 1}, got {cuts}. "
                "Give None for the default."
            )
        if self.class_counts is None:
            return
        if len(self.class_counts) != self.num_labels:
            raise ValueError(
                f"`class_counts` must have one count for each class, got {len(self.class_counts)} for num_labels="
                f"{self.num_labels}. Give the counts of the new training split, or None, when `num_labels` changes."
            )
        if any(count < 0 for count in self.class_counts) or not any(self.class_counts):
            raise ValueError(f"`class_counts` must be counts with a positive sum, got {list(self.class_counts)}.")
        empty = [self.id2label[k] for k, count in enumerate(self.class_counts) if count == 0]
        if empty and not self.allow_empty_classes:
            raise ValueError(
                f"`class_counts` is 0 for {', '.join(empty)}: log prior -inf. Label some images of each class, or set "
                "`allow_empty_classes=True`."
            )
