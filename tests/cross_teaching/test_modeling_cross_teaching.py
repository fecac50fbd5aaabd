# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The losses of a step against the formulas of the paper's code, teachers, and every kind of detector."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from steps_cross_teaching import SIZE, TINY, frozen_norms, iou, make, make_batch, sharpen
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForObjectDetection,
)

from hf_methods import (
    CrossTeachingConfig,
    CrossTeachingModel,
    TorchvisionDetectorConfig,
    TorchvisionDetectorForObjectDetection,
)
from hf_methods.cross_teaching import modeling_cross_teaching
from hf_methods.cross_teaching.detections_cross_teaching import PaddedDetections, pad_detections
from hf_methods.cross_teaching.pseudo_labels_cross_teaching import count_right


def test_the_anchor_mode_is_the_published_formula():
    model = frozen_norms(sharpen(make(score_threshold=0.5)))
    model.copy_to_teachers()
    labeled, unlabeled = make_batch()
    output = model(labeled, unlabeled, unsup_weight=0.7)
    expected = 0.0
    for i in (0, 1):
        student, teacher = model.students[i], model.teachers[1 - i]
        images = torch.cat([labeled[i]["pixel_values"], unlabeled[i]["strong"]])
        logits, offsets, anchors = student.ssd_heads(student.extract_features(images), (SIZE, SIZE))
        targets = student.prepare_targets(labeled[i]["labels"], (SIZE, SIZE))
        losses = student.ssd_losses(logits[:2], offsets[:2], anchors, targets)
        with torch.no_grad():
            peer_logits, peer_offsets, _ = teacher.ssd_heads(
                teacher.extract_features(unlabeled[i]["strong"]), (SIZE, SIZE)
            )
        loss_cls, loss_box, count = 0.0, 0.0, 0
        for b in range(3):
            p, q = logits[2 + b].detach().softmax(-1), peer_logits[b].softmax(-1)
            boxes = student.decode(offsets[2 + b : 3 + b].detach(), anchors, (SIZE, SIZE))[0].tolist()
            foreground = p[:, 1:].amax(1)
            kept = []
            for a in foreground.argsort(descending=True)[:20].tolist():
                if foreground[a] > 0.5 and all(iou(boxes[a], boxes[k]) <= 0.5 for k in kept):
                    kept.append(a)
            for a in kept:
                label = p[a].argmax() if p[a].max() > q[a].max() else q[a].argmax()
                loss_cls = loss_cls + F.cross_entropy(logits[2 + b, a], label)
                loss_box = loss_box + (offsets[2 + b, a] - peer_offsets[b, a]).square().mean()
            count += len(kept)
        assert count > 3
        expected = expected + sum(losses.values()) + 0.7 * (loss_cls + loss_box) / count
        torch.testing.assert_close(output.logs[f"pseudo_{i}"], torch.tensor(count / 3))
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("mode", ["anchor", "box"])
def test_with_the_own_prediction_as_the_peers_cross_teaching_is_self_labelling(mode):
    batch = make_batch()
    seen = {}
    for arm in ("self", "ct", "mutual"):
        model = sharpen(make(arm=arm, mode=mode, own_source="ema", seeds=[0, 0], score_threshold=0.5), 200)
        model.copy_to_teachers()
        seen[arm] = model(*batch, unsup_weight=1.0)
    torch.testing.assert_close(seen["ct"].loss, seen["mutual"].loss)
    names = {name for name in seen["self"].logs if not name.startswith("changed")}
    assert seen["self"].logs["pseudo_0"] > 0
    for name in names:
        if mode == "box" or not name.startswith("loss_unsup"):
            torch.testing.assert_close(seen["self"].logs[name], seen["ct"].logs[name])
    # in anchor mode both pull to the EMA's own offsets
    torch.testing.assert_close(seen["self"].logs["loss_unsup_0"], seen["ct"].logs["loss_unsup_0"])


@pytest.mark.parametrize("mode", ["anchor", "box"])
@pytest.mark.parametrize("arm", ["sup", "self", "mutual", "ct"])
def test_every_arm_trains_every_student_and_no_teacher(mode, arm):
    model = sharpen(make(arm=arm, mode=mode, num_detectors=3, seeds=[0, 1, 2]))
    model.copy_to_teachers()
    output = model(*make_batch(3), unsup_weight=1.0)
    output.loss.backward()
    assert output.loss.isfinite() and all(p.grad is not None for p in model.students.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.teachers.parameters())
    assert ("loss_unsup_0" in output.logs) == (arm != "sup")
    assert not any(teacher.training for teacher in model.teachers) and all(s.training for s in model.students)


