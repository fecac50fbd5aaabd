# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Softmax-1 and attention with it.

Kaul, Ma, Elezi, Deng: From Attention to Activation, ICLR 2025, arXiv 2410.17174. Softmax-1 adds 1 to the denominator of
softmax, as if every query could also attend to a null key with score 0 and value 0:

    softmax1(x)_i = exp(x_i) / (1 + sum_j exp(x_j))

Three backends compute the same attention: `eager` (the definition), `zero_key` (softmax attention of torch with the null
key made explicit) and `flash` (torch's flash kernels, forward and backward, on rescaled statistics).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

BACKENDS = ("auto", "flash", "zero_key", "eager")


class _Softmax1(torch.autograd.Function):
    """One saved tensor (the output) instead of the exponentials and the output."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        # The maximum includes the implicit 0: without it exp(-shift) overflows where all x are far below 0.
        shift = x.amax(dim, keepdim=True).clamp_min(0)
        weights = (x - shift).exp()
        return weights / (weights.sum(dim, keepdim=True) + (-shift).exp())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (weights,) = ctx.saved_tensors
        weighted = grad_output * weights
        return weighted - weights * weighted.sum(ctx.dim, keepdim=True), None


def softmax1(x: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """exp(x_i) / (1 + sum_j exp(x_j)) along `dim`.

    Args:
        x: floating-point scores of any shape. float16 and bfloat16 are computed in float32.
        dim: the dimension that is normalised; the result sums to less than 1 along it.
        dtype: dtype of the result, floating point, default that of `x`.

    Returns:
        Weights of the shape of `x`. A row of -inf gives exactly 0.

    Raises:
        TypeError: `x` or `dtype` is not floating point.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"softmax1 needs a floating-point tensor, got {got}; convert with `x.float()`.")
    dtype = dtype or x.dtype
    if not dtype.is_floating_point:
        raise TypeError(f"softmax1 needs a floating-point `dtype`, as weights are below 1; got {dtype}.")
    if x.ndim and x.shape[dim] == 0:
        return x.to(dtype)
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return _Softmax1.apply(x, dim).to(dtype)


