# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the recipe reads and writes, and the grid's summary of it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hf_methods import CrossTeachingConfig, CrossTeachingModel, TorchvisionDetectorConfig
from hf_methods.cross_teaching.evaluation_cross_teaching import pseudo_label_figures
from hf_methods.cross_teaching.recipe_cross_teaching import DataArguments, ModelArguments, build_model, load_data
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def grid():
    spec = importlib.util.spec_from_file_location(
        "grid_cross_teaching", ROOT / "training" / "cross_teaching" / "grid.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(detector):
    return next(detector.parameters())


def test_a_run_a_published_model_and_detectors_can_be_gone_on_from(tmp_path):
    detector = TorchvisionDetectorConfig(architecture="ssd_tiny", num_labels=2)
    model = CrossTeachingModel(CrossTeachingConfig(detector=detector))
    with torch.no_grad():
        for teacher in model.teachers:
            weights(teacher).add_(1)
    model.save_pretrained(tmp_path / "run")
    model.for_inference().save_pretrained(tmp_path / "published")
    for number in range(2):
        model.export_detector(number, ema=False).save_pretrained(tmp_path / str(number))
    cases = {"run": model.students, "published": model.teachers, "0 1": model.students}
    for names, expected in cases.items():
        checkpoints = [str(tmp_path / name) for name in names.split()]
        built = build_model(ModelArguments(checkpoints=checkpoints, arm="self"), ["a", "b"])
        assert built.config.arm == "self" and built.config.num_detectors == 2
        for group in (built.students, built.teachers):
            assert all(torch.equal(weights(own), weights(other)) for own, other in zip(group, expected))


def test_precision_is_of_all_labels_together():
    history = [
        {"loss": 1.0},
        {"right_own_0": 1, "used_own_0": 2, "right_0": 2, "used_0": 2, "changed_0": 0.5, "precision_0": 1.0},
        {"right_own_0": 3, "used_own_0": 8, "right_0": 3, "used_0": 6, "right_own_1": 5, "used_own_1": 10,
         "right_1": 9, "used_1": 12, "changed_0": 0.25, "changed_1": 0.0},
    ]  # fmt: skip
    assert pseudo_label_figures(history) == {
        "precision_own": 9 / 20, "precision": 14 / 20, "used_own": 20, "used": 20, "changed": 0.25,
    }  # fmt: skip
    assert pseudo_label_figures([{"loss": 1.0}]) == {}


def rows(*figures):
    names = ("map_50", "precision_own", "precision", "used_own", "changed")
    return [dict(zip(names, figure)) for figure in figures]


def test_the_grid_compares_set_by_set(grid):
    runs = {
        "supervised": [{"map_50": 0.5}, {"map_50": 0.7}],
        "self-labelling": rows((0.6, 0.7, 0.7, 100, 0.0), (0.8, 0.6, 0.6, 100, 0.0)),
        "Cross Teaching": rows((0.58, 0.8, 0.79, 90, 0.1), (0.7, 0.5, 0.6, 80, 0.1)),
    }
    found = grid.compare(runs)
    assert found["difference_map_50_points"]["Cross Teaching - supervised"] == pytest.approx([8, 0])
    assert found["difference_map_50_points"]["Cross Teaching - self-labelling"] == pytest.approx([-2, -10])
    assert found["difference_mean_and_sd"]["Cross Teaching - supervised"] == pytest.approx([4, 32**0.5])
    assert found["effect_of_rectification_on_precision_points"]["Cross Teaching"] == pytest.approx([-1, 10])
    assert list(found["expected"].values()) == [False, True, False, True, True]


def test_the_plot_has_every_set_of_every_arm(grid):
    runs = {"supervised": [{"map_50": 0.5}, {"map_50": 0.7}],
            "Cross Teaching": rows((0.58, 0.8, 0.79, 90, 0.1), (0.7, 0.5, 0.6, 80, 0.1))}  # fmt: skip
    scores, labels = grid.plot_summary({"runs": runs}).axes
    points = [value for line in scores.lines if line.get_marker() == "o" for value in line.get_xdata()]
    assert points == pytest.approx([50, 70, 58, 70])
    points = [value for line in labels.lines for value in line.get_xdata()]
    assert points == pytest.approx([80, 50, 79, 60])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(data_format="yolo"), "`data_format` must be one of scenes, imagefolder, coco, voc, got 'yolo'"),
        (dict(data_format="voc"), "`labeled` and `evaluation` must be given"),
        (dict(data_format="coco", labeled="a", evaluation="b"), "`labeled_images` and `evaluation_images`"),
        (dict(data_format="scenes", num_scenes=[1, 2]), r"three positive numbers, got \[1, 2\]"),
    ],
)
def test_bad_data_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**options)


def test_the_recipes_data_of_a_folder_split_by_percent(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        lines = []
        for row in make_digit_scenes("labeled" if name == "train" else "test", 10):
            (tmp_path / name / f"{row['image_id']}.png").write_bytes(row["image"]["bytes"])
            objects = {"bbox": row["objects"]["bbox"], "category": [str(x) for x in row["objects"]["category"]]}
            lines.append(json.dumps({"file_name": f"{row['image_id']}.png", "objects": objects}))
        (tmp_path / name / "metadata.jsonl").write_text("\n".join(lines))
    common = dict(data_format="imagefolder", labeled=str(tmp_path / "train"), evaluation=str(tmp_path / "test"))
    labeled, unlabeled, evaluated, notes = load_data(DataArguments(**common, labeled_percent=30))
    assert (len(labeled), len(unlabeled), len(evaluated)) == (3, 7, 10) and len(notes["labeled_indices"]) == 3
    _, unlabeled, _, _ = load_data(DataArguments(**common, unlabeled=str(tmp_path / "test")))
    assert len(unlabeled) == 10 and not any(unlabeled["is_labeled"])
    assert load_data(DataArguments(**common))[1] is None
