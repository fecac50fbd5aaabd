# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam in two gloo processes: DDP, FSDP2 and FSDP2 without communication."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from two_processes import WORLD, run_in_two

from hf_methods.ortho_adam import OrthoAdam


pytestmark = pytest.mark.slow
STEPS = 3
X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
SETTINGS = {"lr": 3e-3, "weight_decay": 0.1}
RUNS = {
    "ddp": {},
    "fsdp": {},
    "fsdp_full": {"rotation": "full"},
    "fsdp_hadamard": {"rotation": "hadamard"},
    "fsdp_local": {"shard_local": True},
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 7), nn.Tanh(), nn.Linear(7, 1))  # 7 is uneven


def train(net, opt, x):
    for _ in range(STEPS):
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()


def weights(net):
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in net.named_parameters()}


def worker(rank, folder):
    results = {}
    for name, options in RUNS.items():
        net = model()
        if name == "ddp":
            net = DistributedDataParallel(net)
        else:
            fully_shard(net, mesh=init_device_mesh("cpu", (WORLD,)))
        inner = net.module if name == "ddp" else net
        opt = OrthoAdam(inner.named_parameters(), **SETTINGS, **options)
        train(net, opt, X[rank::WORLD])
        first = opt.state[inner[0].weight]["exp_avg"]
        results[name] = {
            "weights": weights(inner),
            "is_dtensor": [isinstance(s[m], DTensor) for s in opt.state.values() for m in ("exp_avg", "exp_avg_sq")],
            "local_rows": first.to_local().shape[0] if isinstance(first, DTensor) else first.shape[0],
            "moments": [s["exp_avg"].full_tensor() for s in opt.state.values()] if name != "ddp" else [],
        }
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of both ranks: one pair of processes for all tests."""
    return run_in_two(worker, tmp_path_factory.mktemp("distributed"))


def single(**options):
    net = model()
    opt = OrthoAdam(net.named_parameters(), **SETTINGS, **options)
    train(net, opt, X)
    return weights(net), [state["exp_avg"] for state in opt.state.values()]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp_full", "fsdp_hadamard"])
def test_two_processes_give_the_weights_of_one(results, name):
    expected, start = single(**RUNS[name])[0], weights(model())
    for rank in range(WORLD):
        for key, weight in results[rank][name]["weights"].items():
            assert_close(weight, expected[key], atol=1e-6, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
            assert (weight - start[key]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["fsdp", "fsdp_full", "fsdp_hadamard"])
def test_sharded_moments_are_those_of_one_process(results, name):
    for got, expected in zip(results[0][name]["moments"], single(**RUNS[name])[1], strict=True):
        assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["fsdp", "fsdp_local"])
def test_moments_are_sharded_like_the_parameters(results, name):
    for rank in range(WORLD):
        assert results[rank][name]["is_dtensor"] == [True] * 12
        assert results[rank][name]["local_rows"] == 16


def test_a_local_step_rotates_only_the_axes_that_are_not_sharded(results):
    # The sharded first axis stays as it is: one process with no rotation there takes the same steps.
    net = model()
    groups = [
        {"params": [(n, p)], "rotation": ["none", "auto"] if p.ndim == 2 else "none"}
        for n, p in net.named_parameters()
    ]
    train(net, OrthoAdam(groups, **SETTINGS), X)
    for rank in range(WORLD):
        for key, weight in results[rank]["fsdp_local"]["weights"].items():
            assert_close(weight, weights(net)[key], atol=1e-6, rtol=0)
    assert (results[0]["fsdp_local"]["weights"]["0.weight"] - single()[0]["0.weight"]).abs().max() > 1e-3
