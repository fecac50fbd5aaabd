# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Trainers of tiny models on random features."""

from tiny_subpt import NAMES, embeddings, make_model
from transformers import TrainerCallback

from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments
from hf_methods.subpt.training_subpt import SubPTTrainer


def rows(number=16):
    features = embeddings(number)
    return [{"image_embeds": features[i], "labels": i % len(NAMES)} for i in range(number)]


def make_arguments(folder, **options):
    defaults = dict(
        num_train_epochs=6, subspace_epochs=4, subspace_rank=2, learning_rate=0.05, per_device_train_batch_size=8,
        use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    if options.get("subspace_rank", 2) == 0:
        defaults["subspace_epochs"] = None
    return SubPTTrainingArguments(str(folder), **{**defaults, **options})


def make_trainer(folder, model=None, dataset=None, callbacks=None, **options):
    model = model if model is not None else make_model()
    return SubPTTrainer(model, make_arguments(folder, **options), train_dataset=dataset or rows(), callbacks=callbacks)


class Recorder(TrainerCallback):
    """Context and learning rate of every step."""

    def __init__(self):
        self.contexts, self.rates = [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.contexts.append(model.context.detach().clone())
