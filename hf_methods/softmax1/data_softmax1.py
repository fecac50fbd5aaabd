# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""From texts to a tokenizer and to blocks of tokens."""

from collections.abc import Iterable

import torch
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


BOS_TOKEN = "<|bos|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with one special token, which begins and ends texts.

    Args:
        texts: training texts.
        vocab_size: number of tokens, at least 257 (the bytes and the special token).

    Raises:
        ValueError: `vocab_size` below 257.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size must be at least 257 (bytes and {BOS_TOKEN}), got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS_TOKEN, eos_token=BOS_TOKEN, pad_token=BOS_TOKEN
    )


def token_blocks(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, seq_len: int, add_bos: bool = False
) -> Tensor:
    """All texts, tokenised and concatenated, cut into blocks without overlap.

    Args:
        texts: texts; an end-of-text token is put behind each where the tokenizer has one.
        tokenizer: any tokenizer; no special tokens are added by itself.
        seq_len: tokens in a block, at least 2.
        add_bos: begin every block with the tokenizer's beginning-of-text token.

    Returns:
        int64 (blocks, seq_len). Tokens behind the last full block are left out.

    Raises:
        ValueError: `seq_len` below 2, no BOS token, a row that is no text, or a text too short for one block.
    """
    _check_block_options(tokenizer, seq_len, add_bos)
    blocks, num_tokens = _cut_blocks(texts, tokenizer, seq_len, add_bos)
    if len(blocks) == 0:
        raise ValueError(f"the text has {num_tokens} tokens, too few for one block of seq_len={seq_len}.")
    return blocks


def _check_block_options(tokenizer: PreTrainedTokenizerBase, seq_len: int, add_bos: bool) -> None:
    if seq_len < 2:
        raise ValueError(f"seq_len must be at least 2 to predict a token, got {seq_len}.")
    if add_bos and tokenizer.bos_token_id is None:
        raise ValueError("add_bos=True needs a tokenizer with a bos_token.")


def _cut_blocks(texts, tokenizer, seq_len: int, add_bos: bool) -> tuple[Tensor, int]:
    """The blocks (perhaps none) and the number of tokens in all."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    tokens: list[int] = []
    if isinstance(texts, str):  # it would be read letter by letter
        raise ValueError("`texts` must be a list of texts, got one text.")  # noqa: TRY004
    texts = list(texts)
    if bad := [row for row, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(
            f"{len(bad)} of {len(texts)} texts are none, the first in row {bad[0]} ({texts[bad[0]]!r}). Leave them out with "
            "`dataset.filter`."
        )
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        tokens += ids + end
    own = seq_len - 1 if add_bos else seq_len
    blocks = torch.tensor(tokens[: len(tokens) // own * own], dtype=torch.long).view(-1, own)
    if add_bos:
        blocks = torch.cat([torch.full((len(blocks), 1), tokenizer.bos_token_id), blocks], 1)
    return blocks, len(tokens)


def blocks_dataset(blocks: Tensor) -> Dataset:
    """Blocks (n, seq_len) as a data set with `input_ids` and `labels` for `Trainer`."""
    dataset = Dataset.from_dict({"input_ids": blocks.numpy(), "labels": blocks.numpy()})
    return dataset.with_format("torch")


def stream_blocks(
    dataset: IterableDataset, tokenizer: PreTrainedTokenizerBase, seq_len: int, add_bos: bool = False
) -> IterableDataset:
    """A stream of texts as a stream of blocks with `input_ids` and `labels` for `Trainer`.

    Args:
        dataset: has a column `text` and no other; 1000 texts at a time are concatenated and cut, and the tokens behind
            their last full block are left out.
        tokenizer, seq_len, add_bos: as for `token_blocks`.

    Raises:
        ValueError: `seq_len` below 2, or no BOS token.
    """
    _check_block_options(tokenizer, seq_len, add_bos)

    def to_blocks(batch):
        blocks = _cut_blocks(batch["text"], tokenizer, seq_len, add_bos)[0].tolist()
        return {"input_ids": blocks, "labels": blocks}

    return dataset.map(to_blocks, batched=True, remove_columns=["text"]).with_format("torch")
