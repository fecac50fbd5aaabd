# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Space: its boxes against the package's, what it refuses, and a visit with a browser."""

import importlib.util
import re
import runpy
import shutil
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, chromium, running_space, screenshot, until, visit
from huggingface_hub import metadata_load, metadata_save
from matplotlib.colors import to_hex
from PIL import Image
from test_pipeline_cross_teaching import make_teaching_model
from transformers import pipeline

import hf_methods
from hf_methods.cross_teaching import CrossTeachingDetectionPipeline
from hf_methods.cross_teaching.image_processing_cross_teaching import DetectionImageProcessor
from hf_methods.cross_teaching.pipeline_cross_teaching import TASK
from hf_methods.cross_teaching.publishing_cross_teaching import save_repository
from hf_methods.cross_teaching.rectification_cross_teaching import BOX_RULES
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes


gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


ROOT = Path(hf_methods.__file__).parents[1]
FOLDER = ROOT / "spaces" / "cross_teaching"
TRAINED = ROOT / "model_cards" / "ct-digit-scenes"
EXAMPLES = sorted((FOLDER / "examples").glob("*.png"))
FIGURE = "img[src^='data:image/webp']"
RULE = "CrossRectify on VOC: unmatched boxes go, those of the other come"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A repository of untrained detectors that are sure of their answers."""
    checkpoint, folder = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("repository") / "tiny"
    make_teaching_model().save_pretrained(checkpoint)
    save_repository(str(checkpoint), folder)
    return str(folder)


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_cross_teaching", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def detect():
    """The package's pipeline."""
    loaded = make_teaching_model().for_inference()
    processor = DetectionImageProcessor.for_detector(loaded.config.detector)
    return CrossTeachingDetectionPipeline(model=loaded, image_processor=processor)


@pytest.fixture(scope="module")
def space(model, tmp_path_factory):
    env = {"MODEL_IDS": model, "HF_ENDPOINT": "https://huggingface.co"}
    scratch = tmp_path_factory.mktemp("space")
    with running_space(FOLDER, scratch, env, without=("hf_methods", "accelerate", "datasets", "evaluate")) as running:
        yield running
        assert running.outside == []


@pytest.fixture(scope="module")
def client(space):
    return Client(space.url, verbose=False)


@pytest.fixture(scope="module")
def browser():
    with chromium() as context:
        yield context


def example(number=0):
    return Image.open(EXAMPLES[number]).convert("RGB")


def rectangles(figure):
    """(left, top, width, height, colour, line) of each box."""
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height(), to_hex(patch.get_edgecolor()), patch.get_linestyle())
        for patch in figure.axes[0].patches
    ]


