# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""SigLIP 2, MetaCLIP 2 and the other text towers of CLIP's kind: where they pool, how they pad, what a merge keeps."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from test_adapter_subpt import coop_text_features
from tiny_subpt import (
    LENGTH,
    NAMES,
    OTHERS,
    images,
    make_clip,
    make_metaclip2,
    make_model,
    make_siglip,
    make_siglip2,
    make_tokenizer,
    patches,
    spread,
)
from tokenizers import processors
from transformers import (
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    GroupViTConfig,
    GroupViTModel,
    Siglip2Tokenizer,
    XCLIPConfig,
    XCLIPModel,
)

from hf_methods.subpt import SubPTConfig, export_merged, extend_tokenizer, prompt_template
from hf_methods.subpt.prompts_subpt import PromptTokenizer, build_prompt_ids
from hf_methods.subpt.towers_subpt import encode_text


CLEAN = [name.replace("_", " ") for name in NAMES]
# Maker and the arguments that its image processor gives.
MODELS = {
    "metaclip2": (make_metaclip2, lambda: {"pixel_values": images()}),
    "siglip": (make_siglip, lambda: {"pixel_values": images()}),
    "siglip2": (make_siglip2, patches),
}


def features_by_hand(base, model, names):
    """SigLIP's text features from its own modules, with the context's rows put in by hand."""
    tower, tokenizer = base.text_model, make_tokenizer()
    prompts = [" ".join(["x"] * len(model.context)) + f" {name}." for name in names]
    ids = tokenizer(prompts, padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
    embedded = tower.embeddings.token_embedding(ids).clone()
    embedded[:, 1 : 1 + len(model.context)] = model.context
    hidden = embedded + tower.embeddings.position_embedding.weight
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
    return torch.nn.functional.normalize(tower.head(tower.final_layer_norm(hidden)[:, -1]), dim=-1)


@pytest.mark.parametrize("maker", [make_siglip, make_siglip2])
def test_siglips_prompts_have_the_full_length_and_are_pooled_at_the_last_position(maker):
    base = maker()
    model = make_model(lambda: copy.deepcopy(base))
    assert model.class_input_ids.shape == (len(NAMES), LENGTH) and model.prompt_config.eos_token_id is None
    expected = features_by_hand(base, model, CLEAN)
    assert expected.std(0).max() > 0.05
    torch.testing.assert_close(model.encode_classes(), expected, rtol=1e-4, atol=2e-6)
    shorter = model.class_input_ids[:, :20]  # what a causal tower would be given
    assert (model.encode_prompts(shorter) - expected).abs().max() > 0.01


def test_metaclip2_has_coops_features_whatever_the_id_of_its_end_of_text():
    base = make_metaclip2()
    model = make_model(lambda: copy.deepcopy(base))
    expected = coop_text_features(base, model.context, NAMES)
    torch.testing.assert_close(model.encode_classes(), expected, rtol=1e-4, atol=2e-6)
    # XLM-R's end of text is 2, which for CLIP means "at the largest id", and for MetaCLIP 2 nothing of the kind.
    model = get_peft_model(make_metaclip2(eos_token_id=2), SubPTConfig(n_ctx=4, init_std=0.3))
    assert model.prompt_config.eos_token_id == model.text_tower.eos_token_id == 2
    ids = torch.tensor([[0, 521, 522, 523, 524, 70, 2, 90, 90], [0, 521, 522, 523, 524, 71, 2, 90, 90]])
    expected = model.encode_prompts(ids)
    torch.testing.assert_close(model.encode_prompts(ids[:, :7]), expected, rtol=1e-4, atol=2e-6)
    assert (expected[0] - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_life_of_an_adapter(name, tmp_path):
    maker, inputs = MODELS[name]
    base, arguments = maker(), inputs()
    model = make_model(lambda: copy.deepcopy(base))
    model(**arguments, labels=torch.arange(4)).loss.backward()
    assert (model.context.grad.abs().sum(-1) > 0).all()
    model.eval()
    with torch.no_grad():
        logits, features = model(**arguments).logits, model.encode_classes()
        image = model.encode_images(**arguments)
        expected = base.logit_scale.exp() * image @ features.T + getattr(base, "logit_bias", 0)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            ids = make_tokenizer()(CLEAN, padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
            plain = encode_text(model.get_base_model(), model.text_tower, ids)
        torch.testing.assert_close(plain, base.get_text_features(ids).pooler_output, rtol=0, atol=1e-6)
    # Saved and loaded
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(maker(), tmp_path / "adapter")
    loaded.set_classes(NAMES, make_tokenizer())
    torch.testing.assert_close(loaded(**arguments).logits, logits, rtol=0, atol=0)
    # A classifier
    model.build_classifier().save_pretrained(tmp_path / "classifier")
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    torch.testing.assert_close(classifier(**arguments).logits, logits, rtol=1e-4, atol=1e-4)
    # Merged, in transformers' own words: tokenizer, padding, forward
    template = export_merged(model, tmp_path / "merged")
    merged = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "merged")
    tokenizer = extend_tokenizer(make_tokenizer(), model.prompt_config)
    texts = [template.replace("{}", text) for text in CLEAN]
    ids = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = merged(input_ids=ids, **arguments)
    torch.testing.assert_close(output.logits_per_image, logits, rtol=1e-4, atol=1e-4)
    # Back to the base model
    assert type(model.unload()) is type(base)


def test_patches_without_their_shapes_are_named():
    with pytest.raises(ValueError, match="SigLIP 2 needs `pixel_attention_mask` and `spatial_shapes`"):
        make_model(make_siglip2)(pixel_values=patches()["pixel_values"])


def make_groupvit():
    text = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=len(make_tokenizer()), max_position_embeddings=LENGTH, eos_token_id=2,
    )  # fmt: skip
    vision = dict(hidden_size=16, intermediate_size=16, depths=[1, 0, 0], num_hidden_layers=1, num_attention_heads=2)
    vision = dict(**vision, image_size=16, patch_size=8, num_group_tokens=[4, 2, 0], num_output_groups=[4, 2, 0])
    config = GroupViTConfig(text_config=text, vision_config=vision, projection_dim=16, projection_intermediate_dim=32)
    return spread(GroupViTModel(config)).eval()


def make_xclip():
    text = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=len(make_tokenizer()), max_position_embeddings=LENGTH, eos_token_id=2,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        mit_hidden_size=16, mit_intermediate_size=32, mit_num_hidden_layers=1, mit_num_attention_heads=2, num_frames=2,
    )  # fmt: skip
    config = XCLIPConfig(text_config=text, vision_config=vision, projection_dim=16, prompt_num_attention_heads=2)
    return spread(XCLIPModel(config)).eval()


