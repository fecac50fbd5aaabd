# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The detectors against torchvision's own, their post-processing, and checkpoints without the package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, DetrImageProcessor, pipeline

from hf_methods import CrossTeachingModel, TorchvisionDetectorConfig, TorchvisionDetectorForObjectDetection
from hf_methods.cross_teaching.image_processing_cross_teaching import DetectionImageProcessor
from hf_methods.cross_teaching.modeling_detectors_cross_teaching import DetectionOutput


FASTER = dict(architecture="fasterrcnn_mobilenet_v3_large_320_fpn", num_labels=3, image_size=64)
TINY = dict(architecture="ssd_tiny", num_labels=5)


def make(seed=0, **options):
    torch.manual_seed(seed)
    return TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(**options)).eval()


def trained_looking(model):
    """Larger heads, so that some scores are far from uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classification_head" in name or "cls_score" in name or "bbox_pred" in name:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module")
def tiny():
    return trained_looking(make(**TINY))


@pytest.fixture(scope="module")
def faster():
    return trained_looking(make(**FASTER))


def random_labels(num_labels, counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for count in counts:
        size = 0.2 + 0.3 * torch.rand(count, 2, generator=generator)
        centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
        classes = torch.randint(0, num_labels, (count,), generator=generator)
        labels.append({"class_labels": classes, "boxes": torch.cat([centre, size], -1)})
    return labels


def as_targets(labels, size):
    return [
        {"boxes": box_convert(label["boxes"] * size, "cxcywh", "xyxy"), "labels": label["class_labels"] + 1}
        for label in labels
    ]


class PassedBy(torch.nn.Module):
    """torchvision's transform, for images that are processed already."""

    def forward(self, images, targets=None):
        sizes = [tuple(image.shape[-2:]) for image in images]
        return ImageList(torch.stack(images), sizes), targets

    def postprocess(self, result, image_shapes, original_image_sizes):
        return result


def torchvision_model(model):
    model.detector.transform = PassedBy()  # which ours does not use
    return model.detector


def test_the_tiny_detector_is_the_one_of_the_trial():
    assert sum(parameter.numel() for parameter in make(**TINY).parameters()) == 190_112


