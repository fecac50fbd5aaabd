# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detectors that correct each other, on an image: MODEL_IDS=<folder or id> python app.py"""

import os
from collections import Counter
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from huggingface_hub import metadata_load
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps
from transformers import Pipeline, pipeline


MAX_SIDE, FORMATS = 4096, ("PNG", "JPEG", "WEBP", "GIF", "BMP")
REVISION = os.environ.get("MODEL_REVISION", "main")
BLUE, ORANGE, GREY, GREEN = "#2563eb", "#ea580c", "#6b7280", "#16a34a"
INTRO = """# Detectors that correct each other
Few images have boxes, many have none. A detector that labels the others for itself believes its own errors. In **Cross
Teaching** ([arXiv 2201.10734](https://arxiv.org/abs/2201.10734)) detectors of different initial weights learn side by side,
and where the boxes of two overlap, the more confident one becomes the pseudo label of both. """
TINY = "**Tiny models** of {:.2f} M parameters in all that see {} pixels and know only {}."
RULES = {  # in the words of the page
    "CrossRectify on VOC: unmatched boxes go, those of the other come": "crossrectify_voc",
    "Cross Teaching, first version: unmatched boxes go": "ct_v1",
    "CrossRectify on COCO: unmatched boxes stay": "crossrectify_coco",
}
STYLES = {  # of a change: colour, line, and what it means
    "kept": (GREY, "-", "its own box stays"),
    "replaced": (ORANGE, "-", "the other's box takes the place of the dashed one"),
    "added": (GREEN, "-", "a box of the other that it had not seen"),
    "dropped": (GREY, ":", "its own box goes: the other does not see it"),
}
EXAMPLES = "Upload an image, or take a scene of digits that no detector has seen:"
CHANGES = """## What rectification changes
Each detector's boxes as pseudo labels, if the image had none: """
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


def answer(detect: Pipeline, image: Image.Image, threshold: float, rule: str) -> list:
    """A text and a picture for each detector and the ensemble, then the like of what the rule changes."""
    if rule not in RULES:
        raise gr.Error("Choose a rule first.", print_exception=False)
    records = detect(image, detector="all", threshold=threshold)
    names = [*detect.names, "ensemble"]
    boxes = {name: [record for record in records if record["detector"] == name] for name in names}
    text = "<br>".join(f"{'The ensemble' if name == 'ensemble' else name}: {listed(boxes[name])}" for name in names)
    outputs = [text, *(draw_boxes(image, name, boxes[name]) for name in names)]
    if len(detect.names) == 1:
        return [*outputs, "The model has one detector: nobody rectifies it."]
    changes = detect(image, detector="all", rule=RULES[rule], threshold=threshold)
    by_name = {name: [record for record in changes if record["detector"] == name] for name in detect.names}
    text = "<br>".join(f"{name}: {summary_of(by_name[name])}" for name in detect.names)
    return [*outputs, text, *(draw_changes(image, name, by_name[name]) for name in detect.names)]


def listed(records: list[dict]) -> str:
    """The labels and scores of boxes, as HTML."""
    found = [f"<b>{escape(record['label'])}</b> ({100 * record['score']:.0f} %)" for record in records[:12]]
    more = f" and {len(records) - 12} more" if len(records) > 12 else ""
    return (", ".join(found) or "no box above the threshold") + more


def summary_of(records: list[dict]) -> str:
    """How many boxes have each change, and which labels were replaced, as HTML."""
    counts = Counter(record["change"] for record in records)
    counted = ", ".join(f"{counts[change]} {change}" for change in STYLES if counts[change])
    flips = [
        f"<b>{escape(record['own']['label'])}</b> became <b>{escape(record['label'])}</b>"
        for record in records
        if record["change"] == "replaced" and record["own"]["label"] != record["label"]
    ]
    return (counted or "no box above the threshold") + (f"; {', '.join(flips)}" if flips else "")


def new_axes(image: Image.Image, title: str) -> Axes:
    """Axes with the image."""
    axis = Figure((4, 4), 160, layout="constrained").add_subplot(title=title)
    axis.imshow(image, interpolation="nearest")
    axis.set_axis_off()
    return axis


