# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam in models: parameter groups, `Trainer` and accelerate."""

import pytest
import torch
from accelerate import Accelerator
from steps_ortho_adam import SETTINGS
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_methods.ortho_adam import (
    RESIDUAL_ROTATIONS,
    OrthoAdam,
    ortho_adam_cls_and_kwargs,
    ortho_adam_parameter_groups,
)
from hf_methods.softmax1 import Softmax1GPT2Config, Softmax1GPT2LMHeadModel


# ---- models


def tiny_model():
    torch.manual_seed(0)
    config = Softmax1GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, norm_type="rmsnorm_single",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return Softmax1GPT2LMHeadModel(config)


def test_groups_decay_matrices_only_and_hold_every_parameter_once():
    model = tiny_model()
    assert model.lm_head.weight is model.transformer.wte.weight
    decayed, rest = ortho_adam_parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for _, p in decayed["params"]} == {2} and {p.ndim for _, p in rest["params"]} <= {0, 1}
    assert "transformer.ln_f.weight" in dict(rest["params"])  # a SingleScaleRMSNorm
    ids = [id(p) for group in (decayed, rest) for _, p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    assert "transformer.wte.weight" in dict(decayed["params"])


def test_groups_leave_out_frozen_parameters():
    model = tiny_model()
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.ln_f.weight.requires_grad_(False)
    names = [name for group in ortho_adam_parameter_groups(model, 0.1) for name, _ in group["params"]]
    assert not {"transformer.wpe.weight", "transformer.ln_f.weight"} & set(names)
    assert len(names) == len(list(model.parameters())) - 2


def test_rotations_by_name_hold_for_the_first_pattern_that_matches():
    model = tiny_model()
    rotations = {"wte": ("none", "auto"), r"\.w[tp]e\.": "none", "ln_f": "none"}
    groups = ortho_adam_parameter_groups(model, 0.1, rotations)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    decay = {name: group["weight_decay"] for group in groups for name, _ in group["params"]}
    assert decay["transformer.wte.weight"] == 0.1 and decay["transformer.ln_f.weight"] == 0
    summary = OrthoAdam(groups).rotation_summary()
    assert summary["transformer.wte.weight"] == ("identity", "dense")
    assert summary["transformer.wpe.weight"] == ("identity", "identity")
    assert summary["transformer.h.0.mlp.c_fc.weight"] == ("dense", "dense")


def test_rotations_that_match_no_name_raise():
    with pytest.raises(ValueError, match="matches `rotations`: embeddings"):
        ortho_adam_parameter_groups(tiny_model(), 0.1, {"embeddings": "none"})


def residual_models():
    small = dict(vocab_size=32, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False)
    sizes = dict(intermediate_size=20, num_key_value_heads=1, head_dim=4, max_position_embeddings=16)
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=12, n_layer=1, n_head=2, n_inner=20)),
        "gpt2 without MLP biases": Softmax1GPT2LMHeadModel(
            Softmax1GPT2Config(
                vocab_size=32, n_positions=16, n_embd=12, n_layer=1, n_head=2, n_inner=12, mlp_bias=False
            )
        ),
        "llama": LlamaForCausalLM(LlamaConfig(**small, **sizes)),
        "qwen": Qwen3ForCausalLM(Qwen3Config(**small, **sizes)),
        "opt": OPTForCausalLM(OPTConfig(**small, ffn_dim=20, word_embed_proj_dim=12, max_position_embeddings=14)),
    }


@pytest.mark.parametrize("name", ["gpt2", "gpt2 without MLP biases", "llama", "qwen", "opt"])
def test_residual_rotations_turn_each_parameter_on_the_residual_stream_and_nothing_else(name):
    """Rotating the residual stream of a model without norms leaves its function: each matrix has one such axis."""
    model = residual_models()[name]
    optimizer = OrthoAdam(ortho_adam_parameter_groups(model, 0.1, RESIDUAL_ROTATIONS))
    kinds = optimizer.rotation_summary()
    for key, param in model.named_parameters():
        rotated = [size for size, kind in zip(param.shape, kinds[key]) if kind != "identity"]
        reads = any(part in key for part in ("c_attn", "c_fc", "q_proj", "k_proj", "v_proj", "gate", "up_proj", "fc1"))
        inner = (reads and param.ndim == 1) or "q_norm" in key or "k_norm" in key
        assert rotated == ([] if inner else [12]), key
        if param.ndim == 2 and param.shape == (12, 12):  # square: nn.Linear and Conv1D have their output elsewhere
            output_axis = 1 if "gpt2" in name else 0
            assert kinds[key][output_axis] == ("identity" if reads else "dense"), key


