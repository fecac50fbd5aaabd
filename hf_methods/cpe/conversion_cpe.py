# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints of the official code as models of this package."""

import torch

from hf_methods.cpe.configuration_cpe import CPEConfig
from hf_methods.cpe.modeling_cpe import CPEForImageClassification


def convert_official_checkpoint(path: str, config: CPEConfig | None = None) -> CPEForImageClassification:
    """A checkpoint of the official code (github.com/machengcheng2016/CPE-LTSSL) as a model of this package.

    Args:
        path: a `latest_model.pth` or `model_best.pth`. Only tensors are read from it (`weights_only=True`), so the file
            can't run code.
        config: a configuration with the right sizes; default the WideResNet with the sizes of the checkpoint. Set
            `class_counts` there to train on.

    Returns:
        The model with the averaged weights (`ema_model`) where the file has them.

    Raises:
        ValueError: no CPE checkpoint, or one of another architecture.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = next((checkpoint[key] for key in ("ema_model", "model") if key in checkpoint), checkpoint)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        heads = [state[name] for name in ("backbone.classifier.weight", "classifier2.weight", "classifier3.weight")]
        branches = [f"backbone.BN{branch}" for branch in "HMT"]
        converted = {
            "classifier.weight": torch.cat(heads),
            "classifier.bias": torch.cat(
                [state[name] for name in ("backbone.classifier.bias", "classifier2.bias", "classifier3.bias")]
            ),
            "classwise_norm.weight": torch.stack([state[f"{branch}.weight"] for branch in branches]),
            "classwise_norm.bias": torch.stack([state[f"{branch}.bias"] for branch in branches]),
        }
        for name in ("running_mean", "running_var", "num_batches_tracked"):  # equal in all branches
            converted[f"classwise_norm.{name}"] = state[f"{branches[0]}.{name}"]
        stem, depth = state["backbone.conv1.weight"], 0
        while f"backbone.block1.layer.{depth}.conv1.weight" in state:
            depth += 1
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint of the official CPE code: {error} is missing.") from error
    if config is None:
        config = CPEConfig(  # type: ignore[call-arg]
            num_labels=len(heads[0]),
            depth=6 * depth + 4,
            widen_factor=heads[0].shape[1] // 64,
            num_channels=stem.shape[1],
        )
    model = CPEForImageClassification(config)
    expected = model.state_dict()
    for key, value in state.items():
        if key.startswith("backbone.") and not key.startswith(("backbone.classifier.", *branches)):
            converted[_converted_name(key)] = value
    if not config.keep_dead_bn:
        dead = [f"backbone.encoder.stages.{stage}.0.bn1." for stage in (1, 2)]
        converted = {key: value for key, value in converted.items() if not key.startswith(tuple(dead))}
    wrong = [key for key in expected if key not in converted or converted[key].shape != expected[key].shape]
    if wrong or len(converted) != len(expected):
        raise ValueError(
            f"{path} does not fit the configuration: {(wrong or sorted(converted.keys() - expected))[:3]} ..."
        )
    model.load_state_dict(converted)
    return model.eval()


def _converted_name(key: str) -> str:
    parts = key.removeprefix("backbone.").split(".")
    if parts[0].startswith("block"):  # block1.layer.0.convShortcut.weight
        stage, block, layer = int(parts[0].removeprefix("block")) - 1, parts[2], parts[3]
        layer = "shortcut" if layer == "convShortcut" else layer
        return ".".join(["backbone.encoder.stages", str(stage), block, layer, *parts[4:]])
    return ".".join(["backbone.encoder", {"conv1": "stem", "bn1": "norm"}.get(parts[0], parts[0]), *parts[1:]])
