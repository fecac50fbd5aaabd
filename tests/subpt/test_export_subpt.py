# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Exports: what people without this package load gives the same numbers."""

import copy
import hashlib
import json
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from tiny_subpt import (
    DIM,
    NAMES,
    OTHERS,
    image_processor,
    images,
    make_clip,
    make_model,
    make_open_clip,
    make_owlvit,
    make_siglip,
    make_siglip2,
    make_tokenizer,
)
from transformers import AutoConfig, AutoModelForZeroShotImageClassification, AutoTokenizer, pipeline

from hf_methods.subpt import (
    SubPTConfig,
    export_merged,
    export_onnx,
    export_text_embeddings,
    export_trainable_tokens,
    prompt_template,
)


CLEAN = [name.replace("_", " ") for name in NAMES]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("eos", [2, None])
def test_the_stock_zero_shot_pipeline_runs_a_merged_folder(tmp_path, position, eos):
    maker = lambda: make_clip(eos if eos is not None else make_tokenizer().eos_token_id)  # noqa: E731
    model = make_model(maker, class_token_position=position).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    template = export_merged(model, tmp_path / "merged", image_processor())
    image = Image.new("RGB", (20, 18), (200, 30, 60))
    pixel_values = image_processor()(image, return_tensors="pt")["pixel_values"]
    pipe = pipeline("zero-shot-image-classification", model=str(tmp_path / "merged"))
    assert pipe.model.config.subpt_hypothesis_template == template == prompt_template(model.prompt_config)
    for names in (CLEAN, OTHERS):
        model.set_classes(names)
        with torch.no_grad():
            expected = model(pixel_values).logits.softmax(-1)[0]
        answers = pipe(image, candidate_labels=names, hypothesis_template=template)
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
            dict(zip(names, expected.tolist())), abs=1e-4
        )
    assert model.context.requires_grad and model.prompt_layer.active_context == "default"  # a copy was merged


def test_a_merged_siglip_has_the_same_features(tmp_path):
    model = make_model(make_siglip).eval()
    expected = model.encode_classes().detach()
    template = export_merged(model, tmp_path / "merged")
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = [template.replace("{}", name) for name in CLEAN]
    ids = tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
    features = loaded.get_text_features(ids).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), expected, rtol=0, atol=1e-5)


def test_stock_peft_loads_the_context_as_trainable_tokens(tmp_path):
    model = make_model().eval()
    expected = model.encode_classes().detach()
    export_trainable_tokens(model, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "TRAINABLE_TOKENS" and "subpt" not in json.dumps(settings).lower()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter", subfolder="tokenizer")
    readme = (tmp_path / "adapter" / "README.md").read_text()
    base = make_clip()
    # The two lines of the README
    base.text_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    base.text_model.eos_token_id = tokenizer.eos_token_id
    assert f"model.text_model.resize_token_embeddings({len(tokenizer)}, mean_resizing=False)" in readme
    assert f"model.text_model.eos_token_id = {tokenizer.eos_token_id}" in readme
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert type(loaded) is PeftModel
    template = prompt_template(model.prompt_config)
    texts = [template.replace("{}", name) for name in CLEAN]
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features = loaded.get_base_model().get_text_features(ids).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), expected, rtol=0, atol=1e-5)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 6000


def test_the_prompts_of_a_class_specific_adapter_are_those_of_its_readme(tmp_path):
    model = make_model(class_specific=True, class_names=NAMES).eval()
    model.export(tmp_path / "adapter", "trainable_tokens")
    code = (tmp_path / "adapter" / "README.md").read_text().split("```")[1]
    assignment = code[code.index("text = ") :]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter", subfolder="tokenizer")
    texts = []
    for class_number, class_name in enumerate(CLEAN):
        scope = {"re": re, "class_number": class_number, "class_name": class_name}
        exec(assignment, scope)  # noqa: S102 - our own README
        texts.append(scope["text"])
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, model.class_input_ids) and len(set(texts)) == len(NAMES)


