# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The models against plain torch modules put together as the official code describes them, and closed forms."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from models_cpe import BACKBONES, COUNTS, SMALL, images, make, official_names
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
)

from hf_methods.cpe import (
    ClasswiseBatchNorm,
    CPEConfig,
    CPEForImageClassification,
    CPEModel,
)
from hf_methods.cpe.losses_cpe import log_class_prior


# --- the backbone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"num_labels": 10, "keep_dead_bn": True}, 1_470_974),  # the line of the official log
        ({"num_labels": 100, "keep_dead_bn": True}, 1_505_804),
        ({"num_labels": 10}, 1_470_782),
        ({"num_labels": 10, "taus": (0.0,), "use_cbn": False, "keep_dead_bn": True}, 1_467_626),
    ],
)
def test_the_number_of_parameters_is_the_official_one(fields, parameters):
    with torch.device("meta"):
        model = CPEForImageClassification(CPEConfig(**fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def official_forward(state, pixel_values, num_blocks, training):
    """Branch logits (N, E, G, K) from a state with the official names, by functional operations only."""

    def batch_norm(name, x, eps):
        mean, variance = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], training, 0.1, eps)

    def activate(name, x, eps=1e-5):
        x = batch_norm(name, x, eps)
        return torch.where(x > 0, x, 0.1 * x)

    x = F.conv2d(pixel_values, state["backbone.conv1.weight"], state["backbone.conv1.bias"], padding=1)
    for stage in (1, 2, 3):
        for block in range(num_blocks):
            name = f"backbone.block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            shortcut = state.get(f"{name}.convShortcut.weight")
            raw = x
            if shortcut is None:
                x = activate(f"{name}.bn1", x)
            elif stage == 1:
                raw = x = activate(f"{name}.bn1", x)
            x = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = F.conv2d(activate(f"{name}.bn2", x), state[f"{name}.conv2.weight"], padding=1)
            x = x + (raw if shortcut is None else F.conv2d(raw, shortcut, stride=stride))
    x = activate("backbone.bn1", x, 1e-3)
    features = [batch_norm(f"backbone.BN{branch}", x, 1e-5).mean((2, 3)) for branch in "HMT"]
    heads = ("backbone.classifier", "classifier2", "classifier3")
    return torch.stack(
        [
            torch.stack([F.linear(f, state[f"{head}.weight"], state[f"{head}.bias"]) for f in features], 1)
            for head in heads
        ],
        1,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("widen_factor", [1, 2])
def test_the_model_computes_what_the_official_network_does(training, widen_factor):
    model = make(depth=16, widen_factor=widen_factor).double().train(training)
    pixel_values = images().double()
    expected = official_forward(official_names(model), pixel_values, 2, training)
    output = model(pixel_values, output_group_logits=True)
    torch.testing.assert_close(output.group_logits, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.expert_logits, expected.mean(2), rtol=0, atol=1e-10)
    torch.testing.assert_close(output.logits, expected.mean(2)[:, 1], rtol=0, atol=1e-10)


def test_every_parameter_has_a_gradient():
    model = make()
    model(images(), torch.arange(6) % 5, images(seed=2), images(seed=3), threshold=0.0).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("taus", [(0.0,), (1.0, -1.0), (0.0, 1.0, 2.0, 3.0, 4.0)])
def test_any_number_of_experts_learns_also_without_a_sure_label(taus):
    model = make(taus=taus)
    output = model(images(), torch.arange(6) % 5, images(seed=2), images(seed=3), threshold=1.1)
    output.loss.backward()
    assert output.expert_logits.shape == (6, len(taus), 5)
    # Or processes whose images have none would wait for each other's gradients.
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_weights_are_initialised_as_in_the_official_code():
    torch.manual_seed(0)
    model = CPEForImageClassification(CPEConfig(num_labels=100))
    first, second, third = model.classifier.weight.detach().chunk(3)
    assert float(first.std()) == pytest.approx(math.sqrt(2 / (100 + 128)), rel=0.05)
    for head in (second, third):
        assert float(head.abs().max()) <= 1 / math.sqrt(128) < float(first.abs().max())
        assert float(head.std()) == pytest.approx(1 / math.sqrt(3 * 128), rel=0.05)
    assert not model.classifier.bias[:100].any() and model.classifier.bias[100:].all()
    convolution = model.backbone.encoder.stages[2][1].conv1.weight.detach()
    assert float(convolution.std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.05)


@pytest.mark.parametrize("size", [15, 17, 32, 50])
def test_any_image_size_is_taken(size):
    output = make()(images(size=size), torch.arange(6) % 5)
    assert output.loss.isfinite() and output.pooled_features.shape == (6, 64)


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_trains_folds_and_loads(name, tmp_path):
    size = 32 if name == "timm" else 16
    model = make(backbone_config=BACKBONES[name], class_counts=COUNTS)
    pixel_values = images(size=size)
    model(pixel_values, torch.arange(6) % 5, images(6, size, 2), images(6, size, 3), threshold=0.0).loss.backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    model.eval()
    expected = model(pixel_values).expert_logits
    torch.testing.assert_close(model.fold_for_inference()(pixel_values).expert_logits, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values).expert_logits, expected)


