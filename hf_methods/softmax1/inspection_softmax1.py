# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Where a causal language model's attention goes, how far its activations stick out, and its perplexity.

The quantities of arXiv 2410.17174: attention on the first token, kurtosis and largest magnitude of the residual stream
behind each block. They are computed for any causal model of transformers, with softmax or softmax-1.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_methods.checkpoints import write_json
from hf_methods.softmax1.modeling_softmax1 import EAGER, FAST


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class ModelReport:
    """What `inspect_model` measured. Percentages are 0-100; kurtosis is raw (3 for a Gaussian).

    Per-layer lists have one entry a block; `*_by_head` lists are (layers, heads).
    """

    num_blocks: int
    seq_len: int
    perplexity: float
    first_token_argmax_pct: float
    heads_first_token_max_pct: float
    first_token_mass_pct: float
    null_mass_pct: float
    kurtosis_first: float
    kurtosis_rest: float
    maxabs_first: float
    maxabs_rest: float
    maxabs_global: float
    n_degenerate: int
    kurtosis_first_by_layer: list[float]
    kurtosis_rest_by_layer: list[float]
    maxabs_first_by_layer: list[float]
    maxabs_rest_by_layer: list[float]
    first_token_argmax_pct_by_head: list[list[float]]
    first_token_mass_pct_by_head: list[list[float]]
    null_mass_pct_by_head: list[list[float]]
    attention_snapshot: list[list[list[float]]] = field(repr=False)  # (layers, queries, keys), mean over heads
    quantization: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python."""
        return asdict(self)

    def save_json(self, path: str | Path) -> None:
        """Write all fields as JSON; NaN becomes null."""
        write_json(path, self.to_dict())

    def plot(self, folder: str | Path) -> list[Path]:
        """Write the figures as PNG into `folder` and return their paths."""
        from hf_methods.plotting import plot_report

        return plot_report(self, folder)


def token_kurtosis(x: Tensor) -> Tensor:
    """Raw kurtosis over the features of each token: E[(x - mu)^4] / E[(x - mu)^2]^2, biased moments.

    Args:
        x: (..., features).

    Returns:
        float64 (...); NaN where all features are equal.
    """
    centred = x.double() - x.double().mean(-1, keepdim=True)
    variance = centred.square().mean(-1)
    return centred.pow(4).mean(-1) / variance.square().masked_fill(variance == 0, math.nan)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a causal language model.

    Raises:
        TypeError: no model of transformers, an encoder-decoder, or no list of `num_hidden_layers` modules.
    """
    if getattr(model, "config", None) is None:
        raise TypeError(f"a causal language model of transformers is needed, got {type(model).__name__}.")
    if model.config.is_encoder_decoder:
        raise TypeError(f"{type(model).__name__} is an encoder-decoder; a causal language model is needed.")
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise TypeError(f"{type(model).__name__} has no list of {num_layers} decoder layers.")


@torch.no_grad()
def perplexity(model: PreTrainedModel, blocks: Tensor, batch_size: int = 8) -> float:
    """exp(sum of negative log likelihoods / number of predicted tokens).

    Args:
        model: a causal language model, used as it is (call `.eval()` first).
        blocks: token ids (blocks, seq_len), no padding.
        batch_size: blocks in a forward pass.

    Raises:
        ValueError: no blocks, or token ids that the model does not have.
    """
    from hf_methods.metrics import token_perplexity  # `evaluate` is slow to import

    blocks = check_blocks(model, blocks)
    nll = torch.zeros((), dtype=torch.float64, device=model.device)
    for batch in blocks.split(batch_size):
        batch = batch.to(model.device)
        nll += _nll(model(batch, attention_mask=torch.ones_like(batch), use_cache=False).logits, batch).sum()
    return token_perplexity([nll.item()], [blocks.shape[0] * (blocks.shape[1] - 1)])


