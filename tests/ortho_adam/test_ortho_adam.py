# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam: its steps, its rotations and its errors."""

import copy

import pytest
import torch
from steps_ortho_adam import ROTATIONS, SETTINGS, SHAPES, gradients, parameters, reference, run
from torch import nn
from torch.testing import assert_close

from hf_methods.ortho_adam import (
    OrthoAdam,
)
from hf_methods.ortho_adam.rotations import axis_seed, haar_orthogonal


# ---- steps


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("eps", [1e-8, 1e-1])
def test_without_rotation_it_is_adamw(weight_decay, eps):
    ours, theirs = parameters(), parameters()
    settings = {**SETTINGS, "weight_decay": weight_decay, "eps": eps}
    run(OrthoAdam(ours.values(), rotation="none", **settings), ours, range(6))
    run(torch.optim.AdamW(theirs.values(), **settings), theirs, range(6))
    for name in SHAPES:
        assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("eps", [1e-8, 1e-1])
def test_steps_equal_a_float64_reference_with_dense_q(rotation, eps):
    params, settings = parameters(), {**SETTINGS, "eps": eps}
    opt = OrthoAdam(params.items(), rotation=rotation, **settings)
    expected = {
        name: reference(p, [gradients(i)[name] for i in range(5)], opt.rotation_matrix(p), **settings)
        for name, p in params.items()
    }
    run(opt, params, range(5))
    for name in SHAPES:
        assert_close(params[name].double(), expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_every_rotation_moves_weights_elsewhere_than_adamw(rotation):
    ours, theirs = parameters(), parameters()
    run(OrthoAdam(ours.values(), rotation=rotation, **SETTINGS), ours, range(3))
    run(torch.optim.AdamW(theirs.values(), **SETTINGS), theirs, range(3))
    for name in ("a", "b"):
        assert (ours[name] - theirs[name]).abs().max() > 1e-3


def test_each_group_steps_with_its_own_options():
    params, opts = parameters(), {"a": {"lr": 1e-1, "eps": 1e-2}, "b": {"rotation": "full", "weight_decay": 0.0}}
    opts["bias"] = {"betas": (0.5, 0.6), "seed": 4}
    opt = OrthoAdam([{"params": [(n, params[n])], **o} for n, o in opts.items()], **SETTINGS)
    used = {name: {**SETTINGS, **{k: v for k, v in o.items() if k in SETTINGS}} for name, o in opts.items()}
    expected = {
        name: reference(
            params[name], [gradients(i)[name] for i in range(3)], opt.rotation_matrix(params[name]), **used[name]
        )
        for name in opts
    }
    run(opt, params, range(3))
    for name in opts:
        assert_close(params[name].double(), expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_it_is_adam_on_the_rotated_function(rotation, weight_decay):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, 128, generator=generator, dtype=torch.float64) for n in (128, 1))
    f = lambda flat: torch.log(torch.cosh((a @ flat - b[0]) / 5)).sum()  # noqa: E731
    x = nn.Parameter(torch.randn(8, 16, generator=generator, dtype=torch.float64))
    start = x.detach().clone()
    settings = {**SETTINGS, "eps": 1e-6, "weight_decay": weight_decay}
    ours = OrthoAdam([("x", x)], rotation=rotation, **settings)
    q = ours.rotation_matrix(x).double()
    y = nn.Parameter(q @ start.flatten())
    theirs = torch.optim.AdamW([y], **settings)
    for _ in range(10):
        ours.zero_grad()
        theirs.zero_grad()
        f(x.flatten()).backward()
        f(q.T @ y).backward()
        ours.step()
        theirs.step()
    assert (x - start).abs().max() > 1e-2
    assert_close(q @ x.detach().flatten(), y.detach(), atol=1e-5, rtol=0)


