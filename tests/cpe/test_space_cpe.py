# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Space: its numbers against the package's, what it refuses, and a visit with a browser."""

import importlib.util
import io
import json
import re
import runpy
import shutil
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import torch
from browser import DESKTOP, PHONE, chromium, running_space, screenshot, until, visit
from huggingface_hub import metadata_load, metadata_save
from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError
from PIL import Image

import hf_methods
from hf_methods.cpe import CPEConfig, CPEForImageClassification, CPEImageProcessor
from hf_methods.cpe.pipeline_cpe import TASK, CPEImageClassificationPipeline
from hf_methods.cpe.publishing_cpe import save_repository
from hf_methods.data import load_image_dataset


gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


ROOT = Path(hf_methods.__file__).parents[1]
FOLDER = ROOT / "spaces" / "cpe"
TRAINED = ROOT / "model_cards" / "cpe-mnist-reversed"
EXAMPLES = sorted((FOLDER / "examples").glob("*.png"))
COUNTS = [4, 60, 2, 28, 41, 19, 13, 9, 6, 2]  # not in the order of the labels, and with a tie
RANKS = [7, 0, 8, 2, 1, 3, 4, 5, 6, 9]
ANSWER = re.compile(r"answers <b>(\d)</b> \((\d+\.\d) %\)")
FIGURE = "img[src^='data:image/webp']"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A repository of an untrained model that is sure of its answers, with confusions that were made up."""
    checkpoint, folder = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("repository") / "tiny"
    torch.manual_seed(0)
    labels = {k: str(k) for k in range(10)}
    model = CPEForImageClassification(
        CPEConfig(
            id2label=labels,
            label2id={label: k for k, label in labels.items()},
            class_counts=COUNTS,
            depth=10,
            widen_factor=1,
            image_size=28,
            num_channels=1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(checkpoint)
    size = {"height": 28, "width": 28}
    CPEImageProcessor(image_mean=[0.13], image_std=[0.31], size=size, do_convert_rgb=False).save_pretrained(checkpoint)
    save_repository(str(checkpoint), folder)
    confusions = np.random.default_rng(0).integers(1, 100, (3, 10, 10)).tolist()
    (folder / "results.json").write_text(json.dumps({"confusions": confusions}))
    return str(folder)


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_cpe", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier(model):
    """The package's pipeline."""
    loaded = CPEForImageClassification.from_pretrained(model)
    return CPEImageClassificationPipeline(model=loaded, image_processor=CPEImageProcessor.from_pretrained(model))


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


def expected_prior(tilt):
    """In the order of the labels, by powers of the imbalance 30."""
    weights = [30.0 ** (tilt * rank / 9) for rank in RANKS]
    return [weight / sum(weights) for weight in weights]


def heights(figure):
    """Of the bars, in the order of the labels, as probabilities."""
    bars = [bar.get_height() / 100 for bar in figure.axes[0].patches]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list("1435678029")
    return [bars[rank] for rank in RANKS]


def scores_of(records):
    return [next(record["score"] for record in records if record["label"] == str(k)) for k in range(10)]


def answer_in(text):
    label, percent = ANSWER.search(text).groups()
    return label, float(percent)


# --- The numbers


def test_experts_and_answer_are_those_of_the_package(app, classifier):
    image = Image.open(EXAMPLES[2]).convert("RGB")
    scores, text, *experts, _, _, _ = app.classify(classifier, image, 0)
    records = classifier(image, top_k=10, return_experts=True)
    assert scores == {record["label"]: record["score"] for record in records}
    assert len(experts) == 3
    for name, figure in zip(("long_tailed", "uniform", "inverse"), experts):
        best = classifier(image, top_k=10, expert=name)
        np.testing.assert_allclose(heights(figure), scores_of(best), rtol=1e-5, atol=1e-7)
        assert figure.axes[0].get_title().startswith(name.replace("_", "-"))
        assert f": <b>{best[0]['label']}</b> ({100 * best[0]['score']:.1f} %)" in text
    assert answer_in(text) == (records[0]["label"], round(100 * records[0]["score"], 1))
    assert f"; {round(3 * records[0]['agreement'])} of 3 experts agree." in text