def check_blocks(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """Token ids (blocks, seq_len) as int64.

    Raises:
        ValueError: another shape or dtype, no blocks, or ids that the model's embedding does not have.
    """
    if blocks.ndim != 2 or blocks.shape[1] < 2 or blocks.is_floating_point() or blocks.dtype == torch.bool:
        raise ValueError(
            f"token ids must be integers (blocks, seq_len >= 2), got {tuple(blocks.shape)} of {blocks.dtype}."
        )
    if not len(blocks):
        raise ValueError("there are no blocks of token ids.")
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    low, high = int(blocks.min()), int(blocks.max())
    if low < 0 or size is not None and high >= size:
        raise ValueError(
            f"token ids must be from 0 to {'' if size is None else size - 1}, got {low} to {high}: is the tokenizer that "
            "of the model?"
        )
    return blocks.long()


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log likelihood of tokens 1.. (batch, seq_len - 1), float64."""
    losses = nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return losses.double()


def inspect_model(
    model: PreTrainedModel | str,
    dataset: "Dataset | Iterable[str] | Tensor",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seq_len: int = 256,
    max_blocks: int = 64,
    batch_size: int = 8,
    add_bos: bool = False,
    attention_mask: Tensor | None = None,
    device: str | torch.device | None = None,
    plots_dir: str | Path | None = None,
) -> ModelReport:
    """Measure attention, activations and perplexity of a causal language model.

    Args:
        model: a model, left as it was, or a folder or Hub id.
        dataset: a data set with a column `text`, texts, or token ids (blocks, seq_len).
        tokenizer: needed for texts; loaded with the model if that is an id.
        seq_len: tokens in a block, when texts are given.
        max_blocks: number of blocks used, from the front.
        batch_size: blocks in a forward pass.
        add_bos: begin each block with the tokenizer's BOS token.
        attention_mask: (blocks, seq_len) with 0 for padding and 1 elsewhere, for token ids. "First token" is then the first
            unmasked one; masked queries and keys don't count.
        device: move the model there for the measurement.
        plots_dir: also write the figures there.

    Raises:
        TypeError: no model of transformers, an encoder-decoder, or a model that returns no attention weights.
        ValueError: a text too short, no blocks, blocks longer than the model's positions, token ids that it does not have,
            or a mask with other numbers than 0 and 1 or of nothing but 0 for a block.
    """
    if max_blocks < 1 or batch_size < 1:
        raise ValueError(f"`max_blocks` and `batch_size` must be at least 1, got {max_blocks} and {batch_size}.")
    if isinstance(model, str):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        model = AutoModelForCausalLM.from_pretrained(model)
    layers = decoder_layers(model)
    blocks = check_blocks(model, _as_blocks(dataset, tokenizer, seq_len, add_bos)[:max_blocks])
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and blocks.shape[1] > limit:
        raise ValueError(f"seq_len={blocks.shape[1]} is more than the model's {limit} positions.")
    mask = torch.ones_like(blocks) if attention_mask is None else attention_mask[:max_blocks]
    if mask.shape != blocks.shape:
        raise ValueError(f"attention_mask {tuple(mask.shape)} and token ids {tuple(blocks.shape)} differ in shape.")
    if not ((mask == 0) | (mask == 1)).all() or not mask.any(1).all():
        raise ValueError("attention_mask must hold 0 and 1, with at least one 1 for each block.")
    with _eager_eval(model, device), torch.no_grad():
        sums = _Sums(len(layers))
        batches = zip(blocks.split(batch_size), mask.split(batch_size), strict=True)
        for ids, valid in tqdm(batches, total=-(-len(blocks) // batch_size), desc="inspect", leave=False):
            ids, valid = ids.to(model.device), valid.to(model.device)
            with _block_outputs(layers) as hidden_states:
                output = model(ids, attention_mask=valid, output_attentions=True, use_cache=False)
            attentions = output.get("attentions")
            if not attentions or any(weights is None for weights in attentions):
                raise TypeError(f"{type(model).__name__} returns no attention weights for its layers.")
            sums.add(ids, valid.bool(), output.logits, attentions, hidden_states)
    report = sums.report(len(blocks), blocks.shape[1])
    if plots_dir is not None:
        report.plot(plots_dir)
    return report


def _as_blocks(dataset, tokenizer, seq_len, add_bos) -> Tensor:
    if isinstance(dataset, Tensor):
        return dataset
    if isinstance(dataset, (str, Mapping)):  # which would be read letter by letter, or key by key
        raise ValueError(f"`dataset` must be texts, a data set or token ids, got a {type(dataset).__name__}.")  # noqa: TRY004
    if tokenizer is None:
        raise ValueError("texts need a `tokenizer`; or pass token ids (blocks, seq_len).")
    from datasets import Dataset  # slow to import

    from hf_methods.softmax1.data_softmax1 import token_blocks

    texts = dataset["text"] if isinstance(dataset, Dataset) else dataset
    return token_blocks(texts, tokenizer, seq_len, add_bos)


@contextmanager
def _eager_eval(model: PreTrainedModel, device):
    """Evaluation mode and eager attention on `device`; everything back as it was afterwards."""
    training = {module: module.training for module in model.modules()}
    implementation, own_device = model.config._attn_implementation, model.device
    try:
        model.set_attn_implementation(EAGER if implementation in (FAST, EAGER) else "eager")
        model.eval()
        if device is not None:
            model.to(device)  # type: ignore[arg-type]
        yield
    finally:
        model.set_attn_implementation(implementation)
        model.to(own_device)  # type: ignore[arg-type]
        for module, flag in training.items():
            module.training = flag


@contextmanager
def _block_outputs(layers: nn.ModuleList):
    """Collects the residual stream behind each block: `hidden_states[-1]` of the model is behind the final norm."""
    outputs: list[Tensor] = []
    hook = lambda module, args, output: outputs.append(output[0] if isinstance(output, tuple) else output)  # noqa: E731
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class _Sums:
    """float64 sums over blocks, on the model's device."""

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.layers: list[dict[str, Any]] = [{} for _ in range(num_layers)]
        self.nll, self.num_predicted = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0)
        self.snapshot: list[Tensor] = []

    def add(self, ids: Tensor, valid: Tensor, logits: Tensor, attentions, hidden_states) -> None:
        first = valid.long().argmax(1)  # (batch,) index of the first unmasked token
        is_first = torch.arange(ids.shape[1], device=ids.device) == first[:, None]
        rest = valid & ~is_first
        predicted = valid[:, :-1] & valid[:, 1:]
        self.nll = self.nll.to(ids.device) + _nll(logits, ids)[predicted].sum()
        self.num_predicted = self.num_predicted.to(ids.device) + predicted.sum()
        for sums, weights, hidden in zip(self.layers, attentions, hidden_states, strict=True):
            for name, value in (*_attention_sums(weights, first, rest), *_activation_sums(hidden, is_first, rest)):
                sums[name] = torch.maximum(sums[name], value) if name == "max" and name in sums else (
                    sums.get(name, 0) + value if name != "max" else value
                )  # fmt: skip
        if not self.snapshot:
            self.snapshot = [weights[0].float().mean(0) for weights in attentions]

    def report(self, num_blocks: int, seq_len: int) -> ModelReport:
        from hf_methods.metrics import token_perplexity  # `evaluate` is slow to import

        total = {name: torch.stack([sums[name] for sums in self.layers]) for name in self.layers[0]}
        mean = lambda name, count: (total[name].sum() / total[count].sum()).item()  # noqa: E731
        by_layer = lambda name, count: (total[name] / total[count]).tolist()  # noqa: E731
        by_head = lambda name: (100 * total[name] / total["queries"][:, None]).tolist()  # noqa: E731
        heads_max = total["key_mass"].argmax(-1) == 0
        num_heads = total["argmax"].shape[1]
        pct = lambda name: 100 * mean(name, "queries") / num_heads  # noqa: E731
        return ModelReport(
            num_blocks=num_blocks,
            seq_len=seq_len,
            perplexity=token_perplexity([self.nll.item()], [int(self.num_predicted)]),
            first_token_argmax_pct=pct("argmax"),
            heads_first_token_max_pct=100 * heads_max.double().mean().item(),
            first_token_mass_pct=pct("mass"),
            null_mass_pct=max(0.0, pct("null")),
            kurtosis_first=mean("kurtosis_first", "kurtosis_first_count"),
            kurtosis_rest=mean("kurtosis_rest", "kurtosis_rest_count"),
            maxabs_first=mean("maxabs_first", "first_count"),
            maxabs_rest=mean("maxabs_rest", "rest_count"),
            maxabs_global=total["max"].max().item(),
            n_degenerate=int(total["degenerate"].sum()),
            kurtosis_first_by_layer=by_layer("kurtosis_first", "kurtosis_first_count"),
            kurtosis_rest_by_layer=by_layer("kurtosis_rest", "kurtosis_rest_count"),
            maxabs_first_by_layer=by_layer("maxabs_first", "first_count"),
            maxabs_rest_by_layer=by_layer("maxabs_rest", "rest_count"),
            first_token_argmax_pct_by_head=by_head("argmax"),
            first_token_mass_pct_by_head=by_head("mass"),
            null_mass_pct_by_head=by_head("null"),
            attention_snapshot=[layer.tolist() for layer in self.snapshot],
        )