def test_one_rotation_is_not_another_coordinate_system_of_plain_adam():
    x = nn.Parameter(torch.zeros(8))
    opt = OrthoAdam([x], lr=1.0)
    x.grad = torch.eye(8)[0]
    opt.step()
    # First Adam step in the rotated basis: signs there, so every entry has size 1 and the update has norm sqrt(8).
    assert_close(x.detach().norm(), torch.tensor(8.0).sqrt(), atol=1e-4, rtol=0)
    assert x.detach()[1:].norm() > 0.1


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    x = nn.Parameter(torch.full((4,), 2.0))
    opt = OrthoAdam([x], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 16.0
    assert x.square().sum() < 16.0


def test_parameters_without_gradient_stay_and_keep_their_own_step_count():
    params = parameters({"a": (4, 4), "b": (4, 4)})
    opt = OrthoAdam(params.items(), weight_decay=0.1)
    before = params["b"].detach().clone()
    params["a"].grad = torch.ones(4, 4)
    opt.step()
    assert torch.equal(params["b"], before)
    params["b"].grad = torch.ones(4, 4)
    expected = reference(before, [torch.ones(4, 4)], opt.rotation_matrix(params["b"]), 1e-3, (0.9, 0.95), 1e-8, 0.1)
    opt.step()
    assert opt.state[params["a"]]["step"] == 2 and opt.state[params["b"]]["step"] == 1
    assert_close(params["b"].double(), expected, atol=1e-6, rtol=0)


# ---- rotations of an optimizer


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_unrotate_inverts_rotate(rotation):
    params = parameters()
    opt = OrthoAdam(params.items(), rotation=rotation)
    for name, x in gradients(0).items():
        assert_close(opt.unrotate(params[name], opt.rotate(params[name], x)), x, atol=1e-5, rtol=0)
        assert_close(opt.rotate(params[name], x).norm(), x.norm(), atol=1e-5, rtol=1e-5)
    assert (opt.rotate(params["a"], gradients(0)["a"]) - gradients(0)["a"]).abs().max() > 0.5


def test_the_matrix_of_two_axes_is_the_kronecker_product_of_haar_matrices():
    param = nn.Parameter(torch.zeros(4, 6))
    q = [haar_orthogonal(size, axis_seed(9, "w", axis, size)) for axis, size in enumerate(param.shape)]
    matrix = OrthoAdam([("w", param)], seed=9).rotation_matrix(param)
    assert_close(matrix, torch.kron(*q), atol=1e-6, rtol=0)


def test_rotations_differ_between_parameters_axes_and_seeds():
    params = parameters({"a": (8, 8), "b": (8, 8)})
    opt, other = OrthoAdam(params.items()), OrthoAdam(params.items(), seed=1)
    eye = torch.eye(8)
    a, b = (opt.rotate(params[name], eye) for name in "ab")
    assert (a - b).abs().max() > 0.1
    assert (a - eye).abs().max() > 0.1  # Q_0 Q_1^T: the identity if both axes had one rotation
    assert (a - other.rotate(params["a"], eye)).abs().max() > 0.1


def test_named_rotations_do_not_depend_on_the_order():
    params = parameters()
    first, second = OrthoAdam(params.items()), OrthoAdam(list(params.items())[::-1])
    for p in params.values():
        assert torch.equal(first.rotation_matrix(p), second.rotation_matrix(p))


def test_unnamed_parameters_of_later_groups_have_rotations_of_their_own():
    x, y = (nn.Parameter(torch.zeros(6)) for _ in range(2))
    opt = OrthoAdam([x])
    opt.add_param_group({"params": [y]})
    assert list(opt.rotation_summary()) == ["0", "1"]
    assert (opt.rotation_matrix(x) - opt.rotation_matrix(y)).abs().max() > 0.1


def test_an_axis_above_max_dense_dim_is_hadamard_or_left_alone():
    params = {"even": nn.Parameter(torch.zeros(2048, 8)), "odd": nn.Parameter(torch.zeros(1501, 8))}
    opt = OrthoAdam(params.items(), max_dense_dim=1024)
    assert opt.rotation_summary() == {"even": ("hadamard", "dense"), "odd": ("identity", "dense")}
    wide = OrthoAdam(params.items(), max_dense_dim=2048, cache_rotations=False)
    assert wide.rotation_summary() == {"even": ("dense", "dense"), "odd": ("dense", "dense")}


def test_a_sequence_gives_each_axis_its_own_rotation():
    param = nn.Parameter(torch.zeros(6, 32))
    opt = OrthoAdam([("w", param)], rotation=("none", "hadamard"))
    assert opt.rotation_summary() == {"w": ("identity", "hadamard")}
    x = torch.zeros(6, 32)
    x[2, 5] = 1.0
    rotated = opt.rotate(param, x)
    assert_close(rotated[2].abs(), torch.full((32,), 32**-0.5), atol=1e-6, rtol=0)
    assert rotated.abs().sum(1).nonzero().tolist() == [[2]]


# ---- errors


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"lr": -1e-3}, "`lr` must be at least 0, got -0.001"),
        ({"lr": float("nan")}, "`lr` .* got nan"),
        ({"eps": -1e-8}, "`eps` must be at least 0"),
        ({"betas": (1.0, 0.9)}, r"`betas` must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"`betas` must be in \[0, 1\)"),
        ({"betas": (0.9, 1.5)}, r"`betas` must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "`weight_decay` must be at least 0"),
        ({"max_dense_dim": -1}, "`max_dense_dim` must be at least 0"),
        ({"rotation": "haar"}, "auto, kronecker, full, hadamard, none, got 'haar'"),
        ({"rotation": ("auto", "haar")}, "auto, kronecker, full, hadamard, none, got 'haar'"),
        ({"rotation": ("auto",)}, r"names 1 axes for a parameter of shape \(4, 4\)"),
        ({"rotation": ("auto",) * 3}, r"names 3 axes for a parameter of shape \(4, 4\)"),
    ],
)
def test_a_bad_value_is_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        OrthoAdam([nn.Parameter(torch.zeros(4, 4))], **bad)


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        OrthoAdam([])


