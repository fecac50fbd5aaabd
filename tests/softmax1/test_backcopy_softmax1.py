# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The bigram-backcopy task against its definition, and where attention rests after a short training."""

import importlib.util
from pathlib import Path

import pytest
import torch

from hf_methods.args import parse_args_and_config
from hf_methods.data import load_text_corpus
from hf_methods.softmax1 import Softmax1GPT2Config, Softmax1GPT2LMHeadModel


SCRIPT = Path(__file__).parents[2] / "training" / "softmax1" / "backcopy.py"
TEXT = b"to be, or not to be, that is the question: whether 'tis nobler in the mind to suffer"


@pytest.fixture(scope="module")
def backcopy():
    spec = importlib.util.spec_from_file_location("backcopy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(backcopy, count, seed=0, text=TEXT, triggers=b"t,", seq_len=64):
    table, is_trigger = backcopy.bigram_table(text, triggers)
    generator = torch.Generator().manual_seed(seed)
    return table, is_trigger, backcopy.draw_sequences(table, is_trigger, count, seq_len, generator)


def test_table_of_a_text_worked_out_by_hand(backcopy):
    table, is_trigger = backcopy.bigram_table(b"abcab", b"b")
    # BOS: bytes but the trigger, two a and one c; pairs: ab, bc, ca, ab, and ba from the end to the beginning.
    expected = [[0, 2 / 3, 0, 1 / 3], [0, 0, 1, 0], [0, 0.5, 0, 0.5], [0, 1, 0, 0]]
    torch.testing.assert_close(table, torch.tensor(expected).double(), rtol=0, atol=1e-7)
    assert is_trigger.tolist() == [False, False, True, False]


def test_behind_a_trigger_the_byte_before_it_is_repeated(backcopy):
    _, is_trigger, sequences = draw(backcopy, 200)
    assert (sequences[:, 0] == backcopy.BOS).all() and (sequences[:, 1:] != backcopy.BOS).all()
    copies = 0
    for tokens in sequences.tolist():
        for before, token, behind in zip(tokens, tokens[1:], tokens[2:]):
            if is_trigger[token]:
                assert behind == before
                copies += 1
    assert copies > 1000


def test_other_transitions_have_the_frequencies_of_the_table(backcopy):
    table, is_trigger, sequences = draw(backcopy, 20_000)
    size = len(table)
    now, behind = sequences[:, :-1].flatten(), sequences[:, 1:].flatten()
    counts = torch.bincount(now * size + behind, minlength=size**2).view(size, size).double()
    rows = ~is_trigger
    assert (counts[rows].sum(1) > 500).all()
    total = counts[rows].sum(1, keepdim=True)
    standard_error = (table[rows] * (1 - table[rows]) / total).sqrt()
    assert ((counts[rows] / total - table[rows]).abs() <= 5 * standard_error).all()


def test_sequences_follow_from_the_seed(backcopy):
    sequences = draw(backcopy, 50, seed=3)[2]
    torch.manual_seed(1)  # the global generator has no part in it
    assert torch.equal(draw(backcopy, 50, seed=3)[2], sequences)
    assert not torch.equal(draw(backcopy, 50, seed=4)[2], sequences)


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
def test_figures_of_a_model_against_loops(backcopy, attention):
    _, is_trigger, sequences = draw(backcopy, 12, seq_len=24)
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(is_trigger), n_positions=24, n_embd=16, n_layer=1, n_head=1, initializer_range=0.5)
    config = Softmax1GPT2Config(attention_softmax=attention, bos_token_id=0, eos_token_id=None, **sizes)
    model = Softmax1GPT2LMHeadModel(config).eval()
    implementation = model.config._attn_implementation
    figures = backcopy.measure(model, sequences, is_trigger)
    assert model.config._attn_implementation == implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(sequences, output_attentions=True)
    weights = output.attentions[0][:, 0]
    log_probs = output.logits.log_softmax(-1)
    copy, other, correct, mass, row_sum, before, argmax = [], [], [], [], [], [], []
    for b, tokens in enumerate(sequences.tolist()):
        for i, token in enumerate(tokens):
            if i < len(tokens) - 1:
                (copy if is_trigger[token] else other).append(-log_probs[b, i, tokens[i + 1]].item())
                if is_trigger[token]:
                    correct.append(log_probs[b, i].argmax().item() == tokens[i + 1])
            if i >= 4 and is_trigger[token]:
                before.append(weights[b, i, i - 1].item())
            elif i >= 4:
                mass.append(weights[b, i, 0].item())
                row_sum.append(weights[b, i].sum().item())
                argmax.append(weights[b, i].argmax().item() == 0)
    expected = {
        "loss": sum(copy + other) / len(copy + other),
        "loss_copy": sum(copy) / len(copy),
        "loss_other": sum(other) / len(other),
        "accuracy_copy_pct": 100 * sum(correct) / len(correct),
        "copy_weight_pct": 100 * sum(before) / len(before),
        "row_sum": sum(row_sum) / len(row_sum),
        "null_mass_pct": 100 * (1 - sum(row_sum) / len(row_sum)),
        "first_token_mass_pct": 100 * sum(mass) / len(mass),
        "first_token_argmax_pct": 100 * sum(argmax) / len(argmax),
    }
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.slow
def test_softmax_rests_on_the_first_token_and_softmax1_need_not(backcopy):
    """800 steps of the recipe: 92 to 98 % and below 1 % of the mass in seeds 0, 1, 2.

    Softmax-1 grows a sink too before it loses it, later than this in 1 of 6 seeds: one seed without it is enough.
    """
    text = "".join(load_text_corpus("python")["train"]["text"]).encode()[:2_000_000]
    argv = ["--config", str(SCRIPT.with_suffix(".yaml")), "--results", "", "--eval_steps", "800"]
    (args,) = parse_args_and_config((backcopy.BackcopyArguments,), argv)

    def mass(attention, seed):
        _, is_trigger, sequences = draw(backcopy, 800 * 32 + 64, seed, text, args.triggers.encode())
        (figures,) = backcopy.train(attention, sequences[:-64], sequences[-64:], is_trigger, seed, args)
        assert figures["accuracy_copy_pct"] > 90  # a head that is not used would show nothing
        return figures["first_token_mass_pct"]

    assert mass("softmax", 0) > 25
    assert any(mass("softmax1", seed) < 12 for seed in args.seeds)