@pytest.mark.parametrize("maker", [make_groupvit, make_xclip])
def test_other_towers_with_clips_pooling_pool_at_the_end_of_text(maker):
    base = maker()
    model = get_peft_model(copy.deepcopy(base), SubPTConfig(n_ctx=4, init_std=0.3))
    model.set_classes(NAMES, make_tokenizer())
    tower = model.text_tower
    assert tower.eos_token_id == make_tokenizer().eos_token_id
    ids = model.class_input_ids
    with torch.no_grad():
        features = model.encode_classes()
        merged = model.merge_and_unload()
        merged_features = torch.nn.functional.normalize(merged.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(merged_features, features, rtol=1e-5, atol=1e-6)
    assert (features[0] - features[1]).abs().max() > 1e-3  # a context token would be pooled without the names
    assert merged.config.text_config.eos_token_id == make_tokenizer().eos_token_id


# --- tokenizers -----------------------------------------------------------------------------------------------------


def make_gemma_tokenizer():
    """SigLIP 2's tokenizer with letters, a word, and padding on the left (its class's default)."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz.,-"]
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("c", "a"), ("ca", "t")]
    tokens += list(map("".join, merges))
    tokenizer = Siglip2Tokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize("template", [None, "a photo <|ctx_1|> of {} <|ctx_0|>, on <|ctx_1|>"])
def test_siglip2s_tokenizer_extended_with_the_context_gives_the_prompts_ids(template):
    tokenizer = make_gemma_tokenizer()
    config = SubPTConfig(n_ctx=2, first_ctx_token_id=len(tokenizer), template=template)
    ids = build_prompt_ids(config, ["cat", "Blue Jay"], tokenizer, max_length=40, padding="tokenizer")
    texts = [prompt_template(config).replace("{}", name) for name in ("cat", "Blue Jay")]
    extended = extend_tokenizer(tokenizer, config)
    expected = extended(texts, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, expected)
    assert ids[0, -1] == tokenizer.eos_token_id and ids[0, 0] == tokenizer.pad_token_id  # padded on the left
    # The name is a word of its own, as in "a photo of a cat."
    assert tokenizer.convert_tokens_to_ids("▁cat") in ids[0]


def test_words_before_a_name_are_the_hand_written_prompt():
    tokenizer = make_gemma_tokenizer()
    wrapped = PromptTokenizer.wrap(tokenizer)
    config = SubPTConfig(n_ctx=2, first_ctx_token_id=len(tokenizer), template="<|ctx_0|> <|ctx_1|> {}.")
    row = build_prompt_ids(config, ["cat"], tokenizer, max_length=40)[0].tolist()
    words = tokenizer("a photo of a cat.")["input_ids"]
    assert row[2:] == words[len(wrapped.encode("a photo of a")) :]


def test_a_tokenizer_that_reads_new_tokens_differently_is_not_merged(tmp_path):
    """As SigLIP's SentencePiece tokenizer, which drops the mark of a word's beginning behind an added token."""
    model = make_model()
    tokenizer = copy.deepcopy(make_tokenizer())

    class Different(type(tokenizer)):
        def __call__(self, text, **kwargs):
            return super().__call__(text.replace("> ", "> x") if "ctx" in text else text, **kwargs)

    tokenizer.__class__ = Different
    model.set_classes(CLEAN, tokenizer)
    for format in ("merged", "trainable_tokens"):
        with pytest.raises(ValueError, match="Different reads 'cat' behind a new token as .*Use `build_classifier`"):
            model.export(tmp_path / "x", format)
    assert not (tmp_path / "x").exists()


def test_open_clips_tokenizer_of_siglip_drops_punctuation():
    from open_clip.tokenizer import HFTokenizer, get_clean_fn

    tokenizer = HFTokenizer.__new__(HFTokenizer)  # its constructor downloads
    tokenizer.tokenizer, tokenizer.clean_fn = make_tokenizer(), get_clean_fn("canonicalize")
    tokenizer.tokenizer_mode, tokenizer.context_length, tokenizer.strip_sep_token = "", LENGTH, False
    config = SubPTConfig(n_ctx=2, first_ctx_token_id=len(make_tokenizer()))
    row = build_prompt_ids(config, ["Sea-lion"], tokenizer, max_length=LENGTH, padding="tokenizer")[0].tolist()
    plain = tokenizer(["x x Sea-lion."])[0].tolist()
    assert row[:1] + row[3:] == plain[:1] + plain[3:]


# --- ids that overlap -----------------------------------------------------------------------------------------------


def test_words_that_are_ids_of_the_context_are_named():
    tokenizer = make_tokenizer()
    letter = tokenizer("o", add_special_tokens=False)["input_ids"][0]
    model = get_peft_model(make_clip(), SubPTConfig(n_ctx=4, first_ctx_token_id=letter - 2))
    with pytest.raises(ValueError, match=rf"tokens \[{letter}\] of ' o\.' are the context's own ids {letter - 2}\.\."):
        model.set_classes(["cat", "o"], tokenizer)
    reserved = get_peft_model(make_clip(), SubPTConfig(n_ctx=4, ctx_slots="reserved", first_ctx_token_id=188))
    assert len(reserved.prompt_ids(OTHERS, tokenizer)) == len(OTHERS)
