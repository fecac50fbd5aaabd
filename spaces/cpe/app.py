# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What complementary experts say about an image: MODEL_IDS=<folder or id> python app.py"""

import json
import math
import os
from functools import partial
from html import escape
from itertools import pairwise, product
from pathlib import Path

import gradio as gr
import torch
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from huggingface_hub import hf_hub_download, metadata_load
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from transformers import Pipeline, PreTrainedConfig, pipeline


MAX_SIDE, FORMATS = 4096, ("PNG", "JPEG", "WEBP", "GIF", "BMP")
REVISION = os.environ.get("MODEL_REVISION", "main")
INTRO = """# Complementary experts for long-tailed images
Few images have labels, most of them of a few classes. How frequent the classes are among the unlabelled images, nobody
knows. **CPE** ([arXiv 2312.15702](https://arxiv.org/abs/2312.15702)) trains one expert for each case: unlabelled images
as **long-tailed** as the labelled ones, **uniform**, or **inverse**. """
TINY = "**A tiny model** of {:.2f} M parameters: it knows {} classes and answers with one of them for any image."
CONFUSION = """## Which groups of classes each expert confuses
Where the test images of each group of classes end, in % of a row. The most often labelled classes are the head, the
rarest ones the tail; they have {} classes, from head to tail. """
EXAMPLES = "Upload an image, or take a test image of MNIST (white on black, as the model knows digits):"
NO_CONFUSION = "The model comes without a `results.json` that has the confusions of its experts."
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


def read_confusions(model_id: str, config: PreTrainedConfig) -> Tensor | None:
    """Test images by (expert, group of the true class, group of the predicted class), in % of the rows, if known."""
    try:
        path = Path(model_id, "results.json")
        path = path if Path(model_id).is_dir() else Path(hf_hub_download(model_id, path.name, revision=REVISION))
        counts = torch.tensor(json.loads(path.read_text("utf-8"))["confusions"], dtype=torch.float64)
        group = torch.bucketize(ranks_of(config), torch.tensor(config.cuts), right=True)
        member = torch.nn.functional.one_hot(group, len(config.cuts) + 1).double()
        counts = member.T @ counts.reshape(len(config.taus), len(group), len(group)) @ member
        return 100 * counts / counts.sum(-1, keepdim=True).clamp(min=1)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None


def ranks_of(config: PreTrainedConfig) -> Tensor:
    """Rank of each class by its labelled images: 0 is the class of the most."""
    return torch.tensor(config.class_counts or [1] * config.num_labels).argsort(descending=True, stable=True).argsort()


def prior_of(config: PreTrainedConfig, tilt: float) -> Tensor:
    """Probabilities of the classes: as long-tailed as the labelled images at tilt -1, balanced at 0, inverse at 1."""
    counts, ranks = config.class_counts or [1], ranks_of(config).double()
    return (math.log(max(counts) / max(1, min(counts))) * tilt * ranks / max(1, len(ranks) - 1)).softmax(0)


def names_of(config: PreTrainedConfig) -> list[str]:
    """What each expert learned for, by the intensity of its logit adjustment."""
    taus = config.taus
    names = {config.eval_expert: "uniform", taus.index(max(taus)): "inverse", taus.index(min(taus)): "long-tailed"}
    return [f"{names.get(k, f'expert {k + 1}')} (τ = {tau:g})" for k, tau in enumerate(taus)]


def classify(classifier: Pipeline, image: Image.Image, tilt: float) -> list:
    """Scores for the slider to shift, the answer as text, bars of each expert, and what `shift` returns."""
    config = classifier.model.config
    records = classifier(image, top_k=config.num_labels, return_experts=True)
    scores, names = {record["label"]: record["score"] for record in records}, names_of(config)
    experts = [{r["label"]: r["expert_scores"][k] for r in records} for k in range(len(names))]
    answers = "".join(f"<br>{name}: {answer_of(expert)}" for name, expert in zip(names, experts))
    agree = f"{round(records[0]['agreement'] * len(names))} of {len(names)} experts agree"
    bars = [plot_bars(config, name, expert) for name, expert in zip(names, experts)]
    return [scores, f"The model answers {answer_of(scores)}; {agree}.{answers}", *bars, *shift(config, scores, tilt)]


def shift(config: PreTrainedConfig, scores: dict[str, float], tilt: float) -> list:
    """The answer as text, and bars of the prior and the scores, for images of such frequencies."""
    prior = {config.id2label[k]: value for k, value in enumerate(prior_of(config, tilt).tolist())}
    total = sum(prior[label] * score for label, score in scores.items())
    shifted = {label: prior[label] * score / total for label, score in scores.items()}
    most, least = max(prior, key=prior.get), min(prior, key=prior.get)
    ratio = f"<b>{escape(most)}</b> is {prior[most] / prior[least]:.1f} times as frequent as <b>{escape(least)}</b>"
    text = f"{ratio if tilt else 'All classes are equally frequent'}: the model answers {answer_of(shifted)}"
    stays = max(scores, key=scores.get) == max(shifted, key=shifted.get)
    text += ", as before." if stays else f", where it answered {answer_of(scores)} before."
    bars = plot_bars(config, "frequency of the classes", prior, is_answer=False)
    return [text, bars, plot_bars(config, "the model, for such images", shifted)]


