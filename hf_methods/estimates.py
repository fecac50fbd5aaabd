# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What a training step will need, before there is a machine for it: bytes by kind, and floating-point operations.

Both work on the meta device, where a model of any size has shapes and no numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step on one device, at the end of the forward pass.

    Args:
        parameters: of the model, a shared one once; teachers that are part of a model are among them.
        buffers: of the model, as batch norms' statistics.
        gradients: of the parameters that are trained, in their dtype.
        optimizer_state: what the optimizer holds for the parameters that are trained.
        averages: copies of all parameters, as CPE's.
        activations: what the forward pass keeps for the backward pass.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer_state: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """The sum, without what libraries hold in passing: the allocator's reserve, kernels' workspaces, DDP's buckets."""
        return sum(asdict(self).values())


def sgd_state_bytes(parameter: Tensor) -> int:
    """Bytes that SGD with momentum holds for a parameter: its momentum."""
    return parameter.numel() * parameter.element_size()


def adamw_state_bytes(parameter: Tensor) -> int:
    """Bytes that AdamW holds for a parameter: two moments in its dtype, 8 bytes a float32 entry."""
    return 2 * parameter.numel() * parameter.element_size()


def estimate_memory(
    model: nn.Module,
    batch: Mapping[str, Any],
    state_bytes: Callable[[Tensor], int] = adamw_state_bytes,
    num_averages: int = 0,
) -> MemoryEstimate:
    """Bytes that a training step needs, by kind.

    One forward pass tells the activations. It runs where model and batch are: on the meta device it costs nothing; under
    `torch.autocast` activations are those of mixed precision.

    Args:
        model: in the mode, train or eval, that it trains in.
        batch: arguments of the forward pass for one device.
        state_bytes: bytes that the optimizer holds for a parameter: `sgd_state_bytes`, `adamw_state_bytes`, or
            `hf_methods.ortho_adam.ortho_adam_state_bytes`.
        num_averages: averaged copies of all parameters that are held beside the model.
    """
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    held = [*parameters, *model.buffers()]
    return MemoryEstimate(
        parameters=_bytes_of(parameters),
        buffers=_bytes_of(model.buffers()),
        gradients=_bytes_of(trained),
        optimizer_state=sum(map(state_bytes, trained)),
        averages=num_averages * _bytes_of(parameters),
        activations=_activation_bytes(model, batch, held),
    )


def count_flops(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Floating-point operations of one forward and backward pass, two for each multiplication and addition.

    Matrix products, convolutions and the fused attention kernels of GPUs are counted; element-wise operations, the fused
    attention kernels of CPUs and the optimizer are not. Divided by the rate that a device reaches they give the seconds of
    a step.

    Args:
        model: its output has a `loss`.
        batch: arguments of the forward pass.
    """
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


def _bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activation_bytes(model: nn.Module, batch: Mapping[str, Any], held: list[Tensor]) -> int:
    """Bytes of the storages that autograd keeps, each once, without those of the model itself."""
    own = {tensor.untyped_storage()._cdata for tensor in held}
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch)
    return sum(storage.nbytes() for storage in kept.values())
