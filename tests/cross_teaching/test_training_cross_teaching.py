# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Burn-in, ramp and teachers step by step, exact resume, and evaluation."""

import copy
import math
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from trainer_cross_teaching import DETECTOR, make_model, make_trainer
from transformers import AutoModelForObjectDetection, DetrConfig, ResNetConfig, TrainerCallback

from hf_methods import CrossTeachingConfig, CrossTeachingModel, CrossTeachingTrainer, CrossTeachingTrainingArguments
from hf_methods.cross_teaching import training_cross_teaching
from hf_methods.cross_teaching.arguments_cross_teaching import ramp_weight
from hf_methods.cross_teaching.evaluation_cross_teaching import average_precisions, detect
from hf_methods.cross_teaching.training_cross_teaching import default_views


def test_the_ramp_is_the_published_one():
    config = CrossTeachingConfig(detector=dict(DETECTOR))
    assert config.ramp == "ssd"
    expected = {
        0: 0,
        12_000: 0.1418,
        16_000: 0.2865,
        24_000: 0.7316,
        32_000: 1,
        100_000: 1,
        110_000: 0.0439,
        120_000: 0,
    }
    for step, weight in expected.items():
        assert ramp_weight(step, config, 120_000) == pytest.approx(weight, abs=5e-5)
    linear = CrossTeachingConfig(detector=dict(DETECTOR), ramp="linear", ramp_start=10, ramp_steps=20)
    assert [ramp_weight(step, linear, 100) for step in (0, 10, 15, 30, 99)] == [0, 0, 0.25, 1, 1]
    assert ramp_weight(0, CrossTeachingConfig(detector=dict(DETECTOR), ramp="none"), 100) == 1


@pytest.mark.parametrize(
    ("optim", "steps"), [("sgd", (1, 2)), ("adamw_torch", (4,))]
)  # in burn-in, its end, behind it
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(optim, steps, scenes, tmp_path):
    whole = make_trainer(tmp_path, scenes, save_strategy="steps", save_steps=1, optim=optim)
    whole.train()
    state = whole.model.state_dict()
    for step in steps:
        resumed = make_trainer(tmp_path, scenes, optim=optim)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        halfway = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())
        for group in ("students", "teachers"):
            name = f"{group}.0.detector.backbone.stem.0.0.weight"
            assert not torch.equal(halfway[name], state[name])


def test_a_run_of_another_configuration_seed_or_data_does_not_go_on(scenes, tmp_path):
    make_trainer(tmp_path, scenes, max_steps=3, save_strategy="steps", save_steps=3).train()
    checkpoint = str(tmp_path / "checkpoint-3")
    others = {
        "seed: 42 then, 1 now": dict(seed=1, max_steps=3),
        "max_steps: 3 then, 6 now": dict(),
        "samples_per_step: 2 then, 4 now": dict(per_device_train_batch_size=4, max_steps=3),
        "rule: 'crossrectify_voc' then, 'ct_v1' now": dict(model=make_model(rule="ct_v1"), max_steps=3),
        "num_detectors: 2 then, 3 now": dict(model=make_model(num_detectors=3), max_steps=3),
    }
    for message, options in others.items():
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, scenes, **options).train(resume_from_checkpoint=checkpoint)


