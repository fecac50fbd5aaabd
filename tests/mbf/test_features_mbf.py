# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Coefficients against float64 NumPy, the closed forms, SciPy's gamma function and SciPy's generalised Gaussian."""

import math

import numpy as np
import pytest
import torch
from scipy.special import loggamma
from scipy.stats import gennorm

from hf_methods.mbf import features_mbf
from hf_methods.mbf.features_mbf import coefficient_sums, estimate_shape, generalized_gaussian_mbf, mbf


T = 2 * math.pi / math.log(10) * np.arange(1, 5)


def reference(x, num_coefficients, debias=False):
    """Complex float64 over the last dimension."""
    x = np.asarray(x, dtype=np.float64)
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        row = row[np.abs(row) >= 1e-30]
        orders = np.arange(1, num_coefficients + 1)[:, None]
        energy = np.abs(np.exp(-2j * np.pi * orders * np.log10(np.abs(row))).mean(1)) ** 2
        rows.append(np.sqrt(np.clip((len(row) * energy - 1) / (len(row) - 1), 0, 1) if debias else energy))
    return np.reshape(rows, (*x.shape[:-1], num_coefficients))


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e20])
def test_float32_agrees_with_complex_float64(scale, debias):
    x = torch.randn(3, 4, 5000, generator=torch.Generator().manual_seed(0)) * scale
    expected = reference(x.numpy(), 6, debias)
    # de-biasing takes the root of a difference that may be near 0
    torch.testing.assert_close(mbf(x, 6, -1, debias=debias).double(), torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(mbf(x.double(), 6, -1, debias=debias), torch.tensor(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("dim", "shape"), [(None, (3,)), (0, (4, 5, 3)), (-1, (2, 4, 3)), ((0, 2), (4, 3)), ((-1, 0), (4, 3)), ((), (2, 4, 5, 3))]
)  # fmt: skip
def test_the_dimensions_of_a_sample_are_reduced(dim, shape):
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    dims = tuple(range(3)) if dim is None else (dim,) if isinstance(dim, int) else dim
    kept = [d for d in range(3) if d not in [d % 3 for d in dims]]
    rows = x.permute(*kept, *[d % 3 for d in dims]).reshape(*[x.shape[d] for d in kept], -1)
    assert mbf(x, 3, dim).shape == shape
    torch.testing.assert_close(mbf(x, 3, dim), torch.tensor(reference(rows, 3)))


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e30])
def test_the_table_gives_what_is_computed(centre, scale):
    x = (torch.randn(6, 2000, generator=torch.Generator().manual_seed(2)) + 0.5) * scale
    x[:, ::7] = 0
    mean = x.mean(1, keepdim=True) if centre else None
    exact, rough = (coefficient_sums(x, 4, mean, use_table=flag) for flag in (False, True))
    assert torch.equal(rough.count, exact.count) and torch.equal(rough.num_zeros, exact.num_zeros)
    error = (rough.magnitudes() - exact.magnitudes()).abs()
    assert 0 < error.max() < 4 * 0.001 * 4 / 2000**0.5  # some deviations of the rounding's 0.001 n / sqrt(N)


def test_the_table_keeps_what_is_not_finite_and_leaves_out_tiny_numbers():
    x = torch.tensor([[1.0, math.nan, 2.0], [1.0, -math.inf, 2.0], [1.0, 1e-38, 2.0]])
    sums = coefficient_sums(x, 2, use_table=True)
    assert sums.cos.isnan().all(1).tolist() == [True, True, False] and sums.count.tolist() == [3, 3, 2]
    constant = torch.full((1, 1001), -7.3e5)
    assert coefficient_sums(constant, 2, constant.mean(1, keepdim=True), use_table=True).count.item() == 0


def test_the_table_is_not_used_where_it_would_lose_gradients_or_digits():
    for x in (torch.randn(2, 99, requires_grad=True), torch.randn(2, 99, dtype=torch.float64)):
        rough, exact = (coefficient_sums(x, 2, use_table=flag).cos for flag in (True, False))
        assert torch.equal(rough, exact) and rough.requires_grad == x.requires_grad


def test_a_factor_changes_no_magnitude():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    for factor in (-1.0, 3.7, 1e-6, -1e8):
        torch.testing.assert_close(mbf(factor * x, 4), mbf(x, 4), rtol=0, atol=1e-6)


def test_zeros_are_left_out_and_counted():
    x = torch.randn(2, 300)
    zeros = torch.zeros(2, 100)
    zeros[:, ::2] = 1e-38  # as good as zero
    padded = torch.cat([zeros, x], 1)
    torch.testing.assert_close(mbf(padded, 4, 1), mbf(x, 4, 1), rtol=0, atol=1e-6)
    sums = coefficient_sums(padded, 4)
    assert sums.num_zeros.tolist() == [100, 100] and sums.count.tolist() == [300, 300]


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e5])
def test_a_constant_row_has_no_responses_around_its_mean(value):
    x = torch.full((1, 1001), value)
    sums = coefficient_sums(x, 3, x.mean(1, keepdim=True))
    assert sums.count.item() == 0 and sums.magnitudes().eq(0).all() and sums.magnitudes(debias=True).eq(0).all()


def test_one_number_has_magnitude_one_and_none_has_zero():
    torch.testing.assert_close(mbf(torch.tensor([0.3]), 3), torch.ones(3))
    assert mbf(torch.tensor([0.3]), 3, debias=True).eq(0).all()
    assert mbf(torch.zeros(5), 3).eq(0).all() and mbf(torch.zeros(0), 3).eq(0).all()
    assert mbf(torch.zeros(0, 4), 2, 1).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = torch.randn(1000).to(dtype)
    assert torch.equal(mbf(x, 3), mbf(x.float(), 3)) and mbf(x, 3).dtype == torch.float32


