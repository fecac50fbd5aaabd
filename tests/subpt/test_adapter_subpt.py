# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The adapter: features against hand-written CoOp forwards, and the traps of CLIP's text towers."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_subpt import (
    LENGTH,
    MAKERS,
    NAMES,
    OTHERS,
    WIDTH,
    images,
    make_clip,
    make_model,
    make_open_clip,
    make_siglip,
    make_tokenizer,
)
from transformers import CLIPTextModelWithProjection

from hf_methods.subpt import (
    SubPTConfig,
    extend_tokenizer,
    prompt_template,
)
from hf_methods.subpt.towers_subpt import encode_text


def coop_text_features(base, context, names, position="end"):
    """CoOp's PromptLearner and TextEncoder as they were written (trainers/coop.py), for HF CLIP and open_clip.

    context: (M, width) or (C, M, width).
    """
    tokenizer = make_tokenizer()
    names = [name.replace("_", " ") for name in names]
    n_ctx = context.shape[-2]
    prompts = [" ".join(["X"] * n_ctx) + " " + name + "." for name in names]
    ids = tokenizer(prompts, padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
    lengths = [len(tokenizer(name, add_special_tokens=False)["input_ids"]) for name in names]
    owner = base.text_model.embeddings if hasattr(base, "text_model") else getattr(base, "text", base)
    embedded = owner.token_embedding(ids)
    context = context if context.ndim == 3 else context.expand(len(names), -1, -1)
    prefix, suffix = embedded[:, :1], embedded[:, 1 + n_ctx :]
    rows = []
    for i, length in enumerate(lengths):
        name, rest = suffix[i, :length], suffix[i, length:]
        half = n_ctx // 2
        parts = {
            "end": [prefix[i], context[i], name, rest],
            "middle": [prefix[i], context[i, :half], name, context[i, half:], rest],
            "front": [prefix[i], name, context[i], rest],
        }[position]
        rows.append(torch.cat(parts))
    hidden = torch.stack(rows)
    at_eos = (ids == tokenizer.eos_token_id).int().argmax(-1)
    if hasattr(base, "text_model"):
        hidden = hidden + base.text_model.embeddings.position_embedding.weight
        hidden = base.text_model.encoder(inputs_embeds=hidden, attention_mask=None, is_causal=True).last_hidden_state
        hidden = base.text_model.final_layer_norm(hidden)
        features = base.text_projection(hidden[torch.arange(len(names)), at_eos])
    else:
        hidden = owner.ln_final(owner.transformer(hidden + owner.positional_embedding, attn_mask=owner.attn_mask))
        features = hidden[torch.arange(len(names)), at_eos] @ owner.text_projection
    return features / features.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "siglip"])