class Recorder(TrainerCallback):
    def __init__(self, trainer):
        self.trainer, self.equal, self.logs = trainer, [], []

    def on_step_end(self, args, state, control, **kwargs):
        students, teachers = (
            list(group.parameters()) for group in (self.trainer.model.students, self.trainer.model.teachers)
        )
        self.equal.append(all(torch.equal(a, b) for a, b in zip(students, teachers)))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_pseudo_labels_begin_behind_the_burn_in_with_teachers_that_are_copies(scenes, tmp_path):
    trainer = make_trainer(tmp_path, scenes, measure_pseudo_labels=True)
    recorder = Recorder(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    assert recorder.equal == [False, True, False, False, False, False]
    steps = [logs for logs in recorder.logs if "loss" in logs]
    assert ["loss_unsup_0" in logs for logs in steps] == [False, False, True, True, True, True]
    assert all({"pseudo_1", "loss_sup_1", "precision_own_0"} <= logs.keys() for logs in steps[2:])
    assert all(math.isfinite(value) for logs in steps for value in logs.values())


def test_teachers_move_once_an_optimizer_step_and_at_the_interval(scenes, tmp_path, monkeypatch):
    for options, interval, expected in ((dict(gradient_accumulation_steps=2), 1, 6), ({}, 3, 2)):
        trainer = make_trainer(tmp_path, scenes, make_model(ema_interval=interval, burn_in_steps=0), **options)
        moves = []
        monkeypatch.setattr(trainer.model, "update_teachers", lambda decay=None, moves=moves: moves.append(decay))
        trainer.train()
        assert moves[0] == 0.0 and moves[1:] == [None] * expected  # copies first


def test_teachers_stay_where_the_scaler_left_out_a_step(scenes, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, scenes, make_model(burn_in_steps=0), max_steps=3)
    moves = []
    monkeypatch.setattr(trainer.model, "update_teachers", lambda decay=None: moves.append(decay))
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", property(lambda self: True))
    trainer.train()
    assert moves == [0.0]  # the copies of the beginning


def test_sets_smaller_than_a_batch_are_sampled_again(scenes, tmp_path):
    labeled, unlabeled, evaluated = scenes
    few = (labeled.select([0]), unlabeled.select([0, 1]), evaluated)
    trainer = make_trainer(tmp_path, few, max_steps=3, per_device_train_batch_size=4)
    assert trainer.train().global_step == 3
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["labeled"][0]["pixel_values"]) == 4 == len(batch["unlabeled"][1]["strong"])


def test_a_step_without_finite_gradients_changes_nothing_and_is_named(scenes, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, scenes, max_steps=3)
    forward, warned, states = trainer.model.forward, [], []

    def broken(**inputs):
        output = forward(**inputs)
        states.append({name: value.clone() for name, value in trainer.model.named_parameters()})
        if len(states) == 2:
            output.logs["loss_sup_1"] = output.logs["loss_sup_1"] * math.nan
            output.loss = output.loss * math.nan
        return output

    monkeypatch.setattr(trainer.model, "forward", broken)
    monkeypatch.setattr(training_cross_teaching.logger, "warning", warned.append)
    trainer.train()
    assert all(torch.equal(value, states[2][name]) for name, value in states[1].items())
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert trainer.num_skipped_steps == 1 and "step 1: gradients are not finite (loss_sup_1)" in " ".join(warned)
    assert all(value.isfinite().all() for value in trainer.model.parameters())


def test_pseudo_labels_that_are_few_or_run_away_are_warned_of(scenes, tmp_path, monkeypatch):
    trainer, warned = make_trainer(tmp_path, scenes), []
    monkeypatch.setattr(training_cross_teaching.logger, "warning_once", warned.append)

    def log(pseudo, objects):
        for number, (of_pseudo, of_objects) in enumerate(zip(pseudo, objects)):
            trainer._sums[f"objects_{number}"] = [torch.tensor(value) for value in of_objects]
            if of_pseudo is not None:
                trainer._sums[f"pseudo_{number}"] = [torch.tensor(value) for value in of_pseudo]
        warned.clear()
        trainer.log({"loss": 1.0})
        return list(warned)

    # the mean of the steps counts, and of scenes with few objects three labels are still usual
    assert log([[0.0, 12.0], [3.0, 3.0]], [[1.0, 3.0], [0.0, 0.2]]) == []
    (message,) = log([[4.0, 9.0], [3.0]], [[1.0, 3.0], [2.0]])
    assert message.startswith("6.5 pseudo labels an image (pseudo_0), but 2.0 objects in a labelled one")
    assert "`strong_on_labeled=True`" in message
    (message,) = log([[3.1], [2.0]], [[0.0], [2.0]])
    assert message.startswith("3.1 pseudo labels an image (pseudo_0), but 0.0 objects")
    (message,) = log([[1.0], [0.0, 0.08]], [[2.0], [2.0]])
    assert message.startswith("fewer than 0.05 pseudo labels an image (pseudo_1)")
    assert log([None, None], [[2.0], [2.0]]) == []  # in burn-in


