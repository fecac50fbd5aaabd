# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Rotations: the matrices, their fast products and their seeds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch.testing import assert_close

from hf_methods.ortho_adam.rotations import (
    DenseRotation,
    HadamardRotation,
    axis_seed,
    draw_rotation,
    haar_orthogonal,
    hadamard_block,
    hadamard_matrix,
    hadamard_transform,
    rotation_kind,
)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 64, 200])
def test_haar_matrices_are_orthogonal_to_1e_5(size):
    q = haar_orthogonal(size, seed=7)
    assert q.dtype == torch.float32
    assert (q.double() @ q.double().T - torch.eye(size)).abs().max() < 1e-5


def test_haar_matrices_are_drawn_from_the_seed_alone():
    q = haar_orthogonal(8, seed=1)
    torch.manual_seed(99)
    assert torch.equal(q, haar_orthogonal(8, seed=1))
    assert (q - haar_orthogonal(8, seed=2)).abs().max() > 0.1


def test_drawing_a_rotation_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_rotation("dense", 8, seed=1)
    draw_rotation("hadamard", 32, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_haar_matrices_have_no_preferred_sign_or_determinant():
    draws = torch.stack([haar_orthogonal(3, seed) for seed in range(600)])
    # Entries have mean 0 and variance 1/3: 6 standard errors of a mean of 600. LAPACK's QR alone has r_11 < 0 always.
    assert draws.mean(0).abs().max() < 6 * (1 / 3 / 600) ** 0.5
    assert (draws.square().mean(0) - 1 / 3).abs().max() < 0.08
    assert 0.35 < (torch.linalg.det(draws) > 0).double().mean() < 0.65


@pytest.mark.parametrize("size", [1, 2, 4, 32, 256])
def test_hadamard_matrix_is_scipys_over_root_n(size):
    assert_close(
        hadamard_matrix(size).double(), torch.tensor(hadamard(size, dtype=float)) / size**0.5, atol=1e-7, rtol=0
    )


@settings(max_examples=40, deadline=None, database=None)
@given(st.sampled_from([2**i for i in range(10)]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_hadamard_transform_is_a_product_with_a_block_diagonal_matrix(block, blocks, rows, seed):
    x = normal(2, rows, blocks * block, seed=seed, dtype=torch.float64)
    dense = torch.block_diag(*[torch.tensor(hadamard(block, dtype=float)) / block**0.5] * blocks)
    assert_close(hadamard_transform(x, block), x @ dense, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block", [1, 2, 8, 64, 128])
def test_hadamard_transform_is_orthogonal_and_its_own_inverse(block):
    matrix = hadamard_transform(torch.eye(2 * block), block)
    assert_close(matrix @ matrix.T, torch.eye(2 * block), atol=1e-5, rtol=0)
    x = normal(3, 2 * block)
    assert_close(hadamard_transform(hadamard_transform(x, block), block), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size, block", [(1, 1), (48, 16), (50257, 1), (50304, 128), (4096, 4096), (16384, 4096)])
def test_hadamard_block_is_the_largest_dividing_power_of_two_up_to_4096(size, block):
    assert hadamard_block(size) == block


@pytest.mark.parametrize("kind, size", [("dense", 1), ("dense", 20), ("hadamard", 48), ("hadamard", 128)])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_rotation_acts_on_its_axis_as_an_orthogonal_matrix(kind, size, axis):
    rotation = draw_rotation(kind, size, seed=3)
    q = rotation.apply(torch.eye(size)[None], 1)[0]
    assert_close(q @ q.T, torch.eye(size), atol=1e-5, rtol=0)
    shape = [1, 2, 3, 4]
    shape[axis] = size
    x = normal(*shape)
    rotated = rotation.apply(x, axis)
    assert rotated.shape == x.shape
    assert_close(rotated, torch.tensordot(q, x, dims=([1], [axis])).movedim(0, axis), atol=1e-5, rtol=0)
    assert_close(rotation.apply(rotated, axis, transpose=True), x, atol=1e-5, rtol=0)
    back = torch.tensordot(q.T, x, dims=([1], [axis])).movedim(0, axis)
    assert_close(rotation.apply(x, axis, transpose=True), back, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls, kind", [(DenseRotation, "dense"), (HadamardRotation, "hadamard")])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_stack_rotates_each_parameter_with_its_own_rotation(cls, kind, axis, transpose):
    rotations = [draw_rotation(kind, 32, seed) for seed in range(3)]
    stack, x = cls.stack(rotations), normal(3, 32, 32)
    together = stack.apply(x, axis, transpose)
    for i, rotation in enumerate(rotations):
        assert_close(together[i : i + 1], rotation.apply(x[i : i + 1], axis, transpose), atol=1e-6, rtol=0)
        assert torch.equal(stack.select(i).apply(x[:1], axis), rotation.apply(x[:1], axis))
    assert (together[0] - rotations[1].apply(x[:1], axis, transpose)[0]).abs().max() > 0.1


def test_axis_seeds_are_fixed_values_whatever_pythonhashseed_is():
    assert axis_seed(0, "weight", 1, 64) == 2406049501992644671
    assert axis_seed(7, "h.0.attn.c_attn.weight", 0, 768) == 4382765240710473329


def test_seed_key_axis_and_size_each_change_the_axis_seed():
    arguments = [(0, "a", 0, 8), (1, "a", 0, 8), (0, "b", 0, 8), (0, "a", 1, 8), (0, "a", 0, 9), (0, "1|a", 0, 8)]
    seeds = {axis_seed(*each) for each in arguments}
    assert len(seeds) == len(arguments)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    "rotation, size, kind",
    [
        ("auto", 1024, "dense"), ("auto", 2048, "hadamard"), ("auto", 1501, "identity"), ("auto", 1032, "identity"),
        ("auto", 1040, "hadamard"), ("auto", 1, "identity"), ("kronecker", 2048, "dense"), ("full", 2048, "dense"),
        ("hadamard", 16, "hadamard"), ("hadamard", 8, "identity"), ("none", 64, "identity"),
    ],
)  # fmt: skip
def test_the_kind_of_an_axis_follows_from_the_option_and_the_size(rotation, size, kind):
    assert rotation_kind(rotation, size, max_dense_dim=1024) == kind
