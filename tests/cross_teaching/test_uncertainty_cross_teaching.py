# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The uncertainty of boxes and the losses that use it against plain loops in float64, box by box and region by region."""

import copy
import math
import statistics

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from hf_methods import CrossTeachingConfig, CrossTeachingModel, TorchvisionDetectorConfig
from hf_methods import TorchvisionDetectorForObjectDetection as Detector
from hf_methods.cross_teaching.detections_cross_teaching import (
    PaddedDetections,
    inverse_map,
    map_boxes,
    pad_detections,
    stack_detections,
)
from hf_methods.cross_teaching.rectification_cross_teaching import BOX_RULES, label_rectification
from hf_methods.cross_teaching.uncertainty_cross_teaching import (
    box_uncertainty,
    rectified_uncertainty,
    uncertainty_losses,
)


SIZE = 64
FASTER = dict(
    architecture="fasterrcnn_mobilenet_v3_large_320_fpn", num_labels=3, image_size=SIZE, score_threshold=0.0,
    max_detections=4, pre_nms_topk=20,
)  # fmt: skip


def with_small_heads(model):
    """Its second stage with 16 hidden units in place of 1024, and sure of something."""
    heads = model.detector.roi_heads
    heads.box_head, heads.box_predictor = TwoMLPHead(256 * 49, 16), FastRCNNPredictor(16, 4)
    with torch.no_grad():
        for parameter in heads.box_predictor.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def faster():
    torch.manual_seed(0)
    return with_small_heads(Detector(TorchvisionDetectorConfig(**FASTER))).eval()


