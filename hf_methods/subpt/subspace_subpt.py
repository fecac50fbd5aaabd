# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The subspace of SubPT: snapshots of the context -> basis -> projection of gradients or updates.

Ma, Liu, Deng, Xie, Dong, Xu: Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models,
IEEE TCSVT 33(9), 2023, arXiv 2211.02219. The published code (machengcheng2016/Subspace-Prompt-Learning) takes the
snapshots of the flattened context at the ends of the first epochs of a CoOp run, their principal components U (r, d),
and trains again with every gradient g replaced by U^T U g.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback


PROJECTION_MODES = ("grad", "update")


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of a subspace of the flattened context.

    Args:
        components: (r, d), orthonormal rows, float32 or float64. Signs are arbitrary: compare `U^T U`.
        explained_variance_ratio: (r,), share of the snapshots' variance along each row; NaN for a random subspace.
        mean: (d,), what was taken from the snapshots; zeros without centring.
    """

    components: Tensor
    explained_variance_ratio: Tensor
    mean: Tensor

    @property
    def rank(self) -> int:
        """Number of directions r."""
        return self.components.shape[0]

    def state_dict(self) -> dict[str, Tensor]:
        """The three tensors, contiguous, for safetensors."""
        return {name: getattr(self, name).contiguous() for name in ("components", "explained_variance_ratio", "mean")}


def compute_basis(snapshots: Tensor, rank: int, center: bool = True) -> Basis:
    """The first `rank` principal components of the snapshots, as `sklearn.decomposition.PCA(svd_solver="full")`.

    Computed in float64. Source: `compute_eigenvector.py` of the published code.

    Args:
        snapshots: (T, d), one flattened context a row, any floating-point dtype.
        rank: number of directions r, the paper's 5 or 10; 1 <= r <= T - 1 with centring, else T, and r <= d.
        center: take off the mean of each column first, as the published code does.

    Returns:
        `Basis` on the device of `snapshots`, in float64 for float64 snapshots, else float32.

    Raises:
        TypeError: `snapshots` is no floating-point tensor.
        ValueError: another shape, a rank out of range, NaN or infinite values, or snapshots that span fewer than `rank`
            directions (a learning rate of 0, for one), so that some directions would be arbitrary.
    """
    if not isinstance(snapshots, Tensor) or not snapshots.is_floating_point():
        got = snapshots.dtype if isinstance(snapshots, Tensor) else type(snapshots).__name__
        raise TypeError(f"`snapshots` must be a floating-point tensor (T, d), got {got}.")
    if snapshots.ndim != 2:
        raise ValueError(f"`snapshots` must be (T, d), got {tuple(snapshots.shape)}; flatten each context.")
    num_snapshots, dim = snapshots.shape
    limit = min(num_snapshots - int(center), dim)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"`rank` must be in 1..{limit} for {num_snapshots} snapshots of {dim} values, got {rank}; collect more "
            "epochs or lower the rank."
        )
    if not snapshots.isfinite().all():
        bad = sorted({int(row) for row in (~snapshots.isfinite()).nonzero()[:, 0]})
        raise ValueError(f"the snapshots {bad} hold NaN or infinite values; lower the learning rate.")
    matrix = snapshots.detach().to(torch.float64)
    mean = matrix.mean(0) if center else matrix.new_zeros(dim)
    _, singular_values, directions = torch.linalg.svd(matrix - mean, full_matrices=False)
    # Below this a direction is rounding: of the SVD, and of the snapshots' own dtype.
    scale = max(float(matrix.abs().max()), 1e-300) * math.sqrt(matrix.numel())
    noise = torch.finfo(snapshots.dtype).eps * scale
    spanned = int((singular_values > noise).sum())
    if spanned < rank:
        raise ValueError(
            f"the {num_snapshots} snapshots span {spanned} directions, fewer than `rank` = {rank}: the others would be "
            "arbitrary. Raise the learning rate, collect more epochs or lower the rank."
        )
    dtype = torch.float64 if snapshots.dtype == torch.float64 else torch.float32
    variance = singular_values.square()
    return Basis(
        # Contiguous, so that a basis read from a file multiplies bit for bit like this one.
        components=directions[:rank].to(dtype).contiguous(),
        explained_variance_ratio=(variance[:rank] / variance.sum()).to(dtype),
        mean=mean.to(dtype),
    )


def random_basis(dim: int, rank: int, seed: int = 0) -> Basis:
    """A uniformly random `rank`-dimensional subspace: the control for `compute_basis`.

    Args:
        dim: size d of the flattened context.
        rank: number of directions, 1 <= rank <= dim.
        seed: of the draw; the same on every machine.

    Returns:
        `Basis` in float32 with mean 0 and NaN as explained variance.

    Raises:
        ValueError: a rank out of range.
    """
    if not 1 <= rank <= dim:
        raise ValueError(f"`rank` must be in 1..{dim}, got {rank}.")
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    components = torch.linalg.qr(gaussian).Q.T.float().contiguous()
    return Basis(components, torch.full((rank,), math.nan), torch.zeros(dim))


def project(tensor: Tensor, components: Tensor) -> Tensor:
    """`U^T U x` of a tensor of any shape, flattened and given its shape back.

    Args:
        tensor: d values in any shape and floating-point dtype.
        components: U (r, d), orthonormal rows.

    Returns:
        Shape and dtype of `tensor`. Computed in float32 (float64 where one of the two is); NaN and infinities stay
        non-finite, so that a GradScaler still skips the step.
    """
    dtype = torch.promote_types(torch.promote_types(tensor.dtype, components.dtype), torch.float32)
    with torch.autocast(tensor.device.type, enabled=False):
        flat = tensor.reshape(-1).to(dtype)
        components = components.to(flat)
        return ((components @ flat) @ components).reshape(tensor.shape).to(tensor.dtype)


class SubspaceCollector(TrainerCallback):
    """Snapshots of a parameter at the ends of epochs: as a callback of any `Trainer`, or by `take` in a plain loop.

    `SubPTTrainer.fit` needs none: it collects, projects and resumes by itself.

        >>> collector = SubspaceCollector(model.context)
        >>> Trainer(model, args, callbacks=[collector]).train()
        >>> basis = collector.basis(rank=10)

    Args:
        param: the parameter, d values.

    Attributes:
        snapshots: one (d,) float32 tensor on the CPU for each epoch.
    """

    def __init__(self, param: nn.Parameter):
        self.param = param
        self.snapshots: list[Tensor] = []

    def take(self) -> None:
        """Add a snapshot."""
        self.snapshots.append(self.param.detach().flatten().float().cpu().clone())

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """Add the snapshot of an epoch."""
        self.take()

    def basis(self, rank: int, center: bool = True) -> Basis:
        """`compute_basis` of the snapshots.

        Raises:
            ValueError: no snapshots, or as `compute_basis`.
        """
        if not self.snapshots:
            raise ValueError("there are no snapshots yet; train some epochs with the collector, or call `take`.")
        return compute_basis(torch.stack(self.snapshots), rank, center)


class SubspaceProjector:
    """Keeps a parameter's gradients, or its updates, in a subspace. Works in any loop, with or without `Trainer`.

    `mode="grad"` is the paper's: a hook on the tensor replaces each gradient g by `U^T U g` before it is accumulated.
    The projection is linear and idempotent, so it commutes with accumulation, with the mean over the processes of
    DistributedDataParallel and with a GradScaler's factor, and clipping sees the projected norm. Momentum and weight
    decay act afterwards, in the optimizer: decay is not projected, it shrinks the part of the parameter outside of the
    subspace by a factor that doesn't depend on the data. An adaptive optimizer leaves the subspace: use
    `mode="update"`, which projects the step that the optimizer took.

        >>> projector = SubspaceProjector(parameter, basis)
        >>> with projector:
        ...     train()

    Attach again after anything that replaces the parameter, such as `.to()` with a new dtype through PEFT.

    Args:
        param: a leaf tensor of d values that requires a gradient.
        basis: `Basis` with components (r, d).
        mode: "grad" or "update".
        optimizer: for "update": the optimizer whose step is projected.

    Raises:
        ValueError: an unknown mode, sizes that don't match, a sharded parameter, or "update" without an optimizer.
    """

    def __init__(
        self, param: nn.Parameter, basis: Basis, mode: str = "grad", optimizer: torch.optim.Optimizer | None = None
    ):
        if mode not in PROJECTION_MODES:
            raise ValueError(f"`mode` must be one of {', '.join(PROJECTION_MODES)}, got {mode!r}.")
        if hasattr(param, "ds_id") or hasattr(param, "placements"):
            raise ValueError(
                "the context is sharded (FSDP or ZeRO-3), and a shard can't be projected. It is tiny: keep it whole, "
                "with DDP."
            )
        if param.numel() != basis.components.shape[1]:
            raise ValueError(
                f"the basis has directions of {basis.components.shape[1]} values, the parameter {param.numel()} "
                f"({tuple(param.shape)}): it was collected with another `n_ctx` or model, or the parameter is sharded."
            )
        if mode == "update" and optimizer is None:
            raise ValueError("`mode='update'` projects an optimizer's step; give `optimizer`.")
        self.param = param
        self.mode = mode
        self.components = basis.components
        self._optimizer = optimizer
        self._before: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def project_(self, grad: Tensor) -> Tensor:
        """`U^T U grad`, in the shape and dtype of `grad`."""
        if self.components.device != grad.device:
            self.components = self.components.to(grad.device)
        return project(grad, self.components)

    def attach(self) -> "SubspaceProjector":
        """Start projecting; a second call changes nothing.

        Raises:
            ValueError: the optimizer of "update" does not hold the parameter: its steps would stay as they are.
        """
        if self._handles:
            return self
        if self.mode == "grad":
            self._handles = [self.param.register_hook(self.project_)]
        else:
            assert self._optimizer is not None  # checked in __init__
            if not any(held is self.param for group in self._optimizer.param_groups for held in group["params"]):
                raise ValueError(
                    "`optimizer` does not hold `param`: give the optimizer that updates this very tensor."
                )
            self._handles = [
                self._optimizer.register_step_pre_hook(self._remember),
                self._optimizer.register_step_post_hook(self._project_update),
            ]
        return self

    def detach(self) -> None:
        """Stop projecting."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], None

    def __enter__(self) -> "SubspaceProjector":  # noqa: PYI034 - `Self` needs Python 3.11
        return self.attach()

    def __exit__(self, *exception) -> None:
        self.detach()

    def _remember(self, optimizer, args, kwargs) -> None:
        self._before = self.param.detach().clone()

    @torch.no_grad()
    def _project_update(self, optimizer, args, kwargs) -> None:
        assert self._before is not None
        self.param.copy_(self._before + self.project_(self.param - self._before))
