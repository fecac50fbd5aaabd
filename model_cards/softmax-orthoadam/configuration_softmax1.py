# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Configurations that store the attention's softmax and the norm next to the weights."""

from huggingface_hub.dataclasses import strict
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.llama.configuration_llama import LlamaConfig


ATTENTION_SOFTMAXES = ("softmax1", "softmax")


def _validate_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{field}` must be one of {', '.join(allowed)}, got {value!r}.")


@strict
class Softmax1GPT2Config(GPT2Config):
    """Configuration of GPT-2 with softmax-1 attention.

    Args:
        attention_softmax (`str`, *optional*, defaults to `"softmax1"`): "softmax1" or "softmax" (the baseline).
        norm_type (`str`, *optional*, defaults to `"layernorm"`): "layernorm", or "rmsnorm_single": RMSNorm with one
            scale for all features (arXiv 2410.17174, Table 4), since per-feature gains are a privileged basis.
        mlp_bias (`bool`, *optional*, defaults to `True`): biases in the MLP.

    All other arguments are those of `GPT2Config`.

    Raises:
        ValueError: an unknown value, or a GPT-2 option that bypasses the attention interface.
    """

    model_type = "softmax1_gpt2"

    attention_softmax: str = "softmax1"
    norm_type: str = "layernorm"
    mlp_bias: bool = True

    def validate_softmax1(self):
        """Refuse unknown values and options that would silently be ignored."""
        _validate_choice("attention_softmax", self.attention_softmax, ATTENTION_SOFTMAXES)
        _validate_choice("norm_type", self.norm_type, ("layernorm", "rmsnorm_single"))
        for option in ("add_cross_attention", "reorder_and_upcast_attn"):
            if getattr(self, option):
                raise ValueError(f"`{option}=True` is not supported: it bypasses the attention interface.")


@strict
class Softmax1LlamaConfig(LlamaConfig):
    """Configuration of Llama with softmax-1 attention.

    Args:
        attention_softmax (`str`, *optional*, defaults to `"softmax1"`): "softmax1" or "softmax" (the baseline).
        norm_type (`str`, *optional*, defaults to `"rmsnorm"`): "rmsnorm" or "rmsnorm_single" (one scale for all
            features).

    All other arguments are those of `LlamaConfig`.

    Raises:
        ValueError: an unknown value.
    """

    model_type = "softmax1_llama"

    attention_softmax: str = "softmax1"
    norm_type: str = "rmsnorm"

    def validate_softmax1(self):
        """Refuse unknown values."""
        _validate_choice("attention_softmax", self.attention_softmax, ATTENTION_SOFTMAXES)
        _validate_choice("norm_type", self.norm_type, ("rmsnorm", "rmsnorm_single"))