# ---- Trainer

ROWS = torch.randint(1, 32, (16, 8), generator=torch.Generator().manual_seed(2))
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


def trainer(tmp_path, route="kwargs", steps=2):
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2,
        weight_decay=0.1, adam_beta2=0.95, save_strategy="steps", save_steps=2, use_cpu=True, report_to="none",
        disable_tqdm=True, logging_strategy="no", seed=3,
    )  # fmt: skip
    model = tiny_model()
    cls, kwargs = ortho_adam_cls_and_kwargs(model, args, rotations=RESIDUAL_ROTATIONS, seed=6)
    if route == "kwargs":
        return Trainer(model, args, train_dataset=DATA, optimizer_cls_and_kwargs=(cls, kwargs))
    return Trainer(model, args, train_dataset=DATA, optimizers=(cls(**kwargs), None))


def test_the_settings_of_training_arguments_reach_the_optimizer():
    model = tiny_model()
    args = TrainingArguments(
        learning_rate=3e-3, adam_beta1=0.8, adam_beta2=0.7, adam_epsilon=1e-5, weight_decay=0.2, use_cpu=True
    )
    cls, kwargs = ortho_adam_cls_and_kwargs(model, args, seed=6, max_dense_dim=64)
    group = cls(**kwargs).param_groups[0]
    found = [group[key] for key in ("lr", "betas", "eps", "weight_decay", "seed", "max_dense_dim")]
    assert cls is OrthoAdam and found == [3e-3, (0.8, 0.7), 1e-5, 0.2, 6, 64]


def test_trainer_takes_the_optimizer_both_ways_with_one_result(tmp_path):
    start, results = dict(tiny_model().named_parameters()), []
    for route in ("kwargs", "optimizer"):
        run = trainer(tmp_path / route, route)
        run.train()
        inner = getattr(run.optimizer, "optimizer", run.optimizer)
        assert isinstance(inner, OrthoAdam)
        assert inner.rotation_summary()["transformer.wte.weight"] == ("identity", "dense")
        results.append({name: p.detach() for name, p in run.model.named_parameters()})
    for name, p in results[0].items():
        assert torch.equal(p, results[1][name])
        assert (p - start[name]).abs().max() > 1e-4, name


def test_accelerate_takes_the_same_steps_as_a_plain_loop():
    def train(prepare):
        torch.manual_seed(0)
        net = nn.Linear(6, 4)
        optimizer = OrthoAdam(net.named_parameters(), **SETTINGS)
        net, optimizer, backward, clip = prepare(net, optimizer)
        for step in range(3):
            loss = net(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().mean()
            backward(loss)
            clip(net.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return net.weight.detach(), optimizer.state_dict()

    def accelerated(net, optimizer):
        accelerator = Accelerator(cpu=True)
        return *accelerator.prepare(net, optimizer), accelerator.backward, accelerator.clip_grad_norm_

    plain = lambda net, optimizer: (net, optimizer, torch.Tensor.backward, nn.utils.clip_grad_norm_)  # noqa: E731
    (weight, state), (expected, expected_state) = train(accelerated), train(plain)
    assert torch.equal(weight, expected) and state["param_groups"] == expected_state["param_groups"]


def test_trainer_resumes_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "whole", steps=4)
    whole.train()
    resumed = trainer(tmp_path / "resumed", steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    halfway = Softmax1GPT2LMHeadModel.from_pretrained(tmp_path / "whole" / "checkpoint-2").state_dict()
    for name, p in whole.model.state_dict().items():
        assert torch.equal(p, resumed.model.state_dict()[name]), name
    assert any((p - halfway[name]).abs().max() > 1e-3 for name, p in whole.model.state_dict().items())