@pytest.mark.parametrize("mode", ["anchor", "box"])
def test_without_pseudo_labels_the_unsupervised_loss_is_zero_and_gradients_are_those_of_the_labels(mode):
    labeled, unlabeled = make_batch()
    model = frozen_norms(make(mode=mode, score_threshold=1.0))
    output = model(labeled, unlabeled, unsup_weight=1.0)
    assert output.logs["loss_unsup_0"] == 0 and output.logs["pseudo_0"] == 0
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.students.parameters())


def test_a_shared_unlabelled_batch_gives_what_equal_batches_give():
    labeled, unlabeled = make_batch(shared=True)
    model = frozen_norms(sharpen(make()))
    model.copy_to_teachers()
    shared = model(labeled, unlabeled, unsup_weight=1.0).loss
    torch.testing.assert_close(model(labeled, unlabeled * 2, unsup_weight=1.0).loss, shared)


def test_pseudo_boxes_go_through_the_views_and_those_that_leave_them_are_dropped(monkeypatch):
    model = make(mode="box", rule="ct_v1")
    _, unlabeled = make_batch(num_unlabeled=2)
    # the strong view is mirrored and shifted by 10 pixels
    unlabeled[0]["weak_to_strong"] = torch.tensor([[-1.0, 74, 1, 0]]).repeat(2, 1)
    rows = {
        0: [(10, 10, 30, 30, 0.8, 0), (0, 0, 9, 9, 0.9, 1)],
        1: [(10, 10, 30, 32, 0.9, 2), (0, 0, 9, 9, 0.5, 2)],
    }

    def predict(detector, pixel_values, pixel_mask, threshold):
        assert pixel_values is unlabeled[0]["weak"] and threshold == 0.3
        number = [teacher is detector for teacher in model.teachers].index(True)
        values = torch.tensor(rows[number])
        image = {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}
        nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
        return pad_detections([image, nothing])

    monkeypatch.setattr(model, "predict", predict)
    logs = {}
    targets = model._pseudo_boxes(0, unlabeled[0], logs, {})
    # the peer's box is more confident in the first, and the second leaves the view
    assert targets[0]["boxes"].tolist() == [[44, 10, 64, 32]] and targets[0]["labels"].tolist() == [2]
    assert len(targets[1]["labels"]) == 0
    assert logs["changed_0"] == 0.5 and logs["pseudo_0"] == 1


@pytest.mark.parametrize(
    ("rule", "dropped", "added"), [("ct_v1", 1, 0), ("crossrectify_voc", 1, 2), ("crossrectify_coco", 0, 0)]
)
def test_what_is_left_out_dropped_and_added_is_in_the_log(rule, dropped, added, monkeypatch):
    model = make(mode="box", rule=rule)
    _, unlabeled = make_batch(num_unlabeled=2)
    rows = {  # a common object, an own one, two of the peer, and four that are no boxes
        0: [(10, 10, 30, 30, 0.8, 0), (40, 40, 60, 60, 0.9, 1), (5, 5, 5, 9, 0.9, 1)],
        1: [(10, 10, 30, 32, 0.9, 2), (0, 40, 9, 60, 0.5, 2), (40, 0, 60, 9, 0.5, 2), (9, 5, 5, 9, 0.9, 1),
            (5, 5, math.nan, 9, 0.9, 1), (5, 5, 9, 9, math.inf, 1)],
    }  # fmt: skip

    def predict(detector, pixel_values, pixel_mask, threshold):
        values = torch.tensor(rows[[teacher is detector for teacher in model.teachers].index(True)])
        images = [{"boxes": of[:, :4], "scores": of[:, 4], "labels": of[:, 5].long()} for of in (values, values[:0])]
        return pad_detections(images)

    monkeypatch.setattr(model, "predict", predict)
    logs = {}
    model._pseudo_boxes(0, unlabeled[0], logs, {})
    assert [logs[f"{name}_0"] for name in ("unsound", "dropped", "added")] == [4 / 2, dropped / 2, added / 2]
    assert logs["pseudo_0"] == (2 - dropped + added) / 2


@pytest.mark.parametrize("mode", ["anchor", "box"])
def test_a_single_detector_teaches_itself_in_every_arm(mode):
    labeled, unlabeled = make_batch(1)
    losses = []
    for arm in ("self", "ct", "mutual"):
        model = frozen_norms(sharpen(make(arm=arm, mode=mode, num_detectors=1, score_threshold=0.5), 200))
        model.copy_to_teachers()
        output = model(labeled, unlabeled, unsup_weight=1.0)
        assert output.logs["pseudo_0"] > 0
        losses.append(output.loss)
    assert losses[0] == losses[1] == losses[2]


