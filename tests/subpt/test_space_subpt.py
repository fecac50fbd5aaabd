# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Space: its answers against PEFT's, what it refuses, and a visit with a browser."""

import copy
import importlib.util
import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import torch
from browser import DESKTOP, PHONE, chromium, running_space, screenshot, until, visit
from checkpoint_subpt import ARM, RESULTS, make_checkpoint
from huggingface_hub import metadata_load, metadata_save
from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer, pipeline

import hf_methods
from hf_methods.subpt import PromptedZeroShotPipeline
from hf_methods.subpt.emoji_subpt import load_emoji
from hf_methods.subpt.pipeline_subpt import TASK
from hf_methods.subpt.publishing_subpt import save_repository


gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


ROOT = Path(hf_methods.__file__).parents[1]
FOLDER = ROOT / "spaces" / "subpt"
TRAINED = ROOT / "model_cards" / "clip-emoji-subpt"
EXAMPLES = sorted((FOLDER / "examples").glob("*.png"))
NAMES = "animal bird, animal bug, food fruit, musical instrument, plant flower, transport ground"
WRITTEN = "a picture of a {}."
PROMPTS = ["hand-written prompt", "CoOp", ARM]
FIGURE = "img[src^='data:image/webp']"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A repository of an untrained model with two contexts, and with curves that were made up."""
    root = tmp_path_factory.mktemp("space")
    make_checkpoint(root / "checkpoint")
    (root / "tiny").mkdir()
    save_repository(str(root / "checkpoint"), root / "tiny")
    shutil.copyfile(root / "checkpoint" / "results.json", root / "tiny" / "results.json")
    return str(root / "tiny")


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_subpt", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def classifier(model):
    """The package's pipeline, which a test may change."""
    return pipeline(TASK, model=model, pipeline_class=PromptedZeroShotPipeline)


@pytest.fixture(scope="module")
def images():
    return [(path.name, Image.open(path).convert("RGB")) for path in EXAMPLES]


@pytest.fixture(scope="module")
def space(model, tmp_path_factory):
    env = {"MODEL_IDS": model, "HF_ENDPOINT": "https://huggingface.co"}
    without = ("hf_methods", "peft", "accelerate", "datasets", "evaluate")
    with running_space(FOLDER, tmp_path_factory.mktemp("space"), env, without=without) as running:
        yield running
        assert running.outside == []


@pytest.fixture(scope="module")
def client(space):
    return Client(space.url, verbose=False)


@pytest.fixture(scope="module")
def browser():
    with chromium() as context:
        yield context


def templates_of(app, classifier, model):
    templates = app.add_coop(classifier, Path(model, "adapter_coop", "adapter_model.safetensors"))
    return {**templates, ARM: classifier.hypothesis_template}


def similarities(figure):
    """(label, cosine) of the bars, a list for each image, as they are written beside them."""
    rows = [axis for axis in figure.axes if axis.patches]
    return [[re.fullmatch(r" (.*) (-?\d\.\d\d)", text.get_text()).groups() for text in axis.texts] for axis in rows]


# --- The numbers


def test_each_learned_prompt_gives_what_its_adapter_gives(app, classifier, model, images):
    labels = NAMES.split(", ")
    table, *figures = app.compare(classifier, templates_of(app, classifier, model), images, NAMES, WRITTEN)
    assert [figure.get_suptitle() for figure in figures] == PROMPTS == re.findall("<th>(.*?)</th>", table)[1:]
    pixels = classifier.image_processor([image for _, image in images], return_tensors="pt")
    found = {}
    for prompt, adapter, figure in zip(PROMPTS[1:], ("adapter_coop", "adapter"), figures[1:]):
        base = AutoModelForZeroShotImageClassification.from_pretrained(model)
        prompted = PeftModel.from_pretrained(base, model, subfolder=adapter)
        prompted.set_classes(labels, AutoTokenizer.from_pretrained(model))
        with torch.no_grad():
            output = prompted(**pixels)
        cosines = output.image_embeds @ output.text_embeds.T
        for row, written, (name, _) in zip(cosines.tolist(), similarities(figure), images, strict=True):
            assert [label for label, _ in written] == [labels[k] for k in np.argsort(row)[::-1][:4]]
            assert [float(value) for _, value in written] == pytest.approx(sorted(row)[::-1][:4], abs=0.0051)
            assert f"<tr><td>{name}</td>" in table
        found[prompt] = [f"<b>{labels[k]}</b> ({100 * p:.1f} %)" for p, k in zip(*output.logits.softmax(-1).max(-1))]
    cells = [re.findall("<td>(.*?)</td>", row)[1:] for row in table.split("<tr>")[2:]]
    assert [row[1] for row in cells] == found["CoOp"] and [row[2] for row in cells] == found[ARM]
    assert found["CoOp"] != found[ARM]


