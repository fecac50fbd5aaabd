# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Trained detectors without their students: what is published, and what the pipelines run.

Written against transformers 5.24.
"""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_cross_teaching import EXPORT_HINT, CrossTeachingConfig
from .detectors_cross_teaching import build_detector, finish_composite


class CrossTeachingForObjectDetection(PreTrainedModel):
    """M trained detectors of one kind; as an ordinary detector it answers with one of them.

    So the stock `pipeline("object-detection")` works, and `cross-teaching-object-detection` has them all and their ensemble.
    `CrossTeachingModel.for_inference` makes it.

    Example:

    ```python
    >>> trained = CrossTeachingModel.from_pretrained("runs/ct").for_inference()
    >>> trained(pixel_values, detector=1).logits  # of the second detector
    ```
    """

    config: CrossTeachingConfig
    config_class = CrossTeachingConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: CrossTeachingConfig):
        super().__init__(config)
        detectors = [build_detector(copy.deepcopy(config.detector)) for _ in range(config.num_detectors)]  # type: ignore[arg-type]
        self.detectors = nn.ModuleList(detectors)
        finish_composite(self, detectors=self.detectors)

    def _init_weights(self, module):
        """Nothing: every weight belongs to a detector, which initialises it."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args: Any, **kwargs: Any):
        """As the base class.

        Raises:
            ValueError: a checkpoint of a `CrossTeachingModel`, with an error that says how to get a detector of it.
        """
        config = kwargs.get("config")
        if config is None:
            config = CrossTeachingConfig.from_pretrained(pretrained_model_name_or_path)
        if config.architectures == ["CrossTeachingModel"]:
            raise ValueError(f"{pretrained_model_name_or_path}: {EXPORT_HINT}")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Any = None,
        detector: int = 0,
        **kwargs: Any,
    ) -> ModelOutput:
        """The output of one detector.

        Args:
            pixel_values: (batch, 3, height, width), of the image processor that is saved beside the weights.
            pixel_mask: (batch, height, width), 0 where an image is padded.
            labels: as the detector's.
            detector: which, from 0.
            kwargs: passed to the detector.

        Raises:
            ValueError: no such detector.
        """
        if not 0 <= detector < len(self.detectors):
            raise ValueError(f"`detector` must be between 0 and {len(self.detectors) - 1}, got {detector}.")
        options = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        return self.detectors[detector](pixel_values=pixel_values, labels=labels, **options, **kwargs)
