# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Training with NFL: its anchors, its loss, and what they keep."""

import pytest
import torch
from tiny_subpt import DIM, NAMES, OTHERS, embeddings, make_model
from trainer_subpt import make_trainer, rows

from hf_methods.subpt import nfl_loss


# --- NFL -------------------------------------------------------------------------------------------------------------


def test_nfls_loss_is_that_of_learned_and_hand_written_features(tmp_path):
    model = make_model()
    trainer = make_trainer(
        tmp_path, model, nfl_weight=0.7, nfl_names=OTHERS, nfl_templates=["a {}.", "{} of a"], subspace_rank=0
    )
    with torch.no_grad():
        features = model.encode_classes(OTHERS)
        a, b = (model.encode_templates(OTHERS, [template]) for template in ("a {}.", "{} of a"))
        targets = torch.nn.functional.normalize(a + b, dim=-1)
    model.train()
    data = rows(4)
    batch = {
        "image_embeds": torch.stack([row["image_embeds"] for row in data]),
        "labels": torch.tensor([row["labels"] for row in data]),
    }
    output = model(**batch)
    torch.testing.assert_close(output.nfl_loss, nfl_loss(features, targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, output.ce_loss + 0.7 * output.nfl_loss)
    assert model.eval()(**batch).nfl_loss is None  # inference knows nothing of it
    torch.testing.assert_close(model(**batch).loss, output.ce_loss)
    assert trainer.prompt_model.anchors.targets.requires_grad is False


def test_the_default_targets_are_80_templates_and_the_data_sets_own(tmp_path):
    from hf_methods.subpt import IMAGENET_TEMPLATES

    trainer = make_trainer(
        tmp_path, nfl_weight=1.0, nfl_names=OTHERS, nfl_extra_template="a photo of a {}, a type of pet."
    )
    model = trainer.prompt_model
    expected = model.encode_templates(OTHERS, [*IMAGENET_TEMPLATES, "a photo of a {}, a type of pet."])
    torch.testing.assert_close(model.anchors.targets, expected, rtol=0, atol=0)


def test_nfl_keeps_learned_features_near_their_targets(tmp_path):
    distances = []
    for weight in (0.0, 20.0):
        trainer = make_trainer(
            tmp_path, subspace_rank=0, nfl_weight=weight, nfl_names=OTHERS, nfl_templates=["a photo of a {}."]
        )
        trainer.fit()
        model = trainer.prompt_model
        with torch.no_grad():
            targets = model.encode_templates(OTHERS, ["a photo of a {}."])
            distances.append(float(nfl_loss(model.encode_classes(OTHERS), targets)))
    assert distances[1] < 0.8 * distances[0]


def test_anchors_on_the_classes_share_their_features(tmp_path):
    model = make_model()
    make_trainer(
        tmp_path, model, subspace_rank=0, anchor_names="base", nfl_weight=8.0, nfl_loss="l2", nfl_templates=["a {}."]
    )
    calls = []
    encode = model.encode_prompts
    model.encode_prompts = lambda ids, chunk=None: calls.append(len(ids)) or encode(ids, chunk)
    output = model.train()(image_embeds=embeddings(4), labels=torch.arange(4))
    assert calls == [len(NAMES)]  # no name is encoded twice
    targets = model.encode_templates(NAMES, ["a {}."])
    torch.testing.assert_close(output.nfl_loss, nfl_loss(output.text_embeds, targets, "l2").detach())


def test_anchors_on_classes_and_others_are_in_their_order(tmp_path):
    model = make_model()
    with pytest.warns(UserWarning, match=r"repeats the classes \['dog'\]"):
        make_trainer(
            tmp_path,
            model,
            anchor_names="both",
            nfl_weight=1.0,
            nfl_names=["yak", "dog", "bee"],
            nfl_templates=["a {}."],
        )
    names = [*(name.replace("_", " ") for name in NAMES), "yak", "bee"]
    _, features, targets = model.anchors.encode(model.class_input_ids, model.encode_prompts, None)
    torch.testing.assert_close(features.detach(), model.encode_classes(names).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(targets, model.encode_templates(names, ["a {}."]), rtol=0, atol=0)


def test_anchors_follow_the_classes():
    """An anchor that shared a class's features has its own ones when that class goes."""
    model, targets = make_model().train(), torch.nn.functional.normalize(torch.randn(2, DIM), dim=-1)
    model.set_anchors(["dog", "yak"], targets)
    assert model.anchors.of_class.tolist() == [1, -1]
    before = model(image_embeds=embeddings(1), labels=torch.zeros(1, dtype=torch.int64)).nfl_loss
    for names in (["yak", "bee"], OTHERS):
        model.set_classes(names)
        assert model.anchors.of_class.tolist() == [-1, names.index("yak")]
        after = model(image_embeds=embeddings(1), labels=torch.zeros(1, dtype=torch.int64)).nfl_loss
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_subset_of_the_names_has_the_gradient_of_all_on_average():
    model = make_model().train()
    targets = model.encode_templates(OTHERS, ["a {}."])

    def gradient():
        model.zero_grad()
        model(image_embeds=embeddings(4), labels=torch.arange(4)).loss.backward()
        return model.context.grad.clone()

    model.set_anchors(OTHERS, targets, weight=3.0)
    whole = gradient()
    model.set_anchors(OTHERS, targets, weight=3.0, per_step=1)
    torch.manual_seed(0)
    chosen, gradients = set(), []
    for _ in range(150):
        gradients.append(gradient())
        chosen.add(round(float(gradients[-1].abs().sum()), 4))
    assert len(chosen) == len(OTHERS)
    error = (torch.stack(gradients).mean(0) - whole).norm() / whole.norm()
    single = (gradients[0] - whole).norm() / whole.norm()
    assert error < 0.25 * single


def test_nfl_in_both_phases_and_its_parts_in_the_log(tmp_path):
    trainer = make_trainer(
        tmp_path, nfl_weight=1.0, nfl_names=OTHERS, nfl_templates=["a {}."], logging_strategy="epoch"
    )
    trainer.fit()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 6
    for log in logs:
        assert log["loss"] == pytest.approx(log["ce_loss"] + log["nfl_loss"], rel=1e-3)


def test_a_class_specific_context_has_no_nfl_for_other_names(tmp_path):
    model = make_model(class_specific=True, class_names=NAMES)
    options = dict(nfl_weight=1.0, nfl_templates=["a {}."])
    with pytest.raises(ValueError, match="needs one context for all names"):
        make_trainer(tmp_path, model, nfl_names=OTHERS, **options)
    trainer = make_trainer(tmp_path, model, anchor_names="base", **options)  # KgCoOp's can
    trainer.fit()
    assert trainer.prompt_model.anchors.weight == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(names=["yak", "yak"]), "twice"),
        (dict(weight=-1.0), "can't be negative"),
        (dict(targets=torch.ones(2, DIM)), "3 names and 2 targets"),
        (dict(per_step=0), "`per_step` must be at least 1"),
        (dict(kind="l3"), "one of cosine, l2"),
    ],
)
def test_bad_anchors_are_named(change, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.set_anchors(**{"names": OTHERS, "targets": torch.ones(3, DIM), **change})
