# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Attack an image, and see whether the detector notices: MODEL_IDS=<folder or id> python app.py"""

import json
import os
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr
import torch
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from huggingface_hub import hf_hub_download, metadata_load
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Pipeline, PreTrainedModel, pipeline


FORMATS, REVISION = ("PNG", "JPEG", "WEBP", "GIF", "BMP"), os.environ.get("MODEL_REVISION", "main")
MAX_SIDE, BLUE, ORANGE, GREY = 4096, "#2563eb", "#ea580c", "#d1d5db"
NOTHING, NOISE, FGSM, PGD, ADAPTIVE = "nothing", "uniform noise", "FGSM", "PGD", "PGD that knows the detector"
STEPS, GRADIENT_FLOOR = {NOTHING: 0, NOISE: 0, FGSM: 1, PGD: 15, ADAPTIVE: 50}, 0.3
INTRO = """# Was this image crafted against the classifier?
A change that is hardly seen can make an image classifier answer anything. **MBF**
([arXiv 2005.05552](https://arxiv.org/abs/2005.05552)) measures how the responses of each layer are distributed, by their
Benford-Fourier coefficients, and judges whether they are those of a benign image. **It does not withstand an attacker who
knows it**: try the last attack. The classifier has {:.2f} M parameters; for any image it answers one of its classes."""
EXAMPLES = "Upload an image, or take a digit that neither model was trained on (white on black):"
BAND = """## Coefficients of each layer
Grey: benign images, mean ± 2 standard deviations. Right: what a layer adds to the score, and its distance z from there."""
FIGURES = """## How often it is right
AUROC on attacks that it was trained on (1 is perfect, 0.5 is chance): {}. Detectors that were trained on another attack:
{:.3f}. Attackers who know the detector fool it and the classifier with {} of their images."""
NO_FIGURES = "## How often it is right\nThe model comes without a `results.json` that has its figures."
CSS = "#image img {image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain}"


def read_image(payload: ImageData | None) -> Image.Image:
    """The visitor's image, in place of gr.Image's `preprocess`, which decodes any size and whose errors name paths."""
    message = "Choose an image first."
    try:  # what is not in gradio's folder, the visitor has not uploaded
        path = Path(payload.path).resolve().relative_to(Path(get_upload_folder()).resolve())
        with Image.open(Path(get_upload_folder(), path), formats=FORMATS) as image:
            if max(image.size) <= MAX_SIDE:
                return ImageOps.exif_transpose(image).convert("RGB")
            message = f"The image has more than {MAX_SIDE} x {MAX_SIDE} pixels."
    except Exception:  # noqa: BLE001 (PIL's decoders raise many kinds)
        if payload is not None:
            message = f"This is no image that can be read: {', '.join(FORMATS)}."
    raise gr.Error(message, print_exception=False)


def read_figures(model_id: str) -> str:
    """The last section of the page, as Markdown."""
    try:
        path = Path(model_id, "results.json")
        path = path if Path(model_id).is_dir() else Path(hf_hub_download(model_id, path.name, revision=REVISION))
        results = json.loads(path.read_text("utf-8"))
        transfer = results["summary_mean_and_sd"][results["arm"]]["transfer_auroc"][0]
        known = ", ".join(f"{row['auroc'][0]:.3f} {attack}" for attack, row in results["published"].items())
        evaded = " or ".join(f"{100 * rates['evaded'][0]:.1f} %" for rates in results["adaptive"].values())
        return FIGURES.format(known, transfer, evaded)
    except (OSError, ValueError, TypeError, KeyError):
        return NO_FIGURES


