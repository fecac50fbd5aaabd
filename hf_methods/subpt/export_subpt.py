# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A learned prompt for people without this package: plain CLIP, stock PEFT, a matrix of features, an ONNX classifier."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import TrainableTokensConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from hf_methods.checkpoints import atomic_save, atomic_write_text
from hf_methods.subpt.peft_model_subpt import PeftModelForPromptedImageClassification
from hf_methods.subpt.prompts_subpt import build_prompt_ids, extend_tokenizer, prompt_template
from hf_methods.subpt.towers_subpt import max_text_length


TEXT_EMBEDDINGS_FILE = "text_embeddings.safetensors"
ONNX_FILE = "model.onnx"  # the name that optimum's ORTModelForImageClassification looks for, beside config.json
MAX_ONNX_BYTES = 2**31 - 2**24  # a protobuf file holds 2 GiB; larger weights go beside it


def export_merged(
    model: PeftModelForPromptedImageClassification, folder: str | Path, image_processor: Any = None
) -> str:
    """A plain CLIP or SigLIP checkpoint with the context as further tokens of its vocabulary.

        >>> template = export_merged(model, "merged", image_processor)
        >>> pipe = pipeline("zero-shot-image-classification", model="merged")
        >>> pipe("image.png", candidate_labels=["cat", "dog"], hypothesis_template=template)

    Args:
        model: a prompted model of transformers, with a tokenizer. It stays as it is; a copy is merged.
        folder: written as a whole, or not at all; what was there is replaced.
        image_processor: saved beside it, for the pipeline.

    Returns:
        The `hypothesis_template`, which the configuration holds as `subpt_hypothesis_template` too.

    Raises:
        ValueError: a class-specific context (it has no one template), reserved slots, an open_clip model, a tokenizer that
            is not the base model's, or one that reads text behind a new token differently (SigLIP's SentencePiece one).
    """
    config = model.prompt_config
    if config.class_specific:
        raise ValueError(
            "a class-specific context has a prompt for each class and no one template; use `build_classifier` or "
            "`export_text_embeddings`."
        )
    _need_transformers(model, "export_text_embeddings")
    extended = _extended_tokenizer(model)
    template = prompt_template(config)
    merged: Any = _copy(model).merge_and_unload(safe_merge=True)
    merged.config.subpt_hypothesis_template = template

    def save(aside: Path) -> None:
        merged.save_pretrained(aside)
        extended.save_pretrained(aside)
        if image_processor is not None:
            image_processor.save_pretrained(aside)

    atomic_save(folder, save)
    return template


def save_half_precision(model: PreTrainedModel, folder: str | Path) -> None:
    """Save with float16 weights and a configuration that has them loaded as float32: half the size, for a processor.

    Args:
        model: a model of transformers; it stays as it is.
        folder: as for `save_pretrained`.
    """
    half: Any = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    half.config.dtype = torch.float32
    half.config.save_pretrained(folder)


