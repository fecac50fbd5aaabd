# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Exponential moving average of a model's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class ParameterEMA:
    """Averages of a model's parameters.

    Args:
        model: its parameters are where the averages begin; they keep their device and dtype.
        decay: average <- decay * average + (1 - decay) * parameter in each `update`.
        with_buffers: average the statistics of batch norms too. The official code does not: its averaged model has the
            statistics of the current one, which do not fit while parameters move fast.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float, with_buffers: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, got {decay}.")
        named: dict[str, Tensor] = dict(model.named_parameters())
        if with_buffers:
            named |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        self.decay, self.names = decay, list(named)
        self.parameters: list[Tensor] = list(named.values())
        self.averages: list[Tensor] = []
        self.restart()
        self._is_swapped = False

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again at the parameters as they are."""
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average, for all parameters at once."""
        torch._foreach_lerp_(self.averages, self.parameters, 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model computes with the averages inside this context, whatever is raised there; it may be nested."""
        if self._is_swapped:
            yield
            return
        with torch.no_grad():
            online = [parameter.detach().clone() for parameter in self.parameters]
            torch._foreach_copy_(self.parameters, self.averages)
        self._is_swapped = True
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, online)
            self._is_swapped = False

    def save(self, path: str | Path) -> None:
        """Write the averages as safetensors."""
        save_file({name: average.contiguous() for name, average in zip(self.names, self.averages)}, path)

    @torch.no_grad()
    def load(self, path: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: the averages of another model.
        """
        stored = load_file(path)
        if stored.keys() != set(self.names):
            raise ValueError(
                f"{path} holds the averages of another model: {sorted(stored.keys() ^ set(self.names))[:3]} ..."
            )
        for name, average in zip(self.names, self.averages):
            average.copy_(stored[name])
