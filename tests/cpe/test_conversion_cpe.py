# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints of the official code: their logits, and what is refused."""

import pytest
import torch
from models_cpe import COUNTS, SMALL, images, make, official_names

from hf_methods.cpe import (
    CPEConfig,
    convert_official_checkpoint,
)


# --- official checkpoints ----------------------------------------------------------------------------------------------


def official_checkpoint(path, keep_dead_bn=True, prefix="module.", wrap=True):
    model = make(depth=16, keep_dead_bn=keep_dead_bn).eval()
    state = {f"{prefix}{key}": value for key, value in official_names(model).items()}
    torch.save({"model": {}, "ema_model": state, "it": 3} if wrap else state, path)
    return model


@pytest.mark.parametrize(("prefix", "wrap"), [("module.", True), ("", False)])
def test_an_official_checkpoint_gives_its_logits(prefix, wrap, tmp_path):
    official = official_checkpoint(tmp_path / "best.pth", prefix=prefix, wrap=wrap)
    converted = convert_official_checkpoint(tmp_path / "best.pth")
    expected = official(images())
    assert not converted.config.keep_dead_bn and converted.config.depth == 16
    torch.testing.assert_close(converted(images()).expert_logits, expected.expert_logits)
    config = CPEConfig(**{**SMALL, "depth": 16, "keep_dead_bn": True})
    kept = convert_official_checkpoint(tmp_path / "best.pth", config)
    assert kept.config.class_counts == COUNTS
    assert all(torch.equal(value, official.state_dict()[key]) for key, value in kept.state_dict().items())


class Exploit:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


def test_a_checkpoint_can_not_run_code(tmp_path, capsys):
    torch.save({"ema_model": Exploit()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="[Ww]eights"):
        convert_official_checkpoint(tmp_path / "evil.pth")
    assert "code of a checkpoint" not in capsys.readouterr().out


def test_another_checkpoint_raises(tmp_path):
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no checkpoint of the official CPE code.*classifier.weight"):
        convert_official_checkpoint(tmp_path / "other.pth")
    official_checkpoint(tmp_path / "best.pth")
    with pytest.raises(ValueError, match="does not fit"):
        convert_official_checkpoint(tmp_path / "best.pth", CPEConfig(**{**SMALL, "depth": 10}))
