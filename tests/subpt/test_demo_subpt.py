# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""`hf-methods demo subpt`, and the committed checkpoint."""

import json
from pathlib import Path

import pytest
import yaml
from checkpoint_subpt import RESULTS
from transformers import pipeline

from hf_methods.subpt import PromptedZeroShotPipeline, base_novel_split
from hf_methods.subpt.demo_subpt import ARMS, FIGURES, GRID, plot_curves, run_demo
from hf_methods.subpt.emoji_subpt import load_emoji
from hf_methods.subpt.pipeline_subpt import TASK


ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "model_cards" / "clip-emoji-subpt"


def test_the_committed_checkpoint_is_as_good_as_its_results_say():
    results = json.loads((CHECKPOINT / "results.json").read_text())
    test = load_emoji("test")
    names = test.features["label"].names
    classifier = pipeline(TASK, model=str(CHECKPOINT), pipeline_class=PromptedZeroShotPipeline, batch_size=64)
    measured = results["runs"][results["arm"]][0]  # of the seed whose weights these are
    for group, half in zip(("base", "novel"), base_novel_split(names), strict=True):
        rows = test.select([k for k, label in enumerate(test["label"]) if names[label] in half])
        answers = classifier([image.convert("RGB") for image in rows["image"]], candidate_labels=half)
        right = [records[0]["label"] == names[label] for records, label in zip(answers, rows["label"], strict=True)]
        assert 100 * sum(right) / len(right) == pytest.approx(measured[group], abs=1)  # weights in half precision


def test_the_arms_of_the_demo_are_in_the_committed_grid():
    results = json.loads((CHECKPOINT / "results.json").read_text())
    assert set(ARMS.values()) <= set(results["summary_mean_and_sd"])


def test_the_arms_of_the_demo_are_arms_of_the_recipe():
    arms = yaml.safe_load((ROOT / GRID).read_text())["arms"]
    assert set(ARMS.values()) <= set(arms) and arms["CoOp"]["subspace_rank"] == 0


def test_the_plot_has_a_line_for_each_arm_and_group():
    rows = [{"epoch": 1, "base": 20.0, "novel": 28.0}, {"epoch": 2, "base": 22.0, "novel": 25.0}]
    figure = plot_curves(dict.fromkeys(ARMS, rows), RESULTS["summary_mean_and_sd"]["zero-shot CLIP"])
    for axis, values in zip(figure.axes, ([20, 22], [28, 25]), strict=True):
        assert [list(line.get_ydata()) for line in axis.lines[:2]] == [values, values] and len(axis.lines) == 3


@pytest.mark.slow
def test_the_demo_tunes_the_arms_and_shows_the_grids(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = run_demo(tmp_path, steps=2)
    report = (tmp_path / "report.html").read_text()
    for arm in ARMS:
        assert f"{arm}, now" in table and f"{arm}, grid" in table
    assert all(label in table for label in FIGURES.values()) and "trained 2 x 11 epochs" in table
    assert report.count("<img") == 2 and 'src="http' not in report


def test_without_the_checkpoint_the_demo_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        run_demo(tmp_path, steps=2)
