# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Two gloo processes: the projection under DistributedDataParallel, and a whole `fit`, against one process."""

import contextlib
import shutil

import pytest
import torch
from tiny_subpt import NAMES, OTHERS, embeddings, make_model
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from two_processes import WORLD, run_in_two

from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments
from hf_methods.subpt.subspace_subpt import SubspaceProjector, project, random_basis
from hf_methods.subpt.training_subpt import SubPTTrainer


STEPS, ACCUMULATE = 3, 2
FEATURES = embeddings(16)
LABELS = torch.arange(16) % len(NAMES)


def plain_loop(model, rank, world, accumulate):
    """SGD with clipping over all 16 images a step: `world` processes, `accumulate` backward passes each."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    context = inner.context
    optimizer = torch.optim.SGD([context], 0.05, momentum=0.9)
    start = context.detach().clone()
    with SubspaceProjector(context, random_basis(context.numel(), 5)):
        for _ in range(STEPS):
            optimizer.zero_grad()
            parts = torch.arange(16)[rank::world].chunk(accumulate)
            for number, part in enumerate(parts):
                is_last = number == len(parts) - 1
                no_sync = model.no_sync() if world > 1 and not is_last else contextlib.nullcontext()
                with no_sync:
                    (model(image_embeds=FEATURES[part], labels=LABELS[part]).loss / accumulate).backward()
            torch.nn.utils.clip_grad_norm_([context], 0.5)
            optimizer.step()
    return context.detach().clone() - start


def fit(folder, per_device, resume=False):
    arguments = SubPTTrainingArguments(
        folder, num_train_epochs=4, subspace_epochs=3, subspace_rank=2, learning_rate=0.05, use_cpu=True,
        per_device_train_batch_size=per_device, report_to="none", disable_tqdm=True, logging_strategy="no", save_strategy="epoch",
        nfl_weight=1.0, nfl_names=OTHERS, nfl_templates=["a {}."], ddp_find_unused_parameters=False,
    )  # fmt: skip
    data = [{"image_embeds": row, "labels": int(label)} for row, label in zip(FEATURES, LABELS)]
    trainer = SubPTTrainer(make_model(), arguments, train_dataset=data)
    output = trainer.fit(resume=resume)
    return {
        "context": trainer.prompt_model.context.detach().clone(),
        "snapshots": output.snapshots,
        "components": output.basis.components,
        "world": arguments.world_size,
    }


def worker(rank, folder):
    results = {"loop": plain_loop(DistributedDataParallel(make_model()), rank, WORLD, ACCUMULATE)}
    return {**results, "fit": fit(f"{folder}/fit", 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def results(folder):
    """The results of both processes: one pair for all tests."""
    return run_in_two(worker, folder)


def test_a_loop_with_accumulation_and_clipping_is_that_of_one_process(results):
    expected = plain_loop(make_model(), 0, 1, 1)
    basis = random_basis(expected.numel(), 5)
    assert expected.norm() > 0.01
    for result in results:
        assert_close(result["loop"], expected, rtol=0, atol=1e-5)
        outside = result["loop"] - project(result["loop"], basis.components)
        assert outside.norm() < 1e-5 * expected.norm()
    assert torch.equal(results[0]["loop"], results[1]["loop"])


def test_a_whole_fit_is_that_of_one_process(results, tmp_path):
    expected = fit(str(tmp_path), 16)
    for result in results:
        assert result["fit"]["world"] == WORLD
        assert_close(result["fit"]["snapshots"], expected["snapshots"], rtol=0, atol=1e-5)
        assert_close(result["fit"]["context"], expected["context"], rtol=0, atol=1e-4)
    for name in ("context", "snapshots", "components"):  # the processes agree to the bit
        assert torch.equal(results[0]["fit"][name], results[1]["fit"][name])
    assert (expected["context"] - make_model().context).norm() > 0.05


def test_one_process_goes_on_with_what_two_began(results, folder, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(folder / "fit", stopped)
    for epoch in (3, 4):
        shutil.rmtree(stopped / f"checkpoint-{epoch}")
    again = fit(str(stopped), 16, resume=True)
    assert_close(again["context"], results[0]["fit"]["context"], rtol=0, atol=1e-4)
    assert torch.equal(again["components"], results[0]["fit"]["components"])
    with pytest.raises(ValueError, match="trained with 16 examples a step, now it would be 8"):
        shutil.rmtree(stopped / "checkpoint-4")
        fit(str(stopped), 8, resume=True)
