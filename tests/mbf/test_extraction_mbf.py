# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Features against outputs that another hook kept, in complex float64 NumPy; and what the extractor refuses."""

import gc
import math

import numpy as np
import pytest
import torch
from models_mbf import FAMILIES, make_classifier
from torch import nn

from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.extraction_mbf import MBFFeatureExtractor, match_layers, preset_layers


IMAGES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def reference(outputs, num_coefficients, center):
    """Features of one layer, complex float64; outputs (batch, ...) with the channels in dimension `center` or none."""
    x = outputs.double().numpy()
    if center is not None:
        dims = tuple(d for d in range(1, x.ndim) if d != center)
        x = x - x.mean(dims, keepdims=True)
    x = x.reshape(len(x), -1)
    orders = np.arange(1, num_coefficients + 1)[:, None]
    with np.errstate(divide="ignore"):
        logarithms = np.log10(np.abs(x))
    usable = [row[np.isfinite(row) & (row > -12)] for row in logarithms]  # below is the rounding of float64
    rows = [np.exp(-2j * np.pi * orders * row).sum(1) / max(1, len(row)) * (len(row) >= 16) for row in usable]
    return torch.tensor(np.abs(rows))


def outputs_of(model, layer):
    kept = []
    handle = dict(model.named_modules())[layer].register_forward_hook(lambda m, a, output: kept.append(output.clone()))
    with torch.no_grad():
        logits = model(IMAGES.double())
    handle.remove()
    return kept[0], logits if torch.is_tensor(logits) else logits.logits


@pytest.mark.parametrize("center", ["layer", "channel", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_kept_outputs_in_float64(family, center):
    model = make_classifier(family).double()
    extractor = MBFFeatureExtractor(model, MBFConfig(num_coefficients=3, center=center))
    with torch.no_grad():
        result = extractor(IMAGES.double())
    expected = []
    for layer in extractor.layers:
        outputs, logits = outputs_of(model, layer)
        dims = {"layer": 0, "channel": 1 if outputs.ndim == 4 else outputs.ndim - 1, None: None}
        expected.append(reference(outputs, 3, dims[center]))
    torch.testing.assert_close(result.features, torch.cat(expected, 1), rtol=0, atol=1e-7)
    torch.testing.assert_close(result.logits, logits)
    assert extractor.feature_names == [f"{layer}:{n}" for layer in extractor.layers for n in (1, 2, 3)]
    assert extractor.layer_of_feature.tolist() == [i for i in range(len(extractor.layers)) for _ in range(3)]


def test_presets_are_outputs_before_an_activation():
    blocks = [f"vit.layers.{i}.{name}" for i in (0, 1) for name in ("attention.o_proj", "mlp.fc2")]
    assert preset_layers(make_classifier("vit")) == blocks
    assert preset_layers(make_classifier("timm_vit"))[:2] == ["blocks.0.attn.proj", "blocks.0.mlp.fc2"]
    assert preset_layers(make_classifier("plain")) == ["0", "1"]
    model = make_classifier("timm_efficientnet")  # its norms hold the activation
    assert preset_layers(model) == [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    names = preset_layers(make_classifier("resnet"))
    assert len(names) == 12 and sum(name.endswith("normalization") for name in names) == 6
    many = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(50)))
    assert len(preset_layers(many)) == 32 and preset_layers(many)[0] == "0" and preset_layers(many)[-1] == "49"
    assert preset_layers(nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 10))) == ["0"]  # ten logits tell nothing
    with pytest.raises(ValueError, match="ReLU has no convolution and no attention"):
        preset_layers(nn.ReLU())


def test_patterns_choose_layers_in_module_order():
    model = make_classifier("vit")
    assert match_layers(model, ["*.mlp.fc2", "vit.layers.0.attention.?_proj"]) == [
        *(f"vit.layers.0.attention.{name}_proj" for name in "qkvo"),
        "vit.layers.0.mlp.fc2",
        "vit.layers.1.mlp.fc2",
    ]
    assert match_layers(model, "vit.layernorm") == ["vit.layernorm"]


def test_the_number_of_orders_follows_the_size_of_the_layer_unless_it_is_given():
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1))  # 12,544 and 6,272 responses
    extractor = MBFFeatureExtractor(model, MBFConfig())
    with pytest.raises(ValueError, match="call the extractor once first"):
        extractor.feature_names  # noqa: B018
    assert extractor(IMAGES).features.shape == (3, 6) and extractor.num_coefficients == [4, 2]
    assert MBFFeatureExtractor(model, MBFConfig(num_coefficients=[1, 3]))(IMAGES).features.shape == (3, 4)


