# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The analyser against the definitions, written out token by token in float64."""

import math
from unittest.mock import Mock

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_methods.softmax1 import (
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    inspect_model,
    perplexity,
    token_kurtosis,
)
from hf_methods.softmax1.data_softmax1 import train_tokenizer


TOKENS = dict(bos_token_id=0, eos_token_id=None, pad_token_id=0)
GPT2 = dict(vocab_size=50, n_positions=32, n_embd=16, n_layer=3, n_head=2, initializer_range=0.5, **TOKENS)
IDS = torch.randint(1, 50, (5, 10), generator=torch.Generator().manual_seed(0))


def softmax1_model():
    torch.manual_seed(0)
    return Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**GPT2))


def llama_model():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.5, **sizes, **TOKENS))


def slow_report(model, ids):
    """Every figure by loops over blocks, layers, heads and queries."""
    model = model.eval()
    model.set_attn_implementation("eager")
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    argmax, mass, null, first, rest, max_first, max_rest, nll = [], [], [], [], [], [], [], []
    key_mass = torch.zeros(len(layers), 2, ids.shape[1]).double()
    for block in ids:
        streams = []
        take = lambda m, a, o: streams.append(o[0] if isinstance(o, tuple) else o)  # noqa: B023, E731
        handles = [layer.register_forward_hook(take) for layer in layers]
        with torch.no_grad():
            output = model(block[None], output_attentions=True)
        for handle in handles:
            handle.remove()
        for number, weights in enumerate(output.attentions):
            for head, rows in enumerate(weights[0].double()):
                for row in rows[1:]:
                    argmax.append(float(row.argmax() == 0))
                    mass.append(row[0].item())
                    null.append(1 - row.sum().item())
                    key_mass[number, head] += row
        for stream in streams:
            for position, x in enumerate(stream.reshape(-1, stream.shape[-1]).double()):
                kurtosis = ((x - x.mean()) ** 4).mean() / x.var(correction=0) ** 2
                (first if position == 0 else rest).append(kurtosis.item())
                (max_first if position == 0 else max_rest).append(x.abs().max().item())
        log_probabilities = output.logits[0].double().log_softmax(-1)
        nll += [-log_probabilities[i, block[i + 1]].item() for i in range(len(block) - 1)]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return dict(
        first_token_argmax_pct=100 * mean(argmax),
        first_token_mass_pct=100 * mean(mass),
        null_mass_pct=100 * max(0.0, mean(null)),
        heads_first_token_max_pct=100 * (key_mass.argmax(-1) == 0).double().mean().item(),
        kurtosis_first=mean(first),
        kurtosis_rest=mean(rest),
        maxabs_first=mean(max_first),
        maxabs_rest=mean(max_rest),
        maxabs_global=max(max_first + max_rest),
        perplexity=math.exp(mean(nll)),
    )


@pytest.mark.parametrize("make", [softmax1_model, llama_model])
def test_report_equals_the_definitions(make):
    report = inspect_model(make(), IDS, batch_size=2)
    for name, value in slow_report(make(), IDS).items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_uniform_attention_gives_the_harmonic_share():
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    for block in model.transformer.h:  # no queries: every key has the same score
        nn.init.zeros_(block.attn.c_attn.weight)
    report = inspect_model(model, IDS)
    expected = 100 * sum(1 / n for n in range(2, 11)) / 9
    assert report.first_token_mass_pct == pytest.approx(expected, rel=1e-5)
    assert report.first_token_argmax_pct == 100 and report.heads_first_token_max_pct == 100  # ties: lowest index


def test_left_padding_changes_nothing():
    model = llama_model()
    expected = inspect_model(model, IDS).to_dict()
    padded = torch.cat([torch.zeros(5, 4, dtype=torch.long), IDS], 1)
    mask = (torch.arange(14) >= 4).long().expand(5, 14)
    report = inspect_model(model, padded, attention_mask=mask).to_dict()
    for name, value in expected.items():
        if isinstance(value, float):
            assert report[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_the_model_is_left_as_it_was_even_after_an_error(monkeypatch):
    model = softmax1_model().train()
    model.transformer.h[1].eval()
    model.set_attn_implementation("eager")
    model(IDS, output_attentions=True)  # transformers leaves hooks of its own behind
    model.set_attn_implementation("softmax1")
    hooks = [len(layer._forward_hooks) for layer in model.transformer.h]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(model.lm_head, "forward", Mock(side_effect=MemoryError))
        inspect_model(model, IDS)
    inspect_model(model, IDS)
    assert model.training and not model.transformer.h[1].training and model.transformer.h[2].training
    assert model.config._attn_implementation == "softmax1"
    assert [len(layer._forward_hooks) for layer in model.transformer.h] == hooks


def test_kurtosis_of_known_vectors():
    assert token_kurtosis(torch.tensor([1.0, -1.0, 1.0, -1.0])) == 1
    one_hot = torch.zeros(100)
    one_hot[3] = 5.0
    p = 0.01
    assert token_kurtosis(one_hot).item() == pytest.approx((1 - 3 * p * (1 - p)) / (p * (1 - p)))
    assert token_kurtosis(torch.ones(2, 4)).isnan().all()
    gaussian = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    assert token_kurtosis(gaussian).item() == pytest.approx(3, abs=0.03)


def test_degenerate_tokens_are_counted_and_left_out():
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    for param in model.transformer.parameters():
        nn.init.zeros_(param)
    report = inspect_model(model, IDS)
    assert report.n_degenerate == 3 * IDS.numel() and math.isnan(report.kurtosis_first)


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size():
    model = GPT2LMHeadModel(GPT2Config(**GPT2)).eval()
    nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, IDS) == pytest.approx(50, rel=1e-6)


def test_texts_data_sets_and_plots(tmp_path):
    texts = ["the cat sat on the mat. " * 20, "a dog ran. " * 20]
    tokenizer = train_tokenizer(texts, 270)
    torch.manual_seed(0)
    model = Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**{**GPT2, "vocab_size": 270}))
    report = inspect_model(model, texts, tokenizer, seq_len=16, max_blocks=4, plots_dir=tmp_path)
    dataset = Dataset.from_dict({"text": texts})
    assert inspect_model(model, dataset, tokenizer, seq_len=16, max_blocks=4).to_dict() == report.to_dict()
    for name in ("attention", "first_token", "kurtosis", "maxabs"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.zeros(1, 40, dtype=torch.long), {}, "40.*32"),
        (torch.zeros(3, 1, dtype=torch.long), {}, r"\(3, 1\)"),
        (["text"], {}, "tokenizer"),
        (IDS, {"attention_mask": torch.ones(5, 9)}, "differ in shape"),
    ],
)
def test_bad_inputs_raise(ids, options, message):
    with pytest.raises(ValueError, match=message):
        inspect_model(softmax1_model(), ids, **options)


def test_an_encoder_decoder_raises():
    with pytest.raises(TypeError, match="encoder-decoder"):
        inspect_model(T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_ff=8, num_layers=1)), IDS)


def test_a_model_without_attention_raises():
    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(TypeError, match="MambaForCausalLM returns no attention"):
        inspect_model(model, IDS)
