# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Trainers in two gloo processes, with accumulated gradients, in bfloat16 and stopped, where the methods' own tests do not.

CPE's and SubPT's trainers are in tests/cpe/test_training_cpe.py, tests/subpt/test_distributed_subpt.py and
tests/subpt/test_training_subpt.py. The data sets here do not fill the last batch. Trainer would fill it with images of the
epoch's beginning, more of them the more processes there are; `dataloader_drop_last` leaves it out, and then any number of
processes takes the same steps.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from two_processes import WORLD, run_in_two

from hf_methods import CrossTeachingConfig, CrossTeachingModel, CrossTeachingTrainer, CrossTeachingTrainingArguments
from hf_methods.args import parse_args_and_config
from hf_methods.cpe.arguments_cpe import CPETrainingArguments
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes
from hf_methods.cross_teaching.training_cross_teaching import default_views
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.mbf.recipe_mbf import ClassifierArguments, load_classifier
from hf_methods.processes import check_processes
from hf_methods.resume import last_whole_checkpoint
from hf_methods.softmax1.arguments_softmax1 import Softmax1TrainingArguments
from hf_methods.softmax1.recipe_softmax1 import DataArguments, ModelArguments
from hf_methods.subpt.arguments_subpt import SubPTTrainingArguments


ROOT = Path(__file__).parents[1]
STEPS, SAVED = 4, 2
COMMON = {
    "max_steps": STEPS, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_drop_last": True,
    "save_strategy": "steps", "save_steps": SAVED, "logging_steps": 1,
}  # fmt: skip