def test_features_of_a_float32_classifier_are_near_those_of_a_float64_one():
    model = make_classifier("resnet")
    rough = MBFFeatureExtractor(model, MBFConfig())(IMAGES).features
    exact = MBFFeatureExtractor(model.double(), MBFConfig())(IMAGES.double()).features
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_batch_gives_what_each_image_gives_alone(family):
    extractor = MBFFeatureExtractor(make_classifier(family), MBFConfig())
    alone = torch.cat([extractor(image[None]).features for image in IMAGES])
    torch.testing.assert_close(extractor(IMAGES).features, alone, rtol=0, atol=1e-4)


def test_windows_of_an_image_are_part_of_it():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(14, 100)

        def forward(self, x):
            return self.proj(x.reshape(len(x) * 4, 14, 14)).reshape(len(x), 4 * 14, 100).mean(1)

    extractor = MBFFeatureExtractor(Windows(), MBFConfig(layers="proj"))
    alone = torch.cat([extractor(image[None]).features for image in IMAGES])
    torch.testing.assert_close(extractor(IMAGES).features, alone, rtol=0, atol=1e-5)


def test_a_module_that_runs_twice_adds_both_runs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)).flatten(1)

    result = MBFFeatureExtractor(Twice(), MBFConfig())(IMAGES)
    assert result.num_responses.tolist() == [[2 * 28 * 28]] * 3


def test_fewer_responses_estimate_the_same():
    model = make_classifier("plain")
    full = MBFFeatureExtractor(model, MBFConfig(layers="0"))(IMAGES).features
    extractor = MBFFeatureExtractor(model, MBFConfig(layers="0", max_responses=500))
    some = extractor(IMAGES)
    assert some.num_responses.tolist() == [[500]] * 3
    assert torch.equal(some.features, extractor(IMAGES).features)
    torch.testing.assert_close(some.features, full, rtol=0, atol=3 * 500**-0.5)
    large = MBFFeatureExtractor(model, MBFConfig(layers="0", max_responses=8 * 13 * 13))(IMAGES).features
    assert torch.equal(large, full)


@pytest.mark.parametrize("center", ["layer", "channel", None])
@pytest.mark.parametrize("family", ["resnet", "vit", "timm_vit"])
def test_channel_groups_are_measured_apart(family, center):
    model = make_classifier(family).double()
    extractor = MBFFeatureExtractor(model, MBFConfig(num_coefficients=2, center=center, channel_groups=4))
    with torch.no_grad():
        result = extractor(IMAGES.double())
    expected = []
    for layer in extractor.layers:
        x, _ = outputs_of(model, layer)
        x = x.movedim(1 if x.ndim == 4 else -1, 1)
        if center is not None:
            x = x - x.mean([d for d in range(1, x.ndim) if center == "layer" or d != 1], keepdim=True)
        expected += [reference(part, 2, None) for part in x.chunk(4, 1)]
    torch.testing.assert_close(result.features, torch.cat(expected, 1), rtol=0, atol=1e-7)
    assert extractor.channel_groups == [4] * len(extractor.layers)
    assert extractor.feature_names[:4] == [f"{extractor.layers[0]}[{g}]:{n}" for g in (0, 1) for n in (1, 2)]
    assert len(extractor.feature_names) == len(extractor.layer_of_feature) == result.features.shape[1]


def test_a_number_of_groups_is_lowered_to_one_that_divides_the_channels():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 7, 3))
    extractor = MBFFeatureExtractor(model, MBFConfig(num_coefficients=1, channel_groups=4))
    with pytest.raises(ValueError, match="call the extractor once first"):
        extractor.feature_names  # noqa: B018
    assert extractor(IMAGES).features.shape == (3, 4) and extractor.channel_groups == [3, 1]
    assert MBFFeatureExtractor(model, MBFConfig(num_coefficients=1, channel_groups=[2, 7]))(IMAGES).features.shape == (
        3,
        9,
    )
    with pytest.raises(ValueError, match="the layer 0 has 6 channels, which 4 does not divide"):
        MBFFeatureExtractor(model, MBFConfig(channel_groups=[4, 1]))(IMAGES)
    with pytest.raises(ValueError, match="`channel_groups` has 1 entries for 2 layers"):
        MBFFeatureExtractor(model, MBFConfig(channel_groups=[2]))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("center", ["layer", "channel", None])
