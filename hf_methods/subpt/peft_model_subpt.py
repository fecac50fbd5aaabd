# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The PEFT model that classifies images by prompts with a learned context."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hf_methods.subpt.anchors_subpt import Anchors
from hf_methods.subpt.classifier_subpt import check_has_classifier, classifier_from
from hf_methods.subpt.losses_subpt import average_templates, nfl_loss, normalize
from hf_methods.subpt.modeling_subpt import PromptedImageClassifier
from hf_methods.subpt.peft_config_subpt import SubPTConfig
from hf_methods.subpt.peft_tuner_subpt import SubPTLayer
from hf_methods.subpt.prompts_subpt import (
    build_prompt_ids,
    build_text_ids,
    check_class_names,
    check_ends,
    load_tokenizer,
)
from hf_methods.subpt.subspace_subpt import Basis
from hf_methods.subpt.towers_subpt import (
    encode_image,
    encode_text_in_chunks,
    is_causal,
    logit_scale_and_bias,
    max_text_length,
    text_owner,
)


BASIS_FILE = "subspace.safetensors"
TOKENIZER_FOLDER = "tokenizer"  # not at the top, where PEFT's Auto classes would resize CLIP's embedding and crash


@dataclass
class PromptedClassifierOutput(ModelOutput):
    """What `PeftModelForPromptedImageClassification` returns.

    Args:
        loss: scalar, cross entropy plus the weighted NFL loss; with `labels` only.
        logits: (batch, classes), float32: scale * cosine (+ bias).
        ce_loss, nfl_loss: the parts of `loss`, without gradient; the second with anchors in training only.
        image_embeds: (batch, dim), normalised.
        text_embeds: (classes, dim), normalised.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    ce_loss: Tensor | None = None
    nfl_loss: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class PeftModelForPromptedImageClassification(PeftModel):
    """A CLIP-like model whose prompts have a learned context: CoOp's model, with NFL's loss in training.

    Give it class names, then images: the logits are those of CLIP with the learned prompts. The base model stays in
    evaluation mode in training too (CoOp). Text features are computed for all classes in every training step, and once
    where no gradient is needed. With `input_ids` the call goes to the base model as it is, so that stock pipelines work.

        >>> model = get_peft_model(CLIPModel.from_pretrained(name), SubPTConfig(n_ctx=4))
        >>> model.set_classes(["cat", "dog"], tokenizer)
        >>> model(pixel_values).logits  # (batch, 2)

    Args:
        model: HF CLIP, MetaCLIP 2, SigLIP, SigLIP 2, or an open_clip model.
        peft_config: `SubPTConfig`.
        adapter_name: name of the first adapter.
        kwargs: of `PeftModel`.

    Attributes:
        class_chunk_size: prompts that are encoded at once in training; None: all. Smaller values recompute the text tower
            in the backward pass, chunk by chunk, with the same gradient: the memory of a chunk for one more forward pass.
        basis: the subspace that the context was trained in, or None; saved and loaded with the adapter.
    """

    def __init__(self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any):
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.tokenizer: Any = None
        self.class_names: list[str] | None = None
        self.class_chunk_size: int | None = None
        self.basis: Basis | None = None
        self.anchors: Anchors | None = None
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

    def train(self, mode: bool = True) -> "PeftModelForPromptedImageClassification":
        """Training mode for NFL's loss only; the base model stays in evaluation mode."""
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
        """As `PeftModel.set_adapter`; the classes stay, with the other adapter's prompts. Anchors go.

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
        self.set_anchors(None)
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
    def encode_images(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Normalised image features (batch, dim), float32, without gradient: the image tower is frozen.

        Args:
            pixel_values: as the model's image processor gives them.
            kwargs: what else it gives, as SigLIP 2's `pixel_attention_mask` and `spatial_shapes`.
        """
        return normalize(encode_image(self.get_base_model(), pixel_values, **kwargs))

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

    @torch.no_grad()
    def build_classifier(
        self, class_names: Sequence[str] | None = None, *, chunk_size: int = 256
    ) -> PromptedImageClassifier:
        """A stock image classifier with these classes: the image tower and the text features, computed once.

        A copy: changes of the context or the base model don't reach it, so build it again after training.

        Args:
            class_names: names, default those that are set.
            chunk_size: prompts encoded at once.

        Returns:
            `PromptedImageClassifier` with the base model's dtype and device, `id2label` being the names.

        Raises:
            ValueError: no classes, or a base model that is not CLIP, MetaCLIP 2, SigLIP or SigLIP 2 of transformers.
        """
        check_has_classifier(self.get_base_model())
        names = self.class_names if class_names is None else check_class_names(class_names)
        features = self.encode_classes(class_names, chunk_size=chunk_size)
        assert names is not None
        return classifier_from(self.get_base_model(), names, features)

    # --- NFL --------------------------------------------------------------------------------------------------------

    def set_anchors(
        self,
        names: Sequence[str] | None,
        targets: Tensor | None = None,
        *,
        weight: float = 1.0,
        kind: str = "cosine",
        per_step: int | None = None,
    ) -> None:
        """Names whose learned features stay near `targets` in training: NFL, or a KgCoOp-like anchor on the classes.

        Args:
            names: the names, such as those of new classes; names of the set classes share their features. None: no NFL.
            targets: (len(names), dim), such as `encode_templates(names, ...)`.
            weight: lambda, the paper's 1.
            kind: "cosine" (paper) or "l2".
            per_step: names drawn at random for each step; None: all (paper).

        Raises:
            ValueError: classes that are not set, a class-specific context, a negative weight, targets of another number,
                or `per_step` below 1.
        """
        if names is None or weight == 0:
            self.anchors = None
            return
        if self.class_names is None or self.class_input_ids is None:
            raise ValueError("no classes are set; call `set_classes(names, tokenizer)` before `set_anchors`.")
        names = check_class_names(names, "names")
        if self.prompt_config.class_specific and (others := sorted(set(names) - set(self.class_names))):
            raise ValueError(f"NFL needs one context for all names, a class-specific one has none for {others}.")
        self.anchors = Anchors(
            names, targets, self.class_names, self.class_input_ids, self.prompt_ids,
            weight=weight, kind=kind, per_step=per_step,
        )  # fmt: skip

    # --- forward ----------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify images among the set classes.

        Args:
            pixel_values: (batch, 3, height, width), or patches (SigLIP 2).
            labels: (batch,), int64; gives `loss`.
            input_ids: (texts, length): the call goes to the base model with all arguments but `labels`.
            attention_mask: with `input_ids`.
            image_embeds: (batch, dim) instead of `pixel_values`, such as cached features; normalised here.
            kwargs: of the base model with `input_ids`, else of its image tower.

        Returns:
            `PromptedClassifierOutput`, or what the base model returns.

        Raises:
            ValueError: neither or both of images and features, `labels` with `input_ids`, labels out of range (checked on
                the CPU), or no classes.
        """
        if input_ids is not None:
            if labels is not None:
                raise ValueError("`labels` are of the set classes, not of `input_ids`; leave `input_ids` out.")
            if attention_mask is not None:
                kwargs["attention_mask"] = attention_mask
            if pixel_values is not None:
                kwargs["pixel_values"] = pixel_values
            return super().forward(input_ids=input_ids, **kwargs)
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("give either `pixel_values` or `image_embeds`.")
        if self.class_input_ids is None:
            raise ValueError("no classes are set; call `set_classes(names, tokenizer)` first.")
        if labels is not None:
            self._check_labels(labels, len(self.class_input_ids))
        if pixel_values is not None:
            image_embeds = self.encode_images(pixel_values, **kwargs)
        assert image_embeds is not None
        image_embeds = normalize(image_embeds)
        anchors = self.anchors if self.training and labels is not None else None
        if anchors is not None:
            text_embeds, anchor_features, targets = anchors.encode(
                self.class_input_ids, self.encode_prompts, self.class_chunk_size
            )
        else:
            text_embeds = self.encode_classes()
        scale, bias = logit_scale_and_bias(self.get_base_model())
        logits = scale * image_embeds.to(text_embeds.dtype) @ text_embeds.T
        if bias is not None:
            logits = logits + bias
        output = PromptedClassifierOutput(logits=logits, image_embeds=image_embeds, text_embeds=text_embeds)
        if labels is not None:
            loss = F.cross_entropy(logits, labels)
            output.ce_loss = loss.detach()
            if anchors is not None:
                anchor_loss = nfl_loss(anchor_features, targets, anchors.kind)
                output.nfl_loss = anchor_loss.detach()
                loss = loss + anchors.weight * anchor_loss
            output.loss = loss
        return output

    @staticmethod
    def _check_labels(labels: Tensor, num_classes: int) -> None:
        # On another device a look would wait for it, in a compiled graph it would break the graph.
        if labels.device.type != "cpu" or not labels.numel() or torch.compiler.is_compiling():
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels must be in 0..{num_classes - 1}, got {low}..{high}; `set_classes` with the data set's names."
            )

    # --- files ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, save_basis: bool = True, **kwargs: Any) -> None:  # type: ignore[override]
        """As `PeftModel.save_pretrained`, with the subspace beside it and the tokenizer in the folder `tokenizer`.

        Args:
            save_directory: the folder.
            save_basis: store `basis` too, r * d float32, if there is one.
            kwargs: of `PeftModel.save_pretrained`.
        """
        kwargs.setdefault("save_embedding_layers", False)  # they are the base model's
        super().save_pretrained(str(save_directory), **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        folder = Path(save_directory)
        if self.basis is not None and save_basis:
            save_file({name: tensor.cpu() for name, tensor in self.basis.state_dict().items()}, folder / BASIS_FILE)
        if self.tokenizer is not None and hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)

    def export(self, path: str | os.PathLike, format: str, **options: Any) -> Any:
        """Write the prompt for people without this package.

        Args:
            path: a folder.
            format: "merged" (`export_merged`), "trainable_tokens" (`export_trainable_tokens`), "text_embeddings"
                (`export_text_embeddings`) or "onnx" (`export_onnx`).
            options: of that function, such as `class_names` or `image_processor`.

        Returns:
            What that function returns.

        Raises:
            ValueError: an unknown format, or what that function raises.
        """
        from hf_methods.subpt.export_subpt import EXPORTS  # it imports this file

        if format not in EXPORTS:
            raise ValueError(f"`format` must be one of {', '.join(EXPORTS)}, got {format!r}.")
        return EXPORTS[format](self, path, **options)