def test_a_pretrained_backbone_keeps_its_weights():
    torch.manual_seed(3)
    backbone = AutoModel.from_config(BACKBONES["resnet"])
    before = copy.deepcopy(backbone.state_dict())
    model = CPEForImageClassification.from_backbone(backbone, num_labels=5, class_counts=COUNTS)
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.encoder.state_dict().items())
    with pytest.raises(TypeError, match="ResNetModel, got CPEModel"):
        backbone_of = CPEModel(CPEConfig(depth=10))
        backbone_of.config = BACKBONES["resnet"]
        CPEForImageClassification.from_backbone(backbone_of, num_labels=5)


# --- training step and evaluation --------------------------------------------------------------------------------------


def step_inputs():
    return images(5, seed=1), torch.tensor([0, 1, 4, 2, 0]), images(8, seed=2), images(8, seed=3)


@pytest.mark.parametrize("counts", [COUNTS, [3, 40, 12, 6, 25]], ids=["sorted", "unsorted"])
def test_the_loss_of_a_step_is_the_papers(counts):
    model = make(depth=16, class_counts=counts).double()
    labeled, labels, weak, strong = (x.double() if x.is_floating_point() else x for x in step_inputs())
    group = official_forward(official_names(model), torch.cat([labeled, weak, strong]), 2, training=True)
    order = sorted(range(5), key=lambda k: -counts[k])
    rank = {k: order.index(k) for k in range(5)}
    threshold, lambda_u, total, used = 0.25, 0.7, 0.0, 0
    prior = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    for e, tau in enumerate((0, 2, 4)):
        adjusted = group[:5, e].mean(1) + tau * prior.log()
        supervised = -(adjusted - adjusted.logsumexp(-1, keepdim=True))[torch.arange(5), labels].mean()
        numerator, denominator = 0.0, 0.0
        for j in range(8):
            probabilities = group[5 + j, e].mean(0).softmax(-1)
            pseudo = int(probabilities.argmax())
            if float(probabilities[pseudo]) >= threshold:
                for branch, cut in enumerate((0, 2, 4)):
                    if rank[pseudo] >= cut:
                        logits = group[13 + j, e, branch]
                        numerator, denominator = numerator + logits.logsumexp(0) - logits[pseudo], denominator + 1
        total, used = total + supervised + lambda_u * numerator / (denominator + 1e-12), used + denominator
    model.config.group_cuts = (2, 4)
    output = model(labeled, labels, weak, strong, threshold=threshold, lambda_u=lambda_u)
    assert used > 8
    torch.testing.assert_close(output.loss, total, rtol=0, atol=1e-6)  # the prior is float32
    torch.testing.assert_close(output.loss, (output.supervised_loss + lambda_u * output.unsupervised_loss).sum())