def test_a_full_rotation_is_limited_to_4096_entries():
    OrthoAdam([nn.Parameter(torch.zeros(16, 16))], rotation="full")
    with pytest.raises(ValueError, match="4096 entries, got 4097"):
        OrthoAdam([nn.Parameter(torch.zeros(17, 241))], rotation="full")
    param = nn.Parameter(torch.zeros(17, 241))
    with pytest.raises(ValueError, match="4096 entries, got 4097"):
        OrthoAdam([param]).rotation_matrix(param)


def test_the_smallest_values_in_range_are_accepted():
    params = parameters({"a": (4, 4)})
    opt = OrthoAdam(params.values(), lr=0.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, max_dense_dim=0)
    assert opt.rotation_summary() == {"0": ("identity", "identity")}


def test_complex_parameters_are_refused():
    with pytest.raises(RuntimeError, match="complex parameters, got 0 of torch.complex64"):
        OrthoAdam([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(8, 4, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients, got one for weight"):
        OrthoAdam(embedding.named_parameters()).step()


def test_a_refused_group_is_not_added():
    opt = OrthoAdam([("a", nn.Parameter(torch.zeros(4)))])
    with pytest.raises(ValueError):
        opt.add_param_group({"params": [("b", nn.Parameter(torch.zeros(4)))], "rotation": ("auto", "auto")})
    assert list(opt.rotation_summary()) == ["a"]


def test_a_foreign_parameter_has_no_rotation():
    with pytest.raises(ValueError, match="not one of this optimizer's"):
        OrthoAdam([nn.Parameter(torch.zeros(4))]).rotate(torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_nonfinite_gradient_propagates_as_in_adamw(bad):
    ours, theirs, rotated = (parameters({"a": (4, 4), "b": (4, 4)}) for _ in range(3))
    opts = [
        OrthoAdam(ours.values(), rotation="none", **SETTINGS),
        torch.optim.AdamW(theirs.values(), **SETTINGS),
        OrthoAdam(rotated.values(), **SETTINGS),
    ]
    for params, opt in zip((ours, theirs, rotated), opts):
        for p in params.values():
            p.grad = torch.ones(4, 4)
        params["a"].grad[1, 2] = bad
        opt.step()
    assert theirs["a"].isnan().sum() == 1
    for name in "ab":
        assert_close(ours[name], theirs[name], atol=1e-6, rtol=0, equal_nan=True)
    assert rotated["a"].isnan().all() and rotated["b"].isfinite().all()


def test_a_deep_copy_steps_like_the_original():
    param = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = OrthoAdam([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    twin = copied.param_groups[0]["params"][0]
    twin.grad = torch.ones_like(param)
    optimizer.step()
    copied.step()
    torch.testing.assert_close(twin, param, rtol=0, atol=0)


def test_full_rotation_works_for_channels_last_parameters():
    params = [torch.randn(4, 3, 5, 2).contiguous(memory_format=torch.channels_last).requires_grad_() for _ in "ab"]
    reference = [param.detach().contiguous().requires_grad_() for param in params]
    optimizers = [OrthoAdam(params, rotation="full"), OrthoAdam(reference, rotation="full")]
    for tensors, optimizer in zip((params, reference), optimizers):
        for tensor in tensors:
            tensor.grad = torch.arange(120.0).sin().view(4, 3, 5, 2)
        optimizer.step()
    for a, b in zip(params, reference):
        torch.testing.assert_close(a, b)


def test_an_empty_parameter_is_stepped_over():
    param = torch.zeros(0, 16, requires_grad=True)
    param.grad = torch.zeros(0, 16)
    OrthoAdam([param], rotation="hadamard").step()
    assert param.shape == (0, 16)


def test_full_rotation_with_shard_local_raises():
    with pytest.raises(ValueError, match="shard_local"):
        OrthoAdam([torch.zeros(2, 2, requires_grad=True)], rotation="full", shard_local=True)
