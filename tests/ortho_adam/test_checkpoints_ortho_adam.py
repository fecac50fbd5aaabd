# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints of OrthoAdam: bit for bit, and what is refused."""

import copy

import pytest
import torch
from steps_ortho_adam import SETTINGS, SHAPES, parameters, run, through_file
from torch import nn
from torch.testing import assert_close

from hf_methods.ortho_adam import (
    OrthoAdam,
)


# ---- checkpoints


@pytest.mark.parametrize("options", [{}, {"store_rotations": True}, {"cache_rotations": False}], ids=str)
@pytest.mark.parametrize("rotation", ["auto", "hadamard", "full"])
def test_a_reloaded_optimizer_resumes_bit_for_bit(rotation, options):
    params = parameters()
    opt = OrthoAdam(params.items(), rotation=rotation, **options, **SETTINGS)
    run(opt, params, range(3))
    saved = through_file(opt.state_dict())
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    run(opt, params, range(3, 6))
    new = OrthoAdam(resumed.items(), lr=1.0, seed=5, **options)
    new.load_state_dict(saved)
    run(new, resumed, range(3, 6))
    for name in SHAPES:
        assert torch.equal(params[name], resumed[name])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(opt.state[params[name]][moment], new.state[resumed[name]][moment])
        assert new.state[resumed[name]]["step"] == 6


@pytest.mark.parametrize("rotation", ["auto", "hadamard", "full"])
def test_drawing_rotations_again_at_each_step_gives_the_cached_steps(rotation):
    cached, drawn = parameters(), parameters()
    run(OrthoAdam(cached.items(), rotation=rotation, **SETTINGS), cached, range(4))
    run(OrthoAdam(drawn.items(), rotation=rotation, cache_rotations=False, **SETTINGS), drawn, range(4))
    for name in SHAPES:
        assert torch.equal(cached[name], drawn[name])


@pytest.mark.parametrize("cache_rotations", [True, False])
def test_stored_rotations_are_used_in_place_of_drawn_ones(cache_rotations):
    params = parameters({"a": (8, 8)})
    opt = OrthoAdam(params.items(), store_rotations=True)
    saved = through_file(opt.state_dict())
    saved["rotations"]["a"][0]["matrices"] = torch.eye(8)[None]
    saved["rotations"]["a"][1]["matrices"] = torch.eye(8)[None].flip(1)
    new = OrthoAdam(params.items(), cache_rotations=cache_rotations)
    new.load_state_dict(saved)
    x = torch.arange(64.0).view(8, 8)
    assert_close(new.rotate(params["a"], x), x.flip(1))


def test_a_float32_checkpoint_reloads_after_steps_were_already_taken():
    params, other = parameters(), parameters()
    opt, new = OrthoAdam(params.items(), **SETTINGS), OrthoAdam(other.items(), seed=8, **SETTINGS)
    run(opt, params, range(2))
    run(new, other, range(5, 7))  # fills the stacks with rotations of seed 8
    new.load_state_dict(through_file(opt.state_dict()))
    for name in SHAPES:
        other[name].data.copy_(params[name].data)
    run(opt, params, range(2, 4))
    run(new, other, range(2, 4))
    for name in SHAPES:
        assert torch.equal(params[name], other[name])


def test_moments_of_bf16_parameters_are_float32_and_survive_a_checkpoint():
    params = parameters(dtype=torch.bfloat16)
    opt = OrthoAdam(params.items(), **SETTINGS)
    run(opt, params, range(3))
    new = OrthoAdam(params.items(), **SETTINGS)
    new.load_state_dict(through_file(opt.state_dict()))
    for p in params.values():
        for name in ("exp_avg", "exp_avg_sq"):
            moment = opt.state[p][name]
            assert moment.dtype == new.state[p][name].dtype == torch.float32
            assert torch.equal(moment, new.state[p][name])
    moment = opt.state[params["a"]]["exp_avg"]
    assert (moment != moment.bfloat16().float()).any()  # a trip through bf16 would have shown


def test_moments_of_float64_parameters_are_float64():
    params = parameters(dtype=torch.float64)
    opt = OrthoAdam(params.items())
    run(opt, params, range(1))
    opt.load_state_dict(through_file(opt.state_dict()))
    assert {opt.state[p]["exp_avg"].dtype for p in params.values()} == {torch.float64}


def test_loaded_moments_are_not_shared_with_the_checkpoint():
    params = parameters()
    opt = OrthoAdam(params.items())
    run(opt, params, range(1))
    saved = copy.deepcopy(opt.state_dict())
    before = saved["state"][0]["exp_avg"].clone()
    opt.load_state_dict(saved)
    run(opt, params, range(1, 3))
    assert torch.equal(saved["state"][0]["exp_avg"], before)


@pytest.mark.parametrize("rotation", ["auto", "hadamard"])
@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_an_altered_rotation_check_is_refused(rotation, change):
    params = parameters()
    opt = OrthoAdam(params.items(), rotation=rotation)
    saved = through_file(opt.state_dict())
    opt.load_state_dict(saved)
    saved["param_groups"][0]["rotation_check"][1][0] += change
    with pytest.raises(RuntimeError, match="rotation of b differs"):
        opt.load_state_dict(saved)


def test_other_parameter_names_are_refused():
    params = parameters()
    saved = OrthoAdam(params.items()).state_dict()
    renamed = [({"b": "c"}.get(name, name), p) for name, p in params.items()]
    with pytest.raises(RuntimeError, match="'c', 'b'"):
        OrthoAdam(renamed).load_state_dict(saved)


def test_the_checkpoints_seed_and_rotation_win_over_the_constructors():
    params = parameters()
    old = OrthoAdam(params.items(), seed=1, rotation="full")
    new = OrthoAdam(params.items(), seed=2)
    q, drawn = old.rotation_matrix(params["a"]), new.rotation_matrix(params["a"])
    new.load_state_dict(through_file(old.state_dict()))
    assert (q - drawn).abs().max() > 0.1
    assert torch.equal(new.rotation_matrix(params["a"]), q)
    assert new.param_groups[0]["seed"] == 1 and new.param_groups[0]["rotation"] == "full"


def test_a_checkpoint_of_another_shape_raises_before_anything_changes():
    def stepped(size):
        param = torch.zeros(size, size, requires_grad=True)
        optimizer = OrthoAdam([("w", param)], seed=size)
        param.grad = torch.ones_like(param)
        optimizer.step()
        return optimizer

    optimizer = stepped(4)
    with pytest.raises(RuntimeError, match=r"w is \(4, 4\), in the checkpoint \(8, 8\)"):
        optimizer.load_state_dict(stepped(8).state_dict())
    assert optimizer.param_groups[0]["seed"] == 4
