# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How time and memory of each method grow with the size of its problem, and whether as its algorithm says.

python tests/benchmarks/scaling.py

A curve has the times of five sizes or so in turns, the bytes that operations hold at one time, and the exponent of a line through
the upper three sizes in log-log. Writes results/scaling.json and the plot beside it.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from memory import peak_bytes
from ortho_adam import parameters
from output import output_path
from subpt import make_model, step_of
from timing import time_together
from torch import nn

from hf_methods import CPEConfig, CPEForImageClassification, MBFConfig, OrthoAdam
from hf_methods.checkpoints import write_results
from hf_methods.cross_teaching.detections_cross_teaching import PaddedDetections, peers_of
from hf_methods.cross_teaching.rectification_cross_teaching import BOX_RULES, label_rectification
from hf_methods.mbf import MBFFeatureExtractor
from hf_methods.plotting import BLUE, GREY, ORANGE, new_figure
from hf_methods.softmax1 import softmax1_attention


FITTED = 3  # sizes that the exponent is taken from: in the small ones fixed costs rule


class Curve(NamedTuple):
    """What grows: `make(size)` gives the function to time; `time` and `memory` are the algorithm's exponents."""

    make: Callable[[int], Callable[[], object]]
    sizes: tuple[int, ...]
    time: float
    memory: float
    note: str = ""


def attention_step(attention: Callable, length: int) -> Callable[[], None]:
    """Forward and backward of causal attention on (1, 2, length, 64)."""
    inputs = [torch.randn(1, 2, length, 64, requires_grad=True) for _ in range(3)]
    return lambda: attention(*inputs).sum().backward()


def optimizer_step(cls: type, width: int, **options) -> Callable[[], None]:
    """A step on four square matrices."""
    return cls(parameters([(width, width)] * 4), **options).step


def prompt_step(num_classes: int = 40, n_ctx: int = 16) -> Callable[[], None]:
    """A training step of the prompt adapter."""
    return step_of(make_model(num_classes=num_classes, n_ctx=n_ctx), num_classes=num_classes)


def rectification(num_images: int = 16, num_boxes: int = 20, num_detectors: int = 2) -> Callable[[], object]:
    """The labels of all detectors rectified, by the rule of Faster R-CNN on VOC."""
    shape = (num_detectors, num_images, num_boxes)
    low = 400 * torch.rand(*shape[1:], 2) + 8 * torch.randn(*shape, 2)
    boxes = torch.cat([low, low + 40 + 20 * torch.rand(*shape, 2)], -1)
    own = PaddedDetections(boxes, torch.rand(shape), torch.randint(20, shape), torch.ones(shape, dtype=torch.bool))
    return lambda: label_rectification(own, peers_of(own), **BOX_RULES["crossrectify_voc"])


def features(num_layers: int = 4, side: int = 64) -> Callable[[], object]:
    """Logits and coefficient magnitudes of 8 images, in a plain convolutional network."""
    layers = [nn.Conv2d(1 if number == 0 else 16, 16, 3, padding=1) for number in range(num_layers)]
    extractor, pixels = MBFFeatureExtractor(nn.Sequential(*layers).eval(), MBFConfig()), torch.rand(8, 1, side, side)
    return torch.no_grad()(partial(extractor, pixels))


def expert_step(num_labeled: int = 8, num_experts: int = 3) -> Callable[[], None]:
    """Forward and backward of CPE with WideResNet-10-1 on labelled images and twice as many unlabelled ones."""
    config = CPEConfig(
        depth=10, widen_factor=1, num_labels=10, class_counts=list(range(100, 0, -10)), taus=tuple(range(num_experts))
    )
    model = CPEForImageClassification(config).train()
    labeled, (weak, strong) = torch.randn(num_labeled, 3, 32, 32), torch.randn(2, 2 * num_labeled, 3, 32, 32)
    labels = torch.randint(10, (num_labeled,))
    return lambda: model(labeled, labels, weak, strong, threshold=0.5).loss.backward()


