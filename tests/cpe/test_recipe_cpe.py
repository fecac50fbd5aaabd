# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe: its model and data, its figures, and a run as its users start it."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ResNetConfig, ResNetModel, pipeline

from hf_methods.args import parse_args_and_config
from hf_methods.cpe import CPEConfig, CPETrainer, CPETrainingArguments
from hf_methods.cpe.recipe_cpe import (
    DataArguments,
    ModelArguments,
    build_model,
    build_processor,
    compute_figures,
    load_splits,
    name_of_arm,
)
from hf_methods.metrics import make_compute_metrics


ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "training" / "cpe").glob("*.yaml") if not path.stem.startswith("grid_"))
NAMES = ["ant", "bee", "cat"]


def pictures(labels, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 100, (len(labels), 10, 10), dtype=np.uint8)
    for image, label in zip(pixels, labels):
        image[:, 3 * label : 3 * label + 3] += 150
    features = Features({"picture": ImageFeature(), "kind": ClassLabel(names=NAMES)})
    columns = {"picture": [Image.fromarray(image) for image in pixels], "kind": labels}
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set as the Hub has them: three splits, one of them without labels."""
    dataset = DatasetDict(
        train=pictures([0, 1, 2] * 30, 0), test=pictures([0, 1, 2] * 4, 1), unlabeled=pictures([0, 1, 2] * 5, 2)
    )
    root = tmp_path_factory.mktemp("data") / "set"
    for split, rows in dataset.items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


OPTIONS = [
    "--dataset_config",
    "default",
    "--n1",
    "12",
    "--gamma_l",
    "4",
    "--m1",
    "12",
    "--depth",
    "10",
    "--widen_factor",
    "1",
    "--image_size",
    "10",
    "--num_channels",
    "1",
    "--image_mean",
    "0.3",
    "--image_std",
    "0.3",
    "--image_column",
    "picture",
    "--label_column",
    "kind",
    "--crop_padding",
    "1",
    "--max_steps",
    "4",
    "--per_device_train_batch_size",
    "4",
    "--use_cpu",
    "true",
    "--report_to",
    "none",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "2",
    "--save_strategy",
    "steps",
    "--save_steps",
    "2",
]


def run(folder, output_dir):
    command = [sys.executable, "training/cpe/train.py", "--dataset", str(folder), "--output_dir", str(output_dir)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*command, *OPTIONS], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(output_dir / "model.safetensors")


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_its_folder_loads(folder, tmp_path):
    whole = run(folder, tmp_path / "whole")
    (tmp_path / "stopped").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    spec = importlib.util.spec_from_file_location("train_cpe", ROOT / "training" / "cpe" / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    argv = ["--dataset", str(folder), "--output_dir", str(tmp_path / "stopped"), *OPTIONS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other run: sums depend on it
    try:
        script.train(*parse_args_and_config((ModelArguments, DataArguments, CPETrainingArguments), argv))
    finally:
        torch.set_num_threads(threads)
    resumed = load_file(tmp_path / "stopped" / "model.safetensors")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["arm"] == "CPE" and results["class_counts"] == [12, 6, 3] and results["seeds"] == [42]
    figures = results["summary_mean_and_sd"]["CPE"]
    assert {"balanced_accuracy", "gmean", "head", "tail", "ece", "expert2_balanced_accuracy"} <= figures.keys()
    assert figures["last_20_balanced_accuracy"][0] <= figures["best_balanced_accuracy"][0]
    assert set(results["data"]) == {"labeled (rows)", "unlabeled (rows)", "test"}

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "whole")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "whole")
    assert model.config.id2label == dict(enumerate(NAMES)) and model.config.class_counts == [12, 6, 3]
    assert {path.name for path in (tmp_path / "whole").glob("*.py")} >= {"modeling_cpe.py", "image_processing_cpe.py"}
    classify = pipeline("image-classification", model=model, image_processor=processor)
    answers = classify([row["picture"] for row in pictures([0, 1, 2], 3)])
    assert [len(answer) for answer in answers] == [3, 3, 3] and {a["label"] for a in answers[0]} == set(NAMES)


def test_a_split_without_labels_joins_the_unlabeled_images(folder):
    args = DataArguments(
        dataset=str(folder), n1=12, gamma_l=4, unlabeled="rest", unlabeled_split="unlabeled",
        include_labeled_in_unlabeled=True,
    )  # fmt: skip
    splits, info = load_splits(args, "kind", seed=0)
    assert info["class_counts"] == [12, 6, 3] and len(splits["train_labeled"]) == 21
    assert len(splits["train_unlabeled"]) == 90 + 15  # as STL-10: every image, the labelled ones too
    assert splits["train_unlabeled"]["kind"][-15:] == [-1] * 15 and len(splits["test"]) == 12
    with pytest.raises(ValueError, match=r"no split 'extra', only \['train', 'test', 'unlabeled'\]"):
        load_splits(dataclasses.replace(args, unlabeled_split="extra"), "kind", seed=0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_models_and_processors_of_the_recipes_can_be_built(config, tmp_path):
    types = (ModelArguments, DataArguments, CPETrainingArguments)
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--use_cpu", "true", "--report_to", "none"]
    model_args, _, args = parse_args_and_config(types, argv)
    num_classes = 100 if "cifar100" in config.stem else 10
    with torch.device("meta"):
        model = build_model(model_args, [str(k) for k in range(num_classes)], list(range(num_classes, 0, -1)))
    assert model.config.cuts == CPEConfig.default_cuts(num_classes) and model.config.eval_expert == 1
    assert len(build_processor(model_args).image_mean) == model.config.num_channels
    if "mnist" not in config.stem and config.stem != "smoke":
        official = CPETrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        same = (
            "learning_rate",
            "weight_decay",
            "mu",
            "threshold",
            "lambda_u",
            "ema_decay",
            "max_steps",
            "max_grad_norm",
        )
        assert all(getattr(args, name) == getattr(official, name) for name in same)
        assert sum(p.numel() for p in model.parameters()) == {10: 1_470_782, 100: 1_505_612}[num_classes]


def test_a_pretrained_backbone_becomes_part_of_the_model(tmp_path):
    torch.manual_seed(1)
    backbone = ResNetModel(ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8, layer_type="basic"))
    backbone.save_pretrained(tmp_path)
    model = build_model(ModelArguments(backbone=str(tmp_path), image_size=16), NAMES, [9, 5, 2])
    state = model.backbone.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in backbone.state_dict().items())
    assert model.config.image_size == 16 and model.config.label2id == {"ant": 0, "bee": 1, "cat": 2}


@pytest.mark.parametrize(
    ("fields", "is_supervised", "name"),
    [
        ({}, False, "CPE"),
        ({"use_cbn": False}, False, "CPE without CBN"),
        ({"taus": (0.0,), "use_cbn": False}, False, "FixMatch"),
        ({"taus": (1.0,), "use_cbn": False}, False, "FixMatch + LA"),
        ({"taus": (1.0,)}, False, "FixMatch + LA + CBN"),
        ({"taus": (0.0,), "use_cbn": False}, True, "supervised"),
        ({}, True, "CPE, supervised only"),
    ],
)
def test_settings_have_the_names_of_the_tables(fields, is_supervised, name):
    assert name_of_arm(CPEConfig(**fields), is_supervised) == name


def test_the_figures_of_the_experts_are_their_own(tmp_path):
    torch.manual_seed(0)
    args = ModelArguments(depth=10, widen_factor=1, image_size=10, num_channels=1, image_mean=[0.3], image_std=[0.3])
    model, test = build_model(args, NAMES, [9, 5, 2]), pictures([0, 1, 2] * 20, 4)
    arguments = CPETrainingArguments(
        output_dir=str(tmp_path), image_column="picture", label_column="kind", use_cpu=True, report_to="none"
    )
    trainer = CPETrainer(
        model, arguments, eval_dataset=test, processing_class=build_processor(args),
        compute_metrics=make_compute_metrics(3, [9, 5, 2], (1, 2)),
    )  # fmt: skip
    model.config.fusion = "mean_prob"
    figures, confusions = compute_figures(trainer)
    inputs = build_processor(args)(test["picture"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        experts = model.eval()(inputs).expert_logits
    for e in range(3):
        expected = (experts[:, e].argmax(-1) == torch.tensor(test["kind"])).float().mean()
        assert figures[f"expert{e}_balanced_accuracy"] == pytest.approx(float(expected), abs=1e-6)
        pairs = zip(test["kind"], experts[:, e].argmax(-1).tolist(), strict=True)
        counts = Counter(pairs)
        assert confusions[e] == [[counts[true, predicted] for predicted in range(3)] for true in range(3)]
    expected = (experts.softmax(-1).mean(1).argmax(-1) == torch.tensor(test["kind"])).float().mean()
    assert figures["balanced_accuracy"] == pytest.approx(float(expected), abs=1e-6)
    assert (model.config.eval_expert, model.config.fusion) == (1, "mean_prob")
    assert "best_balanced_accuracy" not in figures and "runtime" not in figures
