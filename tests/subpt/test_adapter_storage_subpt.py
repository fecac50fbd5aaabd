# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters in files, in transformers and in its pipelines, and several of them in one model."""

import peft
import pytest
import torch
from peft import AutoPeftModel, PeftModel, PeftType, get_peft_model
from tiny_subpt import (
    DIM,
    NAMES,
    OTHERS,
    WIDTH,
    image_processor,
    images,
    make_clip,
    make_model,
    make_open_clip,
    make_tokenizer,
)
from transformers import AutoModelForZeroShotImageClassification, CLIPModel

from hf_methods.subpt import (
    AutoPromptModel,
    SubPTConfig,
    extend_tokenizer,
    prompt_template,
)
from hf_methods.subpt.towers_subpt import encode_text


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


# --- trap 10: the stock pipeline ------------------------------------------------------------------------------------


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
