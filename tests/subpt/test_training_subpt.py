# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer: CoOp's recipe against a plain loop, SubPT's two phases, and resuming."""

import math
import random
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_subpt import DIM, NAMES, OTHERS, WIDTH, images, make_clip, make_model, make_tokenizer
from torch.nn.functional import cross_entropy
from trainer_subpt import Recorder, make_arguments, make_trainer, rows
from transformers import Trainer, TrainerCallback, set_seed

from hf_methods.subpt import SubPTConfig, SubspaceCollector, training_subpt
from hf_methods.subpt.arguments_subpt import coop_learning_rate
from hf_methods.subpt.subspace_subpt import compute_basis, project
from hf_methods.subpt.training_subpt import SubPTTrainer, classification_accuracy


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


def test_seeds_decide_everything(tmp_path):
    contexts = []
    for seed in (1, 1, 2):
        set_seed(100 + seed)
        trainer = make_trainer(tmp_path, seed=seed)
        trainer.fit()
        contexts.append(trainer.prompt_model.context.detach())
    assert torch.equal(contexts[0], contexts[1]) and not torch.equal(contexts[0], contexts[2])
    assert math.isfinite(float(contexts[0].sum())) and make_tokenizer().eos_token_id
