# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A detector becomes a repository that needs nothing of ours, and a card that hides nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_mbf import ATTACKS, IMAGES, make_checkpoint
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_methods
from hf_methods.hub import build_repository, render_card, verify_repository
from hf_methods.mbf import MBFDetector
from hf_methods.mbf.publishing_mbf import RECIPE


PACKAGE = Path(hf_methods.__file__).parent / "mbf"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint(folder, num_coefficients=2, channel_groups=2)
    return folder


@pytest.fixture(scope="module")
def repository(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository") / "tiny"
    build_repository(RECIPE, str(checkpoint), folder, "me/tiny")
    return folder


def test_the_repository_has_detector_classifier_and_code(repository, checkpoint):
    code = {path.name: path.read_bytes() for path in repository.glob("*.py")}
    roles = ("configuration", "extraction", "features", "modeling", "pipeline", "svm")
    assert sorted(code) == [f"{role}_mbf.py" for role in roles]
    assert code == {name: (PACKAGE / name).read_bytes() for name in code}
    assert {path.suffix for path in repository.rglob("*") if path.is_file()} <= {
        ".py",
        ".json",
        ".safetensors",
        ".md",
        ".txt",
        "",
    }
    requirements = (repository / "requirements.txt").read_text()
    assert "scikit" not in requirements and "skops" not in requirements
    classifier = AutoModelForImageClassification.from_pretrained(repository / "classifier")
    detector = MBFDetector.from_pretrained(repository)
    pixels = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(classifier(pixels).logits, detector.classifier(pixels).logits)
    processor = AutoImageProcessor.from_pretrained(repository / "classifier")
    assert processor(IMAGES[0], return_tensors="pt")["pixel_values"].shape == (1, 1, 28, 28)
    before = MBFDetector.from_pretrained(checkpoint)
    assert torch.equal(before.decision_function(pixels), detector.decision_function(pixels))


def test_a_process_with_its_requirements_alone_gives_the_same_answers(repository):
    verify_repository(RECIPE, repository)


def test_a_changed_weight_of_the_classifier_is_not_published(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "changed")
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "changed" / "classifier")
    with torch.no_grad():
        next(classifier.parameters()).flatten()[0] += 1
    classifier.save_pretrained(tmp_path / "changed" / "classifier")
    with pytest.raises(ValueError, match="this detector was trained for"):
        build_repository(RECIPE, str(tmp_path / "changed"), tmp_path / "out", "me/tiny")
    assert not (tmp_path / "out").exists()


def test_other_models_and_processors_that_do_not_resize_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="model_type 'resnet'; this is for 'mbf'"):
        build_repository(RECIPE, str(checkpoint / "classifier"), tmp_path / "out", "me/tiny")
    shutil.copytree(checkpoint, tmp_path / "fixed")
    path = tmp_path / "fixed" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_resize": False}))
    with pytest.raises(ValueError, match="`do_resize` false.*preprocessor_config.json"):
        build_repository(RECIPE, str(tmp_path / "fixed"), tmp_path / "out", "me/tiny")


def test_the_card_states_the_threat_model_and_our_adaptive_figure(repository):
    card = (repository / "README.md").read_text()
    text = " ".join(card.split())
    assert "It does not withstand an attacker who knows it" in text
    assert "fool both for 83.1 % and 0.0 % of the images that they tried" in text
    assert "| lower the detector's score | 95.0 | 12.5 | 83.1 |" in text
    assert "| pull the features to the benign mean | 95.0 |  | 0.0 |" in card
    data = ModelCard(card).data
    assert data.eval_results[0].metric_type == "roc_auc" and len(data.eval_results) == 4
    assert data.datasets == ["mnist"] and "adversarial-detection" in data.tags


def test_the_card_says_where_the_baselines_win(repository):
    results = json.loads((repository / "results.json").read_text())
    lines = (repository / "README.md").read_text().splitlines()
    labels = {
        "known_auroc": "Known attack",
        "transfer_auroc": "Trained on another attack",
        "leave_one_out_auroc": "Trained on all others",
        "other_source_auroc": "Images of another source",
    }
    arms, won = results["summary_mean_and_sd"], 0
    for key, label in labels.items():
        (line,) = (line for line in lines if line.startswith(f"- {label}, "))
        better = [name for name in arms if arms[name][key][0] > arms[results["arm"]][key][0]]
        named = re.findall(r"([^;(]+) \(\d\.\d{3}\)", line.partition("better are ")[2])
        assert [name.strip() for name in named] == better
        won += bool(better)
        assert ("none of the baselines is better" in line) == (not better)
    assert won  # so that the list was seen


def test_every_attack_stands_in_the_card_with_parameters_and_success(repository):
    card = (repository / "README.md").read_text()
    for attack, parameters in ATTACKS.items():
        assert f"| `{attack}` | `{parameters}` | 391 | 384 |" in card


def test_a_run_without_comparison_has_no_card(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "bare")
    results = json.loads((repository / "results.json").read_text())
    (tmp_path / "bare" / "results.json").write_text(json.dumps({"settings": results["settings"], "run": {}}))
    with pytest.raises(ValueError, match="lacks what the card needs"):
        render_card(RECIPE, tmp_path / "bare", "me/tiny")


def test_figures_of_attackers_who_were_not_tried_are_left_out(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "calm")
    results = json.loads((repository / "results.json").read_text())
    (tmp_path / "calm" / "results.json").write_text(json.dumps({**results, "adaptive": {}, "published": {}}))
    card = render_card(RECIPE, tmp_path / "calm", "me/tiny")
    assert "fool both" not in card and "It does not withstand" in card and "trained on all of these" not in card
