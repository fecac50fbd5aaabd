# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of a run and CoOp's schedule: the published ones, and what is refused."""

import pytest
import torch
from trainer_subpt import make_arguments

from hf_methods.args import parse_args_and_config
from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments, coop_learning_rate, early_epochs


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_epochs", [2, 50, 100, 200])
def test_the_schedule_is_torchs_cosine_behind_a_constant_epoch(num_epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    expected = [1e-5]
    for _ in range(num_epochs - 1):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    rates = [coop_learning_rate(epoch, num_epochs, 2e-3) for epoch in range(1, num_epochs + 1)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("epochs", "steps", "factor"), [(50, 4, 0.9990389), (100, 4, 0.9980407), (200, 4, 0.9960465), (100, 10, 0.9949934)]
)
def test_decay_shrinks_the_part_outside_by_the_known_factor(epochs, steps, factor):
    a, v = 1.0, 0.0
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            v = 0.9 * v + 5e-4 * a
            a -= coop_learning_rate(epoch, epochs, 2e-3) * v
    assert a == pytest.approx(factor, abs=1e-7)


@pytest.mark.parametrize(
    ("epochs", "shots", "expected"), [(50, 1, 10), (100, 2, 20), (100, 4, 30), (200, 8, 40), (200, 16, 50)]
)
def test_the_early_epochs_are_the_published_ones(epochs, shots, expected):
    assert early_epochs(epochs, shots) == expected


def test_without_a_table_three_tenths_are_early():
    assert [early_epochs(e) for e in (100, 50, 10, 3, 2)] == [30, 15, 3, 2, 2]
    assert early_epochs(40, 16) == 40


def test_the_defaults_are_the_papers(tmp_path):
    arguments = SubPTTrainingArguments(str(tmp_path), use_cpu=True)
    assert (arguments.num_train_epochs, arguments.subspace_epochs, arguments.subspace_rank) == (100, 30, 10)
    assert (arguments.learning_rate, arguments.momentum, arguments.weight_decay) == (2e-3, 0.9, 5e-4)
    assert (arguments.max_grad_norm, arguments.train_batch_size, arguments.nfl_loss) == (0, 32, "cosine")
    assert not arguments.remove_unused_columns and arguments.label_names == ["labels"]


def test_arguments_come_from_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "output_dir: out\nlearning_rate: 2e-3\nnum_train_epochs: 20\nsubspace_rank: 3\nnfl_weight: 1\n"
        "nfl_names: [great pyrenees, ox]\nuse_cpu: true\n"
    )
    (arguments,) = parse_args_and_config([SubPTTrainingArguments], ["--config", str(path), "--subspace_epochs", "5"])
    assert (arguments.learning_rate, arguments.nfl_names) == (2e-3, ["great pyrenees", "ox"])
    assert (arguments.subspace_epochs, arguments.nfl_weight) == (5, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subspace_rank": 4}, "`subspace_rank` must be at most 3 with 4 snapshots, got 4"),
        ({"subspace_rank": -1}, "`subspace_rank` must be 0 or more"),
        ({"subspace_epochs": 7}, r"`subspace_epochs` must be in 2..6 \(epochs\), got 7"),
        ({"subspace_epochs": 1}, "`subspace_epochs` must be in 2..6"),
        ({"stop_epochs": 7}, "`stop_epochs` must be in 1..6, got 7"),
        ({"nfl_weight": -1.0}, "`nfl_weight` must be 0 or more"),
        ({"nfl_loss": "l1"}, "`nfl_loss` must be one of cosine, l2, got 'l1'"),
        ({"rewind": "back"}, "`rewind` must be one of"),
        ({"projection": "weights"}, "`projection` must be one of grad, update"),
        ({"anchor_names": "novel"}, "`anchor_names` must be one of"),
        ({"schedule": "cosine"}, "`schedule` must be one of"),
        ({"subspace_source": "gradients"}, "`subspace_source` must be one of snapshots, late, random"),
        ({"num_train_epochs": 1.5}, "whole number, 1 or more"),
        ({"max_steps": 5}, "without `max_steps`"),
        ({"fsdp": "full_shard"}, "cut the context into shards.*use DDP"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **options)