def test_the_hand_written_prompt_is_the_stock_pipelines(app, classifier, model, images):
    table, *_ = app.compare(classifier, templates_of(app, classifier, model), images, NAMES, " my own {}, yes ")
    stock = pipeline("zero-shot-image-classification", model=model)
    for name, image in images:
        best = stock(image, candidate_labels=NAMES.split(", "), hypothesis_template="my own {}, yes")[0]
        row = table.split(f"<td>{name}</td>")[1]
        label, percent = re.match(r"<td><b>(.*?)</b> \((.*?) %\)", row).groups()
        assert label == best["label"] and float(percent) == pytest.approx(100 * best["score"], abs=0.11)


def test_a_context_that_does_not_fit_or_is_not_there_is_left_out(app, classifier, model):
    path = Path(model, "adapter_coop", "adapter_model.safetensors")
    assert app.add_coop(classifier, None) == {}
    classifier.model.config = copy.deepcopy(classifier.model.config)
    classifier.model.config.subpt_hypothesis_template = "<|ctx_0|> <|ctx_1|> {}."
    rows = len(classifier.tokenizer)
    assert app.add_coop(classifier, path) == {} and len(classifier.tokenizer) == rows
    classifier.model.config.subpt_hypothesis_template = "<|ctx_0|> <|ctx_1|> {} <|ctx_2|> <|ctx_3|>."
    assert app.add_coop(classifier, path) == {"CoOp": "<|coop_0|> <|coop_1|> {} <|coop_2|> <|coop_3|>."}


def test_curves_are_those_of_the_results(app, model):
    base, novel = app.plot_curves(app.read_results(model))
    for figure, group in ((base, "base"), (novel, "novel")):
        (axis,) = figure.axes
        lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        assert axis.get_title() == f"{group} classes" and list(lines) == ["CoOp", ARM, "hand-written prompt"]
        assert lines["CoOp"] == RESULTS["curves"]["CoOp"][group] and lines[ARM] == RESULTS["curves"][ARM][group]
        assert set(lines["hand-written prompt"]) == {RESULTS["summary_mean_and_sd"]["zero-shot CLIP"][group][0]}


@pytest.mark.parametrize("content", [None, "{", "[1]", "7", '{"curves": {}}', '{"arm": "x"}'])
def test_without_curves_there_is_a_sentence(app, model, tmp_path, content):
    folder = shutil.copytree(model, tmp_path / "tiny")
    (folder / "results.json").unlink()
    if content is not None:
        (folder / "results.json").write_text(content)
    assert app.plot_curves(app.read_results(str(folder))) == []


def test_files_of_a_model_on_the_hub(app, model, monkeypatch):
    def download(repo_id, filename, revision):
        assert (repo_id, revision) == ("no-such-owner/tiny", "main")
        return Path(model, filename)

    monkeypatch.setattr(app, "hf_hub_download", download)
    assert app.read_results("no-such-owner/tiny") == app.read_results(model) == RESULTS
    missing = RemoteEntryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://x")))
    for error in (missing, OfflineModeIsEnabled("offline")):
        monkeypatch.setattr(app, "hf_hub_download", Mock(side_effect=error))
        assert app.file_of("no-such-owner/tiny", "x") is None and app.read_results("no-such-owner/tiny") == {}


def test_names_and_labels_of_visitors_are_text(app, classifier, images):
    name, (_, image) = "<i>$x.png", images[0]
    table, figure = app.compare(classifier, {}, [(name, image)], "<b> $y_{, {}, <|ctx_0|>", WRITTEN)
    assert "<i>" not in table and "&lt;i&gt;$x.png" in table and "<b> " not in table
    figure.savefig("/dev/null", format="webp")


def test_the_examples_are_test_images_of_twemoji():
    test = load_emoji("test")
    names = test.features["label"].names
    known = {np.asarray(row["image"].convert("RGB")).tobytes(): (names[row["label"]], row["name"]) for row in test}
    assert len(EXAMPLES) == 6
    for path in EXAMPLES:
        label, name = known[np.asarray(Image.open(path).convert("RGB")).tobytes()]
        assert path.stem == f"{label.replace(' ', '-')}_{name.replace(' ', '-')}" and path.stat().st_size < 2000
    assert "CC-BY 4.0" in (FOLDER / "README.md").read_text()


# --- What it refuses


