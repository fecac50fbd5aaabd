# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics as functions on arrays, and as `evaluate.Metric` classes that need no download."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


def token_perplexity(nll: Sequence[float], num_tokens: Sequence[int]) -> float:
    """exp(sum of negative log likelihoods / number of predicted tokens).

    Every token counts alike: the mean of the perplexities of batches would weigh short batches more.

    Args:
        nll: sum of the negative log likelihoods (natural logarithm) of each text, block or batch.
        num_tokens: how many tokens each of these sums covers.

    Raises:
        ValueError: no predicted tokens, or the two differ in length.
    """
    if len(nll) != len(num_tokens):
        raise ValueError(f"`nll` and `num_tokens` must be of one length, got {len(nll)} and {len(num_tokens)}.")
    total = int(np.sum(num_tokens))
    if total < 1:
        raise ValueError(f"`num_tokens` must count at least one predicted token, got {total}.")
    return float(np.exp(np.sum(np.asarray(nll, dtype=np.float64)) / total))


class TokenPerplexity(evaluate.Metric):
    """`token_perplexity` for `evaluate`: `add_batch(nll=..., num_tokens=...)`, then `compute()["perplexity"]`.

    `evaluate`'s own metric "perplexity" loads a model by its id; this one takes what any model computed.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of a causal language model, every token counted alike.",
            citation="",
            inputs_description="nll: sums of negative log likelihoods; num_tokens: tokens that each sum covers.",
            features=datasets.Features({"nll": datasets.Value("float64"), "num_tokens": datasets.Value("int64")}),
        )

    def _compute(self, nll, num_tokens) -> dict[str, float]:
        return {"perplexity": token_perplexity(nll, num_tokens)}