@pytest.mark.parametrize("tilt", [-1, -0.35, 0, 1])
def test_the_slider_is_the_target_prior_of_the_package(app, classifier, tilt):
    image = Image.open(EXAMPLES[1]).convert("RGB")
    *_, text, prior, shifted = app.classify(classifier, image, tilt)
    np.testing.assert_allclose(heights(prior), expected_prior(tilt), rtol=1e-9)
    records = classifier(image, top_k=10, target_prior=expected_prior(tilt))
    np.testing.assert_allclose(heights(shifted), scores_of(records), rtol=1e-4, atol=1e-7)
    assert answer_in(text) == (records[0]["label"], pytest.approx(100 * records[0]["score"], abs=0.051))
    begins = {
        -1: "<b>1</b> is 30.0 times as frequent as <b>9</b>",
        0: "All classes are equally",
        1: "<b>9</b> is 30.0 ",
    }
    assert text.startswith(begins.get(tilt, "<b>1</b> is 3.3 times"))


def test_confusions_are_summed_over_the_groups_of_classes(app, classifier, model, monkeypatch):
    confusions = app.read_confusions(model, classifier.model.config)
    counts = json.loads(Path(model, "results.json").read_text())["confusions"]
    groups = [[1, 4], [3, 5], [0, 2, 6, 7, 8, 9]]  # by rank: 2, 2, 6
    for expert in range(3):
        for row in range(3):
            cells = [sum(counts[expert][t][p] for t in groups[row] for p in columns) for columns in groups]
            wanted = [100 * cell / sum(cells) for cell in cells]
            np.testing.assert_allclose(confusions[expert, row], wanted, rtol=1e-9)
    shown = []
    monkeypatch.setattr(gr, "Plot", lambda figure, **options: shown.append(figure.axes[0]))
    with gr.Blocks():
        app.show_confusions(classifier.model.config, confusions)
    assert [axis.get_title() for axis in shown] == ["long-tailed (τ = 0)", "uniform (τ = 2)", "inverse (τ = 4)"]
    for axis, shares in zip(shown, confusions.flatten(1).tolist()):
        assert [text.get_text() for text in axis.texts] == [f"{share:.1f}" for share in shares]


@pytest.mark.parametrize("content", [None, "{", "{}", '{"confusions": [[1]]}', '{"confusions": null}'])
def test_without_confusions_there_is_a_sentence(app, classifier, model, tmp_path, content):
    folder = shutil.copytree(model, tmp_path / "tiny")
    (folder / "results.json").unlink()
    if content is not None:
        (folder / "results.json").write_text(content)
    assert app.read_confusions(str(folder), classifier.model.config) is None
    with gr.Blocks() as demo:
        app.show_confusions(classifier.model.config, None)
    assert "comes without" in str(demo.config["components"])


def test_confusions_of_a_model_on_the_hub(app, classifier, model, monkeypatch):
    def download(repo_id, filename, revision):
        assert (repo_id, filename, revision) == ("no-such-owner/tiny", "results.json", "main")
        return Path(model, filename)

    config = classifier.model.config
    monkeypatch.setattr(app, "hf_hub_download", download)
    assert torch.equal(app.read_confusions("no-such-owner/tiny", config), app.read_confusions(model, config))
    missing = RemoteEntryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://x")))
    for error in (missing, OfflineModeIsEnabled("offline")):
        monkeypatch.setattr(app, "hf_hub_download", Mock(side_effect=error))
        assert app.read_confusions("no-such-owner/tiny", config) is None


def test_a_model_of_one_expert_and_long_names_can_be_shown(app):
    labels = {k: ("$x_{ <b>" if k % 2 else "a long name ") + str(k) for k in range(40)}
    config = CPEConfig(
        id2label=labels, label2id={v: k for k, v in labels.items()}, taus=[0.0], depth=10, widen_factor=1
    )
    assert app.names_of(config) == ["long-tailed (τ = 0)"]
    text, *figures = app.shift(config, {label: 1 / 40 for label in labels.values()}, 0.5)
    assert "<b> " not in app.answer_of({"<b> x": 1.0}) and "&lt;b&gt; x" in app.answer_of({"<b> x": 1.0})
    assert "2.5 %" in text  # without counts of the classes all priors are balanced
    for figure in figures:
        figure.savefig(io.BytesIO(), format="webp")


def test_the_examples_are_test_images_of_mnist():
    test = load_image_dataset("mnist")["test"]
    digits = {np.asarray(image).tobytes(): label for image, label in zip(test["image"], test["label"])}
    assert len(EXAMPLES) == 6
    for path in EXAMPLES:
        image = Image.open(path)
        assert image.size == (28, 28) and path.stat().st_size < 500
        assert path.stem == f"mnist-{digits[np.asarray(image).tobytes()]}"


# --- What it refuses