def test_text_features_are_those_of_coop(maker, position):
    base = MAKERS[maker]()
    model = make_model(lambda: copy.deepcopy(base), n_ctx=5, class_token_position=position)
    expected = coop_text_features(base, model.context, NAMES, position)
    assert expected.std(0).max() > 0.05  # the classes differ
    torch.testing.assert_close(model.encode_classes(), expected, rtol=1e-4, atol=2e-6)
    gradients = [
        torch.autograd.grad((features * features.detach().roll(1, 0)).sum(), model.context)[0]
        for features in (model.encode_classes(), expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_class_specific_context_is_coops_with_rows_by_class():
    base = make_clip()
    model = make_model(lambda: copy.deepcopy(base), class_specific=True, class_names=NAMES)
    assert model.context.shape == (len(NAMES) * 4, WIDTH)
    expected = coop_text_features(base, model.context.view(len(NAMES), 4, WIDTH), NAMES)
    torch.testing.assert_close(model.encode_classes(), expected, rtol=1e-4, atol=2e-6)
    with pytest.raises(ValueError, match=r"none for \['bee'"):
        model.set_classes(OTHERS)
    with pytest.raises(ValueError, match="none for another order"):
        model.set_classes(NAMES[::-1])


def test_a_free_template_is_an_order_of_tokens():
    spelled = make_model(template="<|ctx_0|><|ctx_1|> <|ctx_2|> <|ctx_3|> {}.")
    torch.testing.assert_close(spelled.encode_classes(), make_model().encode_classes(), rtol=0, atol=0)
    words = make_model(template="a photo <|ctx_1|> of {} <|ctx_0|>, on <|ctx_1|>", n_ctx=2)
    tokenizer, first = make_tokenizer(), words.prompt_config.first_ctx_token_id
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    expected = [
        tokenizer.bos_token_id,
        *encode("a photo"),
        first + 1,
        *encode("of blue jay"),
        first,
        *encode(", on"),
        first + 1,
        tokenizer.eos_token_id,
    ]
    row = words.class_input_ids[2].tolist()
    assert row[: len(expected)] == expected and set(row[len(expected) :]) <= {tokenizer.pad_token_id}


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "siglip"])
def test_words_start_the_context_as_the_hand_written_prompt(maker, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    base = MAKERS[maker]()
    config = SubPTConfig(ctx_init="a photo of a", tokenizer_name_or_path=str(tmp_path))
    model = get_peft_model(copy.deepcopy(base), config)
    model.set_classes(NAMES, make_tokenizer())
    assert model.prompt_config.n_ctx == 4 and len(model.context) == 4
    hand_written = model.encode_templates(NAMES, ["a photo of a {}."])
    torch.testing.assert_close(model.encode_classes().detach(), hand_written, rtol=1e-5, atol=1e-6)


def test_words_are_counted_in_tokens_and_repeated(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    name = str(tmp_path)
    config = SubPTConfig(ctx_init="a yak", tokenizer_name_or_path=name)
    tokens = len(make_tokenizer()("a yak", add_special_tokens=False)["input_ids"])
    assert get_peft_model(make_clip(), config).prompt_config.n_ctx == tokens > 2
    twice = get_peft_model(make_clip(), SubPTConfig(n_ctx=8, ctx_init="a photo of a", tokenizer_name_or_path=name))
    torch.testing.assert_close(twice.context[:4], twice.context[4:], rtol=0, atol=0)
    per_class = SubPTConfig(
        ctx_init="a photo of a", tokenizer_name_or_path=name, class_specific=True, class_names=NAMES
    )
    assert get_peft_model(make_clip(), per_class).context.shape == (20, WIDTH)
    for n_ctx in (2, 6):
        with pytest.raises(ValueError, match=rf"is 4 tokens \(not words\), `n_ctx` {n_ctx}.*leave `n_ctx` out"):
            get_peft_model(make_clip(), SubPTConfig(n_ctx=n_ctx, ctx_init="a photo of a", tokenizer_name_or_path=name))


@pytest.mark.parametrize("maker", MAKERS)
def test_only_the_context_is_trained_and_the_gradient_reaches_it(maker):
    model = make_model(MAKERS[maker])
    assert [name.split(".")[-2:] for name, p in model.named_parameters() if p.requires_grad] == [
        ["subpt_ctx", "default"]
    ]
    model(images(), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    assert model.context.grad.isfinite().all() and (model.context.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("maker", MAKERS)
def test_logits_are_those_of_the_model_with_the_class_features(maker):
    base = MAKERS[maker]()
    model = make_model(lambda: copy.deepcopy(base))
    pixel_values = images()
    with torch.no_grad():
        output = model(pixel_values)
        scale = base.logit_scale.exp()
        bias = getattr(base, "logit_bias", None)
        encode = base.get_image_features if hasattr(base, "get_image_features") else base.encode_image
        image = encode(pixel_values)
        image = getattr(image, "pooler_output", image)
        image = image / image.norm(dim=-1, keepdim=True)
        expected = scale * image @ model.encode_classes().T + (0 if bias is None else bias)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    cached = model(image_embeds=output.image_embeds, labels=torch.arange(4))
    torch.testing.assert_close(cached.logits, output.logits)
    torch.testing.assert_close(cached.loss, torch.nn.functional.cross_entropy(expected, torch.arange(4)))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_disabled_adapter_is_the_base_model(maker):
    base = MAKERS[maker]()
    model = make_model(lambda: copy.deepcopy(base))
    full = MAKERS[maker] is make_siglip or "open_clip" in maker
    ids = make_tokenizer()(
        NAMES, padding="max_length" if full else True, max_length=LENGTH if full else None, return_tensors="pt"
    )["input_ids"]
    encode = lambda m: getattr(m, "encode_text", None) or (lambda x: m.get_text_features(x).pooler_output)  # noqa: E731
    with torch.no_grad():
        expected = encode(base)(ids)
        with model.disable_adapter():
            torch.testing.assert_close(encode(model.get_base_model())(ids), expected, rtol=1e-5, atol=1e-5)
            with pytest.raises(ValueError, match="context tokens needs its adapter"):
                encode_text(model.get_base_model(), model.text_tower, model.class_input_ids)
        # ordinary text gives the same with the adapter on
        torch.testing.assert_close(encode(model.get_base_model())(ids), expected, rtol=1e-5, atol=1e-5)


# --- trap 1: pooling at the largest id -------------------------------------------------------------------------------


def test_pooling_is_set_at_the_end_of_text_and_put_back():
    model = make_model(make_clip)
    text_model, eos = model.get_base_model().text_model, make_tokenizer().eos_token_id
    assert model.prompt_config.eos_token_id == text_model.eos_token_id == eos
    assert text_model.config.eos_token_id == 2  # the configuration is the base model's until a merge
    base = model.unload()
    assert base.text_model.eos_token_id == 2 and isinstance(
        base.text_model.embeddings.token_embedding, torch.nn.Embedding
    )
    assert not hasattr(base, "accepts_loss_kwargs")


@pytest.mark.parametrize(
    ("custom", "how", "eos"), [(False, "text_pool_type", "text_eos_id"), (True, "pool_type", "eos_id")]
)
def test_open_clip_pools_at_the_end_of_text_and_is_put_back(custom, how, eos):
    model = make_model(lambda: make_open_clip(custom))
    tower = model.text_tower
    assert (getattr(tower, how), getattr(tower, eos)) == ("eos", make_tokenizer().eos_token_id)
    base = model.unload()
    tower = base.text if custom else base
    assert (getattr(tower, how), getattr(tower, eos)) == ("argmax", 2)


def test_a_tokenizer_with_another_end_of_text_is_refused():
    model = get_peft_model(make_clip(), SubPTConfig(n_ctx=4, eos_token_id=7))
    with pytest.raises(
        ValueError,
        match=r"end-of-text id 7, which the rows \[0, 1, 2, 3, 4\] don't have: the tokenizer doesn't give it",
    ):
        model.set_classes(NAMES, make_tokenizer())


def test_openais_vocabulary_ends_at_49407():
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.eos_token_id = 2
    model = get_peft_model(CLIPTextModelWithProjection(config), SubPTConfig(n_ctx=2, task_type=None))
    assert model.get_base_model().text_model.eos_token_id == 49407
    assert model.peft_config["default"].first_ctx_token_id == 49408


# --- trap 2: an embedding that is resized ---------------------------------------------------------------------------


def test_a_resized_embedding_does_not_swallow_the_contexts_ids(tmp_path):
    model = make_model().eval()
    expected = model.encode_classes().detach()
    model.save_pretrained(tmp_path)
    base = make_clip()
    base.text_model.resize_token_embeddings(len(make_tokenizer()) + 7, mean_resizing=False)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    loaded.set_classes(NAMES, make_tokenizer())
    torch.testing.assert_close(loaded.encode_classes().detach(), expected, rtol=0, atol=0)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(
        torch.nn.functional.normalize(encode_text(merged, merged.text_model, loaded.class_input_ids), dim=-1),
        expected,
        rtol=0,
        atol=1e-6,
    )


# --- trap 8: padding; and the shorter rows --------------------------------------------------------------------------


@pytest.mark.parametrize("maker", MAKERS)
def test_what_stands_behind_the_end_of_text_does_not_matter(maker):
    model = make_model(MAKERS[maker])
    expected = model.encode_classes().detach()
    ids, eos = model.class_input_ids, make_tokenizer().eos_token_id
    model.set_classes(NAMES, full_length=True)
    assert model.class_input_ids.shape[1] == LENGTH
    torch.testing.assert_close(model.encode_classes().detach(), expected, rtol=1e-5, atol=2e-6)
    if maker == "siglip":  # bidirectional, pools the last position: always the full length
        assert ids.shape[1] == LENGTH
        return
    assert ids.shape[1] < LENGTH // 2 + 4
    behind = (ids == eos).int().cumsum(-1) > 1
    zeros = ids.masked_fill(behind, 0)  # open_clip pads with 0, transformers with the end of text
    assert not torch.equal(zeros, ids)
    torch.testing.assert_close(model.encode_prompts(zeros).detach(), expected, rtol=1e-5, atol=2e-6)


def test_open_clips_own_tokenizer_gives_the_ids_of_transformers():
    open_clip = pytest.importorskip("open_clip")
    from hf_methods.subpt.prompts_subpt import PromptTokenizer, build_prompt_ids

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    wrapped = PromptTokenizer.wrap(tokenizer)
    assert (wrapped.prefix, wrapped.suffix, wrapped.pad_token_id) == ((49406,), (49407,), 0)
    config = SubPTConfig(n_ctx=3, first_ctx_token_id=49408)
    ids = build_prompt_ids(config, ["Great Pyrenees dog", "jack-o'-lantern"], tokenizer, max_length=77)
    plain = tokenizer(["x x x Great Pyrenees dog.", "x x x jack-o'-lantern."])[:, : ids.shape[1]]
    assert ids[:, 1:4].tolist() == [[49408, 49409, 49410]] * 2
    assert torch.equal(ids[:, [0, *range(4, ids.shape[1])]], plain[:, [0, *range(4, ids.shape[1])]])


def test_clips_real_vocabulary_extended_with_the_context_gives_the_prompts_ids():
    """The true 49408 tokens, from the BPE file that open_clip ships."""
    open_clip = pytest.importorskip("open_clip")
    from transformers import CLIPTokenizer

    from hf_methods.subpt.prompts_subpt import build_prompt_ids

    theirs = open_clip.get_tokenizer("ViT-B-32")
    merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.get)
    tokenizer = CLIPTokenizer(
        vocab={token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): index
               for token, index in theirs.encoder.items()},
        merges=merges,
    )  # fmt: skip
    assert len(tokenizer) == 49408 and tokenizer.eos_token_id == 49407
    names = ["Great Pyrenees dog", "jack-o'-lantern", "2012 BMW M3", "café au lait", "St. Bernard"]
    for position in ("end", "middle", "front"):
        config = SubPTConfig(n_ctx=5, first_ctx_token_id=49408, class_token_position=position)
        ids = build_prompt_ids(config, names, tokenizer, max_length=77)
        texts = [prompt_template(config).replace("{}", name) for name in names]
        extended = extend_tokenizer(tokenizer, config)
        assert torch.equal(extended(texts, padding=True, return_tensors="pt")["input_ids"], ids)
        # open_clip pads with 0 where transformers pads with the end of text
        own = build_prompt_ids(config, names, theirs, max_length=77)
        until = (ids == 49407).int().argmax(-1)
        for row, other, end in zip(ids.tolist(), own.tolist(), until.tolist()):
            assert row[: end + 1] == other[: end + 1]
        assert extended.convert_tokens_to_ids("<|ctx_4|>") == 49412


# --- trap 9: class ids are buffers ----------------------------------------------------------------------------------


def test_class_ids_are_buffers_that_move_with_the_model_and_are_not_stored():
    model = make_model()
    assert "class_input_ids" in dict(model.named_buffers())
    assert not any("input_ids" in name for name in model.state_dict())
    assert model.to("meta").class_input_ids.device.type == "meta"
    # nn.DataParallel cuts arguments along the batch; replicas get buffers whole.
    model = make_model()
    replica = model._replicate_for_data_parallel()
    assert replica._buffers["class_input_ids"].shape[0] == len(NAMES)
    contexts = model.prompt_layer.subpt_ctx._replicate_for_data_parallel()
    contexts.default = model.context * 1  # what `replicate` does: a tensor with a graph instead of the parameter
    assert contexts["default"] is contexts.default and list(contexts) == ["default"]


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_has_a_float32_context_and_float32_logits(dtype):
    model = make_model(lambda: make_clip().to(dtype))
    assert model.context.dtype == torch.float32
    output = model(images().to(dtype), labels=torch.arange(4))
    output.loss.backward()
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert model.context.grad.dtype == torch.float32 and model.context.grad.isfinite().all()
    reference = make_model()
    with torch.no_grad():
        reference.context.copy_(model.context)
        error = (reference(images()).logits - output.logits).abs().max()
    assert error < 0.05 * output.logits.abs().max()
    assert make_model(lambda: make_clip().to(dtype)).merge_and_unload().dtype == dtype


def test_the_base_model_stays_in_evaluation_mode():
    model = make_model().train()
    assert model.training and not any(module.training for module in model.base_model.modules())
    assert not model.eval().training


def test_class_features_are_computed_once_until_something_changes():
    model = make_model().eval()
    with torch.no_grad():
        first = model.encode_classes()
        assert model.encode_classes() is first
        model.context.add_(0.1)
        second = model.encode_classes()
        assert second is not first and not torch.equal(second, first)
        model.set_classes(OTHERS)
        assert len(model.encode_classes()) == len(OTHERS)
        model.set_classes(NAMES)
        assert torch.equal(model.encode_classes(), second)
        model.half()
        assert model.encode_classes() is not second
    assert model.encode_classes().requires_grad  # never from the store where a gradient is needed


def test_chunks_have_the_features_and_the_gradient_of_the_whole():
    gradients = []
    for chunk_size in (None, 2, 1):
        model = make_model()
        model.class_chunk_size = chunk_size
        model(images(), labels=torch.arange(4)).loss.backward()
        gradients.append(model.context.grad)
        with torch.no_grad():
            features = model.encode_classes()
        torch.testing.assert_close(features, make_model().encode_classes().detach(), rtol=1e-5, atol=1e-6)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_model_has_the_numbers_of_the_plain_one_in_one_graph():
    model = make_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    labels = torch.arange(4)
    expected = model(images(), labels=labels).loss
    loss = compiled(images(), labels=labels).loss
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, model.context)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
