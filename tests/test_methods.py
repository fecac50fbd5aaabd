# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Every method has every part that CONTRIBUTING.md lists."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

import hf_methods
from hf_methods import cli


ROOT = Path(__file__).parents[1]
PACKAGE = Path(hf_methods.__file__).parent
PART_OF_ANOTHER = {"ortho_adam": "softmax1"}  # one paper, published with the other's checkpoints
METHODS = sorted(cli.METHODS)
PARTS = [
    "hf_methods/{m}/configuration_{m}.py",
    "hf_methods/{m}/modeling_{m}.py",
    "hf_methods/{m}/pipeline_{m}.py",
    "hf_methods/{m}/data_{m}.py",
    "hf_methods/{m}/arguments_{m}.py",
    "hf_methods/{m}/recipe_{m}.py",
    "hf_methods/{m}/publishing_{m}.py",
    "hf_methods/{m}/demo_{m}.py",
    "model_cards/templates/{m}.md",
    "spaces/{m}/README.md",
    "spaces/{m}/app.py",
    "spaces/{m}/requirements.txt",
    "training/{m}/train.py",
    "training/{m}/smoke.yaml",
    "training/{m}/paper.json",
    "training/{m}/sources.json",
    "tests/{m}/test_pipeline_{m}.py",
    "tests/{m}/test_space_{m}.py",
    "tests/benchmarks/{m}.py",
    "tests/benchmarks/comparisons/{m}.yaml",
    "tests/benchmarks/results/{m}.json",
    "docs/{m}.md",
]


def test_each_folder_is_a_method_of_the_command_line():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*METHODS, *PART_OF_ANOTHER}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_all_its_parts(method):
    assert [part for part in PARTS if not (ROOT / part.format(m=method)).is_file()] == []


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_checkpoint_that_its_space_shows(method):
    recipe = importlib.import_module(f"hf_methods.{method}.publishing_{method}").RECIPE
    assert recipe.method == method and recipe.space_checkpoints
    for name in recipe.space_checkpoints:
        folder = ROOT / "model_cards" / name
        assert (folder / "results.json").is_file() and (folder / f"pipeline_{method}.py").is_file()
        assert sum(path.stat().st_size for path in folder.rglob("*")) <= 3.5e6


@pytest.mark.parametrize("method", [*METHODS, *PART_OF_ANOTHER])
def test_a_method_is_named_where_readers_look_for_it(method):
    assert re.search(rf"\b{method}\b", (ROOT / "mkdocs.yml").read_text())
    assert method in PART_OF_ANOTHER or f"training/{method}/" in (ROOT / "training" / "README.md").read_text()


def test_the_checkpoints_are_small_in_all():
    assert sum(path.stat().st_size for path in (ROOT / "model_cards").rglob("*") if path.is_file()) <= 15e6


@pytest.mark.parametrize("method", METHODS)
def test_the_header_of_a_space_names_the_gradio_that_was_tested(method):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed; the extra `spaces` brings it")
    header = (ROOT / "spaces" / method / "README.md").read_text().split("---")[1]
    version = re.search(r"^sdk_version: ['\"]?([\d.]+)", header, re.MULTILINE)[1]
    assert version.split(".")[0] == gradio.__version__.split(".")[0]
    assert "models:" not in header  # a made-up name could be registered by a stranger


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*/paper.json")), ids=lambda path: path.parent.name)
def test_the_papers_own_figures_have_a_source(path):
    paper = json.loads(path.read_text())
    assert paper["source"] and all(len(row) == len(paper["columns"]) for row in paper["figures"].values())


def test_spaces_that_take_an_image_read_it_alike():
    """A Space is a repository of its own, so each has the function; a mended one is mended in all."""
    sources = [(ROOT / "spaces" / method / "app.py").read_text() for method in METHODS]
    functions = [
        ast.unparse(node)
        for text in sources
        for node in ast.parse(text).body
        if getattr(node, "name", "") == "read_image"
    ]
    assert len(functions) == 3 and len(set(functions)) == 1