def to_8_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file keeps them."""
    return (images.clamp(0, 1) * 255).round() / 255


def perturb(detector: PreTrainedModel, normalize: Callable, clean: Tensor, change: str, eps: float) -> Tensor:
    """`clean` (1, channels, height, width) in [0, 1] after a change of at most `eps`, against the classifier's answer."""
    noise = eps * (2 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) - 1)
    changed = [clean if change in (NOTHING, FGSM) else (clean + noise).clamp(0, 1)]
    answer = detector(normalize(clean)).logits.argmax(1)
    for _ in range(STEPS[change]):
        x = changed[-1].detach().requires_grad_()
        output = detector(normalize(x))
        goal = cross_entropy(output.logits.double(), answer)  # in float32 a sure answer has no gradient
        if change == ADAPTIVE and output.logits.argmax(1) != answer:
            goal = -output.scores.sum()
        step = (eps if change == FGSM else 2.5 * eps / STEPS[change]) * torch.autograd.grad(goal, x)[0].sign()
        changed.append((clean + (x.detach() + step - clean).clamp(-eps, eps)).clamp(0, 1))
    images = to_8_bits(torch.cat(changed))
    if change != ADAPTIVE:
        return images[-1:]
    with torch.no_grad():  # the least detected image that fools the classifier
        output = detector(normalize(images))
        return images[(output.scores + 1e6 * (output.logits.argmax(1) == answer)).argmin()][None]


def judge(detect: Pipeline, image: Image.Image, change: str, eps: float) -> list:
    """The verdicts as HTML, and the figures of the images, of the coefficients and of the layers that spoke."""
    if change not in [*STEPS]:
        raise gr.Error("Choose what to do to the image.", print_exception=False)
    processor, config = detect.image_processor, detect.model.config
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    clean = to_8_bits(detect.preprocess(image)["pixel_values"].float() * std + mean)
    after = perturb(detect.model, lambda images: (images - mean) / std, clean, change, eps)
    options, records, text = {"top_k_layers": len(config.layers), "return_coefficients": True}, {}, ""
    for name, pixels in {"before": clean, "after": after}.items():
        records[name] = record = detect.postprocess(detect.forward({"pixel_values": (pixels - mean) / std}), **options)
        answer = f"<b>{escape(record['class'])}</b> ({100 * record['class_score']:.1f} %)"
        label = f"<b>{record['label']}</b> (probability of an attack: {100 * record['score']:.1f} %)"
        text += f"{name.capitalize()}: the classifier says {answer}, the detector {label}.<br>"
    text += f"Largest change of a pixel: {255 * (after - clean).abs().max():.0f} of 255."
    figures = [plot_images(clean, after), plot_band(records, config.layers, config.num_coefficients)]
    return [text, *figures, plot_layers(records["after"]["layers"][:10], config.layers)]


