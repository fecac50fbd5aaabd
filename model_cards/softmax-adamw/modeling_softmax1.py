# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""GPT-2 and Llama with softmax-1 attention, and the conversion of other causal language models.

Written against transformers 5.24 (`GPT2LMHeadModel`, `LlamaForCausalLM`, `AttentionInterface`).
"""

import functools

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .attention_softmax1 import softmax1_attention_forward, softmax1_eager_attention_forward
from .configuration_softmax1 import Softmax1GPT2Config, Softmax1LlamaConfig


logger = logging.get_logger(__name__)

FAST, EAGER = "softmax1", "softmax1_eager"


def register_softmax1() -> None:
    """Make "softmax1" and "softmax1_eager" known to transformers' attention and mask interfaces (idempotent).

    The mask functions matter: a custom attention without one gets no mask at all, not even the causal one.
    """
    AttentionInterface.register(FAST, softmax1_attention_forward)
    AttentionMaskInterface.register(FAST, sdpa_mask)
    AttentionInterface.register(EAGER, softmax1_eager_attention_forward)
    AttentionMaskInterface.register(EAGER, eager_mask)


register_softmax1()


class SingleScaleRMSNorm(nn.Module):
    """weight * x / sqrt(mean(x**2) + eps) with one learned scale for all features, computed in float32.

    Args:
        dim: number of features, the size of the last dimension of the input.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        normalised = nn.functional.rms_norm(hidden_states.float(), (self.dim,), eps=self.eps)
        return (self.weight * normalised).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


class BiasFreeConv1D(Conv1D):
    """GPT-2's `Conv1D`, weight (in_features, out_features), without its bias.

    Args:
        nf: output features.
        nx: input features.
    """

    def __init__(self, nf: int, nx: int):
        super().__init__(nf, nx)
        self.bias = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Softmax1Mixin:
    """Chooses the attention from `config.attention_softmax`, so that a checkpoint can't lose its softmax-1."""

    config: Softmax1GPT2Config | Softmax1LlamaConfig

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        if self.config.attention_softmax == "softmax":
            return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        if attn_implementation in (None, "sdpa", FAST):
            return FAST
        if attn_implementation in ("eager", EAGER):
            return EAGER
        raise ValueError(
            f"attn_implementation={attn_implementation!r} has no softmax-1 form; use 'softmax1' or 'sdpa' (fast), "
            "'softmax1_eager' or 'eager' (returns the weights)."
        )

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SingleScaleRMSNorm):
            init.ones_(module.weight)

    def _refuse_output_attentions(self, output_attentions: bool | None) -> None:
        if output_attentions and self.config._attn_implementation == FAST:
            raise ValueError("output_attentions needs attn_implementation='eager'; the fast path forms no weights.")


class Softmax1GPT2LMHeadModel(Softmax1Mixin, GPT2LMHeadModel):
    """`GPT2LMHeadModel` whose attention uses softmax-1, with `norm_type` and `mlp_bias` (see `Softmax1GPT2Config`)."""

    config: Softmax1GPT2Config
    config_class = Softmax1GPT2Config

    def __init__(self, config: Softmax1GPT2Config):
        super().__init__(config)
        self.loss_type = (
            "ForCausalLM"  # transformers finds none for the name GPT2LMHeadModel, warns and takes this one
        )
        transformer: nn.Module = self.transformer
        if config.norm_type == "rmsnorm_single":
            for block in self.transformer.h:
                block.ln_1 = SingleScaleRMSNorm(config.hidden_size, config.layer_norm_epsilon)
                block.ln_2 = SingleScaleRMSNorm(config.hidden_size, config.layer_norm_epsilon)
            transformer.ln_f = SingleScaleRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        if not config.mlp_bias:
            inner_dim = config.n_inner or 4 * config.hidden_size
            for block in self.transformer.h:
                mlp: nn.Module = block.mlp  # type: ignore[assignment]
                mlp.c_fc = BiasFreeConv1D(inner_dim, config.hidden_size)
                mlp.c_proj = BiasFreeConv1D(config.hidden_size, inner_dim)
        self.post_init()

    @functools.wraps(GPT2LMHeadModel.forward)  # Trainer and generation read the signature
    def forward(self, *args, **kwargs):
        self._refuse_output_attentions(kwargs.get("output_attentions"))
        return super().forward(*args, **kwargs)


class Softmax1LlamaForCausalLM(Softmax1Mixin, LlamaForCausalLM):
    """`LlamaForCausalLM` whose attention uses softmax-1, with `norm_type` (see `Softmax1LlamaConfig`)."""

    config: Softmax1LlamaConfig
    config_class = Softmax1LlamaConfig

    def __init__(self, config: Softmax1LlamaConfig):
        super().__init__(config)
        if config.norm_type == "rmsnorm_single":
            for layer in self.model.layers:
                layer.input_layernorm = SingleScaleRMSNorm(config.hidden_size, config.rms_norm_eps)
                layer.post_attention_layernorm = SingleScaleRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.model.norm = SingleScaleRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @functools.wraps(LlamaForCausalLM.forward)  # Trainer and generation read the signature
    def forward(self, *args, **kwargs):
        self._refuse_output_attentions(kwargs.get("output_attentions"))
        return super().forward(*args, **kwargs)


def convert_to_softmax1(model: PreTrainedModel) -> PreTrainedModel:
    """Give any causal language model built on `AttentionInterface` softmax-1 attention, in place.

    The base class does not restore it: after `from_pretrained` call this again or load with `load_softmax1`.

    Raises:
        ValueError: the class does not use the attention interface, or has cross-attention, attention sinks or a soft
            cap of its own.
    """
    logger.warning(
        f"{type(model).__name__}.from_pretrained does not restore softmax-1: load this model with `load_softmax1`."
    )
    return _set_softmax1(model)


def load_softmax1(path: str, **kwargs) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained` for softmax-1 models, converted ones included.

    Args:
        path: folder or Hub id.
        kwargs: passed to `from_pretrained`.

    Raises:
        ValueError: the checkpoint's `config.attention_softmax` is not "softmax1".
    """
    model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    attention_softmax = getattr(model.config, "attention_softmax", None)
    if attention_softmax != "softmax1":
        raise ValueError(
            f"{path} is no softmax-1 checkpoint: its config has attention_softmax={attention_softmax!r}. "
            "Use AutoModelForCausalLM.from_pretrained, or convert_to_softmax1 for a model to be fine-tuned."
        )
    return model if isinstance(model, Softmax1Mixin) else _set_softmax1(model)


def _set_softmax1(model: PreTrainedModel) -> PreTrainedModel:
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise ValueError(f"{name} has cross-attention; softmax-1 is for causal language models.")
    if not model._supports_attention_backend and not model._supports_sdpa:
        raise ValueError(f"{name} does not use transformers' AttentionInterface, so its softmax can't be replaced.")
    for attribute in ("attn_logit_softcapping", "attn_logit_softcap"):
        if getattr(config.get_text_config(), attribute, None) is not None:
            raise ValueError(f"{name} has a soft cap (`{attribute}`), which softmax-1 attention does not support.")
    if any(key.endswith((".sinks", ".s_aux")) for key in model.state_dict()):
        raise ValueError(f"{name} has attention sinks of its own, which softmax-1 would contradict.")
    model.set_attn_implementation(FAST)
    if model.config._attn_implementation != FAST:
        raise ValueError(f"{name} refused the attention implementation {FAST!r}.")
    for text_config in {id(c): c for c in (config, config.get_text_config())}.values():
        text_config.attention_softmax = "softmax1"
    return model