def test_a_labelled_images_objects_are_counted_for_the_warning(scenes, tmp_path):
    trainer = make_trainer(tmp_path, scenes)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    counts = trainer._count_objects(batch["labeled"])
    for number in (0, 1):
        boxes = [len(trainer.train_dataset[i]["labeled"][number]["boxes"]) for i in (0, 1)]
        assert counts[f"objects_{number}"] == sum(boxes) / 2 > 0


def test_evaluation_counts_every_image_once_and_names_every_detector(scenes, tmp_path):
    trainer = make_trainer(tmp_path, scenes)
    metrics = trainer.evaluate()
    assert metrics["eval_images"] == 5
    for name in ("student_0", "student_1", "teacher_0", "teacher_1", "ensemble"):
        assert all(0 <= metrics[f"eval_{name}_{key}"] <= 1 for key in ("map", "map_50", "map_75", "voc07_ap50"))
    students = [metrics[f"eval_student_{i}_map_50"] for i in (0, 1)]
    assert metrics["eval_map_50_mean"] == pytest.approx(sum(students) / 2)


def test_detections_of_the_truth_have_a_perfect_score(scenes):
    model = make_model()
    _, truths, num_bad = detect({"a": model.students[0]}, scenes[2], default_views(model), 2)
    found = [{**truth, "scores": torch.ones(len(truth["labels"]))} for truth in truths]
    assert num_bad == 0 and average_precisions(found, truths, 5) == dict(map=1, map_50=1, map_75=1, voc07_ap50=1)
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}]
    assert average_precisions(nothing * 5, truths, 5)["map"] == 0
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "ignore": torch.zeros(0).bool()}]
    assert average_precisions(nothing, empty, 5)["voc07_ap50"] == 0


def test_unreadable_images_of_the_evaluation_are_counted(scenes, tmp_path):
    rows = scenes[2].to_list()
    rows[2]["image"] = {"bytes": b"broken", "path": "broken.png"}
    broken = type(scenes[2]).from_list(rows, features=scenes[2].features)
    metrics = make_trainer(tmp_path, (*scenes[:2], broken)).evaluate()
    assert metrics["eval_images"] == 4 and metrics["eval_unreadable_images"] == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_of_the_training_are_counted_in_the_log(num_workers, scenes, tmp_path):
    rows = scenes[1].to_list()
    rows[2]["image"] = {"bytes": b"broken", "path": "broken.png"}
    broken = type(scenes[1]).from_list(rows, features=scenes[1].features)
    trainer = make_trainer(tmp_path, (scenes[0], broken, scenes[2]), dataloader_num_workers=num_workers)
    trainer.train()
    data = trainer.train_dataset
    expected = sum(data[i]["num_unreadable"] for i in range(len(data)))
    assert expected > 0 and max(logs.get("unreadable_images", 0) for logs in trainer.state.log_history) == expected


def test_bfloat16_trains_with_losses_in_float32(scenes, tmp_path):
    trainer = make_trainer(tmp_path, scenes, max_steps=3, bf16=True)
    before = trainer.model.students[0].detector.backbone.stem[0][0].weight.detach().clone()
    trainer.train()
    after = trainer.model.students[0].detector.backbone.stem[0][0].weight
    assert after.dtype == torch.float32 and after.isfinite().all() and not torch.equal(before, after)


def test_a_transformer_detector_trains_on_images_of_several_sizes(scenes, tmp_path):
    pytest.importorskip("scipy", reason="transformers' matcher needs scipy")
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    detector = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, backbone=None, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=10,
        num_labels=5,
    )  # fmt: skip
    model = CrossTeachingModel(CrossTeachingConfig(detector=detector, score_threshold=0.0, burn_in_steps=1))
    views = default_views(model)
    assert views.keep_aspect and (views.image_size, views.max_image_size) == (800, 1333)
    views = default_views(model, image_size=64, max_image_size=100, image_sizes=[48, 64])
    args = CrossTeachingTrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", logging_steps=1, learning_rate=1e-4,
    )  # fmt: skip
    trainer = CrossTeachingTrainer(model, args, *scenes, views=views)
    batches = [
        trainer.data_collator([trainer.train_dataset[2 * i], trainer.train_dataset[2 * i + 1]]) for i in range(4)
    ]
    assert any("pixel_mask" in batch["labeled"][0] for batch in batches)
    trainer.train()
    losses = [logs["loss_unsup_0"] for logs in trainer.state.log_history if "loss_unsup_0" in logs]
    assert len(losses) == 3 and all(loss > 0 for loss in losses) and trainer.evaluate()["eval_images"] == 5