@pytest.mark.parametrize("elements", [1, 7, 64, 10_000])
def test_pieces_do_not_change_the_sums(elements, monkeypatch):
    x = torch.randn(5, 50, dtype=torch.float64)
    whole = coefficient_sums(x, 3, x.mean(1, keepdim=True)).magnitudes()
    monkeypatch.setitem(features_mbf.CHUNK_ELEMENTS, "cpu", elements)
    torch.testing.assert_close(coefficient_sums(x, 3, x.mean(1, keepdim=True)).magnitudes(), whole)
    halves = coefficient_sums(x[:, :20], 3) + coefficient_sums(x[:, 20:], 3)
    torch.testing.assert_close(halves.magnitudes(), mbf(x, 3, 1))


@pytest.mark.parametrize("debias", [False, True])
def test_gradients_agree_with_finite_differences(debias):
    x = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mbf(x, 3, 1, debias=debias), (x,))


def test_gradients_of_zeros_are_numbers():
    x = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    mbf(x, 3, 1, debias=True).sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].eq(0).all()


def test_the_closed_form_agrees_with_scipys_gamma_function():
    shapes = np.geomspace(0.05, 1e4, 60)
    z = (1 - 1j * T) / shapes[:, None]
    expected = np.exp(loggamma(z).real - loggamma(1 / shapes)[:, None].real)
    np.testing.assert_allclose(generalized_gaussian_mbf(torch.tensor(shapes), 4), expected, rtol=1e-12, atol=0)


def test_special_cases_of_the_closed_form():
    t = torch.tensor(T)
    expected = torch.stack(
        [(math.pi * t / torch.sinh(math.pi * t)).sqrt(), torch.cosh(math.pi * t / 2) ** -0.5, (1 + t**2) ** -0.5]
    )
    torch.testing.assert_close(
        generalized_gaussian_mbf(torch.tensor([1, 2, math.inf]), 4), expected, rtol=1e-11, atol=0
    )
    assert generalized_gaussian_mbf(2, 1).shape == (1,)
    assert generalized_gaussian_mbf(2.0, 1).item() == pytest.approx(0.165849, abs=5e-7)


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 8.0])
def test_samples_of_scipys_generalised_gaussian_have_the_closed_forms_magnitudes(shape):
    x = torch.tensor(gennorm.rvs(shape, scale=3.3, size=400_000, random_state=0))
    # the estimate's error is about 1/sqrt(N) = 0.0016
    torch.testing.assert_close(mbf(x, 4), generalized_gaussian_mbf(shape, 4), rtol=0, atol=4 * 400_000**-0.5)
    assert estimate_shape(mbf(x, 1)[0]).item() == pytest.approx(shape, rel=0.05)


@pytest.mark.parametrize("shape", [0.7, 2.0])
@pytest.mark.parametrize("num_responses", [10, 100])
def test_the_mean_energy_of_small_samples_has_the_derived_floor_and_debiasing_removes_it(shape, num_responses):
    x = torch.tensor(gennorm.rvs(shape, size=(40_000, num_responses), random_state=1))
    truth = generalized_gaussian_mbf(shape, 2).square()
    energy = mbf(x, 2, 1).square()
    error = 5 * energy.std(0) / 200
    assert ((energy.mean(0) - truth - (1 - truth) / num_responses).abs() < error).all()
    # before it is clipped at 0 the de-biased energy has the true mean
    unclipped = (num_responses * energy - 1) / (num_responses - 1)
    assert ((unclipped.mean(0) - truth).abs() < 2 * error).all()
    torch.testing.assert_close(mbf(x, 2, 1, debias=True), unclipped.clamp_min(0).sqrt())


def test_the_shape_estimate_inverts_the_closed_form():
    shapes = torch.logspace(-1, 3, 50, dtype=torch.float64)
    magnitudes = generalized_gaussian_mbf(shapes, 1)[:, 0]
    assert (magnitudes.diff() > 0).all()
    torch.testing.assert_close(estimate_shape(magnitudes), shapes, rtol=1e-6, atol=0)
    edges = estimate_shape(torch.tensor([0.0, 0.3441, 1.0, math.nan]))
    assert edges[0].item() == pytest.approx(0.05) and edges[1:3].isinf().all() and edges[3].isnan()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mbf(torch.arange(4), 2), TypeError, "real floating-point numbers, got torch.int64"),
        (lambda: mbf(torch.ones(4, dtype=torch.complex64), 2), TypeError, "got torch.complex64"),
        (lambda: mbf(np.ones(4), 2), TypeError, "got ndarray"),
        (lambda: mbf(torch.ones(4), 0), ValueError, "`num_coefficients` must be an integer of at least 1, got 0"),
        (lambda: mbf(torch.ones(4), 1.5), ValueError, "got 1.5"),
        (lambda: mbf(torch.ones(4), True), ValueError, "got True"),
        (lambda: mbf(torch.ones(4, 2), 1, (1, -1)), ValueError, "names a dimension twice"),
        (lambda: generalized_gaussian_mbf(torch.tensor([1.0, -2.0]), 1), ValueError, "positive, got -2.0"),
        (lambda: generalized_gaussian_mbf(math.nan, 1), ValueError, "positive, got nan"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
