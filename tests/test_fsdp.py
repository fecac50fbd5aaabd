# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Each method's model with OrthoAdam under FSDP2 (`fully_shard`) in two gloo processes, against one process.

Where the loss is a mean over examples, one process takes the whole batch at once. Batch norms (CPE's WideResNet, the
ResNet that MBF guards) and losses divided by the objects of a batch (Cross Teaching's detectors) see the shard of a
process only, under DDP as well: there one process takes the shards one after another and averages their gradients, which
is what data parallelism computes. Running statistics are left out of the comparison: they are each process's own.
Everything is in float64, so that nothing but a wrong gradient, rotation or update could move a weight by 1e-9.
"""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from two_processes import WORLD, run_in_two

from hf_methods import (
    CPEConfig,
    CPEForImageClassification,
    OrthoAdam,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    Softmax1LlamaConfig,
    Softmax1LlamaForCausalLM,
    TorchvisionDetectorConfig,
    TorchvisionDetectorForObjectDetection,
)
from hf_methods.subpt.recipe_subpt import TINY, ModelArguments, build_model


STEPS, BATCH = 3, 4
TOLERANCE = {"atol": 1e-9, "rtol": 0}
GPT2 = dict(vocab_size=50, bos_token_id=0, eos_token_id=0, n_embd=16, n_layer=2, n_head=2, n_positions=12)
DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
LLAMA = dict(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=12, tie_word_embeddings=True,
)  # fmt: skip
VIT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=12)


def gpt2():
    return Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**GPT2, **DROPOUT))


def llama():
    return Softmax1LlamaForCausalLM(Softmax1LlamaConfig(**LLAMA))


def wide_resnet():
    return CPEForImageClassification(
        CPEConfig(num_labels=4, class_counts=[12, 6, 4, 2], depth=10, widen_factor=1, image_size=12)
    )


def prompts():
    model, _ = build_model(ModelArguments(TINY, n_ctx=4))
    model.set_classes(["cat", "dog", "blue jay"], model.tokenizer)
    return model


def detector():
    return TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(architecture="ssd_tiny", num_labels=5))


def resnet():
    sizes = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return ResNetForImageClassification(ResNetConfig(num_labels=4, **sizes))


def vit():
    return ViTForImageClassification(ViTConfig(num_labels=4, patch_size=4, hidden_dropout_prob=0.0, **VIT))


# The maker, the names of blocks that are sharded by themselves, and whether one process takes the whole batch at once.
MODELS = {
    "softmax1-gpt2": (gpt2, ("GPT2Block",), True),
    "softmax1-llama": (llama, ("LlamaDecoderLayer",), True),
    "cpe-wide_resnet": (wide_resnet, (), False),
    "subpt-prompts": (prompts, (), True),
    "cross_teaching-ssd": (detector, (), False),
    "mbf-resnet": (resnet, (), False),
    "mbf-vit": (vit, ("ViTLayer",), True),
}


def make(name):
    torch.manual_seed(0)
    maker, blocks, is_mean = MODELS[name]
    return maker().double().train(), blocks, is_mean


def batch(name, step):
    """The same batch of 4 in every process."""
    draw = torch.Generator().manual_seed(step)
    if name.startswith("softmax1"):
        tokens = torch.randint(0, 50, (BATCH, 12), generator=draw)
        return {"input_ids": tokens, "labels": tokens}
    labels = torch.arange(BATCH) % 3
    side = {"cross_teaching-ssd": 64, "subpt-prompts": 32}.get(name, 12)
    images = torch.randn(BATCH, 3, side, side, dtype=torch.double, generator=draw)
    if name.startswith("cross_teaching"):
        boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.3, 0.2]], dtype=torch.double)
        counts = [1, 2, 2, 2]  # the shards have different numbers of objects
        return {
            "pixel_values": images,
            "labels": [{"class_labels": labels[:n], "boxes": boxes[:n]} for n in counts],
        }
    views = {}
    if name.startswith("cpe"):
        views = {"pixel_values_weak": images.flip(0), "pixel_values_strong": images.flip(0) * 0.9, "threshold": 0.3}
    return {"pixel_values": images, "labels": labels, **views}


def part(inputs, rank, world):
    """Examples `rank`, `rank + world`, ... of a batch."""
    is_per_example = lambda value: isinstance(value, (torch.Tensor, list))  # noqa: E731
    return {name: value[rank::world] if is_per_example(value) else value for name, value in inputs.items()}


def train(model, optimizer, name, parts, backward=torch.Tensor.backward):
    """Losses, averaged over `parts` of each batch: (steps,)."""
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for rank, world in parts:
            loss = model(**part(batch(name, step), rank, world)).loss / len(parts)
            backward(loss)
            total += loss.detach()
        optimizer.step()
        losses.append(total)
    return torch.stack(losses)


def whole(model):
    tensors = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def optimizer_of(model):
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return OrthoAdam(named, lr=3e-3, weight_decay=0.1)


def one_process(name):
    model, _, is_mean = make(name)
    parts = [(0, 1)] if is_mean else [(rank, WORLD) for rank in range(WORLD)]
    losses = train(model, optimizer_of(model), name, parts)
    return {"losses": losses, "weights": whole(model)}


def sharded(name, rank):
    model, num_blocks = shard(name)
    losses = train(model, optimizer_of(model), name, [(rank, WORLD)])
    dist.all_reduce(losses, dist.ReduceOp.SUM)
    return {"losses": losses / WORLD, "weights": whole(model), "blocks": num_blocks}


def prepared_by_accelerate(rank, folder):
    """GPT-2 nearly as `fsdp2_8gpu.yaml` has it: accelerate shards the model and puts the shards into the optimizer.

    It then writes the shards, trains on, reads them again and trains on again.
    """
    PartialState(cpu=True)
    # accelerate shards on GPUs only. The state is told that these are some; everything else is as it is there.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="sharded_state_dict"
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model, _, _ = make("softmax1-gpt2")
    optimizer = optimizer_of(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = train(model, optimizer, "softmax1-gpt2", [(rank, WORLD)], accelerator.backward)
    dist.all_reduce(losses, dist.ReduceOp.SUM)
    results = {"losses": losses / WORLD, "weights": whole(model)}
    results["kept"] = [cls.__name__ for cls in {type(p) for p in optimizer.optimizer._rotations}]
    accelerator.save_state(str(folder / "accelerate"))
    for name in ("uninterrupted", "resumed"):
        train(model, optimizer, "softmax1-gpt2", [(rank, WORLD)], accelerator.backward)
        results[name] = whole(model)
        optimizer.zero_grad()
        accelerator.load_state(str(folder / "accelerate"))
    return results


def shard(name):
    """The model with its blocks and itself sharded, and how many blocks these are."""
    model, blocks, _ = make(name)
    mesh = init_device_mesh("cpu", (WORLD,))
    inner = [module for module in model.modules() if type(module).__name__ in blocks]
    scalars = {p for p in model.parameters() if p.ndim == 0}  # CLIP's temperature, frozen: `fully_shard` takes none
    for module in [*inner, model]:
        fully_shard(module, mesh=mesh, ignored_params=scalars)
    return model, len(inner)


def checkpointed(rank, folder):
    """GPT-2 trained, written by both processes, each its shards, and trained on; and the like from what was written."""
    name, parts = "softmax1-gpt2", [(rank, WORLD)]
    model, _ = shard(name)
    optimizer = optimizer_of(model)
    train(model, optimizer, name, parts)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder / "sharded")
    train(model, optimizer, name, parts)
    again, _ = shard(name)
    optimizer_again = optimizer_of(again)
    load_sharded(again, optimizer_again, folder)
    train(again, optimizer_again, name, parts)
    return {"uninterrupted": whole(model), "resumed": whole(again)}


def load_sharded(model, optimizer, folder):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder / "sharded")
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)


def worker(rank, folder):
    results = {name: sharded(name, rank) for name in MODELS}
    return {**results, "accelerate": prepared_by_accelerate(rank, folder), "checkpoint": checkpointed(rank, folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def results(folder):
    """The results of both processes: one pair for all tests."""
    return run_in_two(worker, folder)


def check(found, expected, start):
    assert_close(found["losses"], expected["losses"], atol=1e-6, rtol=0)  # transformers takes it of float32 logits
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in found["weights"].items():
        assert_close(weight, expected["weights"][name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    moved = [name for name, weight in start.items() if (weight - expected["weights"][name]).abs().max() > 1e-4]
    return moved


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_shards_in_two_processes_give_the_losses_and_weights_of_one(name, results):
    model, blocks, _ = make(name)
    expected = one_process(name)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    for rank in range(WORLD):
        moved = check(results[rank][name], expected, whole(model))
        assert set(moved) <= trained and len(moved) > 0.8 * len(trained)
        assert bool(results[rank][name]["blocks"]) == bool(blocks)


@pytest.mark.slow
def test_a_model_that_accelerate_shards_trains_like_one_process(results):
    expected = one_process("softmax1-gpt2")
    for rank in range(WORLD):
        moved = check(results[rank]["accelerate"], expected, whole(make("softmax1-gpt2")[0]))
        assert moved
        # A rotation that is kept for a parameter would keep the parameter: the whole one on every GPU.
        assert results[rank]["accelerate"]["kept"] == ["DTensor"]


@pytest.mark.slow
def test_shards_that_accelerate_wrote_go_on_to_the_bit(results, folder):
    assert len([*(folder / "accelerate").glob("**/*.distcp")]) == 2 * WORLD  # of weights, and of the optimizer
    for result in (results[rank]["accelerate"] for rank in range(WORLD)):
        assert all(torch.equal(result["resumed"][name], weight) for name, weight in result["uninterrupted"].items())
        assert not all(torch.equal(result["weights"][name], weight) for name, weight in result["resumed"].items())


@pytest.mark.slow
def test_a_sharded_checkpoint_goes_on_in_two_processes_and_in_one(results, folder):
    assert len([*(folder / "sharded").glob("*.distcp")]) == WORLD  # each has written its part
    uninterrupted = results[0]["checkpoint"]["uninterrupted"]
    model, _, _ = make("softmax1-gpt2")
    optimizer = optimizer_of(model)
    load_sharded(model, optimizer, folder)
    before = whole(model)
    train(model, optimizer, "softmax1-gpt2", [(0, 1)])
    one = whole(model)
    for name, weight in uninterrupted.items():
        assert torch.equal(results[0]["checkpoint"]["resumed"][name], weight)
        assert_close(one[name], weight, **TOLERANCE)
    assert max((one[name] - before[name]).abs().max() for name in one) > 1e-4
