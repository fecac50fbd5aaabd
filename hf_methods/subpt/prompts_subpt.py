# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Class names -> token ids: a prompt is an ordinary sequence with the context's own ids in it.

`[SOS] v1 .. vM name . [EOS]`, as CoOp's `PromptLearner` (KaiyangZhou/CoOp, `trainers/coop.py`), whose three positions of
the class name, and any other template, are an order of tokens here.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase


if TYPE_CHECKING:
    from hf_methods.subpt.peft_config_subpt import SubPTConfig

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
CTX_TOKEN = re.compile(r"<\|ctx_(\d+)\|>")


def ctx_token(index: int) -> str:
    """The text of context token `index` in templates and tokenizers."""
    return f"<|ctx_{index}|>"


def check_class_names(names: Sequence[str], argument: str = "class_names") -> list[str]:
    """`names` with spaces for underscores (CoOp), stripped.

    Raises:
        ValueError: no names, something that is no text, an empty name, or two that are alike.
    """
    if isinstance(names, str):
        raise ValueError(f"`{argument}` must be a list of names, got the text {names!r}.")  # noqa: TRY004
    names = list(names)
    if not names:
        raise ValueError(f"`{argument}` is empty; give at least one name.")
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"`{argument}` must be text, got {wrong[0]!r}.")
    cleaned = [" ".join(name.replace("_", " ").split()) for name in names]
    if not all(cleaned):
        raise ValueError(f"`{argument}` has an empty name at {cleaned.index('')}: {names[cleaned.index('')]!r}.")
    if repeated := sorted({name for name in cleaned if cleaned.count(name) > 1}):
        raise ValueError(f"`{argument}` has names twice (underscores are spaces): {repeated}.")
    return cleaned


def prompt_template(config: "SubPTConfig") -> str:
    """The template in the vocabulary of `extend_tokenizer`, for `hypothesis_template` of the stock pipeline.

    Returns:
        Such as "<|ctx_0|> <|ctx_1|> {}."; the class name is `{}`.

    Raises:
        ValueError: an unknown `class_token_position`, or `n_ctx` not known yet (words that are not tokenised).
    """
    if config.template is not None:
        return config.template
    if config.class_token_position not in CLASS_TOKEN_POSITIONS:
        raise ValueError(
            f"`class_token_position` must be one of {', '.join(CLASS_TOKEN_POSITIONS)}, got "
            f"{config.class_token_position!r}; for anything else give `template`."
        )
    if config.n_ctx is None:
        raise ValueError("`n_ctx` follows from the tokens of `ctx_init`; make the adapter first.")
    tokens = [ctx_token(index) for index in range(config.n_ctx)]
    front = {"end": len(tokens), "middle": len(tokens) // 2, "front": 0}[config.class_token_position]
    before, after = " ".join(tokens[:front]), " ".join(tokens[front:])
    return " ".join(part for part in (before, "{}", after) if part) + "."


def context_positions(template: str, n_ctx: int) -> list[str | int]:
    """`template` as a list of texts and numbers of context tokens.

    Raises:
        ValueError: not one `{}`, a context token out of range, or one that is missing.
    """
    if template.count("{}") != 1:
        raise ValueError(f"`template` must have one {{}} for the class name, got {template!r}.")
    pieces: list[str | int] = []
    for number, piece in enumerate(CTX_TOKEN.split(template)):
        if number % 2:
            pieces.append(int(piece))
        elif piece.strip():
            # The space between a context token and a word stays: some tokenizers (Gemma's, of SigLIP 2) read it.
            pieces.append((" " if number and piece[0].isspace() else "") + piece.strip())
    used = {piece for piece in pieces if isinstance(piece, int)}
    if used != set(range(n_ctx)):
        wrong, missing = sorted(used - set(range(n_ctx))), sorted(set(range(n_ctx)) - used)
        raise ValueError(
            f"`template` must use the context tokens 0..{n_ctx - 1} of `n_ctx` = {n_ctx}: "
            f"unknown {wrong}, missing {missing}, in {template!r}."
        )
    return pieces


@dataclass(frozen=True)
class PromptTokenizer:
    """What prompts need of a tokenizer, the same for transformers' and open_clip's.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`, or an open_clip `SimpleTokenizer` or `HFTokenizer`.
        prefix, suffix: special tokens around a text.
        pad_token_id: fills up rows.
        eos_token_id: the end-of-text token.
        padding_side: "right" or "left".
        clean: what is done to a text first (open_clip's SigLIP drops punctuation); None: nothing.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_token_id: int
    eos_token_id: int | None
    padding_side: str = "right"
    clean: Callable[[str], str] | None = None

    @classmethod
    def wrap(cls, tokenizer: Any) -> "PromptTokenizer":
        """Adapter of a transformers or open_clip tokenizer.

        Raises:
            ValueError: something else, or a tokenizer without a padding token.
        """
        if isinstance(tokenizer, cls):
            return tokenizer
        if hasattr(tokenizer, "sot_token_id") and hasattr(tokenizer, "encode"):  # open_clip's SimpleTokenizer
            eot = tokenizer.eot_token_id
            return cls(tokenizer, (tokenizer.sot_token_id,), (eot,), 0, eot)
        clean = getattr(tokenizer, "clean_fn", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            inner = getattr(tokenizer, "tokenizer", None)  # a processor, or open_clip's HFTokenizer
            if not isinstance(inner, PreTrainedTokenizerBase):
                raise ValueError(  # noqa: TRY004
                    f"the tokenizer must be one of transformers or open_clip, got {type(tokenizer).__name__}."
                )
            tokenizer = inner
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set `tokenizer.pad_token`.")
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        prefix, suffix = tuple(whole[:start]), tuple(whole[start + len(bare) :])
        pad, eos, side = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side
        return cls(tokenizer, prefix, suffix, pad, eos, side, clean)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, without special ones."""
        if self.clean is not None:
            text = " " * text.startswith(" ") + self.clean(text)
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer.encode(text))


