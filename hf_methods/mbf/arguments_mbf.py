# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one run: training of the classifier, and the detector."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.processes import check_processes


@dataclass
class MBFTrainingArguments(TrainingArguments):
    """`TrainingArguments` of the classifier, with the detector's settings.

    Changed defaults: learning_rate 1e-3, no columns removed. The paper's values are not known: its body could not be read.
    """

    layers: list[str] | None = field(default=None, metadata={"help": "Layers or patterns; default: a preset."})
    num_coefficients: int | None = field(default=None, metadata={"help": "Orders; default: by the layer's size."})
    center: str | None = field(default="layer", metadata={"help": "'layer', 'channel' or null."})
    debias: bool = field(default=False, metadata={"help": "Subtract the finite-sample floor."})
    channel_groups: int = field(default=1, metadata={"help": "Groups of channels measured apart."})
    max_responses: int | None = field(default=None, metadata={"help": "Of a layer; default: all."})
    target_fpr: float = field(default=0.05, metadata={"help": "False-positive rate of the verdict."})
    svm_c: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0], metadata={"help": "Candidates for C."})
    svm_gamma: list[float] = field(
        default_factory=lambda: [0.3, 1.0, 3.0], metadata={"help": "Candidates for gamma, times 1 / features."}
    )
    num_folds: int = field(default=5, metadata={"help": "Of the cross-validation."})
    max_train_rows: int | None = field(
        default=None,
        metadata={"help": "Train detectors on the sources that have so many rows together; default: all."},
    )
    compare: bool = field(default=True, metadata={"help": "Also train and test the baselines, on each attack."})
    bootstrap_samples: int = field(default=1000, metadata={"help": "Of the intervals."})
    adaptive_eps: float = field(default=0.1, metadata={"help": "Radius of the adaptive attacks, of 1."})
    adaptive_steps: int = field(default=100, metadata={"help": "Steps of the adaptive attacks; 0: none."})
    adaptive_images: int = field(default=200, metadata={"help": "Images that they are tried on."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the classifier."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Columns become pixels on the fly."})

    def __post_init__(self):
        super().__post_init__()
        self.detector_config()  # a bad value is an error before the classifier is trained
        if self.num_folds < 2 or not self.svm_c or not self.svm_gamma:
            raise ValueError("`num_folds` must be at least 2, and `svm_c` and `svm_gamma` need a candidate.")
        for name in ("svm_c", "svm_gamma"):
            if not all(0 < value < float("inf") for value in getattr(self, name)):
                raise ValueError(f"`{name}` must be positive numbers, got {getattr(self, name)}.")
        for name in ("max_train_rows", "bootstrap_samples", "adaptive_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.adaptive_steps < 0 or not 0 < self.adaptive_eps <= 1:
            raise ValueError(
                f"`adaptive_steps` must be at least 0 and `adaptive_eps` in (0, 1], got {self.adaptive_steps} and "
                f"{self.adaptive_eps}."
            )
        check_processes(self)

    def detector_config(self, **more: Any) -> MBFConfig:
        """The configuration of the detector before training."""
        fields = ("layers", "num_coefficients", "center", "debias", "channel_groups", "max_responses", "target_fpr")
        return MBFConfig(**{name: getattr(self, name) for name in fields}, **more)

    def svm_options(self) -> dict[str, Any]:
        """Arguments of `fit_svm`."""
        return {"c": self.svm_c, "gamma": self.svm_gamma, "num_folds": self.num_folds, "seed": self.seed}
