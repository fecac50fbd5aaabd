# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe: a whole run on drawn shapes, its data and its presets."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_subpt import NAMES, make_open_clip, make_tokenizer

from hf_methods.args import parse_args_and_config
from hf_methods.subpt import DATASET_TEMPLATES, AutoPromptModel, SubPTTrainingArguments
from hf_methods.subpt.data_subpt import COLORS, SHAPES, image_digest, make_shapes_dataset
from hf_methods.subpt.recipe_subpt import (
    DataArguments,
    ModelArguments,
    build_model,
    compute_figures,
    load_classes,
    load_data,
    make_tiny_clip,
)


RECIPE = Path(__file__).parents[2] / "training" / "subpt"


def load_script():
    spec = importlib.util.spec_from_file_location("train_subpt", RECIPE / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder, *options):
    types = (ModelArguments, DataArguments, SubPTTrainingArguments)
    argv = ["--config", str(RECIPE / "smoke.yaml"), "--output_dir", str(folder), "--use_cpu", "true"]
    load_script().train(*parse_args_and_config(types, [*argv, "--disable_tqdm", "true", *options]))
    return json.loads((folder / "results.json").read_text())


def test_a_run_writes_adapter_merged_model_and_results(tmp_path):
    results = run(tmp_path)
    assert results["arm"] == "CoOp + SubPT + NFL" and [row["epoch"] for row in results["curve"]] == [1, 2, 3]
    last = {name: results["curve"][-1][name] for name in ("base", "novel", "harmonic_mean")}
    figures = results["summary_mean_and_sd"]
    assert {name: value for name, (value, _) in figures["CoOp + SubPT + NFL"].items()} == pytest.approx(last)
    assert set(figures) == {"zero-shot CLIP", "CoOp + SubPT + NFL"}
    assert (
        results["settings"]["train"]["nfl_names"] == [f"{color} {shape}" for shape in SHAPES for color in COLORS][6:]
    )
    assert sum(results["explained_variance"]) == pytest.approx(1, abs=1e-4)
    torch.manual_seed(42)
    base, _, _ = make_tiny_clip()
    loaded = AutoPromptModel.from_pretrained(tmp_path / "adapter", base_model=base)
    assert loaded.class_names[0] == "red circle" and loaded.basis.rank == 2
    assert (tmp_path / "merged" / "model.safetensors").exists()  # and what a publication needs beside it
    assert json.loads((tmp_path / "merged" / "results.json").read_text()) == results
    context = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "merged/adapter")]
    assert all(torch.equal(context[0][name], context[1][name]) for name in context[0].keys() | context[1].keys())
    with safe_open(tmp_path / "adapter" / "text_embeddings.safetensors", "pt") as file:
        assert len(file.get_tensor("text_embeds")) == 12


@pytest.mark.parametrize(
    ("options", "arm"),
    [
        (["--subspace_rank", "0", "--nfl_weight", "0"], "CoOp"),
        (["--subspace_rank", "0", "--nfl_weight", "0", "--stop_epochs", "2"], "CoOp stopped at epoch 2"),
        (["--subspace_source", "random", "--nfl_weight", "0"], "CoOp + random subspace"),
        (["--subspace_source", "late", "--nfl_weight", "0"], "CoOp + late subspace"),
        (["--subspace_rank", "0", "--anchor_names", "base", "--nfl_loss", "l2"], "CoOp + anchor on base names"),
        (["--base_to_novel", "false", "--nfl_weight", "0", "--class_specific", "true"], "CoOp + SubPT"),
    ],
)
def test_the_baselines_are_settings_of_the_same_recipe(tmp_path, options, arm):
    results = run(tmp_path, *options)
    assert results["arm"] == arm
    assert len(results["curve"]) == (2 if "stopped" in arm else 3)
    assert set(results["summary_mean_and_sd"][arm]) == (
        {"all"} if "--class_specific" in options else {"base", "novel", "harmonic_mean"}
    )


def test_the_inductive_protocol_needs_names(tmp_path):
    with pytest.raises(ValueError, match="give `nfl_names`"):
        run(tmp_path, "--nfl_protocol", "inductive")
    results = run(tmp_path, "--nfl_protocol", "inductive", "--nfl_names", "acorn", "lampshade")
    assert results["settings"]["train"]["nfl_names"] == ["acorn", "lampshade"]
    with pytest.raises(ValueError, match="must be 'transductive' or 'inductive'"):
        DataArguments(dataset="shapes", nfl_protocol="none")


