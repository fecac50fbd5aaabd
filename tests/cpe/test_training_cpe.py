# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer against a plain loop, its resumption, its averages, and what must not matter."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig

from hf_methods.cpe import CPEConfig, CPEForImageClassification, CPEImageProcessor, CPETrainer, CPETrainingArguments
from hf_methods.cpe.augmentation_cpe import Augmentation, normalize, strong_augment, weak_augment
from hf_methods.cpe.data_cpe import TwoStreamBatchSampler, images_to_tensor


ROOT = Path(__file__).parents[2]
COUNTS = [12, 6, 4, 2]
VIT = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4,
    hidden_dropout_prob=0.0,
)  # fmt: skip
PROCESSOR = CPEImageProcessor(size={"height": 12, "width": 12})


def pictures(labels, seed=0):
    """Images whose class can be seen: the brightness of a quarter, with noise."""
    rng = np.random.default_rng(seed)
    images = []
    for label in labels:
        pixels = rng.integers(0, 120, (12, 12, 3))
        row, column = divmod(label % 4, 2)
        pixels[6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 120
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


LABELED = pictures(np.repeat(range(4), COUNTS).tolist())
HIDDEN = (list(range(4)) * 10)[:37]
UNLABELED = pictures(HIDDEN, seed=1)
TEST = pictures([0, 1, 2, 3] * 3, seed=2)


def make_model(seed=0, **fields):
    torch.manual_seed(seed)
    defaults = dict(num_labels=4, class_counts=COUNTS, depth=10, widen_factor=1, image_size=12, bn_momentum=0.1)
    return CPEForImageClassification(CPEConfig(**{**defaults, **fields}))


def make_trainer(
    folder, model=None, unlabeled=UNLABELED, processor=PROCESSOR, labeled=LABELED, kwargs=None, **arguments
):
    defaults = dict(
        max_steps=6, per_device_train_batch_size=4, threshold=0.3, ema_decay=0.9, crop_padding=2, learning_rate=0.03,
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=3, seed=5,
    )  # fmt: skip
    args = CPETrainingArguments(output_dir=str(folder), **{**defaults, **arguments})
    return CPETrainer(
        make_model() if model is None else model, args, labeled, unlabeled, TEST, processor, **(kwargs or {})
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    return [name for name in first if (first[name] - second[name]).abs().max() > tolerance]


def test_training_is_the_plain_loop_of_the_papers_step(tmp_path):
    model = make_model().double()
    trainer = make_trainer(tmp_path, copy.deepcopy(model), lambda_u=0.7)
    trainer.train()

    images = torch.cat([images_to_tensor(data["image"], 12, 3) for data in (LABELED, UNLABELED)])
    labels = torch.tensor(LABELED["label"])
    mean, std = torch.tensor(PROCESSOR.image_mean), torch.tensor(PROCESSOR.image_std)
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("classwise_norm")]
    others = [p for p in model.parameters() if not any(p is q for q in decayed)]
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = Augmentation(crop_padding=2)
    model.train()
    for step, batch in enumerate(TwoStreamBatchSampler(24, 37, 4, 2, 6, seed=5)):
        views = []
        for kind, (augment, rows) in enumerate(
            [(weak_augment, batch[:4]), (weak_augment, batch[4:]), (strong_augment, batch[4:])]
        ):
            uniforms = settings.draw(len(rows), (5, step, 0, kind))
            views.append(normalize(augment(images[rows], uniforms, settings), mean, std).double())
        output = model(views[0], labels[batch[:4]], views[1], views[2], threshold=0.3, lambda_u=0.7)
        model.zero_grad()
        output.loss.backward()
        with torch.no_grad():
            for p in model.parameters():  # SGD with Nesterov momentum
                gradient = p.grad + (5e-4 * p if any(p is q for q in decayed) else 0)
                velocity[p] = 0.9 * velocity[p] + gradient
                p -= 0.03 * (gradient + 0.9 * velocity[p])
            for name, p in model.named_parameters():
                averages[name] = 0.9 * averages[name] + 0.1 * p
    assert len(decayed) + len(others) == len(list(model.parameters())) and len(others) > 5
    assert differing(weights(trainer.model), weights(model), 1e-7) == []
    assert differing(dict(zip(trainer.ema.names, trainer.ema.averages)), averages, 1e-7) == []
    assert differing(weights(make_model().double()), weights(model), 1e-2)  # all of it moved something


def test_the_official_names_of_decayed_parameters(tmp_path):
    trainer = make_trainer(tmp_path)
    names = set(trainer.get_decay_parameter_names(trainer.model))
    assert {"backbone.encoder.stem.weight", "classifier.weight"} < names
    assert not any("norm" in name or "bn" in name or "bias" in name for name in names)


@pytest.mark.parametrize("backbone", [None, VIT], ids=["wide_resnet", "vit"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(backbone, tmp_path):
    arguments = dict(save_strategy="steps", save_steps=4, gradient_accumulation_steps=2, max_steps=7)

    def model():
        return make_model(drop_rate=0.1, backbone_config=backbone)

    whole = make_trainer(tmp_path / "whole", model(), **arguments)
    whole.train()
    resumed = make_trainer(tmp_path / "again", model(), dataloader_num_workers=1, cache_images=False, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert differing(weights(whole.model), weights(resumed.model)) == []
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.averages, resumed.ema.averages))
    stored = weights(CPEForImageClassification.from_pretrained(tmp_path / "whole" / "checkpoint-4"))
    assert differing(stored, weights(whole.model))
    averages = load_file(tmp_path / "whole" / "checkpoint-4" / "ema.safetensors")
    assert differing(averages, {name: stored[name] for name in averages})


def test_a_checkpoint_without_averages_begins_them_anew(tmp_path, caplog):
    arguments = dict(save_strategy="steps", save_steps=3)
    make_trainer(tmp_path, **arguments).train()
    (tmp_path / "checkpoint-3" / "ema.safetensors").unlink()
    trainer = make_trainer(tmp_path / "again", **arguments)
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-3"))
    assert "has no ema.safetensors: the averages begin anew" in caplog.text
    assert all(torch.equal(a, p) for a, p in zip(trainer.ema.averages, trainer.model.parameters()))


def test_labels_of_unlabeled_images_change_nothing_but_the_diagnostics(tmp_path):
    runs = []
    for number, hidden in enumerate((HIDDEN, HIDDEN[::-1], [-1] * 37)):
        unlabeled = UNLABELED.remove_columns("label").add_column("label", hidden)
        trainer = make_trainer(tmp_path / str(number), unlabeled=unlabeled)
        trainer.train()
        runs.append((weights(trainer.model), trainer.state.log_history))
    without = make_trainer(tmp_path / "without", unlabeled=UNLABELED.remove_columns("label"))
    without.train()
    for other, _ in (*runs[1:], (weights(without.model), None)):
        assert differing(runs[0][0], other) == []
    precisions = [[entry["expert0/precision"] for entry in log if "expert0/precision" in entry] for _, log in runs]
    assert precisions[0] != precisions[1] and precisions[2] == []


@pytest.mark.parametrize("augment_on_device", [True, False])
def test_the_pil_path_gives_the_same_run(augment_on_device, tmp_path):
    trainers = [make_trainer(tmp_path / str(flag), augment_on_device=flag) for flag in (True, augment_on_device)]
    for trainer in trainers:
        trainer.train()
    assert differing(*(weights(trainer.model) for trainer in trainers)) == []


PLAIN = dict(crop_padding=0, horizontal_flip=False, randaugment_ops=0, max_cutout=0.0)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    runs = []
    for size, accumulation in ((8, 1), (4, 2)):
        model = make_model(backbone_config=VIT, use_cbn=False)  # no batch statistics
        trainer = make_trainer(
            tmp_path / str(size), model, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            unsup_reduction="batch", **PLAIN,
        )  # fmt: skip
        trainer.train()
        runs.append(weights(model))
    assert differing(*runs, tolerance=1e-6) == [] and differing(
        runs[0], weights(make_model(backbone_config=VIT, use_cbn=False))
    )


def test_bfloat16_trains_nearly_as_float32_with_weights_in_float32(tmp_path):
    exact, half = (make_trainer(tmp_path / str(bf16), bf16=bf16) for bf16 in (False, True))
    for trainer in (exact, half):
        trainer.train()
    parameters = [dict(trainer.model.named_parameters()) for trainer in (exact, half)]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in (*parameters[1].values(), *half.ema.averages))
    assert differing(*parameters) != []
    moved = max((p - dict(make_model().named_parameters())[name]).abs().max() for name, p in parameters[0].items())
    assert differing(*parameters, tolerance=moved.item() / 2) == []


def test_supervised_training_needs_no_unlabeled_images(tmp_path):
    runs = []
    for number, arguments in enumerate((dict(unlabeled=None), dict(mu=0), dict(threshold=1.5, lambda_u=0.0))):
        model = make_model(backbone_config=VIT, use_cbn=False)
        trainer = make_trainer(tmp_path / str(number), model, **arguments)
        trainer.train()
        runs.append(weights(model))
    assert differing(runs[0], runs[1]) == [] and differing(runs[0], runs[2], 1e-6) == []


def test_the_unsupervised_loss_waits_for_its_warm_up(tmp_path):
    trainer = make_trainer(tmp_path, warmup_supervised_steps=6)
    trainer.train()
    never = make_trainer(tmp_path, lambda_u=0.0)
    never.train()
    partly = make_trainer(tmp_path, warmup_supervised_steps=3)
    partly.train()
    assert differing(weights(trainer.model), weights(never.model)) == []
    assert differing(weights(partly.model), weights(never.model))


def test_fixmatch_and_logit_adjustment_are_settings(tmp_path):
    for taus in ((0.0,), (1.0,)):
        model = make_model(taus=taus, use_cbn=False)
        trainer = make_trainer(tmp_path / str(taus), model, unsup_reduction="batch")
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0 and model.config.num_groups == 1


def test_averages_answer_and_are_saved_and_the_model_gets_its_own_back(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    online = weights(trainer.model)
    metrics = trainer.evaluate()["eval_loss"]
    logits = trainer.predict(TEST).predictions
    trainer.save_model(str(tmp_path / "saved"))
    assert differing(weights(trainer.model), online) == []
    saved = CPEForImageClassification.from_pretrained(tmp_path / "saved").eval()
    inputs = PROCESSOR(TEST["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = saved(inputs, torch.tensor(TEST["label"]))
    np.testing.assert_allclose(output.logits.numpy(), logits, atol=1e-5)
    assert logits.shape == (12, 4) and float(output.loss) == pytest.approx(metrics, abs=1e-5)
    for name, average in zip(trainer.ema.names, trainer.ema.averages):
        assert torch.equal(saved.state_dict()[name], average)
    for name, buffer in trainer.model.named_buffers():
        assert torch.equal(saved.state_dict()[name], buffer)
    averaged = make_trainer(tmp_path, ema_buffers="average")
    averaged.train()
    averaged.save_model(str(tmp_path / "averaged"))
    saved = CPEForImageClassification.from_pretrained(tmp_path / "averaged").state_dict()
    assert all(torch.equal(saved[name], average) for name, average in zip(averaged.ema.names, averaged.ema.averages))
    assert "classwise_norm.running_mean" in averaged.ema.names
    assert differing(weights(averaged.model), online) == []  # training itself is the same
    plain = make_trainer(tmp_path, trainer.model, eval_with_ema=False, save_ema_as_main=False)
    assert plain.evaluate()["eval_loss"] != metrics


def test_the_model_gets_its_own_back_if_evaluation_fails(tmp_path):
    def fail(_):
        raise RuntimeError("broken metric")

    trainer = make_trainer(tmp_path, kwargs={"compute_metrics": fail})
    trainer.train()
    online = weights(trainer.model)
    with pytest.raises(RuntimeError, match="broken metric"):
        trainer.evaluate()
    assert differing(weights(trainer.model), online) == []
    with trainer.averaged(), trainer.averaged():
        trainer.save_model(str(tmp_path / "inside"))
        assert differing(weights(trainer.model), online)
    assert differing(weights(trainer.model), online) == []


def test_the_best_checkpoint_comes_back_with_its_averages(tmp_path):
    trainer = make_trainer(
        tmp_path, save_strategy="steps", eval_strategy="steps", save_steps=2, eval_steps=2, load_best_model_at_end=True,
        learning_rate=1.0,
    )  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"  # such a learning rate makes it worse
    averages = load_file(best / "ema.safetensors")
    assert all(torch.equal(averages[name], average) for name, average in zip(trainer.ema.names, trainer.ema.averages))


def test_the_log_has_numbers_and_the_state_has_tables(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    history = json.loads(json.dumps(trainer.state.log_history))
    assert [entry["step"] for entry in history if "loss" in entry] == [3, 6]
    assert "expert2/utilization" in history[0] and "grad_norm" not in history[0]
    tables = [entry for entry in history if "pseudo_label_counts" in entry]
    assert len(tables) == 2 and np.shape(tables[0]["pseudo_label_counts"]) == (3, 4)


def test_a_set_of_unlabeled_images_smaller_than_a_batch_repeats(tmp_path):
    trainer = make_trainer(tmp_path, unlabeled=UNLABELED.select(range(3)))
    assert trainer.train().global_step == 6


def test_counts_are_filled_in_or_must_agree(tmp_path):
    trainer = make_trainer(tmp_path, make_model(class_counts=None))
    assert trainer.model.config.class_counts == COUNTS
    with pytest.raises(ValueError, match=r"is \[1, 2, 3, 4\], but `train_dataset` has \[12, 6, 4, 2\]"):
        make_trainer(tmp_path, make_model(class_counts=[1, 2, 3, 4]))
    with pytest.raises(Exception, match="is 0 for LABEL_3"):
        make_trainer(tmp_path, make_model(class_counts=None), labeled=LABELED.select(range(22)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_steps=-1), "`max_steps`.*-1"),
        (dict(unsup_reduction="mean"), "selected, batch, got 'mean'"),
        (dict(normalizer_scope="world"), "'rank' or 'global', got 'world'"),
        (dict(ema_buffers="none"), "'copy' or 'average', got 'none'"),
        (dict(mu=-1), "`mu` must be finite and at least 0, got -1"),
        (dict(ema_decay=1.0), "`ema_decay`.*below 1, got 1.0"),
        (dict(max_cutout=1.5), "`max_cutout`"),
    ],
)
def test_bad_settings_raise_before_the_work(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CPETrainingArguments(output_dir=str(tmp_path), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(model=torch.nn.Linear(1, 1)), TypeError, "CPEForImageClassification, got Linear"),
        (dict(processor=None), TypeError, "image processor"),
        (dict(processor=CPEImageProcessor()), ValueError, "32.*config.image_size=12"),
        (dict(processor=CPEImageProcessor(image_mean=[0.5])), ValueError, "1 numbers for images of num_channels=3"),
        (dict(labeled=LABELED.select([])), ValueError, "labelled data set is empty"),
        (dict(unlabeled=UNLABELED.select([])), ValueError, "unlabelled data set is empty"),
        (dict(labeled=pictures([0, 4])), ValueError, "from 0 to 3, got 0 to 4"),
        (dict(image_column="img"), ValueError, "no column 'img'"),
    ],
)
def test_what_can_not_be_trained_raises(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, **arguments)


def test_training_needs_data(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset`"):
        make_trainer(tmp_path, labeled=None).train()


def test_other_optimizers_can_be_taken(tmp_path):
    trainer = make_trainer(tmp_path, optim="adamw_torch", learning_rate=1e-3, max_grad_norm=1.0)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert "grad_norm" in trainer.state.log_history[0]


# --- two processes -----------------------------------------------------------------------------------------------------


TWO_PROCESSES = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
TWO_PROCESSES += ["--config_file", "training/accelerate/cpu_2.yaml"]


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path):
    main(tmp_path / "one", 8)
    # This file as a script; the other process could not import a function of a test.
    command = [*TWO_PROCESSES, "tests/cpe/test_training_cpe.py", str(tmp_path / "two"), "4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for file in ("model.safetensors", "ema.safetensors"):
        one, two = (load_file(tmp_path / folder / file) for folder in ("one", "two"))
        assert differing(one, two, tolerance=1e-10) == []
        assert any(one[name].abs().max() > 0 for name in one if "bias" in name)
    # What two processes began one goes on with, if it takes the images of both.
    checkpoint = str(tmp_path / "two" / "checkpoint-2")
    main(tmp_path / "again", 8, checkpoint)
    one, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "again"))
    assert differing(one, again, tolerance=1e-10) == []
    with pytest.raises(ValueError, match="with 8 examples a step, now it would be 4 .* product is 8"):
        main(tmp_path / "refused", 4, checkpoint)


def test_synchronisation_takes_all_batch_norms_or_says_why_not():
    def args(device):
        return SimpleNamespace(sync_batchnorm=True, world_size=2, device=torch.device(device))

    with pytest.raises(ValueError, match="`sync_batchnorm` of a backbone with batch norms needs GPUs"):
        CPETrainer._synchronize(make_model(), args("cpu"))
    model = make_model()
    CPETrainer._synchronize(model, args("cuda"))
    assert model.classwise_norm.synchronize and not any(type(m) is torch.nn.BatchNorm2d for m in model.modules())
    vit = make_model(backbone_config=VIT)
    CPETrainer._synchronize(vit, args("cpu"))
    assert vit.classwise_norm.synchronize


def main(folder, batch_size, checkpoint=None):
    trainer = make_trainer(
        folder, make_model(backbone_config=VIT).double(), per_device_train_batch_size=int(batch_size),
        sync_batchnorm=True, normalizer_scope="global", save_ema_as_main=False, max_steps=4, save_strategy="steps",
        save_steps=2,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(folder)
    if trainer.is_world_process_zero():
        trainer.ema.save(Path(folder, "ema.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