def softmax1_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    backend: str = "auto",
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention with softmax-1 in place of softmax.

    Args:
        query: (batch, heads, query length, head dim).
        key, value: (batch, key-value heads, key length, head dim); heads must be a multiple of key-value heads.
        attn_mask: broadcastable to (batch, heads, query length, key length). bool: True may be attended; float: added
            to the scores.
        is_causal: query i sees keys 0..i (aligned top left, as in `scaled_dot_product_attention`).
        dropout_p: dropout on the weights, never on the null key.
        scale: factor on the scores, default 1/sqrt(head dim).
        backend: "auto", "flash", "zero_key" or "eager".
        return_weights: also return the weights (batch, heads, query length, key length); uses "eager".

    Returns:
        (batch, heads, query length, head dim), with the weights as a second item if `return_weights`.

    Raises:
        ValueError: unknown backend, heads that don't divide, a mask that doesn't broadcast, mask and `is_causal` both.
    """
    _check_inputs(query, key, value, attn_mask, is_causal, backend)
    if torch.is_autocast_enabled(query.device.type):
        autocast_dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(autocast_dtype), key.to(autocast_dtype), value.to(autocast_dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if return_weights:
        return _eager(query, key, value, attn_mask, is_causal, dropout_p, scale)
    if backend == "auto":
        backend = _choose_backend(query, value, attn_mask, dropout_p)
    if backend == "eager":
        return _eager(query, key, value, attn_mask, is_causal, dropout_p, scale)[0]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if backend == "zero_key":
        return _zero_key(query, key, value, attn_mask, is_causal, dropout_p, scale)
    if query.is_cuda:
        if attn_mask is not None:
            raise ValueError("backend='flash' takes no attn_mask on CUDA; use backend='zero_key' or 'auto'.")
        return _FlashCUDA.apply(query, key, value, is_causal, dropout_p, scale)
    if dropout_p > 0:
        raise ValueError(f"backend='flash' takes no dropout on the CPU, got {dropout_p}; use backend='zero_key'.")
    return _FlashCPU.apply(query, key, value, _additive(attn_mask, query), is_causal, scale)


def _check_inputs(query, key, value, attn_mask, is_causal, backend):
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        raise ValueError(
            f"query heads must be a multiple of the key and value heads, got query {tuple(query.shape)}, "
            f"key {tuple(key.shape)}, value {tuple(value.shape)}."
        )
    if attn_mask is None:
        return
    if is_causal:
        raise ValueError(f"give attn_mask {tuple(attn_mask.shape)} or is_causal=True, not both.")
    scores_shape = (*query.shape[:3], key.shape[2])
    try:
        fits = torch.broadcast_shapes(attn_mask.shape, scores_shape) == scores_shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"attn_mask {tuple(attn_mask.shape)} does not broadcast to the scores {scores_shape}.")


def _choose_backend(query: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> str:
    # The autograd functions call private kernels: a compiler sees torch's public attention instead.
    if torch.compiler.is_compiling():
        return "zero_key"
    if query.shape[2] == 1 and not query.requires_grad:
        return "eager"  # decoding: `zero_key` would copy the whole cache for one row of scores
    if dropout_p > 0 or query.shape[-1] != value.shape[-1]:
        return "zero_key"
    if query.is_cuda and (attn_mask is not None or query.dtype == torch.float32):
        return "zero_key"
    if query.device.type in ("cpu", "cuda") and flash_is_exact(query.device.type):
        return "flash"
    return "zero_key"


def _eager(query, key, value, attn_mask, is_causal, dropout_p, scale):
    batch, heads, query_length, head_dim = query.shape
    kv_heads, key_length = key.shape[1:3]
    # Scores from float32 operands: bfloat16 scores cost two digits where logits are large.
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.to(dtype).reshape(batch, kv_heads, -1, head_dim)  # (batch, kv heads, group * query, head dim)
        scores = (grouped * scale) @ key.to(dtype).transpose(-1, -2)
        scores = scores.view(batch, heads, query_length, key_length)
        if is_causal:
            attn_mask = torch.ones(query_length, key_length, dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            scores = (
                scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            )
        weights = softmax1(scores, dtype=value.dtype)
        dropped = F.dropout(weights, dropout_p) if dropout_p > 0 else weights
        output = dropped.reshape(batch, kv_heads, -1, key_length) @ value
    return output.reshape(batch, heads, query_length, value.shape[-1]), weights


def _zero_key(query, key, value, attn_mask, is_causal, dropout_p, scale):
    key, value = F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0))
    if is_causal:
        # is_causal is aligned top left: a zero query in front keeps query i on keys 0..i behind the null key.
        query = F.pad(query, (0, 0, 1, 0))
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p, True, scale=scale)[:, :, 1:]
    if attn_mask is not None:
        if attn_mask.shape[-1] == 1:
            attn_mask = attn_mask.expand(*attn_mask.shape[:-1], key.shape[2] - 1)
        attn_mask = F.pad(attn_mask, (1, 0), value=True if attn_mask.dtype == torch.bool else 0.0)
        if attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)


def _additive(attn_mask: Tensor | None, query: Tensor) -> Tensor | None:
    if attn_mask is None or attn_mask.dtype != torch.bool:
        return attn_mask if attn_mask is None else attn_mask.to(query.dtype)
    return torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)


def _rescale(output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax output and log-sum-exp -> those of softmax-1: out * sigmoid(lse), log(1 + exp(lse)).

    Torch's flash kernels return `lse` without a gradient, so this must stay inside an autograd function. Handing the
    rescaled pair to the kernel's own backward rebuilds exp(s - log(1 + e^lse)), which are the softmax-1 weights P, and
    D = sum(dO * out1), so that dS = P * (dP - D) is exactly the softmax-1 gradient.
    """
    output1 = (output * torch.sigmoid(lse).unsqueeze(-1)).to(output.dtype)
    return output1, F.softplus(lse, threshold=100.0)


