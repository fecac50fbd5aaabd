# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Training of the classifier that a detector guards."""

from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer


class ClassifierTrainer(Trainer):
    """`Trainer` of the classifier, which also goes on from a checkpoint whose parameters have other names on disk, as ViT's.

    Trainer itself would tell of missing parameters in a warning, and go on with random ones.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        classifier: Any = self.model
        classifier.load_state_dict(type(classifier).from_pretrained(resume_from_checkpoint).state_dict())


def classifier_accuracy(model: PreTrainedModel, dataset: Dataset, batch_size: int = 256) -> float:
    """Share of the rows (`pixel_values`, `labels`) whose largest logit is the label's."""
    num_right = 0
    with torch.no_grad():
        for batch in DataLoader(dataset, batch_size=batch_size):  # type: ignore[arg-type]
            logits = model(batch["pixel_values"].to(model.device)).logits
            num_right += int((logits.argmax(1).cpu() == batch["labels"]).sum())
    return num_right / len(dataset)
