# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Softmax-1 attention against torch's softmax attention: time of a training step, and memory of long sequences.

python tests/benchmarks/softmax1.py
"""

import time
from functools import partial

import torch
import torch.nn.functional as F
from memory import peak_bytes
from output import output_path
from timing import time_together

from hf_methods.checkpoints import write_results
from hf_methods.softmax1 import softmax1_attention


SHAPES = ((4, 8, 256, 64), (1, 8, 1024, 64))
LONG = (1, 2, 4096, 64)


def softmax_attention(query, key, value):
    """The peer: causal attention with softmax."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def step(attention, inputs):
    """Forward and backward."""
    attention(*inputs).sum().backward()


def attentions():
    """The peer and each backend."""
    backends = ("auto", "flash", "zero_key", "eager")
    return {
        "softmax (torch)": softmax_attention,
        **{f"softmax1 {name}": partial(softmax1_attention, is_causal=True, backend=name) for name in backends},
    }


def benchmark_time(shape: tuple[int, ...]) -> dict[str, dict]:
    """Times of forward and backward, causal, float32."""
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    return time_together({name: partial(step, attention, inputs) for name, attention in attentions().items()}, 15)


def benchmark_memory() -> dict[str, float]:
    """MB that a step of the long shape holds at one time, besides its inputs and a kernel's own workspace."""
    inputs = [torch.randn(LONG, requires_grad=True) for _ in range(3)]
    return {
        name: round(peak_bytes(partial(step, attention, inputs)) / 2**20, 2)
        for name, attention in attentions().items()
    }


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    torch.manual_seed(0)
    times = {}
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        times |= {f"{shape}, {threads} threads": benchmark_time(shape) for shape in SHAPES}
    write_results(
        out, seeds=[0], data={}, wall_seconds=time.time() - start,
        time_forward_backward_causal=times, peak_memory_mb={str(LONG): benchmark_memory()},
    )  # fmt: skip
    print(out.read_text())


if __name__ == "__main__":
    main()
