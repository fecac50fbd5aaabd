# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam: its steps, checkpoints, errors, parameter groups and Trainer."""

import copy
import io

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.testing import assert_close
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
from hf_methods.ortho_adam.rotations import axis_seed, haar_orthogonal
from hf_methods.softmax1 import Softmax1GPT2Config, Softmax1GPT2LMHeadModel


SHAPES = {"a": (16, 32), "b": (16, 32), "bias": (7,), "conv": (3, 4, 2), "scale": ()}
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
ROTATIONS = ["auto", "kronecker", "full", "hadamard"]


def parameters(shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def gradients(step, shapes=SHAPES):
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def run(opt, params, steps):
    for step in steps:
        for name, grad in gradients(step).items():
            params[name].grad = grad.to(params[name].dtype)
        opt.step()


def through_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def reference(param, grads, q, lr, betas, eps, weight_decay):
    """Algorithm 1 in float64 with a dense Q."""
    theta, q = param.detach().double().flatten(), q.double()
    m = v = torch.zeros_like(theta)
    for t, grad in enumerate(grads, start=1):
        g = q @ grad.double().flatten()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        s = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        theta = (1 - lr * weight_decay) * theta - lr * (q.T @ s)
    return theta.view(param.shape)


# ---- steps


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("eps", [1e-8, 1e-1])
def test_without_rotation_it_is_adamw(weight_decay, eps):
    ours, theirs = parameters(), parameters()
    settings = {**SETTINGS, "weight_decay": weight_decay, "eps": eps}
    run(OrthoAdam(ours.values(), rotation="none", **settings), ours, range(6))
    run(torch.optim.AdamW(theirs.values(), **settings), theirs, range(6))
    for name in SHAPES:
        assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("eps", [1e-8, 1e-1])
def test_steps_equal_a_float64_reference_with_dense_q(rotation, eps):
    params, settings = parameters(), {**SETTINGS, "eps": eps}
    opt = OrthoAdam(params.items(), rotation=rotation, **settings)
    expected = {
        name: reference(p, [gradients(i)[name] for i in range(5)], opt.rotation_matrix(p), **settings)
        for name, p in params.items()
    }
    run(opt, params, range(5))
    for name in SHAPES:
        assert_close(params[name].double(), expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_every_rotation_moves_weights_elsewhere_than_adamw(rotation):
    ours, theirs = parameters(), parameters()
    run(OrthoAdam(ours.values(), rotation=rotation, **SETTINGS), ours, range(3))
    run(torch.optim.AdamW(theirs.values(), **SETTINGS), theirs, range(3))
    for name in ("a", "b"):
        assert (ours[name] - theirs[name]).abs().max() > 1e-3


def test_each_group_steps_with_its_own_options():
    params, opts = parameters(), {"a": {"lr": 1e-1, "eps": 1e-2}, "b": {"rotation": "full", "weight_decay": 0.0}}
    opts["bias"] = {"betas": (0.5, 0.6), "seed": 4}
    opt = OrthoAdam([{"params": [(n, params[n])], **o} for n, o in opts.items()], **SETTINGS)
    used = {name: {**SETTINGS, **{k: v for k, v in o.items() if k in SETTINGS}} for name, o in opts.items()}
    expected = {
        name: reference(
            params[name], [gradients(i)[name] for i in range(3)], opt.rotation_matrix(params[name]), **used[name]
        )
        for name in opts
    }
    run(opt, params, range(3))
    for name in opts:
        assert_close(params[name].double(), expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_it_is_adam_on_the_rotated_function(rotation, weight_decay):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, 128, generator=generator, dtype=torch.float64) for n in (128, 1))
    f = lambda flat: torch.log(torch.cosh((a @ flat - b[0]) / 5)).sum()  # noqa: E731
    x = nn.Parameter(torch.randn(8, 16, generator=generator, dtype=torch.float64))
    start = x.detach().clone()
    settings = {**SETTINGS, "eps": 1e-6, "weight_decay": weight_decay}
    ours = OrthoAdam([("x", x)], rotation=rotation, **settings)
    q = ours.rotation_matrix(x).double()
    y = nn.Parameter(q @ start.flatten())
    theirs = torch.optim.AdamW([y], **settings)
    for _ in range(10):
        ours.zero_grad()
        theirs.zero_grad()
        f(x.flatten()).backward()
        f(q.T @ y).backward()
        ours.step()
        theirs.step()
    assert (x - start).abs().max() > 1e-2
    assert_close(q @ x.detach().flatten(), y.detach(), atol=1e-5, rtol=0)


def test_one_rotation_is_not_another_coordinate_system_of_plain_adam():
    x = nn.Parameter(torch.zeros(8))
    opt = OrthoAdam([x], lr=1.0)
    x.grad = torch.eye(8)[0]
    opt.step()
    # First Adam step in the rotated basis: signs there, so every entry has size 1 and the update has norm sqrt(8).
    assert_close(x.detach().norm(), torch.tensor(8.0).sqrt(), atol=1e-4, rtol=0)
    assert x.detach()[1:].norm() > 0.1


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    x = nn.Parameter(torch.full((4,), 2.0))
    opt = OrthoAdam([x], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 16.0
    assert x.square().sum() < 16.0


def test_parameters_without_gradient_stay_and_keep_their_own_step_count():
    params = parameters({"a": (4, 4), "b": (4, 4)})
    opt = OrthoAdam(params.items(), weight_decay=0.1)
    before = params["b"].detach().clone()
    params["a"].grad = torch.ones(4, 4)
    opt.step()
    assert torch.equal(params["b"], before)
    params["b"].grad = torch.ones(4, 4)
    expected = reference(before, [torch.ones(4, 4)], opt.rotation_matrix(params["b"]), 1e-3, (0.9, 0.95), 1e-8, 0.1)
    opt.step()
    assert opt.state[params["a"]]["step"] == 2 and opt.state[params["b"]]["step"] == 1
    assert_close(params["b"].double(), expected, atol=1e-6, rtol=0)


# ---- rotations of an optimizer


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_unrotate_inverts_rotate(rotation):
    params = parameters()
    opt = OrthoAdam(params.items(), rotation=rotation)
    for name, x in gradients(0).items():
        assert_close(opt.unrotate(params[name], opt.rotate(params[name], x)), x, atol=1e-5, rtol=0)
        assert_close(opt.rotate(params[name], x).norm(), x.norm(), atol=1e-5, rtol=1e-5)
    assert (opt.rotate(params["a"], gradients(0)["a"]) - gradients(0)["a"]).abs().max() > 0.5


def test_the_matrix_of_two_axes_is_the_kronecker_product_of_haar_matrices():
    param = nn.Parameter(torch.zeros(4, 6))
    q = [haar_orthogonal(size, axis_seed(9, "w", axis, size)) for axis, size in enumerate(param.shape)]
    matrix = OrthoAdam([("w", param)], seed=9).rotation_matrix(param)
    assert_close(matrix, torch.kron(*q), atol=1e-6, rtol=0)


def test_rotations_differ_between_parameters_axes_and_seeds():
    params = parameters({"a": (8, 8), "b": (8, 8)})
    opt, other = OrthoAdam(params.items()), OrthoAdam(params.items(), seed=1)
    eye = torch.eye(8)
    a, b = (opt.rotate(params[name], eye) for name in "ab")
    assert (a - b).abs().max() > 0.1
    assert (a - eye).abs().max() > 0.1  # Q_0 Q_1^T: the identity if both axes had one rotation
    assert (a - other.rotate(params["a"], eye)).abs().max() > 0.1


def test_named_rotations_do_not_depend_on_the_order():
    params = parameters()
    first, second = OrthoAdam(params.items()), OrthoAdam(list(params.items())[::-1])
    for p in params.values():
        assert torch.equal(first.rotation_matrix(p), second.rotation_matrix(p))


def test_unnamed_parameters_of_later_groups_have_rotations_of_their_own():
    x, y = (nn.Parameter(torch.zeros(6)) for _ in range(2))
    opt = OrthoAdam([x])
    opt.add_param_group({"params": [y]})
    assert list(opt.rotation_summary()) == ["0", "1"]
    assert (opt.rotation_matrix(x) - opt.rotation_matrix(y)).abs().max() > 0.1


def test_an_axis_above_max_dense_dim_is_hadamard_or_left_alone():
    params = {"even": nn.Parameter(torch.zeros(2048, 8)), "odd": nn.Parameter(torch.zeros(1501, 8))}
    opt = OrthoAdam(params.items(), max_dense_dim=1024)
    assert opt.rotation_summary() == {"even": ("hadamard", "dense"), "odd": ("identity", "dense")}
    wide = OrthoAdam(params.items(), max_dense_dim=2048, cache_rotations=False)
    assert wide.rotation_summary() == {"even": ("dense", "dense"), "odd": ("dense", "dense")}


def test_a_sequence_gives_each_axis_its_own_rotation():
    param = nn.Parameter(torch.zeros(6, 32))
    opt = OrthoAdam([("w", param)], rotation=("none", "hadamard"))
    assert opt.rotation_summary() == {"w": ("identity", "hadamard")}
    x = torch.zeros(6, 32)
    x[2, 5] = 1.0
    rotated = opt.rotate(param, x)
    assert_close(rotated[2].abs(), torch.full((32,), 32**-0.5), atol=1e-6, rtol=0)
    assert rotated.abs().sum(1).nonzero().tolist() == [[2]]


# ---- checkpoints


@pytest.mark.parametrize("options", [{}, {"store_rotations": True}, {"cache_rotations": False}], ids=str)
@pytest.mark.parametrize("rotation", ["auto", "hadamard", "full"])
def test_a_reloaded_optimizer_resumes_bit_for_bit(rotation, options):
    params = parameters()
    opt = OrthoAdam(params.items(), rotation=rotation, **options, **SETTINGS)
    run(opt, params, range(3))
    saved = through_file(opt.state_dict())
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    run(opt, params, range(3, 6))
    new = OrthoAdam(resumed.items(), lr=1.0, seed=5, **options)
    new.load_state_dict(saved)
    run(new, resumed, range(3, 6))
    for name in SHAPES:
        assert torch.equal(params[name], resumed[name])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(opt.state[params[name]][moment], new.state[resumed[name]][moment])
        assert new.state[resumed[name]]["step"] == 6


@pytest.mark.parametrize("rotation", ["auto", "hadamard", "full"])
def test_drawing_rotations_again_at_each_step_gives_the_cached_steps(rotation):
    cached, drawn = parameters(), parameters()
    run(OrthoAdam(cached.items(), rotation=rotation, **SETTINGS), cached, range(4))
    run(OrthoAdam(drawn.items(), rotation=rotation, cache_rotations=False, **SETTINGS), drawn, range(4))
    for name in SHAPES:
        assert torch.equal(cached[name], drawn[name])


@pytest.mark.parametrize("cache_rotations", [True, False])
def test_stored_rotations_are_used_in_place_of_drawn_ones(cache_rotations):
    params = parameters({"a": (8, 8)})
    opt = OrthoAdam(params.items(), store_rotations=True)
    saved = through_file(opt.state_dict())
    saved["rotations"]["a"][0]["matrices"] = torch.eye(8)[None]
    saved["rotations"]["a"][1]["matrices"] = torch.eye(8)[None].flip(1)
    new = OrthoAdam(params.items(), cache_rotations=cache_rotations)
    new.load_state_dict(saved)
    x = torch.arange(64.0).view(8, 8)
    assert_close(new.rotate(params["a"], x), x.flip(1))


def test_a_float32_checkpoint_reloads_after_steps_were_already_taken():
    params, other = parameters(), parameters()
    opt, new = OrthoAdam(params.items(), **SETTINGS), OrthoAdam(other.items(), seed=8, **SETTINGS)
    run(opt, params, range(2))
    run(new, other, range(5, 7))  # fills the stacks with rotations of seed 8
    new.load_state_dict(through_file(opt.state_dict()))
    for name in SHAPES:
        other[name].data.copy_(params[name].data)
    run(opt, params, range(2, 4))
    run(new, other, range(2, 4))
    for name in SHAPES:
        assert torch.equal(params[name], other[name])


def test_moments_of_bf16_parameters_are_float32_and_survive_a_checkpoint():
    params = parameters(dtype=torch.bfloat16)
    opt = OrthoAdam(params.items(), **SETTINGS)
    run(opt, params, range(3))
    new = OrthoAdam(params.items(), **SETTINGS)
    new.load_state_dict(through_file(opt.state_dict()))
    for p in params.values():
        for name in ("exp_avg", "exp_avg_sq"):
            moment = opt.state[p][name]
            assert moment.dtype == new.state[p][name].dtype == torch.float32
            assert torch.equal(moment, new.state[p][name])
    moment = opt.state[params["a"]]["exp_avg"]
    assert (moment != moment.bfloat16().float()).any()  # a trip through bf16 would have shown


def test_moments_of_float64_parameters_are_float64():
    params = parameters(dtype=torch.float64)
    opt = OrthoAdam(params.items())
    run(opt, params, range(1))
    opt.load_state_dict(through_file(opt.state_dict()))
    assert {opt.state[p]["exp_avg"].dtype for p in params.values()} == {torch.float64}


def test_loaded_moments_are_not_shared_with_the_checkpoint():
    params = parameters()
    opt = OrthoAdam(params.items())
    run(opt, params, range(1))
    saved = copy.deepcopy(opt.state_dict())
    before = saved["state"][0]["exp_avg"].clone()
    opt.load_state_dict(saved)
    run(opt, params, range(1, 3))
    assert torch.equal(saved["state"][0]["exp_avg"], before)


@pytest.mark.parametrize("rotation", ["auto", "hadamard"])
@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_an_altered_rotation_check_is_refused(rotation, change):
    params = parameters()
    opt = OrthoAdam(params.items(), rotation=rotation)
    saved = through_file(opt.state_dict())
    opt.load_state_dict(saved)
    saved["param_groups"][0]["rotation_check"][1][0] += change
    with pytest.raises(RuntimeError, match="rotation of b differs"):
        opt.load_state_dict(saved)


def test_other_parameter_names_are_refused():
    params = parameters()
    saved = OrthoAdam(params.items()).state_dict()
    renamed = [({"b": "c"}.get(name, name), p) for name, p in params.items()]
    with pytest.raises(RuntimeError, match="'c', 'b'"):
        OrthoAdam(renamed).load_state_dict(saved)


def test_the_checkpoints_seed_and_rotation_win_over_the_constructors():
    params = parameters()
    old = OrthoAdam(params.items(), seed=1, rotation="full")
    new = OrthoAdam(params.items(), seed=2)
    q, drawn = old.rotation_matrix(params["a"]), new.rotation_matrix(params["a"])
    new.load_state_dict(through_file(old.state_dict()))
    assert (q - drawn).abs().max() > 0.1
    assert torch.equal(new.rotation_matrix(params["a"]), q)
    assert new.param_groups[0]["seed"] == 1 and new.param_groups[0]["rotation"] == "full"


# ---- errors


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"lr": -1e-3}, "`lr` must be at least 0, got -0.001"),
        ({"lr": float("nan")}, "`lr` .* got nan"),
        ({"eps": -1e-8}, "`eps` must be at least 0"),
        ({"betas": (1.0, 0.9)}, r"`betas` must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"`betas` must be in \[0, 1\)"),
        ({"betas": (0.9, 1.5)}, r"`betas` must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "`weight_decay` must be at least 0"),
        ({"max_dense_dim": -1}, "`max_dense_dim` must be at least 0"),
        ({"rotation": "haar"}, "auto, kronecker, full, hadamard, none, got 'haar'"),
        ({"rotation": ("auto", "haar")}, "auto, kronecker, full, hadamard, none, got 'haar'"),
        ({"rotation": ("auto",)}, r"names 1 axes for a parameter of shape \(4, 4\)"),
        ({"rotation": ("auto",) * 3}, r"names 3 axes for a parameter of shape \(4, 4\)"),
    ],
)
def test_a_bad_value_is_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        OrthoAdam([nn.Parameter(torch.zeros(4, 4))], **bad)


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        OrthoAdam([])