@pytest.mark.parametrize("maker", [make_clip, make_open_clip])
def test_text_embeddings_say_what_they_are(tmp_path, maker):
    model = make_model(maker).eval()
    path = export_text_embeddings(model, tmp_path / "a", [*CLEAN, *OTHERS], chunk_size=3)
    with safe_open(path, "pt") as file:
        features, metadata = file.get_tensor("text_embeds"), file.metadata()
    assert features.shape == (8, DIM) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(8))
    torch.testing.assert_close(features, model.encode_classes([*CLEAN, *OTHERS]).detach(), rtol=1e-5, atol=1e-6)
    assert json.loads(metadata["names"]) == [*CLEAN, *OTHERS]
    assert metadata["adapter_sha256"] == hashlib.sha256(model.context.detach().numpy().tobytes()).hexdigest()
    assert json.loads(safe_open(export_text_embeddings(model, tmp_path), "pt").metadata()["names"]) == CLEAN


def test_what_can_not_be_exported_is_named(tmp_path):
    specific = make_model(class_specific=True, class_names=NAMES)
    with pytest.raises(ValueError, match="no one template; use `build_classifier`"):
        export_merged(specific, tmp_path / "x")
    for export in (export_merged, export_trainable_tokens):
        with pytest.raises(ValueError, match="CLIP is no model of transformers; use `export_text_embeddings`"):
            export(make_model(make_open_clip), tmp_path / "x")
    reserved = get_peft_model(make_owlvit(), SubPTConfig(n_ctx=4, ctx_slots="reserved", first_ctx_token_id=188))
    reserved.prompt_ids(["cat"], make_tokenizer())
    with pytest.raises(ValueError, match="reserved slots have no text"):
        export_merged(reserved, tmp_path / "x")
    longer = copy.deepcopy(make_tokenizer())
    longer.add_tokens(["<new>"])
    model = make_model()
    model.tokenizer = longer
    with pytest.raises(ValueError, match="start at 521, the tokenizer has 522 tokens"):
        export_merged(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_failed_export_leaves_what_was_there(tmp_path):
    model = make_model()
    export_merged(model, tmp_path / "merged")
    before = sorted(path.name for path in (tmp_path / "merged").iterdir())
    with torch.no_grad():
        model.context.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        export_merged(model, tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == before


def test_a_format_is_one_of_four(tmp_path):
    model = make_model().eval()
    with pytest.raises(ValueError, match="one of merged, trainable_tokens, text_embeddings, onnx, got 'gguf'"):
        model.export(tmp_path / "x", "gguf")
    assert model.export(tmp_path / "merged", "merged") == prompt_template(model.prompt_config)
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize("maker", [make_clip, pytest.param(make_siglip, marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_logits_of_the_prompted_model_at_any_batch_size(tmp_path, maker):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_model(lambda: maker().to(torch.bfloat16) if maker is make_clip else maker()).eval()
    path = model.export(tmp_path / "onnx", "onnx", class_names=OTHERS, image_processor=image_processor())
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"config.json", "configuration_subpt.py", "model.onnx", "preprocessor_config.json"}
    assert list(AutoConfig.from_pretrained(path.parent).id2label.values()) == OTHERS
    session = onnxruntime.InferenceSession(path)
    reference = model.build_classifier(OTHERS).float()
    for number in (1, 5):
        pixel_values = images(number)
        (logits,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        with torch.no_grad():
            expected = reference(pixel_values).logits
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_what_has_no_onnx_graph_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="siglip2_vision_model takes patches of variable resolution"):
        export_onnx(make_model(make_siglip2), tmp_path / "x")
    monkeypatch.setattr("hf_methods.subpt.export_subpt.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_methods\[export\]'"):
        export_onnx(make_model(), tmp_path / "x")
    assert not (tmp_path / "x").exists()
