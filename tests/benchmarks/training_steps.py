# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What takes the time in a training step of each method, by part of the step and kind of operation; and how fast it is.

python tests/benchmarks/training_steps.py

The trainers run as a user's do, on a GPU if there is one; the networks are those of published recipes, the batches smaller (see
trainers.py). Times of parts are exclusive: what a part calls of another part counts there. Speeds are absolute, of this
machine; how much of it is used is told by the speed of one large matrix product in the same run. Writes
results/training_steps.json and the plot beside it.
"""

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from memory import peak_bytes
from output import output_path
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from trainers import TRAINERS, make_trainer
from transformers import Trainer, TrainerCallback

from hf_methods.checkpoints import write_results
from hf_methods.cross_teaching import anchor_step_cross_teaching
from hf_methods.plotting import new_figure


WARM_UP, STEPS = 2, 5
EXAMPLES = "tokens (of the first) or images a second"
LABELS = {
    "softmax1": "Softmax-1 + OrthoAdam",
    "cpe": "CPE",
    "subpt": "SubPT + NFL",
    "cross_teaching": "Cross Teaching",
    "mbf": "MBF's classifier",
}
PARTS = ("batches", "views", "forward", "teachers", "rectification", "backward", "optimizer", "averages", "rest")
KINDS = {  # of operations, by their names in torch; the first that fits
    "convolutions": r"conv",
    "matrix products": r"::(addmm|mm|bmm|baddbmm|linear|matmul|_addmm_activation)\b",
    "attention": r"scaled_dot_product",
    "normalisation": r"(batch|layer|rms|group)_norm",
    "the optimizer's": r"_foreach|_fused|Optimizer\.",
    "copies and indices": r"::(copy_|index|gather|scatter|cat|stack|clone|embedding|select|slice|fill|zero_|pad|roll|sort|topk)",
}
OTHERS = "element by element, and others"


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Parts(TrainerCallback):
    """Seconds of the parts of a step, without those of parts that they call; counted behind the warm-up."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.started: list[float] = []  # of the parts that run now; a call that ends moves the one around it on
        self.wall = 0.0

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count the calls of `owner.name` as `part`."""
        function: Callable = getattr(owner, name)

        @wraps(function)
        def watched(*args, **kwargs):
            synchronize()
            start = time.perf_counter()
            self.started.append(start)
            try:
                return function(*args, **kwargs)
            finally:
                synchronize()
                end = time.perf_counter()
                self.seconds[part] += end - self.started.pop()
                if self.started:
                    self.started[-1] += end - start

        setattr(owner, name, watched)

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.watch(optimizer, "step", "optimizer")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_UP:
            self.seconds.clear()
            self.wall = -time.perf_counter()
        elif state.global_step == WARM_UP + STEPS:
            self.wall += time.perf_counter()


def watch_parts(trainer: Trainer) -> Parts:
    """The parts of the trainer's steps: those of any `Trainer`, and the methods' own."""
    parts = Parts()
    parts.watch(trainer, "get_batch_samples", "batches")
    parts.watch(trainer, "_prepare_inputs", "views")
    parts.watch(trainer, "compute_loss", "forward")
    parts.watch(trainer.accelerator, "backward", "backward")
    if getattr(trainer, "ema", None) is not None:
        parts.watch(trainer.ema, "update", "averages")
    if hasattr(trainer.model, "teachers"):
        parts.watch(trainer.model, "update_teachers", "averages")
        for teacher in trainer.model.teachers:
            for name in ("extract_features", "ssd_heads"):
                parts.watch(teacher, name, "teachers")
    trainer.callback_handler.callbacks.insert(0, parts)  # so that each step has one update of the teachers behind it
    return parts


def measure_parts(method: str) -> tuple[float, dict[str, float | None]]:
    """Milliseconds of a step, and its parts in per cent; None for those that the method has not."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(method, Path(folder), WARM_UP + STEPS)
        parts = watch_parts(trainer)
        rectify = anchor_step_cross_teaching.rectify_anchors
        parts.watch(anchor_step_cross_teaching, "rectify_anchors", "rectification")
        trainer.train()
        anchor_step_cross_teaching.rectify_anchors = rectify
    parts.seconds["rest"] = parts.wall - sum(parts.seconds.values())
    of_parts = {name: parts.seconds[name] / parts.wall if name in parts.seconds else None for name in PARTS}
    shares = {name: None if share is None else round(100 * share, 2) for name, share in of_parts.items()}
    return round(1000 * parts.wall / STEPS, 1), shares


