# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Coefficient magnitudes of chosen layers in one forward pass of a classifier, without keeping a response."""

import re
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers.utils import ModelOutput, logging

from .configuration_mbf import MBFConfig
from .features_mbf import CoefficientSums, check_responses, coefficient_sums


logger = logging.get_logger(__name__)
ATTENTION_OUTPUT = re.compile(r"(^|\.)(o_proj|out_proj|attn\.proj|attention\.output\.dense|attention\.projection)$")
MLP_OUTPUT = re.compile(r"(^|\.)(fc2|mlp\.down_proj|output\.dense|mlp\.c_proj)$")
MAX_PRESET_LAYERS = 32
MIN_LINEAR_RESPONSES = 100  # of a linear layer in a preset: ten logits tell nothing, 1/sqrt(10) hides every shape
MIN_RESPONSES = 16  # nonzero ones that an image must have in a layer
LARGE_LAYER = 10_000  # responses from which on the default is four coefficients
PLAIN_NORMS = (nn.BatchNorm2d, nn.GroupNorm)  # not their subclasses: timm's hold the activation function
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
SUMS = tuple(field.name for field in fields(CoefficientSums))


@dataclass
class MBFFeatures(ModelOutput):
    """What one forward pass gives.

    Args:
        features: (batch, features) float32 (float64 for a float64 classifier): the magnitudes of each layer, in the order
            of `feature_names`.
        logits: (batch, classes) of the classifier.
        num_responses: (batch, layers) nonzero responses; of a group of channels with fewer than 16 the features are 0.
    """

    features: Tensor = None  # type: ignore[assignment]
    logits: Tensor = None  # type: ignore[assignment]
    num_responses: Tensor = None  # type: ignore[assignment]