def test_ssd300_has_the_parameters_and_default_boxes_of_its_authors():
    with torch.device("meta"):
        model = TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(num_labels=20))
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_285_486
    maps = [torch.empty(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    (anchors,) = model.detector.anchor_generator(ImageList(torch.empty(1, 3, 300, 300), [(300, 300)]), maps)
    boxes = box_convert(anchors, "xyxy", "cxcywh")
    assert len(boxes) == 8732
    # the formulas of the SSD authors' code: min sizes in pixels, and steps
    expected = []
    for side, step, small, big, ratios in zip(
        (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), (30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315),
        ([2], [2, 3], [2, 3], [2, 3], [2], [2]),
    ):  # fmt: skip
        for y in range(side):
            for x in range(side):
                centre = [min((x + 0.5) * step, 300), min((y + 0.5) * step, 300)]
                sizes = [(small, small), ((small * big) ** 0.5,) * 2]
                for ratio in ratios:
                    sizes += [(small * ratio**0.5, small / ratio**0.5), (small / ratio**0.5, small * ratio**0.5)]
                expected += [[*centre, min(w, 300), min(h, 300)] for w, h in sizes]
    torch.testing.assert_close(boxes, torch.tensor(expected), rtol=0, atol=1e-3)
    unclipped = [(x + 0.5) * step for side, step in ((10, 32),) for x in range(side)]
    clipped = (boxes[5776 + 2166 : 5776 + 2166 + 600, :2] == 300).any(1)  # of the 10 x 10 map
    assert clipped.sum() == 114 and max(unclipped) == 304


def test_the_torchvision_preset_is_torchvisions_ssd300():
    with torch.device("meta"):  # its VGG's classifier, thrown away, takes a second to draw
        reference = torchvision.models.detection.ssd300_vgg16(
            weights=None, weights_backbone=None, num_classes=4
        ).eval()
    model = make(num_labels=3, anchor_preset="torchvision", pre_nms_topk=400, score_threshold=0.01)
    reference.load_state_dict(model.detector.state_dict(), assign=True)
    images = torch.rand(1, 3, 300, 300)
    reference.transform = PassedBy()
    with torch.no_grad():
        (expected,) = reference(list(images))
        outputs = model(images)
    processor = DetectionImageProcessor.for_detector(model.config)
    (found,) = processor.post_process_object_detection(outputs, 0.01, target_sizes=[(300, 300)])
    torch.testing.assert_close(found["scores"], expected["scores"])
    assert torch.equal(found["labels"], expected["labels"] - 1) and len(found["labels"]) > 10
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("architecture", ["tiny", "faster"])
def test_detections_after_processing_are_torchvisions(architecture, request):
    model = request.getfixturevalue(architecture)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torchvision_model(model)(list(images))
        outputs = model(images)
    processor = DetectionImageProcessor.for_detector(model.config)
    threshold = model.config.score_threshold
    found = processor.post_process_object_detection(outputs, threshold, target_sizes=torch.tensor([[64, 64]] * 3))
    assert sum(len(image["scores"]) for image in found) > 20
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-4, atol=1e-6)
        # scores of an untrained Faster R-CNN are so close that rounding orders them
        same_label = ours["labels"][:, None] == theirs["labels"] - 1
        distance = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(-1).masked_fill(~same_label, torch.inf)
        partner = distance.argmin(1)
        assert distance.amin(1).max() < 1e-3 and len(set(partner.tolist())) == len(theirs["scores"])
        torch.testing.assert_close(ours["scores"], theirs["scores"][partner], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["tiny", "faster"])
@pytest.mark.parametrize("counts", [(2, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_losses_are_torchvisions_in_train_and_in_eval_mode(architecture, counts, training, request, monkeypatch):
    model = request.getfixturevalue(architecture)
    images, labels = torch.rand(3, 3, 64, 64), random_labels(model.config.num_labels, counts)
    detector = torchvision_model(model)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            monkeypatch.setattr(norm, "momentum", 0.0)  # two forward passes from one state
    model.train(training)
    try:
        torch.manual_seed(3)  # Faster R-CNN samples
        outputs = model(images, labels=labels)
        backbone_mode = detector.backbone.training
        detector.train()
        detector.backbone.train(backbone_mode)
        torch.manual_seed(3)
        expected = detector(list(images), as_targets(labels, 64))
    finally:
        model.eval()
    assert outputs.loss_dict.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(outputs.loss_dict[name], value, msg=name)
    torch.testing.assert_close(outputs.loss, sum(expected.values()))
    assert outputs.loss.isfinite()


@pytest.mark.parametrize("architecture", ["tiny", "faster"])
def test_parts_of_the_loss_add_up(architecture, request):
    model, images = request.getfixturevalue(architecture), torch.rand(2, 3, 64, 64)
    labels = random_labels(model.config.num_labels, (2, 1))
    losses = []
    for parts in (["cls"], ["box"], ["cls", "box"]):
        torch.manual_seed(0)
        losses.append(model(images, labels=labels, loss_parts=parts).loss)
    torch.testing.assert_close(losses[0] + losses[1], losses[2])
    assert min(losses) > 0
    with pytest.raises(ValueError, match="'cls' and 'box'"):
        model(images, labels=labels, loss_parts=["mask"])


def test_focal_loss_with_gamma_zero_is_cross_entropy_and_less_with_more(faster, monkeypatch):
    images, labels = torch.rand(2, 3, 64, 64), random_labels(3, (2, 1))

    def loss(kind, gamma):
        monkeypatch.setattr(faster.config, "roi_cls_loss", kind)
        monkeypatch.setattr(faster.config, "focal_gamma", gamma)
        torch.manual_seed(0)
        return faster(images, labels=labels).loss_dict["loss_classifier"]

    plain = loss("cross_entropy", 1.5)
    torch.testing.assert_close(loss("focal", 0.0), plain)
    assert loss("focal", 1.5) < plain


def test_padding_of_an_image_changes_none_of_its_boxes(faster):
    image = torch.rand(1, 3, 64, 64)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :64] = image
    mask = torch.zeros(1, 64, 96, dtype=torch.long)
    mask[..., :64] = 1
    with torch.no_grad():
        output = faster(padded, pixel_mask=mask)
    sizes = output.pred_boxes
    right = sizes[..., 0] + sizes[..., 2] / 2
    assert right.max() <= 1 + 1e-5 and (output.logits[..., -1] < 0).any()  # shares of the image without its padding


def test_an_ssd_on_a_timm_backbone_trains():
    model = make(architecture="ssd_timm", backbone_name="resnet10t", image_size=64, num_labels=2).train()
    output = model(torch.rand(2, 3, 64, 64), labels=random_labels(2, (1, 0)))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_frozen_batch_norm_and_stages_are_in_the_configuration():
    frozen = make(**FASTER, frozen_batch_norm=True)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in frozen.modules())
    grads = {name: parameter.requires_grad for name, parameter in frozen.detector.backbone.named_parameters()}
    assert not all(grads.values()) and any(grads.values())
    with torch.device("meta"):
        few = TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(trainable_layers=4))
    trained = [parameter.requires_grad for parameter in few.parameters()]
    assert trained.count(False) == 4  # the first stage's two convolutions, as in torchvision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(architecture="yolo"), "`architecture` must be one of ssd300_vgg16, .*'yolo'"),
        (dict(architecture="ssd_timm"), "`backbone_name` is for architecture 'ssd_timm', which needs it"),
        (dict(backbone_name="resnet18"), "`backbone_name` is for architecture 'ssd_timm'"),
        (dict(image_size=512), "`image_size` of 'ssd300_vgg16' is 300, got 512"),
        (dict(architecture="ssd_tiny", image_size=16), "at least 32 pixels, got 16"),
        (dict(nms_threshold=1.5), "`nms_threshold` must be between 0 and 1, got 1.5"),
        (dict(anchor_preset="mine"), "`anchor_preset` must be one of official, torchvision"),
        (dict(architecture="ssd_tiny", anchor_scales=[0.1], anchor_ratios=[[2], [2]]), "one more .* got 1 and 2"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        TorchvisionDetectorConfig(**options)


def test_bad_images_and_labels_are_refused(tiny):
    with pytest.raises(ValueError, match="64 x 64 pixels, got 32 x 64"):
        tiny(torch.zeros(1, 3, 32, 64))
    images = torch.zeros(1, 3, 64, 64)
    for label in (5, -1):
        labels = [{"class_labels": torch.tensor([label]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
        with pytest.raises(ValueError, match=f"between 0 and 4 .* got {label} to {label}"):
            tiny(images, labels=labels)
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    with pytest.raises(ValueError, match="image 0 has 1 boxes and 2 labels"):
        tiny(images, labels=labels)
    for side in (0.0, -0.1, float("nan"), float("inf")):
        labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, side, 0.2]])}]
        with pytest.raises(ValueError, match="image 0 has the box .* sides must be above 0"):
            tiny(images, labels=labels)