def test_a_full_rotation_is_limited_to_4096_entries():
    OrthoAdam([nn.Parameter(torch.zeros(16, 16))], rotation="full")
    with pytest.raises(ValueError, match="4096 entries, got 4097"):
        OrthoAdam([nn.Parameter(torch.zeros(17, 241))], rotation="full")
    param = nn.Parameter(torch.zeros(17, 241))
    with pytest.raises(ValueError, match="4096 entries, got 4097"):
        OrthoAdam([param]).rotation_matrix(param)


def test_the_smallest_values_in_range_are_accepted():
    params = parameters({"a": (4, 4)})
    opt = OrthoAdam(params.values(), lr=0.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, max_dense_dim=0)
    assert opt.rotation_summary() == {"0": ("identity", "identity")}


def test_complex_parameters_are_refused():
    with pytest.raises(RuntimeError, match="complex parameters, got 0 of torch.complex64"):
        OrthoAdam([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(8, 4, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients, got one for weight"):
        OrthoAdam(embedding.named_parameters()).step()


def test_a_refused_group_is_not_added():
    opt = OrthoAdam([("a", nn.Parameter(torch.zeros(4)))])
    with pytest.raises(ValueError):
        opt.add_param_group({"params": [("b", nn.Parameter(torch.zeros(4)))], "rotation": ("auto", "auto")})
    assert list(opt.rotation_summary()) == ["a"]


def test_a_foreign_parameter_has_no_rotation():
    with pytest.raises(ValueError, match="not one of this optimizer's"):
        OrthoAdam([nn.Parameter(torch.zeros(4))]).rotate(torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_nonfinite_gradient_propagates_as_in_adamw(bad):
    ours, theirs, rotated = (parameters({"a": (4, 4), "b": (4, 4)}) for _ in range(3))
    opts = [
        OrthoAdam(ours.values(), rotation="none", **SETTINGS),
        torch.optim.AdamW(theirs.values(), **SETTINGS),
        OrthoAdam(rotated.values(), **SETTINGS),
    ]
    for params, opt in zip((ours, theirs, rotated), opts):
        for p in params.values():
            p.grad = torch.ones(4, 4)
        params["a"].grad[1, 2] = bad
        opt.step()
    assert theirs["a"].isnan().sum() == 1
    for name in "ab":
        assert_close(ours[name], theirs[name], atol=1e-6, rtol=0, equal_nan=True)
    assert rotated["a"].isnan().all() and rotated["b"].isfinite().all()


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


def test_a_deep_copy_steps_like_the_original():
    param = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = OrthoAdam([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    twin = copied.param_groups[0]["params"][0]
    twin.grad = torch.ones_like(param)
    optimizer.step()
    copied.step()
    torch.testing.assert_close(twin, param, rtol=0, atol=0)


def test_full_rotation_works_for_channels_last_parameters():
    params = [torch.randn(4, 3, 5, 2).contiguous(memory_format=torch.channels_last).requires_grad_() for _ in "ab"]
    reference = [param.detach().contiguous().requires_grad_() for param in params]
    optimizers = [OrthoAdam(params, rotation="full"), OrthoAdam(reference, rotation="full")]
    for tensors, optimizer in zip((params, reference), optimizers):
        for tensor in tensors:
            tensor.grad = torch.arange(120.0).sin().view(4, 3, 5, 2)
        optimizer.step()
    for a, b in zip(params, reference):
        torch.testing.assert_close(a, b)


def test_an_empty_parameter_is_stepped_over():
    param = torch.zeros(0, 16, requires_grad=True)
    param.grad = torch.zeros(0, 16)
    OrthoAdam([param], rotation="hadamard").step()
    assert param.shape == (0, 16)


def test_full_rotation_with_shard_local_raises():
    with pytest.raises(ValueError, match="shard_local"):
        OrthoAdam([torch.zeros(2, 2, requires_grad=True)], rotation="full", shard_local=True)


def test_a_checkpoint_of_another_shape_raises_before_anything_changes():
    def stepped(size):
        param = torch.zeros(size, size, requires_grad=True)
        optimizer = OrthoAdam([("w", param)], seed=size)
        param.grad = torch.ones_like(param)
        optimizer.step()
        return optimizer

    optimizer = stepped(4)
    with pytest.raises(RuntimeError, match=r"w is \(4, 4\), in the checkpoint \(8, 8\)"):
        optimizer.load_state_dict(stepped(8).state_dict())
    assert optimizer.param_groups[0]["seed"] == 4
