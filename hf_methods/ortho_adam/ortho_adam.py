# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam: Adam whose moments live in a fixed random rotation of each parameter's gradient.

Kaul, Ma, Elezi, Deng: From Attention to Activation, ICLR 2025, arXiv 2410.17174, Algorithm 1. Adam's elementwise
division makes the coordinate axes of a parameter special, and outlier activations grow along them. The paper draws one
orthogonal Q for each parameter; how its code structures Q for large parameters is not known to us. Here Q is one
rotation for each axis of the parameter (their Kronecker product), so that both sides of a weight matrix are mixed;
`RESIDUAL_ROTATIONS` (parameter_groups.py) rotates only the residual stream's side, which costs less perplexity and less time.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.utils import logging

from hf_methods.ortho_adam.rotations import DenseRotation, Rotation, axis_seed, draw_rotation, rotation_kind


logger = logging.get_logger(__name__)

ROTATIONS = ("auto", "kronecker", "full", "hadamard", "none")
MAX_FULL_NUMEL = 4096


def ortho_adam_update(
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[float],
    beta1: float,
    beta2: float,
    eps: float,
) -> list[Tensor]:
    """Update the moments in place with rotated gradients; return m_hat / (sqrt(v_hat) + eps) in the rotated basis."""
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(denominators, eps)
    torch._foreach_mul_(denominators, [1 - beta1**step for step in steps])
    return list(torch._foreach_div(exp_avgs, denominators))


