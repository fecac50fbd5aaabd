# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Parameter groups of a model for OrthoAdam: what decays, and which axes are rotated."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_methods.ortho_adam.ortho_adam import OrthoAdam


# Only the residual stream's axis of the matrices of GPT-2 (Conv1D: in, out) and of Llama, Mistral, Qwen and OPT
# (Linear: out, in). Outlier features live on that axis; heads, neurons, positions and tokens keep step sizes of their own.
RESIDUAL_ROTATIONS: dict[str, tuple[str, ...] | str] = {
    r"\.(wte|wpe|embed_tokens|embed_positions)\.weight$|^lm_head\.weight$": ("none", "auto"),
    r"\.(c_attn|c_fc)\.weight$": ("auto", "none"),
    r"\.c_proj\.weight$": ("none", "auto"),
    r"\.(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)\.weight$": ("none", "auto"),
    r"\.(o_proj|down_proj|out_proj|fc2)\.weight$": ("auto", "none"),
    r"\.(c_attn|c_fc|q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)\.bias$|\.(q_norm|k_norm)\.weight$": "none",
}


def ortho_adam_parameter_groups(
    model: nn.Module, weight_decay: float, rotations: Mapping[str, str | Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """Groups of named parameters: decayed (two and more axes) and not decayed (biases, norms).

    Trainer's own filter goes by names and would decay a `SingleScaleRMSNorm`. Tied weights appear once, frozen ones
    not at all.

    Args:
        model: the very object that is given to Trainer.
        weight_decay: weight decay of parameters with two and more axes.
        rotations: `rotation` of the parameters whose name matches a regular expression (`re.search`; the first match
            holds), in groups of their own. `RESIDUAL_ROTATIONS` rotates the axis of the residual stream only.

    Raises:
        ValueError: no trainable parameter's name matches any of `rotations`.
    """
    rotations = rotations or {}
    groups: dict[tuple, dict[str, Any]] = {}
    for is_decayed in (True, False):
        for name, param in model.named_parameters():
            if not param.requires_grad or (param.ndim >= 2) != is_decayed:
                continue
            pattern = next((pattern for pattern in rotations if re.search(pattern, name)), None)
            options: dict[str, Any] = {"weight_decay": weight_decay if is_decayed else 0.0}
            if pattern is not None:
                options["rotation"] = rotations[pattern]
            group = groups.setdefault((is_decayed, str(options.get("rotation"))), {"params": [], **options})
            group["params"].append((name, param))
    if rotations and not any("rotation" in group for group in groups.values()):
        raise ValueError(f"no trainable parameter's name matches `rotations`: {', '.join(rotations)}.")
    return list(groups.values())


def ortho_adam_cls_and_kwargs(
    model: nn.Module, args, rotations: Mapping[str, str | Sequence[str]] | None = None, **kwargs
) -> tuple[type[OrthoAdam], dict[str, Any]]:
    """`Trainer(optimizer_cls_and_kwargs=...)` for OrthoAdam with the settings of `TrainingArguments`.

    Args:
        model: the very object that is given to Trainer.
        args (`TrainingArguments`): learning_rate, adam_beta1, adam_beta2, adam_epsilon and weight_decay are used.
        rotations: see `ortho_adam_parameter_groups`.
        kwargs: further arguments of `OrthoAdam`.
    """
    groups = ortho_adam_parameter_groups(model, args.weight_decay, rotations)
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return OrthoAdam, {"params": groups, **settings, **kwargs}
