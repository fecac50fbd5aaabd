# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics against closed forms."""

import math

import pytest

from hf_methods.metrics import TokenPerplexity, token_perplexity


def test_a_uniform_guess_over_fifty_tokens_has_perplexity_fifty():
    assert token_perplexity([3 * math.log(50), math.log(50)], [3, 1]) == pytest.approx(50)


def test_every_token_counts_alike():
    assert token_perplexity([9 * math.log(2), math.log(8)], [9, 1]) == pytest.approx(2**1.2)


@pytest.mark.parametrize(
    ("nll", "num_tokens", "message"), [([], [], "at least one"), ([1.0], [0], "at least one"), ([1.0], [1, 2], "1 and 2")]
)  # fmt: skip
def test_nothing_to_measure_raises(nll, num_tokens, message):
    with pytest.raises(ValueError, match=message):
        token_perplexity(nll, num_tokens)


def test_the_evaluate_metric_gathers_batches_to_the_same_number(tmp_path):
    metric = TokenPerplexity(cache_dir=str(tmp_path))
    metric.add_batch(nll=[1.0, 2.0], num_tokens=[3, 4])
    metric.add_batch(nll=[5.0], num_tokens=[2])
    assert metric.compute()["perplexity"] == pytest.approx(token_perplexity([1.0, 2.0, 5.0], [3, 4, 2]))