def export_trainable_tokens(model: PeftModelForPromptedImageClassification, folder: str | Path) -> None:
    """An adapter of PEFT's own `TRAINABLE_TOKENS`, with the extended tokenizer and a README that says how to load it.

    Who loads it must lengthen the embedding first, and for OpenAI's checkpoints set the end-of-text id: see the README in
    `folder`. To train go on with this package: PEFT's layer copies the whole embedding in every call.

    Args:
        model: a prompted model of transformers, with a tokenizer.
        folder: written as a whole, or not at all.

    Raises:
        ValueError: as for `export_merged`, but class-specific contexts are taken.
    """
    config = model.prompt_config
    _need_transformers(model, "export_text_embeddings")
    extended = _extended_tokenizer(model)
    context = model.context.detach()
    tuner: Any = model.base_model
    (name,) = tuner.targeted_module_names
    base: Any = _copy(model).unload()
    embedding: nn.Embedding = base.get_submodule(name)
    ids = list(range(len(extended) - len(context), len(extended)))
    embedding.weight = nn.Parameter(
        torch.cat([embedding.weight.detach()[: ids[0]], context.to(embedding.weight)]), requires_grad=False
    )
    embedding.num_embeddings = len(embedding.weight)
    # PEFT starts the trained rows from the embedding: they are the context already.
    stock: Any = get_peft_model(base, TrainableTokensConfig(token_indices=ids, target_modules=[name]))
    stock.peft_config["default"].base_model_name_or_path = config.base_model_name_or_path
    tower = name.removesuffix(".embeddings.token_embedding")
    text = TEMPLATE_OF_EACH_CLASS if config.class_specific else ONE_TEMPLATE
    readme = TRAINABLE_TOKENS_README.format(
        tower=tower,
        size=len(extended),
        eos=config.eos_token_id,
        text=text.format(template=prompt_template(config), n_ctx=config.n_ctx),
    )

    def save(aside: Path) -> None:
        stock.save_pretrained(str(aside), save_embedding_layers=False)
        extended.save_pretrained(aside / "tokenizer")
        atomic_write_text(aside / "README.md", readme)

    atomic_save(folder, save)


TRAINABLE_TOKENS_README = """---
library_name: peft
---
A learned prompt for a CLIP-like model (hf_methods, SubPT), as an adapter of PEFT's TRAINABLE_TOKENS.

```python
model = AutoModelForZeroShotImageClassification.from_pretrained(base_model)
model.{tower}.resize_token_embeddings({size}, mean_resizing=False)
model.{tower}.eos_token_id = {eos}  # where text is pooled; 2 would pool at the largest id, a context token
model = PeftModel.from_pretrained(model, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter, subfolder="tokenizer")
text = {text}
```
"""
ONE_TEMPLATE = '"{template}".format(class_name)'
TEMPLATE_OF_EACH_CLASS = """re.sub(
    r"<\\|ctx_(\\d+)\\|>",  # each class, numbered as in training, has its own context tokens
    lambda token: f"<|ctx_{{int(token[1]) + {n_ctx} * class_number}}|>",
    "{template}",
).format(class_name)"""


@torch.no_grad()
def export_text_embeddings(
    model: PeftModelForPromptedImageClassification,
    folder: str | Path,
    class_names: Sequence[str] | None = None,
    *,
    chunk_size: int = 256,
) -> Path:
    """The features of class names as a matrix, for detectors and segmenters that take one.

    Args:
        model: a prompted model, also of open_clip.
        folder: gets `text_embeddings.safetensors`.
        class_names: names, default those that are set.
        chunk_size: prompts at once.

    Returns:
        The file: `text_embeds` (classes, dim), float32, rows of length 1; metadata `names` (JSON), `base_model`,
        `template`, and `adapter_sha256` of the context.

    Raises:
        ValueError: no classes.
    """
    features = model.encode_classes(class_names, chunk_size=chunk_size)
    names = list(class_names) if class_names is not None else model.class_names
    path = Path(folder) / TEXT_EMBEDDINGS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    context = model.context.detach().float().cpu().contiguous()
    metadata = {
        "names": json.dumps(names),
        "base_model": model.prompt_config.base_model_name_or_path or "",
        "template": prompt_template(model.prompt_config),
        "adapter_sha256": hashlib.sha256(context.numpy().tobytes()).hexdigest(),
    }
    aside = path.with_suffix(".aside")
    save_file({"text_embeds": features.cpu().contiguous()}, aside, metadata=metadata)
    os.replace(aside, path)
    return path