def test_the_optimizer_decays_weights_and_neither_biases_nor_norms(scenes, tmp_path):
    trainer = make_trainer(tmp_path, scenes, lr_milestones=[2, 4], learning_rate=0.1)
    trainer.create_optimizer_and_scheduler(6)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0] * 2 and groups[0]["momentum"] == 0.9
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in trainer.model.students.parameters()}
    rates = []
    for _ in range(6):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_saving_that_is_broken_off_leaves_the_old_model(scenes, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, scenes)
    trainer.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    trainer.model.update_teachers(0.5)

    def broken_off(folder, *args, **kwargs):
        Path(folder).mkdir(parents=True)
        Path(folder, "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_save", broken_off)
        with pytest.raises(OSError, match="disk full"):
            trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    trainer.save_model()
    assert CrossTeachingModel.from_pretrained(tmp_path).config.num_detectors == 2


def test_the_hub_gets_all_detectors_and_nothing_of_the_optimizer(scenes, tmp_path, hub):
    trainer = make_trainer(
        tmp_path / "run", scenes, max_steps=3, save_strategy="steps", save_steps=3, hub_model_id="tester/ct-run"
    )
    trainer.train()
    assert (tmp_path / "run" / "checkpoint-3" / "optimizer.pt").is_file()
    trainer.push_to_hub()
    files = HfApi().list_repo_files("tester/ct-run")
    assert {"config.json", "model.safetensors", "modeling_cross_teaching.py", "box_step_cross_teaching.py"} <= {*files}
    assert not [file for file in files if "checkpoint" in file or file.endswith((".pt", ".pth"))]
    again = CrossTeachingModel.from_pretrained("tester/ct-run", cache_dir=tmp_path / "cache")
    state = trainer.model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    again.export_detector(1).push_to_hub("tester/ct-one")
    one = AutoModelForObjectDetection.from_pretrained("tester/ct-one", cache_dir=tmp_path / "cache")
    of_teacher = trainer.model.teachers[1].state_dict()
    assert all(torch.equal(value, of_teacher[name]) for name, value in one.state_dict().items())


@pytest.mark.slow
def test_the_jitter_is_the_same_when_a_run_goes_on_and_with_workers(scenes, tmp_path):
    detector = dict(DETECTOR, architecture="fasterrcnn_mobilenet_v3_large_320_fpn", image_size=64, score_threshold=0.0)
    config = CrossTeachingConfig(
        detector={**detector, "max_detections": 4, "pre_nms_topk": 20}, score_threshold=0.1, max_box_uncertainty=0.05,
        unsup_box_loss="uncertainty", rule="crossrectify_coco", shared_unlabeled_batch=True,
    )  # fmt: skip

    def train(checkpoint=None, **options):
        trainer = make_trainer(tmp_path, scenes, CrossTeachingModel(copy.deepcopy(config)), max_steps=3, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        figures = [logs for logs in trainer.state.log_history if "loss_unsup_0" in logs]
        return trainer.model.state_dict(), [(logs["loss_unsup_0"], logs["certain_0"]) for logs in figures]

    state, figures = train(save_strategy="steps", save_steps=2)
    assert len(figures) == 3 and any(0 < certain < 4 for _, certain in figures)
    for options in (dict(checkpoint=str(tmp_path / "checkpoint-2")), dict(dataloader_num_workers=2)):
        again, others = train(**options)
        assert others[-1] == figures[-1] and all(torch.equal(value, state[name]) for name, value in again.items())
