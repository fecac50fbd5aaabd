# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""`hf-methods demo cross_teaching`, and the committed checkpoint."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForObjectDetection, pipeline

from hf_methods.cross_teaching import demo_cross_teaching
from hf_methods.cross_teaching.demo_cross_teaching import HEADER, plot_rules, run_demo
from hf_methods.cross_teaching.evaluation_cross_teaching import average_precisions, detect
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes


ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "model_cards" / "ct-digit-scenes"


def test_the_committed_checkpoint_is_as_good_as_its_results_say():
    results = json.loads((CHECKPOINT / "results.json").read_text())
    scenes = make_digit_scenes("test", 100, seed=results["seeds"][0])  # the first third of its test scenes
    model = AutoModelForObjectDetection.from_pretrained(CHECKPOINT)
    named = {"0": model.detectors[0], "1": model.detectors[1]}
    found, truths, _ = detect(named, scenes, demo_cross_teaching.plain_views(model), batch_size=50)
    measured = results["runs"][results["arm"]][0]
    for number, rows in found.items():
        score = average_precisions(rows, truths, 5)["map_50"]
        assert score == pytest.approx(measured[f"teacher_{number}_map_50"], abs=0.08)


def test_both_pipelines_find_digits_with_the_committed_checkpoint():
    scenes = make_digit_scenes("test", 20, seed=7)
    stock = pipeline("object-detection", model=str(CHECKPOINT))
    ours = pipeline("cross-teaching-object-detection", model=str(CHECKPOINT), trust_remote_code=True)
    images = [demo_cross_teaching.open_image(row["image"]) for row in scenes]
    for image in images:
        first = [{k: v for k, v in r.items() if k != "detector"} for r in ours(image, detector="A")]
        assert first == stock(image)
    assert sum(len(ours(image)) for image in images) >= 5


def test_the_plot_has_two_bars_a_rule():
    (axis,) = plot_rules([["a", "10", "50.0", "8", "60.0", "1.0"], ["b", "10", "50.0", "12", "40.0", "1.0"]]).axes
    assert sorted(bar.get_height() for bar in axis.patches) == [40, 50, 50, 60]


@pytest.mark.slow
def test_the_demo_measures_every_rule_and_trains_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo_cross_teaching, "NUM_SCENES", 40)
    table = run_demo(tmp_path, steps=3)
    report = (tmp_path / "report.html").read_text()
    for rule in ("ct_v1", "crossrectify_voc", "crossrectify_coco", "ssd_anchor"):
        assert re.search(rf"{rule}\s+\d+\s+[\d.]+\s+\d+\s+[\d.]+\s+[\d.]+", table) and rule in report
    assert all(name in table for name in HEADER) and table.splitlines()[-2].split()[0] == "3"
    assert report.count("<img") == 2 and 'src="http' not in report


def test_without_the_checkpoint_the_demo_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        run_demo(tmp_path, steps=2)
