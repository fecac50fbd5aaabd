# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Models with softmax-1: persistence, caches, padding, conversion."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_methods.softmax1 import (
    SingleScaleRMSNorm,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    Softmax1LlamaConfig,
    Softmax1LlamaForCausalLM,
    convert_to_softmax1,
    load_softmax1,
)


TOKENS = dict(bos_token_id=0, eos_token_id=None, pad_token_id=0)
GPT2 = dict(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **TOKENS)
LLAMA = dict(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, **TOKENS,
)  # fmt: skip
IDS = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def gpt2(**kwargs):
    torch.manual_seed(0)
    return Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**GPT2, **kwargs)).eval()


def llama(**kwargs):
    torch.manual_seed(0)
    return Softmax1LlamaForCausalLM(Softmax1LlamaConfig(**LLAMA, **kwargs)).eval()


both = pytest.mark.parametrize("make", [gpt2, llama])


@both
@pytest.mark.parametrize("attention_softmax", ["softmax1", "softmax"])
@pytest.mark.parametrize("norm_type", [None, "rmsnorm_single"])
def test_reload_gives_the_same_logits(make, attention_softmax, norm_type, tmp_path):
    model = make(attention_softmax=attention_softmax, **({"norm_type": norm_type} if norm_type else {}))
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(reloaded) is type(model) and reloaded.config.attention_softmax == attention_softmax
    torch.testing.assert_close(reloaded(IDS).logits, expected, rtol=0, atol=0)


def test_mlp_without_bias_is_kept(tmp_path):
    model = gpt2(mlp_bias=False)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any("mlp" in name and "bias" in name for name, _ in reloaded.named_parameters())
    torch.testing.assert_close(reloaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@both
def test_softmax1_differs_from_softmax_and_eager_agrees(make):
    model, baseline = make(), make(attention_softmax="softmax")
    fast = model(IDS).logits
    assert (fast - baseline(IDS).logits).abs().max() > 0.1
    model.set_attn_implementation("eager")
    output = model(IDS, output_attentions=True)
    torch.testing.assert_close(output.logits, fast, rtol=0, atol=1e-4)
    assert len(output.attentions) == 2 and (output.attentions[0].sum(-1) < 1).all()


@both
def test_future_tokens_never_change_past_logits(make):
    model, changed = make(), IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 3) % 50
    torch.testing.assert_close(model(IDS).logits[:, :7], model(changed).logits[:, :7], rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_single_prompts(make, side):
    model = make()
    single = model(IDS[:1, :8]).logits
    pad = torch.zeros(1, 4, dtype=torch.long)
    ones, zeros = torch.ones(1, 8, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
    order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
    ids, mask = torch.cat(order(IDS[:1, :8], pad), 1), torch.cat(order(ones, zeros), 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[mask.bool()][None], single, rtol=0, atol=1e-4)


@both
@pytest.mark.parametrize("options", [dict(use_cache=False), dict(cache_implementation="static")])
def test_generation_is_the_same_with_every_cache(make, options):
    model = make()
    common = dict(max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(IDS))
    expected = model.generate(IDS, **common)
    if options.get("cache_implementation") == "static":
        options = {**options, "disable_compile": True}
    assert torch.equal(model.generate(IDS, **common, **options), expected)
    model.set_attn_implementation("eager")
    assert torch.equal(model.generate(IDS, **common), expected)


@both
def test_beam_search_is_the_same_without_a_cache(make):
    model = make()
    common = dict(max_new_tokens=6, num_beams=3, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(model.generate(IDS, **common), model.generate(IDS, **common, use_cache=False))


@both
def test_gradient_checkpointing_gives_the_same_gradients(make):
    def grads(checkpointing):
        model = make(**({"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if make is gpt2 else {})).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters()]

    for a, b in zip(grads(False), grads(True), strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@both
def test_foreign_attention_is_refused(make):
    with pytest.raises(ValueError, match="softmax1"):
        make().set_attn_implementation("flex_attention")


@both
def test_output_attentions_needs_eager(make):
    with pytest.raises(ValueError, match="eager"):
        make()(IDS, output_attentions=True)


@pytest.mark.parametrize("option", ["add_cross_attention", "reorder_and_upcast_attn"])
def test_options_that_bypass_the_interface_are_refused(option):
    with pytest.raises(Exception, match=option):
        Softmax1GPT2Config(**{option: True})


@pytest.mark.parametrize("config", [Softmax1GPT2Config, Softmax1LlamaConfig])
@pytest.mark.parametrize("field", ["attention_softmax", "norm_type"])
def test_unknown_values_are_refused_with_the_allowed_ones(config, field):
    with pytest.raises(Exception, match="softmax1|rmsnorm_single"):
        config(**{field: "other"})


def test_plain_gpt2_cannot_load_a_single_scale_checkpoint(tmp_path):
    gpt2(norm_type="rmsnorm_single").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def test_single_scale_norm_is_its_formula():
    norm, x = SingleScaleRMSNorm(8, eps=1e-3), torch.randn(3, 8)
    norm.weight.data.fill_(2.5)
    expected = 2.5 * x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=1e-6)
    assert norm.weight.shape == (1,) and norm(x.bfloat16()).dtype == torch.bfloat16


def other_models():
    small = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **TOKENS)
    gated = dict(intermediate_size=48, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    return {
        "qwen": lambda: Qwen3ForCausalLM(Qwen3Config(**small, **gated)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**small, **gated, sliding_window=6)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**small, ffn_dim=48, word_embed_proj_dim=32)),
        "llama": lambda: LlamaForCausalLM(Softmax1LlamaConfig(**LLAMA)),
    }


@pytest.mark.parametrize("name", ["qwen", "mistral", "opt"])
def test_other_architectures_convert_and_reload(name, tmp_path):
    torch.manual_seed(0)
    model = other_models()[name]().eval()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    before = model(IDS).logits
    logits = convert_to_softmax1(model)(IDS).logits
    assert (logits - before).abs().max() > 1e-3
    model.set_attn_implementation("softmax1_eager")
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-4)
    model.set_attn_implementation("softmax1")
    changed = IDS.clone()
    changed[:, 9:] = 1
    torch.testing.assert_close(model(changed).logits[:, :9], logits[:, :9], rtol=0, atol=1e-4)
    common = dict(max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(model.generate(IDS, **common), model.generate(IDS, **common, use_cache=False))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load_softmax1(str(tmp_path)).eval()(IDS).logits, logits, rtol=0, atol=0)


def test_conversion_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="cross-attention"):
        convert_to_softmax1(T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_ff=8, num_layers=1)))