class OrthoAdam(Optimizer):
    """Adam with decoupled weight decay in a randomly rotated basis.

    For a gradient g and the parameter's fixed orthogonal Q: moments m, v of Q g; s = m_hat / (sqrt(v_hat) + eps);
    theta <- (1 - lr * weight_decay) * theta - lr * Q^T s.

    Args:
        params: parameters, `(name, parameter)` pairs or groups. With names the rotations don't depend on the order.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, in the original basis.
        rotation: for every axis of a parameter
            "auto": dense up to `max_dense_dim`, above it block Hadamard where 16 divides the size, else none;
            "kronecker": dense; "hadamard": block Hadamard; "none": AdamW;
            "full": one dense rotation of the flattened parameter (at most 4096 entries).
            A sequence of these gives one for each axis, e.g. ("none", "auto") for an embedding whose vocabulary axis
            stays as it is.
        max_dense_dim: largest axis with a dense rotation under "auto".
        seed: seed of all rotations.
        cache_rotations: keep the rotations (sum of n^2 floats over the dense axes of a parameter); False draws them
            from the seed again at each step.
        store_rotations: save the rotations in `state_dict` (bit-exact across machines).
        shard_local: for FSDP2 parameters, rotate only axes that are not sharded, without communication. By default the
            gradient is gathered, so that any number of processes gives the same result.

    All but `params`, `cache_rotations` and `store_rotations` can be given per group. Non-finite gradients propagate as
    in AdamW. FSDP1 and DeepSpeed ZeRO, which flatten parameters, are not supported.

    Raises:
        ValueError: a value out of range, or `rotation="full"` for a parameter with more than 4096 entries.
        RuntimeError: sparse gradients or complex parameters; a checkpoint whose rotations or names differ.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rotation: str | Sequence[str] = "auto",
        max_dense_dim: int = 1024,
        seed: int = 0,
        cache_rotations: bool = True,
        store_rotations: bool = False,
        shard_local: bool = False,
    ):
        # Weak: accelerate puts shards in the place of the parameters, which would else stay whole on each GPU.
        self._rotations = WeakTensorKeyDictionary()  # to list[Rotation | None]
        self._stacks: dict[tuple[int, ...], list[Rotation | None]] = {}
        self._num_keys = 0
        self.cache_rotations, self.store_rotations = cache_rotations, store_rotations
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rotation": rotation,
            "max_dense_dim": max_dense_dim, "seed": seed, "shard_local": shard_local,
        }  # fmt: skip
        super().__init__(params, defaults)
        self._report_identity_axes()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("_num_keys", "cache_rotations", "store_rotations")}
        return super().__getstate__() | own | {"_rotations": dict(self._rotations)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rotations = WeakTensorKeyDictionary(self._rotations)
        self._stacks = {}  # its keys are the identities of the original's parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`; also draws the group's rotations."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._draw_group(group)
        except (ValueError, RuntimeError):
            self.param_groups.pop()
            raise

    def _draw_group(self, group: dict[str, Any]) -> None:
        _check_group(group)
        if isinstance(group["rotation"], Sequence) and not isinstance(group["rotation"], str):
            group["rotation"] = list(group["rotation"])  # as it comes back from a checkpoint
        names = group.get("param_names") or [str(self._num_keys + i) for i in range(len(group["params"]))]
        drawn = {}
        for key, param in zip(names, group["params"], strict=True):
            if param.is_complex():
                raise RuntimeError(f"OrthoAdam does not support complex parameters, got {key} of {param.dtype}.")
            drawn[param] = self._draw(param, group, key)
        self._num_keys += len(names)
        group["rotation_keys"] = list(names)
        group["rotation_check"] = [_fingerprint(rotations) for rotations in drawn.values()]
        if self.cache_rotations:
            self._rotations.update(drawn)

    def _draw(self, param: Tensor, group: dict[str, Any], key: str) -> list[Rotation | None]:
        shape = _rotated_shape(param, group["rotation"])
        return [
            draw_rotation(kind, size, axis_seed(group["seed"], key, axis, size))
            for axis, (kind, size) in enumerate(zip(_axis_kinds(param, group), shape, strict=True))
        ]

    def _report_identity_axes(self) -> None:
        summary = self.rotation_summary()
        identity = []
        for group in self.param_groups:
            for key, param in zip(group["rotation_keys"], group["params"], strict=True):
                if group["rotation"] == "none" or param.ndim < 2:
                    continue
                kinds = summary[key]
                identity += [f"{key} axis {i}" for i, n in enumerate(param.shape[: len(kinds)])
                             if kinds[i] == "identity" and n > 1]  # fmt: skip
                if set(kinds) == {"identity"}:
                    logger.warning(f"OrthoAdam: {key} {tuple(param.shape)} has no rotated axis: plain AdamW there.")
        if identity:
            logger.info(f"OrthoAdam: axes without a rotation: {', '.join(identity)}")

    @torch.no_grad()
    def step(self, closure=None):
        """One optimizer step.

        Args:
            closure: re-evaluates the model and returns the loss (optional).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            buckets = defaultdict(list)
            for key, param in zip(group["rotation_keys"], group["params"], strict=True):
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError(f"OrthoAdam does not support sparse gradients, got one for {key}.")
                self._init_state(param)
                is_sharded = isinstance(param, DTensor)
                buckets[is_sharded, param.shape, param.dtype, param.device].append((key, param))
            for (is_sharded, *_), members in buckets.items():
                if is_sharded:
                    for key, param in members:
                        self._step_sharded(group, key, param)
                else:
                    self._step_bucket(group, members)
        return loss

    def _init_state(self, param: Tensor) -> None:
        state = self.state[param]
        if "exp_avg" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(param, dtype=_moment_dtype(param), memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        state["step"] += 1

    def _step_bucket(self, group: dict[str, Any], members: list[tuple[str, Tensor]]) -> None:
        params = [param for _, param in members]
        states = [self.state[param] for param in params]
        dtype = _moment_dtype(params[0])
        rotations = self._stack(group, members)
        is_rotated = any(rotation is not None for rotation in rotations)
        grads = [param.grad for param in params if param.grad is not None]
        if is_rotated:
            shape = (len(params), *_rotated_shape(params[0], group["rotation"]))
            rotated = apply_rotations(torch.stack(grads).to(dtype).reshape(shape), rotations)
            grads = list(rotated.reshape(len(params), *params[0].shape).unbind())
        elif params[0].dtype != dtype:
            grads = [grad.to(dtype) for grad in grads]
        beta1, beta2 = group["betas"]
        updates = ortho_adam_update(
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"].item() for state in states],  # CPU tensors: no device sync
            beta1,
            beta2,
            group["eps"],
        )
        if is_rotated:
            unrotated = apply_rotations(torch.stack(updates).reshape(shape), rotations, transpose=True)
            updates = list(unrotated.reshape(len(params), *params[0].shape).unbind())
        if params[0].dtype != dtype:
            updates = [update.to(params[0].dtype) for update in updates]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-float(group["lr"]))

    def _step_sharded(self, group: dict[str, Any], key: str, param: DTensor) -> None:
        """FSDP2: rotate the gathered gradient, keep this rank's shard of the moments, gather the update."""
        state, mesh, placements = self.state[param], param.device_mesh, param.placements
        dtype, sharded_grad = _moment_dtype(param), param.grad
        assert isinstance(sharded_grad, DTensor)
        rotations = self._stack(group, [(key, param)])
        local = lambda x: distribute_tensor(x, mesh, placements, src_data_rank=None).to_local()  # noqa: E731
        if group["shard_local"]:
            sharded = {p.dim for p in placements if isinstance(p, Shard)}
            rotations = [None if axis in sharded else rotation for axis, rotation in enumerate(rotations)]
            grad = apply_rotations(sharded_grad.to_local().to(dtype)[None], rotations)[0]
        else:
            shape = _rotated_shape(param, group["rotation"])
            full = sharded_grad.full_tensor().to(dtype).view(1, *shape)
            grad = local(apply_rotations(full, rotations).reshape(param.shape))
        exp_avg, exp_avg_sq = state["exp_avg"].to_local(), state["exp_avg_sq"].to_local()
        (beta1, beta2), steps = group["betas"], [state["step"].item()]
        (update,) = ortho_adam_update([grad], [exp_avg], [exp_avg_sq], steps, beta1, beta2, group["eps"])
        if group["shard_local"]:
            update = apply_rotations(update[None], rotations, transpose=True)[0]
        else:
            full = DTensor.from_local(update, mesh, placements, shape=param.shape, stride=param.stride()).full_tensor()
            update = local(apply_rotations(full.reshape(1, *shape), rotations, transpose=True).reshape(param.shape))
        own = param.to_local()
        own.mul_(1 - group["lr"] * group["weight_decay"])
        own.add_(update.to(own.dtype), alpha=-float(group["lr"]))

    def _stack(self, group: dict[str, Any], members: list[tuple[str, Tensor]]) -> list[Rotation | None]:
        """The rotations of parameters of one shape, stacked axis by axis on their device."""
        stack_key = tuple(id(param) for _, param in members)
        if stack_key in self._stacks:
            return self._stacks[stack_key]
        device = members[0][1].device
        drawn = [self._rotations.get(param) or self._draw(param, group, key) for key, param in members]
        stacked = [None if axis[0] is None else type(axis[0]).stack(axis).to(device) for axis in zip(*drawn)]
        if self.cache_rotations:
            self._stacks[stack_key] = stacked
            for i, (_, param) in enumerate(members):  # views, so that every rotation is held once
                self._rotations[param] = [rotation and rotation.select(i) for rotation in stacked]
        return stacked

    def _find(self, param: Tensor) -> tuple[dict[str, Any], str]:
        for group in self.param_groups:
            for key, candidate in zip(group["rotation_keys"], group["params"], strict=True):
                if candidate is param:
                    return group, key
        raise ValueError(f"the parameter of shape {tuple(param.shape)} is not one of this optimizer's.")

    def rotate(self, param: Tensor, x: Tensor) -> Tensor:
        """Q x for a tensor of the parameter's shape."""
        return self._rotate(param, x, transpose=False)

    def unrotate(self, param: Tensor, x: Tensor) -> Tensor:
        """Q^T x for a tensor of the parameter's shape."""
        return self._rotate(param, x, transpose=True)

    def _rotate(self, param: Tensor, x: Tensor, transpose: bool) -> Tensor:
        group, key = self._find(param)
        rotations = [
            rotation and rotation.to(x.device)
            for rotation in self._rotations.get(param) or self._draw(param, group, key)
        ]
        shape = (1, *_rotated_shape(param, group["rotation"]))
        return apply_rotations(x.reshape(shape), rotations, transpose).reshape(x.shape)

    def rotation_matrix(self, param: Tensor) -> Tensor:
        """The dense (numel, numel) float32 Q that acts on `param.flatten()`.

        Raises:
            ValueError: the parameter has more than 4096 entries.
        """
        if param.numel() > MAX_FULL_NUMEL:
            raise ValueError(f"rotation_matrix is for at most {MAX_FULL_NUMEL} entries, got {param.numel()}.")
        basis = torch.eye(param.numel(), device=param.device)
        return torch.stack([self.rotate(param, row.view(param.shape)).flatten() for row in basis], dim=1)

    def rotation_summary(self) -> dict[str, tuple[str, ...]]:
        """For each parameter key, the kind of rotation of each axis: "dense", "hadamard" or "identity"."""
        return {
            key: tuple(_axis_kinds(param, group))
            for group in self.param_groups
            for key, param in zip(group["rotation_keys"], group["params"], strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """As in `torch.optim.Optimizer`, with the rotations under "rotations" if `store_rotations`."""
        state_dict = super().state_dict()
        if self.store_rotations:
            state_dict["rotations"] = {
                key: [
                    rotation and {name: value for name, value in vars(rotation).items()}
                    for rotation in self._rotations.get(param) or self._draw(param, group, key)
                ]
                for group in self.param_groups
                for key, param in zip(group["rotation_keys"], group["params"], strict=True)
            }
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`; the checkpoint's seed and rotation options win over the constructor's.

        Raises:
            RuntimeError: parameter names differ, or the rotations drawn here differ from the checkpoint's.
        """
        saved_groups = state_dict["param_groups"]
        for own, saved in zip(self.param_groups, saved_groups):
            if own.get("param_names") and saved.get("param_names") and own["param_names"] != saved["param_names"]:
                differing = [pair for pair in zip(own["param_names"], saved["param_names"]) if pair[0] != pair[1]]
                raise RuntimeError(f"the checkpoint's parameters differ from the optimizer's: {differing[:3]}")
        self._check_shapes(state_dict)
        super().load_state_dict(state_dict)
        # torch casts every state tensor to the parameter's dtype: keep the moments of bf16 parameters in float32.
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(chain.from_iterable(group["params"] for group in saved_groups), params):
            for name in ("exp_avg", "exp_avg_sq"):
                if index in state_dict["state"]:
                    moment = state_dict["state"][index][name]
                    self.state[param][name] = moment.to(param.device, _moment_dtype(param)).clone()
        self._restore_rotations(state_dict.get("rotations"))

    def _check_shapes(self, state_dict: dict[str, Any]) -> None:
        saved_indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(zip(group["rotation_keys"], group["params"]) for group in self.param_groups)
        for index, (key, param) in zip(saved_indices, own):
            saved = state_dict["state"].get(index, {}).get("exp_avg", param)
            if saved.shape != param.shape:
                raise RuntimeError(f"{key} is {tuple(param.shape)}, in the checkpoint {tuple(saved.shape)}.")

    def _restore_rotations(self, stored: dict[str, list] | None) -> None:
        self._rotations, self._stacks = WeakTensorKeyDictionary(), {}
        for group in self.param_groups:
            for key, param, check in zip(
                group["rotation_keys"], group["params"], group["rotation_check"], strict=True
            ):
                rotations = self._draw(param, group, key)
                difference = max((abs(a - b) for a, b in zip(_fingerprint(rotations), check)), default=0.0)
                if stored is not None:
                    rotations = [r and type(r)(**saved) for r, saved in zip(rotations, stored[key], strict=True)]
                elif len(_fingerprint(rotations)) != len(check) or not difference <= 1e-4:
                    raise RuntimeError(
                        f"the rotation of {key} differs from the checkpoint's by {difference:.1e}: corrupt file or "
                        "another linear algebra library. Save with store_rotations=True to move between machines."
                    )
                if self.cache_rotations or stored is not None:
                    self._rotations[param] = rotations


def apply_rotations(x: Tensor, rotations: list[Rotation | None], transpose: bool = False) -> Tensor:
    """Rotate each axis of k stacked parameters x (k, ...) by the rotation of that axis (None: leave it)."""
    for axis, rotation in enumerate(rotations, start=1):
        if rotation is not None:
            x = rotation.apply(x, axis, transpose)
    return x


def _axis_kinds(param: Tensor, group: dict[str, Any]) -> list[str]:
    rotation, shape = group["rotation"], _rotated_shape(param, group["rotation"])
    per_axis = [rotation] * len(shape) if isinstance(rotation, str) else rotation
    if len(per_axis) != len(shape):
        raise ValueError(f"rotation={rotation!r} names {len(per_axis)} axes for a parameter of shape {tuple(shape)}.")
    return [rotation_kind(r, size, group["max_dense_dim"]) for r, size in zip(per_axis, shape)]


def _rotated_shape(param: Tensor, rotation: str | Sequence[str]) -> torch.Size:
    if rotation != "full":
        return param.shape
    if param.numel() > MAX_FULL_NUMEL:
        raise ValueError(f"rotation='full' is for at most {MAX_FULL_NUMEL} entries, got {param.numel()}.")
    return torch.Size([param.numel()])


def _moment_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _fingerprint(rotations: list[Rotation | None]) -> list[float]:
    """The first 4 entries of the first rotated axis: enough to notice another draw."""
    first = next((rotation for rotation in rotations if rotation is not None), None)
    if first is None:
        return []
    values = first.matrices if isinstance(first, DenseRotation) else first.permutation
    return values.flatten()[:4].tolist()


def _check_group(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay", "max_dense_dim"):
        if not group[name] >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {group[name]}.")
    if len(group["betas"]) != 2:
        raise ValueError(f"`betas` must be two numbers, got {group['betas']}.")
    for beta in group["betas"]:
        if not 0 <= beta < 1:
            raise ValueError(f"`betas` must be in [0, 1), got {group['betas']}.")
    rotation = group["rotation"]
    for kind in [rotation] if isinstance(rotation, str) else rotation:
        if kind not in ROTATIONS:
            raise ValueError(f"`rotation` must be one of {', '.join(ROTATIONS)}, got {kind!r}.")
    if rotation == "full" and group["shard_local"]:
        raise ValueError("rotation='full' mixes all axes of a parameter: it can't be used with shard_local=True.")
