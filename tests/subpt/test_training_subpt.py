# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer: CoOp's recipe against a plain loop, SubPT's two phases, resuming, NFL and its anchors."""

import math
import random
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_adapter_subpt import make_model
from tiny_subpt import DIM, NAMES, OTHERS, WIDTH, embeddings, images, make_clip, make_tokenizer
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.subpt import SubPTConfig, SubspaceCollector, nfl_loss, training_subpt
from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments, coop_learning_rate, early_epochs
from hf_methods.subpt.subspace_subpt import compute_basis, project
from hf_methods.subpt.training_subpt import SubPTTrainer, classification_accuracy


def rows(number=16):
    features = embeddings(number)
    return [{"image_embeds": features[i], "labels": i % len(NAMES)} for i in range(number)]


def make_arguments(folder, **options):
    defaults = dict(
        num_train_epochs=6, subspace_epochs=4, subspace_rank=2, learning_rate=0.05, per_device_train_batch_size=8,
        use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    if options.get("subspace_rank", 2) == 0:
        defaults["subspace_epochs"] = None
    return SubPTTrainingArguments(str(folder), **{**defaults, **options})


def make_trainer(folder, model=None, dataset=None, callbacks=None, **options):
    model = model if model is not None else make_model()
    return SubPTTrainer(model, make_arguments(folder, **options), train_dataset=dataset or rows(), callbacks=callbacks)


class Recorder(TrainerCallback):
    """Context and learning rate of every step."""

    def __init__(self):
        self.contexts, self.rates = [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.contexts.append(model.context.detach().clone())


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_epochs", [2, 50, 100, 200])
def test_the_schedule_is_torchs_cosine_behind_a_constant_epoch(num_epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    expected = [1e-5]
    for _ in range(num_epochs - 1):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    rates = [coop_learning_rate(epoch, num_epochs, 2e-3) for epoch in range(1, num_epochs + 1)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("epochs", "steps", "factor"), [(50, 4, 0.9990389), (100, 4, 0.9980407), (200, 4, 0.9960465), (100, 10, 0.9949934)]
)
def test_decay_shrinks_the_part_outside_by_the_known_factor(epochs, steps, factor):
    a, v = 1.0, 0.0
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            v = 0.9 * v + 5e-4 * a
            a -= coop_learning_rate(epoch, epochs, 2e-3) * v
    assert a == pytest.approx(factor, abs=1e-7)


@pytest.mark.parametrize(
    ("epochs", "shots", "expected"), [(50, 1, 10), (100, 2, 20), (100, 4, 30), (200, 8, 40), (200, 16, 50)]
)
def test_the_early_epochs_are_the_published_ones(epochs, shots, expected):
    assert early_epochs(epochs, shots) == expected


def test_without_a_table_three_tenths_are_early():
    assert [early_epochs(e) for e in (100, 50, 10, 3, 2)] == [30, 15, 3, 2, 2]
    assert early_epochs(40, 16) == 40


def test_the_defaults_are_the_papers(tmp_path):
    arguments = SubPTTrainingArguments(str(tmp_path), use_cpu=True)
    assert (arguments.num_train_epochs, arguments.subspace_epochs, arguments.subspace_rank) == (100, 30, 10)
    assert (arguments.learning_rate, arguments.momentum, arguments.weight_decay) == (2e-3, 0.9, 5e-4)
    assert (arguments.max_grad_norm, arguments.train_batch_size, arguments.nfl_loss) == (0, 32, "cosine")
    assert not arguments.remove_unused_columns and arguments.label_names == ["labels"]


def test_the_trainer_is_coops_loop(tmp_path):
    """Full batches, so that their order does not matter."""
    model, data = make_model(seed=3), rows()
    context = torch.nn.Parameter(model.context.detach().clone())
    recorder = Recorder()
    make_trainer(
        tmp_path, make_model(seed=3), per_device_train_batch_size=16, subspace_rank=0, callbacks=[recorder]
    ).fit()
    features = torch.stack([row["image_embeds"] for row in data])
    labels = torch.tensor([row["labels"] for row in data])
    optimizer = torch.optim.SGD([context], 0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(1, 7):
        optimizer.param_groups[0]["lr"] = coop_learning_rate(epoch, 6, 0.05)
        optimizer.zero_grad()
        with torch.no_grad():
            model.context.copy_(context)
        logits = model.get_base_model().logit_scale.exp() * features @ model.encode_classes().T
        (context.grad,) = torch.autograd.grad(cross_entropy(logits, labels), [model.context])
        optimizer.step()
        torch.testing.assert_close(recorder.contexts[epoch - 1], context.detach(), rtol=1e-4, atol=1e-6)
    assert recorder.rates == pytest.approx([coop_learning_rate(epoch, 6, 0.05) for epoch in range(1, 7)])
    assert (context - make_model(seed=3).context).norm() > 0.05


def test_the_learning_rate_changes_by_epochs_and_not_by_steps(tmp_path):
    recorder = Recorder()
    make_trainer(tmp_path, subspace_rank=0, num_train_epochs=3, callbacks=[recorder]).fit()
    assert recorder.rates == pytest.approx([coop_learning_rate(e, 3, 0.05) for e in (1, 1, 2, 2, 3, 3)])


# --- trap 4: accumulation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 2), (4, 4)])
def test_accumulation_gives_the_update_of_the_whole_batch(tmp_path, batch, accumulate):
    contexts = []
    for size, steps in ((16, 1), (batch, accumulate)):
        trainer = make_trainer(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_grad_norm=0.05
        )
        assert trainer.model_accepts_loss_kwargs is False
        trainer.fit()
        contexts.append(trainer.prompt_model.context.detach())
    torch.testing.assert_close(*contexts, rtol=1e-4, atol=1e-6)
    assert (contexts[0] - make_model().context).norm() > 1e-3


# --- SubPT -----------------------------------------------------------------------------------------------------------


def outside(displacement, basis):
    return displacement - project(displacement, basis.components)


def test_the_collected_snapshots_are_those_of_the_whole_run(tmp_path):
    plain = make_trainer(tmp_path, subspace_rank=0)
    collector = SubspaceCollector(plain.prompt_model.context)
    with pytest.raises(ValueError, match="no snapshots yet; train some epochs"):
        collector.basis(2)
    plain.add_callback(collector)
    plain.fit()
    output = make_trainer(tmp_path).fit()
    assert torch.equal(output.snapshots, torch.stack(collector.snapshots[:4])) and len(collector.snapshots) == 6
    del collector.snapshots[4:]
    assert torch.equal(collector.basis(2).components, output.basis.components)


def test_the_cost_is_that_of_the_early_epochs_and_one_run(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path, callbacks=[recorder])
    output = trainer.fit()
    assert len(recorder.rates) == (4 + 6) * 2  # (t_early + E) * steps an epoch, not 2 E
    assert output.metrics["collect_runtime"] > 0 and output.basis is trainer.prompt_model.basis
    assert not trainer.prompt_model.context._backward_hooks


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_without_decay_the_second_run_stays_in_the_subspace_of_its_start(tmp_path, max_grad_norm):
    start = make_model().context.detach()
    trainer = make_trainer(tmp_path, weight_decay=0.0, max_grad_norm=max_grad_norm)
    output = trainer.fit()
    assert torch.equal(output.start, start)
    displacement = trainer.prompt_model.context.detach() - start
    assert displacement.norm() > 0.01
    assert outside(displacement, output.basis).norm() < 1e-5 * displacement.norm()
    free = make_trainer(tmp_path, weight_decay=0.0, subspace_rank=0, max_grad_norm=max_grad_norm)
    free.fit()
    displacement = free.prompt_model.context.detach() - start
    assert outside(displacement, output.basis).norm() > 0.02 * displacement.norm()


def test_decay_only_shrinks_the_part_outside(tmp_path):
    start = make_model().context.detach()
    recorder = Recorder()
    trainer = make_trainer(tmp_path, weight_decay=0.05, callbacks=[recorder])
    output = trainer.fit()
    a, v = 1.0, 0.0
    for rate in recorder.rates[8:]:
        v = 0.9 * v + 0.05 * a
        a -= rate * v
    assert a < 0.95
    torch.testing.assert_close(
        outside(trainer.prompt_model.context.detach(), output.basis),
        a * outside(start, output.basis),
        rtol=0,
        atol=1e-5,
    )


def test_both_phases_see_the_batches_in_the_same_order(tmp_path):
    seen = []

    class Order(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(len(batches))

    batches = []
    model = make_model()
    forward = model.forward
    model.forward = lambda **inputs: batches.append(inputs["labels"].tolist()) or forward(**inputs)
    make_trainer(tmp_path, model, callbacks=[Order()]).fit()
    assert batches[:8] == batches[8:16] and batches[0:2] != batches[2:4]


def test_rewinding(tmp_path):
    start = make_model().context.detach()
    first = make_trainer(tmp_path, rewind="first_snapshot").fit()
    assert torch.equal(first.start.flatten(), first.snapshots[0]) and not torch.equal(first.start, start)
    stay = make_trainer(tmp_path, rewind="none").fit()
    assert torch.equal(stay.start.flatten(), stay.snapshots[-1])


def test_an_early_stop_keeps_the_whole_schedule(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path, subspace_rank=0, stop_epochs=4, callbacks=[recorder])
    output = trainer.fit()
    assert recorder.rates == pytest.approx([coop_learning_rate(e, 6, 0.05) for e in (1, 1, 2, 2, 3, 3, 4, 4)])
    assert output.basis is None and output.snapshots is None
    assert torch.equal(trainer.prompt_model.context.detach().flatten(), make_trainer(tmp_path).fit().snapshots[-1])


def test_a_random_subspace_needs_no_first_run(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path, subspace_source="random", weight_decay=0.0, callbacks=[recorder])
    output = trainer.fit()
    assert len(recorder.rates) == 12 and output.snapshots is None and output.basis.rank == 2
    displacement = trainer.prompt_model.context.detach() - output.start
    assert displacement.norm() > 1e-3 and outside(displacement, output.basis).norm() < 1e-5 * displacement.norm()


def test_a_late_subspace_is_that_of_the_last_snapshots_of_a_whole_run(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path, subspace_source="late", callbacks=[recorder])
    output = trainer.fit()
    assert len(recorder.rates) == 24 and output.snapshots.shape[0] == 6  # two whole runs of 6 epochs of 2 steps
    ends = torch.stack([context.flatten() for context in recorder.contexts[1:12:2]])
    assert torch.equal(output.snapshots, ends)
    late, early = (compute_basis(rows, 2).components for rows in (ends[-4:], ends[:4]))
    assert torch.equal(output.basis.components, late) and not torch.allclose(late.T @ late, early.T @ early, atol=1e-3)


def test_projected_updates_keep_adamw_in_the_subspace_and_projected_gradients_warn(tmp_path):
    options = dict(optim="adamw_torch", weight_decay=0.01, learning_rate=0.05)
    trainer = make_trainer(tmp_path, projection="update", **options)
    output = trainer.fit()
    displacement = trainer.prompt_model.context.detach() - output.start
    assert outside(displacement, output.basis).norm() < 1e-5 * displacement.norm()
    with pytest.warns(UserWarning, match="leaves the subspace.*projection='update'"):
        make_trainer(tmp_path, **options)


def test_bfloat16_autocast_trains_a_float32_context(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True, weight_decay=0.0)
    output = trainer.fit()
    displacement = trainer.prompt_model.context.detach() - output.start
    assert displacement.dtype == torch.float32 and displacement.isfinite().all()
    assert outside(displacement, output.basis).norm() < 1e-5 * displacement.norm()


def test_a_context_that_stands_still_is_named(tmp_path):
    with pytest.raises(ValueError, match="span 0 directions.*Raise the learning rate"):
        make_trainer(tmp_path, learning_rate=0.0, warmup_learning_rate=0.0).fit()


def test_the_whole_fit_is_the_same_in_chunks(tmp_path):
    contexts = []
    for size in (None, 2):
        trainer = make_trainer(tmp_path, class_chunk_size=size)
        trainer.fit()
        contexts.append(trainer.prompt_model.context.detach())
    torch.testing.assert_close(*contexts, rtol=1e-3, atol=1e-5)


# --- resuming --------------------------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step, self.steps = step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == self.step:
            raise KeyboardInterrupt


# 2 steps an epoch: steps 1..8 collect, 9..20 are the second run.
@pytest.mark.parametrize("step", [1, 5, 8, 12])
@pytest.mark.parametrize("strategy", ["epoch"])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, step, strategy):
    options = dict(save_strategy=strategy, save_steps=1, nfl_weight=0.5, nfl_names=OTHERS, nfl_templates=["a {}."])
    whole = make_trainer(tmp_path / "whole", **options)
    expected = whole.fit()
    broken = make_trainer(tmp_path / "broken", callbacks=[Interrupt(step)], **options)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    for checkpoint in ("collect/checkpoint-100", "checkpoint-100"):  # stopped while it was written
        (tmp_path / "broken" / checkpoint).mkdir(parents=True)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)  # another process has another state
    again = make_trainer(tmp_path / "broken", **options)
    output = again.fit(resume=True)
    torch.testing.assert_close(output.snapshots, expected.snapshots, rtol=0, atol=0)
    torch.testing.assert_close(output.start, expected.start, rtol=0, atol=0)
    torch.testing.assert_close(again.prompt_model.context, whole.prompt_model.context, rtol=0, atol=0)


@pytest.mark.parametrize("rewind", ["none", "init"])
def test_a_run_that_was_stopped_behind_the_last_snapshot_goes_on_from_there(tmp_path, rewind, monkeypatch):
    options = dict(save_strategy="epoch", rewind=rewind)
    expected = make_trainer(tmp_path / "whole", **options).fit()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_subpt, "compute_basis", Mock(side_effect=KeyboardInterrupt))
        make_trainer(tmp_path / "broken", **options).fit()
    output = make_trainer(tmp_path / "broken", **options).fit(resume=True)
    torch.testing.assert_close(output.start, expected.start, rtol=0, atol=0)
    assert torch.equal(output.start.flatten(), output.snapshots[-1]) == (rewind == "none")


def test_a_context_that_nan_has_reached_is_refused(tmp_path):
    data = rows()
    data[3]["image_embeds"] = data[3]["image_embeds"] * float("nan")
    with pytest.raises(ValueError, match="context is not finite: look for NaN in `pixel_values` or `image_embeds`"):
        make_trainer(tmp_path, dataset=data, subspace_rank=0).fit()


def test_labels_that_are_no_class_are_no_wrong_answers():
    for labels in ([0, 5], [-1, 0]):
        with pytest.raises(ValueError, match=r"`labels` must be from 0 to 4, got"):
            classification_accuracy(torch.ones(2, DIM), torch.tensor(labels), torch.ones(5, DIM))


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


# --- around training -------------------------------------------------------------------------------------------------


def test_evaluation_has_the_logits_of_the_images_and_the_accuracy(tmp_path):
    def accuracy(prediction):
        assert prediction.predictions.shape == (16, len(NAMES))
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    model = make_model()
    trainer = SubPTTrainer(
        model, make_arguments(tmp_path, per_device_eval_batch_size=5), train_dataset=rows(), eval_dataset=rows(),
        compute_metrics=accuracy,
    )  # fmt: skip
    metrics = trainer.evaluate()
    features = torch.stack([row["image_embeds"] for row in rows()])
    labels = torch.tensor([row["labels"] for row in rows()])
    expected = trainer.evaluate_classes(features, labels, NAMES)
    assert metrics["eval_accuracy"] == pytest.approx(expected)
    assert metrics["eval_loss"] == pytest.approx(
        float(cross_entropy(model(image_embeds=features).logits.detach(), labels)), rel=1e-4
    )
    assert 0 <= trainer.evaluate_classes(features[:3], torch.arange(3), OTHERS) <= 1


def test_accuracy_by_hand():
    features = torch.eye(3)
    images = torch.tensor([[0.9, 0.1, 0], [0, 1, 0], [0.6, 0.5, 0], [0, 0, 1]])
    assert classification_accuracy(images, torch.tensor([0, 1, 1, 2]), features) == 0.75
    with pytest.raises(ValueError, match="no images"):
        classification_accuracy(images[:0], torch.arange(0), features)


def test_images_train_like_their_features(tmp_path):
    pixel_values = images(8)
    with torch.no_grad():
        features = make_model().encode_images(pixel_values)
    contexts = []
    for column, values in (("pixel_values", pixel_values), ("image_embeds", features)):
        data = [{column: values[i], "labels": i % 5} for i in range(8)]
        trainer = make_trainer(tmp_path, dataset=data)
        trainer.fit()
        contexts.append(trainer.prompt_model.context.detach())
    torch.testing.assert_close(*contexts, rtol=1e-3, atol=1e-5)


def test_fewer_images_than_a_batch_are_a_batch(tmp_path):
    recorder = Recorder()
    make_trainer(tmp_path, dataset=rows(5), subspace_rank=0, callbacks=[recorder]).fit()
    assert len(recorder.rates) == 6
    recorder = Recorder()
    make_trainer(tmp_path, dataset=rows(13), subspace_rank=0, callbacks=[recorder]).fit()
    assert len(recorder.rates) == 6  # the five behind the first eight are dropped


def test_the_adapter_remembers_the_classes_it_was_trained_on(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    trainer.prompt_model.set_classes(OTHERS)
    trainer.prompt_model.save_pretrained(tmp_path / "adapter")
    assert SubPTConfig.from_pretrained(tmp_path / "adapter").class_names == [
        "cat",
        "dog",
        "blue jay",
        "sea lion",
        "ox",
    ]
    assert (tmp_path / "adapter" / "subspace.safetensors").exists()


def test_arguments_come_from_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "output_dir: out\nlearning_rate: 2e-3\nnum_train_epochs: 20\nsubspace_rank: 3\nnfl_weight: 1\n"
        "nfl_names: [great pyrenees, ox]\nuse_cpu: true\n"
    )
    (arguments,) = parse_args_and_config([SubPTTrainingArguments], ["--config", str(path), "--subspace_epochs", "5"])
    assert (arguments.learning_rate, arguments.nfl_names) == (2e-3, ["great pyrenees", "ox"])
    assert (arguments.subspace_epochs, arguments.nfl_weight) == (5, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subspace_rank": 4}, "`subspace_rank` must be at most 3 with 4 snapshots, got 4"),
        ({"subspace_rank": -1}, "`subspace_rank` must be 0 or more"),
        ({"subspace_epochs": 7}, r"`subspace_epochs` must be in 2..6 \(epochs\), got 7"),
        ({"subspace_epochs": 1}, "`subspace_epochs` must be in 2..6"),
        ({"stop_epochs": 7}, "`stop_epochs` must be in 1..6, got 7"),
        ({"nfl_weight": -1.0}, "`nfl_weight` must be 0 or more"),
        ({"nfl_loss": "l1"}, "`nfl_loss` must be one of cosine, l2, got 'l1'"),
        ({"rewind": "back"}, "`rewind` must be one of"),
        ({"projection": "weights"}, "`projection` must be one of grad, update"),
        ({"anchor_names": "novel"}, "`anchor_names` must be one of"),
        ({"schedule": "cosine"}, "`schedule` must be one of"),
        ({"subspace_source": "gradients"}, "`subspace_source` must be one of snapshots, late, random"),
        ({"num_train_epochs": 1.5}, "whole number, 1 or more"),
        ({"max_steps": 5}, "without `max_steps`"),
        ({"fsdp": "full_shard"}, "cut the context into shards.*use DDP"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **options)


def test_bad_models_are_named(tmp_path):
    from peft import get_peft_model

    with pytest.raises(ValueError, match="must be a PeftModelForPromptedImageClassification, got CLIPModel"):
        make_trainer(tmp_path, make_clip())
    with pytest.raises(ValueError, match="has no classes"):
        make_trainer(tmp_path, get_peft_model(make_clip(), SubPTConfig(n_ctx=2)))
    with pytest.raises(ValueError, match="`nfl_weight` needs `nfl_names`"):
        make_trainer(tmp_path, nfl_weight=1.0)
    with pytest.warns(UserWarning, match="there is one class"):
        make_trainer(tmp_path, make_model(names=["cat"]))
    frozen = make_model()
    frozen.context.requires_grad_(False)
    with pytest.raises(ValueError, match="is_trainable=True"):
        make_trainer(tmp_path, frozen)
    merged = make_model()
    merged.merge_adapter()
    with pytest.raises(ValueError, match="the context is merged.*unmerge_adapter"):
        make_trainer(tmp_path, merged)
    with pytest.raises(
        ValueError, match=rf"`subspace_rank` = 200 is more than the 128 values of the context \(4, {WIDTH}\)"
    ):
        make_trainer(tmp_path, subspace_rank=200, subspace_epochs=300, num_train_epochs=300)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1)
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        SubPTTrainer(make_model(), make_arguments(tmp_path), optimizers=(optimizer, None))


@pytest.mark.parametrize("plugin", ["fsdp", "deepspeed"])
def test_shards_are_refused_wherever_they_are_asked_for(tmp_path, monkeypatch, plugin):
    """A launcher's configuration reaches the accelerator past the arguments."""
    real = Trainer.create_accelerator_and_postprocess

    def launched(self):
        real(self)
        self.is_fsdp_enabled = plugin == "fsdp"
        if plugin == "deepspeed":
            stage3 = property(lambda state: SimpleNamespace(zero_stage=3))
            monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", stage3)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", launched)
    with pytest.raises(ValueError, match="FSDP and ZeRO-3 would cut the context into shards"):
        make_trainer(tmp_path)


def test_a_run_goes_on_with_steps_of_the_same_number_of_examples_only(tmp_path):
    options = dict(save_strategy="epoch", subspace_rank=0)
    broken = make_trainer(tmp_path, callbacks=[Interrupt(5)], **options)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    with pytest.raises(ValueError, match="trained with 8 examples a step, now it would be 4"):
        make_trainer(tmp_path, per_device_train_batch_size=4, **options).fit(resume=True)


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


def test_seeds_decide_everything(tmp_path):
    contexts = []
    for seed in (1, 1, 2):
        set_seed(100 + seed)
        trainer = make_trainer(tmp_path, seed=seed)
        trainer.fit()
        contexts.append(trainer.prompt_model.context.detach())
    assert torch.equal(contexts[0], contexts[1]) and not torch.equal(contexts[0], contexts[2])
    assert math.isfinite(float(contexts[0].sum())) and make_tokenizer().eos_token_id