def images_of(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def features_of(model, images):
    """Feature maps with contrast: those of an untrained backbone in eval mode are next to nothing."""
    generator = torch.Generator().manual_seed(len(images))
    with torch.no_grad():
        maps = model.extract_features(images)
    return {name: torch.randn(of.shape, generator=generator) for name, of in maps.items()}


def detections_of(*rows):
    """Rows (x, y, x, y, label) of each image, without a score."""
    images = []
    for of_image in rows:
        values = torch.tensor(of_image, dtype=torch.float32).reshape(-1, 5)
        scores = torch.ones(len(values))
        images.append({"boxes": values[:, :4], "scores": scores, "labels": values[:, 4].long()})
    return pad_detections(images)[0]


class Region:
    """One region of one image through the second stage, in float64."""

    def __init__(self, model, features):
        self.heads = copy.deepcopy(model.detector.roi_heads).double()
        self.features = {name: maps.double() for name, maps in features.items()}

    def __call__(self, image, region):
        """Logits and, for each label from 1, the refined box; by the formulas of Faster R-CNN."""
        features = {name: maps[image : image + 1] for name, maps in self.features.items()}
        region = torch.tensor([region], dtype=torch.float64)
        pooled = self.heads.box_head(self.heads.box_roi_pool(features, [region], [(SIZE, SIZE)]))
        logits, offsets = (values[0].tolist() for values in self.heads.box_predictor(pooled))
        x1, y1, x2, y2 = region[0].tolist()
        boxes = []
        for start in range(0, len(offsets), 4):
            dx, dy, dw, dh = (value / weight for value, weight in zip(offsets[start : start + 4], (10, 10, 5, 5)))
            width, height = x2 - x1, y2 - y1
            x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
            width *= math.exp(min(dw, math.log(1000 / 16)))
            height *= math.exp(min(dh, math.log(1000 / 16)))
            boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        return logits, boxes


@torch.no_grad()
def test_uncertainty_is_the_deviation_of_the_refined_boxes_as_a_share_of_their_sides(faster):
    rows = (
        [(10, 12, 40, 50, 0), (0, 0, 20, 9, 2)],
        [],
        [(30, 5, 60, 30, 1), (50, 50, 50.4, 50.5, 1), (8, 8, 63, 63, 0)],
    )
    detections = detections_of(*rows)
    sizes = [(64, 64), (64, 64), (48, 56)]  # the last is padded
    features = features_of(faster, images_of(3))
    noise = torch.randn(10, *detections.boxes.shape, generator=torch.Generator().manual_seed(1))
    found = box_uncertainty(faster, features, sizes, detections, noise)
    region = Region(faster, features)
    for b, of_image in enumerate(rows):
        assert found[b, len(of_image) :].isinf().all() and found[b, : len(of_image)].isfinite().all()
        for n, (*box, label) in enumerate(of_image):
            sides = [max(1, box[2] - box[0]), max(1, box[3] - box[1])] * 2
            refined = []
            for shift in noise[:, b, n].tolist():
                jittered = [x + 0.06 * side * z for x, side, z in zip(box, sides, shift)]
                corners = region(b, jittered)[1][label + 1]
                height, width = sizes[b]
                limits = (width, height, width, height)
                refined.append([min(max(x, 0), limit) for x, limit in zip(corners, limits)])
            mean = [statistics.fmean(values) for values in zip(*refined)]
            sides = [max(1, mean[2] - mean[0]), max(1, mean[3] - mean[1])] * 2
            deviations = [statistics.stdev(values) / side for values, side in zip(zip(*refined), sides)]
            assert found[b, n].item() == pytest.approx(statistics.fmean(deviations), rel=1e-3)
    assert found[2, :3].unique().numel() == 3


@torch.no_grad()
def test_without_boxes_and_without_jitter_there_is_no_deviation(faster):
    features, sizes = features_of(faster, images_of(2)), [(64, 64)] * 2
    nothing = detections_of([], [])
    assert box_uncertainty(faster, features, sizes, nothing, torch.randn(10, 2, 0, 4)).shape == (2, 0)
    some = detections_of([(10, 10, 30, 30, 1)], [])
    still = box_uncertainty(faster, features, sizes, some, torch.zeros(10, 2, 1, 4))
    assert still[0, 0] < 1e-6 and still[1, 0].isinf()  # equal regions, in whichever order a product sums


def random_detections(generator, objects, count):
    """The first `count` of the objects, a little beside them."""
    boxes = objects[:, :count] + torch.rand(2, count, 4, generator=generator)
    scores = torch.rand(2, count, generator=generator)
    labels = torch.randint(0, 3, (2, count), generator=generator)
    return PaddedDetections(boxes, scores, labels, torch.rand(2, count, generator=generator) > 0.2)


@pytest.mark.parametrize("rule", BOX_RULES)
@pytest.mark.parametrize("num_peers", [1, 2])
def test_the_uncertainty_travels_with_its_box(rule, num_peers):
    generator = torch.Generator().manual_seed(num_peers)
    corners = 40 * torch.rand(2, 12, 2, generator=generator)
    objects = torch.cat([corners, corners + 15], -1)
    detectors = [random_detections(generator, objects, count) for count in (9, 12, 7)[: num_peers + 1]]
    uncertainties = [detector.boxes.sum(-1) for detector in detectors]  # which says whose it is
    rectified = label_rectification(detectors[0], stack_detections(detectors[1:]), **BOX_RULES[rule])
    found = rectified_uncertainty(rectified, uncertainties)
    assert rectified.valid.any() and (rectified.source[rectified.valid] > 0).any()
    assert torch.equal(found[rectified.valid], rectified.boxes.sum(-1)[rectified.valid])


def targets_of(*rows):
    """Rows (x, y, x, y, label from 1, confident, certain) of each image."""
    targets = []
    for of_image in rows:
        values = torch.tensor(of_image, dtype=torch.float32).reshape(-1, 7)
        fields = {"boxes": values[:, :4], "labels": values[:, 4].long()}
        targets.append({**fields, "confident": values[:, 5] > 0, "certain": values[:, 6] > 0})
    return targets


def as_background(regions):
    """A score that depends on where a region is."""
    return torch.cat([boxes[:, 0] / 100 + 0.1 for boxes in regions])


def losses_of(model, images, targets, features=None, score=as_background):
    features = model.extract_features(images) if features is None else features
    torch.manual_seed(3)
    batch = ImageList(images, [(SIZE, SIZE)] * len(images))
    return uncertainty_losses(model, features, batch, targets, score)


def test_each_loss_is_on_its_own_labels_with_weighted_background(faster):
    images = images_of(2)
    targets = targets_of(
        [(5, 5, 30, 30, 1, 1, 0), (30, 20, 60, 50, 3, 0, 1), (2, 40, 20, 60, 2, 1, 1)], [(8, 8, 40, 40, 2, 0, 1)]
    )
    features, detector = features_of(faster, images), faster.detector
    losses = losses_of(faster, images, targets, features)
    # what torchvision's parts sample from the same random numbers, and then a loop over the regions
    chosen = {
        which: [{name: target[name][target[which]] for name in ("boxes", "labels")} for target in targets]
        for which in ("confident", "certain")
    }
    torch.manual_seed(3)
    detector.rpn.training = True
    proposals, expected = detector.rpn(ImageList(images, [(SIZE, SIZE)] * 2), features, chosen["confident"])
    detector.rpn.training = False
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        torch.testing.assert_close(losses[name], expected[name])
    region, weights, entropies = Region(faster, features), [], []
    sampled, _, labels, _ = detector.roi_heads.select_training_samples(proposals, chosen["confident"])
    for b, (boxes, of_image) in enumerate(zip(sampled, labels)):
        for box, label in zip(boxes.tolist(), of_image.tolist()):
            logits, _ = region(b, box)
            entropies.append(math.log(sum(map(math.exp, logits))) - logits[label])
            weights.append(1.0 if label else box[0] / 100 + 0.1)
    assert {0, 1, 2} == {label for of_image in labels for label in of_image.tolist()}
    loss_cls = sum(w * x for w, x in zip(weights, entropies)) / sum(weights)
    assert losses["loss_classifier"].item() == pytest.approx(loss_cls, rel=1e-4)
    sampled, matched, labels, _ = detector.roi_heads.select_training_samples(proposals, chosen["certain"])
    loss_box, count = 0.0, 0
    for b, (boxes, of_image) in enumerate(zip(sampled, labels)):
        for row, (box, label) in enumerate(zip(boxes.tolist(), of_image.tolist())):
            count += 1
            if label:
                goal = chosen["certain"][b]["boxes"][matched[b][row]].tolist()
                loss_box += box_distance(region, b, box, label, goal)
    assert loss_box > 0 and losses["loss_box_reg"].item() == pytest.approx(loss_box / count, rel=1e-4)


def box_distance(region, image, box, label, goal):
    """Smooth L1 at 1/9 between the offsets that are predicted and those from the region to its object."""

    def offsets(to):
        width, height = box[2] - box[0], box[3] - box[1]
        return [
            10 * ((to[0] + to[2]) - (box[0] + box[2])) / 2 / width,
            10 * ((to[1] + to[3]) - (box[1] + box[3])) / 2 / height,
            5 * math.log((to[2] - to[0]) / width),
            5 * math.log((to[3] - to[1]) / height),
        ]

    distances = [abs(a - b) for a, b in zip(offsets(region(image, box)[1][label]), offsets(goal))]
    return sum(0.5 * x * x * 9 if x < 1 / 9 else x - 0.5 / 9 for x in distances)


def box_gradient(model):
    return model.detector.roi_heads.box_predictor.bbox_pred.weight.grad


def test_where_all_boxes_are_uncertain_their_loss_and_its_gradient_are_zero(faster):
    model = copy.deepcopy(faster).train()
    losses = losses_of(model, images_of(1), targets_of([(5, 5, 30, 30, 1, 1, 0), (30, 20, 60, 50, 3, 1, 0)]))
    assert losses["loss_box_reg"] == 0 < losses["loss_classifier"]
    sum(losses.values()).backward()
    assert box_gradient(model).count_nonzero() == 0
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.zero_grad()
    losses = losses_of(model, images_of(1), targets_of([(5, 5, 30, 30, 1, 0, 1), (30, 20, 60, 50, 3, 0, 0)]))
    sum(losses.values()).backward()
    gradient = box_gradient(model).view(4, 4, -1).abs().amax((1, 2))  # (label with the background, coordinates)
    assert gradient[1] > 0 and gradient[[0, 2, 3]].max() == 0


def test_background_that_no_teacher_believes_in_has_no_loss(faster):
    def nowhere(regions):
        return torch.zeros(sum(map(len, regions)))

    losses = losses_of(faster, images_of(1), targets_of([(5, 5, 30, 30, 1, 0, 1)]), score=nowhere)
    assert losses["loss_classifier"] == 0 < losses["loss_box_reg"]


def make(**options):
    options = {"score_threshold": 0.1, "unsup_box_loss": "uncertainty", "max_box_uncertainty": 10.0, **options}
    detector = {"model_type": "cross_teaching_detector", **FASTER}
    model = CrossTeachingModel(CrossTeachingConfig(detector=detector, **options))
    torch.manual_seed(0)
    for detector in [*model.students, *model.teachers]:
        with_small_heads(detector)
    model.copy_to_teachers()
    model.teachers.requires_grad_(False)
    return model.train()


def batch_of(shared=True, num_unlabeled=2):
    label = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
    labeled = [{"pixel_values": images_of(1, seed), "labels": [label]} for seed in (1, 2)]
    # strong views are mirrored, enlarged and shifted
    to_strong = torch.tensor([[-1.25, 75, 1, 4]]).repeat(num_unlabeled, 1)
    unlabeled = [
        {"weak": images_of(num_unlabeled, seed), "strong": images_of(num_unlabeled, seed), "weak_to_strong": to_strong}
        for seed in ((3,) if shared else (3, 4))
    ]
    return labeled, unlabeled


def test_a_step_passes_each_backbone_once_and_trains_on_what_is_certain():
    model = make()
    passes = {}
    for name, module in model.named_modules():
        if name.endswith("detector.backbone"):
            module.register_forward_hook(lambda *args, name=name: passes.update({name: passes.get(name, 0) + 1}))
    output = model(*batch_of(), unsup_weight=1.0)
    assert len(passes) == 4 and set(passes.values()) == {1}
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad is not None for parameter in model.students.parameters())
    assert 0 < output.logs["certain_0"] <= output.logs["pseudo_0"]  # nothing is above 10
    model.config.max_box_uncertainty = 1e-9
    assert model(*batch_of(), unsup_weight=1.0).logs["certain_0"] == 0


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
@pytest.mark.slow
def test_padded_images_of_another_size_train_in_half_precision(device):
    model = make().to(device)
    labeled, _ = batch_of()
    mask = torch.ones(2, 80, 96, dtype=torch.long)
    mask[0, :, 64:] = 0
    mask[1, 48:] = 0
    views = torch.randn(2, 3, 80, 96, generator=torch.Generator().manual_seed(0)) * mask[:, None]
    to_strong = torch.tensor([[1.0, 0, 1, 0]] * 2)
    unlabeled = [{"weak": views, "strong": views, "weak_mask": mask, "strong_mask": mask, "weak_to_strong": to_strong}]

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return {k: move(v) for k, v in value.items()} if isinstance(value, dict) else [move(v) for v in value]

    with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
        output = model(move(labeled), move(unlabeled), unsup_weight=1.0)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite() and output.logs["certain_1"] > 0
    assert all(parameter.grad.isfinite().all() for parameter in model.students.parameters())


