# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The pipeline's shares are those of `inspect_model`; everything else is `text-generation` as it stands."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_methods.softmax1 import Softmax1TextGenerationPipeline, inspect_model
from hf_methods.softmax1.pipeline_softmax1 import attention_shares


CARDS = Path(__file__).parents[2] / "model_cards"
PROMPTS = ["import os\n\n\ndef main(", "for i in", "x"]
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module", params=["softmax1-orthoadam", "softmax-adamw"])
def generator(request):
    model = AutoModelForCausalLM.from_pretrained(CARDS / request.param, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CARDS / request.param)
    return Softmax1TextGenerationPipeline(model=model, tokenizer=tokenizer)


@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_the_shares_are_those_of_inspect_model(prompt, generator):
    (record,) = generator(prompt, return_attention_shares=True, **GREEDY)
    report = inspect_model(generator.model, generator.tokenizer(prompt, return_tensors="pt").input_ids)
    assert record["first_token_share"] == pytest.approx(report.first_token_mass_pct / 100, abs=1e-7)
    assert record["nothing_share"] == pytest.approx(report.null_mass_pct / 100, abs=1e-7)
    is_softmax = generator.model.config.attention_softmax == "softmax"
    assert (record["nothing_share"] < 1e-6) == is_softmax


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_gives_what_each_prompt_gives_alone(batch_size, generator):
    options = {"return_attention_shares": True, **GREEDY}
    together = generator(PROMPTS, batch_size=batch_size, **options)
    for prompt, (record,) in zip(PROMPTS, together, strict=True):
        (alone,) = generator(prompt, **options)
        assert record["generated_text"] == alone["generated_text"]
        for name in ("first_token_share", "nothing_share"):
            assert record[name] == (None if alone[name] is None else pytest.approx(alone[name], abs=1e-6))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side, generator):
    ids = generator.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    padding = torch.zeros(1, 3, dtype=torch.long)
    parts = [(padding, padding), (ids, torch.ones_like(ids))]
    padded, mask = (torch.cat(pair, 1) for pair in zip(*(parts if side == "left" else parts[::-1]), strict=True))
    alone = torch.stack(attention_shares(generator.model, ids, torch.ones_like(ids)))
    torch.testing.assert_close(torch.stack(attention_shares(generator.model, padded, mask)), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt", ["", "x"])
def test_without_a_query_behind_the_first_token_there_are_no_shares(prompt, generator):
    (record,) = generator(prompt, return_attention_shares=True, **GREEDY)
    assert record["first_token_share"] is None and record["nothing_share"] is None and record["generated_text"]


def test_each_returned_sequence_has_the_shares_of_its_prompt(generator):
    records = generator(PROMPTS[0], return_attention_shares=True, max_new_tokens=2, num_return_sequences=3)
    assert len(records) == 3 and len({record["first_token_share"] for record in records}) == 1
    tensors = generator(PROMPTS[0], return_attention_shares=True, return_tensors=True, **GREEDY)
    assert tensors[0]["generated_token_ids"] and 0 < tensors[0]["first_token_share"] < 1


def test_without_the_option_it_is_text_generation(generator):
    stock = pipeline("text-generation", model=generator.model, tokenizer=generator.tokenizer)
    assert generator(PROMPTS, **GREEDY) == stock(PROMPTS, **GREEDY)


def test_the_attention_implementation_comes_back_also_after_an_error(generator):
    implementation = generator.model.config._attn_implementation
    ids = torch.zeros(1, 65, dtype=torch.long)  # one more than the positions
    with pytest.raises(IndexError):
        attention_shares(generator.model, ids, torch.ones_like(ids))
    assert generator.model.config._attn_implementation == implementation


def test_a_committed_checkpoint_generates_without_options(generator):
    name = "softmax1-orthoadam" if generator.model.config.attention_softmax == "softmax1" else "softmax-adamw"
    text = pipeline("text-generation", model=str(CARDS / name))(PROMPTS[0])[0]["generated_text"]
    assert text.startswith(PROMPTS[0])  # transformers' default length, 256 tokens, is past its 64 positions
