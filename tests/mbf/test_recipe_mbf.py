# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe leaves a repository of the pipeline with figures; its settings are checked before work starts."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetForImageClassification,
    ViTForImageClassification,
)

from hf_methods.args import parse_args_and_config
from hf_methods.mbf import AdversarialDetectionPipeline, MBFDetector, recipe_mbf
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.mbf.data_mbf import load_images
from hf_methods.mbf.recipe_mbf import ARMS, ClassifierArguments, DataArguments, build_classifier
from hf_methods.metrics import DETECTION_METRICS


TRAINING = Path(__file__).parents[2] / "training" / "mbf"
TYPES = (ClassifierArguments, DataArguments, MBFTrainingArguments)


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_mbf", TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe():
    return load_script("train")


@pytest.mark.slow
def test_the_recipe_leaves_a_repository_with_its_figures(recipe, tmp_path, monkeypatch):
    def run(name, *more):
        argv = ["--config", str(TRAINING / "smoke.yaml"), "--use_cpu", "true", "--cache_dir", str(tmp_path / "cache")]
        recipe.train(*parse_args_and_config(TYPES, [*argv, "--output_dir", str(tmp_path / name), *more]))
        return json.loads((tmp_path / name / "results.json").read_text())

    results = run("first")
    assert results["settings"]["train"]["images"] == "digits" and results["seeds"] == [42]
    assert set(results["data"]) == {"classifier_train", "detector_train", "validation", "detector_test", "other"}
    assert results["counts"]["test"]["pgd"]["adversarial"] > 10
    assert {record["detector"] for record in results["run"]["records"]} >= {
        "mbf",
        "moments",
        "lid",
        "mahalanobis",
        "max_softmax",
    }
    for record in results["run"]["records"]:
        assert tuple(record["metrics"]) == DETECTION_METRICS
        assert all(low <= value <= high for value, low, high in record["metrics"].values())
    assert set(results["adaptive"]) == {"adaptive", "feature_matching"}
    assert set(results["published"]) == {"fgsm", "pgd"}
    known = [record for record in results["run"]["records"] if record["setting"] == "known"]
    for record in known:
        assert results["known"][ARMS[record["detector"]]][record["test"]] == record["metrics"]
    of_mbf = [record["metrics"]["auroc"][0] for record in known if record["detector"] == "mbf"]
    assert results["summary_mean_and_sd"][ARMS["mbf"]]["known_auroc"] == [pytest.approx(sum(of_mbf) / 2), None]

    assert {record["setting"] for record in results["run"]["records"]} == {"known", "transfer", "other_source"}
    assert 0.3 < results["accuracy"] <= 1

    detector = MBFDetector.from_pretrained(tmp_path / "first")
    AutoModelForImageClassification.from_pretrained(tmp_path / "first" / "classifier")
    AutoImageProcessor.from_pretrained(tmp_path / "first" / "classifier")
    assert detector.config.attacks == ["fgsm", "pgd"]
    from transformers import pipeline

    detect = pipeline(
        "adversarial-detection", model=str(tmp_path / "first"), pipeline_class=AdversarialDetectionPipeline
    )
    assert detect(load_images("digits")[0]["image"])["class"] in list("0123456789")

    # Once more, with the classifier that is there: the attacks come from the cache.
    def fail(*args, **kwargs):
        raise AssertionError("attacked again")

    again = run("second", "--compare", "false", "--adaptive_steps", "0")
    monkeypatch.setattr(recipe_mbf, "build_attacked_dataset", fail)
    third = run("third", "--compare", "false", "--adaptive_steps", "0")
    assert again["run"]["counts"] == third["run"]["counts"] == results["counts"]
    assert third["run"]["records"] == [] == again["run"]["records"]


