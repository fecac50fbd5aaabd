# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters merged into their models, and taken out again."""

import copy

import pytest
import torch
from tiny_subpt import (
    MAKERS,
    NAMES,
    make_clip,
    make_model,
    make_tokenizer,
)
from transformers import CLIPModel

from hf_methods.subpt import (
    AutoPromptModel,
    SubPTConfig,
    SubPTLayer,
    extend_tokenizer,
    prompt_template,
)
from hf_methods.subpt.towers_subpt import encode_text


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
