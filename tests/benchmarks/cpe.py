# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""CPE against FixMatch on the same network, and its parts against what they replace: time, and memory of a step.

python tests/benchmarks/cpe.py
"""

import multiprocessing
import resource
import time
from functools import partial

import torch
from output import output_path
from timing import time_together
from torch import nn

from hf_methods.checkpoints import write_results
from hf_methods.cpe import ClasswiseBatchNorm, CPEConfig, CPEForImageClassification
from hf_methods.cpe.augmentation_cpe import (
    Augmentation,
    augment_one_by_one,
    strong_augment,
    strong_augment_pil,
    weak_augment,
    weak_augment_pil,
)
from hf_methods.cpe.data_cpe import TwoStreamBatchSampler
from hf_methods.cpe.diagnostics_cpe import PseudoLabelCounter
from hf_methods.cpe.ema_cpe import ParameterEMA


COUNTS = [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]  # CIFAR-10-LT
FEATURES = (320, 128, 8, 8)  # of a step of the official run
LABELED, UNLABELED = 16, 32  # a quarter of the official batch, so that a round takes seconds
SETTINGS = {
    "FixMatch": {"taus": (0,), "use_cbn": False},
    "CPE": {},
}


def make_model(name: str) -> CPEForImageClassification:
    """WideResNet-28-2 with the heads of the method."""
    torch.manual_seed(0)
    return CPEForImageClassification(CPEConfig(num_labels=10, class_counts=COUNTS, **SETTINGS[name]))


class Step:
    """A training step on random images: forward, loss, backward and SGD, as the trainer does them."""

    def __init__(self, name: str, num_labeled: int = LABELED, num_unlabeled: int = UNLABELED):
        self.model = make_model(name).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.03, momentum=0.9, nesterov=True)
        self.images = torch.randn(num_labeled + 2 * num_unlabeled, 3, 32, 32)
        self.labels = torch.randint(10, (num_labeled,))
        self.sizes = (num_labeled, num_unlabeled, num_unlabeled)
        self.reduction = "batch" if name == "FixMatch" else "selected"

    def __call__(self) -> None:
        labeled, weak, strong = self.images.split(self.sizes)
        self.output = self.model(labeled, self.labels, weak, strong, threshold=0.5, unsup_reduction=self.reduction)
        self.output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def three_batch_norms(features: torch.Tensor, norms: nn.ModuleList) -> None:
    """Classwise batch normalisation as the official code computes it: three maps, then pooling."""
    pooled = [norm(features).mean((2, 3)) for norm in norms]
    sum(branch.square().sum() for branch in pooled).backward()
    features.grad = None


def fused(features: torch.Tensor, norm: ClasswiseBatchNorm) -> None:
    """Ours: one pass of statistics, three affine branches of the pooled features."""
    norm.branches(norm(features)).square().sum().backward()
    features.grad = None


def benchmark_normalization() -> dict:
    """Forward and backward of classwise batch normalisation and of its loss."""
    features = torch.randn(FEATURES, requires_grad=True)
    norms = nn.ModuleList(nn.BatchNorm2d(FEATURES[1]) for _ in range(3))
    functions = {
        "three BatchNorm2d": partial(three_batch_norms, features, norms),
        "ClasswiseBatchNorm": partial(fused, features, ClasswiseBatchNorm(FEATURES[1], 3)),
    }
    return time_together(functions, repeats=15)


def benchmark_augmentation(num_images: int = 128) -> dict:
    """A weak and a strong view of each image."""
    settings = Augmentation()
    images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8)
    uniforms = settings.draw(num_images, (0,))

    def pil() -> None:
        augment_one_by_one(weak_augment_pil, images, uniforms, settings)
        augment_one_by_one(strong_augment_pil, images, uniforms, settings)

    def batched() -> None:
        weak_augment(images, uniforms, settings)
        strong_augment(images, uniforms, settings)

    return time_together({"PIL, one by one": pil, "batched": batched}, repeats=7)


def benchmark_bookkeeping() -> dict:
    """What the trainer does beside the step: averages, diagnostics and the choice of the next images."""
    step = Step("CPE")
    step()
    ema, counter = ParameterEMA(step.model, 0.999), PseudoLabelCounter(3, 10, torch.device("cpu"))
    output = step.output
    true_labels = torch.randint(10, (UNLABELED,))
    batches = iter(TwoStreamBatchSampler(3720, 7443, LABELED, UNLABELED // LABELED, num_batches=10**6))

    def bookkeeping() -> None:
        ema.update()
        counter.update(
            output.supervised_loss,
            output.unsupervised_loss,
            output.pseudo_labels,
            output.pseudo_label_mask,
            true_labels,
        )
        next(batches)

    return time_together({"step": step, "averages, diagnostics, sampling": bookkeeping}, repeats=7)


@torch.no_grad()
def benchmark_inference() -> dict:
    """64 images: a classifier with a single head, CPE as trained, and CPE folded to one head."""
    images = torch.randn(64, 3, 32, 32)
    models = {
        "single head": make_model("FixMatch").eval(),
        "CPE folded, one expert": make_model("CPE").eval().fold_for_inference(keep_experts=False),
        "CPE folded, all experts": make_model("CPE").eval().fold_for_inference(),
        "CPE": make_model("CPE").eval(),
    }
    return time_together({name: partial(model, images) for name, model in models.items()}, repeats=11)


def peak_memory(name: str) -> float:
    """What a step adds to the peak memory of a process of its own, MB."""
    torch.set_num_threads(1)
    Step(name, 2, 2)()  # the libraries' own memory
    step = Step(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    torch.manual_seed(0)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name,)) for name in SETTINGS}
    torch.set_num_threads(1)
    times = {
        "normalization": benchmark_normalization(),
        "augmentation": benchmark_augmentation(),
        "training_step": time_together({name: Step(name) for name in SETTINGS}, repeats=9),
        "bookkeeping": benchmark_bookkeeping(),
        "inference": benchmark_inference(),
    }
    write_results(
        out, seeds=[0], data={}, wall_seconds=time.time() - start, time_one_thread=times, peak_memory_mb=memory,
    )  # fmt: skip
    print(out.read_text())


if __name__ == "__main__":
    main()