def test_precision_counts_right_labels_at_half_overlap_and_empty_background():
    truth = PaddedDetections(
        torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]]]), torch.ones(1, 2), torch.tensor([[1, 0]]),
        torch.tensor([[True, False]]),
    )  # fmt: skip
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3 + [[20, 20, 30, 30]] * 2 + [[0, 0, 10, 5]]])
    labels = torch.tensor([[1, 0, -1, 1, -1, 1]])  # right, wrong, wrong, wrong, right, right
    assert count_right(boxes, labels, torch.ones(1, 6, dtype=torch.bool), truth) == 3
    valid = torch.tensor([[True, False, False, False, False, False]])
    assert count_right(boxes, labels, valid, truth) == 1
    assert count_right(boxes, labels, torch.zeros(1, 6, dtype=torch.bool), truth) == 0


def test_right_pseudo_labels_are_counted_where_the_truth_is_given():
    model = sharpen(make())
    labeled, unlabeled = make_batch()
    for batch in unlabeled:
        batch["truth"] = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * 3
    logs = model(labeled, unlabeled, unsup_weight=1.0).logs
    assert logs["right_own_0"] == 0 < logs["used_own_0"] == logs["used_0"] >= logs["right_0"]


@pytest.mark.parametrize("ema_buffers", [True, False])
def test_teachers_are_the_average_of_their_students(ema_buffers):
    model = make(ema_decay=0.9, ema_buffers=ema_buffers)
    model.copy_to_teachers()
    before = {name: value.clone() for name, value in model.teachers.state_dict().items()}
    with torch.no_grad():
        for parameter in model.students.parameters():
            parameter.add_(1.0)
        model.students[0].detector.backbone.stem[0][1].running_mean.add_(1.0)
        model.students[0].detector.backbone.stem[0][1].num_batches_tracked.add_(3)
    model.update_teachers()
    students = model.students.state_dict()
    for name, teacher in model.teachers.state_dict().items():
        is_buffer = "running" in name or "num_batches" in name
        averaged = teacher.is_floating_point() and (ema_buffers or not is_buffer)
        expected = 0.9 * before[name] + 0.1 * students[name] if averaged else students[name]
        torch.testing.assert_close(teacher, expected, msg=name)


def test_students_differ_and_their_seeds_say_how():
    weights = [make(seeds=seeds).students[1].detector.head.state_dict() for seeds in ([0, 1], [5, 1], [0, 2])]
    first = [next(iter(state.values())) for state in weights]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert make(seeds=[3, 3]).warn_if_alike() and not make().warn_if_alike()
    state = torch.get_rng_state()
    make()
    assert torch.equal(state, torch.get_rng_state())  # building draws from nobody's random numbers


def test_a_saved_model_comes_back_whole_and_gives_ordinary_detectors(tmp_path):
    model = make()
    with torch.no_grad():
        for parameter in model.students.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "ct")
    again = AutoModel.from_pretrained(tmp_path / "ct")
    assert type(again) is CrossTeachingModel and type(again.config.detector) is TorchvisionDetectorConfig
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert again.config.to_dict() == AutoModel.from_pretrained(tmp_path / "ct").config.to_dict()
    images = torch.randn(1, 3, SIZE, SIZE)
    for ema, source in ((True, model.teachers), (False, model.students)):
        again.export_detector(1, ema=ema).save_pretrained(tmp_path / "one")
        one = AutoModelForObjectDetection.from_pretrained(tmp_path / "one")
        assert type(one) is TorchvisionDetectorForObjectDetection and one.config.num_labels == 3
        with torch.no_grad():
            torch.testing.assert_close(one(images).logits, source[1].eval()(images).logits)
    assert all(parameter.requires_grad for parameter in again.export_detector(1).parameters())
    with pytest.raises(ValueError, match="`index` must be between 0 and 1, got 2"):
        model.export_detector(2)


def test_loading_several_detectors_as_one_says_how_to_get_one(tmp_path):
    make().save_pretrained(tmp_path)
    for load in (AutoModelForObjectDetection.from_pretrained, TorchvisionDetectorForObjectDetection.from_pretrained):
        with pytest.raises(ValueError, match=r"CrossTeachingModel\.from_pretrained\(path\)\.export_detector\(0\)"):
            load(tmp_path)


