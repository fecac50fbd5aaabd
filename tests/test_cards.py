# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the cards of all methods say alike, and the committed cards: what their files give, and no number from elsewhere."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers.pipelines import PIPELINE_REGISTRY

from hf_methods.cards import dataset_names, eval_results, is_hub_id
from hf_methods.hub import render_card


def test_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    names = ["org/name", "data/images", "model_cards/some", "mnist", "a/b/c", str(tmp_path)]
    assert [name for name in names if is_hub_id(name)] == ["org/name"]


def test_a_data_set_is_known_or_on_the_hub_or_nameless(tmp_path):
    known = {"mnist": ("mnist", "digits")}
    assert dataset_names("mnist", known) == ("mnist", "digits")
    assert dataset_names("org/name", known) == ("org/name", "org/name")
    assert dataset_names(str(tmp_path), known) == ("images", "local images")
    assert dataset_names(str(tmp_path), known, local=("text", "files")) == ("text", "files")


def test_figures_of_a_model_index_are_rounded_and_never_left_out():
    summary = {"base": [12.34567, 0.1], "novel": [1.0, None]}
    (result,) = eval_results("task", ("a", "b"), "test", summary, {"base": ("accuracy", "of base classes")}, digits=2)
    assert (result.task_type, result.dataset_type, result.dataset_name, result.dataset_split) == (
        "task",
        "a",
        "b",
        "test",
    )
    assert (result.metric_type, result.metric_name, result.metric_value) == ("accuracy", "of base classes", 12.35)
    with pytest.raises(KeyError, match="lost"):
        eval_results("task", ("a", "b"), "test", summary, {"lost": ("accuracy", "none")})


ROOT = Path(__file__).parents[1]
CHECKPOINTS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/pipeline_*.py"))  # not base models


# --- the committed cards


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_committed_card_is_what_its_results_give(folder):
    from training.render_cards import recipe_of

    recipe = recipe_of(folder)
    assert (folder / "README.md").read_text() == render_card(recipe, folder, f"model_cards/{folder.name}")
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "requirements.txt").read_text().split() == list(recipe.all_requirements)


def numbers_of(value):
    """All numbers in what JSON holds, also those inside its strings."""
    if isinstance(value, dict):
        return {number for pair in value.items() for item in pair for number in numbers_of(item)}
    if isinstance(value, list):
        return {number for item in value for number in numbers_of(item)}
    if isinstance(value, str):
        return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", value)}
    return set() if value is None or isinstance(value, bool) else {float(value)}


def foreign_numbers(card, known):
    """Numbers of a card's text that are no rounding of a known one. Code, links and digests are not text."""
    text = re.sub(r"```.*?```|`[^`]*`|\[[^]]*\]\([^)]*\)|\b(ICLR|AAAI|TCSVT) \d+", "", card, flags=re.DOTALL)
    found = re.findall(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w-])", text)
    decimals = lambda number: len(number.partition(".")[2])  # noqa: E731
    return [number for number in found if not any(round(value, decimals(number)) == float(number) for value in known)]


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_each_number_of_a_card_is_in_a_json(folder):
    from training.render_cards import recipe_of

    files = [
        folder / "results.json",
        folder / "config.json",
        ROOT / "training" / recipe_of(folder).method / "paper.json",
    ]
    results, *rest = [json.loads(file.read_text()) for file in files]
    known = numbers_of([results, *rest])
    known |= {100 * number for number in known}  # fractions are shown in per cent
    lengths = [results["seeds"], rest[0].get("taus", []), rest[0].get("id2label", [])]
    known |= {(results["wall_seconds"] or 0) / 60, *(float(len(values)) for values in lengths)}
    card = (folder / "README.md").read_text()
    assert foreign_numbers(card, known) == []
    assert foreign_numbers(card + "\nPerplexity 41.99, 77777 seeds.", known) == ["41.99", "77777"]


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_header_of_a_card_is_whole(folder):
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["license"] == "apache-2.0"
    assert data["pipeline_tag"] in PIPELINE_REGISTRY.get_supported_tasks()
    assert {"hf_methods"} < set(data["tags"]) and data["datasets"] and data["metrics"]
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in data["datasets"])
    name, results = model_index_to_eval_results(data["model-index"])
    measured = json.loads((folder / "results.json").read_text())
    summary = measured["summary_mean_and_sd"][measured["arm"]]
    roundings = {round(value[0], digits) for value in summary.values() for digits in (2, 4)}
    assert name and {result.metric_value for result in results} <= roundings
    card.validate()  # asks the server, as an upload does