def test_the_shots_are_drawn_before_the_split_and_groups_keep_their_own_names():
    model, processor = build_model(ModelArguments("tiny-random", n_ctx=2))
    arguments = DataArguments("shapes", num_shots=3, views=2)
    train, test, names = load_classes(arguments)
    data = load_data(arguments, train, test, names, model, processor, seed=1)
    assert data.names == names[:6] == data.tests["base"][2] and data.tests["novel"][2] == names[6:]
    assert data.train.image_embeds.shape[:2] == (2, 18) and data.train.labels.bincount().tolist() == [3] * 6
    for _, labels, group in data.tests.values():
        assert labels.bincount().tolist() == [4] * len(group)
    again = load_data(arguments, train, test, names, model, processor, seed=1)
    assert torch.equal(again.train.image_embeds, data.train.image_embeds) and again.digests == data.digests
    # Features that are the class means of the images classify them better than chance.
    features = {n: i for i, n in enumerate(names)}
    perfect = {
        group: torch.nn.functional.normalize(
            torch.stack([embeds[labels == label].mean(0) for label in range(len(group_names))]), dim=-1
        )
        for group, (embeds, labels, group_names) in data.tests.items()
    }
    figures = compute_figures(data.tests, lambda group: perfect["base" if features[group[0]] == 0 else "novel"])
    assert figures["base"] > 30 and 0 < figures["harmonic_mean"] <= max(figures["base"], figures["novel"])


def test_shapes_are_drawn_from_their_seed():
    first, again, other = (
        make_shapes_dataset(2, seed=3),
        make_shapes_dataset(2, seed=3),
        make_shapes_dataset(2, seed=4),
    )
    assert first.features["label"].names[:2] == ["red circle", "green circle"] and len(first) == 24
    assert image_digest(first) == image_digest(again) != image_digest(other)
    red = torch.tensor(list(first[0]["image"].getdata())).float()
    assert (red[:, 0] > 200).float().mean() > 0.05


def test_folders_of_images_are_data_sets(tmp_path):
    for split in ("train", "test"):
        for name in ("sea_lion", "cat"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (20, 20), (number * 9, 0, 0)).save(folder / f"{number}.png")
    train, test, names = load_classes(DataArguments(str(tmp_path)))
    assert names == ["cat", "sea lion"] == train.features["label"].names and len(train) == len(test) == 4
    with pytest.raises(ValueError, match="no column 'cls', only image, label"):
        load_classes(DataArguments(str(tmp_path), label_column="cls"))


def test_numbers_without_names_need_names(tmp_path, monkeypatch):
    from hf_methods.subpt import recipe_subpt

    rows = Dataset.from_list([{"image": Image.new("RGB", (4, 4)), "label": label} for label in (0, 1)])
    monkeypatch.setattr(recipe_subpt, "load_dataset", lambda *args, **kwargs: rows)
    with pytest.raises(ValueError, match="`label` of x/y has no names; give `class_names`"):
        load_classes(DataArguments("x/y"))
    train, _, names = load_classes(DataArguments("x/y", class_names=["a_b", "c"]))
    assert names == train.features["label"].names == ["a b", "c"]


def test_models_of_open_clip_are_taken_by_name(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    asked = []
    monkeypatch.setattr(
        open_clip, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or make_open_clip()
    )
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: make_tokenizer())
    model, processor = build_model(ModelArguments("open_clip:RN50/openai", n_ctx=2))
    model.set_classes(NAMES)
    assert asked == [("RN50", "openai")] and processor.crop_size["height"] == 16
    assert model.encode_classes().shape == (len(NAMES), 24)


@pytest.mark.parametrize("name", DATASET_TEMPLATES)
def test_each_data_set_has_a_preset_with_its_template(name):
    values = yaml.safe_load((RECIPE / f"{name}.yaml").read_text())
    assert values["template"] == DATASET_TEMPLATES[name]
    assert values.get("nfl_extra_template") == (None if name == "imagenet" else DATASET_TEMPLATES[name])
    assert (values["num_train_epochs"], values["subspace_rank"]) == (50 if name == "imagenet" else 100, 10)