class _FlashCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, attn_mask, is_causal, scale):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )
        output, lse = _rescale(output, lse)
        ctx.save_for_backward(query, key, value, attn_mask, output, lse)
        ctx.is_causal, ctx.scale = is_causal, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        query, key, value, attn_mask, output, lse = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_output, query, key, value, output, lse, 0.0, ctx.is_causal, attn_mask=attn_mask, scale=ctx.scale
        )
        return *grads, None, None, None


class _FlashCUDA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, is_causal, dropout_p, scale):
        head_dim = query.shape[-1]
        if pad := -head_dim % 8:  # the CUDA kernel takes head dims that are multiples of 8
            query, key, value = (F.pad(x, (0, pad)) for x in (query, key, value))
        output, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )
        output, lse = _rescale(output, lse)
        ctx.save_for_backward(query, key, value, output, lse, cum_q, cum_k, seed, offset)
        ctx.rest = (max_q, max_k, dropout_p, is_causal)
        ctx.scale, ctx.head_dim, ctx.pad = scale, head_dim, pad
        return output[..., :head_dim]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        query, key, value, output, lse, cum_q, cum_k, seed, offset = ctx.saved_tensors
        max_q, max_k, dropout_p, is_causal = ctx.rest
        grad_output = F.pad(grad_output, (0, ctx.pad)) if ctx.pad else grad_output
        grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad_output, query, key, value, output, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed,
            offset, scale=ctx.scale,
        )  # fmt: skip
        return *(grad[..., : ctx.head_dim] for grad in grads), None, None, None


@functools.cache
def flash_is_exact(device_type: str) -> bool:
    """Whether this torch build's private flash kernels give the softmax-1 output and gradients on `device_type`.

    Compares with `eager` on a tiny input, once a process; a failure is logged and "auto" uses `zero_key`.
    """
    dtype, tolerance = (torch.float32, 1e-4) if device_type == "cpu" else (torch.float16, 2e-2)
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(1, 2, 8, 16, generator=generator) for _ in range(4))
    results = []
    try:
        with torch.enable_grad(), torch.inference_mode(False), torch.autocast(device_type, enabled=False):
            for backend in ("eager", "flash"):
                inputs = [x.clone().to(device_type, dtype).requires_grad_() for x in (query, key, value)]
                run = functools.partial(softmax1_attention, is_causal=True, backend=backend)
                output = run(*inputs)
                results.append([output, *torch.autograd.grad(output, inputs, grad.to(device_type, dtype))])
        error = max(float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True))
    except Exception as exception:  # noqa: BLE001 - a private kernel may be missing or changed in any way
        logger.warning(f"softmax-1 flash attention is off on {device_type}: {exception}")
        return False
    if not error < tolerance:
        logger.warning(f"softmax-1 flash attention is off on {device_type}: differs from eager by {error:.1e}")
        return False
    return True


def softmax1_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function `"softmax1"` of transformers' `AttentionInterface` (masks as for "sdpa").

    Returns:
        (batch, query length, heads, head dim) and None: the weights are never formed.
    """
    _refuse_unsupported(kwargs)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_causal = bool(is_causal and attention_mask is None and query.shape[2] > 1)
    if is_causal and key.shape[2] > query.shape[2]:
        # Prefill of a static cache: the rows behind the prompt are empty.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    output = softmax1_attention(query, key, value, attention_mask, is_causal, dropout, scaling)
    return output.transpose(1, 2).contiguous(), None  # type: ignore[union-attr]


def softmax1_eager_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The attention function `"softmax1_eager"`: also returns the weights (batch, heads, query length, key length)."""
    _refuse_unsupported(kwargs)
    output, weights = softmax1_attention(
        query, key, value, attention_mask, dropout_p=dropout, scale=scaling, return_weights=True
    )
    return output.transpose(1, 2).contiguous(), weights


def _refuse_unsupported(kwargs: dict) -> None:
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"softmax-1 attention does not support `{name}`.")
