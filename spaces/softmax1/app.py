# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Two language models side by side, softmax and softmax-1: MODEL_IDS="<folder or id>,<folder or id>" python app.py"""

import copy
import os
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr
import torch
from huggingface_hub import metadata_load
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D


MAX_CHARACTERS, MAX_POSITIONS, MAX_NEW_TOKENS = 1000, 128, 32
EXAMPLES = ["class Stack:\n    def push(self, item):\n", "import os\n\n\ndef main(argv):\n", "for i in range(9):\n"]
INTRO = """# Softmax and softmax-1, side by side
With softmax, an attention head spends all of its attention, on the first token if it has nothing to say. Softmax-1
lets it attend to **nothing** ([arXiv 2410.17174](https://arxiv.org/abs/2410.17174)). """
TINY = "**Tiny models** of {:.1f} M parameters, trained on what their cards say: expect code's structure, not sense."
SUMMARY = ("", "tokens", "attention on the first, %", "attention on nothing, %", "kurtosis, first", "kurtosis, others")
ROUNDING = ("model", "weights", "perplexity of your text", "continuation")
CSS = """.tidy, .tidy * {border-color: var(--border-color-primary) !important; padding: 5px; font-size: 13px}
.tidy {width: 100%} .tidy td:nth-child(4) {white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace}"""


def load(model_id: str) -> tuple:
    """Name, tokenizer, a copy to inspect, and the model with each kind of weights; parameters are shared."""
    options = {"trust_remote_code": True, "revision": os.environ.get("MODEL_REVISION", "main")}
    tokenizer = AutoTokenizer.from_pretrained(model_id, **options)
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.float32, **options).requires_grad_(False)
    weights = {"float32": model, "8 bits": copy_model(model, 8), "4 bits": copy_model(model, 4)}
    return Path(model_id).name, tokenizer, copy_model(model), weights


def copy_model(model: nn.Module, bits: int | None = None) -> nn.Module:
    """A copy whose blocks keep their output; with `bits`, their linear layers' weights are rounded to nearest."""
    model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for block in model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers:
        block.register_forward_hook(lambda block, args, output: setattr(block, "residual", output))
        for layer in (layer for layer in block.modules() if bits and isinstance(layer, (nn.Linear, Conv1D))):
            weight, inputs = layer.weight, 0 if isinstance(layer, Conv1D) else 1
            low, high = weight.amin(inputs, keepdim=True).clamp(max=0), weight.amax(inputs, keepdim=True).clamp(min=0)
            scale = torch.where(high > low, (high - low) / (2**bits - 1), 1.0)  # one for each output channel
            zero = (-low / scale).round()
            layer.weight = nn.Parameter((weight / scale).round().clamp(-zero, 2**bits - 1 - zero) * scale, False)
    return model


