# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The tuner layer around the token embedding, and the tuner."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from hf_methods.subpt.peft_config_subpt import SubPTConfig
from hf_methods.subpt.prompts_subpt import context_init_ids, load_tokenizer
from hf_methods.subpt.towers_subpt import (
    find_token_embeddings,
    largest_id_is_fixed,
    max_text_length,
    pooling_attributes,
    pools_at_largest_id,
    text_owner,
)


CLIP_VOCAB_SIZE = 49408
CLIP_EOS_TOKEN_ID = 49407
FIRST_RESERVED_ID = 188  # CLIP's BPE: byte 0x00; the 32 control bytes are split off or cleaned away in any text


class SubPTLayer(nn.Module, BaseTunerLayer):
    """The token embedding with K further rows: ids in `[first, first + K)` are looked up in the learned context.

    All other ids go to the frozen embedding, which is never copied. The context may be float32 on a half-precision
    model; rows are cast to the embedding's dtype.

    Args:
        base_layer: the `nn.Embedding`.
        adapter_name: name of the first adapter.
        config: its configuration, with `first_ctx_token_id`.
    """

    adapter_layer_names: tuple[str, ...] = ("subpt_ctx",)
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Embedding, adapter_name: str, config: SubPTConfig):
        super().__init__()
        self.base_layer: nn.Embedding = base_layer
        self.subpt_ctx = nn.ParameterDict({})
        self.first_ctx_token_id: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self.pooling_before: list[tuple[nn.Module, str, Any]] = []
        self._unmerged_weight: nn.Parameter | None = None
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SubPTConfig) -> None:
        """Add an adapter: random values N(0, init_std^2), or the embeddings of `ctx_init_token_ids`."""
        weight = self.base_layer.weight
        assert config.first_ctx_token_id is not None
        context = torch.empty(config.num_ctx_tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
        if config.ctx_init_token_ids is None:
            nn.init.normal_(context, std=config.init_std)
        else:
            words = weight.detach()[torch.tensor(config.ctx_init_token_ids, device=weight.device)]
            context = words.repeat(config.num_ctx_tokens // len(words), 1)
        # Made anew, so that PEFT's `low_cpu_mem_usage` puts it on the meta device.
        self.subpt_ctx[adapter_name] = nn.Parameter(context)
        self.first_ctx_token_id[adapter_name] = config.first_ctx_token_id
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter active; the ids of a prompt mean one context only.

        Raises:
            ValueError: more than one.
        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"only one prompt can be active at a time, got {list(adapter_names)}.")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Enable or disable, and leave `requires_grad` as it is: a frozen prompt stays frozen behind `disable_adapter`."""
        self._disable_adapters = not enabled

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.first_ctx_token_id.pop(adapter_name, None)

    @property
    def active_context(self) -> str | None:
        """Name of the adapter whose rows are used, or None where the embedding is the base model's."""
        active = [name for name in self.active_adapters if name in self.subpt_ctx]
        return None if self.disable_adapters or self.merged or not active else active[0]

    def forward(self, input_ids: Tensor) -> Tensor:
        """(…) int64 -> (…, width) in the dtype of the embedding.

        Raises:
            ValueError: context ids while the adapter is disabled.
        """
        name = self.active_context
        if name is None:
            own = self._unmerged_weight if self.disable_adapters and self._unmerged_weight is not None else None
            size = self.base_layer.num_embeddings if own is None else len(own)
            if not torch.compiler.is_compiling() and input_ids.numel() and int(input_ids.max()) >= size:
                raise ValueError(
                    f"the ids go up to {int(input_ids.max())}, the embedding has {size} rows: a prompt with context "
                    "tokens needs its adapter; enable it, or give the base model an ordinary text."
                )
            return self.base_layer(input_ids)
        context, first = self.subpt_ctx[name], self.first_ctx_token_id[name]
        is_context = (input_ids >= first) & (input_ids < first + len(context))
        # Id 0 stands in where the other table is meant; `where` keeps its row and its gradient out.
        words = self.base_layer(input_ids.masked_fill(is_context, 0))
        rows = F.embedding((input_ids - first).masked_fill(~is_context, 0), context)
        return torch.where(is_context.unsqueeze(-1), rows.to(words.dtype), words)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the context's rows into the embedding at their ids.

        Raises:
            ValueError: two adapters, a second merge, a quantised embedding, NaN in the context with `safe_merge`.
        """
        if self.merged:
            warnings.warn(f"already merged: {self.merged_adapters}; unmerge first to merge another.", stacklevel=2)
            return
        names = check_adapters_to_merge(self, adapter_names)
        if not names:
            return
        if len(names) > 1:
            raise ValueError(f"one prompt can be merged, the ids of several would overlap; got {names}.")
        (name,) = names
        if name not in self.subpt_ctx:
            return
        weight = self.base_layer.weight
        # Quantised weights are integers, or a class of their own that says it is floating-point (torchao, quanto).
        if not weight.is_floating_point() or type(weight) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"a prompt can't be merged into a quantised embedding ({type(weight).__name__} of dtype {weight.dtype}); "
                "dequantise it first."
            )
        context, first = self.subpt_ctx[name].detach(), self.first_ctx_token_id[name]
        if safe_merge and not context.isfinite().all():
            raise ValueError(f"the context of adapter {name!r} holds NaN or infinite values; it was not merged.")
        merged = weight.new_zeros(max(len(weight), first + len(context)), weight.shape[1])
        merged[: len(weight)] = weight.detach()
        merged[first : first + len(context)] = context.to(weight.dtype)
        self._unmerged_weight = cast(nn.Parameter, weight)
        self._set_weight(nn.Parameter(merged, requires_grad=weight.requires_grad))
        self.merged_adapters = [name]

    def unmerge(self) -> None:
        """Give the embedding its own rows back."""
        if not self.merged or self._unmerged_weight is None:
            warnings.warn("no adapter is merged, nothing to do.", stacklevel=2)
            return
        self._set_weight(self._unmerged_weight)
        self._unmerged_weight, self.merged_adapters = None, []

    def _set_weight(self, weight: nn.Parameter) -> None:
        self.base_layer.weight = weight
        self.base_layer.num_embeddings = len(weight)

    def set_pooling(self, owner: nn.Module, eos_token_id: int) -> None:
        """Make a tower that pools at the largest id pool at the end of text, and remember what was there."""
        attributes = pooling_attributes(owner)
        if not pools_at_largest_id(owner) or attributes is None:
            return
        how, eos = attributes  # one attribute for both in transformers: the id
        for attribute, value in {how: "eos", eos: eos_token_id}.items():
            self.pooling_before.append((owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, value)

    def restore_pooling(self) -> None:
        """Undo `set_pooling`."""
        for owner, attribute, value in reversed(self.pooling_before):
            setattr(owner, attribute, value)
        self.pooling_before = []

    def __repr__(self) -> str:
        return "subpt." + super().__repr__()


class SubPTModel(BaseTuner):
    """PEFT's tuner for a learned prompt context: wraps the token embedding of a text tower.

    Besides the layer it sets two things of the base model and puts them back on `unload`: a text tower that pools at the
    largest id (OpenAI's CLIP checkpoints) pools at the end of text, and `accepts_loss_kwargs = False` tells `Trainer`
    to divide the loss by the accumulation steps, which it doesn't do for models with `**kwargs`.

    Args:
        model: HF CLIP, SigLIP, CLIPSeg, OwlViT and their like, or an open_clip model.
        config: `SubPTConfig`, or a dictionary of them by adapter name.
        adapter_name: name of the first adapter.

    Raises:
        ValueError: no or several token embeddings, a tower that needs `ctx_slots="reserved"`, prompts that can't fit.
    """

    prefix: str = "subpt_"
    tuner_layer_cls = SubPTLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - BaseTuner's declaration

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = ["token_embedding"]
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Fill in what follows from the model, before anything of it is changed."""
        targets = [
            (name, module)
            for name, module in model.named_modules()
            if self._check_target_module_exists(peft_config, name) and not name.endswith("base_layer")
        ]
        embeddings = [m for _, m in targets if isinstance(m, (nn.Embedding, SubPTLayer))]
        if len(embeddings) != 1 or len(targets) != 1:
            raise ValueError(
                f"`target_modules` {peft_config.target_modules} must name the one token embedding, it names "
                f"{[name for name, _ in targets]}; the embeddings of this model are {find_token_embeddings(model)}."
            )
        owner = text_owner(model, embeddings[0])
        base = embeddings[0].base_layer if isinstance(embeddings[0], SubPTLayer) else embeddings[0]
        assert isinstance(base, nn.Embedding)
        size = base.num_embeddings
        if peft_config.first_ctx_token_id is None:
            if peft_config.ctx_slots == "virtual":
                peft_config.first_ctx_token_id = size
            elif size == CLIP_VOCAB_SIZE:
                peft_config.first_ctx_token_id = FIRST_RESERVED_ID
            else:
                raise ValueError(
                    f"the reserved ids are known for CLIP's vocabulary of {CLIP_VOCAB_SIZE} tokens, this one has {size}; "
                    "give `first_ctx_token_id`: ids that no text produces."
                )
        if peft_config.ctx_slots == "virtual" and largest_id_is_fixed(owner):
            raise ValueError(
                f"{type(model).__name__} pools text at the largest id and would pool at a context token; use "
                "`ctx_slots='reserved'`."
            )
        if peft_config.eos_token_id is None and pooling_attributes(owner) is not None:
            if not pools_at_largest_id(owner):
                peft_config.eos_token_id = int(getattr(owner, pooling_attributes(owner)[1]))  # type: ignore[index]
            else:  # the largest id of any text is the end of text
                peft_config.eos_token_id = CLIP_EOS_TOKEN_ID if size >= CLIP_VOCAB_SIZE else size - 1
        if peft_config.ctx_init is not None and peft_config.ctx_init_token_ids is None:
            peft_config.ctx_init_token_ids = context_init_ids(peft_config, load_tokenizer(peft_config))
            peft_config.n_ctx = len(peft_config.ctx_init_token_ids)
        peft_config.check_context()
        assert peft_config.n_ctx is not None
        if peft_config.n_ctx + 2 > max_text_length(owner):
            raise ValueError(
                f"`n_ctx` = {peft_config.n_ctx} leaves no room for a name: the text tower has "
                f"{max_text_length(owner)} positions."
            )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target,
        target_name,
        parent,
        current_key,
        parameter_name=None,
    ) -> None:
        owner = text_owner(self.model, target)
        if isinstance(target, SubPTLayer):
            target.update_layer(adapter_name, peft_config)
            layer = target
        else:
            layer = SubPTLayer(target, adapter_name, peft_config)
            layer.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)
            self._replace_module(parent, target_name, layer, target)
        if peft_config.ctx_slots == "virtual" and peft_config.eos_token_id is not None:
            layer.set_pooling(owner, peft_config.eos_token_id)
        self.model.accepts_loss_kwargs = False

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        layers = [module for module in self.model.modules() if isinstance(module, SubPTLayer)]
        names: Sequence[str] = adapter_names or self.active_adapters
        if merge and len(names) > 1:
            raise ValueError(f"one prompt can be merged, the ids of several would overlap; got {list(names)}.")
        for layer in layers:
            if layer.merged and layer.merged_adapters != list(names) or layer.merged and not merge:
                layer.unmerge()
        config: Any = self.peft_config[names[0]] if names else None
        owners = [text_owner(self.model, layer) for layer in layers]
        super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        model: Any = self.model
        for layer, owner in zip(layers, owners):
            if merge and config is not None:
                _write_config(model, owner, layer.base_layer.num_embeddings, config.eos_token_id)
            else:
                layer.restore_pooling()
        model.__dict__.pop("accepts_loss_kwargs", None)
        return model


def _write_config(model: Any, owner: Any, vocab_size: int, eos_token_id: int | None) -> None:
    """Make a merged model load again: the length of the embedding, and the end of text that it pools at."""
    if hasattr(owner, "vocab_size"):  # open_clip
        owner.vocab_size = model.vocab_size = vocab_size
    configs = [owner.config] if hasattr(owner, "config") else []
    if hasattr(model, "config") and hasattr(model.config, "text_config"):
        configs.append(model.config.text_config)
    for config in configs:
        config.vocab_size = vocab_size
        if eos_token_id is not None:
            config.eos_token_id = eos_token_id
