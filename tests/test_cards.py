# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the cards of all methods say alike: Hub ids are told from folders, and figures are rounded."""

import pytest

from hf_methods.cards import dataset_names, eval_results, is_hub_id


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
