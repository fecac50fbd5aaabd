# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The grid of arms: its summaries by hand, and a whole one on drawn shapes with a random model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer

from hf_methods.subpt.emoji_subpt import load_emoji


RECIPE = Path(__file__).parents[2] / "training" / "subpt"


@pytest.fixture(scope="module")
def grid():
    sys.path.insert(0, str(RECIPE))  # the script imports its neighbour
    before = sys.modules.pop("train", None)
    try:
        spec = importlib.util.spec_from_file_location("grid_subpt", RECIPE / "grid.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(RECIPE))
        sys.modules.pop("train", None)
        if before is not None:
            sys.modules["train"] = before


def a_run(base, novel, loss):
    curve = [{"epoch": e, "base": b, "novel": n, "harmonic_mean": 0.0} for e, (b, n) in enumerate(zip(base, novel), 1)]
    figures = {"base": [base[-1], None], "novel": [novel[-1], None], "harmonic_mean": [0.0, None]}
    return {"arm": "CoOp", "summary_mean_and_sd": {"CoOp": figures}, "curve": curve, "ce_loss_by_epoch": [9.0, loss]}


def test_figures_and_curves_are_means_over_seeds(grid):
    runs = [a_run((10, 20), (30, 5), 1.0), a_run((20, 40), (10, 15), 2.0)]
    rows = [grid.figures_of(run) for run in runs]
    assert rows[0] == {"base": 20, "novel": 5, "harmonic_mean": 0, "peak_novel": 30, "last_ce_loss": 1.0}
    curve = grid.mean_curve(runs)
    assert curve == {"epoch": [1, 2], "base": [15, 30], "novel": [20, 10], "harmonic_mean": [0, 0]}


def test_arms_of_the_curves_must_be_known(grid):
    with pytest.raises(ValueError, match=r"`curves` names arms that are none: \['NFL'\]"):
        grid.GridArguments("a", "b", "c", arms={"CoOp": {}}, curves=["NFL"])


@pytest.mark.slow
def test_a_grid_writes_figures_plots_and_a_checkpoint(grid, tmp_path, monkeypatch):
    arms = {
        "CoOp": {"subspace_rank": 0, "nfl_weight": 0},
        "late": {"nfl_weight": 0, "subspace_source": "late", "subspace_epochs": 3},
        "SubPT + NFL": {"nfl_protocol": "inductive", "nfl_names": ["acorn", "lampshade"]},
    }
    shared = yaml.safe_load((RECIPE / "smoke.yaml").read_text())
    config = tmp_path / "shared.yaml"
    config.write_text(yaml.safe_dump({**shared, "logging_strategy": "epoch", "use_cpu": True}))
    args = grid.GridArguments(
        str(config), str(tmp_path / "runs"), str(tmp_path / "out.json"), [0, 1], arms, checkpoint=str(tmp_path / "hub")
    )
    grid.main(args)
    results = json.loads((tmp_path / "out.json").read_text())
    assert list(results["summary_mean_and_sd"]) == ["zero-shot CLIP", *arms] and results["seeds"] == [0, 1]
    assert results["curves"]["late"]["epoch"] == [1, 2, 3]
    last = [results["curves"]["CoOp"][name][-1] for name in ("base", "novel")]
    assert last == pytest.approx([results["summary_mean_and_sd"]["CoOp"][name][0] for name in ("base", "novel")])
    assert (
        len(results["runs"]["CoOp"]) == 2
        and (tmp_path / "out.png").exists()
        and (tmp_path / "out_curves.png").exists()
    )
    assert results["settings"]["train"]["nfl_names"] == ["acorn", "lampshade"]

    # Features that are shared by the arms give what a run alone gives.
    alone = grid.parse_args_and_config(
        (grid.ModelArguments, grid.DataArguments, grid.SubPTTrainingArguments),
        ["--config", str(config), "--output_dir", str(tmp_path / "alone"), "--nfl_protocol", "inductive"]
        + ["--nfl_names", "acorn", "lampshade", "--seed", "1"],
    )
    grid.train(*alone)
    of_grid = json.loads((tmp_path / "runs" / "subpt-nfl-1" / "results.json").read_text())
    assert json.loads((tmp_path / "alone" / "results.json").read_text())["curve"] == of_grid["curve"]

    hub = tmp_path / "hub"
    weights = load_file(hub / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} <= {torch.float16, torch.int64}
    model = AutoModelForZeroShotImageClassification.from_pretrained(hub)
    assert model.dtype == torch.float32 and len(AutoTokenizer.from_pretrained(hub)) > 514
    assert model.config.subpt_hypothesis_template.startswith("<|ctx_0|>")
    for adapter, arm in (("adapter", "subpt-nfl-0"), ("adapter_coop", "coop-0")):
        saved = (hub / adapter / "adapter_model.safetensors").read_bytes()
        assert saved == (tmp_path / "runs" / arm / "adapter" / "adapter_model.safetensors").read_bytes()
    assert {"results.json", "results.png", "curves.png"} <= {path.name for path in hub.iterdir()}
    assert json.loads((hub / "results.json").read_text())["arm"] == "SubPT + NFL"

    monkeypatch.setattr(grid, "train", None)  # finished runs are not trained again
    grid.main(args)
    again = json.loads((tmp_path / "out.json").read_text())
    assert (
        again["summary_mean_and_sd"] == results["summary_mean_and_sd"]
        and again["wall_seconds"] == results["wall_seconds"]
    )


def test_the_unrelated_names_are_of_training_emoji_of_base_classes():
    arms = yaml.safe_load((RECIPE / "grid.yaml").read_text())["arms"]
    names = arms["NFL, unrelated names"]["nfl_names"]
    assert names == arms["SubPT + NFL, unrelated names"]["nfl_names"] and len(set(names)) == 34
    pool = load_emoji("train")
    label = dict(zip(pool["name"], pool["label"], strict=True))
    assert sorted(label[name] for name in names) == list(range(34))
    novel = set(pool.features["label"].names[34:])
    assert not novel & set(names)
