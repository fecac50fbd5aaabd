# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Round-to-nearest quantisation: fake-quantised reports, and a transformers quantizer with packed weights.

Basic rounding is the point: a model without outliers needs nothing cleverer (arXiv 2410.17174, section 5.2).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_methods.softmax1.inspection_softmax1 import decoder_layers, perplexity


SCHEMES = ("absmax", "zeropoint")
GRANULARITIES = ("tensor", "channel", "group")


def quantize_tensor(
    x: Tensor, bits: int, scheme: str = "absmax", granularity: str = "tensor", axis: int = 0, group_size: int = 64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round to the nearest of 2^bits levels (half to even) and back.

    Args:
        x: floating-point tensor; two axes for granularity "group".
        bits: 2 to 8.
        scheme: "absmax" (symmetric, no zero point) or "zeropoint" (asymmetric).
        granularity: one scale for the "tensor", for each index of `axis` ("channel"), or for each run of `group_size`
            along the other axis ("group"; the last may be shorter).
        axis: the output-channel axis: 0 for `nn.Linear`, 1 for `Conv1D`.
        group_size: entries in a group.

    Returns:
        x_hat (shape and dtype of x), q (int16, shape of x), scale and zero (float32; 1 entry, (channels,) or
        (channels, groups)). |x_hat - x| <= scale / 2 for absmax, <= scale for zeropoint.

    Raises:
        TypeError: x is no floating-point tensor.
        ValueError: an unknown option, bits or group_size out of range, or x empty or not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"quantize_tensor needs a floating-point tensor, got {got}.")
    if x.numel() == 0:
        raise ValueError(f"quantize_tensor needs values, got the shape {tuple(x.shape)}.")
    _check_options(bits, scheme, granularity, group_size)
    if not torch.isfinite(x).all():
        raise ValueError(f"quantize_tensor needs finite values; {int((~torch.isfinite(x)).sum())} are not.")
    rows = _rows(x, granularity, axis, group_size)  # (..., entries with one scale), NaN where a group is short
    low, high = rows.nan_to_num(nan=math.inf).amin(-1), rows.nan_to_num(nan=-math.inf).amax(-1)
    if scheme == "absmax":
        top = 2 ** (bits - 1) - 1
        scale = torch.maximum(high, -low) / top
        zero, bottom = torch.zeros_like(scale), -top
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        top, bottom = 2**bits - 1, 0
        scale = (high - low) / top
    scale = torch.where(scale > 0, scale, 1.0)
    if scheme == "zeropoint":
        zero = (-low / scale).round()
    q = ((rows / scale.unsqueeze(-1)).round() + zero.unsqueeze(-1)).clamp(bottom, top)
    x_hat = (q - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    restore = lambda y: _unrows(y, x, granularity, axis)  # noqa: E731
    return restore(x_hat).to(x.dtype), restore(q).nan_to_num().to(torch.int16), scale, zero


def _check_options(bits: int, scheme: str, granularity: str, group_size: int) -> None:
    if bits not in range(2, 9):
        raise ValueError(f"`bits` must be a whole number from 2 to 8, got {bits!r}.")
    if group_size < 1:
        raise ValueError(f"`group_size` must be at least 1, got {group_size}.")
    for name, value, allowed in (("scheme", scheme, SCHEMES), ("granularity", granularity, GRANULARITIES)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")


def _rows(x: Tensor, granularity: str, axis: int, group_size: int) -> Tensor:
    x = x.float()
    if granularity == "tensor":
        return x.reshape(1, -1)
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)  # (channels, inputs)
    if granularity == "channel":
        return rows
    padding = -rows.shape[1] % group_size
    return nn.functional.pad(rows, (0, padding), value=math.nan).view(rows.shape[0], -1, group_size)


def _unrows(rows: Tensor, x: Tensor, granularity: str, axis: int) -> Tensor:
    if granularity == "tensor":
        return rows.view(x.shape)
    moved = x.movedim(axis, 0).shape
    flat = rows.reshape(moved[0], -1)[:, : math.prod(moved[1:])]
    return flat.reshape(moved).movedim(0, axis)


@dataclass(frozen=True)
class QuantScheme:
    """Weights, and activations if `act_bits`, of the blocks' linear layers."""

    bits: int
    scheme: str
    granularity: str
    group_size: int = 64
    act_bits: int | None = None
    act_granularity: str = "tensor"  # "tensor", "channel" (input features) or "token"


QUANT_SCHEMES = {
    "w8a8-coarse": QuantScheme(8, "absmax", "tensor", act_bits=8),
    "w8a8-moderate": QuantScheme(8, "absmax", "channel", act_bits=8),
    "w8a8-fine": QuantScheme(8, "absmax", "channel", act_bits=8, act_granularity="channel"),
    "w8a8-token": QuantScheme(8, "absmax", "channel", act_bits=8, act_granularity="token"),
    "w4-zeropoint": QuantScheme(4, "zeropoint", "channel"),
    "w4-zeropoint-tensor": QuantScheme(4, "zeropoint", "tensor"),
    "w4-absmax": QuantScheme(4, "absmax", "channel"),
    "w4-group64": QuantScheme(4, "zeropoint", "group"),
}


def block_linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Names and modules of the `nn.Linear` and `Conv1D` layers inside the blocks."""
    layers = set(decoder_layers(model).modules())
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module in layers:
            yield name, module


@torch.no_grad()
def quantization_report(
    model: PreTrainedModel,
    eval_blocks: Tensor,
    calib_blocks: Tensor | None = None,
    schemes: Sequence[str] = tuple(QUANT_SCHEMES),
    *,
    dynamic: bool = False,
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """Perplexity before and after each scheme; the model's weights come back bit-exact.

    Args:
        model: a causal language model.
        eval_blocks: token ids (blocks, seq_len) of held-out text.
        calib_blocks: token ids of training text for the activations' static scales (16 batches are used).
        schemes: names of `QUANT_SCHEMES`.
        dynamic: take the activations' scales from each batch; then `calib_blocks` is not needed.
        batch_size: blocks in a forward pass.

    Returns:
        For each scheme {"scheme", "perplexity_before", "perplexity_after", "delta"}.

    Raises:
        ValueError: an unknown scheme, or static activation scales without `calib_blocks`.
    """
    for name in schemes:
        if name not in QUANT_SCHEMES:
            raise ValueError(f"`schemes` must be of {', '.join(QUANT_SCHEMES)}, got {name!r}.")
        if QUANT_SCHEMES[name].act_bits and calib_blocks is None and not dynamic:
            raise ValueError(f"scheme {name!r} quantises activations: give `calib_blocks` or dynamic=True.")
    training = model.training
    model.eval()
    try:
        before = perplexity(model, eval_blocks, batch_size)
        calib_blocks = None if calib_blocks is None else calib_blocks[: 16 * batch_size]
        rows = []
        for name in schemes:
            with _fake_quantized(model, QUANT_SCHEMES[name], calib_blocks, dynamic, batch_size):
                after = perplexity(model, eval_blocks, batch_size)
            rows.append(
                {"scheme": name, "perplexity_before": before, "perplexity_after": after, "delta": after - before}
            )
    finally:
        model.train(training)
    return rows


@contextmanager
def _fake_quantized(model, scheme: QuantScheme, calib_blocks, dynamic: bool, batch_size: int):
    linears = [module for _, module in block_linears(model)]
    originals = [module.weight.data for module in linears]
    handles = []
    try:
        if scheme.act_bits:
            scales = {} if dynamic else _activation_maxima(model, linears, scheme, calib_blocks, batch_size)
            handles = [m.register_forward_pre_hook(_quantize_input(scheme, scales.get(m))) for m in linears]
        for module in linears:
            axis = 1 if isinstance(module, Conv1D) else 0
            options = (scheme.bits, scheme.scheme, scheme.granularity, axis, scheme.group_size)
            module.weight.data = quantize_tensor(module.weight.data, *options)[0]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, original in zip(linears, originals, strict=True):
            module.weight.data = original


def _maxima(x: Tensor, granularity: str) -> Tensor:
    """Largest magnitude that one scale covers; x (..., features)."""
    if granularity == "tensor":
        return x.abs().max()
    if granularity == "channel":
        return x.abs().flatten(0, -2).amax(0)
    return x.abs().amax(-1, keepdim=True)


def _activation_maxima(model, linears, scheme, calib_blocks, batch_size) -> dict[nn.Module, Tensor]:
    maxima: dict[nn.Module, Tensor] = {}
    if scheme.act_granularity == "token":
        return maxima

    def record(module, args):
        new = _maxima(args[0], scheme.act_granularity)
        maxima[module] = torch.maximum(maxima[module], new) if module in maxima else new

    handles = [module.register_forward_pre_hook(record) for module in linears]
    try:
        perplexity(model, calib_blocks, batch_size)
    finally:
        for handle in handles:
            handle.remove()
    return maxima


def _quantize_input(scheme: QuantScheme, maxima: Tensor | None):
    assert scheme.act_bits is not None
    top = 2 ** (scheme.act_bits - 1) - 1

    def hook(module, args):
        x = args[0]
        scale = (_maxima(x, scheme.act_granularity) if maxima is None else maxima) / top
        scale = torch.where(scale > 0, scale, 1.0)
        return ((x / scale).round().clamp(-top, top) * scale, *args[1:])

    return hook


class RoundToNearestConfig(QuantizationConfigMixin):
    """`from_pretrained(path, quantization_config=RoundToNearestConfig(bits=4))` for any causal language model.

    Args:
        bits (`int`, *optional*, defaults to 4): 2 to 8. 2 and 4 are packed into bytes, others take a byte.
        scheme (`str`, *optional*, defaults to `"zeropoint"`): "absmax" or "zeropoint".
        granularity (`str`, *optional*, defaults to `"channel"`): "tensor", "channel" (output) or "group".
        group_size (`int`, *optional*, defaults to 128): entries in a group.
        modules_to_not_convert (`list[str]`, *optional*): names, or ends of names, of layers that stay.

    Only linear layers inside the blocks are converted.

    Raises:
        ValueError: an unknown option, or bits or group_size out of range.
    """

    def __init__(
        self,
        bits: int = 4,
        scheme: str = "zeropoint",
        granularity: str = "channel",
        group_size: int = 128,
        modules_to_not_convert: list[str] | None = None,
        **kwargs,
    ):
        if unknown := set(kwargs) - {"quant_method"}:
            raise ValueError(f"RoundToNearestConfig has no options {sorted(unknown)}.")
        _check_options(bits, scheme, granularity, group_size)
        self.quant_method = "round_to_nearest"  # type: ignore[assignment]
        self.bits, self.scheme, self.granularity, self.group_size = bits, scheme, granularity, group_size
        self.modules_to_not_convert = modules_to_not_convert


class RoundToNearestLinear(nn.Module):
    """A linear layer that holds packed integers and dequantises them in the forward pass.

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        bias: whether there is a bias.
        config: the quantisation.
    """

    weight: Tensor  # uint8 (out_features, ceil(in_features / per_byte))
    weight_scale: Tensor  # float32 (1,), (out_features,) or (out_features, groups)
    weight_zero_point: Tensor  # uint8, as weight_scale
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool, config: RoundToNearestConfig):
        super().__init__()
        self.in_features, self.out_features, self.config = in_features, out_features, config
        self.per_byte = {2: 4, 4: 2}.get(config.bits, 1)
        shapes = {
            "tensor": (1,),
            "channel": (out_features,),
            "group": (out_features, -(-in_features // config.group_size)),
        }
        groups = shapes[config.granularity]
        self.register_buffer("weight", torch.zeros(out_features, -(-in_features // self.per_byte), dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(groups))
        self.register_buffer("weight_zero_point", torch.zeros(groups, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear | Conv1D, config: RoundToNearestConfig) -> "RoundToNearestLinear":
        """Quantise an `nn.Linear` or `Conv1D`."""
        weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight  # (out, in)
        self = cls(weight.shape[1], weight.shape[0], linear.bias is not None, config).to(weight.device)
        _, q, scale, zero = quantize_tensor(
            weight, config.bits, config.scheme, config.granularity, 0, config.group_size
        )
        self.weight_scale.copy_(scale)
        # absmax levels are stored with an offset, so that both schemes unpack alike
        offset = 2 ** (config.bits - 1) - 1 if config.scheme == "absmax" else 0
        self.weight_zero_point.copy_(zero + offset)
        self.weight.copy_(pack(q + offset, self.per_byte))
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return self

    def dequantize(self) -> Tensor:
        """The (out_features, in_features) weight in the dtype of `weight_scale`."""
        q = unpack(self.weight, self.per_byte, self.in_features)
        if self.config.granularity == "group":
            spread = lambda x: x.repeat_interleave(self.config.group_size, 1)[:, : self.in_features]  # noqa: E731
        else:
            spread = lambda x: x.unsqueeze(-1)  # noqa: E731
        return (q.to(self.weight_scale.dtype) - spread(self.weight_zero_point).to(self.weight_scale.dtype)) * spread(
            self.weight_scale
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.config.bits}, {self.config.granularity}"


def pack(q: Tensor, per_byte: int) -> Tensor:
    """Integers 0..2^bits-1 (rows, n) -> uint8 (rows, ceil(n / per_byte)), the first in the lowest bits."""
    bits = 8 // per_byte
    q = nn.functional.pad(q.to(torch.int32), (0, -q.shape[1] % per_byte)).view(q.shape[0], -1, per_byte)
    shifts = torch.arange(per_byte, device=q.device) * bits
    return (q << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, per_byte: int, length: int) -> Tensor:
    """Inverse of `pack`: uint8 (rows, length)."""
    if per_byte == 1:
        return packed
    bits = 8 // per_byte
    shifts = torch.arange(per_byte, device=packed.device, dtype=torch.uint8) * bits
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(1)[:, :length]


class RoundToNearestQuantizer(HfQuantizer):
    """Packs on load, or loads packed checkpoints."""

    quantization_config: RoundToNearestConfig

    def _linears(self, model):
        skip = tuple(self.quantization_config.modules_to_not_convert or ())
        return [(name, module) for name, module in block_linears(model) if not name.endswith(skip)] if skip else list(
            block_linears(model)
        )  # fmt: skip

    def _process_model_before_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            # bf16 scales would be other scales than those that the weights were rounded with
            model._keep_in_fp32_modules_strict.add("weight_scale")
            for name, module in self._linears(model):
                sizes = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
                new = RoundToNearestLinear(*sizes, module.bias is not None, self.quantization_config)
                model.set_submodule(name, new.to(module.weight.device))

    def _process_model_after_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            for name, module in self._linears(model):
                model.set_submodule(name, RoundToNearestLinear.from_linear(module, self.quantization_config))
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


if "round_to_nearest" not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config("round_to_nearest")(RoundToNearestConfig)
    register_quantizer("round_to_nearest")(RoundToNearestQuantizer)