def test_samples_of_layers_are_summed_together_as_one_by_one(groups, center):
    model = make_classifier("resnet")
    config = {"num_coefficients": 2, "center": center, "channel_groups": groups, "max_responses": 400}
    together = MBFFeatureExtractor(model, MBFConfig(**config))
    features, counts = (together(IMAGES)[key] for key in ("features", "num_responses"))
    assert counts.max() == 400
    alone = [
        MBFFeatureExtractor(model, MBFConfig(layers=layer, **config))(IMAGES).features for layer in together.layers
    ]
    torch.testing.assert_close(features, torch.cat(alone, 1), rtol=0, atol=1e-6)


def test_modes_and_hooks_come_back_also_after_an_error():
    model = make_classifier("plain").train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    extractor = MBFFeatureExtractor(model, MBFConfig())
    statistics = model[1].running_mean.clone()
    assert torch.equal(extractor(IMAGES).features, extractor(IMAGES).features)  # no dropout
    with pytest.raises(RuntimeError):
        extractor(torch.rand(1, 2, 28, 28))
    assert [module.training for module in model.modules()] == modes and torch.equal(model[1].running_mean, statistics)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.slow
def test_no_response_is_kept():
    sizes = []

    class Probe(nn.Module):
        def forward(self, x):
            gc.collect()
            tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]  # no fake ones
            live = [o for o in tensors if o.device.type == "cpu" and o.numel() >= 8 * 28 * 28]
            sizes.append(len({o.untyped_storage().data_ptr() for o in live}))
            return x

    layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), Probe())]
    model = nn.Sequential(nn.Conv2d(1, 8, 1), *layers)
    with torch.no_grad():
        MBFFeatureExtractor(model, MBFConfig())(IMAGES)
    assert len(set(sizes)) == 1  # the same number of large tensors behind every layer


def test_inference_mode_and_autocast_work():
    model = make_classifier("resnet")
    extractor = MBFFeatureExtractor(model, MBFConfig())
    with torch.inference_mode():
        exact = extractor(IMAGES).features
        with torch.autocast("cpu", torch.bfloat16):
            rough = extractor(IMAGES)
    assert rough.features.dtype == torch.float32 and rough.logits.dtype == torch.bfloat16
    assert 0 < (rough.features - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    "compile", [torch.compile, lambda model: model.compile() or model], ids=["wrapped", "in_place"]
)
def test_a_compiled_classifier_runs_uncompiled(compile):
    plain = make_classifier("plain")
    expected = MBFFeatureExtractor(plain, MBFConfig())(IMAGES)
    compiled = compile(plain)
    result = MBFFeatureExtractor(compiled, MBFConfig())(IMAGES)
    assert torch.equal(result.features, expected.features) and torch.equal(result.logits, expected.logits)


@pytest.mark.parametrize("center", ["layer", "channel", None])
@pytest.mark.parametrize("family", ["plain", "resnet"])  # resnet adds to a norm's output in place
def test_features_have_gradients_of_the_image(family, center):
    model = make_classifier(family).double()
    extractor = MBFFeatureExtractor(model, MBFConfig(num_coefficients=2, center=center))
    image = IMAGES[:1].double().requires_grad_()
    direction = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e-7
    (gradient,) = torch.autograd.grad(extractor(image).features[0].sum(), image)
    with torch.no_grad():
        change = extractor(image + direction).features[0].sum() - extractor(image - direction).features[0].sum()
    assert change.item() == pytest.approx(2 * (gradient * direction).sum().item(), rel=0.02)


def test_a_layer_with_too_few_responses_gives_zeros_and_a_warning(caplog):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(model[0].weight)  # constant channels
    extractor = MBFFeatureExtractor(model, MBFConfig(layers=["0", "4"], center="channel"))
    with caplog.at_level("WARNING", logger="transformers"):
        from transformers.utils import logging

        logging.enable_propagation()
        try:
            result = extractor(IMAGES)
        finally:
            logging.disable_propagation()
    assert result.features.eq(0).all() and result.num_responses.tolist() == [[0, 10]] * 3
    assert "fewer than 16 responses that differ from the mean in 0, 4, for 3 image(s)" in caplog.text


class Output(nn.Module):
    """A layer whose output is made by a function of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Around(nn.Module):
    """Runs a layer and then classifies whatever came."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.unused = Output(function), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        self.layer(x)
        return x.flatten(1)[:, :10]


