# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The two towers of HF and open_clip models behind the same few functions.

Written against transformers 5.24 and open_clip 3.3. Features are not normalised here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


# Models that pool text at the largest id whatever their configuration says: ids behind the vocabulary would be pooled.
POOL_AT_LARGEST_ID = ("owlvit", "owlv2")
# Models that pool at `eos_token_id` whatever it is; for the others an id of 2 means "at the largest id" (CLIP's history).
POOL_AT_ANY_EOS = ("metaclip_2",)
BIDIRECTIONAL = ("siglip", "siglip2")


def find_token_embeddings(model: nn.Module) -> list[str]:
    """Names of the embeddings of `model`, for error messages."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]


def text_owner(model: nn.Module, layer: nn.Module) -> nn.Module:
    """The text tower: the innermost module with the layers that read the embedding `layer` and pool.

    Raises:
        ValueError: `layer` is in no text tower of a known kind.
    """
    for module in model.modules():
        embeddings = getattr(module, "embeddings", None)  # HF: text_model.embeddings.token_embedding
        if embeddings is not None and getattr(embeddings, "token_embedding", None) is layer:
            return module
        if getattr(module, "token_embedding", None) is layer and hasattr(module, "transformer"):  # open_clip
            return module
    raise ValueError("the token embedding is in no text tower of a CLIP-like model of transformers or open_clip.")


def is_open_clip(owner: nn.Module) -> bool:
    """Whether a text tower is open_clip's."""
    return hasattr(owner, "positional_embedding") and hasattr(owner, "ln_final")


def model_type(owner: nn.Module) -> str:
    """`config.model_type` without "_text_model"; empty for open_clip."""
    config = getattr(owner, "config", None)
    return getattr(config, "model_type", "").removesuffix("_text_model") if config is not None else ""


def pooling_attributes(owner: nn.Module) -> tuple[str, str] | None:
    """(attribute that says how, attribute with the id) of a tower that pools at the end of text; None for the others.

    HF towers have `eos_token_id` alone, where 2 means "at the largest id". A tower that can't be told is found by
    `largest_id_is_fixed`.
    """
    if is_open_clip(owner):
        for how, eos in (("text_pool_type", "text_eos_id"), ("pool_type", "eos_id")):
            if getattr(owner, how, None) in ("argmax", "eos"):
                return how, eos
        return None
    return ("eos_token_id", "eos_token_id") if hasattr(owner, "eos_token_id") else None


def largest_id_is_fixed(owner: nn.Module) -> bool:
    """Whether the tower pools at the largest id and can't be told otherwise."""
    return model_type(owner) in POOL_AT_LARGEST_ID


def pools_at_largest_id(owner: nn.Module) -> bool:
    """Whether the tower pools at the largest id now."""
    attributes = pooling_attributes(owner)
    if attributes is None or model_type(owner) in POOL_AT_ANY_EOS:
        return False
    return getattr(owner, attributes[0]) in ("argmax", 2)


def is_causal(owner: nn.Module) -> bool:
    """Whether tokens see only earlier ones, so that nothing behind the end of text matters."""
    if is_open_clip(owner):
        return owner.attn_mask is not None
    return model_type(owner) not in BIDIRECTIONAL


def max_text_length(owner: nn.Module) -> int:
    """Positions of the text tower."""
    if is_open_clip(owner):
        return int(owner.context_length)  # type: ignore[arg-type]
    return int(owner.config.max_position_embeddings)  # type: ignore[union-attr,arg-type]


def encode_text(model: nn.Module, owner: nn.Module, input_ids: Tensor) -> Tensor:
    """Text features.

    Args:
        model: an HF model with `get_text_features` (CLIP, SigLIP, CLIPSeg, OwlViT) or an open_clip model.
        owner: its text tower.
        input_ids: (n, length); a causal tower takes any length up to its positions.

    Returns:
        (n, dim), not normalised.
    """
    if is_open_clip(owner):
        return _open_clip_text_features(owner, input_ids)
    clip: Any = next(module for module in model.modules() if hasattr(module, "get_text_features"))
    return _pooled(clip.get_text_features(input_ids=input_ids))


