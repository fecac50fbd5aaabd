# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Image classification that can also say what each expert answers, and for another distribution of the classes.

Written against transformers 5.24 (`ImageClassificationPipeline`).
"""

from torch import Tensor
from transformers import ImageClassificationPipeline

from .losses_cpe import shift_to_prior


TASK = "cpe-image-classification"  # stock `image-classification` stays what it is
EXPERTS = ("long_tailed", "uniform", "inverse", "mean")


class CPEImageClassificationPipeline(ImageClassificationPipeline):
    """`image-classification` with the choice of the expert and of the distribution of the classes.

    Args:
        expert (`str` or `int`, *optional*): who answers: "long_tailed" (the least logit adjustment), "uniform"
            (`config.eval_expert`), "inverse" (the most), "mean" of all experts' probabilities, or a number. Default: what
            the model's configuration says.
        target_prior (`list[float]`, *optional*): probabilities of the classes among the images to come, in the order of
            `id2label`; the logits are shifted by their logarithm.
        return_experts (`bool`, *optional*, defaults to `False`): add to each record `expert_scores`, the score that each
            expert gives the label, and `agreement`, the share of experts whose first label it is.

    Everything else is as in `ImageClassificationPipeline`.

    Example:

    ```python
    >>> classifier = pipeline("cpe-image-classification", model=repo_id, trust_remote_code=True)
    >>> classifier("digit.png", top_k=1, return_experts=True)
    [{'label': '7', 'score': 0.98, 'expert_scores': [0.95, 0.98, 0.97], 'agreement': 1.0}]
    ```
    """

    def _sanitize_parameters(self, expert=None, target_prior=None, return_experts=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if expert is not None:
            postprocess["expert"] = self._expert_index(expert)
        if target_prior is not None:
            postprocess["target_prior"] = target_prior
        if return_experts is not None:
            postprocess["return_experts"] = return_experts
        return preprocess, forward, postprocess

    def _expert_index(self, expert: str | int) -> int | None:
        """Number of an expert, None for "mean"."""
        taus = self.model.config.taus
        if isinstance(expert, int) and not isinstance(expert, bool) and 0 <= expert < len(taus):
            return expert
        if expert not in EXPERTS:
            raise ValueError(f"`expert` must be one of {', '.join(EXPERTS)} or 0 to {len(taus) - 1}, got {expert!r}.")
        by_name = {"long_tailed": taus.index(min(taus)), "inverse": taus.index(max(taus)), "mean": None}
        return by_name.get(expert, self.model.config.eval_expert)

    def postprocess(self, model_outputs, expert=..., target_prior=None, return_experts=False, top_k=5, **kwargs):
        expert_logits = model_outputs["expert_logits"].float()  # (1, experts, classes)
        logits = model_outputs["logits"].float() if expert is ... else self._logits_of(expert_logits, expert)
        if target_prior is not None:
            logits, expert_logits = (shift_to_prior(x, target_prior) for x in (logits, expert_logits))
        records = super().postprocess({"logits": logits}, top_k=top_k, **kwargs)
        if return_experts:
            scores = expert_logits[0].softmax(-1)  # (experts, classes)
            ids = {label: k for k, label in self.model.config.id2label.items()}
            for record in records:
                label = ids[record["label"]]
                record["expert_scores"] = scores[:, label].tolist()
                record["agreement"] = (scores.argmax(-1) == label).double().mean().item()
        return records

    @staticmethod
    def _logits_of(expert_logits: Tensor, expert: int | None) -> Tensor:
        if expert is None:
            return expert_logits.softmax(-1).mean(1).log()
        return expert_logits[:, expert]
