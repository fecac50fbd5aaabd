# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Benford-Fourier coefficient magnitudes, after arXiv 2005.05552.

a_n = E[exp(-j 2 pi n log10|X|)] is the n-th Fourier coefficient of the density of log10|X| mod 1. A factor on X only
turns its phase, so the magnitude tells the shape of a distribution and not its scale. The paper's abstract is all that
we could read; the closed form, the estimator's floor and the handling of zeros are derived here and tested.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn


TINY = 1e-30  # smaller responses count as zeros: they have no logarithm, or one of a denormal number
CHUNK_ELEMENTS = {"cpu": 2**15}  # temporaries that stay in the cache: 2**17 takes three times as long
CHUNK_ELEMENTS_ELSEWHERE = 2**25
CHUNK_ELEMENTS_TABLE = 2**17
TABLE_BITS = (
    10  # of the mantissa: an angle is within n * 0.0014 rad, a magnitude of N responses within about that / sqrt(N)
)
SHAPE_RANGE = (0.05, 1e4)  # of `estimate_shape`


def mbf(x: Tensor, num_coefficients: int, dim: int | tuple[int, ...] | None = None, *, debias: bool = False) -> Tensor:
    """Magnitudes of the first Benford-Fourier coefficients of the numbers in `x`.

    |(1/N) sum_i exp(-j 2 pi n log10|x_i|)| for n = 1 .. num_coefficients. Zeros (|x| < 1e-30) have no logarithm: they
    are left out of the mean. N independent numbers give about 1/sqrt(N) even where the true magnitude is 0.

    Args:
        x: real numbers of any shape and floating dtype; half precision is computed in float32. Not centred here.
        num_coefficients: how many orders, at least 1.
        dim: the dimension or dimensions of one sample; default all.
        debias: subtract the floor: sqrt(max(0, (N |a|^2 - 1) / (N - 1))), an unbiased estimate of |a|^2. Needs N >= 2.

    Returns:
        (..., num_coefficients) in [0, 1], float32 (float64 for float64), where ... are the dimensions not in `dim`.
        0 where a sample has no number other than zero (with `debias`, fewer than two).

    Raises:
        TypeError: `x` is complex or of an integer dtype.
        ValueError: `num_coefficients` below 1, or `dim` names a dimension twice or one that `x` does not have.

    Example:

    ```python
    >>> mbf(torch.randn(100_000), 2)  # near the Gaussian's 0.166 and 0.019
    ```
    """
    check_num_coefficients(num_coefficients)
    check_responses(x, "`x`")
    x = x if x.ndim else x[None]
    dims = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(d + x.ndim if d < 0 else d for d in dims)
    if any(not 0 <= d < x.ndim for d in dims):
        raise ValueError(f"`dim` must name dimensions of a tensor with {x.ndim}, got {dim}.")
    if len(set(dims)) != len(dims):
        raise ValueError(f"`dim` names a dimension twice: {dim}.")
    kept = [d for d in range(x.ndim) if d not in dims]
    rows = x.permute(*kept, *dims).reshape(*(math.prod([x.shape[d] for d in group]) for group in (kept, dims)))
    sums = coefficient_sums(rows, num_coefficients)
    return sums.magnitudes(debias).reshape(*(x.shape[d] for d in kept), num_coefficients)


