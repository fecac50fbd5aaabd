# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The text side of a prompted model: class names in, features out."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from hf_methods.subpt.losses_subpt import average_templates, normalize
from hf_methods.subpt.peft_config_subpt import SubPTConfig
from hf_methods.subpt.peft_tuner_subpt import SubPTLayer
from hf_methods.subpt.prompts_subpt import (
    build_prompt_ids,
    build_text_ids,
    check_class_names,
    check_ends,
    load_tokenizer,
)
from hf_methods.subpt.towers_subpt import encode_text_in_chunks, is_causal, max_text_length, text_owner


class PeftModelWithPrompts(PeftModel):
    """A model with a text tower like CLIP's whose prompts have a learned context: class names in, features out.

    What classifies images by them is `PeftModelForPromptedImageClassification`.

    Args:
        model: HF CLIP, MetaCLIP 2, SigLIP, SigLIP 2, CLIPSeg, OwlViT, Owlv2, or an open_clip model.
        peft_config: `SubPTConfig`.
        adapter_name: name of the first adapter.
        kwargs: of `PeftModel`.

    Attributes:
        class_names, class_input_ids: the set classes and their prompts (classes, length), or None.
        class_chunk_size: prompts that are encoded at once in training; None: all. Smaller values recompute the text tower
            in the backward pass, chunk by chunk, with the same gradient: the memory of a chunk for one more forward pass.
    """

    def __init__(self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any):
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.tokenizer: Any = None
        self.class_names: list[str] | None = None
        self.class_chunk_size: int | None = None
        # Ids are buffers: nn.DataParallel would cut a batch field into pieces.
        self.class_input_ids: Tensor | None
        self.register_buffer("class_input_ids", None, persistent=False)
        self._class_options: dict[str, bool] = {}
        self._cached: tuple[tuple, Tensor] | None = None
        self.train(self.training)

    # --- the parts of the model -------------------------------------------------------------------------------------

    @property
    def prompt_layer(self) -> SubPTLayer:
        """The layer with the contexts of all adapters."""
        return next(module for module in self.base_model.modules() if isinstance(module, SubPTLayer))

    @property
    def context(self) -> nn.Parameter:
        """The active adapter's context, (M, width) or (C * M, width)."""
        return self.prompt_layer.subpt_ctx[self.active_adapter]

    @property
    def text_tower(self) -> nn.Module:
        """The base model's text tower."""
        return text_owner(self.get_base_model(), self.prompt_layer)

    @property
    def device(self) -> torch.device:
        """Device of the token embedding."""
        return self.prompt_layer.base_layer.weight.device

    @property
    def prompt_config(self) -> SubPTConfig:
        """Configuration of the active adapter."""
        config = self.peft_config[self.active_adapter]
        assert isinstance(config, SubPTConfig)
        return config

    def train(self, mode: bool = True) -> "PeftModelWithPrompts":
        """Training mode for the losses of a subclass only; the base model stays in evaluation mode (CoOp)."""
        self.training = mode
        self.base_model.eval()
        return self

    # --- class names ------------------------------------------------------------------------------------------------

    def set_classes(
        self, class_names: Sequence[str], tokenizer: Any = None, *, truncation: bool = False, full_length: bool = False
    ) -> None:
        """Choose the classes; any names, except for a class-specific context.

        Args:
            class_names: names in the order of their labels.
            tokenizer: of transformers or open_clip; default: the one given before, else that of the base model.
            truncation: cut names that are too long.
            full_length: rows of the tower's full length instead of the longest prompt's; the features are the same.

        Raises:
            ValueError: bad names, a prompt that is too long, or a tokenizer whose end-of-text is not the one that the
                text tower pools at.
        """
        names = check_class_names(class_names)
        ids = self.prompt_ids(names, tokenizer, truncation=truncation, full_length=full_length)
        self.class_names, self.class_input_ids = names, ids
        self._class_options = {"truncation": truncation, "full_length": full_length}
        self._cached = None

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """As `PeftModel.set_adapter`; the classes stay, with the other adapter's prompts.

        A class-specific context takes other classes than its own away: set them again.
        """
        before = self.active_adapter
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        if adapter_name != before:
            self._prompt_classes_anew()

    def delete_adapter(self, adapter_name: str) -> None:
        """As `PeftModel.delete_adapter`; the classes stay, with the prompts of the adapter that is active then."""
        before = self.active_adapter
        super().delete_adapter(adapter_name)
        if self.active_adapter != before:
            self._prompt_classes_anew()

    def _prompt_classes_anew(self) -> None:
        names, self.class_names, self.class_input_ids, self._cached = self.class_names, None, None, None
        if names is None or self.active_adapter not in self.peft_config:
            return
        if not self.prompt_config.class_specific or names == self.prompt_config.class_names:
            self.set_classes(names, **self._class_options)

    def prompt_ids(
        self, names: Sequence[str], tokenizer: Any = None, *, truncation: bool = False, full_length: bool = False
    ) -> Tensor:
        """Token ids (n, length) of the prompts of `names`, on the model's device; arguments as for `set_classes`."""
        tower = self.text_tower
        ids = build_prompt_ids(
            self.prompt_config,
            names,
            self._get_tokenizer(tokenizer),
            max_length=max_text_length(tower),
            padding="tokenizer" if not is_causal(tower) else "right" if full_length else None,
            truncation=truncation,
        )
        check_ends(ids, self.prompt_config.eos_token_id)
        return ids.to(self.device)

    def _get_tokenizer(self, tokenizer: Any = None) -> Any:
        if tokenizer is not None:
            self.tokenizer = tokenizer
        elif self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.prompt_config)
        return self.tokenizer

    # --- features ---------------------------------------------------------------------------------------------------

    def encode_prompts(self, input_ids: Tensor, chunk_size: int | None = None, *, normalized: bool = True) -> Tensor:
        """Text features of prompts, in float32 where they are normalised.

        Args:
            input_ids: (n, length), of `prompt_ids`.
            chunk_size: prompts at once. With a gradient each chunk is recomputed in the backward pass.
            normalized: to length 1.

        Returns:
            (n, dim).

        Raises:
            ValueError: rows without the end of text that the tower pools at.
        """
        check_ends(input_ids, self.prompt_config.eos_token_id)
        features = encode_text_in_chunks(self.get_base_model(), self.text_tower, input_ids, chunk_size)
        return normalize(features) if normalized else features

    def encode_classes(self, class_names: Sequence[str] | None = None, *, chunk_size: int | None = None) -> Tensor:
        """Normalised text features (C, dim) of class names, float32; of the classes that are set by default.

        Where no gradient is needed the features of the set classes are computed once and kept until the context, the
        classes, the adapter, the dtype or the device change.

        Args:
            class_names: other names.
            chunk_size: prompts at once, default `class_chunk_size`.

        Raises:
            ValueError: no classes are set and no names given.
        """
        chunk_size = chunk_size if chunk_size is not None else self.class_chunk_size
        if class_names is not None:
            return self.encode_prompts(self.prompt_ids(class_names), chunk_size)
        if self.class_input_ids is None:
            raise ValueError("no classes are set; call `set_classes(names, tokenizer)` first.")
        if torch.is_grad_enabled():
            return self.encode_prompts(self.class_input_ids, chunk_size)
        layer, context = self.prompt_layer, self.context
        weight = layer.base_layer.weight
        key = (layer.active_context, id(context), context._version, context.dtype, weight.dtype, weight.device)
        if self._cached is None or self._cached[0] != key:
            self._cached = key, self.encode_prompts(self.class_input_ids, chunk_size)
        return self._cached[1]

    @torch.no_grad()
    def encode_templates(
        self, names: Sequence[str], templates: Sequence[str], tokenizer: Any = None, *, chunk_size: int = 256
    ) -> Tensor:
        """Features of names with hand-written prompts, without the learned context: zero-shot CLIP's classifier.

        The normalised mean over the templates of normalised features (`zsclip.py` of the published code).

        Args:
            names: names.
            templates: each with one `{}`.
            tokenizer: as for `set_classes`.
            chunk_size: texts at once.

        Returns:
            (len(names), dim), float32.

        Raises:
            ValueError: bad names or templates.
        """
        names = check_class_names(names, "names")
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError(f"each template must have one {{}}, got {list(templates)}.")
        tower, tokenizer = self.text_tower, self._get_tokenizer(tokenizer)
        texts = [template.replace("{}", name) for template in templates for name in names]
        ids = build_text_ids(
            texts, tokenizer, max_length=max_text_length(tower), padding=None if is_causal(tower) else "tokenizer"
        )
        check_ends(ids, self.prompt_config.eos_token_id)
        ids = ids.to(self.device)
        with self.disable_adapter():
            features = self.encode_prompts(ids, chunk_size)
        return average_templates(features.view(len(templates), len(names), -1))
