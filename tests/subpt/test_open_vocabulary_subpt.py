# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Learned prompts in OwlViT, Owlv2 and CLIPSeg, against the models' own forwards. Tiny random models."""

import copy

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from tiny_subpt import DIM, WIDTH, images, make_clip, make_clipseg, make_owlv2, make_owlvit, make_tokenizer

from hf_methods.subpt import SubPTConfig, detect, segment


NAMES = ["cat", "dog", "ox"]


def make_detector(maker, names=NAMES):
    base = maker()
    torch.manual_seed(0)
    config = SubPTConfig(n_ctx=4, ctx_slots="reserved", first_ctx_token_id=188, init_std=0.3)
    model = get_peft_model(copy.deepcopy(base), config)
    model.set_classes(names, make_tokenizer())
    return base, model.eval()


@pytest.mark.parametrize("maker", [make_owlvit, make_owlv2])
def test_a_detector_with_learned_prompts_is_the_detector_with_the_contexts_rows(maker):
    base, model = make_detector(maker)
    pixel_values = images(2)
    output = detect(model, pixel_values)
    ids = model.class_input_ids
    with torch.no_grad():  # the rows of the base model's embedding replaced by hand, its own forward
        owner = base.owlv2 if hasattr(base, "owlv2") else base.owlvit
        owner.text_model.embeddings.token_embedding.weight[188:192] = model.context
        expected = base(input_ids=ids.repeat(2, 1), pixel_values=pixel_values)
    assert output.logits.shape == (2, 4, 3) and expected.logits.std() > 0.01
    for name in ("logits", "pred_boxes", "objectness_logits"):
        if getattr(expected, name, None) is not None:
            torch.testing.assert_close(getattr(output, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert (output.objectness_logits is not None) == (maker is make_owlv2)
    output.logits.square().sum().backward()
    assert (model.context.grad.abs().sum(-1) > 0).all()


def test_exported_features_are_queries_of_a_plain_detector(tmp_path):
    base, model = make_detector(make_owlvit)
    features = load_file(model.export(tmp_path, "text_embeddings", class_names=["bee", "cat"]))["text_embeds"]
    output = detect(base, images(1), features)
    model.set_classes(["bee", "cat"])
    torch.testing.assert_close(output.logits, detect(model, images(1)).logits, rtol=1e-4, atol=1e-5)


def test_boxes_go_through_the_image_processor():
    from transformers import OwlViTImageProcessor

    _, model = make_detector(make_owlvit)
    with torch.no_grad():
        output = detect(model, images(2))
    (first, second) = OwlViTImageProcessor().post_process_object_detection(
        output, threshold=0.0, target_sizes=[(20, 10), (8, 8)]
    )
    assert first["boxes"].shape == (4, 4) and set(first["labels"].tolist()) <= {0, 1, 2}
    scores, labels = output.logits[1].sigmoid().max(-1)
    torch.testing.assert_close(second["scores"], scores)
    assert torch.equal(second["labels"], labels)


def make_segmenter():
    torch.manual_seed(0)
    base = make_clipseg()
    model = get_peft_model(copy.deepcopy(base), SubPTConfig(n_ctx=4, init_std=0.3))
    model.set_classes(NAMES, make_tokenizer())
    return base, model.eval()


def test_masks_are_those_of_clipseg_for_each_image_and_class():
    base, model = make_segmenter()
    pixel_values = images(2)
    masks = segment(model, pixel_values)
    assert masks.shape == (2, 3, 16, 16)
    with torch.no_grad():
        for index in range(3):  # CLIPSeg takes one text for each image
            ids = model.class_input_ids[index].repeat(2, 1)
            expected = model(input_ids=ids, pixel_values=pixel_values).logits
            torch.testing.assert_close(masks[:, index].detach(), expected, rtol=1e-4, atol=1e-5)
    assert (masks[:, 0] - masks[:, 1]).abs().max() > 1e-3  # the classes' masks differ
    masks.square().sum().backward()  # CLIPSeg's own forward has no gradient to its text
    assert (model.context.grad.abs().sum(-1) > 0).all()
    features = model.encode_prompts(model.class_input_ids, normalized=False).detach()
    torch.testing.assert_close(segment(base, pixel_values, features), masks.detach(), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named():
    clip = get_peft_model(make_clip(), SubPTConfig(n_ctx=2))
    base, model = make_detector(make_owlvit)
    with pytest.raises(ValueError, match="must be OwlViT or Owlv2 for object detection, got CLIPModel"):
        detect(clip, images(1))
    with pytest.raises(ValueError, match="must be CLIPSeg for image segmentation, got OwlViTForObjectDetection"):
        segment(model, images(1))
    with pytest.raises(ValueError, match="a model without a prompt adapter needs `text_embeds`"):
        detect(base, images(1))
    with pytest.raises(ValueError, match=rf"`text_embeds` must be \(classes, {WIDTH}\).*got \(2, 7\)"):
        detect(model, images(1), torch.ones(2, 7))
    base, _ = make_segmenter()
    with pytest.raises(ValueError, match="a model without a prompt adapter needs `text_features`"):
        segment(base, images(1))
    with pytest.raises(ValueError, match=rf"`text_features` must be \(classes, {DIM}\)"):
        segment(base, images(1), torch.ones(DIM))
    without = get_peft_model(make_clipseg(), SubPTConfig(n_ctx=2))
    with pytest.raises(ValueError, match="no classes are set"):
        segment(without, images(1))