def written(tmp_path, name):
    """Files that a visitor may bring."""
    path = tmp_path / name
    if name in ("large.png", "bomb.png"):
        Image.new("1", (5000, 4000) if name == "large.png" else (20000, 20000)).save(path)
    elif name == "cut.png":
        path.write_bytes(EXAMPLES[0].read_bytes()[:150])
    else:
        path.write_bytes(b"" if name == "empty.png" else b"no image at all")
    return path


def gallery(*paths):
    return [{"image": handle_file(str(path)), "caption": None} for path in paths]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("large.png", "large.png has more than 4096 x 4096 pixels."),
        ("bomb.png", "bomb.png is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("cut.png", "cut.png is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("text.png", "text.png is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        ("empty.png", "empty.png is no image that can be read: PNG, JPEG, WEBP, GIF, BMP."),
        (None, "Choose at least one image."),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_out_of_bounds_are_refused_with_a_message(client, tmp_path, name, message):
    paths = [] if name is None else [EXAMPLES[0], written(tmp_path, name)]
    with pytest.raises(AppError) as refusal:
        client.predict(gallery(*paths), NAMES, WRITTEN, api_name="/compare")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [
        ("", WRITTEN, "Give at least one class name."),
        (" , \n,", WRITTEN, "Give at least one class name."),
        ("cat, dog\ncat", WRITTEN, "Give each class name once; twice: cat."),
        ("sea_lion,sea  lion", WRITTEN, "Give each class name once; twice: sea lion."),
        (",".join(map(str, range(51))), WRITTEN, "Give at most 50 class names."),
        ("cat", "a photo", "The hand-written prompt needs one {} where the class name goes."),
        ("cat", "{} {}", "The hand-written prompt needs one {} where the class name goes."),
        ("cat", None, "The hand-written prompt needs one {} where the class name goes."),
        (60 * "x ", WRITTEN, "A class name or the prompt is too long for the model."),
    ],
)
def test_names_and_prompts_out_of_bounds_are_refused_with_a_message(client, names, template, message):
    with pytest.raises(AppError) as refusal:
        client.predict(gallery(EXAMPLES[0]), names, template, api_name="/compare")
    assert str(refusal.value) == message


def test_too_many_images_are_refused(client):
    with pytest.raises(AppError) as refusal:
        client.predict(gallery(*[EXAMPLES[0]] * 9), NAMES, WRITTEN, api_name="/compare")
    assert str(refusal.value) == "Give at most 8 images."


def test_a_file_of_the_server_is_no_image_of_a_visitor(app, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    inside = shutil.copy(EXAMPLES[0], tmp_path)
    payload = lambda path: SimpleNamespace(root=[SimpleNamespace(image=SimpleNamespace(path=str(path)))])  # noqa: E731
    assert app.read_images(payload(inside))[0][0] == EXAMPLES[0].name
    (tmp_path / "link.png").symlink_to(EXAMPLES[0])
    for path in (EXAMPLES[0], f"{tmp_path}/../{EXAMPLES[0].name}", tmp_path / "link.png", "/etc/passwd"):
        with pytest.raises(gr.Error, match="no image that can be read"):
            app.read_images(payload(path))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_is_read(app, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (40, 30)).save(path)
    item = SimpleNamespace(image=SimpleNamespace(path=str(path)))
    ((name, image),) = app.read_images(SimpleNamespace(root=[item]))
    assert name == path.name and image.mode == "RGB" and image.size == (40, 30)


def test_without_models_the_app_says_what_to_do(monkeypatch):
    monkeypatch.setenv("MODEL_IDS", "")
    with pytest.raises(
        SystemExit, match="^No models: run `hf-methods space subpt`, or set MODEL_IDS to a folder or Hub id.$"
    ):
        runpy.run_path(str(FOLDER / "app.py"), run_name="__main__")


def test_the_model_may_stand_in_the_header_of_the_readme(tmp_path, monkeypatch, model):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    metadata_save(tmp_path / "README.md", {**metadata_load(FOLDER / "README.md"), "models": [model, "no/such"]})
    launched = {}
    monkeypatch.delenv("MODEL_IDS", raising=False)
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options, demo=demo))
    runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
    assert ARM in str(launched["demo"].config)
    assert launched["share"] is False and launched["ssr_mode"] is False and "allowed_paths" not in launched


def test_the_committed_header_names_no_models_and_its_files_exist():
    header = metadata_load(FOLDER / "README.md")
    assert "models" not in header  # anybody could register a made-up name, and the app runs a model's code
    assert header["sdk"] == "gradio" and (FOLDER / header["app_file"]).exists()
    assert len(header["short_description"]) <= 60
    code = (FOLDER / "app.py").read_text()
    assert TASK in code and "import hf_methods" not in code and len(code.splitlines()) <= 200


