# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the configuration derives, keeps and refuses."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ResNetConfig, TimmWrapperConfig

from hf_methods.cpe import CPEConfig


def test_the_defaults_are_the_papers():
    config = CPEConfig(num_labels=10)
    assert config.taus == (0, 2, 4) and config.cuts == (2, 4) and config.eval_expert == 1
    assert (config.num_experts, config.num_groups) == (3, 3)
    assert CPEConfig(num_labels=100).cuts == (35, 70)


@pytest.mark.parametrize("num_labels", range(1, 60))
def test_default_cuts_are_valid_for_any_number_of_classes(num_labels):
    cuts = CPEConfig(num_labels=num_labels).cuts
    assert len(cuts) == min(2, num_labels - 1) and list(cuts) == sorted({*cuts} & {*range(1, num_labels)})


def test_one_expert_answers_by_itself():
    assert CPEConfig(taus=(1.0,)).eval_expert == 0


def test_without_classwise_batch_norm_there_is_one_branch():
    assert CPEConfig(num_labels=10, use_cbn=False).num_groups == 1


@pytest.mark.parametrize(
    "backbone_config", [None, ResNetConfig(depths=[1, 2, 3, 4]), TimmWrapperConfig(architecture="resnet10t")]
)
def test_a_configuration_is_loaded_as_it_was_saved(backbone_config, tmp_path):
    config = CPEConfig(num_labels=3, class_counts=[5, 9, 1], taus=(0.0, -1.5), backbone_config=backbone_config)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CPEConfig and loaded.cuts == (1, 2) and list(loaded.taus) == [0.0, -1.5]
    assert type(loaded.backbone_config) is type(backbone_config)
    assert loaded.to_diff_dict() == config.to_diff_dict()


def test_another_number_of_classes_needs_other_counts(tmp_path):
    CPEConfig(num_labels=10, class_counts=[5] * 10).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="10 for num_labels=100.*new training split"):
        CPEConfig.from_pretrained(tmp_path, num_labels=100)
    config = CPEConfig.from_pretrained(tmp_path, num_labels=100, class_counts=None)
    assert config.cuts == (35, 70)  # default cuts are not stored, so they follow
    CPEConfig(num_labels=10, group_cuts=(3, 6)).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=r"num_labels - 1 = 4, got \[3, 6\]"):
        CPEConfig.from_pretrained(tmp_path, num_labels=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 27}, "`depth`.*6 n.*27"),
        ({"depth": 4}, "`depth`"),
        ({"widen_factor": 0}, "`widen_factor`.*0"),
        ({"num_channels": 0}, "`num_channels`"),
        ({"depth": "28"}, "depth"),
        ({"taus": ()}, "`taus`"),
        ({"taus": (0.0, float("inf"))}, "`taus`.*inf"),
        ({"eval_expert": 3}, "`eval_expert`.*3 experts.*3"),
        ({"eval_expert": -1}, "`eval_expert`"),
        ({"taus": (1.0,), "eval_expert": 1}, "1 experts.*got 1"),
        ({"fusion": "vote"}, "`fusion`.*'vote'"),
        ({"group_cuts": (4, 2)}, r"`group_cuts`.*increasing.*\[4, 2\]"),
        ({"group_cuts": (2, 2)}, "`group_cuts`"),
        ({"group_cuts": (0, 4)}, "`group_cuts`"),
        ({"group_cuts": (2, 10)}, "`group_cuts`.*9"),
        ({"class_counts": [1] * 9}, "`class_counts`.*9 for num_labels=10"),
        ({"class_counts": [1] * 9 + [-1]}, "`class_counts`.*-1"),
        ({"class_counts": [0] * 10, "allow_empty_classes": True}, "positive sum"),
        ({"class_counts": [1.5] * 10}, "class_counts"),
    ],
)
def test_bad_fields_raise(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        CPEConfig(**{"num_labels": 10, **fields})


def test_empty_classes_are_named():
    names = {0: "cat", 1: "dog", 2: "cow"}
    with pytest.raises(StrictDataclassError, match="is 0 for dog, cow"):
        CPEConfig(id2label=names, class_counts=[3, 0, 0])
    CPEConfig(id2label=names, class_counts=[3, 0, 0], allow_empty_classes=True)


def test_an_unknown_backbone_raises():
    with pytest.raises(ValueError, match="`model_type`.*'resnut'"):
        CPEConfig(backbone_config={"model_type": "resnut"})