def _attention_sums(weights: Tensor, first: Tensor, rest: Tensor):
    """Sums over blocks and queries behind the first token; weights (batch, heads, queries, keys)."""
    batch, heads, length, _ = weights.shape
    queries = rest[:, None, :].expand(batch, heads, length)
    on_first = weights.gather(-1, first.view(-1, 1, 1, 1).expand(batch, heads, length, 1)).squeeze(-1)
    # The first token has the lowest index, so a tie goes to it.
    is_argmax = (on_first >= weights.amax(-1)) & queries
    key_mass = (weights.double() * queries.unsqueeze(-1)).sum(2)  # (batch, heads, keys)
    from_first = (torch.arange(length, device=first.device) + first[:, None]) % length
    key_mass = key_mass.gather(-1, from_first[:, None].expand(batch, heads, length))
    yield "queries", rest.sum().double()
    yield "argmax", is_argmax.sum((0, 2)).double()
    yield "mass", (on_first.double() * queries).sum((0, 2))
    yield "null", ((1 - weights.double().sum(-1)) * queries).sum((0, 2))
    yield "key_mass", key_mass.sum(0)


def _activation_sums(hidden: Tensor, is_first: Tensor, rest: Tensor):
    """Sums over tokens of the residual stream (batch, tokens, features)."""
    kurtosis, maxabs = token_kurtosis(hidden), hidden.abs().amax(-1).double()
    degenerate = kurtosis.isnan()
    yield "degenerate", (degenerate & (is_first | rest)).sum()
    yield "max", maxabs[is_first | rest].max()
    for name, chosen in (("first", is_first), ("rest", rest)):
        usable = chosen & ~degenerate
        yield f"kurtosis_{name}", kurtosis[usable].sum()
        yield f"kurtosis_{name}_count", usable.sum()
        yield f"maxabs_{name}", maxabs[chosen].sum()
        yield f"{name}_count", chosen.sum()
