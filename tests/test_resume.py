# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A full disk or a killed process in the middle of a checkpoint: the one before it is kept, and the run goes on from there."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments

from hf_methods import resume
from hf_methods.resume import last_whole_checkpoint


# In the order in which Trainer writes them; the last but one is the state of the random numbers.
FILES = [
    "model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)
        self.noise = nn.Dropout(0.5)  # makes the run depend on the random numbers

    def forward(self, x, labels):
        return {"loss": (self.line(self.noise(x)).squeeze(-1) - labels).square().mean()}


def train(folder, checkpoint=None, **options):
    rows = [{"x": torch.tensor([i / 8, 1.0, i % 3]), "labels": torch.tensor(float(i))} for i in range(8)]
    defaults = dict(
        max_steps=6, save_steps=2, save_total_limit=1, per_device_train_batch_size=2, learning_rate=0.1, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(Line(), TrainingArguments(str(folder), **{**defaults, **options}), train_dataset=rows)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.model.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run with the checkpoints 2, 4 and 6, and its last weights."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, save_total_limit=None)


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(resume.logger, "warning", found.append)
    return found


def cut(path, share=0.5):
    os.truncate(path, int(path.stat().st_size * share))


def fill_disk_at(monkeypatch, wanted):
    """Let the writing of one file stop half-way, as a full disk does."""

    def stopping(write, place):
        def stopped(*args, **kwargs):
            write(*args, **kwargs)
            path = args[place]
            if isinstance(path, (str, os.PathLike)) and Path(path).parts[-2:] == Path(wanted).parts:
                cut(Path(path))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return stopped

    for owner, name in ((safetensors.torch, "save_file"), (torch, "save"), (TrainerState, "save_to_json")):
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name), 1))


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint_and_no_more(
    file, whole, tmp_path, monkeypatch, warnings
):
    with monkeypatch.context() as patch:
        fill_disk_at(patch, f"checkpoint-4/{file}")
        with pytest.raises(OSError, match="No space left"):
            train(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-4"]
    checkpoint = last_whole_checkpoint(tmp_path)
    assert checkpoint == str(tmp_path / "checkpoint-2")
    (warning,) = warnings
    assert warning.startswith(f"{tmp_path / 'checkpoint-4'} was not written to its end ({file} can't be read)")
    torch.manual_seed(9)  # another process has other random numbers
    again = train(tmp_path, checkpoint)
    assert all(torch.equal(again[name], weight) for name, weight in whole[1].items())
    assert os.listdir(tmp_path) == ["checkpoint-6"]


def test_trainer_writes_its_state_last_and_what_is_missing_before_it_is_named(whole, tmp_path, monkeypatch, warnings):
    written = []

    def noting(write, place):
        return lambda *args, **kwargs: (write(*args, **kwargs), written.append(os.path.basename(args[place])))

    with monkeypatch.context() as patch:
        for owner, name in ((safetensors.torch, "save_file"), (torch, "save"), (TrainerState, "save_to_json")):
            patch.setattr(owner, name, noting(getattr(owner, name), 1))
        train(tmp_path, max_steps=2)
    assert sorted(written) == sorted(FILES) and written[-1] == "trainer_state.json"
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(tmp_path) is None
    (warning,) = warnings
    assert "checkpoint-2" in warning and "trainer_state.json is missing" in warning and "begins anew" in warning


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_without_its_end_is_found_whatever_was_written_behind_it(share, whole, tmp_path, warnings):
    """A machine that goes down may leave the last file and not the end of an earlier one."""
    for file in FILES:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole[0], tmp_path / "run")
        cut(tmp_path / "run" / "checkpoint-6" / file, share)
        assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")
        assert f"checkpoint-6 was not written to its end ({file} can't be read)" in warnings.pop()


def test_the_last_one_is_that_of_the_most_steps(whole, tmp_path, warnings):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None and last_whole_checkpoint(tmp_path) is None
    for step in (5, 10):
        shutil.copytree(whole[0] / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    shutil.copytree(whole[0] / "checkpoint-2", tmp_path / "checkpoint-best")
    (tmp_path / "checkpoint-20").touch()
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10") and warnings == []


def test_a_checkpoint_of_the_model_only_is_not_gone_on_from_with_a_fresh_optimizer(tmp_path):
    train(tmp_path, max_steps=2, save_only_model=True)
    with pytest.raises(
        ValueError, match=r"checkpoint-2 has a model but no state of the optimizer.*save_only_model=True"
    ):
        last_whole_checkpoint(tmp_path)