softmax1_step = partial(attention_step, partial(softmax1_attention, is_causal=True))
softmax_step = partial(attention_step, partial(F.scaled_dot_product_attention, is_causal=True))
LENGTHS, WIDTHS = (256, 512, 1024, 2048, 4096), (64, 128, 256, 512, 1024)
CURVES = {
    "softmax attention (torch): sequence length": Curve(softmax_step, LENGTHS, 2, 1),
    "softmax-1 attention: sequence length": Curve(softmax1_step, LENGTHS, 2, 1),
    "AdamW (torch): width": Curve(partial(optimizer_step, torch.optim.AdamW, foreach=True), WIDTHS, 2, 2),
    "OrthoAdam, Hadamard: width": Curve(partial(optimizer_step, OrthoAdam, rotation="hadamard"), WIDTHS, 2.5, 2, "d² √d"),
    "OrthoAdam, dense: width": Curve(partial(optimizer_step, OrthoAdam, rotation="kronecker"), WIDTHS, 3, 2),
    "CPE: labelled images": Curve(expert_step, (2, 4, 8, 16, 32), 1, 1),
    "CPE: experts": Curve(partial(expert_step, 8), (1, 2, 4, 8, 16), 0, 0, "the backbone is shared"),
    "SubPT: classes": Curve(prompt_step, (10, 20, 40, 80, 160), 1, 1),
    "SubPT: context tokens": Curve(partial(prompt_step, 40), (4, 8, 16, 32, 64), 1, 1, "prompts are as long as they need"),
    "rectification: images": Curve(rectification, (8, 16, 32, 64, 128), 1, 1),
    "rectification: boxes": Curve(partial(rectification, 16), (20, 40, 80, 160, 320), 2, 2),
    "rectification: detectors": Curve(partial(rectification, 16, 20), (2, 4, 8, 16, 32), 2, 2, "all pairs"),
    "MBF: layers": Curve(features, (2, 4, 8, 16, 32), 1, 0, "no response is kept"),
    "MBF: side of the image": Curve(partial(features, 4), (32, 64, 128, 256, 512), 2, 2),
}  # fmt: skip


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """The exponent: slope of the line through the upper sizes in log-log."""
    x, y = np.log(sizes[-FITTED:]), np.log(values[-FITTED:])
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def measure(curve: Curve) -> dict:
    """Times, bytes and exponents of a curve."""
    torch.manual_seed(0)
    functions = {str(size): curve.make(size) for size in curve.sizes}
    for function in functions.values():
        function()  # tables that stay, and an optimizer's state
    memory = [peak_bytes(function) for function in functions.values()]
    times = [row["median_ms"] for row in time_together(functions, repeats=7).values()]
    return {
        "sizes": list(curve.sizes),
        "median_ms": times,
        "peak_bytes": memory,
        "time_exponent": slope(curve.sizes, times),
        "memory_exponent": slope(curve.sizes, memory),
        "expected": {"time": curve.time, "memory": curve.memory, "note": curve.note},
    }


def plot_curves(curves: dict[str, dict]):
    """Time (left axis) and memory (right axis) against size, both logarithmic, with the exponents."""
    from matplotlib.ticker import NullFormatter

    columns = 4
    figure, axes = new_figure(13, 2.6 * math.ceil(len(curves) / columns), columns, math.ceil(len(curves) / columns))
    for axis, (name, curve) in zip(axes, curves.items()):
        axis.loglog(curve["sizes"], curve["median_ms"], "o-", color=BLUE, markersize=4)
        right = axis.twinx()
        right.loglog(curve["sizes"], [size / 2**20 for size in curve["peak_bytes"]], "s--", color=ORANGE, markersize=3)
        right.spines["top"].set_visible(False)
        title, size = name.split(": ")
        axis.set_xticks(curve["sizes"], [str(value) for value in curve["sizes"]], minor=False)
        axis.set_xticks([], minor=True)
        for side in (axis, right):
            low, high = side.get_ylim()
            side.set_ylim(
                low / max(1, math.sqrt(100 * low / high)), high * max(1, math.sqrt(100 * low / high))
            )  # 2 decades
            side.yaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel=size)
        axis.set_title(
            f"{title}\ntime ^{curve['time_exponent']:.2f}, memory ^{curve['memory_exponent']:.2f}", fontsize=9
        )
        axis.tick_params(axis="y", labelcolor=BLUE)
        right.tick_params(axis="y", labelcolor=ORANGE)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    figure.supylabel("time of a call, ms (blue)", fontsize=9, color=GREY)
    figure.suptitle("memory held at one time, MB (orange)", fontsize=9, color=GREY, ha="right", x=0.99)
    return figure


def main() -> None:
    start = time.time()
    out = output_path(__file__)
    torch.set_num_threads(1)
    curves = {}
    for name, curve in CURVES.items():
        curves[name] = measure(curve)
        print(f"{name}: time ^{curves[name]['time_exponent']}, memory ^{curves[name]['memory_exponent']}", flush=True)
    write_results(out, seeds=[0], data={}, wall_seconds=time.time() - start, curves_one_thread=curves)
    plot_curves(curves).savefig(out.with_suffix(".png"))


if __name__ == "__main__":
    main()