class _Logits(nn.Module):
    """A classifier with tensors instead of a `ModelOutput`, for the exporter."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(pixel_values).logits


@torch.no_grad()
def export_onnx(
    model: PeftModelForPromptedImageClassification,
    folder: str | Path,
    class_names: Sequence[str] | None = None,
    image_processor: Any = None,
) -> Path:
    """The cached classifier (see `build_classifier`) as an ONNX graph in float32: images -> logits.

    Written by `torch.onnx.export` (dynamo). `optimum`'s exporter would need a configuration of its own for this
    architecture, and its current release (optimum-onnx 0.1) doesn't install beside transformers 5. The folder has
    the layout that optimum's `ORTModelForImageClassification` reads.

        >>> session = onnxruntime.InferenceSession(export_onnx(model, "onnx"))
        >>> (logits,) = session.run(["logits"], {"pixel_values": pixel_values})  # any batch size

    Args:
        model: a prompted CLIP, MetaCLIP 2 or SigLIP of transformers.
        folder: gets `model.onnx` (with `model.onnx.data` beside it above 2 GiB) and `config.json` with `id2label`;
            written as a whole, or not at all.
        class_names: names, default those that are set.
        image_processor: saved beside it.

    Returns:
        The file. Input `pixel_values` (batch, channels, image_size, image_size), output `logits` (batch, classes).

    Raises:
        ImportError: `onnx` or `onnxscript` is missing.
        ValueError: no classes, a base model without a classifier, or SigLIP 2's patches of variable resolution.
    """
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise ImportError("exporting to ONNX needs onnx and onnxscript: pip install 'hf_methods[export]'.")
    classifier = model.build_classifier(class_names).float().cpu()
    settings = classifier.vision_tower.config
    if not hasattr(settings, "image_size"):
        raise ValueError(
            f"{settings.model_type} takes patches of variable resolution, which have no ONNX export here; use "
            "`build_classifier`."
        )
    example = torch.zeros(2, settings.num_channels, settings.image_size, settings.image_size)
    num_bytes = sum(tensor.nbytes for tensor in classifier.state_dict().values())

    def save(aside: Path) -> None:
        torch.onnx.export(
            _Logits(classifier).eval(),
            (example,),
            aside / ONNX_FILE,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=num_bytes > MAX_ONNX_BYTES,
            verbose=False,
        )
        classifier.config.save_pretrained(aside)
        if image_processor is not None:
            image_processor.save_pretrained(aside)

    atomic_save(folder, save)
    return Path(folder) / ONNX_FILE


EXPORTS: dict[str, Callable[..., Any]] = {
    "merged": export_merged,
    "trainable_tokens": export_trainable_tokens,
    "text_embeddings": export_text_embeddings,
    "onnx": export_onnx,
}


def _extended_tokenizer(model: PeftModelForPromptedImageClassification) -> Any:
    """The base model's tokenizer with the context's tokens, which reads the prompts as they were trained."""
    config, tokenizer = model.prompt_config, model._get_tokenizer()
    extended = extend_tokenizer(tokenizer, config)
    if config.class_specific:
        return extended
    names = model.class_names or config.class_names or ["cat"]
    ids = build_prompt_ids(config, names, tokenizer, max_length=max_text_length(model.text_tower))
    texts = [prompt_template(config).replace("{}", name) for name in names]
    for name, trained, text in zip(names, ids.tolist(), texts):
        read = extended(text)["input_ids"]
        if read != trained[: len(read)]:
            raise ValueError(
                f"{type(tokenizer).__name__} reads {name!r} behind a new token as {read}, the prompt was trained with "
                f"{trained[: len(read)]}: a merged model would see other prompts. Use `build_classifier` or "
                "`export_text_embeddings`."
            )
    return extended


def _need_transformers(model: PeftModelForPromptedImageClassification, instead: str) -> None:
    base: Any = model.get_base_model()
    if not hasattr(base, "save_pretrained"):
        raise ValueError(f"{type(base).__name__} is no model of transformers; use `{instead}`.")


def _copy(model: PeftModelForPromptedImageClassification) -> PeftModelForPromptedImageClassification:
    # Features with a graph can't be copied, and the copy needs none.
    model._cached = None
    return copy.deepcopy(model)
