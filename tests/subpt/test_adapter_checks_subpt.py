# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""PEFT's registers, models of other kinds, and what is refused."""

import copy
import json
import pickle

import peft
import pytest
import torch
from peft import PeftType, TaskType, get_peft_model
from tiny_subpt import (
    DIM,
    LENGTH,
    NAMES,
    images,
    make_clip,
    make_clipseg,
    make_model,
    make_owlvit,
    make_tokenizer,
)

from hf_methods.subpt import (
    AutoPromptModel,
    PeftModelForPromptedImageClassification,
    SubPTConfig,
)
from hf_methods.subpt.peft_config_subpt import ensure_member
from hf_methods.subpt.towers_subpt import encode_text


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