@pytest.mark.parametrize(("architecture", "cls"), [("resnet", ResNetForImageClassification), ("vit", ViTForImageClassification)])  # fmt: skip
def test_a_classifier_is_built_for_the_images(architecture, cls):
    digits = load_images("digits")
    model, processor = build_classifier(
        ClassifierArguments(architecture=architecture, hidden_size=32, num_layers=2), digits
    )
    assert isinstance(model, cls) and model.config.id2label[7] == "7"
    pixels = processor([row["image"] for row in digits.select(range(3))], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 1, 8, 8) and model(pixels).logits.shape == (3, 10)
    assert pixels.min() == -1 and pixels.max() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierArguments(architecture="mlp"), "`architecture` must be 'resnet' or 'vit', got 'mlp'"),
        (lambda: DataArguments(images="digits"), "`attacks` must name at least one attack"),
        (lambda: DataArguments(images="digits", attacks="{pgd"), "`attacks` is no JSON"),
        (lambda: DataArguments(images="digits", attacks={"pdg": {}}), "unknown attack 'pdg'"),
        (lambda: DataArguments(images="digits", attacks={"pgd": {"eps": "big"}}), "`eps` of 'pgd' must be a number"),
        (lambda: MBFTrainingArguments(output_dir="x", use_cpu=True, target_fpr=2.0), "`target_fpr` must be between 0 and 1"),
        (lambda: MBFTrainingArguments(output_dir="x", use_cpu=True, center="row"), "`center` must be"),
        (lambda: MBFTrainingArguments(output_dir="x", use_cpu=True, svm_c=[]), "need a candidate"),
        (lambda: MBFTrainingArguments(output_dir="x", use_cpu=True, num_folds=1), "`num_folds` must be at least 2"),
    ],
)  # fmt: skip
def test_bad_settings_are_errors_before_the_work(make, message):
    with pytest.raises(Exception, match=message):
        make()


def test_numbers_that_yaml_reads_as_text_are_numbers():
    arguments = DataArguments(images="digits", attacks={"pgd": {"eps": "1e-1", "max_iter": 3}, "deepfool": None})
    assert arguments.attacks == {"pgd": {"eps": 0.1, "max_iter": 3}, "deepfool": {}}
    assert DataArguments(images="digits", attacks='{"fgsm": {"eps": 0.1}}').attacks == {"fgsm": {"eps": 0.1}}


def make_run(folder, value):
    """A finished run of one seed as `train.py` leaves it, whose figures are `value`."""

    def record(setting, train, test):
        metrics = {name: [value, value - 0.1, value + 0.1] for name in DETECTION_METRICS}
        fpr = {"clean": 0.01, "gaussian": 0.02, "uniform": None}
        return {"detector": "mbf", "setting": setting, "train": train, "test": test, "metrics": metrics, "fpr": fpr}

    records = [record("known", ["a"], "a"), record("transfer", ["a"], "b"), record("known", ["b"], "b")]
    head = {"data": {"detector_test": "0"}, "wall_seconds": 2.0, "settings": {"split": "detector_test", "train": {}}}
    folder.mkdir(parents=True)
    adaptive = {"adaptive": {"evaded": value}}
    (folder / "results.json").write_text(json.dumps({**head, "run": {"records": records, "adaptive": adaptive}}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "train.log").write_text("log")


def test_the_grid_joins_finished_seeds_and_leaves_the_first_ones_checkpoint(tmp_path):
    grid = load_script("grid")
    for seed, value in enumerate((0.6, 0.8)):
        make_run(tmp_path / "runs" / f"seed-{seed}", value)
    results, out = tmp_path / "grid.json", tmp_path / "checkpoint"
    grid.main(
        grid.GridArguments("unused.yaml", str(tmp_path / "runs"), str(results), seeds=[0, 1], checkpoint=str(out))
    )
    written = json.loads(results.read_text())
    (arm,) = written["summary_mean_and_sd"]
    assert written["summary_mean_and_sd"][arm]["known_auroc"] == pytest.approx([0.7, 0.02**0.5])
    assert written["adaptive"]["adaptive"]["evaded"] == pytest.approx([0.7, 0.02**0.5])
    assert written["known"][arm]["b"]["auroc"] == pytest.approx([0.6, 0.5, 0.7])  # of the first seed
    assert written["transfer_auroc"][arm] == {"a": {"a": 0.6, "b": 0.6}, "b": {"b": 0.6}}
    assert written["wall_seconds"] == 4.0 and results.with_suffix(".png").stat().st_size > 1000
    files = {path.name for path in out.iterdir()}
    assert files == {"model.safetensors", "results.json", "results.png"}
    assert json.loads((out / "results.json").read_text())["arm"] == arm