def test_renaming_the_classes_renames_the_logits_of_a_trained_step():
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = torch.cat([order + 5 * e for e in range(3)])
    model, renamed = make(), make(class_counts=[COUNTS[i] for i in order])
    renamed.load_state_dict(model.state_dict())
    with torch.no_grad():
        renamed.classifier.weight.copy_(model.classifier.weight[rows])
        renamed.classifier.bias.copy_(model.classifier.bias[rows])
    labeled, labels, weak, strong = step_inputs()
    first = model(labeled, labels, weak, strong, threshold=0.3)
    second = renamed(labeled, order.argsort()[labels], weak, strong, threshold=0.3)
    torch.testing.assert_close(second.loss, first.loss)
    torch.testing.assert_close(second.expert_logits, first.expert_logits[..., order])


def test_no_gradient_flows_through_the_weak_view():
    model = make(use_cbn=False, backbone_config=BACKBONES["vit"])  # no batch statistics, which would mix the images
    labeled, labels, weak, strong = step_inputs()
    weak.requires_grad_()
    strong.requires_grad_()
    model(labeled, labels, weak, strong, threshold=0.0).loss.backward()
    assert not weak.grad.any() and strong.grad.any()


def test_without_unlabeled_images_a_step_is_supervised():
    model = make()
    labeled, labels, weak, strong = step_inputs()
    adjusted = model(labeled).expert_logits + torch.outer(torch.tensor([0.0, 2, 4]), log_class_prior(COUNTS).float())
    expected = sum(F.cross_entropy(adjusted[:, e], labels) for e in range(3))
    torch.testing.assert_close(model(labeled, labels).loss, expected)
    torch.testing.assert_close(model(labeled, labels, weak[:0], strong[:0]).loss, expected)
    never = model(labeled, labels, weak, strong, threshold=1.1)
    assert not never.unsupervised_loss.any() and not never.pseudo_label_mask.any()


def test_the_evaluation_loss_is_that_of_the_answer_without_adjustment():
    model = make().eval()
    labeled, labels, *_ = step_inputs()
    output = model(labeled, labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.expert_logits[:, 1], labels))


def test_fusion_and_expert_choose_the_answer():
    model = make().eval()
    pixel_values = images()
    experts = model(pixel_values).expert_logits
    expected = {
        ("expert", 2): experts[:, 2],
        ("mean_logit", 1): experts.mean(1),
        ("mean_prob", 1): experts.softmax(-1).mean(1).log(),
    }
    for (fusion, expert), logits in expected.items():
        model.config.fusion, model.config.eval_expert = fusion, expert
        torch.testing.assert_close(model(pixel_values).logits, logits)
    target = torch.tensor([1.0, 2, 3, 4, 0.5])
    torch.testing.assert_close(
        model(pixel_values, target_prior=target).logits.softmax(-1),
        (experts.softmax(-1).mean(1) * target) / (experts.softmax(-1).mean(1) * target).sum(-1, keepdim=True),
    )


@pytest.mark.parametrize("keep_experts", [True, False])
def test_folding_keeps_the_logits_and_leaves_plain_heads(keep_experts, tmp_path):
    model = make().eval()
    pixel_values, expected = images(), make().eval()(images())
    folded = model.fold_for_inference(keep_experts)
    assert not any(isinstance(module, ClasswiseBatchNorm) for module in folded.modules()) and not folded.training
    torch.testing.assert_close(folded(pixel_values).logits, expected.logits, rtol=0, atol=1e-5)
    if keep_experts:
        torch.testing.assert_close(folded(pixel_values).expert_logits, expected.expert_logits, rtol=0, atol=1e-5)
    else:
        single = make(taus=(2.0,), use_cbn=False)
        assert folded.num_parameters() == single.num_parameters()
    folded.save_pretrained(tmp_path)
    loaded = CPEForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values).logits, folded(pixel_values).logits)
    assert torch.equal(model(pixel_values).logits, expected.logits)  # the model itself is as it was
    torch.testing.assert_close(folded.fold_for_inference()(pixel_values).logits, folded(pixel_values).logits)


def test_folding_to_one_head_needs_one_answer():
    with pytest.raises(ValueError, match="fusion='expert', got 'mean_prob'"):
        make(fusion="mean_prob").fold_for_inference(keep_experts=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_finite_loss_and_near_logits(dtype):
    model = make()
    labeled, labels, weak, strong = step_inputs()
    with torch.autocast("cpu", dtype=dtype):
        output = model(labeled, labels, weak, strong, threshold=0.3)
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())
    expected = make().eval()(labeled).logits
    torch.testing.assert_close(make().eval().to(dtype)(labeled.to(dtype)).logits.float(), expected, rtol=0.1, atol=0.1)