def written(tmp_path, name):
    """Files that a visitor may bring."""
    path = tmp_path / name
    if name in ("large.png", "wide.png"):
        Image.new("1", (4097, 8) if name == "wide.png" else (5000, 5000)).save(path)
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
        ("large.png", "The image has more than 4096 x 4096 pixels."),
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
        client.predict(name and written(tmp_path, name), 0, api_name="/classify")
    assert str(refusal.value) == message


@pytest.mark.parametrize("tilt", [1.5, -2, "x", None, 1e400])
def test_sliders_out_of_bounds_are_refused_without_a_trace(space, client, tilt):
    for inputs in ((handle_file(str(EXAMPLES[0])), tilt), (tilt,)):
        with pytest.raises((AppError, ValueError)) as refusal:
            client.predict(*inputs, api_name="/classify" if len(inputs) == 2 else "/shift")
        assert "Traceback" not in str(refusal.value) and "/" not in str(refusal.value)
    # torch names its own files in warnings, which lie in the checkout where the environment does
    log = [line for line in space.log.read_text().splitlines() if "site-packages" not in line]
    assert not [line for line in log if str(ROOT) in line]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_is_read(app, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (40, 30)).save(path)
    image = app.read_image(gr.data_classes.ImageData(path=str(path)))
    assert image.mode == "RGB" and image.size == (40, 30)


def status(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def client_path(space):
    """Where the server keeps the image of the first page, which a visitor may name."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{space.url}/config") as answer:
        components = json.load(answer)["components"]
    return next(part["props"]["value"]["path"] for part in components if part["type"] == "image")


def ask(space, data):
    """What the server answers to a request that no client of gradio's has made nice."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{space.url}/config", timeout=10) as answer:
        functions = json.load(answer)["dependencies"]
    number = next(function["id"] for function in functions if function["api_name"] == "classify")
    session = uuid.uuid4().hex
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    url, header = f"{space.url}/gradio_api/queue", {"Content-Type": "application/json"}
    opener.open(urllib.request.Request(f"{url}/join", body, header), timeout=10).close()
    with opener.open(f"{url}/data?session_hash={session}", timeout=20) as events:
        for line in events:
            event = json.loads(line.decode().removeprefix("data:")) if line.strip() else {}
            if event.get("msg") == "process_completed":
                return event
    raise AssertionError("no answer")


def test_no_file_of_the_server_can_be_read(space, model):
    assert status(f"{space.url}/config") == 200
    paths = [
        "app.py",
        "/etc/passwd",
        "../README.md",
        str(FOLDER / "app.py"),
        f"{model}/config.json",
        "%2e%2e/README.md",
    ]
    for path in paths:
        for route in ("gradio_api/file=", "gradio_api/file/", "file=", "file/", "gradio_api/proxy=file://"):
            assert status(f"{space.url}/{route}{path}") in (400, 403, 404), (route, path)
    example = ask(space, [{"path": client_path(space), "meta": {"_type": "gradio.FileData"}}, 0])
    assert example["success"] is True  # so that what follows is not refused for its form
    for path in (str(FOLDER / "README.md"), str(ROOT / "docs" / "images" / "softmax1_space.png"), "/etc/passwd"):
        for payload in ({"meta": {"_type": "gradio.FileData"}}, {}, {"orig_name": "x.svg"}, {"is_stream": True}):
            answer = ask(space, [{"path": path, **payload}, 0])
            assert answer["success"] is False and "root:" not in str(answer), (path, payload, answer)


def test_nobody_skips_the_queue(space):
    request = urllib.request.Request(
        f"{space.url}/gradio_api/run/shift", b'{"data": [null, 0]}', {"Content-Type": "application/json"}
    )
    assert status(request) == 404


def test_without_models_the_app_says_what_to_do(monkeypatch):
    monkeypatch.setenv("MODEL_IDS", "")
    with pytest.raises(
        SystemExit, match="^No models: run `hf-methods space cpe`, or set MODEL_IDS to a folder or Hub id.$"
    ):
        runpy.run_path(str(FOLDER / "app.py"), run_name="__main__")


def test_the_model_may_stand_in_the_header_of_the_readme(tmp_path, monkeypatch, model):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    metadata_save(tmp_path / "README.md", {**metadata_load(FOLDER / "README.md"), "models": [model, "no/such"]})
    launched = {}
    monkeypatch.delenv("MODEL_IDS", raising=False)
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options, demo=demo))
    runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
    assert "inverse (τ = 4)" in str(launched["demo"].config)
    assert launched["share"] is False and launched["ssr_mode"] is False and "allowed_paths" not in launched