def test_detectors_of_a_burn_in_become_students(tmp_path):
    detectors = [make().export_detector(i, ema=False) for i in (0, 1)]
    detectors[1].save_pretrained(tmp_path)
    model = CrossTeachingModel.from_detectors([detectors[0], str(tmp_path)], arm="mutual")
    assert model.config.arm == "mutual" and model.config.num_detectors == 2
    for group in (model.students, model.teachers):
        for detector, own in zip(group, detectors):
            assert all(torch.equal(a, b) for a, b in zip(detector.state_dict().values(), own.state_dict().values()))
    other = TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(architecture="ssd_tiny", num_labels=4))
    with pytest.raises(ValueError, match="detectors 0 and 1 must have one configuration, but differ in id2label"):
        CrossTeachingModel.from_detectors([detectors[0], other])
    large = dict(architecture="ssd_tiny", num_labels=3, image_size=96)
    with pytest.raises(ValueError, match="differ in image_size: 64 and 96"):
        CrossTeachingModel.from_detectors(
            [detectors[0], TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(**large))]
        )
    with pytest.raises(ValueError, match="at least one detector"):
        CrossTeachingModel.from_detectors([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_detectors=0), "`num_detectors` must be at least 1, got 0"),
        (dict(seeds=[1]), "`seeds` must have 2, one a detector, got 1"),
        (dict(arm="all"), "`arm` must be one of sup, self, mutual, ct, got 'all'"),
        (dict(rule="ssd_anchor"), "`rule` must be one of ct_v1"),
        (dict(mode="anchor", unsup_box_loss="full"), "`unsup_box_loss` must be one of peer, winner, none"),
        (dict(mode="box", unsup_box_loss="peer"), "`unsup_box_loss` must be one of none, full, uncertainty"),
        (dict(ema_interval=0), "`ema_interval` must be at least 1, got 0"),
        (dict(mode="box", rectified_threshold=2.0), "`rectified_threshold` must be between 0 and 1"),
        (dict(rectified_threshold=0.9), "`rectified_threshold` is for mode='box'"),
        (dict(ema_decay=1.5), "`ema_decay` must be between 0 and 1"),
        (dict(detector={"architecture": "ssd_tiny"}), "`detector` must name its `model_type`"),
        (
            dict(mode="anchor", detector={**TINY, "architecture": "fasterrcnn_resnet50_fpn"}),
            "`mode='anchor'` is SSD's",
        ),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CrossTeachingConfig(**{"detector": dict(TINY), **options})


def test_rectified_labels_below_a_score_are_not_trained_on(monkeypatch):
    model = make(mode="box", rule="crossrectify_coco", rectified_threshold=0.9)
    _, unlabeled = make_batch(num_unlabeled=1)
    rows = {
        0: [(10, 10, 30, 30, 0.8, 0), (40, 40, 60, 60, 0.85, 1), (0, 40, 20, 60, 0.9, 1)],
        1: [(10, 10, 30, 32, 0.95, 2)],  # lifts the first box over the score; the third is at it
    }

    def predict(detector, pixel_values, pixel_mask, threshold):
        values = torch.tensor(rows[[teacher is detector for teacher in model.teachers].index(True)])
        return pad_detections([{"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}])

    monkeypatch.setattr(model, "predict", predict)
    (target,) = model._pseudo_boxes(0, unlabeled[0], {}, {})
    assert target["boxes"].tolist() == [[10, 10, 30, 32]] and target["labels"].tolist() == [2]


@pytest.mark.slow
def test_compiled_students_give_the_same_losses_and_gradients():
    model = sharpen(make())
    labeled, unlabeled = make_batch()
    plain = model(labeled, unlabeled, unsup_weight=1.0)
    plain.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.students.parameters()]
    model.zero_grad()
    for student in model.students:
        for norm in student.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                assert norm.training  # batch statistics: the running ones, which moved, are not used
        student.detector.backbone.compile(backend="eager")
        student.detector.head.compile(backend="eager")
    again = model(labeled, unlabeled, unsup_weight=1.0)
    again.loss.backward()
    torch.testing.assert_close(again.loss, plain.loss)
    for parameter, gradient in zip(model.students.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_that_moved_to_another_device_finds_its_anchors_there():
    model = sharpen(make())
    labeled, unlabeled = make_batch()
    before = model(labeled, unlabeled, unsup_weight=1.0).loss
    model.cuda()

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.cuda()
        return {k: move(v) for k, v in value.items()} if isinstance(value, dict) else [move(v) for v in value]

    after = model(move(labeled), move(unlabeled), unsup_weight=1.0).loss
    torch.testing.assert_close(after.cpu(), before, rtol=1e-3, atol=1e-3)


def test_equal_initial_weights_are_warned_of(monkeypatch):
    warned = []
    monkeypatch.setattr(modeling_cross_teaching.logger, "warning", warned.append)
    assert not make().warn_if_alike() and warned == []
    assert make(seeds=[3, 3]).warn_if_alike() and "start from the same weights" in warned[0]


def test_batches_for_another_number_of_students_are_refused():
    labeled, unlabeled = make_batch(3)
    with pytest.raises(ValueError, match="2 students need 2 labelled and 2 .* got 3 and 3"):
        make()(labeled, unlabeled)