@dataclass
class CoefficientSums:
    """Sums over the responses of each image, from which the magnitudes follow; they add up over parts of a layer.

    `cos` and `sin` (images, num_coefficients) are the sums of cos and sin of 2 pi n log10|x| over the nonzero responses,
    `count` (images,) is the number of these and `num_zeros` (images,) of the others.
    """

    cos: Tensor
    sin: Tensor
    count: Tensor
    num_zeros: Tensor

    def __add__(self, other: "CoefficientSums") -> "CoefficientSums":
        return CoefficientSums(
            self.cos + other.cos, self.sin + other.sin, self.count + other.count, self.num_zeros + other.num_zeros
        )

    def magnitudes(self, debias: bool = False) -> Tensor:
        """(images, num_coefficients): see `mbf`."""
        count = self.count[:, None].to(self.cos.dtype)
        energy = (self.cos.square() + self.sin.square()) / count.clamp_min(1).square()  # |a|^2
        if debias:
            energy = (count * energy - 1) / (count - 1).clamp_min(1)
        energy = energy.clamp(0, 1).masked_fill(count < (2 if debias else 1), 0)
        # The root's slope at 0 is infinite, and times 0 not a number: an adaptive attack differentiates this.
        is_zero = energy == 0
        return energy.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def coefficient_sums(
    x: Tensor,
    num_coefficients: int,
    mean: Tensor | None = None,
    gradient_floor: float = 0.0,
    use_table: bool = False,
) -> CoefficientSums:
    """Sums of cos and sin of 2 pi n log10|x - mean| over each row, in pieces: no temporary is larger than a chunk.

    Args:
        x: (images, responses), real, any floating dtype.
        num_coefficients: orders.
        mean: subtracted first; (images, 1) or (images, responses). What the subtraction leaves of a response that equals
            the mean is rounding, so there |x - mean| up to 32 eps |mean| counts as zero.
        gradient_floor: the slope of log|x|, 1 / x, is infinite near 0, which hides where a sum can be moved to. Above 0 the
            slope is that of log(x^2 + s^2) / 2, s being this part of the row's root mean square. Values stay the same.
        use_table: on the CPU and without gradients, look up cos and sin by the upper bits of |x - mean| in float32 instead
            of computing them: several times as fast, and magnitudes of N responses within about 0.001 n / sqrt(N), far
            below the floor 1 / sqrt(N). Elsewhere without effect.

    Returns:
        Sums in float32 (float64 for float64). NaN or infinite responses give NaN.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    num_images, num_responses = x.shape
    total = CoefficientSums(
        *(torch.zeros(num_images, num_coefficients, dtype=dtype, device=x.device) for _ in range(2)),
        *(torch.zeros(num_images, dtype=torch.long, device=x.device) for _ in range(2)),
    )
    if x.numel() == 0:
        return total
    use_table = use_table and dtype == torch.float32 and x.device.type == "cpu"
    use_table = use_table and not (torch.is_grad_enabled() and x.requires_grad)
    limit = CHUNK_ELEMENTS_TABLE if use_table else CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS_ELSEWHERE)
    num_columns = min(num_responses, limit)
    num_rows = max(1, limit // num_columns)
    rows = []
    for first in range(0, num_images, num_rows):
        images = slice(first, first + num_rows)
        row = None
        for column in range(0, num_responses, num_columns):
            responses = slice(column, column + num_columns)
            part_mean = None if mean is None else mean[images, responses if mean.shape[1] > 1 else slice(None)]
            values = x[images, responses].to(dtype)
            part = (
                _table_sums(values, num_coefficients, part_mean)
                if use_table
                else _chunk_sums(values, num_coefficients, part_mean, gradient_floor)
            )
            row = part if row is None else row + part
        rows.append(row)
    return CoefficientSums(*(torch.cat([getattr(row, name) for row in rows]) for name in vars(total)))


def _chunk_sums(x: Tensor, num_coefficients: int, mean: Tensor | None, gradient_floor: float) -> CoefficientSums:
    if mean is None:
        # Autograd keeps what `abs` was taken of, which the classifier may go on to change in place.
        size = (x.clone() if x.requires_grad else x).abs()
        is_zero = size < TINY
    else:
        mean = mean.to(x.dtype)
        size = (x - mean).abs()
        is_zero = size <= (32 * torch.finfo(x.dtype).eps * mean.abs()).clamp_min(TINY)
    num_zeros = is_zero.sum(1)
    # A zero becomes 1, whose logarithm is 0 and whose terms are cos = 1 and sin = 0: subtracted again from the sums.
    logarithm = size.masked_fill(is_zero, 1).log()
    if gradient_floor > 0:
        square = size.masked_fill(is_zero, 1).square()
        smooth = (square + gradient_floor**2 * square.detach().mean(1, keepdim=True)).log() / 2
        logarithm = logarithm.detach() + (smooth - smooth.detach())
    angle = logarithm * (2 * math.pi / math.log(10))  # 2 pi log10|x|
    cos, sin = angle.cos(), angle.sin()
    cos_sums, sin_sums = [cos.sum(1)], [sin.sum(1)]
    twice_cos = 2 * cos if num_coefficients > 1 else cos
    cos_before, sin_before = torch.ones((), dtype=x.dtype, device=x.device), torch.zeros_like(cos[:1, :1])
    for _ in range(1, num_coefficients):
        # cos((n+1) a) = 2 cos(a) cos(n a) - cos((n-1) a), and the same for sin
        cos, cos_before = twice_cos * cos - cos_before, cos
        sin, sin_before = twice_cos * sin - sin_before, sin
        cos_sums.append(cos.sum(1))
        sin_sums.append(sin.sum(1))
    return CoefficientSums(
        torch.stack(cos_sums, 1) - num_zeros[:, None],
        torch.stack(sin_sums, 1),
        x.shape[1] - num_zeros,
        num_zeros,
    )


@cache
def _phase_table(num_coefficients: int) -> Tensor:
    """cos of each order, sin of each order, and 1, for each value of a positive float32's exponent and upper mantissa.

    float32 (2 ** (8 + TABLE_BITS), 2 * num_coefficients + 1). Rows of zeros and of numbers below TINY are 0, those of
    infinity and NaN are NaN but for the count.
    """
    codes = torch.arange(2 ** (8 + TABLE_BITS), dtype=torch.int32)
    middle = (codes << (23 - TABLE_BITS)) | (1 << (22 - TABLE_BITS))
    values = middle.view(torch.float32).double()
    angles = 2 * math.pi * values.log10()[:, None] * torch.arange(1, num_coefficients + 1)
    table = torch.cat([angles.cos(), angles.sin(), torch.ones(len(codes), 1)], 1)
    table[~values.isfinite(), :-1] = torch.nan
    return table.masked_fill((values < TINY)[:, None], 0).float()


def _table_sums(x: Tensor, num_coefficients: int, mean: Tensor | None) -> CoefficientSums:
    if mean is None:
        size = x.abs()
    else:
        mean = mean.to(x.dtype)
        size = (x - mean).abs_()
        size *= size > 32 * torch.finfo(x.dtype).eps * mean.abs()  # what stays NaN was NaN
    # A float32 holds its own logarithm: the exponent, and a mantissa in [1, 2).
    codes = size.contiguous().view(torch.int32).bitwise_right_shift_(23 - TABLE_BITS)
    sums = nn.functional.embedding_bag(codes, _phase_table(num_coefficients), mode="sum")
    cos, sin, count = sums.split([num_coefficients, num_coefficients, 1], 1)
    count = count[:, 0].long()
    return CoefficientSums(cos, sin, count, x.shape[1] - count)


def generalized_gaussian_mbf(shape: Tensor | float, num_coefficients: int) -> Tensor:
    """Coefficient magnitudes of a generalised Gaussian density, which is proportional to exp(-|x / scale|^shape).

    |a_n| = |Gamma((1 - j t_n) / shape)| / Gamma(1 / shape) with t_n = 2 pi n / ln 10, for every scale. Shape 1 is the
    Laplace density: sqrt(pi t / sinh(pi t)); 2 the Gaussian: cosh(pi t / 2)^(-1/2); infinity the uniform: 1 / sqrt(1 + t^2).

    Args:
        shape: positive, real, of any shape; infinity is the uniform density.
        num_coefficients: orders, at least 1.

    Returns:
        float64 (..., num_coefficients), on the device of `shape`.

    Raises:
        ValueError: a shape that is not positive, or `num_coefficients` below 1.
    """
    check_num_coefficients(num_coefficients)
    shape = torch.as_tensor(shape, dtype=torch.float64)
    if not (shape > 0).all():
        raise ValueError(f"`shape` must be positive, got {shape[~(shape > 0)].flatten()[0].item()}.")
    t = 2 * math.pi / math.log(10) * torch.arange(1, num_coefficients + 1, device=shape.device, dtype=torch.float64)
    # Below 1e-5 the magnitudes are 0 in float64, and the logarithms too large to be subtracted.
    real = (1 / shape.clamp(1e-6, 1e12))[..., None].expand(*shape.shape, num_coefficients)
    z = torch.complex(real, -t * real)
    return (_log_abs_gamma(z) - torch.lgamma(real)).exp()


def _log_abs_gamma(z: Tensor) -> Tensor:
    """log|Gamma(z)| for complex128 z with a positive real part: Stirling's series at z + 10, to 1e-14."""
    shift = torch.arange(10, device=z.device, dtype=torch.float64)
    w = z + 10
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / w**2) / w**2) / w**2) / w**2) / w
    stirling = (w - 0.5) * w.log() - w + 0.5 * math.log(2 * math.pi) + series
    return stirling.real - (z[..., None] + shift).abs().log().sum(-1)


