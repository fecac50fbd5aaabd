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
        num_responses: (batch, layers) nonzero responses; under 16 the layer's features are 0.
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
        config: an `MBFConfig`; its `layers`, `num_coefficients`, `center`, `debias` and `max_responses` are used.

    Attributes:
        layers (`list[str]`): names of the modules, in module order.
        num_coefficients (`list[int]` or `None`): orders of each layer; `None` until the first call where the
            configuration leaves it to the layers' size.
        gradient_floor (`float`): 0; an attacker sets it above, see `coefficient_sums`.

    Raises:
        TypeError: no module, or `DataParallel`.
        ValueError: a layer that the model does not have, or a list of orders of another length.
    """

    def __init__(self, model: nn.Module, config: MBFConfig):
        self.model = unwrap(model)
        self.config = config
        self.layers = preset_layers(self.model) if config.layers is None else match_layers(self.model, config.layers)
        self.num_coefficients: list[int] | None = None
        if isinstance(config.num_coefficients, list):
            if len(config.num_coefficients) != len(self.layers):
                raise ValueError(
                    f"`num_coefficients` has {len(config.num_coefficients)} entries for {len(self.layers)} layers: "
                    "give one number for all, or one a layer."
                )
            self.num_coefficients = list(config.num_coefficients)
        elif config.num_coefficients is not None:
            self.num_coefficients = [config.num_coefficients] * len(self.layers)
        self.gradient_floor = 0.0
        self._positions: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def feature_names(self) -> list[str]:
        """`layer:order` of each feature."""
        return [f"{layer}:{n}" for layer, count in self._counts() for n in range(1, count + 1)]

    @property
    def layer_of_feature(self) -> Tensor:
        """Index of the layer of each feature (features,)."""
        return torch.tensor([index for index, (_, count) in enumerate(self._counts()) for _ in range(count)])

    def _counts(self):
        if self.num_coefficients is None:
            raise ValueError("`num_coefficients` depends on the layers' size: call the extractor once first.")
        return zip(self.layers, self.num_coefficients, strict=True)

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
        samples: list[tuple[int, Tensor]] = []
        with self._hooks(len(pixel_values), sums, samples), evaluation_mode(self.model):
            output = self.model(pixel_values)
        self._add_samples(sums, samples)
        if missing := [layer for index, layer in enumerate(self.layers) if index not in sums]:
            raise ValueError(f"`layers`: {', '.join(missing)} did not run in the forward pass: choose others.")
        if self.num_coefficients is None:
            self.num_coefficients = [sums[index].cos.shape[1] for index in range(len(self.layers))]
        logits = output if torch.is_tensor(output) else output["logits"] if isinstance(output, dict) else output[0]
        device = sums[0].cos.device
        counts = torch.stack([sums[index].count.to(device) for index in range(len(self.layers))], 1)  # (batch, layers)
        features = self._magnitudes(sums).to(device)
        self._check(features, counts)
        return MBFFeatures(features, logits, counts)

    def _magnitudes(self, sums: dict[int, CoefficientSums]) -> Tensor:
        """(batch, features): layers of one number of orders at a time, since small operations cost more than their sums."""
        parts: dict[int, Tensor] = {}
        for orders in sorted({part.cos.shape[1] for part in sums.values()}):
            chosen = [index for index in sums if sums[index].cos.shape[1] == orders]
            device = sums[chosen[0]].cos.device
            total = CoefficientSums(
                *(torch.cat([getattr(sums[index], name).to(device) for index in chosen]) for name in SUMS)
            )
            values = total.magnitudes(self.config.debias).masked_fill(total.count[:, None] < MIN_RESPONSES, 0)
            parts |= dict(zip(chosen, values.chunk(len(chosen)), strict=True))
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
    def _hooks(self, batch_size: int, sums: dict[int, CoefficientSums], samples: list[tuple[int, Tensor]]):
        modules = dict(self.model.named_modules())
        handles = []
        try:
            for index, layer in enumerate(self.layers):

                def hook(module, args, output, index=index):
                    rows, mean, is_sample = self._responses(module, output, batch_size, index)
                    if is_sample:  # few, and summed with those of other layers after the pass
                        samples.append((index, rows))
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

    def _add_samples(self, sums: dict[int, CoefficientSums], samples: list[tuple[int, Tensor]]) -> None:
        """Add the sums of the responses that hooks chose, those of layers with as many at a time."""
        groups: dict[tuple, list[tuple[int, Tensor]]] = {}
        for index, rows in samples:
            key = (self._orders(index, rows), rows.shape, rows.dtype, rows.device)
            groups.setdefault(key, []).append((index, rows))
        for (orders, *_), group in groups.items():
            rows = torch.cat([part for _, part in group])
            mean = rows.mean(1, keepdim=True, dtype=torch.promote_types(rows.dtype, torch.float32))
            mean = mean if self.config.center is not None else None
            total = coefficient_sums(rows, orders, mean, self.gradient_floor, True)
            parts = zip(*(getattr(total, name).chunk(len(group)) for name in SUMS), strict=True)
            for (index, _), part in zip(group, parts, strict=True):
                new = CoefficientSums(*part)
                sums[index] = sums[index] + new if index in sums else new

    def _orders(self, index: int, rows: Tensor) -> int:
        if self.num_coefficients is None:
            return 2 if rows.shape[1] < LARGE_LAYER else 4
        return self.num_coefficients[index]

    def _responses(self, module: nn.Module, output, batch_size: int, index: int) -> tuple[Tensor, Tensor | None, bool]:
        """The responses of each image (batch, responses), their mean if it is not yet subtracted, and are they a sample?"""
        where = f"the output of the layer {self.layers[index]}"
        if isinstance(output, dict):
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)):
            output = output[0]
        check_responses(output, where)
        if output.ndim < 2 or output.shape[0] % batch_size:
            raise ValueError(f"{where} {tuple(output.shape)} has no row for each of the {batch_size} images.")
        dtype = torch.promote_types(output.dtype, torch.float32)
        rows = output.reshape(batch_size, -1)  # windows of an image are rows of it, image by image
        num_responses, limit = rows.shape[1], self.config.max_responses
        positions = (
            self._positions_of(num_responses, rows.device) if limit is not None and num_responses > limit else None
        )
        mean = None
        if self.config.center == "channel" and output.ndim > 2:
            # (batch, tokens, channels) and images of linear layers; else (batch, channels, height, width)
            is_last = isinstance(module, CHANNELS_LAST) or output.ndim == 3 and not isinstance(module, nn.Conv1d)
            channel = output.ndim - 1 if is_last else 1
            dims = [dim for dim in range(1, output.ndim) if dim != channel]
            mean = output.mean(dims, keepdim=True, dtype=dtype).expand_as(output).reshape(batch_size, -1)
        elif self.config.center is not None and positions is None:
            mean = rows.mean(1, keepdim=True, dtype=dtype)
        if positions is None:
            return rows, mean, False
        rows = rows.index_select(1, positions)
        if mean is not None:
            mean = mean.index_select(1, positions)
            return rows, mean, False
        return rows, None, True

    def _positions_of(self, num_responses: int, device: torch.device) -> Tensor:
        key = (num_responses, device)
        if key not in self._positions:
            order = torch.randperm(num_responses, generator=torch.Generator().manual_seed(0))
            self._positions[key] = order[: self.config.max_responses].sort().values.to(device)
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
