# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Tokenizer and blocks."""

import pytest
import torch

from hf_methods.softmax1.data_softmax1 import blocks_dataset, token_blocks, train_tokenizer


TEXTS = ["the cat sat on the mat", "a dog ran äöü"]


def test_tokenizer_gives_back_any_text():
    tokenizer = train_tokenizer(TEXTS, 270)
    for text in [*TEXTS, "不 \t\n\x00 unseen"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 270 and tokenizer.bos_token_id == tokenizer.eos_token_id


def test_blocks_hold_the_tokens_in_order_with_bos_in_front():
    tokenizer = train_tokenizer(TEXTS, 270)
    stream = [t for text in TEXTS for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = token_blocks(TEXTS, tokenizer, 8)
    assert blocks.flatten().tolist() == stream[: blocks.numel()] and len(stream) - blocks.numel() < 8
    with_bos = token_blocks(TEXTS, tokenizer, 8, add_bos=True)
    assert (with_bos[:, 0] == tokenizer.bos_token_id).all()
    assert with_bos[:, 1:].flatten().tolist() == stream[: len(with_bos) * 7]
    row = blocks_dataset(blocks)[0]
    assert torch.equal(row["input_ids"], blocks[0]) and torch.equal(row["labels"], blocks[0])


@pytest.mark.parametrize(("seq_len", "message"), [(1, "seq_len"), (10_000, "10000")])
def test_lengths_that_do_not_fit_raise(seq_len, message):
    with pytest.raises(ValueError, match=message):
        token_blocks(TEXTS, train_tokenizer(TEXTS, 270), seq_len)


def test_what_is_no_text_is_named_by_its_row_and_not_left_out():
    tokenizer = train_tokenizer(TEXTS, 270)
    with pytest.raises(ValueError, match=r"2 of 4 texts are none, the first in row 1 \(None\)"):
        token_blocks(["a", None, 3.0, "b"], tokenizer, 8)
    with pytest.raises(ValueError, match="`texts` must be a list of texts, got one text"):
        token_blocks("the cat sat on the mat", tokenizer, 8)


def test_a_vocabulary_smaller_than_the_bytes_raises():
    with pytest.raises(ValueError, match="257"):
        train_tokenizer(TEXTS, 200)