def test_without_nms_post_processing_is_detrs():
    generator = torch.Generator().manual_seed(0)
    outputs = DetectionOutput(
        logits=3 * torch.randn(2, 20, 4, generator=generator),
        pred_boxes=0.3 + 0.3 * torch.rand(2, 20, 4, generator=generator),
    )
    sizes = torch.tensor([[100, 200], [50, 60]])
    ours = DetectionImageProcessor().post_process_object_detection(outputs, 0.3, sizes)
    theirs = DetrImageProcessor().post_process_object_detection(outputs, 0.3, sizes)
    for a, b in zip(ours, theirs):
        order = b["scores"].argsort(descending=True, stable=True)
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(a[name], b[name][order])
    with pytest.raises(ValueError, match="must be 2, one an image, got 1"):
        DetectionImageProcessor().post_process_object_detection(outputs, 0.3, [(1, 1)])


@pytest.mark.parametrize("options", [TINY, FASTER], ids=["ssd", "faster_rcnn"])
def test_a_saved_detector_comes_back_the_same_through_the_auto_classes(options, tmp_path):
    model = make(**options)
    model.save_pretrained(tmp_path)
    DetectionImageProcessor.for_detector(model.config).save_pretrained(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(again) is TorchvisionDetectorForObjectDetection and not again.training
    assert {name: value.tolist() for name, value in again.state_dict().items() if value.numel() < 50} == {
        name: value.tolist() for name, value in model.state_dict().items() if value.numel() < 50
    }
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["architecture"] == options["architecture"]
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is DetectionImageProcessor and processor.nms_threshold == model.config.nms_threshold


def test_a_head_for_other_labels_starts_at_random_and_the_rest_is_kept(tmp_path):
    model = make(**TINY)
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    other = AutoModelForObjectDetection.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert other.config.num_labels == 2 and all(parameter.isfinite().all() for parameter in other.parameters())
    assert torch.equal(other.detector.backbone.stem[0][0].weight, model.detector.backbone.stem[0][0].weight)
    head = other.detector.head.classification_head.module_list[0]
    assert head.weight.std() > 0.01 and (head.bias == 0).all()


CODE = """
import sys
sys.modules["hf_methods"] = None
import json, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline
folder = sys.argv[1]
model = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
torch.manual_seed(0)
save_file({"logits": model(torch.rand(1, 3, 64, 64)).logits}, f"{folder}/out.safetensors")
detect = pipeline("object-detection", model=folder, trust_remote_code=True)
json.dump(detect(f"{folder}/image.png", threshold=0.02), open(f"{folder}/out.json", "w"))
model.save_pretrained(f"{folder}/again")
several = AutoModel.from_pretrained(f"{folder}/several", trust_remote_code=True)
assert type(several).__module__.startswith("transformers_modules."), type(several)
several.export_detector(1).save_pretrained(f"{folder}/exported")
"""


@pytest.mark.slow
def test_one_and_several_detectors_and_the_stock_pipeline_work_without_the_package(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    several = CrossTeachingModel.from_detectors([tiny, make(1, **TINY)])
    several.save_pretrained(tmp_path / "several")
    DetectionImageProcessor.for_detector(tiny.config).save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_cross_teaching.TorchvisionDetectorConfig",
        "AutoModelForObjectDetection": "modeling_detectors_cross_teaching.TorchvisionDetectorForObjectDetection",
    }
    exported = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert exported["auto_map"]["AutoModelForObjectDetection"].startswith("modeling_detectors_cross_teaching.")
    state = several.teachers[1].state_dict()
    exported = AutoModelForObjectDetection.from_pretrained(tmp_path / "exported").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in exported.items())
    assert (tmp_path / "again" / "modeling_detectors_cross_teaching.py").exists()
    torch.manual_seed(0)
    with torch.no_grad():
        logits = tiny(torch.rand(1, 3, 64, 64)).logits
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["logits"], logits)
    records = pipeline("object-detection", model=str(tmp_path))(str(tmp_path / "image.png"), threshold=0.02)
    without = json.loads((tmp_path / "out.json").read_text())
    assert len(records) == len(without) > 0
    for a, b in zip(records, without):
        assert a["label"] == b["label"] and a["box"] == b["box"] and a["score"] == pytest.approx(b["score"])
    assert all(0 <= r["box"]["xmin"] <= r["box"]["xmax"] <= 100 and r["box"]["ymax"] <= 50 for r in records)