def answer_of(scores: dict[str, float]) -> str:
    """The best label and its score, as HTML."""
    label = max(scores, key=scores.get)
    return f"<b>{escape(label)}</b> ({100 * scores[label]:.1f} %)"


def plot_bars(config: PreTrainedConfig, title: str, values: dict[str, float], is_answer: bool = True) -> Figure:
    """A bar for each class, the class of the most labelled images first; an answer's largest bar is orange."""
    labels = [config.id2label[k] for k in ranks_of(config).argsort().tolist()]
    axis = Figure((4, 2.3), 200, layout="constrained").add_subplot(title=title, ylabel="%")
    bars = axis.bar(range(len(labels)), [100 * values[label] for label in labels], color="#60a5fa")
    if is_answer:
        axis.set_ylim(0, 100)
        bars[labels.index(max(values, key=values.get))].set_color("#ea580c")
    style = {"fontsize": min(10, 300 / len(labels)), "rotation": 90 * (max(map(len, labels)) > 2), "parse_math": False}
    axis.set_xticks(range(len(labels)), [label[:12] for label in labels], **style)
    return axis.figure


def show_confusions(config: PreTrainedConfig, confusions: Tensor | None) -> None:
    """The last section of the page: a heat map for each expert."""
    sizes = [end - start for start, end in pairwise((0, *config.cuts, config.num_labels))]
    gr.Markdown(CONFUSION.format(", ".join(map(str, sizes))) + NO_CONFUSION * (confusions is None))
    groups = ["head", "medium", "tail"] if len(sizes) == 3 else range(1, len(sizes) + 1)
    with gr.Row():
        for name, shares in zip(names_of(config), [] if confusions is None else confusions.tolist()):
            axis = Figure((4, 2.8), 200, layout="constrained").add_subplot(
                title=name, xlabel="predicted", ylabel="true"
            )
            axis.imshow(shares, vmin=0, vmax=100, cmap="Blues", aspect="auto")
            axis.set(xticks=range(len(sizes)), xticklabels=groups, yticks=range(len(sizes)), yticklabels=groups)
            for row, column in product(range(len(sizes)), repeat=2):
                style = {"ha": "center", "va": "center", "color": "white" if shares[row][column] > 60 else "black"}
                axis.text(column, row, f"{shares[row][column]:.1f}", **style)
            gr.Plot(axis.figure, show_label=False, min_width=280)


def build_demo(model_ids: list[str]) -> gr.Blocks:
    """The page that shows the first of these folders or Hub ids."""
    model, options = model_ids[0], {"trust_remote_code": True, "revision": REVISION}
    classifier = pipeline("cpe-image-classification", model=model, **options)
    config, size = classifier.model.config, classifier.model.num_parameters() / 1e6
    examples = sorted(Path(__file__).with_name("examples").glob("*.png"))
    state, *values = classify(classifier, Image.open(examples[0]).convert("RGB"), 0)  # for the first visitor to see
    with gr.Blocks(title="Complementary experts", analytics_enabled=False) as demo:
        gr.Markdown(INTRO + TINY.format(size, config.num_labels) * (size < 100))
        with gr.Row():
            sources = ["upload", "clipboard"]
            image = gr.Image(examples[0], label="Image", sources=sources, height=260, elem_id="image", min_width=280)
            image.preprocess = read_image
            with gr.Column(scale=2, min_width=280):
                gr.Markdown(EXAMPLES)
                with gr.Row():
                    for path in examples:
                        button = gr.Button(path.stem.split("-")[1], icon=path, size="sm", min_width=70)
                        button.click(partial(str, path), None, image, api_visibility="private", show_progress="hidden")
                button = gr.Button("Classify", variant="primary")
                text = gr.HTML(values.pop(0))
        plot = partial(gr.Plot, show_label=False, min_width=280)
        gr.Markdown("## What each expert answers")
        with gr.Row():
            experts = [plot(values.pop(0)) for _ in config.taus]
        gr.Markdown("## If other classes are frequent among the images to come")
        with gr.Row():
            with gr.Column(min_width=280):
                label = "The images to come: long-tailed (-1), balanced (0), inverse long-tailed (1)"
                tilt = gr.Slider(-1, 1, 0, step=0.05, label=label)
                shifted = [gr.HTML(values.pop(0))]
            shifted += [plot(values.pop(0)) for _ in range(2)]
        show_confusions(config, read_confusions(model, config))
        scores, quiet = gr.State(state), {"show_progress": "hidden", "trigger_mode": "always_last"}
        outputs = [scores, text, *experts, *shifted]
        button.click(partial(classify, classifier), [image, tilt], outputs, api_name="classify", **quiet)
        tilt.change(partial(shift, config), [scores, tilt], shifted, api_name="shift", **quiet)
    return demo.queue(max_size=32, default_concurrency_limit=1, api_open=False)


if __name__ == "__main__":
    listed = (metadata_load(Path(__file__).with_name("README.md")) or {}).get("models", [])
    model_ids = [name for name in os.environ.get("MODEL_IDS", "").split(",") if name] or listed
    if not model_ids:
        raise SystemExit("No models: run `hf-methods space cpe`, or set MODEL_IDS to a folder or Hub id.")
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"show_error": True, "max_file_size": "10mb", "css": CSS}
    build_demo(model_ids).launch(share=False, ssr_mode=False, run_history=False, theme=theme, **options)
