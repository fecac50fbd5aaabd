# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Hand-written and learned prompts side by side: MODEL_IDS=<folder or id> python app.py"""

import json
import os
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr
import torch
from gradio.components.gallery import GalleryData
from gradio.utils import get_upload_folder
from huggingface_hub import hf_hub_download, metadata_load
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AddedToken, Pipeline, pipeline


MAX_SIDE, MAX_IMAGES, MAX_NAMES, SHOWN = 4096, 8, 50, 4
FORMATS, REVISION = ("PNG", "JPEG", "WEBP", "GIF", "BMP"), os.environ.get("MODEL_REVISION", "main")
EXAMPLES = sorted(Path(__file__).with_name("examples").glob("*.png"))
HAND_WRITTEN, COLORS = "hand-written prompt", ("#6b7280", "#ea580c", "#2563eb")
INTRO = """# Learned prompts that keep working on new class names
CLIP compares an image with a sentence for each class name. **CoOp** learns the words around the name from a few images;
trained for long, it forgets how to treat names that it has not seen. **SubPT** learns inside the directions of the first
epochs only, and **NFL** keeps other names near their hand-written prompts
([arXiv 2211.02219](https://arxiv.org/abs/2211.02219)). """
TINY = "**A tiny model** of {:.2f} M parameters, made on emoji: expect little, and of photos nothing."
CURVES = """## Accuracy during training
On test images: among **base** classes, a few of whose images were learned, and among **novel** ones, of which none was. """
NO_CURVES = "The model comes without a `results.json` that has the curves."


def read_images(payload: GalleryData | None) -> list[tuple[str, Image.Image]]:
    """The visitor's images by file name, in place of gr.Gallery's `preprocess`, which takes files of any size."""
    items = payload.root if payload is not None else []
    message = f"Give at most {MAX_IMAGES} images." if len(items) > MAX_IMAGES else "Choose at least one image."
    images, name = [], ""
    try:
        for item in items if len(items) <= MAX_IMAGES else []:
            path = Path(item.image.path).resolve()
            path.relative_to(Path(get_upload_folder()).resolve())  # elsewhere is nothing that a visitor has uploaded
            name = path.name
            with Image.open(path, formats=FORMATS) as image:
                if max(image.size) > MAX_SIDE:
                    message, images = f"{name} has more than {MAX_SIDE} x {MAX_SIDE} pixels.", []
                    break
                images.append((name, ImageOps.exif_transpose(image).convert("RGB")))
        if images:
            return images
    except Exception:  # noqa: BLE001 (PIL's decoders raise many kinds)
        message = f"{name or 'This'} is no image that can be read: {', '.join(FORMATS)}."
    raise gr.Error(message, print_exception=False)


def read_names(text: str | None) -> list[str]:
    """Class names between commas or line ends, with underscores as spaces, as they were learned."""
    parts = str(text or "").replace("\n", ",").replace("_", " ").split(",")
    names = [" ".join(part.split()) for part in parts if part.strip()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    message = "" if names else "Give at least one class name."
    message = f"Give at most {MAX_NAMES} class names." if len(names) > MAX_NAMES else message
    message = f"Give each class name once; twice: {', '.join(repeated)}." if repeated else message
    if message:
        raise gr.Error(message, print_exception=False)
    return names


def file_of(model_id: str, name: str) -> Path | None:
    """A file of the model's repository, if it is there."""
    try:
        path = Path(model_id, name)
        path = path if Path(model_id).is_dir() else Path(hf_hub_download(model_id, name, revision=REVISION))
        return path if path.is_file() else None
    except OSError:
        return None


def read_results(model_id: str) -> dict:
    """The model's results.json, or nothing."""
    try:
        return dict(json.loads(file_of(model_id, "results.json").read_text("utf-8")))
    except (AttributeError, ValueError, TypeError):
        return {}


def add_coop(classifier: Pipeline, path: Path | None) -> dict[str, str]:
    """Put CoOp's context into the vocabulary, behind the one that is there; its prompt by name, if there is one."""
    template = classifier.hypothesis_template
    context = next(iter(load_file(path).values())) if path else torch.empty(0)
    if not len(context) or template.count("<|ctx_") != len(context):
        return {}
    embedding = classifier.model.text_model.embeddings.token_embedding
    embedding.weight.data = torch.cat([embedding.weight.data, context.to(embedding.weight)])
    names = [f"<|coop_{k}|>" for k in range(len(context))]
    classifier.tokenizer.add_tokens([AddedToken(x, lstrip=True, rstrip=True, normalized=False) for x in names])
    return {"CoOp": template.replace("<|ctx_", "<|coop_")}


def compare(classifier: Pipeline, templates: dict[str, str], images: list, names: str, written: str) -> list:
    """The answers as a table, and a figure for each prompt."""
    labels, written = read_names(names), str(written or "").strip()
    if written.count("{}") != 1:
        raise gr.Error("The hand-written prompt needs one {} where the class name goes.", print_exception=False)
    templates = {HAND_WRITTEN: written, **templates}
    ask = partial(classifier, [image for _, image in images], labels, return_similarities=True, batch_size=MAX_IMAGES)
    try:
        answers = {prompt: ask(hypothesis_template=template) for prompt, template in templates.items()}
    except ValueError:  # more tokens than positions
        raise gr.Error("A class name or the prompt is too long for the model.", print_exception=False) from None
    heads, rows = "".join(f"<th>{escape(prompt)}</th>" for prompt in answers), ""
    for (name, _), *best in zip(images, *answers.values()):
        cells = [f"<td><b>{escape(x[0]['label'])}</b> ({100 * x[0]['score']:.1f} %)</td>" for x in best]
        rows += f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>"
    table = f"<table><tr><th>image</th>{heads}</tr>{rows}</table>"
    figures = [plot_bars(images, *pair, color) for pair, color in zip(answers.items(), COLORS)]
    return [f"<div style='overflow-x: auto'>{table}</div>", *figures]


def plot_bars(images: list, prompt: str, answers: list, color: str) -> Figure:
    """Similarities of the most similar names, a row for each image."""
    figure = Figure((4, 0.5 + 0.9 * len(images)), 200, layout="constrained")
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    axes = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 3), subplot_kw=bare)
    figure.suptitle(prompt, parse_math=False)
    for (picture, axis), (_, image), records in zip(axes, images, answers):
        best = sorted(records, key=lambda record: -record["similarity"])[:SHOWN]
        values = [record["similarity"] for record in best]
        picture.imshow(ImageOps.contain(image, (96, 96)))
        axis.barh(range(len(best)), values, color=[color, *["#d1d5db"] * (len(best) - 1)])
        for place, record in enumerate(best):
            text = f" {record['label'][:24]} {record['similarity']:.2f}"
            axis.text(max(0, record["similarity"]), place, text, va="center", fontsize=8, parse_math=False)
        axis.set(xlim=(min(0, *values), 2 * max(0.1, *values)), ylim=(SHOWN - 0.5, -0.5))
    return figure