def load_tokenizer(config: "SubPTConfig", revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that the configuration names.

    Raises:
        ValueError: it names none, or none can be loaded from there.
    """
    name = config.tokenizer_name_or_path or config.base_model_name_or_path
    if not name:
        raise ValueError("no tokenizer is known; give `tokenizer`, or `tokenizer_name_or_path` in the configuration.")
    try:
        return AutoTokenizer.from_pretrained(name, revision=None if config.tokenizer_name_or_path else revision)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"no tokenizer can be loaded from {name!r} ({error}); give `tokenizer`.") from error


def context_init_ids(config: "SubPTConfig", tokenizer: Any) -> list[int]:
    """The tokens that the context starts from, one for each of its `n_ctx` tokens.

    Raises:
        ValueError: more tokens than `n_ctx`, or an `n_ctx` that is no multiple of their number.
    """
    assert config.ctx_init is not None
    ids = PromptTokenizer.wrap(tokenizer).encode(config.ctx_init)
    n_ctx = config.n_ctx if config.n_ctx is not None else len(ids)
    if not ids or n_ctx % len(ids):
        raise ValueError(
            f"`ctx_init` {config.ctx_init!r} is {len(ids)} tokens (not words), `n_ctx` {n_ctx}: it must be that number "
            "or a multiple; leave `n_ctx` out."
        )
    return ids * (n_ctx // len(ids))


def build_prompt_ids(
    config: "SubPTConfig",
    names: Sequence[str],
    tokenizer: Any,
    *,
    max_length: int,
    padding: str | None = None,
    truncation: bool = False,
) -> Tensor:
    """Token ids of the prompts of `names`.

    Rows are as long as the longest one: with a causal text tower that pools at the end of text, what comes after it is
    never read. A bidirectional tower needs `padding`, on the side where it was trained with it.

    Args:
        config: of an adapter that was made, so that `first_ctx_token_id` is known.
        names: class names; with `class_specific` those of the configuration, in their order.
        tokenizer: of transformers or open_clip.
        max_length: positions of the text tower.
        padding: fill rows up to `max_length`: "right", "left", or "tokenizer" for the tokenizer's side.
        truncation: cut names that are too long instead of an error; the end of the prompt stays.

    Returns:
        (len(names), length), int64.

    Raises:
        ValueError: bad names, names of other classes with `class_specific`, a prompt that is too long, or words whose
            tokens are the context's (ids that overlap, or a control character where slots are reserved).
    """
    assert config.first_ctx_token_id is not None and config.n_ctx is not None
    context_ids = range(config.first_ctx_token_id, config.first_ctx_token_id + config.num_ctx_tokens)
    names = check_class_names(names)
    if config.class_specific and names != config.class_names:
        raise ValueError(
            "a class-specific context belongs to the `class_names` it was made for, there is none for "
            f"{sorted(set(names) - set(config.class_names or ())) or 'another order'}."
        )
    wrapped = PromptTokenizer.wrap(tokenizer)
    pieces = context_positions(prompt_template(config), config.n_ctx)
    rows = []
    for number, name in enumerate(names):
        first = config.first_ctx_token_id + (number * config.n_ctx if config.class_specific else 0)

        def tokens(name: str, first: int = first) -> list[int]:
            body: list[int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    body.append(first + piece)
                    continue
                words = wrapped.encode(piece.replace("{}", name))
                if taken := sorted(set(words) & set(context_ids)):
                    raise ValueError(
                        f"the tokens {taken} of {piece.replace('{}', name)!r} are the context's own ids "
                        f"{context_ids.start}..{context_ids.stop - 1}; give another `first_ctx_token_id`, or the name "
                        "without control characters."
                    )
                body += words
            return [*wrapped.prefix, *body, *wrapped.suffix]

        row = tokens(name)
        if len(row) > max_length and truncation:
            words = wrapped.encode(name)
            while len(row) > max_length and words:
                words.pop()
                row = tokens(wrapped.tokenizer.decode(words).strip()) if words else row
        if len(row) > max_length:
            raise ValueError(
                f"the prompt of class {number} ({name!r}) is {len(row)} tokens, {len(row) - max_length} more than the "
                f"{max_length} positions of the text tower; shorten the name, lower `n_ctx` or give `truncation=True`."
            )
        rows.append(row)
    return pad_rows(rows, wrapped, max_length, padding)


def build_text_ids(texts: Sequence[str], tokenizer: Any, *, max_length: int, padding: str | None = None) -> Tensor:
    """Token ids of ordinary texts, such as hand-written prompts.

    Args:
        texts: the texts; those that are too long are cut, their end token stays.
        tokenizer, max_length, padding: as for `build_prompt_ids`.

    Returns:
        (len(texts), length), int64.
    """
    wrapped = PromptTokenizer.wrap(tokenizer)
    room = max_length - len(wrapped.prefix) - len(wrapped.suffix)
    rows = [[*wrapped.prefix, *wrapped.encode(text)[:room], *wrapped.suffix] for text in texts]
    return pad_rows(rows, wrapped, max_length, padding)


def pad_rows(
    rows: Sequence[Sequence[int]], tokenizer: PromptTokenizer, max_length: int, padding: str | None
) -> Tensor:
    """Rows of one length: that of the longest, filled up at the right, or with `padding` that of `max_length`."""
    length = max_length if padding else max(map(len, rows))
    side = tokenizer.padding_side if padding == "tokenizer" else padding or "right"
    filled = []
    for row in rows:
        pads = [tokenizer.pad_token_id] * (length - len(row))
        filled.append([*pads, *row] if side == "left" else [*row, *pads])
    return torch.tensor(filled)


def check_ends(input_ids: Tensor, eos_token_id: int | None) -> None:
    """Each row must have the token that the text tower pools at: it would pool the first one instead, in silence.

    Looked at on the CPU, where it waits for nothing.

    Args:
        input_ids: (n, length).
        eos_token_id: where the tower pools; None: elsewhere.

    Raises:
        ValueError: rows without it.
    """
    if eos_token_id is None or input_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    has_end = (input_ids == eos_token_id).any(-1)
    if not has_end.all():
        rows = (~has_end).nonzero().flatten().tolist()
        raise ValueError(
            f"the text tower pools at the end-of-text id {eos_token_id}, which the rows {rows[:8]} don't have: the "
            "tokenizer doesn't give it. Use the base model's tokenizer, or set `eos_token_id` in the configuration."
        )


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, config: "SubPTConfig") -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` that knows the context tokens as text, for a merged model.

    Args:
        tokenizer: of the base model.
        config: of an adapter that was made.

    Returns:
        A tokenizer that gives `prompt_template(config).format(name)` the ids of `build_prompt_ids`.

    Raises:
        ValueError: reserved slots, or ids that are not right behind the tokenizer's vocabulary.
    """
    if config.ctx_slots == "reserved":
        raise ValueError("reserved slots have no text of their own; give the model the ids of `build_prompt_ids`.")
    if len(tokenizer) != config.first_ctx_token_id:
        raise ValueError(
            f"the context's ids start at {config.first_ctx_token_id}, the tokenizer has {len(tokenizer)} tokens; use "
            "the base model's own tokenizer."
        )
    tokenizer = copy.deepcopy(tokenizer)
    names = [ctx_token(index) for index in range(config.num_ctx_tokens)]
    tokenizer.add_tokens([AddedToken(name, lstrip=True, rstrip=False, normalized=False) for name in names])
    assert tokenizer.convert_tokens_to_ids(names[0]) == config.first_ctx_token_id
    return tokenizer
