# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Memory and operations of one step on one GPU, of published presets: writes training/estimates.json, which docs/scaling.md shows.

python training/estimate_presets.py

Models are built without numbers: on the meta device, or as fake CPU tensors where a forward pass asks for its device.
Activations are those of float32, an upper bound of mixed precision.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import get_peft_model
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPConfig, CLIPModel

from hf_methods import SubPTConfig
from hf_methods.cpe import recipe_cpe as cpe
from hf_methods.cross_teaching import recipe_cross_teaching as cross_teaching
from hf_methods.estimates import MemoryEstimate, adamw_state_bytes, count_flops, estimate_memory, sgd_state_bytes
from hf_methods.mbf import recipe_mbf as mbf
from hf_methods.ortho_adam import ortho_adam_state_bytes
from hf_methods.softmax1 import recipe_softmax1 as softmax1
from hf_methods.softmax1.attention_softmax1 import flash_is_exact
from hf_methods.subpt import recipe_subpt as subpt


TRAINING = Path(__file__).parent
GPT2_TOKENS = 50257
CLASSES = {"voc": 20, "coco": 80}
IMAGENET_BASE_CLASSES = 500
FASTER_RCNN_SIDES = (800, 1333)


def settings_of(preset: str) -> dict[str, Any]:
    """The values of a YAML."""
    return yaml.safe_load((TRAINING / f"{preset}.yaml").read_text("utf-8"))


def build(cls: type, settings: dict[str, Any]) -> Any:
    """A dataclass of those settings that it has."""
    return cls(**{name: value for name, value in settings.items() if name in cls.__dataclass_fields__})


class Tokenizer(SimpleNamespace):
    """A vocabulary's size and special tokens, without the vocabulary."""

    def __len__(self):
        return self.size


def softmax1_step(settings):
    """Sequences of one process; OrthoAdam."""
    flash_is_exact("cpu")  # with numbers: the answer is kept, and without any it would be no
    with FakeTensorMode():
        tokenizer = Tokenizer(size=GPT2_TOKENS, bos_token_id=0, eos_token_id=0, pad_token_id=None)
        model = softmax1.build_model(build(softmax1.ModelArguments, settings), tokenizer, settings["seq_len"]).train()
        tokens = torch.zeros(settings["per_device_train_batch_size"], settings["seq_len"], dtype=torch.long)
        return measure(model, {"input_ids": tokens, "labels": tokens}, ortho_adam_state_bytes)


def cpe_step(settings):
    """Labelled images and two views of the unlabelled ones; SGD, averaged parameters."""
    num = 100 if "cifar100" in settings["dataset"] else 10
    size, labeled = 32, settings["per_device_train_batch_size"]
    with torch.device("meta"):
        model = cpe.build_model(build(cpe.ModelArguments, settings), [str(i) for i in range(num)], [9] * num).train()
        views = [torch.zeros(labeled * count, 3, size, size) for count in (1, settings["mu"], settings["mu"])]
        names = ("pixel_values", "pixel_values_weak", "pixel_values_strong")
        batch = {**dict(zip(names, views)), "labels": torch.zeros(labeled, dtype=torch.long)}
        return measure(model, batch, sgd_state_bytes, num_averages=1)


def subpt_step(settings):
    """Text tower of CLIP (width 512, 12 layers, that of RN50 and ViT-B) on the trained classes; images are cached features."""
    _, tokenizer, _ = subpt.make_tiny_clip()
    with torch.device("meta"):
        base = CLIPModel(CLIPConfig())
        model = get_peft_model(base, SubPTConfig(n_ctx=settings["n_ctx"]))
        model.set_classes([f"class {i}" for i in range(IMAGENET_BASE_CLASSES)], tokenizer)
        images = {"image_embeds": torch.zeros(32, 512), "labels": torch.zeros(32, dtype=torch.long)}
        return measure(model.train(), images, sgd_state_bytes)


class DetectorNetworks(nn.Module):
    """Students and teachers on images, without the losses and ROI heads, whose shapes depend on what is seen."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, trained, predicted):
        with torch.no_grad():
            for teacher in self.model.teachers:
                self.run(teacher, predicted)
        return SimpleNamespace(loss=sum(self.run(student, trained) for student in self.model.students))

    def run(self, detector, images):
        """The sum of the raw predictions."""
        features = detector.extract_features(images)
        head = detector.detector.head if detector.config.is_ssd else detector.detector.rpn.head
        outputs = head(list(features.values()))
        outputs = outputs.values() if isinstance(outputs, dict) else [part for parts in outputs for part in parts]
        return sum(output.sum() for output in outputs)


def cross_teaching_step(settings):
    """M students on labelled and strong views, M teachers on weak views; SGD."""
    names = [str(i) for i in range(CLASSES[settings["data_format"]])]
    labeled = settings["per_device_train_batch_size"]
    unlabeled = labeled * settings["unlabeled_ratio"]
    with torch.device("meta"):
        args = build(cross_teaching.ModelArguments, {**settings, "backbone_weights": None})
        model = cross_teaching.build_model(args, names).train()
        sides = (300, 300) if "ssd300" in args.architecture else FASTER_RCNN_SIDES
        images = {
            "trained": torch.zeros(labeled + unlabeled, 3, *sides),
            "predicted": torch.zeros(unlabeled, 3, *sides),
        }
        return measure(DetectorNetworks(model), images, sgd_state_bytes)


def mbf_step(settings):
    """The classifier that is guarded; AdamW."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    images = Dataset.from_dict({"image": [Image.new("RGB", (32, 32))], "label": [0]}, features=features)
    with torch.device("meta"):
        model, _ = mbf.build_classifier(build(mbf.ClassifierArguments, settings), images)
        size = settings["per_device_train_batch_size"]
        batch = {"pixel_values": torch.zeros(size, 3, 32, 32), "labels": torch.zeros(size, dtype=torch.long)}
        return measure(model.train(), batch, adamw_state_bytes)


def measure(model: nn.Module, batch: dict[str, Any], state_bytes: Callable, num_averages: int = 0):
    """Memory and operations of a step."""
    return estimate_memory(model, batch, state_bytes, num_averages), count_flops(model, batch)


PRESETS: dict[str, Callable[[dict[str, Any]], tuple[MemoryEstimate, int]]] = {
    "softmax1/c4_gpt2_60m": softmax1_step,
    "softmax1/c4_gpt2_130m": softmax1_step,
    "softmax1/c4_gpt2_350m": softmax1_step,
    "softmax1/c4_gpt2_1400m": softmax1_step,
    "softmax1/c4_llama_130m": softmax1_step,
    "cpe/cifar10_lt_reversed": cpe_step,
    "cpe/cifar100_lt_reversed": cpe_step,
    "subpt/imagenet": subpt_step,
    "cross_teaching/voc07_voc12_ssd300": cross_teaching_step,
    "cross_teaching/coco_1pct_faster_rcnn": cross_teaching_step,
    "mbf/cifar10": mbf_step,
}


def estimate(preset: str) -> dict[str, int]:
    """Bytes by kind and operations of one step of a preset on one device."""
    memory, flops = PRESETS[preset](settings_of(preset))
    return {**asdict(memory), "flops": flops}


if __name__ == "__main__":
    estimates = {preset: estimate(preset) for preset in PRESETS}
    (TRAINING / "estimates.json").write_text(json.dumps({"estimates": estimates}, indent=1) + "\n", "utf-8")
