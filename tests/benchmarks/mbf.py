# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What MBF's features cost beside the plain forward pass and beside LID's, in time and memory; the decision function.

python tests/benchmarks/mbf.py
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from memory import peak_bytes
from output import output_path
from sklearn.svm import SVC
from timing import time_together
from torch import nn
from transformers import AutoModelForImageClassification

from hf_methods.checkpoints import write_results
from hf_methods.mbf import MBFConfig, MBFFeatureExtractor
from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.baselines_mbf import lid_features, moment_features
from hf_methods.mbf.data_mbf import load_images
from hf_methods.mbf.recipe_mbf import ClassifierArguments, build_classifier
from hf_methods.mbf.svm_mbf import svm_decision


CHECKPOINT = Path(__file__).parents[2] / "model_cards" / "mbf-mnist5k"
BATCH = 32
SETTINGS = {  # of the features; the first is the checkpoint's
    "12 channel groups": {"num_coefficients": 1, "channel_groups": 12, "center": None},
    "12 channel groups, 1024 responses a layer": {
        "num_coefficients": 1,
        "channel_groups": 12,
        "center": None,
        "max_responses": 1024,
    },
    "whole layers": {"num_coefficients": 2},
    "whole layers, 4096 responses": {"num_coefficients": 2, "max_responses": 4096},
    "whole layers, 1024 responses": {"num_coefficients": 2, "max_responses": 1024},
    "whole layers, 512 responses": {"num_coefficients": 2, "max_responses": 512},
}


def make_networks() -> dict[str, tuple[nn.Module, dict]]:
    """The offline networks, and the layers that are measured."""
    torch.manual_seed(0)
    vit = build_classifier(ClassifierArguments(architecture="vit", hidden_size=64), load_images("mnist5k"))[0]
    resnet = AutoModelForImageClassification.from_pretrained(CHECKPOINT, subfolder="classifier")
    return {"resnet": (resnet.eval(), {"layers": "*convolution"}), "vit": (vit.eval(), {})}


def make_efficientnet() -> tuple[nn.Module, dict]:
    """EfficientNet-Lite0 for photos; its weights, which don't change the time, are random."""
    return timm.create_model("tf_efficientnet_lite0").eval(), {}


@torch.no_grad()
def benchmark_features(model: nn.Module, layers: dict, image_shape=(1, 28, 28), repeats: int = 15) -> dict:
    """A batch of images: the forward pass alone, and with features."""
    pixels = torch.rand(BATCH, *image_shape) * 2 - 1
    extractors = {name: MBFFeatureExtractor(model, MBFConfig(**layers, **own)) for name, own in SETTINGS.items()}
    return time_together(
        {"plain forward": partial(model, pixels), **{name: partial(e, pixels) for name, e in extractors.items()}},
        repeats=repeats,
    )


@torch.no_grad()
def benchmark_baselines(model: nn.Module, layers: dict) -> dict:
    """Features of 100 images, LID's among 100 clean ones as in its paper, on the same layers."""
    classifier = PixelClassifier(model, [0.5], [0.5])
    images = torch.randint(256, (200, 1, 28, 28), dtype=torch.uint8)
    extractor = MBFFeatureExtractor(model, MBFConfig(**layers, **SETTINGS["12 channel groups"]))
    own, clean = images[:100], images[100:]
    return time_together(
        {
            "MBF": lambda: extractor(classifier.pixel_values(own)),
            "LID": lambda: lid_features(classifier, own, clean, extractor.layers),
            "moments": lambda: moment_features(classifier, own, extractor.layers, batch_size=100),
        },
        repeats=7,
    )


def benchmark_decision(num_vectors: int = 500, num_rows: int = 10_000, num_features: int = 72) -> dict:
    """The decision function in torch and in scikit-learn, float64."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(num_vectors, num_features)), generator.integers(0, 2, num_vectors)
    svm = SVC(C=10, gamma=1 / num_features).fit(x, y)
    rows = generator.normal(size=(num_rows, num_features))
    arrays = (svm.support_vectors_, svm.dual_coef_[0], svm.intercept_[0])
    tensors = [torch.as_tensor(array) for array in arrays]
    difference = svm_decision(torch.tensor(rows), *tensors, 1 / num_features).numpy() - svm.decision_function(rows)
    times = time_together(
        {
            "scikit-learn": lambda: svm.decision_function(rows),
            "torch": lambda: svm_decision(torch.tensor(rows), *tensors, 1 / num_features),
        },
        repeats=5,
    )
    return {**times, "support_vectors": len(tensors[0]), "largest_difference": float(abs(difference).max())}


class Wide(nn.Sequential):
    """Four convolutions that keep the image's size: each layer has 16 responses a pixel."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)))


@torch.inference_mode()
def benchmark_memory(side: int) -> dict[str, float]:
    """MB that a pass over 8 images holds at one time, and what the responses of one layer take."""
    model, pixels = Wide().eval(), torch.rand(8, 1, side, side)
    functions = {"plain forward": model}
    for name in ("whole layers", "whole layers, 1024 responses"):
        functions[name] = MBFFeatureExtractor(model, MBFConfig(**SETTINGS[name]))
        functions[name](pixels[:1])  # the table of angles, which stays
    sizes = {name: peak_bytes(partial(function, pixels)) for name, function in functions.items()}
    return {"one layer's responses": 8 * 16 * side**2 * 4 / 2**20} | {n: round(s / 2**20, 2) for n, s in sizes.items()}


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = make_networks()
    features = {name: benchmark_features(*network) for name, network in networks.items()}
    features["efficientnet-lite0"] = benchmark_features(*make_efficientnet(), image_shape=(3, 224, 224), repeats=5)
    results = {
        "features_batch_32_one_thread": features,
        "features_100_images_one_thread": {name: benchmark_baselines(*each) for name, each in networks.items()},
        "decision_10000_rows_one_thread": benchmark_decision(),
        "peak_memory_mb": {f"{side} x {side}": benchmark_memory(side) for side in (128, 256)},
    }
    write_results(out, seeds=[0], data={}, wall_seconds=time.time() - start, **results)
    print(out.read_text())


if __name__ == "__main__":
    main()
