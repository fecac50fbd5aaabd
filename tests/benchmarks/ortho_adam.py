# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam against torch's AdamW: the step alone, a whole training step, and memory.

python tests/benchmarks/ortho_adam.py
"""

import time

import torch
from output import output_path
from timing import time_together
from torch import nn

from hf_methods import OrthoAdam, Softmax1GPT2Config, Softmax1GPT2LMHeadModel, ortho_adam_parameter_groups
from hf_methods.checkpoints import write_results


SHAPES = [(512, 512)] * 4 + [(2048, 512)] * 2 + [(512,)] * 4


def parameters(shapes=SHAPES):
    """Random parameters with gradients."""
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def bare_rotations():
    """The matrix products of a dense step and nothing else: each axis there and back."""
    stacks = [torch.randn(4, 512, 512), torch.randn(2, 2048, 512)]
    matrices = [[torch.randn(len(stack), n, n) for n in stack.shape[1:]] for stack in stacks]

    def run():
        for stack, (left, right) in zip(stacks, matrices, strict=True):
            for _ in range(2):
                torch.bmm(torch.bmm(left, stack), right.mT)

    return run


def benchmark_step() -> dict[str, dict]:
    """Times of an optimizer step."""
    optimizers = {
        "AdamW foreach": torch.optim.AdamW(parameters(), foreach=True),
        "OrthoAdam none": OrthoAdam(parameters(), rotation="none"),
        "OrthoAdam hadamard": OrthoAdam(parameters(), rotation="hadamard"),
        "OrthoAdam dense": OrthoAdam(parameters(), rotation="kronecker"),
    }
    return time_together({**{n: o.step for n, o in optimizers.items()}, "bare rotations, dense": bare_rotations()}, 15)


def benchmark_training_step() -> dict:
    """A GPT-2 of 12 layers and width 512 on 32 x 256 tokens: forward and backward once, the optimizers beside it."""
    sizes = dict(vocab_size=50257, n_positions=256, n_embd=512, n_layer=12, n_head=8)
    config = Softmax1GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model, ids = Softmax1GPT2LMHeadModel(config), torch.randint(0, 50257, (32, 256))

    def forward_backward():
        model.zero_grad()
        for micro in ids.split(4):  # as with gradient accumulation, to fit a small machine
            (model(micro, labels=micro).loss / 8).backward()

    fb = time_together({"forward and backward": forward_backward}, repeats=3, warm_up=1)
    groups = lambda: ortho_adam_parameter_groups(model, 0.1)  # noqa: E731
    steps = time_together(
        {"AdamW foreach": torch.optim.AdamW(groups(), foreach=True).step, "OrthoAdam auto": OrthoAdam(groups()).step},
        5,
    )
    base = fb["forward and backward"]["median_ms"]
    ratio = (base + steps["OrthoAdam auto"]["median_ms"]) / (base + steps["AdamW foreach"]["median_ms"])
    return {**fb, **steps, "training step, OrthoAdam / AdamW": round(ratio, 3)}


def memory() -> dict[str, float]:
    """Optimizer state and rotations, in bytes per byte of the parameters."""
    ratios = {}
    for rotation in ("none", "hadamard", "kronecker"):
        params = parameters()
        optimizer = OrthoAdam(params, rotation=rotation)
        optimizer.step()
        tensors = [t for state in optimizer.state.values() for t in state.values()]
        rotations = [r for stack in optimizer._stacks.values() for r in stack if r is not None]
        tensors += [t for r in rotations for t in vars(r).values() if isinstance(t, torch.Tensor)]
        total = sum(t.numel() * t.element_size() for t in tensors)
        ratios[rotation] = round(total / sum(p.numel() * p.element_size() for p in params), 3)
    return ratios


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    torch.manual_seed(0)
    all_threads = torch.get_num_threads()
    step = {}
    for threads in (1, all_threads):
        torch.set_num_threads(threads)
        step[f"{threads} threads"] = benchmark_step()
    results = dict(optimizer_step=step, training_step=benchmark_training_step())
    results["state_bytes_per_parameter_byte"] = memory()
    write_results(
        out, seeds=[0], data={}, wall_seconds=time.time() - start, **results
    )  # fmt: skip
    print(out.read_text())


if __name__ == "__main__":
    main()
