# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Training steps and inference compiled, in bfloat16 and with channels last, against the plain ones.

python tests/benchmarks/variants.py

Networks are those of published recipes, batches are smaller (see trainers.py). Compiled with inductor; "graphs" counts those of a
training step, and "graph_breaks" where Python had to go on in between. Compiling itself is not in the times.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from output import output_path
from timing import time_together
from torch._dynamo.utils import counters
from trainers import TRAINERS, make_trainer
from training_steps import LABELS, synchronize

from hf_methods.checkpoints import write_results


OF_IMAGES = ("cpe", "cross_teaching", "mbf")  # whose training passes convolutions
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "compiled": {"torch_compile": True}, "bfloat16": {"bf16": True}}
CHANNELS_LAST = "channels last"


def make_step(method: str, folder: Path, variant: str) -> Callable[[], None]:
    """A training step on the same batch, as the trainer does it: loss, backward pass, optimizer."""
    trainer = make_trainer(method, folder, 2, **OPTIONS.get(variant, {}))
    if variant == CHANNELS_LAST:
        trainer.model.to(memory_format=torch.channels_last)
    trainer.train()  # makes optimizer and graphs
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> None:
        trainer.training_step(trainer.model_wrapped, dict(batch))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        synchronize()

    return step


def benchmark_training(method: str, folder: Path) -> tuple[dict, dict[str, int]]:
    """Times of the variants, and the graphs of the compiled step."""
    variants = [*OPTIONS, *([CHANNELS_LAST] if method in OF_IMAGES else [])]
    torch._dynamo.reset()
    counters.clear()
    steps = {variant: make_step(method, folder / variant, variant) for variant in variants}
    graphs = {
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }
    return time_together(steps, repeats=5, warm_up=1), graphs


def make_model(method: str, folder: Path) -> tuple[Any, torch.Tensor]:
    """The model that answers a user, and a batch for it."""
    model = make_trainer(method, folder, 1).model.eval()
    if method == "softmax1":
        return model, torch.randint(50257, (4, 256))
    if method == "cpe":
        return model.fold_for_inference(), torch.randn(64, 3, 32, 32)
    if method == "subpt":
        return model.build_classifier(list(model.class_names)), torch.randn(8, 3, 224, 224)
    if method == "cross_teaching":
        return model.for_inference(), torch.randn(2, 3, 300, 300)
    return model, torch.randn(128, 3, 32, 32)


@torch.no_grad()
def benchmark_inference(method: str, folder: Path) -> dict:
    """Times of the variants of a forward pass."""
    torch._dynamo.reset()
    model, inputs = make_model(method, folder)
    device = next(model.parameters()).device  # a trainer has put the model on the GPU, where there is one
    inputs = inputs.to(device)

    def answer(model, inputs) -> None:
        model(inputs)
        synchronize()

    functions = {"plain": partial(answer, model, inputs), "compiled": partial(answer, torch.compile(model), inputs)}
    functions["bfloat16"] = torch.autocast(device.type, torch.bfloat16)(functions["plain"])
    if method != "softmax1":
        other = make_model(method, folder)[0]
        other.to(memory_format=torch.channels_last)
        functions[CHANNELS_LAST] = partial(answer, other, inputs.contiguous(memory_format=torch.channels_last))
    return time_together(functions, repeats=7, warm_up=2)


def main() -> None:
    start = time.time()
    out = output_path(__file__)
    torch.set_num_threads(1)
    training, inference, graphs = {}, {}, {}
    for method in TRAINERS:
        label = LABELS[method]
        with tempfile.TemporaryDirectory() as folder:
            training[label], graphs[label] = benchmark_training(method, Path(folder))
            inference[label] = benchmark_inference(method, Path(folder))
        print(label, graphs[label], training[label], inference[label], flush=True)
    write_results(
        out, seeds=[0], data={}, wall_seconds=time.time() - start, training_one_thread=training,
        inference_one_thread=inference, graphs_of_a_compiled_step=graphs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
