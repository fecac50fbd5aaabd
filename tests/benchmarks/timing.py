# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Timing of functions against each other in one run."""

import time
from collections.abc import Callable
from statistics import median


def time_together(functions: dict[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, dict]:
    """Run the functions in turn, so that a drift of the machine's speed meets all of them.

    Args:
        functions: name -> what is timed; the first is the peer.
        repeats: timed runs of each.
        warm_up: runs before, not timed.

    Returns:
        For each name {"median_ms", "min_ms", "max_ms", "ratio"}; `ratio` is the median over the rounds of this
        function's time divided by the peer's of the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warm_up + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number >= warm_up:
                times[name].append(1000 * (time.perf_counter() - start))
    peer = times[next(iter(functions))]
    return {
        name: {
            "median_ms": round(median(own), 3),
            "min_ms": round(min(own), 3),
            "max_ms": round(max(own), 3),
            "ratio": round(median(a / b for a, b in zip(own, peer, strict=True)), 3),
        }
        for name, own in times.items()
    }
