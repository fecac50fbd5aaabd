# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""`torch.compile` of training steps and of models: no graph breaks, and the same numbers.

The step of each trainer is compiled by `torch_compile=True`, as a user does. Backends "eager" and "aot_eager" run the graphs
as they are: what inductor makes of them is timed in tests/benchmarks/variants.py.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from hf_methods import CrossTeachingConfig, CrossTeachingModel, mbf


sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # a folder of scripts
from trainers import TRAINERS, make_trainer


STEPS = 3
SLOW = ("softmax1", "cpe")  # whose compiled forward passes are in the methods' own tests


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(method, folder, **options):
    trainer = make_trainer(method, folder, STEPS, tiny=True, **options)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    loss = trainer.train().training_loss
    return loss, start, dict(trainer.model.named_parameters())


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in TRAINERS])
def test_a_compiled_training_step_has_no_graph_breaks_and_the_same_weights(method, tmp_path):
    loss, start, weights = train(method, tmp_path)
    compiled_loss, _, compiled = train(method, tmp_path, torch_compile=True, torch_compile_backend="eager")
    assert counters["stats"]["unique_graphs"] > 0
    assert counters["graph_break"] == {}
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    change = max((weights[name] - start[name]).abs().max() for name in start)
    assert max((weights[name] - compiled[name]).abs().max() for name in start) <= 1e-3 * change
    assert change > 0


def detector():
    detector = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 5}
    return CrossTeachingModel(CrossTeachingConfig(detector=detector)).for_inference().eval(), torch.rand(2, 3, 64, 64)


def magnitudes():
    return lambda x: {"magnitudes": mbf(x, 3, dim=1)}, torch.randn(4, 1000)


@torch.no_grad()
@pytest.mark.parametrize("make", [detector, magnitudes])  # the others are in the methods' own tests
def test_a_compiled_model_has_one_graph_and_the_same_output(make):
    torch.manual_seed(0)
    model, inputs = make()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(inputs)
    for name, expected in model(inputs).items():
        torch.testing.assert_close(compiled[name], expected)
