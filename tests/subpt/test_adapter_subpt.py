# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The adapter: features against hand-written CoOp forwards, PEFT's life cycle, and the traps of CLIP's text towers."""

import copy
import json
import pickle

import peft
import pytest
import torch
from peft import AutoPeftModel, PeftModel, PeftType, TaskType, get_peft_model
from tiny_subpt import (
    DIM,
    LENGTH,
    NAMES,
    OTHERS,
    WIDTH,
    images,
    make_clip,
    make_clipseg,
    make_open_clip,
    make_owlvit,
    make_siglip,
    make_tokenizer,
)
from transformers import AutoModelForZeroShotImageClassification, CLIPModel, CLIPTextModelWithProjection

from hf_methods.subpt import (
    AutoPromptModel,
    PeftModelForPromptedImageClassification,
    SubPTConfig,
    SubPTLayer,
    extend_tokenizer,
    prompt_template,
)
from hf_methods.subpt.peft_config_subpt import ensure_member
from hf_methods.subpt.towers_subpt import encode_text


MAKERS = {
    "clip": make_clip,
    "clip with the real end of text": lambda: make_clip(eos_token_id=len(make_tokenizer()) - 1),
    "siglip": make_siglip,
    "open_clip": make_open_clip,
    "open_clip custom text": lambda: make_open_clip(custom_text=True),
}


def make_model(maker=make_clip, names=NAMES, seed=0, std=0.3, **config):
    base = maker()
    torch.manual_seed(seed)
    model = get_peft_model(base, SubPTConfig(init_std=std, **{"n_ctx": 4, **config}))
    model.set_classes(names, make_tokenizer())
    return model


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


# --- traps 3, 6, 7: files and Auto classes --------------------------------------------------------------------------


