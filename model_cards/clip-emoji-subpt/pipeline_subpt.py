# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Zero-shot image classification with a learned prompt, which encodes the labels once and not for every image.

Written against transformers 5.24 (`ZeroShotImageClassificationPipeline`).
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ZeroShotImageClassificationPipeline
from transformers.image_utils import load_image


TASK = "prompted-zero-shot-image-classification"  # stock `zero-shot-image-classification` stays what it is
STOCK_TEMPLATE = "This is a photo of {}."
CACHED_LABEL_SETS = 16
LABELS_AT_ONCE = 256


class PromptedZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """`zero-shot-image-classification` with the prompt that lies in the model's configuration.

    The features of the labels are kept for the last 16 pairs of labels and template: only images go through the model
    when the same labels are asked for again. They are those of the weights at the first call; make a new pipeline after
    training the model.

    Args:
        candidate_labels (`list[str]`): the class names, each once.
        hypothesis_template (`str`, *optional*): the prompt, with `{}` for the name. Default: what the configuration says in
            `subpt_hypothesis_template`, else the stock pipeline's.
        return_similarities (`bool`, *optional*, defaults to `False`): add `similarity` to each record: the cosine between
            the image and the label's prompt, which does not depend on the other labels.

    Everything else is as in `ZeroShotImageClassificationPipeline`.

    Example:

    ```python
    >>> classifier = pipeline("prompted-zero-shot-image-classification", model=repo_id, trust_remote_code=True)
    >>> classifier("image.png", candidate_labels=["cat", "dog"], return_similarities=True)
    [{'score': 0.93, 'label': 'cat', 'similarity': 0.27}, {'score': 0.07, 'label': 'dog', 'similarity': 0.24}]
    ```
    """

    def __init__(self, **kwargs: Any):
        self._label_features: OrderedDict[tuple, Tensor] = OrderedDict()
        super().__init__(**kwargs)

    def _sanitize_parameters(
        self, candidate_labels=None, hypothesis_template=None, return_similarities=None, timeout=None, **kwargs
    ):
        forward = {}
        if candidate_labels is not None:
            forward["candidate_labels"] = check_labels(candidate_labels)
        if hypothesis_template is not None:
            if not isinstance(hypothesis_template, str) or hypothesis_template.count("{}") != 1:
                raise ValueError(
                    f"`hypothesis_template` must have one {{}} for the label, got {hypothesis_template!r}."
                )
            forward["hypothesis_template"] = hypothesis_template
        postprocess = {name: forward[name] for name in ("candidate_labels",) if name in forward}
        if return_similarities is not None:
            postprocess["return_similarities"] = return_similarities
        return {} if timeout is None else {"timeout": timeout}, forward, postprocess

    @property
    def hypothesis_template(self) -> str:
        """The prompt that is used where none is given."""
        return getattr(self.model.config, "subpt_hypothesis_template", None) or STOCK_TEMPLATE

    @property
    def is_sigmoid(self) -> bool:
        """Whether the model scores each label by itself, as SigLIP does."""
        return "siglip" in self.model.config.model_type

    def preprocess(self, image, timeout=None, **kwargs):
        image = load_image(image, timeout=timeout)
        return self.image_processor(images=[image], return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs, candidate_labels=(), hypothesis_template=None):
        image_embeds = normalized(self.model.get_image_features(**model_inputs))  # (images, dim)
        label_embeds = self.label_features(candidate_labels, hypothesis_template)  # (labels, dim)
        return {"similarities": image_embeds @ label_embeds.T}

    def label_features(self, labels: list[str], hypothesis_template: str | None = None) -> Tensor:
        """Features of labels, from the cache where they are in it.

        Args:
            labels: class names.
            hypothesis_template: the prompt, with one `{}`; default as for the pipeline.

        Returns:
            (labels, dim), float32, rows of length 1, on the model's device.

        Raises:
            ValueError: no labels, or a prompt that is longer than the text tower takes.
        """
        labels = check_labels(labels)
        model: Any = self.model
        template = hypothesis_template or self.hypothesis_template
        key = (tuple(labels), template, model.dtype, model.device)
        if key not in self._label_features:
            inputs = self.tokenize([template.replace("{}", label) for label in labels])
            with torch.no_grad():
                parts = [
                    normalized(model.get_text_features(**{name: ids.to(model.device) for name, ids in part.items()}))
                    for part in chunks(inputs, LABELS_AT_ONCE)
                ]
            self._label_features[key] = torch.cat(parts)
        self._label_features.move_to_end(key)
        while len(self._label_features) > CACHED_LABEL_SETS:
            self._label_features.popitem(last=False)
        return self._label_features[key]

    def tokenize(self, prompts: list[str]) -> dict[str, Tensor]:
        """`input_ids` and what else the text tower reads, (prompts, length)."""
        tokenizer: Any = self.tokenizer
        limit = self.model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        if max(lengths) > limit:
            longest = prompts[lengths.index(max(lengths))]
            raise ValueError(
                f"the prompt {longest!r} is {max(lengths)} tokens, more than the {limit} positions of the text tower; "
                "shorten its label."
            )
        # SigLIP pools the last position, and was trained with rows of full length.
        padding: dict[str, Any] = (
            {"padding": "max_length", "max_length": limit} if self.is_sigmoid else {"padding": True}
        )
        return dict(tokenizer(prompts, return_tensors="pt", **padding))

    def postprocess(self, model_outputs, candidate_labels=(), return_similarities=False):
        similarities = model_outputs["similarities"][0]
        logits = similarities * self.model.logit_scale.exp().float()
        if self.is_sigmoid:
            scores = (logits + self.model.logit_bias.float()).sigmoid()
        else:
            scores = logits.softmax(-1)
        records = [
            {"score": score, "label": label, **({"similarity": similarity} if return_similarities else {})}
            for score, label, similarity in zip(scores.tolist(), candidate_labels, similarities.tolist())
        ]
        return sorted(records, key=lambda record: -record["score"])


def check_labels(labels: Any) -> list[str]:
    """`labels` as a list.

    Raises:
        ValueError: a text instead of a list, no labels, an empty one, something that is no text, or one given twice.
    """
    if isinstance(labels, str):
        raise ValueError(f"`candidate_labels` must be a list of names, got the text {labels!r}.")  # noqa: TRY004
    labels = list(labels)
    if not labels:
        raise ValueError("`candidate_labels` is empty; give at least one name.")
    if wrong := [label for label in labels if not isinstance(label, str) or not label.strip()]:
        raise ValueError(f"`candidate_labels` must be names, got {wrong[0]!r}.")
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"`candidate_labels` has labels twice: {repeated}.")
    return labels


def normalized(features: Any) -> Tensor:
    """Rows of length 1 in float32, of a tensor or of what the towers return."""
    features = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(features.float(), dim=-1)


def chunks(inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Rows of `inputs`, `size` at a time."""
    number = len(inputs["input_ids"])
    return [{name: ids[start : start + size] for name, ids in inputs.items()} for start in range(0, number, size)]
