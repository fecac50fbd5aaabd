# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Text generation that can also say where the attention of the prompt went.

Written against transformers 5.24 (`TextGenerationPipeline`).
"""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel, TextGenerationPipeline

from .modeling_softmax1 import EAGER, FAST


TASK = "softmax1-text-generation"  # stock `text-generation` stays what it is


def attention_shares(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the attention that the first token gets and that nothing gets (arXiv 2410.17174).

    Means over layers, heads and the queries behind the first token; softmax gives nothing no share.

    Args:
        model: a causal language model, softmax or softmax-1; its attention implementation comes back as it was.
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens) with 0 for padding, on either side; "first token" is the first unmasked one.

    Returns:
        Two float64 tensors (batch,) between 0 and 1; NaN for a prompt of one token, which has no query behind the first.
    """
    implementation = model.config._attn_implementation
    model.set_attn_implementation(EAGER if implementation in (FAST, EAGER) else "eager")
    try:
        with torch.no_grad():
            output = model(
                input_ids,
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(-1) - 1).clamp_min(0),  # as `generate` counts behind left padding
                output_attentions=True,
                use_cache=False,
            )
    finally:
        model.set_attn_implementation(implementation)
    weights = torch.stack([layer.double().mean(1) for layer in output.attentions]).mean(0)  # (batch, queries, keys)
    valid = attention_mask.bool()
    first = valid.long().argmax(1)  # (batch,)
    behind = valid & (torch.arange(valid.shape[1], device=valid.device) != first[:, None])
    on_first = weights.gather(-1, first[:, None, None].expand(-1, weights.shape[1], 1)).squeeze(-1)
    on_nothing = (1 - weights.sum(-1)).clamp_min(0)  # below 0 only by rounding
    num_queries = behind.sum(1)
    return (on_first * behind).sum(1) / num_queries, (on_nothing * behind).sum(1) / num_queries


class Softmax1TextGenerationPipeline(TextGenerationPipeline):
    """`text-generation` that with `return_attention_shares=True` adds two figures of the prompt to each record.

    Args:
        return_attention_shares (`bool`, *optional*, defaults to `False`): add `first_token_share` and `nothing_share`,
            between 0 and 1 (see `attention_shares`), or `None` for a prompt of fewer than two tokens. Costs one more
            forward pass over the prompt. Everything else is as in `TextGenerationPipeline`.

    Example:

    ```python
    >>> generator = pipeline("softmax1-text-generation", model=repo_id, trust_remote_code=True)
    >>> generator("import os", max_new_tokens=8, return_attention_shares=True)
    [{'generated_text': 'import os...', 'first_token_share': 0.03, 'nothing_share': 0.21}]
    ```
    """

    def _sanitize_parameters(self, return_attention_shares=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if return_attention_shares is not None:
            forward["return_attention_shares"] = return_attention_shares
        return preprocess, forward, postprocess

    def _forward(self, model_inputs, return_attention_shares=False, **generate_kwargs):
        input_ids, mask = model_inputs["input_ids"], model_inputs.get("attention_mask")
        outputs = super()._forward(model_inputs, **generate_kwargs)
        if return_attention_shares:
            nan = torch.full((max(1, input_ids.shape[0]),), torch.nan, dtype=torch.float64)
            shares = (nan, nan)
            if input_ids.shape[1] > 0:
                shares = attention_shares(self.model, input_ids, torch.ones_like(input_ids) if mask is None else mask)
            outputs["attention_shares"] = torch.stack(shares, -1)  # (batch, 2): tensors are split by prompt
        return outputs

    def postprocess(self, model_outputs, *args, **kwargs):
        shares = model_outputs.pop("attention_shares", None)
        records = super().postprocess(model_outputs, *args, **kwargs)
        if shares is not None:
            first, nothing = (None if math.isnan(share) else share for share in shares[0].tolist())
            records = [{**record, "first_token_share": first, "nothing_share": nothing} for record in records]
        return records