# --- A visit


def answer_of(classifier, path, names, **options):
    """The first label and its score, as the page writes them."""
    record = classifier(Image.open(path).convert("RGB"), candidate_labels=names.split(", "), **options)[0]
    return f"{record['label']} ({100 * record['score']:.1f} %)"


def visit_as(opened, classifier, paths, names):
    """Upload images, type names, compare, and read the answers of the learned and the hand-written prompt."""
    page = opened.page
    page.locator("#images").get_by_role("button", name="Clear").click()
    page.locator("#images input[type=file]").first.set_input_files(paths)
    page.get_by_role("button", name=f"Thumbnail {len(paths)} of {len(paths)}").wait_for()
    page.get_by_label("Class names").fill(names)
    expected = answer_of(classifier, paths[0], names)
    until(page.get_by_role("button", name="Compare").click, page.get_by_role("cell", name=expected))
    rows = page.get_by_role("row").all()
    assert len(rows) == 1 + len(paths)
    for path, row in zip(paths, rows[1:]):
        cells = [cell.inner_text() for cell in row.get_by_role("cell").all()]
        assert cells[0] == path.name and cells[-1] == answer_of(classifier, path, names)
        assert cells[1] == answer_of(classifier, path, names, hypothesis_template=WRITTEN)
    for image in page.locator(FIGURE).all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.locator(FIGURE).count() == 5


@pytest.mark.parametrize("size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"])
def test_a_visitor_brings_images_and_names(space, browser, classifier, tmp_path, size):
    with visit(browser, space.url, size) as opened:
        visit_as(opened, classifier, EXAMPLES[2:4], "cat, sea lion, ox")
        page = opened.page
        assert page.get_by_text("A tiny model").is_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
        assert screenshot(page, f"visit_{size[0]}.png", tmp_path).stat().st_size > 20_000
    assert opened.errors == [] and opened.outside == []


def test_every_input_has_a_name_and_the_keyboard_is_enough(space, browser, classifier):
    focused = "() => document.activeElement.tagName + ' ' + (document.activeElement.innerText || '').trim()"
    with visit(browser, space.url) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        page.get_by_label("Class names").fill("yak, cat")
        order = []
        while len(order) < 10 and "BUTTON Compare" not in order:
            keyboard.press("Tab")
            order.append(page.evaluate(focused))
        expected = page.get_by_role("cell", name=answer_of(classifier, EXAMPLES[0], "yak, cat"))
        until(lambda: keyboard.press("Enter"), expected)
        names = page.evaluate(
            "() => [...document.querySelectorAll('main input:not([type=file]), main textarea, main button')]"
            ".map(e => e.ariaLabel || [...(e.labels || [])].map(l => l.innerText).join() || e.innerText)"
        )
        assert len(names) >= 9 and all(name.strip() for name in names), names
    assert opened.errors == [] and opened.outside == []


def test_errors_are_told_as_messages(space, browser, tmp_path):
    with visit(browser, space.url) as opened:
        page = opened.page
        click = page.get_by_role("button", name="Compare").click
        page.get_by_label("Class names").fill("cat, cat")
        until(click, page.get_by_text("Give each class name once; twice: cat."))
        page.get_by_label("Class names").fill("cat, ox")
        page.locator("#images").get_by_role("button", name="Clear").click()
        until(click, page.get_by_text("Choose at least one image."))
        page.locator("#images input[type=file]").first.set_input_files(written(tmp_path, "text.png"))
        page.get_by_role("button", name="Thumbnail 1 of 1").wait_for()
        until(click, page.get_by_text("text.png is no image that can be read"))
        assert page.locator(FIGURE).count() == 5  # the last result stays
    assert opened.errors == [] and opened.outside == []


def test_the_trained_model_can_be_visited(browser, tmp_path):
    classifier = pipeline(TASK, model=str(TRAINED), pipeline_class=PromptedZeroShotPipeline)
    with running_space(FOLDER, tmp_path, {"MODEL_IDS": str(TRAINED)}, without=("hf_methods", "peft")) as running:
        with visit(browser, running.url) as opened:
            page = opened.page
            page.get_by_role("button", name="Compare").wait_for()
            screenshot(page, "subpt_space.png", tmp_path)
            visit_as(opened, classifier, EXAMPLES[:3], "animal bird, clothing, game, plant flower")
        assert opened.errors == [] and opened.outside == [] and running.outside == []


def test_results_of_the_trained_checkpoint_have_what_the_page_shows(app):
    results = json.loads((TRAINED / "results.json").read_text())
    assert len(app.plot_curves(results)) == 2 and results["settings"]["train"]["template"] == WRITTEN
