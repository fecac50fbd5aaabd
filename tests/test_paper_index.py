# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""training/README.md says of every value of the published settings where it comes from."""

import importlib.util
import json
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
INDEX = ROOT / "training" / "README.md"
SOURCES = sorted((ROOT / "training").glob("*/sources.json"))
# How a run is watched, kept and fed, which changes none of its figures.
RUNNING = {
    "report_to", "disable_tqdm", "logging_steps", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
    "save_total_limit", "dataloader_num_workers", "cache_dir",
}  # fmt: skip


def load_renderer():
    spec = importlib.util.spec_from_file_location("render_readme", ROOT / "training" / "render_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.parent.name)
def test_every_option_of_the_published_yamls_has_a_source_and_no_other_has(path):
    settings = load_renderer().published_settings(path)
    assert settings and all(settings.values())
    used = {name for of_column in settings.values() for one in of_column for name in one}
    listed = [name for entry in json.loads(path.read_text("utf-8"))["values"] for name in entry["options"]]
    assert len(listed) == len(set(listed)) and set(listed) == used - RUNNING
    assert all(entry["source"] for entry in json.loads(path.read_text("utf-8"))["values"])


def test_every_method_is_in_the_index_and_the_index_is_what_the_files_say():
    methods = {path.parent.name for path in (ROOT / "training").glob("*/train.py")}
    assert {path.parent.name for path in SOURCES} == methods
    text = INDEX.read_text("utf-8")
    assert all(f"<!-- table: training/{method}/sources.json values -->" in text for method in methods)
    assert load_renderer().render(text) == text, "run `python training/render_readme.py`"


def test_an_option_has_a_row_with_its_values_and_its_source():
    entries = [{"options": ["a", "b"], "source": "paper", "note": "of both"}, {"options": ["c"], "source": "ours"}]
    settings = {"small": [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}], "large": [{"a": 1, "c": "y" * 100}]}
    assert load_renderer().render_sources(entries, settings).splitlines() == [
        "| option | small | large | source |",
        "| --- | --- | --- | --- |",
        "| `a` | 1 or 2 | 1 | paper; of both |",
        "| `b` | x |  | paper |",
        "| `c` |  | see the file | ours |",
    ]