def add_box(axis: Axes, record: dict, color: str, line: str = "-", text: str | None = None) -> None:
    """One box, and its label at the upper corner."""
    box = record["box"]
    corner, size = (box["xmin"], box["ymin"]), (box["xmax"] - box["xmin"], box["ymax"] - box["ymin"])
    axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linestyle=line, linewidth=2))
    text = record["label"] if text is None else text
    style = {"color": "white", "fontsize": 9, "va": "bottom", "parse_math": False, "clip_on": True}
    axis.text(*corner, text[:20], bbox={"facecolor": color, "edgecolor": "none", "pad": 1}, **style)


def draw_boxes(image: Image.Image, name: str, records: list[dict]) -> Figure:
    """The boxes of one detector or the ensemble."""
    axis = new_axes(image, name if name == "ensemble" else f"detector {name}")
    for record in records:
        add_box(axis, record, ORANGE if name == "ensemble" else BLUE, text=f"{record['label']} {record['score']:.2f}")
    return axis.figure


def draw_changes(image: Image.Image, name: str, records: list[dict]) -> Figure:
    """What a rule makes of the boxes of one detector: an overlay."""
    axis = new_axes(image, f"pseudo labels of {name}")
    for record in records:
        color, line, _ = STYLES[record["change"]]
        text = record["label"]
        if record["change"] == "replaced":
            add_box(axis, record["own"], color, "--", "")
            text = f"{record['own']['label']} → {text}" if record["own"]["label"] != text else text
        add_box(axis, record, color, line, text)
    return axis.figure


def build_demo(model_ids: list[str]) -> gr.Blocks:
    """The page that shows the first of these folders or Hub ids."""
    options = {"trust_remote_code": True, "revision": REVISION}
    detect = pipeline("cross-teaching-object-detection", model=model_ids[0], **options)
    config, size = detect.model.config, detect.model.num_parameters() / 1e6
    pixels, labels = getattr(config.detector, "image_size", "some"), ", ".join(config.id2label.values())
    examples = sorted(Path(__file__).with_name("examples").glob("*.png"))
    values = answer(detect, Image.open(examples[0]).convert("RGB"), 0.5, next(iter(RULES)))  # for the first visitor
    with gr.Blocks(title="Cross Teaching", analytics_enabled=False) as demo:
        gr.Markdown(INTRO + TINY.format(size, pixels, labels) * (size < 10))
        with gr.Row():
            sources = ["upload", "clipboard"]
            image = gr.Image(examples[0], label="Image", sources=sources, height=260, elem_id="image", min_width=280)
            image.preprocess = read_image
            with gr.Column(scale=2, min_width=280):
                gr.Markdown(EXAMPLES)
                with gr.Row():
                    for path in examples:
                        button = gr.Button(path.stem.replace("-", " "), icon=path, size="sm", min_width=70)
                        button.click(partial(str, path), None, image, api_visibility="private", show_progress="hidden")
                threshold = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="Show boxes with a score above")
                button = gr.Button("Detect", variant="primary")
                text = gr.HTML(values.pop(0))
        plot = partial(gr.Plot, show_label=False, min_width=260)
        gr.Markdown("## What each detector finds")
        with gr.Row():
            outputs = [text, *(plot(values.pop(0)) for _ in (*detect.names, "ensemble"))]
        meanings = "; ".join(f"**{change}**: {meaning}" for change, (_, _, meaning) in STYLES.items())
        gr.Markdown(CHANGES + meanings + ".")
        rule = gr.Dropdown(list(RULES), value=next(iter(RULES)), label="Rule")
        outputs.append(gr.HTML(values.pop(0)))
        with gr.Row():
            outputs += [plot(value) for value in values]
        inputs, quiet = [image, threshold, rule], {"show_progress": "hidden", "trigger_mode": "always_last"}
        button.click(partial(answer, detect), inputs, outputs, api_name="detect", **quiet)
        for control in (threshold, rule):
            control.change(partial(answer, detect), inputs, outputs, api_visibility="private", **quiet)
    return demo.queue(max_size=32, default_concurrency_limit=1, api_open=False)


if __name__ == "__main__":
    listed_models = (metadata_load(Path(__file__).with_name("README.md")) or {}).get("models", [])
    model_ids = [name for name in os.environ.get("MODEL_IDS", "").split(",") if name] or listed_models
    if not model_ids:
        raise SystemExit("No models: run `hf-methods space cross_teaching`, or set MODEL_IDS to a folder or Hub id.")
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"show_error": True, "max_file_size": "10mb", "css": CSS}
    build_demo(model_ids).launch(share=False, ssr_mode=False, run_history=False, theme=theme, **options)