def preset_layers(model: nn.Module) -> list[str]:
    """Layers that are measured by default: outputs before an activation function, so that few are exactly zero.

    In a model with attention: the linear layers that end attention and MLP of each block. Else: all convolutions and the
    norms behind them, which together told attacks better than either did on MNIST digits. In both: linear layers with at
    least 100 outputs, with attention the last alone. At most 32, evenly spaced in module order. Our choice; which layers are
    best is a question for a validation split.

    Raises:
        ValueError: the model has no such layer.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if any(ATTENTION_OUTPUT.search(name) for name in linear):
        last = list(linear)[-1]
        names = [
            name
            for name, module in linear.items()
            if ATTENTION_OUTPUT.search(name)
            or MLP_OUTPUT.search(name)
            or name == last
            and module.out_features >= MIN_LINEAR_RESPONSES
        ]
    else:
        names = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
            or type(module) in PLAIN_NORMS
            or isinstance(module, nn.Linear)
            and module.out_features >= MIN_LINEAR_RESPONSES
        ]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no convolution and no attention to choose layers from: give `layers`."
        )
    count = min(len(names), MAX_PRESET_LAYERS)
    return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]


def match_layers(model: nn.Module, patterns: list[str] | str) -> list[str]:
    """Names of the modules that fit any of the patterns (`*`, `?`, `[...]`), in module order.

    Raises:
        ValueError: a pattern that fits no module, with the names that are close to it.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, 3, 0.5) or names[:3]
            raise ValueError(
                f"`layers`: {type(model).__name__} has no module {pattern!r}; names are for instance {', '.join(close)}."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def channel_axis(module: nn.Module, output: Tensor) -> int:
    """Where the channels of a layer's output are: last in (batch, tokens, channels) and behind linear layers, else second."""
    is_last = isinstance(module, CHANNELS_LAST) or output.ndim == 3 and not isinstance(module, nn.Conv1d)
    return output.ndim - 1 if is_last else 1


def group_rows(output: Tensor, batch_size: int, channel: int, groups: int) -> Tensor:
    """(batch * groups, responses) of a layer's output; windows of an image are rows of it, image by image."""
    if groups == 1:
        return output.reshape(batch_size, -1)
    windows = output.movedim(channel, 1).reshape(batch_size, len(output) // batch_size, groups, -1)
    return windows.transpose(1, 2).reshape(batch_size * groups, -1)


def common_groups(channel_groups: int, num_channels: int) -> int:
    """The largest number up to `channel_groups` that divides the channels."""
    return next(number for number in range(channel_groups, 0, -1) if num_channels % number == 0)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` or `DistributedDataParallel`.

    Raises:
        TypeError: no module, or `DataParallel`, whose replicas would each hold a part of the sums.
    """
    if isinstance(model, DataParallel):
        raise TypeError("DataParallel is not supported: pass `model.module`, or run one process for each GPU.")
    if isinstance(model, DistributedDataParallel):
        return unwrap(model.module)
    if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
        return unwrap(inner)
    if not isinstance(model, nn.Module):
        raise TypeError(f"the classifier must be a torch.nn.Module, got {type(model).__name__}.")
    return model


class MBFFeatureExtractor:
    """Magnitudes of chosen layers of a classifier, from one forward pass.

    Hooks add each layer's responses to sums on its device while the pass runs; they are there only during a call. The
    classifier is put into evaluation mode meanwhile. A compiled one runs uncompiled, since compiled code may leave out
    hooks. Differentiable: features have gradients wherever the classifier's outputs have.

    Args:
        model: a classifier of transformers, timm or your own: called with `pixel_values` as the only argument.
        config: an `MBFConfig`; its `layers`, `num_coefficients`, `center`, `debias`,
            `channel_groups` and `max_responses` are used.

    Attributes:
        layers (`list[str]`): names of the modules, in module order.
        num_coefficients (`list[int]` or `None`): orders of each layer; `None` until the first call where the
            configuration leaves it to the layers' size.
        channel_groups (`list[int]` or `None`): groups of each layer; `None` until the first call where the configuration
            has one number above 1.
        gradient_floor (`float`): 0; an attacker sets it above, see `coefficient_sums`.

    Raises:
        TypeError: no module, or `DataParallel`.
        ValueError: a layer that the model does not have, or a list of orders of another length.
    """

    def __init__(self, model: nn.Module, config: MBFConfig):
        self.model = unwrap(model)
        self.config = config
        self.layers = preset_layers(self.model) if config.layers is None else match_layers(self.model, config.layers)
        for name in ("num_coefficients", "channel_groups"):
            numbers = getattr(config, name)
            if isinstance(numbers, list) and len(numbers) != len(self.layers):
                raise ValueError(
                    f"`{name}` has {len(numbers)} entries for {len(self.layers)} layers: give one number for all, or one a "
                    "layer."
                )
        orders, groups = config.num_coefficients, config.channel_groups
        self.num_coefficients = [orders] * len(self.layers) if isinstance(orders, int) else orders
        self.channel_groups = [1] * len(self.layers) if groups == 1 else groups if isinstance(groups, list) else None
        self.gradient_floor = 0.0
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}

    @property
    def feature_names(self) -> list[str]:
        """`layer:order` of each feature, `layer[group]:order` where the layer's channels are in groups."""
        return [
            f"{layer}{f'[{group}]' if groups > 1 else ''}:{n}"
            for layer, groups, orders in self._counts()
            for group in range(groups)
            for n in range(1, orders + 1)
        ]

    @property
    def layer_of_feature(self) -> Tensor:
        """Index of the layer of each feature (features,)."""
        return torch.tensor(
            [i for i, (_, groups, orders) in enumerate(self._counts()) for _ in range(groups * orders)]
        )

    def _counts(self):
        if self.num_coefficients is None or self.channel_groups is None:
            raise ValueError(
                "`num_coefficients` and `channel_groups` depend on the layers' size: call the extractor once first."
            )
        return zip(self.layers, self.channel_groups, self.num_coefficients, strict=True)

    def __call__(self, pixel_values: Tensor) -> MBFFeatures:
        """Run the classifier on `pixel_values` (batch, channels, height, width), as its image processor gives them.

        Raises:
            TypeError: `pixel_values` or a layer's output is not of a real floating dtype.
            ValueError: an empty batch; a layer that does not run, gives NaN or infinities, or has no row for each image.
        """
        check_responses(pixel_values, "`pixel_values`")
        if pixel_values.ndim != 4 or 0 in pixel_values.shape:
            raise ValueError(
                "`pixel_values` must be (batch, channels, height, width) without a zero, got "
                f"{tuple(pixel_values.shape)}."
            )
        sums: dict[int, CoefficientSums] = {}
        samples: list[tuple[int, int, Tensor]] = []
        with self._hooks(len(pixel_values), sums, samples), evaluation_mode(self.model):
            output = self.model(pixel_values)
        self._add_samples(sums, samples)
        if missing := [layer for index, layer in enumerate(self.layers) if index not in sums]:
            raise ValueError(f"`layers`: {', '.join(missing)} did not run in the forward pass: choose others.")
        indices = range(len(self.layers))
        if self.num_coefficients is None:
            self.num_coefficients = [sums[index].cos.shape[1] for index in indices]
        if self.channel_groups is None:
            self.channel_groups = [len(sums[index].cos) // len(pixel_values) for index in indices]
        logits = output if torch.is_tensor(output) else output["logits"] if isinstance(output, dict) else output[0]
        device = sums[0].cos.device
        counts = [sums[index].count.to(device).view(len(pixel_values), -1) for index in indices]  # (batch, groups)
        features = self._magnitudes(sums, len(pixel_values)).to(device)
        self._check(features, torch.stack([count.amin(1) for count in counts], 1))
        return MBFFeatures(features, logits, torch.stack([count.sum(1) for count in counts], 1))

    def _magnitudes(self, sums: dict[int, CoefficientSums], batch_size: int) -> Tensor:
        """(batch, features): layers of one number of orders at a time, since small operations cost more than their sums."""
        parts: dict[int, Tensor] = {}
        for orders in sorted({part.cos.shape[1] for part in sums.values()}):
            chosen = [index for index in sums if sums[index].cos.shape[1] == orders]
            device = sums[chosen[0]].cos.device
            total = CoefficientSums(
                *(torch.cat([getattr(sums[index], name).to(device) for index in chosen]) for name in SUMS)
            )
            values = total.magnitudes(self.config.debias).masked_fill(total.count[:, None] < MIN_RESPONSES, 0)
            rows = values.split([len(sums[index].cos) for index in chosen])
            parts |= {index: part.reshape(batch_size, -1) for index, part in zip(chosen, rows, strict=True)}
        return torch.cat([parts[index].to(parts[0].device) for index in range(len(self.layers))], 1)

    def _check(self, features: Tensor, counts: Tensor) -> None:
        is_few = counts < MIN_RESPONSES
        if (features.isfinite().all() & ~is_few.any()).item():  # the call's only wait for the device
            return
        is_bad = ~features.isfinite()  # (batch, features)
        if is_bad.any():
            image, column = (index.item() for index in is_bad.nonzero()[0])
            layer = self.layers[self.layer_of_feature[column]]
            raise ValueError(f"the layer {layer} gave NaN or infinite responses for image {image}.")
        names = ", ".join(self.layers[index] for index in is_few.any(0).nonzero().flatten().tolist())
        logger.warning_once(
            f"fewer than {MIN_RESPONSES} responses that differ from the mean in {names}, for {int(is_few.any(1).sum())} "
            "image(s): their features are 0 there, and tell nothing."
        )

    @contextmanager
    def _hooks(self, batch_size: int, sums: dict[int, CoefficientSums], samples: list[tuple[int, int, Tensor]]):
        modules = dict(self.model.named_modules())
        handles = []
        try:
            for index, layer in enumerate(self.layers):

                def hook(module, args, output, index=index):
                    rows, mean, groups, is_sample = self._responses(module, output, batch_size, index)
                    if is_sample:  # few, and summed with those of other layers after the pass
                        samples.append((index, groups, rows))
                    else:
                        new = coefficient_sums(rows, self._orders(index, rows), mean, self.gradient_floor, True)
                        sums[index] = sums[index] + new if index in sums else new  # a module may run more than once

                handles.append(modules[layer].register_forward_hook(hook))
            is_compiled = any(getattr(module, "_compiled_call_impl", None) for module in modules.values())
            with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _add_samples(self, sums: dict[int, CoefficientSums], samples: list[tuple[int, int, Tensor]]) -> None:
        """Add the sums of the responses that hooks chose, those of layers with as many at a time."""
        alike: dict[tuple, list[tuple[int, Tensor]]] = {}
        for index, groups, rows in samples:
            key = (self._orders(index, rows), groups, rows.shape, rows.dtype, rows.device)
            alike.setdefault(key, []).append((index, rows))
        for (orders, groups, *_), layers in alike.items():
            rows = torch.cat([part for _, part in layers])
            mean = self._layer_mean(rows, groups) if self.config.center is not None else None
            total = coefficient_sums(rows, orders, mean, self.gradient_floor, True)
            parts = zip(*(getattr(total, name).chunk(len(layers)) for name in SUMS), strict=True)
            for (index, _), part in zip(layers, parts, strict=True):
                new = CoefficientSums(*part)
                sums[index] = sums[index] + new if index in sums else new

    @staticmethod
    def _layer_mean(rows: Tensor, groups: int) -> Tensor:
        """Mean of an image's responses, once for each of its groups (rows, 1)."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        return rows.reshape(len(rows) // groups, -1).mean(1, keepdim=True, dtype=dtype).repeat_interleave(groups, 0)

    def _orders(self, index: int, rows: Tensor) -> int:
        if self.num_coefficients is None:
            return 2 if rows.shape[1] < LARGE_LAYER else 4
        return self.num_coefficients[index]

    def _responses(self, module: nn.Module, output, batch_size: int, index: int):
        """The responses of each image and channel group (batch * groups, responses), their mean or None, how many groups
        there are, and whether the responses are a sample, which the caller centres."""
        where = f"the output of the layer {self.layers[index]}"
        if isinstance(output, dict):
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)):
            output = output[0]
        check_responses(output, where)
        if output.ndim < 2 or output.shape[0] % batch_size:
            raise ValueError(f"{where} {tuple(output.shape)} has no row for each of the {batch_size} images.")
        dtype = torch.promote_types(output.dtype, torch.float32)
        channel = channel_axis(module, output)
        groups = self._groups(index, output.shape[channel])
        by_channel = self.config.center == "channel" and output.ndim > 2
        mean = None
        if by_channel:
            dims = [dim for dim in range(1, output.ndim) if dim != channel]
            mean = group_rows(
                output.mean(dims, keepdim=True, dtype=dtype).expand_as(output), batch_size, channel, groups
            )
        rows = group_rows(output, batch_size, channel, groups)
        limit = self.config.max_responses
        is_sample = limit is not None and rows.shape[1] * groups > limit
        if limit is not None and is_sample:
            positions = self._positions_of(rows.shape[1], max(1, limit // groups), rows.device)
            rows = rows.index_select(1, positions)
            mean = None if mean is None else mean.index_select(1, positions)
        elif not by_channel and self.config.center is not None:
            mean = self._layer_mean(rows, groups)
        return rows, mean, groups, is_sample and not by_channel

    def _groups(self, index: int, num_channels: int) -> int:
        if self.channel_groups is None:
            assert isinstance(self.config.channel_groups, int)
            return common_groups(self.config.channel_groups, num_channels)
        if num_channels % self.channel_groups[index]:
            raise ValueError(
                f"`channel_groups`: the layer {self.layers[index]} has {num_channels} channels, which "
                f"{self.channel_groups[index]} does not divide."
            )
        return self.channel_groups[index]

    def _positions_of(self, num_responses: int, count: int, device: torch.device) -> Tensor:
        key = (num_responses, count, device)
        if key not in self._positions:
            order = torch.randperm(num_responses, generator=torch.Generator().manual_seed(0))
            self._positions[key] = order[:count].sort().values.to(device)
        return self._positions[key]


@contextmanager
def evaluation_mode(model: nn.Module):
    """`model.eval()`, and each module's own mode again afterwards: dropout and batch statistics would be responses."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
