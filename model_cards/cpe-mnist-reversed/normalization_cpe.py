# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Classwise batch normalisation in its exact fused form."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class ClasswiseBatchNorm(nn.Module):
    """G batch norms of the same feature map, each followed by global average pooling, in one pass.

    The official code feeds three `BatchNorm2d` the same tensor, so that their statistics are always equal and only their
    affine parameters differ. Pooling is linear: pool(BN_b(F)) = weight_b * z + bias_b with the (N, C) tensor
    z = (pool(F) - mean) / sqrt(var + eps). Statistics are in float32.

    Args:
        num_features: C.
        num_groups: G, rows of `weight` and `bias`.
        eps: added to the variance.
        momentum: of the running statistics, as in `BatchNorm2d`.

    Attributes:
        synchronize: take the statistics over all processes; any device, unlike `SyncBatchNorm`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, num_groups: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum, self.synchronize = eps, momentum, False
        self.weight = nn.Parameter(torch.ones(num_groups, num_features))
        self.bias = nn.Parameter(torch.zeros(num_groups, num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise and pool.

        Args:
            features: (N, C, H, W), or (N, C) that is pooled already.

        Returns:
            z (N, C), for `mean_branch` and `branches`; float32 for half precision.

        Raises:
            ValueError: one value per channel in training, which has no variance.
        """
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        pooled = features.flatten(2).mean(2) if features.ndim > 2 else features
        if self.training:
            mean, variance = self._batch_statistics(features, pooled)
        else:
            mean, variance = self.running_mean, self.running_var
        return (pooled - mean) * (variance + self.eps).rsqrt()

    def _batch_statistics(self, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        count = features.numel() // features.shape[1]
        synchronize = self.synchronize and dist.is_initialized() and dist.get_world_size() > 1
        if count == 1 and not synchronize:
            raise ValueError(
                "classwise batch normalisation needs more than one value per channel in training: take larger batches."
            )
        mean = pooled.mean(0)
        if synchronize:
            mean = _mean_over_processes(mean)
        # Squares of differences: E[x^2] - E[x]^2 would cancel where the mean is large. The mean needs no gradient here, as
        # the differences sum to zero.
        centre = mean.detach().view(1, -1, *[1] * (features.ndim - 2))
        squares = (features - centre).square()
        variance = (squares.flatten(2).mean(2) if features.ndim > 2 else squares).mean(0)
        if synchronize:
            variance = _mean_over_processes(variance)
            count *= dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), self.momentum)
        return mean, variance

    def mean_branch(self, normalized: Tensor) -> Tensor:
        """The mean of all branches (N, C) of z (N, C)."""
        return normalized * self.weight.mean(0) + self.bias.mean(0)

    def branches(self, normalized: Tensor) -> Tensor:
        """All branches (N, G, C) of z (N, C)."""
        return normalized[:, None] * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, num_groups={self.weight.shape[0]}, eps={self.eps}, momentum={self.momentum}"


class _MeanOverProcesses(torch.autograd.Function):
    """The mean over processes with equal batches. DDP divides the gradients by their number once more."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor / dist.get_world_size()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad / dist.get_world_size()


def _mean_over_processes(tensor: Tensor) -> Tensor:
    return _MeanOverProcesses.apply(tensor)
