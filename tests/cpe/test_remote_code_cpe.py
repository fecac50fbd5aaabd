# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint with its image processor loads where the package is not installed, with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ResNetConfig

import hf_methods
from hf_methods.cpe import CPEConfig, CPEForImageClassification, CPEImageProcessor, CPEImageProcessorPil


PACKAGE = Path(hf_methods.__file__).parent / "cpe"
MODEL_FILES = ["configuration_cpe.py", "losses_cpe.py", "modeling_cpe.py", "normalization_cpe.py"]
SMALL = dict(num_labels=4, class_counts=[9, 5, 2, 1], depth=10, widen_factor=1, image_size=12)
CASES = {
    "rgb": {},
    "gray": {"num_channels": 1},
    "resnet": {"backbone_config": ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8, layer_type="basic")},
    "folded": {},
}
CODE = """
import sys
sys.modules["hf_methods"] = None  # importing the package is an error from here on
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
image = Image.radial_gradient("L").resize((20, 16))
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    for part in (model, processor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    output = model(pixel_values)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True, top_k=4)
    scores = {answer["label"]: answer["score"] for answer in classify(image)}
    probabilities = torch.tensor([scores[f"LABEL_{k}"] for k in range(4)])
    numbers = {"pixel_values": pixel_values, "expert_logits": output.expert_logits, "probabilities": probabilities}
    save_file(numbers, f"{folder}/out.safetensors")
    model.save_pretrained(f"{folder}/again")
    processor.save_pretrained(f"{folder}/again")
"""


def make(name):
    torch.manual_seed(0)
    model = CPEForImageClassification(CPEConfig(**SMALL, **CASES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.fold_for_inference(keep_experts=False) if name == "folded" else model


def make_processor(name):
    size = {"height": 12, "width": 12}
    if name == "gray":
        return CPEImageProcessor(size=size, do_convert_rgb=False, image_mean=[0.2], image_std=[0.3])
    return CPEImageProcessor(size=size) if name != "resnet" else CPEImageProcessorPil(size=size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of checkpoints, each loaded, run and saved again by one process without the package."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in CASES:
        make(name).save_pretrained(root / name)
        make_processor(name).save_pretrained(root / name)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", CODE, *(str(root / name) for name in CASES)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=root, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", CASES)
def test_without_the_package_the_numbers_are_the_same(name, saved):
    out = load_file(saved / name / "out.safetensors")
    output = make(name)(out["pixel_values"])
    torch.testing.assert_close(out["expert_logits"], output.expert_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(out["probabilities"], output.logits[0].softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("again", ["", "again"])
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_carries_its_code_unchanged_and_what_is_saved_from_it_too(name, again, saved):
    folder = saved / name / again
    assert sorted(path.name for path in folder.glob("*.py")) == sorted([*MODEL_FILES, "image_processing_cpe.py"])
    for path in folder.glob("*.py"):
        assert path.read_bytes() == (PACKAGE / path.name).read_bytes()
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_cpe.CPEConfig",
        "AutoModelForImageClassification": "modeling_cpe.CPEForImageClassification",
    }
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"]["AutoImageProcessor"].startswith("image_processing_cpe.CPEImageProcessor")