def small_config(cls, **kwargs):
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return cls(**sizes, num_key_value_heads=1, head_dim=8, max_position_embeddings=32, **TOKENS, **kwargs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: GptOssForCausalLM(small_config(GptOssConfig, num_local_experts=2)), "sinks of its own"),
        (lambda: Gemma2ForCausalLM(small_config(Gemma2Config)), "soft cap"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1)), "does not use"),
        (lambda: GPT2LMHeadModel(GPT2Config(**GPT2, add_cross_attention=True)), "cross-attention"),
    ],
)
def test_conversion_refuses_attention_of_another_kind(model, message):
    with pytest.raises(ValueError, match=message):
        convert_to_softmax1(model())


@both
def test_packed_sequences_do_not_see_each_other(make):
    model = make()
    packed, positions = IDS.reshape(1, -1), torch.arange(12).repeat(2)[None]
    logits = model(packed, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits.view(2, 12, -1), model(IDS).logits, rtol=0, atol=1e-5)
    assert (model(packed).logits.view(2, 12, -1)[1] - model(IDS).logits[1]).abs().max() > 1e-3


def test_load_softmax1_refuses_plain_checkpoints(tmp_path):
    GPT2LMHeadModel(GPT2Config(**GPT2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no softmax-1 checkpoint"):
        load_softmax1(str(tmp_path))


@pytest.mark.slow
@both
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_graph_breaks(backend, make):
    model = make()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits, rtol=0, atol=1e-4)
