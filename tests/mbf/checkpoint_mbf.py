# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint with the layout of those that training/mbf/ writes: a random classifier, and a detector of noise on it."""

import json
from pathlib import Path

import numpy as np
import torch
from models_mbf import make_classifier
from PIL import Image
from transformers import ViTImageProcessor

from hf_methods.mbf import AdversarialDetectionPipeline, MBFConfig, MBFDetector
from hf_methods.mbf.recipe_mbf import ARMS, summarize_runs
from hf_methods.metrics import DETECTION_METRICS


GENERATOR = np.random.default_rng(0)
IMAGES = [Image.fromarray(GENERATOR.integers(0, 256, (28, 28), dtype=np.uint8)) for _ in range(20)]
PROCESSOR = dict(size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)
ATTACKS = {"fgsm": {"eps": 0.2}, "pgd": {"eps": 0.15, "eps_step": 0.02, "max_iter": 15}, "square": {"eps": 0.2}}
TRAIN = {
    "images": "mnist5k", "other_images": "digits28", "split_sizes": [0.8, 0.06, 0.06, 0.08], "architecture": "resnet",
    "attacks": ATTACKS, "num_folds": 3, "svm_c": [1.0, 10.0], "svm_gamma": [1.0], "max_train_rows": 1200,
    "adaptive_eps": 0.15, "adaptive_steps": 40, "adaptive_images": 60,
}  # fmt: skip


def make_detector(family: str = "resnet", **config) -> AdversarialDetectionPipeline:
    """A pipeline whose detector was trained to tell noise, which takes a second."""
    processor = ViTImageProcessor(**PROCESSOR)
    pixels = processor(IMAGES, return_tensors="pt")["pixel_values"]
    noisy = pixels + 0.5 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    rows = [
        {"pixel_values": image, "is_adversarial": label, "source": source}
        for label, images in enumerate((pixels, noisy))
        for source, image in enumerate(images)
    ]
    detector = MBFDetector(MBFConfig(**config), make_classifier(family)).fit(rows, c=[1.0], gamma=[1.0])
    return AdversarialDetectionPipeline(model=detector, image_processor=processor)


def make_run() -> dict:
    """Figures of a run of the recipe, made up."""
    generator = np.random.default_rng(1)

    def metrics():
        triples = {name: sorted(generator.uniform(0.5, 1, 3).tolist()) for name in DETECTION_METRICS}
        return {name: [value, low, high] for name, (low, value, high) in triples.items()}

    records = []
    for detector in ARMS:
        for attack in ATTACKS:
            others = [name for name in ATTACKS if name != attack]
            choices = [("known", [attack]), *(("transfer", [name]) for name in others)]
            for setting, train in [*choices, ("leave_one_out", others), ("other_source", [attack])]:
                fpr = {"clean": 0.05, "gaussian": generator.uniform(), "uniform": generator.uniform()}
                record = {"detector": detector, "setting": setting, "train": train, "test": attack}
                records.append({**record, "metrics": metrics(), "fpr": fpr})
    rates = {"fooled": 0.95, "detected": 0.125, "evaded": 0.83125}
    return {
        "counts": {"test": {attack: {"tried": 391, "adversarial": 384} for attack in ATTACKS}},
        "accuracy": 0.9725,
        "published": {attack: {**metrics(), "fpr": {"clean": 0.04}} for attack in ATTACKS},
        "records": records,
        "adaptive": {"adaptive": rates, "feature_matching": {**rates, "evaded": 0.0, "detected": None}},
    }


def make_checkpoint(folder: Path, **config) -> AdversarialDetectionPipeline:
    """Write detector, classifier, image processor, code and results.json into `folder`."""
    detect = make_detector(**config)
    detect.save_pretrained(folder)
    results = {
        "command": "python training/mbf/grid.py --config training/mbf/grid_resnet.yaml",
        "environment": {"torch": "2.14.1", "transformers": "5.24.0", "machine": "Linux x86_64, 2 cores, CPU"},
        "seeds": [0],
        "data": {"detector_test": "0123456789abcdef"},
        "wall_seconds": 600.0,
        "settings": {"split": "detector_test", "train": TRAIN},
        **summarize_runs([make_run()]),
    }
    (folder / "results.json").write_text(json.dumps(results))
    return detect