def nan_in_the_second(x):
    x = x.clone()
    x[1, 0, 3, 3] = math.nan
    return x


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.long(), TypeError, "output of the layer layer must be .* real .*, got torch.int64"),
        (lambda x: torch.complex(x, x), TypeError, "got torch.complex64"),
        (lambda x: None, TypeError, "got NoneType"),
        (lambda x: x.sum(), ValueError, r"layer layer \(\) has no row for each of the 3 images"),
        (lambda x: x[0].mT, ValueError, r"\(1, 28, 28\) has no row"),
        (nan_in_the_second, ValueError, "layer layer gave NaN or infinite responses for image 1"),
        (lambda x: x / x[2:].ne(x[2:]), ValueError, "NaN or infinite responses for image 0"),
    ],
)
def test_bad_responses_are_an_error_that_names_the_layer(function, error, message):
    with pytest.raises(error, match=message):
        MBFFeatureExtractor(Around(function), MBFConfig(layers="layer"))(IMAGES)


@pytest.mark.parametrize("function", [lambda x: (x, None), lambda x: [x], lambda x: {"hidden_states": x}])
def test_the_first_of_several_outputs_is_measured(function):
    plain = MBFFeatureExtractor(Around(lambda x: x), MBFConfig(layers="layer"))(IMAGES)
    assert torch.equal(
        MBFFeatureExtractor(Around(function), MBFConfig(layers="layer"))(IMAGES).features, plain.features
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda m: MBFFeatureExtractor(m, MBFConfig(layers="vit.layer.*")),
            ValueError,
            "no module 'vit.layer.*'; names",
        ),
        (lambda m: MBFFeatureExtractor(m, MBFConfig(layers=["vit.layernom"])), ValueError, "instance vit.layernorm"),
        (lambda m: MBFFeatureExtractor(m, MBFConfig(num_coefficients=[2])), ValueError, "1 entries for 4 layers"),
        (lambda m: MBFFeatureExtractor(nn.DataParallel(m), MBFConfig()), TypeError, "DataParallel is not supported"),
        (lambda m: MBFFeatureExtractor("vit", MBFConfig()), TypeError, "must be a torch.nn.Module, got str"),
        (lambda m: MBFFeatureExtractor(Around(torch.neg), MBFConfig())(IMAGES), ValueError, "unused did not run"),
        (
            lambda m: MBFFeatureExtractor(m, MBFConfig())(IMAGES[:0]),
            ValueError,
            r"without a zero, got \(0, 1, 28, 28\)",
        ),
        (lambda m: MBFFeatureExtractor(m, MBFConfig())(IMAGES[0]), ValueError, r"got \(1, 28, 28\)"),
        (lambda m: MBFFeatureExtractor(m, MBFConfig())(IMAGES.byte()), TypeError, "`pixel_values` .* torch.uint8"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(make_classifier("vit"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"center": "row"}, "`center` must be 'layer', 'channel' or None, got 'row'"),
        ({"num_coefficients": 0}, "`num_coefficients` must be 1 to 100, got 0"),
        ({"num_coefficients": [2, 101]}, r"`num_coefficients` must be 1 to 100, got \[2, 101\]"),
        ({"num_coefficients": [2, 0]}, "got \\[2, 0\\]"),
        ({"num_coefficients": 2.5}, "num_coefficients"),
        ({"channel_groups": 0}, "`channel_groups` must be at least 1, got 0"),
        ({"channel_groups": []}, r"`channel_groups` must be at least 1, got \[\]"),
        ({"layers": []}, "`layers` must name at least one module"),
        ({"layers": ""}, "`layers` must name"),
        ({"layers": 3}, "layers"),
        ({"max_responses": 50}, "`max_responses` must be at least 100, got 50"),
        ({"target_fpr": 0.0}, "`target_fpr` must be between 0 and 1, both excluded, got 0.0"),
        ({"target_fpr": 1.0}, "got 1.0"),
        ({"svm_c": -1.0}, "`svm_c` must be positive"),
        ({"num_features": -1}, "`num_features` can't be negative"),
        ({"debias": "yes"}, "debias"),
    ],
)
def test_a_bad_configuration_is_refused(kwargs, message):
    with pytest.raises(Exception, match=message):
        MBFConfig(**kwargs)


def test_a_configuration_comes_back_from_its_file(tmp_path):
    config = MBFConfig(layers=["a", "b"], num_coefficients=[2, 4], center=None, attacks=["pgd"], target_fpr=0.01)
    config.save_pretrained(tmp_path)
    again = MBFConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() and again.id2label == {0: "benign", 1: "adversarial"}
