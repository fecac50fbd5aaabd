# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The repository of a learned prompt: merged model, adapters, pipeline and card."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_subpt import ARM, RESULTS, make_checkpoint
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from tiny_subpt import make_model
from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer

from hf_methods.cli import main
from hf_methods.hub import build_repository, upload
from hf_methods.subpt import AutoPromptModel, PeftModelForPromptedImageClassification
from hf_methods.subpt.export_subpt import save_half_precision
from hf_methods.subpt.pipeline_subpt import TASK
from hf_methods.subpt.publishing_subpt import RECIPE


REPO = "tester/prompt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "merged")


@pytest.fixture(scope="module")
def built(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "repository"
    build_repository(RECIPE, str(checkpoint), folder, REPO)
    return folder


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_has_model_adapters_pipeline_and_card(built):
    names = files_of(built)
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    expected = {"model.safetensors", "config.json", "preprocessor_config.json", "pipeline_subpt.py", *tokenizer}
    expected |= {"README.md", "LICENSE", "requirements.txt", "results.json"}
    for folder in ("adapter", "adapter_coop"):
        expected |= {f"{folder}/{name}" for name in adapter} | {f"{folder}/tokenizer/{name}" for name in tokenizer}
    assert set(names) == expected
    config = json.loads((built / "config.json").read_text())
    assert config["custom_pipelines"][TASK]["impl"] == "pipeline_subpt.PromptedZeroShotPipeline"
    assert "auto_map" not in config  # a plain CLIP: the stock pipeline runs no code of the repository


def test_a_repository_built_from_itself_is_the_same(built, tmp_path):
    build_repository(RECIPE, str(built), tmp_path / "again", REPO)
    assert files_of(tmp_path / "again") == files_of(built)


def test_the_adapter_runs_on_the_repositorys_own_model_as_its_card_says(built):
    base = AutoModelForZeroShotImageClassification.from_pretrained(built)
    tokenizer, names = AutoTokenizer.from_pretrained(built), ["cat", "sea lion"]
    model = PeftModel.from_pretrained(base, str(built), subfolder="adapter")
    model.set_classes(names, tokenizer)
    assert type(model) is PeftModelForPromptedImageClassification
    expected = make_model(seed=1).eval().encode_classes(names)
    torch.testing.assert_close(model.encode_classes(), expected, rtol=0, atol=1e-6)


def test_adapters_of_a_repository_on_the_hub_load_by_their_folder(built, hub):
    upload(built, REPO, tag="v1")
    base = AutoModelForZeroShotImageClassification.from_pretrained(REPO)
    for seed, folder in enumerate(("adapter_coop", "adapter")):
        model = AutoPromptModel.from_pretrained(REPO, base_model=base, subfolder=folder, revision="v1")
        expected = make_model(seed=seed).eval()
        model.set_classes(expected.class_names)  # with the adapter's own tokenizer
        torch.testing.assert_close(model.encode_classes(), expected.encode_classes(), rtol=0, atol=1e-6)
        base = model.unload()


def test_weights_in_half_precision_stay_so(checkpoint, tmp_path):
    half = shutil.copytree(checkpoint, tmp_path / "half")
    save_half_precision(AutoModelForZeroShotImageClassification.from_pretrained(checkpoint), half)
    build_repository(RECIPE, str(half), tmp_path / "repository", REPO)
    weights = load_file(tmp_path / "repository" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "repository")
    assert loaded.dtype == torch.float32


def test_the_card_has_all_arms_with_their_deviations(built):
    card = ModelCard.load(built / "README.md")
    text = " ".join(card.text.split())
    assert (
        "| zero-shot CLIP | 20.5 | 28.2 | 23.8 |" in text and "| CoOp | 19.5 ± 1.2 | 22.1 ± 2.5 | 20.7 ± 1.5 |" in text
    )
    assert f"| **{ARM}** | 21.8 ± 1.0 | 29.4 ± 0.5 | 25.0 ± 0.8 |" in text
    assert "This model is inductive; its names: ghost; books." in text and "CC-BY 4.0" in text
    assert "`adapter_coop`" in text and "before PEFT loads the adapter" in text and text.count(REPO) >= 5
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "zero-shot-image-classification" and data["datasets"] == ["twemoji"]
    assert [result.metric_value for result in card.data.eval_results] == [21.75, 29.38, 24.99]


def test_a_card_of_another_run_says_what_it_is(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "merged")
    shutil.rmtree(folder / "adapter_coop")
    train = {**RESULTS["settings"]["train"], "dataset": "tanganke/dtd", "base_model": "openai/clip-vit-base-patch32"}
    train |= {"base_to_novel": False, "nfl_weight": 0, "subspace_rank": 0}
    summary = {name: {"all": [41.25, None]} for name in ("zero-shot CLIP", "CoOp")}
    results = {**RESULTS, "seeds": [1], "arm": "CoOp", "summary_mean_and_sd": summary}
    results["settings"] = {"split": "test", "train": train}
    (folder / "results.json").write_text(json.dumps(results))
    build_repository(RECIPE, str(folder), tmp_path / "repository", REPO)
    card = ModelCard.load(tmp_path / "repository" / "README.md")
    assert "| **CoOp** | 41.2 |" in card.text and card.data.base_model == "openai/clip-vit-base-patch32"
    assert card.data.datasets == ["tanganke/dtd"]
    assert not [
        word for word in ("transductive", "Twemoji", "surrogate", "directions,", "halves") if word in card.text
    ]


def test_what_is_no_checkpoint_of_the_recipe_is_named(checkpoint, tmp_path):
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    shutil.rmtree(bare / "adapter")
    with pytest.raises(ValueError, match="has no adapter/ with the adapter: give the folder `merged`"):
        build_repository(RECIPE, str(bare), tmp_path / "out", REPO)
    plain = shutil.copytree(checkpoint, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    del config["subpt_hypothesis_template"]
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no `subpt_hypothesis_template`"):
        build_repository(RECIPE, str(plain), tmp_path / "out", REPO)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_verifies_in_a_fresh_process(checkpoint, tmp_path, monkeypatch, capsys):
    arguments = ["publish", "subpt", "--checkpoint", str(checkpoint), "--repo-id", REPO, "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["hf-methods", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr().out
    assert stop.value.code in (0, None) and "verified" in output and "adapter_coop/adapter_model.safetensors" in output
    assert Path(tmp_path, "tester--prompt", "pipeline_subpt.py").is_file()