def product_speed(side: int = 2048) -> float:
    """Operations a second of a matrix product in float32, the best of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2, side, side, device=device)
    seconds = []
    for _ in range(6):
        synchronize()
        start = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def measure_speed(method: str, milliseconds: float, product: float) -> dict[str, float]:
    """Absolute figures of a step that takes `milliseconds`, on a machine whose matrix products have the speed `product`."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(method, Path(folder), WARM_UP)
        trainer.train()
        batch = next(iter(trainer.get_train_dataloader()))
        step = partial(trainer.training_step, trainer.model_wrapped, batch)
        with FlopCounterMode(display=False) as counter:
            step()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            step()
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = peak_bytes(step)
    examples = trainer.args.per_device_train_batch_size * (trainer.args.mu + 1 if method == "cpe" else 1)
    examples *= 256 if method == "softmax1" else 4 if method == "cross_teaching" else 1
    flops = counter.get_total_flops()
    return {
        EXAMPLES: examples / milliseconds * 1000,
        "TFLOP a step": flops / 1e12,
        "GFLOP a second": flops / milliseconds / 1e6,
        "of a large matrix product's speed, %": 100 * flops / milliseconds * 1000 / product,
        "activations and gradients at one time, MB": peak / 2**20,
    }


def kind_of(operation: str) -> str:
    """Which of `KINDS` an operation is."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, operation)), OTHERS)


def measure_kinds(method: str) -> dict[str, float]:
    """Time of the CPU that operations take by themselves, by kind, in per cent of all operations' time."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(method, Path(folder), WARM_UP)
        trainer.train()
        trainer = make_trainer(method, Path(folder), 2)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            trainer.train()
    totals: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        totals[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {kind: round(100 * totals[kind] / whole, 1) for kind in [*KINDS, OTHERS]}


def plot_parts(parts: dict[str, dict[str, float | None]]):
    """One bar a method, its parts in the order of a step."""
    import matplotlib

    figure, (axis,) = new_figure(9, 3.2)
    colours = matplotlib.colormaps["tab10"].colors
    left = {name: 0.0 for name in parts}
    for colour, part in zip(colours, PARTS):
        widths = [shares[part] or 0.0 for shares in parts.values()]
        axis.barh(list(parts), widths, left=list(left.values()), color=colour, label=part)
        left = {name: left[name] + width for name, width in zip(parts, widths, strict=True)}
    axis.invert_yaxis()
    axis.set(xlabel="share of a training step, %", xlim=(0, 100))
    axis.legend(ncols=len(PARTS) // 2 + 1, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def main() -> None:
    start = time.time()
    out = output_path(__file__)
    torch.set_num_threads(1)
    product = product_speed()
    milliseconds, parts, kinds, speeds = {}, {}, {}, {}
    for method in TRAINERS:
        label = LABELS[method]
        milliseconds[label], parts[label] = measure_parts(method)
        kinds[label] = measure_kinds(method)
        speeds[label] = measure_speed(method, milliseconds[label], product)
        print(label, milliseconds[label], parts[label], kinds[label], flush=True)
    write_results(
        out, seeds=[0], data={}, wall_seconds=time.time() - start, step_ms_one_thread=milliseconds, parts_pct=parts,
        kinds_pct=kinds, product_gflops=product / 1e9, speed_one_thread=speeds,
    )  # fmt: skip
    plot_parts(parts).savefig(out.with_suffix(".png"))


if __name__ == "__main__":
    main()
