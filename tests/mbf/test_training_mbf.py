# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe leaves a repository of the pipeline with figures; its settings are checked before work starts."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import ResNetForImageClassification, ViTForImageClassification

from hf_methods.args import parse_args_and_config
from hf_methods.mbf import AdversarialDetectionPipeline, MBFDetector
from hf_methods.mbf.data_mbf import load_images
from hf_methods.mbf.recipe_mbf import ARMS
from hf_methods.mbf.training_mbf import ClassifierArguments, DataArguments, MBFTrainingArguments, build_classifier
from hf_methods.metrics import DETECTION_METRICS


TRAINING = Path(__file__).parents[2] / "training" / "mbf"
TYPES = (ClassifierArguments, DataArguments, MBFTrainingArguments)


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("train_mbf", TRAINING / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_leaves_a_repository_with_its_figures(recipe, tmp_path, monkeypatch):
    def run(name, *more):
        argv = ["--config", str(TRAINING / "smoke.yaml"), "--use_cpu", "true", "--cache_dir", str(tmp_path / "cache")]
        recipe.train(*parse_args_and_config(TYPES, [*argv, "--output_dir", str(tmp_path / name), *more]))
        return json.loads((tmp_path / name / "results.json").read_text())

    results = run("first")
    assert results["settings"]["train"]["images"] == "digits" and results["seeds"] == [42]
    assert set(results["data"]) == {"classifier_train", "detector_train", "validation", "detector_test"}
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
    assert results["summary_mean_and_sd"]["MBF"]["known_auroc"] == [pytest.approx(sum(of_mbf) / 2), None]

    detector = MBFDetector.from_pretrained(tmp_path / "first")
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
    monkeypatch.setattr(recipe, "build_attacked_dataset", fail)
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