def encode_text_in_chunks(model: nn.Module, owner: nn.Module, input_ids: Tensor, chunk_size: int | None) -> Tensor:
    """`encode_text` of `chunk_size` rows at once; with a gradient each chunk is recomputed in the backward pass.

    Args:
        model, owner, input_ids: as for `encode_text`.
        chunk_size: rows at once; None: all.

    Returns:
        (n, dim), not normalised.
    """
    if chunk_size is None or len(input_ids) <= chunk_size:
        return encode_text(model, owner, input_ids)
    chunks = input_ids.split(chunk_size)
    if not torch.is_grad_enabled():
        return torch.cat([encode_text(model, owner, chunk) for chunk in chunks])
    # The features are small: only the tower's activations are thrown away. Those of the last chunk are not: the
    # backward pass begins with it, so keeping them costs no memory at its peak and saves a forward pass.
    kept = [
        checkpoint(encode_text, model, owner, chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks[:-1]
    ]
    return torch.cat([*kept, encode_text(model, owner, chunks[-1])])


def _open_clip_text_features(owner: Any, input_ids: Tensor) -> Tensor:
    # open_clip's `encode_text` adds all positions and masks all pairs: it takes rows of the full length only.
    if getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False):
        raise ValueError("open_clip text towers with a class token or a padding mask (CoCa) are not supported.")
    length, dtype = input_ids.shape[1], owner.transformer.get_cast_dtype()
    hidden = owner.token_embedding(input_ids).to(dtype) + owner.positional_embedding[:length].to(dtype)
    mask = None if owner.attn_mask is None else owner.attn_mask[:length, :length]
    hidden = owner.ln_final(owner.transformer(hidden, attn_mask=mask))
    attributes = pooling_attributes(owner)
    how = getattr(owner, "text_pool_type", None) or owner.pool_type
    if attributes is not None:
        rows = torch.arange(len(input_ids), device=input_ids.device)
        at_eos = input_ids if how == "argmax" else (input_ids == getattr(owner, attributes[1])).int()
        pooled = hidden[rows, at_eos.argmax(-1)]
    else:
        pooled = {"first": hidden[:, 0], "last": hidden[:, -1]}[how]
    projection = owner.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def encode_image(model: nn.Module, pixel_values: Tensor, **kwargs: Any) -> Tensor:
    """Image features (batch, dim), not normalised, of an HF or open_clip model.

    Args:
        model: the model.
        pixel_values: as its image processor gives them.
        kwargs: what else the image tower needs, such as SigLIP 2's `pixel_attention_mask` and `spatial_shapes`.

    Raises:
        ValueError: SigLIP 2's patches without what belongs to them.
    """
    if hasattr(model, "get_image_features"):
        has_patches = model.config.model_type == "siglip2"  # type: ignore[union-attr]
        if has_patches and not kwargs.keys() >= {"pixel_attention_mask", "spatial_shapes"}:
            raise ValueError(
                "SigLIP 2 needs `pixel_attention_mask` and `spatial_shapes` beside `pixel_values`; its image processor "
                "gives them."
            )
        return _pooled(model.get_image_features(pixel_values=pixel_values, **kwargs))  # type: ignore[operator]
    return model.encode_image(pixel_values, **kwargs)  # type: ignore[operator]


def logit_scale_and_bias(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """exp(logit_scale), and `logit_bias` or None: logits = scale * cosine + bias."""
    bias = getattr(model, "logit_bias", None)
    scale: Tensor = model.logit_scale  # type: ignore[assignment]
    return scale.exp().float(), None if bias is None else bias.float()  # type: ignore[union-attr,operator]


def _pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output
