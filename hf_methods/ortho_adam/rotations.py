# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Random orthogonal matrices, one per axis of a parameter, drawn from a seed and applied to stacks of parameters.

A rotation of an axis is dense (Haar distributed) or block Hadamard; both act on k parameters of one shape at once.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


MAX_HADAMARD_BLOCK = 4096
MIN_HADAMARD_BLOCK = 16


def axis_seed(seed: int, parameter_key: str, axis: int, size: int) -> int:
    """A 63-bit seed of its own for each parameter and axis, the same in every process and Python version."""
    digest = hashlib.sha256(f"{seed}|{parameter_key}|{axis}|{size}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def haar_orthogonal(size: int, seed: int) -> Tensor:
    """A (size, size) float32 orthogonal matrix, uniform over the orthogonal group.

    QR in float64 of a Gaussian matrix; without the sign correction QR's own convention would bias the distribution.
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return (q * r.diagonal().sign()).float()


def hadamard_matrix(size: int) -> Tensor:
    """Sylvester's (size, size) Hadamard matrix divided by sqrt(size), float32; `size` is a power of two."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def hadamard_block(size: int) -> int:
    """The largest power of two that divides `size`, at most 4096."""
    return min(size & -size, MAX_HADAMARD_BLOCK)


def hadamard_transform(x: Tensor, block: int) -> Tensor:
    """Multiply each run of `block` entries of the last dimension by `hadamard_matrix(block)`."""
    return _transform_middle(x.reshape(-1, x.shape[-1], 1), block).view(x.shape)


def _transform_middle(x: Tensor, block: int, overwrite: bool = False) -> Tensor:
    """`hadamard_transform` of the middle dimension of x (before, n, after), without a transposed copy.

    H_ab is the Kronecker product of H_a and H_b: two small matrix products instead of one with block^2 entries.
    `overwrite`: the result takes the place of x, which is contiguous; fresh memory costs a CPU as much as the products.
    """
    left = 1 << (block.bit_length() // 2)
    right = block // left
    first, second = (hadamard_matrix(n).to(x.device, x.dtype) for n in (left, right))
    before, n, after = x.shape
    half = first @ x.reshape(before * n // block, left, right * after)
    if after == 1:
        half = half.view(-1, right)
        result = torch.mm(half, second, out=x.view(-1, right)) if overwrite else half @ second
    else:
        half = half.view(-1, right, after)
        second = second.expand(len(half), right, right)
        result = torch.bmm(second, half, out=x.view(half.shape)) if overwrite else torch.bmm(second, half)
    return result.view(before, n, after)


@dataclass
class DenseRotation:
    """x -> Q x along one axis."""

    matrices: Tensor  # (k, n, n)
    kind = "dense"

    @classmethod
    def stack(cls, rotations: list["DenseRotation"]) -> "DenseRotation":
        return cls(torch.cat([rotation.matrices for rotation in rotations]))

    def select(self, index: int) -> "DenseRotation":
        return DenseRotation(self.matrices[index : index + 1])

    def to(self, device: torch.device) -> "DenseRotation":
        return DenseRotation(self.matrices.to(device))

    def apply(self, x: Tensor, axis: int, transpose: bool = False) -> Tensor:
        """Rotate `axis` of x (k, ...), or rotate it back."""
        matrices = self.matrices.to(x.dtype)
        matrices = matrices.mT if transpose else matrices
        k, n = matrices.shape[:2]
        if axis == x.ndim - 1:
            return torch.bmm(x.reshape(k, -1, n), matrices.mT).view(x.shape)
        moved = x.movedim(axis, 1)
        return torch.bmm(matrices, moved.reshape(k, n, -1)).view(moved.shape).movedim(1, axis)


@dataclass
class HadamardRotation:
    """x -> H diag(signs) P x along one axis, H block diagonal: O(n) memory, O(n sqrt(block)) work."""

    permutation: Tensor  # (k, n)
    inverse: Tensor  # (k, n)
    signs: Tensor  # (k, n), +-1
    block: int
    kind = "hadamard"

    @classmethod
    def stack(cls, rotations: list["HadamardRotation"]) -> "HadamardRotation":
        cat = lambda name: torch.cat([getattr(rotation, name) for rotation in rotations])  # noqa: E731
        return cls(cat("permutation"), cat("inverse"), cat("signs"), rotations[0].block)

    def select(self, index: int) -> "HadamardRotation":
        one = slice(index, index + 1)
        return HadamardRotation(self.permutation[one], self.inverse[one], self.signs[one], self.block)

    def to(self, device: torch.device) -> "HadamardRotation":
        permutation, inverse = self.permutation.to(device), self.inverse.to(device)
        return HadamardRotation(permutation, inverse, self.signs.to(device), self.block)

    def apply(self, x: Tensor, axis: int, transpose: bool = False) -> Tensor:
        """Rotate `axis` of x (k, ...), or rotate it back."""
        k, n = self.signs.shape
        rows = x.reshape(k, math.prod(x.shape[1:axis]), n, math.prod(x.shape[axis + 1 :]))
        signs = self.signs.to(x.dtype).view(k, 1, n, 1)
        if transpose:
            rows = _transform_middle(rows.flatten(0, 1), self.block).view(rows.shape).mul_(signs)
            rows = _select_middle(rows, self.inverse)
        else:
            rows = _select_middle(rows, self.permutation).mul_(signs)
            rows = _transform_middle(rows.flatten(0, 1), self.block, overwrite=True)
        return rows.view(x.shape)


def _select_middle(x: Tensor, index: Tensor) -> Tensor:
    """x (k, before, n, after) with the n entries of each of the k in the order of index (k, n).

    Whole rows are copied, where a gather would read an index for each entry.
    """
    k, before, n, after = x.shape
    if before == 1:
        flat = index + n * torch.arange(k, device=index.device)[:, None]
        return x.reshape(k * n, after).index_select(0, flat.flatten()).view(x.shape)
    return torch.stack([one.index_select(1, order) for one, order in zip(x, index)])


Rotation = DenseRotation | HadamardRotation


def rotation_kind(rotation: str, size: int, max_dense_dim: int) -> str:
    """What an axis of `size` gets: "dense", "hadamard" or "identity", for `rotation` of the optimizer."""
    if size <= 1 or rotation == "none":
        return "identity"
    if rotation in ("kronecker", "full") or (rotation == "auto" and size <= max_dense_dim):
        return "dense"
    return "hadamard" if hadamard_block(size) >= MIN_HADAMARD_BLOCK else "identity"


def draw_rotation(kind: str, size: int, seed: int) -> Rotation | None:
    """The rotation of one axis of one parameter (k = 1) on the CPU; None for "identity"."""
    if kind == "identity":
        return None
    if kind == "dense":
        return DenseRotation(haar_orthogonal(size, seed)[None])
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.randperm(size, generator=generator)
    signs = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1
    return HadamardRotation(permutation[None], permutation.argsort()[None], signs[None], hadamard_block(size))


def ortho_adam_state_bytes(parameter: Tensor, rotation: str = "auto", max_dense_dim: int = 1024) -> int:
    """Bytes that `OrthoAdam` holds for a parameter: two float32 moments, and the rotation of each axis.

    Args:
        parameter: of at most 32 bits an entry; may be on the meta device.
        rotation: "auto", "kronecker", "hadamard" or "none", as `OrthoAdam`'s; its rotations are cached.
        max_dense_dim: as `OrthoAdam`'s.
    """
    num_bytes = {"identity": lambda n: 0, "dense": lambda n: 4 * n * n, "hadamard": lambda n: (8 + 8 + 4) * n}
    kinds = [(rotation_kind(rotation, size, max_dense_dim), size) for size in parameter.shape]
    return 2 * 4 * parameter.numel() + sum(num_bytes[kind](size) for kind, size in kinds)
