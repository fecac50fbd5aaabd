# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Writing aside, then renaming: after a failure the old content is there, whole and alone."""

import json
import math
import os
import platform
import re
import shlex
import stat
from pathlib import Path

import numpy
import pytest
import torch

from hf_methods import checkpoints
from hf_methods.checkpoints import atomic_save, atomic_write_text, environment, write_json, write_results


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save_text(text, name="a"):
    return lambda folder: (folder / name).write_text(text)


def failing_replace(monkeypatch, fails_on, error):
    """Make the `fails_on`-th rename fail; returns the list of renames tried."""
    calls, replace = [], os.replace

    def fake(source, target):
        calls.append((Path(source).name, Path(target).name))
        if len(calls) == fails_on:
            raise error
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "replace", fake)
    return calls


def test_text_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    for text in ("one", "zwei ü 不"):
        atomic_write_text(tmp_path / "new folder" / "f", text)
        assert (tmp_path / "new folder" / "f").read_bytes() == text.encode()
    assert names(tmp_path / "new folder") == ["f"]


@pytest.mark.parametrize("where", ["encode", "rename"])
def test_a_failing_write_keeps_the_old_text(where, tmp_path, monkeypatch):
    atomic_write_text(tmp_path / "f", "old")
    if where == "rename":
        failing_replace(monkeypatch, 1, OSError("disk"))
    with pytest.raises((UnicodeEncodeError, OSError)):
        atomic_write_text(tmp_path / "f", "\ud800" if where == "encode" else "new")
    assert (tmp_path / "f").read_text() == "old" and names(tmp_path) == ["f"]


def test_a_folder_in_the_way_of_a_text_is_kept(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError, match="f"):
        atomic_write_text(tmp_path / "f", "new")
    assert names(tmp_path) == ["f"] and (tmp_path / "f").is_dir()


def test_a_new_save_replaces_the_old_folder_whole(tmp_path):
    atomic_save(tmp_path / "deep" / "m", save_text("old"))
    atomic_save(str(tmp_path / "deep" / "m"), save_text("new", "b"))
    assert names(tmp_path / "deep" / "m") == ["b"] and (tmp_path / "deep" / "m" / "b").read_text() == "new"
    assert names(tmp_path / "deep") == ["m"]


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [True, False])
def test_a_failing_save_keeps_what_was_there(error, old, tmp_path):
    if old:
        atomic_save(tmp_path / "m", save_text("old"))

    def broken(folder):
        (folder / "a").write_text("new")
        raise error

    with pytest.raises(type(error)):
        atomic_save(tmp_path / "m", broken)
    assert names(tmp_path) == (["m"] if old else [])
    assert not old or (tmp_path / "m" / "a").read_text() == "old"


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_on", [1, 2])
def test_a_failing_rename_restores_the_old_folder(error, fails_on, tmp_path, monkeypatch):
    atomic_save(tmp_path / "m", save_text("old"))
    calls = failing_replace(monkeypatch, fails_on, error)
    with pytest.raises(type(error)):
        atomic_save(tmp_path / "m", save_text("new"))
    # old away, new in, old back: the second failing is the moment without a folder
    assert len(calls) == (1 if fails_on == 1 else 3)
    assert (tmp_path / "m" / "a").read_text() == "old" and names(tmp_path) == ["m"]


def test_an_interruption_behind_the_last_rename_keeps_the_new_folder(tmp_path, monkeypatch):
    atomic_save(tmp_path / "m", save_text("old"))
    replace, calls = os.replace, []

    def interrupted(source, target):
        replace(source, target)
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_save(tmp_path / "m", save_text("new"))
    assert (tmp_path / "m" / "a").read_text() == "new" and names(tmp_path) == ["m"]


def test_the_old_folder_is_never_deleted_where_nothing_took_its_place(tmp_path, monkeypatch):
    atomic_save(tmp_path / "m", save_text("old"))
    replace = os.replace

    def only_away(source, target):
        if Path(source).name != "m":
            raise OSError("disk")
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "replace", only_away)
    with pytest.raises(OSError, match="disk"):
        atomic_save(tmp_path / "m", save_text("new"))
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(".m.") and kept.name.endswith(".old") and (kept / "a").read_text() == "old"


def test_a_file_in_the_way_of_a_folder_is_kept(tmp_path):
    (tmp_path / "m").write_text("mine")
    with pytest.raises(NotADirectoryError, match="m is a file"):
        atomic_save(tmp_path / "m", save_text("new"))
    assert (tmp_path / "m").read_text() == "mine" and names(tmp_path) == ["m"]


def test_links_stay_links_and_their_targets_are_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "text").write_text("old")
    (tmp_path / "folder_link").symlink_to("real")
    (tmp_path / "text_link").symlink_to("text")
    atomic_save(tmp_path / "folder_link", save_text("new"))
    atomic_write_text(tmp_path / "text_link", "new")
    assert (tmp_path / "real" / "a").read_text() == (tmp_path / "text").read_text() == "new"
    assert (tmp_path / "folder_link").is_symlink() and (tmp_path / "text_link").is_symlink()
    assert names(tmp_path) == ["folder_link", "real", "text", "text_link"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_the_umask_gives(umask, tmp_path):
    before = os.umask(umask)
    try:
        atomic_write_text(tmp_path / "f", "x")
        atomic_save(tmp_path / "m", save_text("x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o777 & ~umask


def strict_json(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_numbers_that_json_has_no_word_for_become_null(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, numpy.float64("nan"))], "c": {"d": 0.0, "e": True}}
    write_json(tmp_path / "x.json", value)
    assert strict_json(tmp_path / "x.json") == {"a": None, "b": [1.5, None, [None, None]], "c": {"d": 0.0, "e": True}}
    assert math.isnan(value["a"])  # the caller's value is not changed


def test_a_value_that_is_no_json_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError, match="Tensor"):
        write_json(tmp_path / "x.json", {"a": torch.ones(1)})
    assert strict_json(tmp_path / "x.json") == 1 and names(tmp_path) == ["x.json"]


def test_results_hold_what_reproduces_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [str(tmp_path / "training" / "train.py"), "--note", "two words; rm", "--rate", "1e-3"]
    monkeypatch.setattr("sys.argv", argv)
    write_results(
        "r/results.json", seeds=[0, 1], data={"test": "ab"}, wall_seconds=1.26, metrics={"x": 1, "y": math.nan}
    )
    results = strict_json(tmp_path / "r" / "results.json")
    assert list(results) == ["command", "environment", "seeds", "data", "wall_seconds", "metrics"]
    # The command works when pasted into a shell, and does not name the machine's folders.
    assert shlex.split(results["command"]) == ["python", "training/train.py", *argv[1:]]
    assert results["environment"] == environment()
    assert (results["seeds"], results["data"], results["wall_seconds"]) == ([0, 1], {"test": "ab"}, 1.3)
    assert results["metrics"] == {"x": 1, "y": None}


def test_environment_names_versions_and_the_kind_of_machine_only():
    found = environment()
    assert torch.__version__.startswith(found["torch"]) and found["python"] == platform.python_version()
    assert {"transformers", "accelerate", "datasets", "tokenizers", "numpy", "machine"} <= set(found)
    assert platform.machine() in found["machine"] and f"{os.cpu_count()} cores" in found["machine"]
    assert platform.node() not in re.split(r"[\s,]+", found["machine"])