def estimate_shape(magnitude: Tensor | float) -> Tensor:
    """The shape of the generalised Gaussian whose first coefficient has this magnitude: inverse of the closed form.

    The magnitude rises with the shape from 0 to 0.3441, the uniform density's. A sample of N numbers can't tell shapes
    whose magnitude is below its floor 1/sqrt(N): give the de-biased one.

    Args:
        magnitude: |a_1|, of any shape.

    Returns:
        float64 of the same shape: infinity above the uniform's magnitude, at least 0.05, NaN for NaN.
    """
    magnitude = torch.as_tensor(magnitude, dtype=torch.float64)
    low, high = (torch.full_like(magnitude, math.log(bound)) for bound in SHAPE_RANGE)
    for _ in range(50):  # halves of a range of 12: to 1e-14
        middle = (low + high) / 2
        is_below = generalized_gaussian_mbf(middle.exp(), 1)[..., 0] < magnitude
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    shape = ((low + high) / 2).exp()
    limit = generalized_gaussian_mbf(SHAPE_RANGE[1], 1)[0].to(magnitude.device)
    shape = shape.masked_fill(magnitude >= limit, math.inf)
    return shape.masked_fill(magnitude.isnan(), math.nan)


def check_num_coefficients(num_coefficients: int) -> None:
    """Raise ValueError unless this is an integer of at least 1."""
    if isinstance(num_coefficients, bool) or not isinstance(num_coefficients, int) or num_coefficients < 1:
        raise ValueError(f"`num_coefficients` must be an integer of at least 1, got {num_coefficients!r}.")


def check_responses(x: Tensor, where: str) -> None:
    """Raise TypeError unless `x` holds real floating-point numbers."""
    if not torch.is_tensor(x) or not x.is_floating_point():
        got = x.dtype if torch.is_tensor(x) else type(x).__name__
        raise TypeError(f"{where} must be a tensor of real floating-point numbers, got {got}.")
