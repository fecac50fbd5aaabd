# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Writing aside, then renaming."""

import json

import pytest

from hf_methods.checkpoints import atomic_save, atomic_write_text, write_results


def test_a_failing_save_keeps_the_old_folder(tmp_path):
    atomic_save(tmp_path / "m", lambda folder: (folder / "a").write_text("old"))

    def broken(folder):
        (folder / "a").write_text("new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_save(tmp_path / "m", broken)
    assert (tmp_path / "m" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_new_save_replaces_the_old_folder_whole(tmp_path):
    atomic_save(tmp_path / "m", lambda folder: (folder / "a").write_text("old"))
    atomic_save(tmp_path / "m", lambda folder: (folder / "b").write_text("new"))
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_results_hold_what_reproduces_them(tmp_path):
    write_results(tmp_path / "r.json", seeds=[0], data={"test": "ab"}, wall_seconds=1.23, metrics={"x": 1})
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["seeds"] == [0] and results["metrics"] == {"x": 1} and results["wall_seconds"] == 1.2
    assert results["environment"]["torch"] and results["command"].startswith("python ")


def test_text_is_replaced(tmp_path):
    for text in ("one", "two"):
        atomic_write_text(tmp_path / "f", text)
    assert (tmp_path / "f").read_text() == "two" and len(list(tmp_path.iterdir())) == 1
