# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe in two processes, and the gradients of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_cross_teaching import make_model

from hf_methods.resume import last_whole_checkpoint


ROOT = Path(__file__).parents[2]


def train_one_step(folder):
    """One process of two: gradients of DDP on its own batch, where rank 1 has no pseudo label and no object."""
    rank = torch.distributed.get_rank()
    for mode in ("anchor", "box"):
        model = ddp_model(mode)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped(**ddp_batch(rank)).loss.backward()
        torch.save(torch.cat([p.grad.flatten() for p in model.students.parameters()]), f"{folder}/{mode}-{rank}.pt")


def ddp_model(mode):
    model = make_model(mode=mode, burn_in_steps=0, score_threshold=0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classification_head" in name and name.endswith("weight"):
                parameter.mul_(100)
    return model.train()


def ddp_batch(rank):
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(2, 3, 64, 64, generator=generator) * (1 - rank)  # rank 1 sees nothing
    boxes, labels = torch.full((1, 4), 0.5)[rank:], torch.tensor([1])[rank:]
    labeled = {"pixel_values": images, "labels": [{"class_labels": labels, "boxes": boxes}] * 2}
    identity = torch.tensor([[1.0, 0, 1, 0]] * 2)
    unlabeled = {"weak": images, "strong": images, "weak_to_strong": identity}
    return {"labeled": [labeled] * 2, "unlabeled": [unlabeled] * 2, "unsup_weight": 1.0}


SCRIPT = """
import runpy, sys
folder, tests = sys.argv[1:3]
sys.argv = ["training/cross_teaching/train.py", *sys.argv[3:]]
recipe = runpy.run_path(sys.argv[0], run_name="recipe")  # as a script it would end the process group
kinds = [recipe[kind + "Arguments"] for kind in ("Model", "Data", "CrossTeachingTraining")]
recipe["train"](*recipe["parse_args_and_config"](kinds))
sys.path.insert(0, tests)
from test_two_processes_cross_teaching import train_one_step
train_one_step(folder)  # in the process group that is there
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of the recipe run in two processes, each of which then takes one step in both modes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", "training/accelerate/cpu_2.yaml", str(folder / "script.py")]
    command += [str(folder), str(Path(__file__).parent), "--config", "training/cross_teaching/smoke.yaml"]
    command += ["--output_dir", str(folder / "run"), "--use_cpu", "true", "--per_device_train_batch_size", "1"]
    command += ["--save_strategy", "steps", "--save_steps", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_recipe_runs_in_two_processes_and_evaluates_each_image_once(two_processes):
    run = two_processes / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["summary_mean_and_sd"]["Cross Teaching"]["images"] == [5, None]  # uneven, and each once
    assert results["settings"]["samples_per_step"] == 2
    assert set(results["data"]) == {"labeled", "unlabeled", "evaluation"}
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(run).endswith("checkpoint-1")


@pytest.mark.parametrize("mode", ["anchor", "box"])
def test_two_processes_have_the_mean_gradient_also_where_one_has_nothing_to_learn(mode, two_processes):
    found = [torch.load(two_processes / f"{mode}-{rank}.pt") for rank in (0, 1)]
    own = []
    for rank in (0, 1):
        model = ddp_model(mode)
        output = model(**ddp_batch(rank))
        assert (output.logs["pseudo_0"] > 0) == (rank == 0)
        output.loss.backward()
        own.append(torch.cat([p.grad.flatten() for p in model.students.parameters()]))
    assert torch.equal(*found) and not torch.allclose(*own)
    torch.testing.assert_close(found[0], (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-5)
