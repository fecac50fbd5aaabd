# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Loading a prompt adapter with everything that belongs to it."""

import os
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftConfig
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer

from hf_methods.subpt.peft_config_subpt import PEFT_NAME, SubPTConfig
from hf_methods.subpt.peft_model_subpt import BASIS_FILE, TOKENIZER_FOLDER, PeftModelForPromptedImageClassification
from hf_methods.subpt.subspace_subpt import Basis


class AutoPromptModel:
    """Loads a prompt adapter with its base model, tokenizer, class names and subspace.

    PEFT's own Auto classes refuse adapters of other tasks, and crash where a CLIP adapter has a tokenizer beside it.

        >>> model = AutoPromptModel.from_pretrained("you/your-prompt")
        >>> model.set_classes(["cat", "dog"])
    """

    def __init__(self):
        raise OSError("use `AutoPromptModel.from_pretrained(adapter)`.")

    @classmethod
    def from_pretrained(
        cls,
        adapter_id: str | os.PathLike,
        base_model: nn.Module | None = None,
        is_trainable: bool = False,
        tokenizer: Any = None,
        adapter_name: str = "default",
        revision: str | None = None,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> PeftModelForPromptedImageClassification:
        """Load an adapter.

        Args:
            adapter_id: Hub id or folder of the adapter.
            base_model: the model it belongs to; needed for open_clip, otherwise loaded from where the adapter says.
            is_trainable: go on training.
            tokenizer: default: the adapter's, else the base model's.
            adapter_name: its name in the model.
            revision: of the adapter.
            subfolder: where the adapter lies in `adapter_id`, as "adapter" in a published repository.
            kwargs: of the base model's `from_pretrained`, such as `dtype`.

        Returns:
            The model, in evaluation mode, with the classes of the adapter if it has names and there is a tokenizer.

        Raises:
            ValueError: an adapter of another method, no base model, or a subspace of another shape.
        """
        adapter = str(adapter_id)
        config = PeftConfig.from_pretrained(adapter, subfolder=subfolder, revision=revision)
        if not isinstance(config, SubPTConfig):
            raise ValueError(f"{adapter} is an adapter of type {config.peft_type}, not {PEFT_NAME.upper()}.")  # noqa: TRY004
        config.inference_mode = not is_trainable
        if base_model is None:
            if not config.base_model_name_or_path:
                raise ValueError(f"{adapter} doesn't name its base model (as those for open_clip); give `base_model`.")
            base_model = AutoModelForZeroShotImageClassification.from_pretrained(
                config.base_model_name_or_path, revision=config.revision, **kwargs
            )
        model = PeftModelForPromptedImageClassification.from_pretrained(
            base_model, adapter, adapter_name=adapter_name, is_trainable=is_trainable, config=config, revision=revision,
            subfolder=subfolder,
        )  # fmt: skip
        assert isinstance(model, PeftModelForPromptedImageClassification)
        model.tokenizer = tokenizer if tokenizer is not None else _adapter_tokenizer(adapter, revision, subfolder)
        if basis_file := _optional_file(adapter, _within(subfolder, BASIS_FILE), revision):
            model.basis = Basis(**load_file(basis_file))
            if model.basis.components.shape[1] != model.context.numel():
                raise ValueError(
                    f"{BASIS_FILE} has directions of {model.basis.components.shape[1]} values, the context "
                    f"{model.context.numel()}: it is another adapter's."
                )
        if config.class_names is not None:
            try:
                model.set_classes(config.class_names)
            except ValueError:
                if model.tokenizer is not None or config.class_specific:
                    raise
                # No tokenizer to be found: the names wait for `set_classes`.
        return model.eval()


def _optional_file(adapter: str, name: str, revision: str | None) -> str | None:
    """Path of a file of an adapter, or None if it has none (or none was stored while this machine is offline)."""
    if os.path.isdir(adapter):
        path = os.path.join(adapter, name)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(adapter, name, revision=revision)
    except EntryNotFoundError:
        return None


def _within(subfolder: str | None, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _adapter_tokenizer(adapter: str, revision: str | None, subfolder: str | None) -> Any:
    for folder in (_within(subfolder, TOKENIZER_FOLDER), subfolder or ""):
        if _optional_file(adapter, _within(folder, "tokenizer_config.json"), revision):
            return AutoTokenizer.from_pretrained(adapter, subfolder=folder, revision=revision)
    return None