def load_script(method):
    spec = importlib.util.spec_from_file_location(f"train_{method}", ROOT / "training" / method / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def softmax1(folder, corpus, per_device, accumulation, **options):
    """The recipe: a GPT-2 with OrthoAdam on blocks of text."""
    options = {
        "corpus": corpus, "vocab_size": 280, "output_dir": folder, "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation, "learning_rate": 1e-2, **COMMON, **options,
    }  # fmt: skip
    argv = ["--config", str(ROOT / "training/softmax1/smoke.yaml")]
    argv += [word for name, value in options.items() for word in (f"--{name}", str(value).lower() if value in (True, False) else str(value))]  # fmt: skip
    load_script("softmax1").train(
        *parse_args_and_config((ModelArguments, DataArguments, Softmax1TrainingArguments), argv)
    )
    if dist.is_initialized():
        dist.barrier()  # the first process has written
    checkpoint = torch.load(Path(folder, f"checkpoint-{STEPS}", "optimizer.pt"))
    moments = [state["exp_avg"] for state in checkpoint["state"].values()]
    return load_file(Path(folder, "model.safetensors")) | {f"moment {i}": moment for i, moment in enumerate(moments)}


def mbf(folder, corpus, per_device, accumulation, **options):
    """The recipe's classifier: a ViT, as batch norms would see another batch in each process; 23 images."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (23, 8, 8), dtype=torch.uint8, generator=draw).numpy()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [Image.fromarray(row) for row in pixels], "label": [i % 3 for i in range(23)]}
    images = Dataset.from_dict(rows, features=features)
    torch.manual_seed(0)
    args = MBFTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation,
        **{**COMMON, "learning_rate": 1e-2, **options},
    )  # fmt: skip
    classifier = ClassifierArguments(architecture="vit", hidden_size=16, num_layers=1)
    splits = DatasetDict(classifier_train=images, validation=images)
    model, _ = load_classifier(classifier, splits, args)
    # The gradient of a key's bias is zero, as softmax does not see it: Adam makes steps of its rounding errors.
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.endswith("k_proj.bias")}


def cross_teaching(folder, corpus, per_device, accumulation, **options):
    """Supervised steps of the trainer: teachers' batch norms, which make pseudo labels, are each process's own."""
    detector = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 5}
    model = CrossTeachingModel(CrossTeachingConfig(detector=detector, arm="sup", burn_in_steps=1, ema_interval=1))
    args = CrossTeachingTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation,
        **{**COMMON, "learning_rate": 1e-2, **options},
    )  # fmt: skip
    views = default_views(model, flip=0.0, translation=0.1, strong="light")
    trainer = CrossTeachingTrainer(model, args, make_digit_scenes("labeled", 5), None, None, views=views)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# How to train, and what one process gives for each of two: per_device_train_batch_size and gradient_accumulation_steps.
# A detector's loss is divided by the objects of a batch: there one process takes the batches of two one after another.
RECIPES = {"softmax1": (softmax1, (4, 1)), "mbf": (mbf, (4, 1)), "cross_teaching": (cross_teaching, (1, 2))}
IN_TWO = {"softmax1": (1, 2), "mbf": (1, 2), "cross_teaching": (1, 1)}


def write_corpus(folder):
    folder.mkdir()
    texts = [f"def f_{i}(x):\n    return {i} * x + {i * i}\n" * 3 for i in range(120)]
    for split, rows in (("train", texts), ("validation", texts[::10])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return str(folder)


def worker(rank, folder):
    for name, (recipe, _) in RECIPES.items():
        weights = recipe(f"{folder}/two-{name}", f"{folder}/corpus", *IN_TWO[name])
        torch.save(weights, f"{folder}/{name}-{rank}.pt")
        dist.barrier()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with the runs in two processes: one pair for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    write_corpus(folder / "corpus")
    run_in_two(worker, folder)
    return folder


def differing(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    return [name for name in a if (a[name].float() - b[name].float()).abs().max() > tolerance]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_that_accumulate_gradients_give_the_weights_of_one(name, folder, tmp_path):
    recipe, settings = RECIPES[name]
    one = recipe(tmp_path / "one", folder / "corpus", *settings)
    for rank in range(WORLD):
        two = torch.load(folder / f"{name}-{rank}.pt")
        assert differing(one, two, tolerance=5e-6) == []
    start = recipe(tmp_path / "start", folder / "corpus", *settings, learning_rate=0.0)
    assert len(differing(one, start, tolerance=1e-3)) > len(one) / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_one_process_goes_on_with_what_two_began(name, folder, tmp_path):
    recipe, settings = RECIPES[name]
    checkpoint = folder / f"two-{name}" / f"checkpoint-{SAVED}"
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / checkpoint.name).symlink_to(checkpoint)
    again = recipe(tmp_path / "again", folder / "corpus", *settings)
    assert differing(again, torch.load(folder / f"{name}-0.pt"), tolerance=5e-6) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / checkpoint.name).symlink_to(checkpoint)
    with pytest.raises(ValueError, match="examples a step, now it would be|samples_per_step: 2 then, 8 now"):
        recipe(tmp_path / "other", folder / "corpus", 8, 1)


@pytest.mark.parametrize("name", ["mbf"])  # the others are in the methods' own tests
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path):
    recipe, settings = RECIPES[name]
    whole = recipe(tmp_path / "whole", None, *settings)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / f"checkpoint-{SAVED}").symlink_to(tmp_path / "whole" / f"checkpoint-{SAVED}")
    (tmp_path / "stopped" / f"checkpoint-{STEPS}").mkdir()  # where it was stopped
    torch.manual_seed(9)  # as if nothing of the first run were left
    assert differing(whole, recipe(tmp_path / "stopped", None, *settings)) == []


@pytest.mark.parametrize("name", ["softmax1", "mbf"])  # the others are in the methods' own tests
def test_bfloat16_trains_nearly_as_float32_with_weights_in_float32(name, tmp_path):
    recipe, settings = RECIPES[name]
    corpus = write_corpus(tmp_path / "corpus")
    exact, half = (recipe(tmp_path / str(bf16), corpus, *settings, bf16=bf16) for bf16 in (False, True))
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in half.values())
    assert differing(exact, half, tolerance=1e-7) != []
    assert differing(exact, half, tolerance=3 * STEPS * 1e-2) == []  # three times what an Adam step can move


@pytest.mark.parametrize(
    "arguments",
    [
        Softmax1TrainingArguments, CPETrainingArguments, SubPTTrainingArguments, CrossTeachingTrainingArguments,
        MBFTrainingArguments,
    ],
)  # fmt: skip
def test_every_method_asks_whether_the_processes_know_of_each_other(arguments, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sys.modules[arguments.__module__], "check_processes", asked.append)
    args = arguments(output_dir=str(tmp_path), use_cpu=True)
    assert len(asked) == 1 and asked[0] is args


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    check_processes(SimpleNamespace(world_size=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(SimpleNamespace(world_size=2))
    with pytest.raises(ValueError, match="2 processes were started, but Trainer sees 1; give use_cpu=True"):
        check_processes(SimpleNamespace(world_size=1))