def plot_curves(results: dict) -> list[Figure]:
    """Accuracy of the base and of the novel classes by epochs, a line for each way to learn the prompt."""
    curves, figures = results.get("curves") or {}, []
    shown = [name for name in ("CoOp", results.get("arm")) if name in curves]
    for group in ("base", "novel") if shown else ():
        axis = Figure((4, 3.2), 200, layout="constrained").add_subplot(title=f"{group} classes", xlabel="epoch")
        for name, color in zip(shown, COLORS[1:]):
            axis.plot(curves[name]["epoch"], curves[name][group], color=color, label=name)
        written = results["summary_mean_and_sd"]["zero-shot CLIP"][group][0]
        axis.axhline(written, color=COLORS[0], linestyle="--", label=HAND_WRITTEN)
        axis.set_ylabel("accuracy, %")
        axis.figure.legend(fontsize=7, frameon=False, loc="outside lower center")
        figures.append(axis.figure)
    return figures


def build_demo(model_ids: list[str]) -> gr.Blocks:
    """The page that shows the first of these folders or Hub ids."""
    model, options = model_ids[0], {"trust_remote_code": True, "revision": REVISION, "dtype": torch.float32}
    classifier = pipeline("prompted-zero-shot-image-classification", model=model, **options)
    results, size = read_results(model), classifier.model.num_parameters() / 1e6
    templates = add_coop(classifier, file_of(model, "adapter_coop/adapter_model.safetensors"))
    templates[results.get("arm", "learned prompt")] = classifier.hypothesis_template
    written = results.get("settings", {}).get("train", {}).get("template", "a photo of a {}.")
    names = ", ".join(dict.fromkeys(path.stem.split("_")[0].replace("-", " ") for path in EXAMPLES))
    shown = [(path.name, Image.open(path).convert("RGB")) for path in EXAMPLES]
    table, *values = compare(classifier, templates, shown, names, written)
    look = {"columns": 4, "height": 300, "object_fit": "contain", "elem_id": "images", "buttons": []}
    with gr.Blocks(title="Learned prompts", analytics_enabled=False) as demo:
        gr.Markdown(INTRO + TINY.format(size) * (size < 20))
        with gr.Row():
            images = gr.Gallery([str(path) for path in EXAMPLES], label="Images", interactive=True, **look)
            images.preprocess = read_images
            with gr.Column(min_width=280):
                text = gr.Textbox(names, label="Class names, between commas or one a line", lines=3, max_length=4000)
                prompt = gr.Textbox(written, label="Hand-written prompt, {} is the name", max_length=200)
                button = gr.Button("Compare", variant="primary")
        gr.Markdown("## What each prompt answers")
        outputs = [gr.HTML(table)]
        gr.Markdown("Cosine similarity of the image and the names that are most similar to it:")
        plot, curves = partial(gr.Plot, show_label=False, min_width=280), plot_curves(results)
        with gr.Row():
            outputs += [plot(value) for value in values]
        gr.Markdown(CURVES + NO_CURVES * (not curves))
        with gr.Row():
            [plot(figure) for figure in curves]
        run, inputs = partial(compare, classifier, templates), [images, text, prompt]
        button.click(run, inputs, outputs, api_name="compare", show_progress="hidden", trigger_mode="always_last")
    return demo.queue(max_size=32, default_concurrency_limit=1, api_open=False)


if __name__ == "__main__":
    listed = (metadata_load(Path(__file__).with_name("README.md")) or {}).get("models", [])
    model_ids = [name for name in os.environ.get("MODEL_IDS", "").split(",") if name] or listed
    if not model_ids:
        raise SystemExit("No models: run `hf-methods space subpt`, or set MODEL_IDS to a folder or Hub id.")
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"show_error": True, "max_file_size": "10mb"}
    build_demo(model_ids).launch(share=False, ssr_mode=False, run_history=False, theme=theme, **options)
