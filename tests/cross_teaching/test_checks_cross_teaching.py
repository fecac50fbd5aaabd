# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What is seen to before a training begins or goes on."""

import pytest
from trainer_cross_teaching import DETECTOR, make_model, make_trainer

from hf_methods import CrossTeachingConfig, CrossTeachingModel, CrossTeachingTrainer, CrossTeachingTrainingArguments
from hf_methods.cross_teaching import checks_cross_teaching
from hf_methods.cross_teaching.data_cross_teaching import drop_labels
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(max_steps=-1), "`max_steps` must be given"),
        (dict(max_steps=2), "`max_steps` must be above `burn_in_steps`, got 2 and 2"),
        (dict(model=None), "must be a CrossTeachingModel, got NoneType"),
        (dict(train_sampling_strategy="random"), "`train_sampling_strategy` must be 'sequential', got 'random'"),
        (dict(unlabeled_ratio=0), "`unlabeled_ratio` must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message, scenes, tmp_path):
    model = change.pop("model", make_model())
    settings = {"max_steps": 6, "use_cpu": True, "report_to": "none", **change}
    with pytest.raises((ValueError, TypeError), match=message):
        CrossTeachingTrainer(model, CrossTeachingTrainingArguments(output_dir=str(tmp_path), **settings), *scenes)


def test_data_that_does_not_fit_is_refused(scenes, tmp_path):
    labeled, unlabeled, evaluated = scenes
    with pytest.raises(ValueError, match="arm='ct' needs an `unlabeled_dataset`; use arm='sup'"):
        make_trainer(tmp_path, (labeled, None, evaluated))
    with pytest.raises(ValueError, match="`labeled_dataset` has no labelled image"):
        make_trainer(tmp_path, (drop_labels(labeled), unlabeled, evaluated))
    with pytest.raises(ValueError, match="`eval_dataset` has the labels 0, 1, but the model has LABEL_0"):
        make_trainer(tmp_path, (labeled, unlabeled, make_digit_scenes("test", 2, num_labels=2)))
    named = CrossTeachingModel(
        CrossTeachingConfig(
            detector={**DETECTOR, "id2label": dict(enumerate("abcde")), "label2id": {}}, burn_in_steps=1
        )
    )
    with pytest.raises(ValueError, match="the labels 0, 1, 2, 3, 4, but the model has a, b, c, d, e"):
        make_trainer(tmp_path, scenes, named)
    assert make_trainer(tmp_path, (labeled, None, evaluated), make_model(arm="sup")).train_dataset.unlabeled is None


def test_what_is_odd_but_possible_is_warned_of(scenes, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(checks_cross_teaching.logger, "warning", warned.append)
    make_trainer(tmp_path, (scenes[0], scenes[2], scenes[2]))
    make_trainer(tmp_path, scenes, make_model(num_detectors=1))
    assert "5 images of `unlabeled_dataset` are in `eval_dataset` too" in warned[0]
    assert "arm='ct' with one detector is arm='self'" in warned[1] and len(warned) == 2


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(CrossTeachingTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs in one process .*accelerate launch"):
        CrossTeachingTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True)


def test_shards_are_refused(scenes, tmp_path, monkeypatch):
    """A launcher's configuration reaches the accelerator past the arguments."""
    real = CrossTeachingTrainer.create_accelerator_and_postprocess

    def launched(self):
        real(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(CrossTeachingTrainer, "create_accelerator_and_postprocess", launched)
    with pytest.raises(ValueError, match="train with DDP, not with FSDP"):
        make_trainer(tmp_path, scenes)
