# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The subspace: against numpy's SVD, sklearn's PCA, float64 and closed forms."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from hf_methods.subpt.subspace_subpt import Basis, SubspaceProjector, compute_basis, project, random_basis


def trajectory(num_snapshots=30, dim=200, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_snapshots, dim, generator=generator, dtype=torch.float64).cumsum(0)
    return (0.02 * torch.randn(dim, generator=generator, dtype=torch.float64) + 0.01 * steps).to(dtype)


def projection_matrix(components):
    return components.double().T @ components.double()


@pytest.mark.parametrize(("num_snapshots", "dim", "rank"), [(30, 200, 10), (10, 8192, 5), (2, 6, 1), (12, 4, 4)])
def test_the_basis_is_that_of_sklearns_pca(num_snapshots, dim, rank):
    snapshots = trajectory(num_snapshots, dim)
    basis = compute_basis(snapshots, rank)
    pca = PCA(rank, svd_solver="full").fit(snapshots.double().numpy())
    oracle = torch.from_numpy(pca.components_)
    probe = torch.randn(dim, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = basis.components.double().T @ (basis.components.double() @ probe)
    torch.testing.assert_close(ours, oracle.T @ (oracle @ probe), rtol=0, atol=2e-6)
    torch.testing.assert_close(
        basis.explained_variance_ratio, torch.from_numpy(pca.explained_variance_ratio_).float(), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(basis.mean, torch.from_numpy(pca.mean_).float(), rtol=1e-6, atol=1e-7)
    assert basis.rank == rank and basis.components.dtype == torch.float32


@pytest.mark.parametrize("center", [True, False])
def test_the_basis_is_that_of_numpys_svd_in_float64(center):
    snapshots = trajectory(dtype=torch.float64)
    basis = compute_basis(snapshots, 7, center=center)
    matrix = snapshots.numpy() - (snapshots.numpy().mean(0) if center else 0)
    directions = np.linalg.svd(matrix, full_matrices=False)[2][:7]
    torch.testing.assert_close(
        projection_matrix(basis.components), torch.from_numpy(directions.T @ directions), rtol=0, atol=1e-12
    )
    assert basis.components.dtype == torch.float64
    if not center:
        assert basis.mean.abs().max() == 0


def test_rows_are_orthonormal_and_the_subspace_is_that_of_the_differences_where_it_holds_all_of_them():
    snapshots = trajectory(6, 50)
    basis = compute_basis(snapshots, 5)  # all that 6 centred points span
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(5), rtol=0, atol=1e-6)
    differences = snapshots.diff(dim=0)
    for row in differences:
        torch.testing.assert_close(project(row, basis.components), row, rtol=1e-4, atol=1e-6)
    assert float(basis.explained_variance_ratio.sum()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_snapshots_in_half_precision_give_the_basis_of_their_values(dtype):
    snapshots = trajectory(dtype=dtype)
    half, double = compute_basis(snapshots, 3), compute_basis(snapshots.double(), 3)
    torch.testing.assert_close(
        projection_matrix(half.components), projection_matrix(double.components), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rank", [0, -1, 30, 31])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match=rf"`rank` must be in 1..29 for 30 snapshots of 200 values, got {rank}"):
        compute_basis(trajectory(), rank)


def test_a_rank_above_the_dimension_is_refused_and_without_centring_one_more_is_allowed():
    with pytest.raises(ValueError, match="in 1..4"):
        compute_basis(trajectory(30, 4), 5)
    assert compute_basis(trajectory(5, 50), 5, center=False).rank == 5


def test_snapshots_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be \(T, d\), got \(3, 4, 5\)"):
        compute_basis(torch.randn(3, 4, 5), 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_snapshots_that_are_not_finite_are_named(value):
    snapshots = trajectory()
    snapshots[7, 3] = value
    with pytest.raises(ValueError, match=r"snapshots \[7\] hold NaN or infinite"):
        compute_basis(snapshots, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trajectory_that_stands_still_has_no_directions(dtype):
    snapshots = trajectory(1, dtype=dtype).expand(10, -1)
    with pytest.raises(ValueError, match="span 0 directions.*Raise the learning rate"):
        compute_basis(snapshots, 3)
    line = trajectory(1, dtype=dtype) + torch.arange(10, dtype=dtype)[:, None] * torch.randn(1, 200, dtype=dtype)
    assert compute_basis(line, 1).explained_variance_ratio[0] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="span 1 directions, fewer than `rank` = 3"):
        compute_basis(line, 3)


def test_a_random_basis_is_orthonormal_and_follows_from_its_seed():
    basis = random_basis(100, 7, seed=3)
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(7), rtol=0, atol=1e-6)
    assert torch.equal(basis.components, random_basis(100, 7, seed=3).components)
    assert not torch.allclose(basis.components, random_basis(100, 7, seed=4).components)
    assert basis.explained_variance_ratio.isnan().all()
    with pytest.raises(ValueError, match="`rank` must be in 1..5, got 6"):
        random_basis(5, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_projection_keeps_shape_and_dtype_and_is_that_of_float64(dtype):
    components = random_basis(24, 5).components
    grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (projection_matrix(components) @ grad.to(dtype).double().flatten()).view(4, 6)
    projected = project(grad.to(dtype), components)
    assert projected.dtype == dtype and projected.shape == (4, 6)
    torch.testing.assert_close(projected, expected.to(dtype))


def test_projection_takes_tensors_that_are_not_contiguous():
    components = random_basis(24, 5).components
    grad = torch.randn(6, 4).T
    torch.testing.assert_close(project(grad, components), project(grad.contiguous(), components))


def test_a_projection_that_would_hide_an_infinity_keeps_it():
    components = torch.zeros(1, 4)
    components[0, 0] = 1  # the infinity stands outside of the subspace
    for value in (math.inf, math.nan):
        assert not project(torch.tensor([1.0, 0, value, 0]), components).isfinite().all()


def quadratic_loss(param, data):
    return ((param.flatten() @ data.T) ** 2).mean() + (param.flatten().sin() * data[0]).sum()


def train(param, basis, *, optimizer, steps=12, mode="grad", max_norm=None, scheduler=None):
    data = torch.randn(steps, 3, param.numel(), dtype=param.dtype, generator=torch.Generator().manual_seed(5))
    with SubspaceProjector(param, basis, mode=mode, optimizer=optimizer):
        for batch in data:
            optimizer.zero_grad()
            quadratic_loss(param, batch).backward()
            if max_norm:
                torch.nn.utils.clip_grad_norm_([param], max_norm)
            optimizer.step()
            if scheduler:
                scheduler.step()


def parameter(dtype=torch.float64):
    return torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=dtype))


def outside(displacement, basis):
    return displacement - project(displacement, basis.components.double())


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_without_decay_sgd_never_leaves_the_subspace(max_norm):
    basis, param = compute_basis(trajectory(9, 24, dtype=torch.float64), 4), parameter()
    start = param.detach().clone()
    train(param, basis, optimizer=torch.optim.SGD([param], 0.01, momentum=0.9), max_norm=max_norm)
    displacement = param.detach() - start
    assert displacement.norm() > 1e-3
    assert outside(displacement, basis).norm() < 1e-12 * displacement.norm()


def shrinkage(learning_rates, momentum, weight_decay):
    """Of the part outside: v <- momentum v + wd a; a <- a - lr v, from a = 1, v = 0."""
    a, v = 1.0, 0.0
    for lr in learning_rates:
        v = momentum * v + weight_decay * a
        a -= lr * v
    return a


def test_decay_only_shrinks_what_is_outside_by_a_factor_that_knows_nothing_of_the_data():
    basis, param = compute_basis(trajectory(9, 24, dtype=torch.float64), 4), parameter()
    start = param.detach().clone()
    train(param, basis, optimizer=torch.optim.SGD([param], 0.01, momentum=0.9, weight_decay=0.1))
    factor = shrinkage([0.01] * 12, 0.9, 0.1)
    assert factor < 0.97
    torch.testing.assert_close(outside(param.detach(), basis), factor * outside(start, basis), rtol=0, atol=1e-12)


def test_clipping_sees_the_projected_norm():
    basis, param = random_basis(24, 2), parameter()
    with SubspaceProjector(param, basis) as projector:
        quadratic_loss(param, torch.ones(3, 24, dtype=torch.float64)).backward()
        norm = torch.nn.utils.clip_grad_norm_([param], 1e9)
    twin = parameter()
    quadratic_loss(twin, torch.ones(3, 24, dtype=torch.float64)).backward()
    torch.testing.assert_close(norm, projector.project_(twin.grad).norm())
    assert norm < 0.9 * twin.grad.norm()


def test_adamw_leaves_the_subspace_with_projected_gradients_and_stays_with_projected_updates():
    basis = compute_basis(trajectory(9, 24, dtype=torch.float64), 4)
    shares = {}
    for mode in ("grad", "update"):
        param = parameter()
        start = param.detach().clone()
        train(param, basis, optimizer=torch.optim.AdamW([param], 0.01, weight_decay=0.1), mode=mode)
        displacement = param.detach() - start
        shares[mode] = float(outside(displacement, basis).norm() / displacement.norm())
    assert shares["grad"] > 0.2 and shares["update"] < 1e-12


def test_projected_updates_of_plain_sgd_equal_projected_gradients():
    basis = compute_basis(trajectory(9, 24, dtype=torch.float64), 4)
    results = []
    for mode in ("grad", "update"):
        param = parameter()
        train(param, basis, optimizer=torch.optim.SGD([param], 0.01), mode=mode)
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_accumulated_and_scaled_gradients_are_the_projection_of_the_whole():
    basis, param, twin = random_basis(24, 5), parameter(torch.float32), parameter(torch.float32)
    data = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    with SubspaceProjector(param, basis):
        for part in data.chunk(4):
            (quadratic_loss(param, part) / 4 * 1024.0).backward()
    whole = sum(quadratic_loss(twin, part) for part in data.chunk(4)) / 4
    whole.backward()
    torch.testing.assert_close(param.grad / 1024.0, project(twin.grad, basis.components), rtol=1e-5, atol=1e-6)


def test_a_gradient_scaler_still_skips_a_step_with_an_infinity():
    basis, param = random_basis(24, 5), parameter(torch.float32)
    before = param.detach().clone()
    optimizer = torch.optim.SGD([param], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with SubspaceProjector(param, basis):
        scaler.scale((param[0, 0] * torch.tensor(3e38)) + param.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(param.detach(), before) and scaler.get_scale() < 2.0**10
    optimizer.zero_grad()
    with SubspaceProjector(param, basis):
        scaler.scale(quadratic_loss(param, torch.ones(3, 24))).backward()
        scaler.step(optimizer)
    displacement = (param.detach() - before).double()
    assert displacement.norm() > 0 and outside(displacement, basis).norm() < 1e-5 * displacement.norm()


def test_detaching_ends_the_projection_and_attaching_twice_projects_once():
    basis, param = random_basis(24, 5), parameter()
    projector = SubspaceProjector(param, basis)
    assert projector.attach().attach() is projector
    assert len(param._backward_hooks) == 1
    projector.detach()
    projector.detach()
    quadratic_loss(param, torch.ones(3, 24, dtype=torch.float64)).backward()
    assert outside(param.grad, basis).norm() > 0.1 * param.grad.norm()


def test_a_projector_names_what_does_not_fit():
    basis, param = random_basis(24, 5), parameter()
    with pytest.raises(ValueError, match="`mode` must be one of grad, update, got 'weights'"):
        SubspaceProjector(param, basis, mode="weights")
    with pytest.raises(ValueError, match=r"directions of 24 values, the parameter 25 \(\(5, 5\)\)"):
        SubspaceProjector(torch.nn.Parameter(torch.randn(5, 5)), basis)
    with pytest.raises(ValueError, match="give `optimizer`"):
        SubspaceProjector(param, basis, mode="update")
    param.ds_id = 0  # what ZeRO-3 puts on a parameter
    with pytest.raises(ValueError, match="sharded.*keep it whole"):
        SubspaceProjector(param, basis)


def test_a_basis_goes_through_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    basis = compute_basis(trajectory(), 3)
    save_file(basis.state_dict(), tmp_path / "basis.safetensors")
    loaded = Basis(**load_file(tmp_path / "basis.safetensors"))
    assert torch.equal(loaded.components, basis.components) and torch.equal(loaded.mean, basis.mean)