def inspect(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of the queries behind the first (layers, heads, tokens + nothing), kurtosis (layers, first + rest)."""
    model.set_attn_implementation("eager")  # the fast ones form no weights
    attention = torch.stack(model(ids, output_attentions=True).attentions)[:, 0, :, 1:].double().mean(2)
    nothing = (1 - attention.sum(-1, keepdim=True)).clamp_min(0)  # below 0 only by rounding
    states = torch.cat([block.residual for block in model.modules() if hasattr(block, "residual")]).double()
    kurtosis = nn.functional.layer_norm(states, states.shape[-1:], eps=0).pow(4).mean(-1)  # (layers, tokens)
    return torch.cat([attention, nothing], -1), torch.stack([kurtosis[:, 0], kurtosis[:, 1:].nanmean(1)], -1)


def plot_attention(name: str, attention: Tensor, tokens: list[str]) -> Figure:
    """A row for each head, a column for each token."""
    rows, heads = 100 * attention.flatten(0, 1), attention.shape[1]
    height = min(9, 1.6 + 0.15 * len(rows))
    axis = Figure((5.5, height), 200, layout="constrained").add_subplot(title=name, ylabel="layer.head")
    image = axis.imshow(rows, vmin=0, vmax=50, cmap="magma", aspect="auto", interpolation="nearest")
    labels = [*(repr(token)[1:-1].replace(" ", "·")[:12] for token in tokens), "nothing"]
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=min(8, 300 / len(labels)), parse_math=False)
    labels = [f"{row // heads + 1}.{row % heads + 1}" for row in range(len(rows))]
    axis.set_yticks(range(len(rows)), labels, fontsize=min(8, 560 / len(rows)))
    axis.axvline(len(tokens) - 0.5, color="white", linewidth=3)
    axis.figure.colorbar(image, label="attention, mean of queries, %", extend="max")
    return axis.figure


def plot_kurtosis(kurtosis: dict[str, Tensor]) -> Figure:
    """Kurtosis (layers, first and other tokens) over the layers."""
    axis = Figure((5.5, 3.2), 200, layout="constrained").add_subplot(xlabel="layer", ylabel="kurtosis (normal: 3)")
    for color, (name, values) in zip(("#2563eb", "#ea580c", "#6b7280"), kurtosis.items()):
        for token, style, line in zip(("first token", "other tokens"), ("-o", ":s"), values.T):
            axis.semilogy(range(1, len(line) + 1), line, style, c=color, label=f"{name}, {token}", base=2, subs=[1.5])
    axis.locator_params(axis="x", integer=True)
    axis.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    axis.figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
    return axis.figure


def table(header: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    """As HTML; the cells are text, not markup."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in (header, *rows)]
    return f"<table class=tidy><tr>{lines[0].replace('td>', 'th>')}<tr>{'<tr>'.join(lines[1:])}</table>"


def compare(models: list[tuple], text: str, new_tokens: int) -> list[str | Figure]:
    """Attention maps, kurtosis, summary and continuations of a text, as the page shows them."""
    maps, kurtosis, summary, continuations = [], {}, [], []
    for name, tokenizer, inspected, weights in models:
        ids = tokenizer((text or "")[:MAX_CHARACTERS], return_tensors="pt", verbose=False).input_ids
        if ids.shape[1] < 2 or len(text) > MAX_CHARACTERS:
            raise gr.Error(f"Type at least two tokens and at most {MAX_CHARACTERS} characters.", print_exception=False)
        total, ids = ids.shape[1], ids[:, : min(inspected.config.max_position_embeddings, MAX_POSITIONS) - new_tokens]
        if (length := ids.shape[1]) < total:
            gr.Warning(f"{name} reads {length} of {total} tokens, to have positions for {new_tokens} new ones.")
        attention, kurtosis[name] = inspect(inspected, ids)
        maps.append(plot_attention(name, attention, [tokenizer.decode(token) for token in ids[0]]))
        values = (*(100 * attention.mean((0, 1))[[0, -1]]), *kurtosis[name].mean(0))
        summary.append((name, f"{length} of {total}", *(f"{value:.1f}" for value in values)))
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": new_tokens}
        for bits, model in weights.items():
            output = tokenizer.decode(model.generate(ids, **options)[0, length:], skip_special_tokens=True)
            loss = nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
            continuations.append((name, bits, f"{loss.exp():.2f}", output.rstrip().lstrip("\n")))
    return [*maps, plot_kurtosis(kurtosis), table(*zip(SUMMARY, *summary)), table(ROUNDING, *continuations)]


def build_demo(model_ids: list[str]) -> gr.Blocks:
    """The page that compares the models of these folders or Hub ids."""
    models = [load(model_id) for model_id in model_ids]
    *maps, kurtosis, summary, continuations = compare(models, EXAMPLES[0], 16)  # for the first visitor to see
    size = min(inspected.num_parameters() for _, _, inspected, _ in models) / 1e6
    with gr.Blocks(title="Softmax and softmax-1", analytics_enabled=False) as demo:
        gr.Markdown(INTRO + TINY.format(size) * (size < 100))
        text = gr.Textbox(EXAMPLES[0], label="Text (Shift+Enter: new line)", max_lines=12, max_length=MAX_CHARACTERS)
        gr.Examples(EXAMPLES, text, cache_examples=False)
        new_tokens = gr.Slider(1, MAX_NEW_TOKENS, 16, step=1, precision=0, label="New tokens")
        button = gr.Button("Compare", variant="primary")
        gr.Markdown("## Where the attention goes")
        with gr.Row():
            outputs = [gr.Plot(figure, show_label=False, min_width=320) for figure in maps]
        with gr.Row():
            outputs += [gr.Plot(kurtosis, show_label=False, min_width=320), gr.HTML(summary, min_width=320)]
        gr.Markdown("## What round-to-nearest weights cost\nThe perplexity of a short text is noisy.")
        outputs.append(gr.HTML(continuations))
        events, inputs = [button.click, text.submit], [text, new_tokens]
        gr.on(events, partial(compare, models), inputs, outputs, api_name="compare", show_progress="hidden")
    return demo.queue(max_size=16, default_concurrency_limit=1, api_open=False)  # blocks keep one text's output


if __name__ == "__main__":
    listed = (metadata_load(Path(__file__).with_name("README.md")) or {}).get("models", [])
    model_ids = [name for name in os.environ.get("MODEL_IDS", "").split(",") if name] or listed
    if not model_ids:
        raise SystemExit("No models: run `hf-methods space softmax1`, or set MODEL_IDS to two folders or Hub ids.")
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    build_demo(model_ids).launch(share=False, ssr_mode=False, show_error=True, run_history=False, theme=theme, css=CSS)