def plot_images(clean: Tensor, after: Tensor) -> Figure:
    """The image before and after, and the change, magnified so that its largest is half of the range."""
    factor = 0.5 / max((after - clean).abs().max().item(), 1 / 255)
    panels = {"before": clean, "after": after, f"change × {factor:.1f}": 0.5 + factor * (after - clean)}
    figure = Figure((7, 2.6), 200, layout="constrained")
    for number, (title, pixels) in enumerate(panels.items()):
        axis = figure.add_subplot(1, 3, number + 1, title=title, xticks=[], yticks=[])
        axis.imshow(pixels[0].clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    return figure


def plot_band(records: dict[str, dict], layers: list[str], orders: list[int]) -> Figure:
    """Coefficients of the first orders against the benign band; layers are numbered in their order."""
    figure, shown = Figure((6, 4.2), 200, layout="constrained"), min(2, *orders)
    keys = ("coefficients", "benign_mean", "benign_std")
    for order in range(1, shown + 1):
        axis = figure.add_subplot(shown, 1, order, ylabel=f"|a{order}|", xlabel="layer" if order == shown else "")
        for (name, record), color in zip(records.items(), (BLUE, ORANGE)):
            named, rows = {part["layer"]: part for part in record["layers"]}, []
            for number, (layer, count) in enumerate(zip(layers, orders)):
                groups = list(zip(*(named[layer][key][order - 1 :: count] for key in keys)))
                rows += [(number + 0.6 + 0.8 * (k + 0.5) / len(groups), *group) for k, group in enumerate(groups)]
            places, values, mean, std = torch.tensor(rows).reshape(-1, 4).T
            axis.vlines(places, mean - 2 * std, mean + 2 * std, color=GREY, linewidth=6)
            axis.scatter(places, values, 14, color=color, label=name, zorder=3)
        axis.set(xlim=(0.4, len(layers) + 0.6), ylim=(0, None))
    figure.axes[0].legend(frameon=False, ncols=2)
    return figure


def plot_layers(layers: list[dict], order: list[str]) -> Figure:
    """The layers that add most to the score, with their number in `order` and their distance from the benign mean."""
    axis = Figure((6, 4.2), 200, layout="constrained").add_subplot(xlabel="what a layer adds to the score")
    bars = axis.barh(range(len(layers)), [layer["contribution"] for layer in layers], color=ORANGE)
    axis.bar_label(bars, [f"z {layer['z_score']:+.1f}" for layer in layers], padding=3, fontsize=8)
    names = [f"{layer['layer'][-32:]} ({order.index(layer['layer']) + 1})" for layer in layers]
    axis.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axis.set(xmargin=0.15, ylim=(len(layers) - 0.5, -0.5))
    return axis.figure


def build_demo(model_ids: list[str]) -> gr.Blocks:
    """The page that shows the first of these folders or Hub ids."""
    detect = pipeline("adversarial-detection", model=model_ids[0], trust_remote_code=True, revision=REVISION)
    detect.model.extractor.gradient_floor = GRADIENT_FLOOR  # of the gradient alone: the exact one is of no use
    examples = sorted(Path(__file__).with_name("examples").glob("*.png"))
    values = judge(detect, Image.open(examples[0]).convert("RGB"), PGD, 0.15)  # for the first visitor to see
    with gr.Blocks(title="Adversarial inputs", analytics_enabled=False) as demo:
        gr.Markdown(INTRO.format(detect.model.num_parameters() / 1e6))
        with gr.Row():
            image = gr.Image(examples[0], label="Image", sources=["upload", "clipboard"], height=260, elem_id="image")
            image.preprocess = read_image
            with gr.Column(scale=2, min_width=280):
                gr.Markdown(EXAMPLES)
                with gr.Row():
                    for path in examples:
                        button = gr.Button(path.stem.split("-")[1], icon=path, size="sm", min_width=70)
                        button.click(partial(str, path), None, image, api_visibility="private", show_progress="hidden")
                change = gr.Radio(list(STEPS), value=PGD, label="Do to it")
                eps = gr.Slider(0.01, 0.3, 0.15, step=0.01, label="Largest change of a pixel, of its range")
                button = gr.Button("Judge", variant="primary")
                text = gr.HTML(values.pop(0))
        plot = partial(gr.Plot, show_label=False, min_width=280)
        pictures = plot(values.pop(0))
        gr.Markdown(BAND)
        with gr.Row():
            outputs = [text, pictures, plot(values.pop(0)), plot(values.pop(0))]
        gr.Markdown(read_figures(model_ids[0]))
        button.click(
            partial(judge, detect), [image, change, eps], outputs, api_name="judge", trigger_mode="always_last"
        )
    return demo.queue(max_size=32, default_concurrency_limit=1, api_open=False)


if __name__ == "__main__":
    listed = (metadata_load(Path(__file__).with_name("README.md")) or {}).get("models", [])
    model_ids = [name for name in os.environ.get("MODEL_IDS", "").split(",") if name] or listed
    if not model_ids:
        raise SystemExit("No models: run `hf-methods space mbf`, or set MODEL_IDS to a folder or Hub id.")
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"show_error": True, "max_file_size": "10mb", "css": CSS}
    build_demo(model_ids).launch(share=False, ssr_mode=False, run_history=False, theme=theme, **options)
