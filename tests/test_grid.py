# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the grids of all methods share: folders, command lines, processes, summaries and bars."""

import json

import pytest

from hf_methods.grid import ArmsArguments, as_words, mean_and_sd, plot_arms, run_script
from hf_methods.plotting import BLUE, GREY


RECIPE = """
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
folder = Path(words[words.index("--output_dir") + 1])
assert "fail" not in words, "as it was asked to"
print("trained")
(folder / "results.json").write_text(json.dumps({"words": words, "threads": os.environ["OMP_NUM_THREADS"]}))
"""


def test_arms_must_be_given_and_have_folders_of_their_own():
    with pytest.raises(ValueError, match="`arms` is empty"):
        ArmsArguments("a.yaml", "runs", "out.json")
    args = ArmsArguments(
        "a.yaml", "runs", "out.json", arms={"CPE, official": {}, "CPE (official)": {}, "FixMatch": {}}
    )
    assert args.seeds == [0, 1, 2]
    assert args.folder("CPE, official", 3).as_posix() == "runs/cpe-official-3"


def test_options_are_the_words_of_a_command_line():
    options = {"taus": [0, 1.5], "arm": "ct", "use_cbn": False, "names": []}
    assert as_words(options) == ["--taus", "0", "1.5", "--arm", "ct", "--use_cbn", "False", "--names"]


def test_a_run_is_a_process_with_its_log_and_is_not_made_twice(tmp_path):
    script, folder = tmp_path / "train.py", tmp_path / "runs" / "a-0"
    script.write_text(RECIPE)
    assert run_script(script, folder, "a.yaml", {"seed": 0}, threads=1) == folder
    results = json.loads((folder / "results.json").read_text())
    assert results["words"] == ["--config", "a.yaml", "--output_dir", str(folder), "--seed", "0"]
    assert results["threads"] == "1" and (folder / "train.log").read_text() == "trained\n"
    script.write_text("raise SystemExit(3)")
    run_script(script, folder, "a.yaml", {"seed": 0}, threads=1)  # finished
    with pytest.raises(ChildProcessError, match="failed for a-0 with status 3: no message"):
        run_script(script, folder, "a.yaml", {"seed": 0}, threads=1, finished="model.safetensors")


def test_a_run_that_fails_stops_the_grid_and_leaves_its_log(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(RECIPE)
    with pytest.raises(ChildProcessError, match="status 1: AssertionError: as it was asked to"):
        run_script(script, tmp_path / "b", "a.yaml", {"mode": "fail"}, threads=1)
    assert "as it was asked to" in (tmp_path / "b" / "train.log").read_text()


def test_figures_have_a_mean_and_a_deviation_where_every_seed_has_one():
    rows = [{"map_50": 0.5, "changed": None}, {"map_50": 0.7, "changed": 0.1}]
    assert mean_and_sd(rows) == {"map_50": [pytest.approx(0.6), pytest.approx(0.02**0.5)]}
    assert mean_and_sd(rows[:1]) == {"map_50": [0.5, None]}


def test_bars_are_the_means_and_ours_is_blue():
    summary = {
        "supervised": {"accuracy": [0.5, None], "tail": [0.2, 0.1]},
        "ours": {"accuracy": [0.6, 0.05], "tail": [0.4, 0.1]},
    }
    figure, (accuracy, tail) = plot_arms(summary, {"accuracy": "accuracy, %", "tail": "tail, %"}, factor=100)
    assert [bar.get_width() for bar in accuracy.patches] == pytest.approx([50, 60])
    assert [bar.get_width() for bar in tail.patches] == pytest.approx([20, 40])
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["supervised", "ours"]
    assert (
        not any(label.get_text() for label in tail.get_yticklabels())
        and accuracy.yaxis_inverted()
        and figure.axes == [accuracy, tail]
    )
    from matplotlib.colors import to_rgba

    assert [bar.get_facecolor() for bar in accuracy.patches] == [to_rgba(GREY), to_rgba(BLUE)]
