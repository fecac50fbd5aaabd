# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Configuration of the detector: what it measures, and the classifier that it was trained for."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


LABELS = {0: "benign", 1: "adversarial"}
MAX_COEFFICIENTS = 100  # whose magnitudes are below every layer's floor; a file can't ask for more memory than that


@strict
class MBFConfig(PreTrainedConfig):
    """Configuration of `MBFFeatureExtractor` and `MBFDetector`.

    Args:
        layers (`list[str]` or `str`, *optional*): names of the classifier's modules whose outputs are measured, or
            patterns of them with `*`, `?` and `[...]`. Default: a preset, see `preset_layers`. The paper's choice is not
            known.
        num_coefficients (`int` or `list[int]`, *optional*): orders of each layer, one number for all or one a layer.
            Default: 2 for layers with fewer than 10,000 responses, else 4; our choice, since orders whose magnitude is
            below 1/sqrt(responses) say nothing.
        center (`str`, *optional*, defaults to `"layer"`): "layer" subtracts the mean of an image's responses in the layer,
            "channel" that of each channel, `None` nothing. The theory is for zero mean; the paper's choice is not known.
        debias (`bool`, *optional*, defaults to `False`): subtract the finite-sample floor, see `mbf`. Ours.
        channel_groups (`int` or `list[int]`, *optional*, defaults to 1): measure so many groups of consecutive channels of a
            layer apart, one number for all or one a layer; a single number is lowered to one that divides the layer's
            channels. Ours: what a layer's channels have in common hides what an attack changes in some.
        max_responses (`int`, *optional*): use this many responses of a larger layer, at fixed positions; with center
            "layer" around their own mean. Ours, for speed.
        classifier_id (`str`, *optional*): Hub id of the classifier; `None` where it is in the folder `classifier` of the
            detector's own repository, or is passed to `from_pretrained`.
        classifier_revision (`str`, *optional*): its commit or tag.
        classifier_digest (`str`, *optional*): SHA-256 of its weights, see `weights_digest`.
        classifier_dtype (`str`, *optional*): dtype of its weights in training, such as "float32".
        svm_c (`float`, *optional*, defaults to 10.0): C of the support vector machine that was chosen.
        svm_gamma (`float`, *optional*, defaults to 0.0): gamma of its kernel exp(-gamma |u - v|^2) that was chosen.
        target_fpr (`float`, *optional*, defaults to 0.05): false-positive rate that the verdict's threshold is chosen for.
        attacks (`list[str]`, *optional*): names of the attacks in the training data.
        num_features (`int`, *optional*, defaults to 0): length of the feature vector; 0 before training.
        num_support_vectors (`int`, *optional*, defaults to 0): number of support vectors.
        num_benign_scores (`int`, *optional*, defaults to 0): number of held-out benign decision values.

    Raises:
        ValueError: a value outside its range.
    """

    model_type = "mbf"

    layers: list[str] | str | None = None
    num_coefficients: int | list[int] | None = None
    center: str | None = "layer"
    debias: bool = False
    channel_groups: int | list[int] = 1
    max_responses: int | None = None
    classifier_id: str | None = None
    classifier_revision: str | None = None
    classifier_digest: str | None = None
    classifier_dtype: str | None = None
    svm_c: float = 10.0
    svm_gamma: float = 0.0
    target_fpr: float = 0.05
    attacks: list[str] | None = None
    num_features: int = 0
    num_support_vectors: int = 0
    num_benign_scores: int = 0

    def __post_init__(self, **kwargs):
        if not kwargs.get("id2label"):
            kwargs.update(id2label=dict(LABELS), label2id={label: index for index, label in LABELS.items()})
        super().__post_init__(**kwargs)

    def validate_features(self):
        """Refuse what could not be measured."""
        if self.center not in ("layer", "channel", None):
            raise ValueError(f"`center` must be 'layer', 'channel' or None, got {self.center!r}.")
        orders = self.num_coefficients if isinstance(self.num_coefficients, list) else [self.num_coefficients]
        if any(order is not None and not 1 <= order <= MAX_COEFFICIENTS for order in orders) or orders == []:
            raise ValueError(f"`num_coefficients` must be 1 to {MAX_COEFFICIENTS}, got {self.num_coefficients}.")
        groups = self.channel_groups if isinstance(self.channel_groups, list) else [self.channel_groups]
        if any(number < 1 for number in groups) or groups == []:
            raise ValueError(f"`channel_groups` must be at least 1, got {self.channel_groups}.")
        if self.layers is not None and (not self.layers or any(not name for name in self.layers)):
            raise ValueError(f"`layers` must name at least one module, got {self.layers!r}.")
        if self.max_responses is not None and self.max_responses < 100:
            raise ValueError(
                f"`max_responses` must be at least 100, got {self.max_responses}: the floor is 0.1 there."
            )

    def validate_detector(self):
        """Refuse rates and sizes that no detector has."""
        if not 0 < self.target_fpr < 1:
            raise ValueError(f"`target_fpr` must be between 0 and 1, both excluded, got {self.target_fpr}.")
        if not self.svm_c > 0 or not self.svm_gamma >= 0:
            raise ValueError(
                f"`svm_c` must be positive and `svm_gamma` not negative, got {self.svm_c}, {self.svm_gamma}."
            )
        for name in ("num_features", "num_support_vectors", "num_benign_scores"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` can't be negative, got {getattr(self, name)}.")