def test_the_committed_header_names_no_models_and_its_files_exist():
    header = metadata_load(FOLDER / "README.md")
    assert "models" not in header  # anybody could register a made-up name, and the app runs a model's code
    assert header["sdk"] == "gradio" and (FOLDER / header["app_file"]).exists()
    assert len(header["short_description"]) <= 60
    assert (
        TASK in (FOLDER / "app.py").read_text() and "hf_methods" not in (FOLDER / "app.py").read_text().split('"""')[2]
    )


# --- A visit


def best(classifier, path, **options):
    """The answer as the page writes it."""
    record = classifier(Image.open(path).convert("RGB"), top_k=1, **options)[0]
    return f"{record['label']} ({100 * record['score']:.1f} %)"


def visit_as(opened, classifier, path):
    """Upload an image, classify it, read the answer, and move the slider."""
    page = opened.page
    page.get_by_role("button", name="Remove Image").click()
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Remove Image").wait_for()
    click = page.get_by_role("button", name="Classify").click
    until(click, page.get_by_text(f"The model answers {best(classifier, path)};"))
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    counts = classifier.model.config.class_counts
    order = sorted(range(10), key=lambda k: -counts[k])
    weights = [(max(counts) / min(counts)) ** (-order.index(k) / 9) for k in range(10)]
    shifted = best(classifier, path, target_prior=weights)
    page.get_by_text(f"times as frequent as {order[-1]}: the model answers {shifted}").wait_for(timeout=8000)
    for image in page.locator(FIGURE).all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.locator(FIGURE).count() == 8


@pytest.mark.parametrize("size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"])
def test_a_visitor_uploads_clicks_and_moves_the_slider(space, browser, classifier, tmp_path, size):
    with visit(browser, space.url, size) as opened:
        visit_as(opened, classifier, EXAMPLES[3])
        page = opened.page
        assert (
            page.get_by_text("A tiny model").is_visible()
            and page.get_by_text("they have 2, 2, 6 classes").is_visible()
        )
        assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
        assert screenshot(page, f"visit_{size[0]}.png", tmp_path).stat().st_size > 20_000
    assert opened.errors == [] and opened.outside == []


def test_the_keyboard_is_enough_and_every_input_has_a_name(space, browser, classifier):
    focused = "() => document.activeElement.tagName + ' ' + (document.activeElement.innerText || '').trim()"
    with visit(browser, space.url) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        page.get_by_role("button", name="Classify").wait_for()
        order = []
        while len(order) < 20 and "BUTTON Classify" not in order:
            keyboard.press("Tab")
            order.append(page.evaluate(focused))
            if order[-1] == "BUTTON 9":
                keyboard.press("Enter")
                page.locator("#image img[src*='mnist-9']").wait_for()
        until(lambda: keyboard.press("Enter"), page.get_by_text(f"The model answers {best(classifier, EXAMPLES[5])};"))
        names = page.evaluate(
            "() => [...document.querySelectorAll('main input, main button')]"
            ".map(e => e.ariaLabel || [...(e.labels || [])].map(l => l.innerText).join() || e.innerText)"
        )
        assert len(names) >= 12 and all(name.strip() for name in names), names
    assert opened.errors == [] and opened.outside == []


def test_errors_are_told_as_messages(space, browser, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    with visit(browser, space.url) as opened:
        page = opened.page
        click = page.get_by_role("button", name="Classify").click
        page.get_by_role("button", name="Remove Image").click()
        until(click, page.get_by_text("Choose an image first."))
        page.locator("input[type=file]").first.set_input_files(broken)
        page.get_by_role("button", name="Remove Image").wait_for()
        until(click, page.get_by_text("This is no image that can be read"))
        assert page.locator(FIGURE).count() == 8  # the last result stays
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_the_trained_model_can_be_visited(browser, tmp_path):
    loaded = CPEForImageClassification.from_pretrained(TRAINED)
    classifier = CPEImageClassificationPipeline(
        model=loaded, image_processor=CPEImageProcessor.from_pretrained(TRAINED)
    )
    with running_space(FOLDER, tmp_path, {"MODEL_IDS": str(TRAINED)}, without=("hf_methods",)) as running:
        with visit(browser, running.url) as opened:
            visit_as(opened, classifier, EXAMPLES[5])
            screenshot(opened.page, "cpe_space.png", tmp_path)
        assert opened.errors == [] and opened.outside == [] and running.outside == []