def test_a_checkpoint_loads_as_it_was_saved(tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    loaded, backbone = (cls.from_pretrained(tmp_path) for cls in (AutoModelForImageClassification, AutoModel))
    assert type(loaded) is CPEForImageClassification and type(backbone) is CPEModel
    assert torch.equal(loaded(images()).expert_logits, model(images()).expert_logits)
    assert torch.equal(backbone(images()).pooler_output, model(images()).pooled_features)
    fewer = CPEForImageClassification.from_pretrained(
        tmp_path, num_labels=3, class_counts=[9, 5, 1], ignore_mismatched_sizes=True
    )
    assert fewer.classifier.weight.shape == (9, 64) and fewer.config.cuts == (1, 2)
    assert torch.equal(fewer.backbone(images()).pooler_output, model(images()).pooled_features)


def test_fields_that_were_changed_after_the_check_are_checked_again():
    config = CPEConfig(**SMALL)
    config.class_counts = [1, 2]
    with pytest.raises(Exception, match="2 for num_labels=5"):
        CPEForImageClassification(config)


@pytest.mark.parametrize(
    ("fields", "inputs", "error", "message"),
    [
        (
            {"class_counts": None},
            lambda x: (x, torch.zeros(6).long()),
            ValueError,
            "`class_counts` is None, but taus=",
        ),
        (
            {"class_counts": None, "taus": (0.0,)},
            lambda x: (x, torch.zeros(6).long(), x, x),
            ValueError,
            "`class_counts` is None, but classwise",
        ),
        ({}, lambda x: (x, torch.tensor([0, 1, 5, 0, 0, 0])), ValueError, r"from 0 to 4.*\[0, 1, 5"),
        ({}, lambda x: (x, torch.tensor([0, -1, 0, 0, 0, 0])), ValueError, "-100 to be ignored"),
        ({}, lambda x: (x, torch.zeros(6)), TypeError, "int64 class ids, got torch.float32"),
        ({}, lambda x: (x.byte(),), TypeError, "normalised floats, got torch.uint8"),
        ({}, lambda x: (x[:, :1],), ValueError, r"\(N, 3, H, W\), got \[6, 1, 16, 16\].*num_channels=1"),
        ({}, lambda x: (x, torch.zeros(6).long(), x), ValueError, "two views"),
        ({}, lambda x: (x, torch.zeros(6).long(), x, x[:3]), ValueError, "two views"),
        ({}, lambda x: (x, None, x, x), ValueError, "give `labels`"),
    ],
)
def test_bad_input_raises(fields, inputs, error, message):
    with pytest.raises(error, match=message):
        make(**fields)(*inputs(images()))


def test_ignored_labels_do_not_change_the_loss():
    model = make(use_cbn=False, backbone_config=BACKBONES["vit"])
    labels = torch.tensor([0, -100, 2, 3, -100, 1])
    torch.testing.assert_close(model(images(), labels).loss, model(images()[labels >= 0], labels[labels >= 0]).loss)


def test_evaluation_exports_and_returns_tuples():
    model = make().eval()
    output = model(images())
    assert torch.equal(model(images(), return_dict=False)[0], output.logits)
    exported = torch.export.export(model, (images(),), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}})
    torch.testing.assert_close(exported.module()(images(3)).logits, model(images(3)).logits)


@pytest.mark.slow
def test_evaluation_and_training_steps_compile_to_one_graph():
    labeled, labels, weak, strong = step_inputs()
    model = make()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.eval()
    torch.testing.assert_close(compiled(labeled).logits, model(labeled).logits)
    model.train()
    again = make()
    for counts in (COUNTS, COUNTS, COUNTS[::-1]):
        model.config.class_counts = again.config.class_counts = counts
        output = compiled(labeled, labels, weak, strong, threshold=0.25)
        torch.testing.assert_close(output.loss, again(labeled, labels, weak, strong, threshold=0.25).loss)
