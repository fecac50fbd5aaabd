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
from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hf_methods.subpt.anchors_subpt import Anchors
from hf_methods.subpt.classifier_subpt import check_has_classifier, classifier_from
from hf_methods.subpt.losses_subpt import nfl_loss, normalize
from hf_methods.subpt.modeling_subpt import PromptedImageClassifier
from hf_methods.subpt.peft_prompts_subpt import PeftModelWithPrompts
from hf_methods.subpt.prompts_subpt import check_class_names
from hf_methods.subpt.subspace_subpt import Basis
from hf_methods.subpt.towers_subpt import encode_image, logit_scale_and_bias


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


class PeftModelForPromptedImageClassification(PeftModelWithPrompts):
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
        basis: the subspace that the context was trained in, or None; saved and loaded with the adapter.
    """

    def __init__(self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any):
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.basis: Basis | None = None
        self.anchors: Anchors | None = None

    def set_classes(
        self, class_names: Sequence[str], tokenizer: Any = None, *, truncation: bool = False, full_length: bool = False
    ) -> None:
        """As `PeftModelWithPrompts.set_classes`; anchors that are set stay, and share the features of the new classes."""
        super().set_classes(class_names, tokenizer, truncation=truncation, full_length=full_length)
        if (old := self.anchors) is not None:
            self.set_anchors(old.names, old.targets, weight=old.weight, kind=old.kind, per_step=old.per_step)

    def _prompt_classes_anew(self) -> None:
        self.anchors = None  # another adapter's
        super()._prompt_classes_anew()

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Normalised image features (batch, dim), float32, without gradient: the image tower is frozen.

        Args:
            pixel_values: as the model's image processor gives them.
            kwargs: what else it gives, as SigLIP 2's `pixel_attention_mask` and `spatial_shapes`.
        """
        return normalize(encode_image(self.get_base_model(), pixel_values, **kwargs))

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