@pytest.mark.parametrize("arm", [*(pytest.param(arm, marks=pytest.mark.slow) for arm in ("self", "mutual")), "ct"])
def test_equal_random_numbers_give_equal_losses_in_every_arm(arm):
    model, batch = make(arm=arm).eval(), batch_of(shared=False)
    losses, uncertainties = [], []
    for seed in (5, 5, 6):
        cache = {}
        torch.manual_seed(seed)
        model._pseudo_boxes(0, batch[1][0], {}, cache)
        uncertainties.append([view.uncertainty for view in cache.values()])
        torch.manual_seed(seed)
        losses.append(model(*batch, unsup_weight=1.0).loss)
    assert losses[0] == losses[1] and losses[0].isfinite()
    for first, again, other in zip(*uncertainties):
        assert torch.equal(first, again) and not torch.equal(first, other)


@torch.no_grad()
@pytest.mark.parametrize(("arm", "teacher"), [("ct", 0), ("mutual", 1)])
def test_background_is_scored_where_the_region_is_in_the_weak_view(arm, teacher):
    model, (_, unlabeled) = make(arm=arm), batch_of(num_unlabeled=3)
    cache = {}
    model._pseudo_boxes(0, unlabeled[0], {}, cache)
    for index, view in cache.items():
        torch.manual_seed(index)
        cache[index] = view._replace(features={name: torch.randn_like(maps) for name, maps in view.features.items()})
    regions = [torch.tensor([[10.0, 5, 40, 30], [20, 20, 60, 60]]), torch.tensor([[0.0, 0, 25, 9]])]
    found = model._background_scores(0, unlabeled[0], [0, 2], cache)(regions)
    region = Region(model.teachers[teacher], cache[teacher].features)
    expected = []
    for image, boxes in zip((0, 2), regions):
        for x1, y1, x2, y2 in boxes.tolist():
            corners = [(75 - x2) / 1.25, y1 - 4, (75 - x1) / 1.25, y2 - 4]
            logits, _ = region(image, [min(max(x, 0), 64) for x in corners])
            expected.append(math.exp(logits[0]) / sum(map(math.exp, logits)))
    assert found.tolist() == pytest.approx(expected, rel=1e-4) and len(set(expected)) == 3


def test_a_map_and_its_inverse_lead_back():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 4, generator=generator)
    boxes = torch.rand(5, 3, 4, generator=generator).sort(-1).values[..., [0, 1, 2, 3]]
    torch.testing.assert_close(map_boxes(map_boxes(boxes, maps), inverse_map(maps)), boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detector", ["ssd_tiny", "detr"])
def test_detectors_without_a_second_stage_are_refused(detector):
    own = {"model_type": "cross_teaching_detector", "architecture": detector} if detector != "detr" else {}
    with pytest.raises(
        (ValueError, StrictDataclassError),
        match=f"`unsup_box_loss='uncertainty'` .* '{detector}' .* use 'none' or 'full'",
    ):
        CrossTeachingConfig(detector=own or {"model_type": "detr"}, mode="box", unsup_box_loss="uncertainty")


def test_a_limit_that_no_box_meets_is_refused():
    with pytest.raises((ValueError, StrictDataclassError), match="`max_box_uncertainty` must be above 0, got 0"):
        make(max_box_uncertainty=0.0)