@pytest.fixture
def repositories(tmp_path):
    """A base model with its tokenizer on disk, and an adapter for it."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_clip().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    torch.manual_seed(0)
    model = get_peft_model(CLIPModel.from_pretrained(base), SubPTConfig(n_ctx=4, class_names=NAMES, init_std=0.3))
    model.set_classes(NAMES)  # the base model's tokenizer
    model.save_pretrained(adapter)
    return model.eval(), base, adapter


def test_an_adapter_with_its_tokenizer_loads_and_gives_the_same_logits(repositories):
    model, _, adapter = repositories
    assert (adapter / "tokenizer" / "tokenizer_config.json").exists() and not (
        adapter / "tokenizer_config.json"
    ).exists()
    loaded = AutoPromptModel.from_pretrained(adapter)
    assert loaded.class_names == [name.replace("_", " ") for name in NAMES]
    assert not loaded.context.requires_grad and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images()).logits, model(images()).logits)
        assert torch.equal(loaded.encode_classes(OTHERS), model.encode_classes(OTHERS))
    assert AutoPromptModel.from_pretrained(adapter, is_trainable=True).context.requires_grad
    # A tokenizer at the top is taken too; it is where PEFT's own Auto classes crash.
    make_tokenizer().save_pretrained(adapter)
    assert torch.equal(AutoPromptModel.from_pretrained(adapter).context, model.context)


def test_the_adapters_file_is_the_context_and_nothing_else(repositories):
    from safetensors.torch import load_file

    model, _, adapter = repositories
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert list(tensors) == ["base_model.model.text_model.embeddings.token_embedding.subpt_ctx"]
    torch.testing.assert_close(*tensors.values(), model.context.detach(), rtol=0, atol=0)
    assert (adapter / "adapter_model.safetensors").stat().st_size <= 4 * WIDTH * 4 + 4096


def test_transformers_loads_the_adapter_by_itself(repositories):
    model, _, adapter = repositories
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(adapter)
    with torch.no_grad():
        features = encode_text(loaded, loaded.text_model, model.class_input_ids)
        torch.testing.assert_close(
            torch.nn.functional.normalize(features, dim=-1), model.encode_classes(), rtol=0, atol=0
        )
    assert loaded.text_model.eos_token_id == make_tokenizer().eos_token_id


def test_pefts_auto_model_refuses_the_task(repositories):
    with pytest.raises(ValueError, match="task type"):
        AutoPeftModel.from_pretrained(repositories[2])


def test_without_this_package_peft_does_not_know_the_method(repositories, monkeypatch):
    monkeypatch.delitem(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.SUBPT)  # as peft is by itself
    with pytest.raises(KeyError, match="SUBPT"):
        PeftModel.from_pretrained(make_clip(), repositories[2])


def test_an_adapter_that_names_no_model_needs_one(tmp_path):
    model = make_model(make_open_clip).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give `base_model`"):
        AutoPromptModel.from_pretrained(tmp_path)
    loaded = AutoPromptModel.from_pretrained(tmp_path, base_model=make_open_clip())
    loaded.set_classes(NAMES)  # the tokenizer was stored
    assert torch.equal(loaded.encode_classes(), model.encode_classes().detach())


def test_peft_loads_into_empty_parameters():
    import tempfile

    model = make_model().eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(make_clip(), folder, low_cpu_mem_usage=True)
    loaded.set_classes(NAMES, make_tokenizer())
    assert torch.equal(loaded.encode_classes(), model.encode_classes().detach())


def test_words_need_no_tokenizer_to_load(tmp_path):
    words = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(words)
    model = get_peft_model(make_clip(), SubPTConfig(ctx_init="a photo of a", tokenizer_name_or_path=str(words)))
    model.save_pretrained(tmp_path / "adapter")
    words.rename(tmp_path / "elsewhere")
    loaded = AutoPromptModel.from_pretrained(tmp_path / "adapter", base_model=make_clip())
    assert torch.equal(loaded.context, model.context)


def test_an_adapter_of_another_method_is_refused(tmp_path):
    peft.LoraConfig(base_model_name_or_path="x").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type.*LORA.*not SUBPT"):
        AutoPromptModel.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="from_pretrained"):
        AutoPromptModel()


def test_the_subspace_is_stored_beside_the_adapter_and_checked(tmp_path):
    from hf_methods.subpt import random_basis

    model = make_model()
    model.basis = random_basis(4 * WIDTH, 3)
    model.save_pretrained(tmp_path)
    loaded = AutoPromptModel.from_pretrained(tmp_path, base_model=make_clip())
    assert torch.equal(loaded.basis.components, model.basis.components)
    model.save_pretrained(tmp_path / "without", save_basis=False)
    assert AutoPromptModel.from_pretrained(tmp_path / "without", base_model=make_clip()).basis is None
    model.basis = random_basis(5 * WIDTH, 3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another adapter's"):
        AutoPromptModel.from_pretrained(tmp_path, base_model=make_clip())


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


# --- trap 10: the stock pipeline ------------------------------------------------------------------------------------


def image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def test_the_stock_pipeline_runs_an_adapter_that_is_not_merged(repositories):
    from PIL import Image
    from transformers import pipeline

    model, _, _ = repositories
    model.tokenizer = None
    tokenizer = extend_tokenizer(make_tokenizer(), model.prompt_config)
    pipe = pipeline(
        "zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=image_processor()
    )
    image = Image.new("RGB", (20, 18), (200, 30, 60))
    template = prompt_template(model.prompt_config)
    answers = pipe(image, candidate_labels=model.class_names, hypothesis_template=template)
    with torch.no_grad():
        pixel_values = image_processor()(image, return_tensors="pt")["pixel_values"]
        expected = model(pixel_values).logits.softmax(-1)[0]
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        dict(zip(model.class_names, expected.tolist())), abs=1e-4
    )


# --- several adapters -----------------------------------------------------------------------------------------------


def test_adapters_switch_and_are_deleted(tmp_path):
    model = make_model(seed=0).eval()
    other = make_model(seed=1, n_ctx=6, class_token_position="middle").eval()
    other.save_pretrained(tmp_path)
    expected = {m: m.encode_classes().detach() for m in (model, other)}
    model.load_adapter(tmp_path, "second")
    torch.testing.assert_close(model.encode_classes().detach(), expected[model], rtol=0, atol=0)
    model.set_adapter("second")  # another number of tokens at another place: the prompts follow
    torch.testing.assert_close(model.encode_classes().detach(), expected[other], rtol=0, atol=0)
    assert [p.requires_grad for p in model.prompt_layer.subpt_ctx.values()] == [False, True]
    with pytest.raises(ValueError, match="only one prompt can be active"):
        model.base_model.set_adapter(["default", "second"])
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert list(model.prompt_layer.subpt_ctx) == list(model.prompt_layer.first_ctx_token_id) == ["default"]
    torch.testing.assert_close(model.encode_classes().detach(), expected[model], rtol=0, atol=0)


def test_a_class_specific_adapter_takes_classes_of_others_away():
    model = make_model()
    model.add_adapter("second", SubPTConfig(n_ctx=2, class_specific=True, class_names=OTHERS))
    model.set_anchors(OTHERS, torch.ones(len(OTHERS), DIM))
    model.set_adapter("default")  # the active one: nothing changes
    assert model.anchors.weight == 1 and model.class_names is not None
    model.set_adapter("second")
    assert model.class_names is None and model.anchors is None
    with pytest.raises(ValueError, match="no classes are set"):
        model(images())
    model.set_classes(OTHERS)
    assert model(images()).logits.shape == (4, len(OTHERS))


def test_a_frozen_prompt_stays_frozen_behind_a_disabled_adapter(repositories):
    loaded = AutoPromptModel.from_pretrained(repositories[2])
    with loaded.disable_adapter():
        pass
    assert not loaded.context.requires_grad
    model = make_model()
    with model.disable_adapter():
        pass
    assert model.context.requires_grad


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", MAKERS)
def test_a_merged_model_is_a_plain_one_with_the_same_features(maker):
    base = MAKERS[maker]()
    model = make_model(lambda: copy.deepcopy(base)).eval()
    ids, expected = model.class_input_ids, model.encode_classes().detach()
    tower_type = type(model.text_tower)
    merged = model.merge_and_unload()
    assert type(merged) is type(base) and not [m for m in merged.modules() if isinstance(m, SubPTLayer)]
    tower = next(module for module in merged.modules() if type(module) is tower_type)
    with torch.no_grad():
        features = torch.nn.functional.normalize(encode_text(merged, tower, ids), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    embedding = next(m for n, m in merged.named_modules() if n.endswith("token_embedding"))
    assert embedding.num_embeddings == len(embedding.weight) == len(make_tokenizer()) + 4


def test_a_merged_model_saves_and_loads_with_its_vocabulary_and_its_end_of_text(tmp_path):
    model = make_model().eval()
    ids, expected = model.class_input_ids, model.encode_classes().detach()
    tokenizer = extend_tokenizer(make_tokenizer(), model.prompt_config)
    template = prompt_template(model.prompt_config)
    texts = [template.format(name.replace("_", " ")) for name in NAMES]
    assert torch.equal(tokenizer(texts, padding=True, return_tensors="pt")["input_ids"], ids)
    model.merge_and_unload().save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    assert loaded.config.text_config.vocab_size == len(tokenizer)
    assert loaded.text_model.eos_token_id == loaded.config.text_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        features = torch.nn.functional.normalize(encode_text(loaded, loaded.text_model, ids), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_merging_can_be_undone_and_happens_once():
    model = make_model().eval()
    weight = model.prompt_layer.base_layer.weight
    expected = model.encode_classes().detach()
    model.merge_adapter()
    torch.testing.assert_close(model.encode_classes().detach(), expected, rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert model.prompt_layer.base_layer.weight is weight
    with pytest.warns(UserWarning, match="nothing to do"):
        model.prompt_layer.unmerge()
    torch.testing.assert_close(model.encode_classes().detach(), expected, rtol=0, atol=0)


def test_what_can_not_be_merged_is_refused(tmp_path):
    model = make_model()
    model.add_adapter("second", SubPTConfig(n_ctx=4))
    with pytest.raises(ValueError, match="one prompt can be merged"):
        model.merge_and_unload(adapter_names=["default", "second"])
    with torch.no_grad():
        model.context[0, 0] = torch.nan
    with pytest.raises(ValueError, match="adapter 'default' holds NaN"):
        model.merge_and_unload(safe_merge=True)
    quantised = make_model()
    layer = quantised.prompt_layer
    layer.base_layer.weight = torch.nn.Parameter(layer.base_layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised embedding.*dtype torch.int8.*; dequantise"):
        layer.merge()


def test_a_quantised_embedding_is_read_but_not_merged_into():
    torchao = pytest.importorskip("torchao.quantization")
    base = make_clip()
    expected = make_model().encode_classes()
    is_tokens = lambda module, name: isinstance(module, torch.nn.Embedding) and "token" in name  # noqa: E731
    torchao.quantize_(base.text_model.embeddings, torchao.Int8WeightOnlyConfig(), filter_fn=is_tokens)
    model = make_model(lambda: base)
    with torch.no_grad():
        model.context.copy_(make_model().context)
    assert (model.encode_classes() - expected).abs().max() < 0.05
    with pytest.raises(ValueError, match=r"quantised embedding \(Int8Tensor of dtype torch.float32\); dequantise"):
        model.merge_adapter()


def test_a_merged_adapter_gives_way_to_another_one():
    model = make_model(seed=0).eval()
    torch.manual_seed(1)
    model.add_adapter("second", SubPTConfig(n_ctx=4, init_std=0.3))
    expected = {}
    for name in ("second", "default"):
        model.set_adapter(name)
        expected[name] = model.encode_classes().detach()
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    with model.disable_adapter(), pytest.raises(ValueError, match="context tokens needs its adapter"):
        model.prompt_layer(model.class_input_ids)
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("second")  # the ids of both are the same, the rows are not
    torch.testing.assert_close(model.encode_classes().detach(), expected["second"], rtol=0, atol=0)
    model.set_adapter("default")
    torch.testing.assert_close(model.encode_classes().detach(), expected["default"], rtol=0, atol=0)


@pytest.mark.parametrize("merged_before", [False, True])
def test_the_named_adapter_is_merged_whichever_is_active_or_merged(merged_before):
    model = make_model(seed=0).eval()
    torch.manual_seed(1)
    model.add_adapter("second", SubPTConfig(n_ctx=6, init_std=0.3))
    model.set_adapter("second")
    ids, expected = model.class_input_ids, model.encode_classes().detach()
    model.set_adapter("default")
    if merged_before:
        model.merge_adapter()
    merged = model.merge_and_unload(adapter_names=["second"])
    with torch.no_grad():
        features = torch.nn.functional.normalize(encode_text(merged, merged.text_model, ids), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    assert merged.config.text_config.vocab_size == len(make_tokenizer()) + 6


def test_a_class_specific_context_is_merged_with_the_rows_of_all_classes():
    model = make_model(class_specific=True, class_names=NAMES).eval()
    ids, expected = model.class_input_ids, model.encode_classes().detach()
    merged = model.merge_and_unload()
    with torch.no_grad():
        features = torch.nn.functional.normalize(encode_text(merged, merged.text_model, ids), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    assert merged.config.text_config.vocab_size == len(make_tokenizer()) + 4 * len(NAMES)


def test_a_context_that_is_not_contiguous_is_stored(tmp_path):
    model = make_model().eval()
    model.context.data = model.context.data.t().contiguous().t()
    assert not model.context.is_contiguous()
    model.save_pretrained(tmp_path)
    loaded = AutoPromptModel.from_pretrained(tmp_path, base_model=make_clip())
    torch.testing.assert_close(loaded.context, model.context, rtol=0, atol=0)


def test_rows_without_an_end_of_text_are_named():
    model = make_model()
    ids = model.class_input_ids.clone()
    ids[[1, 3]] = ids[[1, 3]].masked_fill(ids[[1, 3]] == make_tokenizer().eos_token_id, 5)
    with pytest.raises(ValueError, match=r"which the rows \[1, 3\] don't have"):
        model.encode_prompts(ids)


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


# --- PEFT's enums ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("enum_class", "name"), [(PeftType, "SUBPT"), (TaskType, "IMAGE_PROMPT_CLS")])
def test_the_new_member_is_like_the_others(enum_class, name):
    member = enum_class[name]
    assert member is enum_class(name) is getattr(enum_class, name) and member == name
    assert list(enum_class).count(member) == 1 and name in enum_class.__members__ and name in list(enum_class)
    assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
    assert json.loads(json.dumps({"x": member})) == {"x": name} and len({member, name}) == 1
    assert ensure_member(enum_class, name) is member and list(enum_class).count(member) == 1
    assert member.name == member.value == name and isinstance(member, enum_class)


def test_a_second_import_registers_nothing_twice():
    import importlib

    import hf_methods.subpt

    importlib.reload(hf_methods.subpt)
    assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SUBPT].__name__ == "SubPTConfig"


def test_a_configuration_goes_through_json(tmp_path):
    config = SubPTConfig(n_ctx=3, template="<|ctx_0|> {} <|ctx_2|> <|ctx_1|>", class_names=["a_b", "c"])
    config.save_pretrained(tmp_path)
    loaded = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SubPTConfig) and loaded == config and loaded.class_names == ["a b", "c"]


# --- OwlViT, CLIPSeg ------------------------------------------------------------------------------------------------


def test_a_detector_that_pools_at_the_largest_id_needs_reserved_slots():
    with pytest.raises(ValueError, match="OwlViTForObjectDetection pools text at the largest id.*'reserved'"):
        get_peft_model(make_owlvit(), SubPTConfig(n_ctx=4))
    with pytest.raises(ValueError, match="give `first_ctx_token_id`"):
        get_peft_model(make_owlvit(), SubPTConfig(n_ctx=4, ctx_slots="reserved"))
    base = make_owlvit()
    config = SubPTConfig(n_ctx=4, ctx_slots="reserved", first_ctx_token_id=188, init_std=0.3)
    model = get_peft_model(copy.deepcopy(base), config)
    ids = model.prompt_ids(["cat", "dog"], make_tokenizer())
    assert ids[:, 1:5].tolist() == [[188, 189, 190, 191]] * 2 and int(ids.max()) == make_tokenizer().eos_token_id
    pixel_values = images(1)
    output = model(input_ids=ids, pixel_values=pixel_values)
    assert output.logits.shape == (1, 4, 2)
    output.logits.sum().backward()
    assert model.context.grad.abs().sum() > 0
    # The rows of the base model's embedding replaced by hand
    with torch.no_grad():
        base.owlvit.text_model.embeddings.token_embedding.weight[188:192] = model.context
        expected = base(input_ids=ids, pixel_values=pixel_values).logits
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    merged = model.merge_and_unload()
    assert len(merged.owlvit.text_model.embeddings.token_embedding.weight) == len(make_tokenizer())
    torch.testing.assert_close(merged(input_ids=ids, pixel_values=pixel_values).logits, expected, rtol=1e-5, atol=1e-5)


def test_clips_control_bytes_are_the_reserved_slots():
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    assert [tokenizer.byte_encoder[byte] for byte in range(32)] == [tokenizer.decoder[188 + i] for i in range(32)]
    text = "".join(map(chr, range(1, 400))) + " naïve façade 猫 🦊\t\r\n x"
    assert not set(range(188, 220)) & set(tokenizer.encode(text))


def test_a_segmentation_model_takes_learned_prompts():
    model = get_peft_model(make_clipseg(), SubPTConfig(n_ctx=4, init_std=0.3))
    ids = model.prompt_ids(["cat", "dog"], make_tokenizer())
    pixel_values = images(2)
    # With `input_ids` CLIPSeg encodes text without a gradient: to train, give it the features.
    features = encode_text(model.get_base_model(), model.text_tower, ids)
    output = model.get_base_model()(pixel_values=pixel_values, conditional_embeddings=features)
    output.logits.square().sum().backward()
    assert model.context.grad.abs().sum() > 0
    with torch.no_grad():
        again = model(input_ids=ids, pixel_values=pixel_values)
    torch.testing.assert_close(again.logits, output.logits.detach(), rtol=1e-4, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_ctx": 0}, "`n_ctx` must be at least 1, got 0"),
        ({"ctx_init": "  "}, "`ctx_init` has no words"),
        ({"init_std": -1.0}, "`init_std` must be 0 or more"),
        ({"ctx_slots": "extra"}, "one of virtual, reserved, got 'extra'"),
        ({"class_token_position": "left"}, "one of end, middle, front, got 'left'"),
        ({"class_specific": True}, "needs `class_names`"),
        ({"class_names": []}, "`class_names` is empty"),
        ({"class_names": "cat"}, "must be a list of names"),
        ({"class_names": ["cat", 3]}, "must be text, got 3"),
        ({"class_names": ["cat", " _ "]}, "an empty name at 1"),
        ({"class_names": ["sea lion", "sea_lion"]}, r"names twice \(underscores are spaces\): \['sea lion'\]"),
        ({"n_ctx": 2, "template": "<|ctx_0|> {}"}, r"unknown \[\], missing \[1\]"),
        ({"n_ctx": 1, "template": "<|ctx_0|> <|ctx_1|> {}"}, r"unknown \[1\], missing \[\]"),
        ({"n_ctx": 1, "template": "<|ctx_0|>"}, "must have one {}"),
        ({"n_ctx": 33, "ctx_slots": "reserved"}, "has 32 ids, 33 are needed"),
        ({"task_type": "IMAGE_CLS"}, "(?i)invalid task type"),
    ],
)
def test_bad_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        SubPTConfig(**fields)


def test_bad_models_are_named():
    with pytest.raises(
        ValueError, match=r"it names \[\]; the embeddings of this model are \[.*token_embedding.*position"
    ):
        get_peft_model(make_clip(), SubPTConfig(target_modules=["words"]))
    with pytest.raises(ValueError, match="embeddings of this model are \\['0'\\]"):
        get_peft_model(torch.nn.Sequential(torch.nn.Embedding(3, 4)), SubPTConfig())
    with pytest.raises(ValueError, match="`n_ctx` = 39 leaves no room for a name: the text tower has 40"):
        get_peft_model(make_clip(), SubPTConfig(n_ctx=39))


def test_prompts_that_are_too_long_name_the_class_or_are_cut():
    model = make_model(n_ctx=16)
    long = "x" * 30
    with pytest.raises(ValueError, match=r"prompt of class 1 \('x+'\) is 49 tokens, 9 more than the 40 positions"):
        model.set_classes(["cat", long])
    model.set_classes(["cat", long], truncation=True)
    row = model.class_input_ids[1].tolist()
    tokenizer = make_tokenizer()
    assert len(row) <= LENGTH and tokenizer.eos_token_id in row
    assert tokenizer.convert_tokens_to_ids(".</w>") in row


def test_bad_calls_name_the_argument():
    model = get_peft_model(make_clip(), SubPTConfig(n_ctx=4))
    for labels in (None, torch.arange(4)):
        with pytest.raises(ValueError, match="no classes are set"):
            model(images(), labels=labels)
    with pytest.raises(ValueError, match="no classes are set"):
        model.encode_classes()
    with pytest.raises(ValueError, match="no tokenizer is known"):
        model.set_classes(NAMES)
    with pytest.raises(ValueError, match="must be one of transformers or open_clip, got str"):
        model.set_classes(NAMES, "tokenizer")
    model.tokenizer = None
    model.set_classes(NAMES, make_tokenizer())
    for arguments in ({}, {"pixel_values": images(), "image_embeds": torch.randn(4, DIM)}):
        with pytest.raises(ValueError, match="either `pixel_values` or `image_embeds`"):
            model(**arguments)
    with pytest.raises(ValueError, match="not of `input_ids`"):
        model(pixel_values=images(), input_ids=model.class_input_ids, labels=torch.arange(4))
    for labels, seen in (([0, 1, 2, 5], "0..5"), ([-1, 0, 0, 0], "-1..0")):
        with pytest.raises(ValueError, match=f"labels must be in 0..4, got {seen}"):
            model(images(), labels=torch.tensor(labels))
    with pytest.raises(ValueError, match="each template must have one {}"):
        model.encode_templates(NAMES, ["a photo"])


def test_the_name_of_an_adapter_in_the_prefix_makes_peft_warn():
    with pytest.warns(UserWarning, match="should not be contained in the prefix"):
        get_peft_model(make_clip(), SubPTConfig(n_ctx=4), adapter_name="pt")


def test_the_class_of_the_task_is_ours():
    assert isinstance(make_model(), PeftModelForPromptedImageClassification)
    assert isinstance(AutoPromptModel.__doc__, str)