def as_rectangle(record, color, line="-"):
    box = record["box"]
    return (box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"], color, line)


# --- The boxes


def test_each_picture_has_the_boxes_of_the_package(app, detect):
    image = example()
    text, *figures = app.answer(detect, image, 0.7, RULE)[:4]
    for name, figure in zip(("A", "B", "ensemble"), figures, strict=True):
        records = detect(image, detector=name, threshold=0.7)
        color = app.ORANGE if name == "ensemble" else app.BLUE
        assert rectangles(figure) == [as_rectangle(record, color) for record in records]
        shown = [label.get_text() for label in figure.axes[0].texts]
        assert shown == [f"{record['label']} {record['score']:.2f}" for record in records]
        best = records[0] if records else None
        title = "The ensemble" if name == "ensemble" else name
        assert f"{title}: <b>{best['label']}</b> ({100 * best['score']:.0f} %)" in text if best else title in text


@pytest.mark.parametrize("number", range(3))
def test_the_overlay_has_what_the_rule_changes(app, detect, number):
    image, (title, rule) = example(1), list(app.RULES.items())[number]
    *_, text, first, second = app.answer(detect, image, 0.7, title)
    for name, figure in (("A", first), ("B", second)):
        records = detect(image, detector=name, rule=rule, threshold=0.7)
        expected = []
        for record in records:
            color, line, _ = app.STYLES[record["change"]]
            if record["change"] == "replaced":
                expected.append(as_rectangle(record["own"], color, "--"))
            expected.append(as_rectangle(record, color, line))
        assert rectangles(figure) == expected and expected
        for change in app.STYLES:
            count = sum(record["change"] == change for record in records)
            line = text.split("<br>")["AB".index(name)]
            assert (f"{count} {change}" in line) == bool(count)


def test_the_rules_are_all_that_there_are(app):
    assert sorted(app.RULES.values()) == sorted(BOX_RULES) and next(iter(app.RULES)) == RULE


def test_labels_of_a_model_are_shown_as_text(app):
    record = {"label": "<b>$x_{", "score": 0.5, "box": dict(xmin=1, ymin=1, xmax=5, ymax=5)}
    assert "&lt;b&gt;$x_{" in app.listed([record])
    figure = app.draw_boxes(example(), "A", [record] * 14)
    figure.canvas.draw()
    assert app.listed([record] * 14).endswith("and 2 more") and app.listed([]) == "no box above the threshold"
    changed = {**record, "change": "replaced", "own": {**record, "label": "y<"}}
    assert app.summary_of([changed]) == "1 replaced; <b>y&lt;</b> became <b>&lt;b&gt;$x_{</b>"


def test_a_model_of_one_detector_can_be_shown(app, detect):
    single = make_teaching_model(1).for_inference()
    alone = CrossTeachingDetectionPipeline(model=single, image_processor=detect.image_processor)
    outputs = app.answer(alone, example(), 0.7, RULE)
    assert len(outputs) == 4 and outputs[-1] == "The model has one detector: nobody rectifies it."


def test_the_examples_are_test_scenes():
    scenes = {row["image"]["bytes"] for row in make_digit_scenes("test", 12, seed=100)}
    assert len(EXAMPLES) == 6 and all(path.read_bytes() in scenes for path in EXAMPLES)


# --- What it refuses


def written(tmp_path, name):
    """Files that a visitor may bring."""
    path = tmp_path / name
    if name == "wide.png":
        Image.new("1", (4097, 8)).save(path)
    elif name == "bomb.png":
        Image.new("1", (20000, 20000)).save(path)
    elif name == "cut.png":
        path.write_bytes(EXAMPLES[0].read_bytes()[:150])
    elif name == "image.svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    else:
        path.write_bytes(b"" if name == "empty.png" else b"no image at all")
    return handle_file(str(path))


@pytest.mark.parametrize(
    "name, message",
    [
        (None, "Choose an image first."),
        ("wide.png", "The image has more than 4096 x 4096 pixels."),
        ("bomb.png", "This is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("cut.png", "This is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("text.png", "This is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("empty.png", "This is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("image.svg", "This is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_out_of_bounds_are_refused_with_a_message(client, tmp_path, name, message):
    with pytest.raises(AppError) as refusal:
        client.predict(name and written(tmp_path, name), 0.5, RULE, api_name="/detect")
    assert str(refusal.value) == message


@pytest.mark.parametrize("threshold, rule", [(1.5, RULE), (-1, RULE), ("x", RULE), (0.5, "no rule"), (0.5, None)])
def test_inputs_out_of_bounds_are_refused_without_a_trace(space, client, threshold, rule):
    with pytest.raises((AppError, ValueError)) as refusal:
        client.predict(handle_file(str(EXAMPLES[0])), threshold, rule, api_name="/detect")
    assert "Traceback" not in str(refusal.value) and "/" not in str(refusal.value)
    log = [line for line in space.log.read_text().splitlines() if "site-packages" not in line]
    assert not [line for line in log if str(ROOT) in line]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_is_read(app, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (40, 30)).save(path)
    image = app.read_image(gr.data_classes.ImageData(path=str(path)))
    assert image.mode == "RGB" and image.size == (40, 30)


def test_no_file_beside_the_uploads_is_read(app, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for path in (str(EXAMPLES[0]), str(tmp_path / ".." / "x.png"), "/etc/passwd"):
        with pytest.raises(gr.Error, match="no image that can be read"):
            app.read_image(gr.data_classes.ImageData(path=path))


def test_nobody_skips_the_queue(space):
    request = urllib.request.Request(
        f"{space.url}/gradio_api/run/detect", b'{"data": [null, 0.5, null]}', {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        opener.open(request, timeout=10)


def test_without_models_the_app_says_what_to_do(monkeypatch):
    monkeypatch.setenv("MODEL_IDS", "")
    with pytest.raises(SystemExit, match="^No models: run `hf-methods space cross_teaching`, or set MODEL_IDS"):
        runpy.run_path(str(FOLDER / "app.py"), run_name="__main__")


@pytest.mark.slow
def test_the_model_may_stand_in_the_header_of_the_readme(tmp_path, monkeypatch, model):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    metadata_save(tmp_path / "README.md", {**metadata_load(FOLDER / "README.md"), "models": [model, "no/such"]})
    launched = {}
    monkeypatch.delenv("MODEL_IDS", raising=False)
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options, demo=demo))
    runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
    assert "know only ant, bee, cat" in str(launched["demo"].config)
    assert launched["share"] is False and launched["ssr_mode"] is False and "allowed_paths" not in launched


def test_the_committed_header_names_no_models_and_its_files_exist():
    header = metadata_load(FOLDER / "README.md")
    assert "models" not in header  # anybody could register a made-up name, and the app runs a model's code
    assert header["sdk"] == "gradio" and (FOLDER / header["app_file"]).exists()
    assert len(header["short_description"]) <= 60
    text = (FOLDER / "app.py").read_text()
    assert TASK in text and "hf_methods" not in text.split('"""')[2] and len(text.splitlines()) <= 200


# --- A visit


def visit_as(opened, detect, path):
    """Upload an image, detect, read the answer, and choose another rule."""
    page = opened.page
    page.get_by_role("button", name="Remove Image").click()
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Remove Image").wait_for()
    click = page.get_by_role("button", name="Detect").click
    image = Image.open(path).convert("RGB")
    best = detect(image, detector="B", threshold=0.5)
    found = f"B: {best[0]['label']} ({100 * best[0]['score']:.0f} %)" if best else "B: no box above the threshold"
    until(click, page.get_by_text(found))
    page.get_by_label("Rule").click()
    page.get_by_role("option", name="Cross Teaching, first version").click()
    changes = detect(image, detector="A", rule="ct_v1", threshold=0.5)
    counts = Counter(record["change"] for record in changes)
    assert not counts["added"]
    text = ", ".join(f"{counts[change]} {change}" for change in ("kept", "replaced", "dropped") if counts[change])
    of_new_rule = (
        re.escape(f"A: {text or 'no box above the threshold'}") + "(?!,)"
    )  # the old one's goes on with others
    page.get_by_text(re.compile(of_new_rule)).last.wait_for(timeout=8000)
    for figure in page.locator(FIGURE).all():
        assert figure.evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.locator(FIGURE).count() == 5


@pytest.mark.parametrize("size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"])
def test_a_visitor_uploads_detects_and_chooses_a_rule(space, browser, detect, tmp_path, size):
    with visit(browser, space.url, size) as opened:
        visit_as(opened, detect, EXAMPLES[3])
        page = opened.page
        assert page.get_by_text("Tiny models").is_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
        assert screenshot(page, f"visit_{size[0]}.png", tmp_path).stat().st_size > 20_000
    assert opened.errors == [] and opened.outside == []


def test_the_keyboard_is_enough_and_every_input_has_a_name(space, browser, detect):
    focused = "() => document.activeElement.tagName + ' ' + (document.activeElement.innerText || '').trim()"
    with visit(browser, space.url) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        page.get_by_role("button", name="Detect").wait_for()
        order = []
        while len(order) < 25 and "BUTTON Detect" not in order:
            keyboard.press("Tab")
            order.append(page.evaluate(focused))
            if order[-1] == "BUTTON scene 6":
                keyboard.press("Enter")
                page.locator("#image img[src*='scene-6']").wait_for()
        best = detect(example(5), detector="A", threshold=0.5)[0]
        until(lambda: keyboard.press("Enter"), page.get_by_text(f"A: {best['label']} ({100 * best['score']:.0f} %)"))
        names = page.evaluate(
            "() => [...document.querySelectorAll('main input, main button')]"
            ".map(e => e.ariaLabel || [...(e.labels || [])].map(l => l.innerText).join() || e.innerText)"
        )
        assert len(names) >= 10 and all(name.strip() for name in names), names
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_errors_are_told_as_messages(space, browser, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    with visit(browser, space.url) as opened:
        page = opened.page
        click = page.get_by_role("button", name="Detect").click
        page.get_by_role("button", name="Remove Image").click()
        until(click, page.get_by_text("Choose an image first."))
        page.locator("input[type=file]").first.set_input_files(broken)
        page.get_by_role("button", name="Remove Image").wait_for()
        until(click, page.get_by_text("This is no image that can be read"))
        assert page.locator(FIGURE).count() == 5  # the last result stays
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_the_trained_model_can_be_visited(browser, tmp_path):
    detect = pipeline(TASK, model=str(TRAINED), trust_remote_code=True)
    with running_space(FOLDER, tmp_path, {"MODEL_IDS": str(TRAINED)}, without=("hf_methods",)) as running:
        with visit(browser, running.url) as opened:
            visit_as(opened, detect, EXAMPLES[4])  # where A and B disagree
            screenshot(opened.page, "cross_teaching_space.png", tmp_path)
        assert opened.errors == [] and opened.outside == [] and running.outside == []
