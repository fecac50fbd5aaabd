# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Students of other kinds in box mode: Faster R-CNN and the detectors of transformers."""

import pytest
import torch
from steps_cross_teaching import SIZE, TINY, make, make_batch
from transformers import (
    AutoModelForObjectDetection,
    DetrConfig,
    DFineConfig,
    HGNetV2Config,
    ResNetConfig,
    RTDetrConfig,
    RTDetrResNetConfig,
)

from hf_methods import (
    CrossTeachingModel,
)


def test_faster_rcnn_trains_in_box_mode():
    detector = dict(TINY, architecture="fasterrcnn_mobilenet_v3_large_320_fpn", image_size=64, score_threshold=0.0)
    model = make(detector=detector, score_threshold=0.25, unsup_box_loss="full")
    labeled, unlabeled = make_batch(num_labeled=2, num_unlabeled=1)
    output = model(labeled, unlabeled, unsup_weight=1.0)
    output.loss.backward()
    assert output.loss.isfinite() and model.config.mode == "box" and output.logs["loss_unsup_0"] > 0
    gradients = [p.grad for p in model.students.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


TRANSFORMER = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=10, num_labels=3,
)  # fmt: skip


def tiny_detr():
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, out_features=["stage4"])
    return DetrConfig(backbone_config=backbone, use_timm_backbone=False, backbone=None, **TRANSFORMER)


RT_SIZES = dict(
    encoder_in_channels=[8, 8, 8], encoder_hidden_dim=16, feat_strides=[8, 16, 32], decoder_in_channels=[16, 16, 16],
    num_denoising=4, decoder_n_points=2, **{**TRANSFORMER, "decoder_layers": 2},
)  # fmt: skip


def tiny_rt_detr():
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrConfig(backbone_config=backbone, **RT_SIZES)


def tiny_d_fine():
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 8], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 8, 8], stage_num_blocks=[1] * 4, stage_downsample=[False, True, True, True],
        stage_light_block=[False] * 4, stage_kernel_size=[3] * 4, stage_numb_of_layers=[1] * 4, hidden_sizes=[8] * 4,
        depths=[1] * 4, out_features=["stage2", "stage3", "stage4"], embedding_size=8,
    )  # fmt: skip
    sizes = {**RT_SIZES, "decoder_n_points": [2, 2, 2]}
    return DFineConfig(backbone_config=backbone, encoder_activation_function="silu", **sizes)


@pytest.mark.parametrize(
    "make_config", [tiny_detr, *(pytest.param(make, marks=pytest.mark.slow) for make in (tiny_rt_detr, tiny_d_fine))]
)
def test_transformer_detectors_train_in_box_mode(make_config, tmp_path):
    pytest.importorskip("scipy", reason="transformers' matcher needs scipy")
    model = make(detector=make_config(), score_threshold=0.0, max_pseudo_boxes=5)
    labeled, unlabeled = make_batch(num_unlabeled=2)
    output = model(labeled, unlabeled, unsup_weight=1.0)
    output.loss.backward()
    assert output.loss.isfinite() and output.logs["loss_unsup_0"] > 0 and output.logs["pseudo_0"] > 0
    assert all(p.grad.isfinite().all() for p in model.students.parameters() if p.grad is not None)
    # the classification part and the whole differ by the boxes' losses
    model.config.unsup_box_loss = "full"
    assert model(labeled, unlabeled, unsup_weight=1.0).logs["loss_unsup_0"] != output.logs["loss_unsup_0"]
    # a batch without any object, and without any pseudo label
    model.config.score_threshold = 1.0
    for batch in labeled:
        batch["labels"] = [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * 2
    empty = model(labeled, unlabeled, unsup_weight=1.0)
    assert empty.loss.isfinite() and empty.logs["loss_unsup_0"] == 0
    model.save_pretrained(tmp_path / "ct")
    CrossTeachingModel.from_pretrained(tmp_path / "ct").export_detector(1).save_pretrained(tmp_path / "one")
    one = AutoModelForObjectDetection.from_pretrained(tmp_path / "one")
    assert type(one) is type(model.students[1])
    state = model.teachers[1].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    with torch.no_grad():
        assert one(torch.randn(1, 3, SIZE, SIZE)).logits.isfinite().all()
