# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Timing of functions against each other in one run."""

import time
from collections.abc import Callable
from statistics import median, quantiles


def time_together(functions: dict[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, dict]:
    """Run the functions in turn, so that a drift of the machine's speed meets all of them.

    Args:
        functions: name -> what is timed; the first is the peer.
        repeats: timed runs of each, at least 2.
        warm_up: runs before, not timed.

    Returns:
        For each name {"median_ms", "min_ms", "max_ms", "ratio", "ratio_quartiles"}; `ratio` is the median over the rounds
        of this function's time divided by the peer's of the same round, `ratio_quartiles` are the first and the third
        quartile. Four significant digits.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warm_up + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number >= warm_up:
                times[name].append(1000 * (time.perf_counter() - start))
    peer = times[next(iter(functions))]
    return {name: _summary(own, peer) for name, own in times.items()}


def _summary(own: list[float], peer: list[float]) -> dict:
    ratios = [a / b for a, b in zip(own, peer, strict=True)]
    first, _, third = quantiles(ratios, n=4, method="inclusive")
    return {
        "median_ms": round(median(own), 3),
        "min_ms": round(min(own), 3),
        "max_ms": round(max(own), 3),
        "ratio": _significant(median(ratios)),
        "ratio_quartiles": [_significant(first), _significant(third)],
    }


def _significant(value: float) -> float:
    return float(f"{value:.4g}")  # decimals would leave one digit of a share of a thousandth
