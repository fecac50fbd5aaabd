# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Averages of parameters."""

import pytest
import torch

from hf_methods.cpe.ema_cpe import ParameterEMA


def test_averages_follow_the_formula_and_load_as_they_were_saved(tmp_path):
    model = torch.nn.Linear(3, 2).double()
    ema, expected = ParameterEMA(model, 0.75), [p.detach().clone() for p in model.parameters()]
    for step in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p += step
        ema.update()
        expected = [0.75 * average + 0.25 * p.detach() for average, p in zip(expected, model.parameters())]
    for average, value in zip(ema.averages, expected):
        torch.testing.assert_close(average, value, rtol=1e-14, atol=1e-14)
    ema.save(tmp_path / "ema.safetensors")
    other = ParameterEMA(torch.nn.Linear(3, 2).double(), 0.75)
    other.load(tmp_path / "ema.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, other.averages))
    with pytest.raises(ValueError, match=r"another model: \['bias'\]"):
        ParameterEMA(torch.nn.Linear(3, 2, bias=False).double(), 0.75).load(tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match="below 1, got 1"):
        ParameterEMA(model, 1)
