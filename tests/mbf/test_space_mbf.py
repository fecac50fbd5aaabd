# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Space: its verdicts and figures against the package's, its attacks, what it refuses, and a visit with a browser."""

import importlib.util
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
from checkpoint_mbf import make_checkpoint
from huggingface_hub import metadata_load, metadata_save
from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import pipeline

import hf_methods
from hf_methods.mbf import AdversarialDetectionPipeline
from hf_methods.mbf.data_mbf import load_images, split_by_source
from hf_methods.mbf.pipeline_mbf import TASK


gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


ROOT = Path(hf_methods.__file__).parents[1]
FOLDER = ROOT / "spaces" / "mbf"
TRAINED = ROOT / "model_cards" / "mbf-mnist5k"
EXAMPLES = sorted((FOLDER / "examples").glob("*.png"))
CHANGES = ["nothing", "uniform noise", "FGSM", "PGD", "PGD that knows the detector"]
FIGURE = "img[src^='data:image/webp']"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A repository of a random classifier and its detector, with made-up results."""
    folder = tmp_path_factory.mktemp("repository") / "tiny"
    make_checkpoint(folder, num_coefficients=2, channel_groups=2)
    return str(folder)


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_mbf", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder):
    """The package's pipeline, as the app sets it."""
    detect = pipeline(TASK, model=str(folder), pipeline_class=AdversarialDetectionPipeline)
    detect.model.extractor.gradient_floor = 0.3
    return detect


@pytest.fixture(scope="module")
def detect(model):
    return load(model)


@pytest.fixture(scope="module")
def trained():
    return load(TRAINED)


@pytest.fixture(scope="module")
def space(model, tmp_path_factory):
    env = {"MODEL_IDS": model, "HF_ENDPOINT": "https://huggingface.co"}
    scratch = tmp_path_factory.mktemp("space")
    hidden = ("hf_methods", "accelerate", "datasets", "evaluate", "sklearn", "art")
    with running_space(FOLDER, scratch, env, without=hidden) as running:
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


def pixels_of(number=0):
    """(1, 1, 28, 28) in [0, 1]."""
    return torch.from_numpy(np.asarray(Image.open(EXAMPLES[number])).copy())[None, None].float() / 255


def normalize(images):
    return (images - 0.5) / 0.5


def sentence_of(record):
    """The verdict as the page writes it."""
    answer = f"{record['class']} ({100 * record['class_score']:.1f} %)"
    score = f"{100 * record['score']:.1f} %"
    return f"the classifier says {answer}, the detector {record['label']} (probability of an attack: {score})"


def plain(html):
    return re.sub("<br>", " ", html).replace("<b>", "").replace("</b>", "")


# --- Verdicts and figures


def test_the_verdict_on_an_image_is_that_of_the_package(app, trained):
    for number in range(3):
        text = plain(app.judge(trained, example(number), "nothing", 0.1)[0])
        sentence = sentence_of(trained(example(number)))
        assert f"Before: {sentence}" in text and f"After: {sentence}" in text
        assert "Largest change of a pixel: 0 of 255." in text


def test_the_verdict_after_an_attack_is_that_of_the_package_on_the_file(app, trained, tmp_path):
    attacked = app.perturb(trained.model, normalize, pixels_of(1), "PGD", 0.2)
    Image.fromarray((attacked[0, 0] * 255).round().byte().numpy()).save(tmp_path / "attacked.png")
    text = plain(app.judge(trained, example(1), "PGD", 0.2)[0])
    assert f"After: {sentence_of(trained(str(tmp_path / 'attacked.png')))}" in text
    assert "Largest change of a pixel: 51 of 255." in text


def test_coefficients_stand_before_the_band_of_benign_images(app, detect):
    figure = app.judge(detect, example(), "PGD", 0.2)[2]
    layers = detect(example(), top_k_layers=100, return_coefficients=True)["layers"]
    order = detect.model.config.layers
    layers.sort(key=lambda layer: order.index(layer["layer"]))
    assert len(figure.axes) == 2
    for n, axis in enumerate(figure.axes):
        columns = {
            key: np.concatenate([layer[key][n::2] for layer in layers])
            for key in ("coefficients", "benign_mean", "benign_std")
        }
        before = axis.collections[1].get_offsets()
        np.testing.assert_allclose(before[:, 1], columns["coefficients"], rtol=1e-4, atol=1e-6)
        segments = np.array(axis.collections[0].get_segments())[:, :, 1]
        low, high = (columns["benign_mean"] + sign * columns["benign_std"] for sign in (-2, 2))
        np.testing.assert_allclose(segments, np.stack([low, high], 1), rtol=1e-5, atol=1e-6)
        assert (before[:, 0].round() == np.repeat(range(1, len(order) + 1), 2)).all()  # two groups a layer


def test_layers_that_spoke_are_named_with_their_part(app, detect):
    axis = app.judge(detect, example(), "nothing", 0.2)[3].axes[0]
    layers = detect(example(), top_k_layers=10)["layers"]
    order = detect.model.config.layers
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == pytest.approx([layer["contribution"] for layer in layers], abs=1e-4)
    for tick, layer in zip(axis.get_yticklabels(), layers, strict=True):
        name, _, number = tick.get_text().rpartition(" ")
        assert layer["layer"].endswith(name) and number == f"({order.index(layer['layer']) + 1})"
    assert [text.get_text() for text in axis.texts] == [f"z {layer['z_score']:+.1f}" for layer in layers]


def test_the_change_is_magnified(app):
    clean = torch.full((1, 1, 4, 4), 0.5)
    after = clean.clone()
    after[0, 0, 1, 2] += 0.1
    axes = app.plot_images(clean, after).axes
    assert axes[2].get_title() == "change × 5.0"
    shown = axes[2].get_images()[0].get_array()
    assert shown[1, 2] == pytest.approx(1) and shown[0, 0] == pytest.approx(0.5)
    assert len(app.plot_images(clean, clean).axes) == 3  # nothing to magnify


def test_figures_are_those_of_the_results(app, model):
    results = json.loads(Path(model, "results.json").read_text())
    text = app.read_figures(model)
    for attack, row in results["published"].items():
        assert f"{row['auroc'][0]:.3f} {attack}" in text
    transfer = results["summary_mean_and_sd"][results["arm"]]["transfer_auroc"][0]
    assert f"trained on another attack:\n{transfer:.3f}." in text
    assert "with 83.1 % or 0.0 % of their images" in text


@pytest.mark.parametrize("content", [None, "{", "{}", '{"arm": "MBF", "summary_mean_and_sd": {"MBF": {}}}', "[]"])
def test_without_figures_there_is_a_sentence(app, tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert "comes without" in app.read_figures(str(tmp_path))


def test_figures_of_a_model_on_the_hub(app, model, monkeypatch):
    def download(repo_id, filename, revision):
        assert (repo_id, filename, revision) == ("no-such-owner/tiny", "results.json", "main")
        return Path(model, filename)

    monkeypatch.setattr(app, "hf_hub_download", download)
    assert app.read_figures("no-such-owner/tiny") == app.read_figures(model)
    missing = RemoteEntryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://x")))
    for error in (missing, OfflineModeIsEnabled("offline")):
        monkeypatch.setattr(app, "hf_hub_download", Mock(side_effect=error))
        assert "comes without" in app.read_figures("no-such-owner/tiny")


def test_names_of_classes_are_no_html(app, detect, monkeypatch):
    monkeypatch.setattr(detect.model.classifier.config, "id2label", {k: "<script>" for k in range(10)})
    text = app.judge(detect, example(), "nothing", 0.1)[0]
    assert "<script>" not in text and "&lt;script&gt;" in text


# --- Attacks


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_of_8_bits_and_not_larger_than_it_may_be(app, trained, change):
    clean = pixels_of(2)
    after = app.perturb(trained.model, normalize, clean, change, 0.1)
    assert after.shape == clean.shape and not after.requires_grad and not clean.requires_grad
    torch.testing.assert_close((after * 255).round() / 255, after)
    assert 0 <= after.min() and after.max() <= 1
    largest = (after - clean).abs().max().item()
    assert largest == 0 if change == "nothing" else 0.05 < largest <= 0.1 + 0.5 / 255 + 1e-6
    assert torch.equal(after, app.perturb(trained.model, normalize, clean, change, 0.1))  # the same again


def test_fgsm_is_one_step_along_the_sign_of_the_gradient(app, trained):
    clean = pixels_of(3).requires_grad_()
    logits = trained.model.classifier(normalize(clean)).logits
    cross_entropy(logits.double(), logits.argmax(1)).backward()
    expected = ((clean + 0.1 * clean.grad.sign()).clamp(0, 1) * 255).round() / 255
    after = app.perturb(trained.model, normalize, pixels_of(3), "FGSM", 0.1)
    assert (after - expected).abs().max() <= 1.5 / 255 and (after == expected).float().mean() > 0.99


@pytest.mark.slow
def test_attacks_fool_the_classifier_and_the_one_that_knows_the_detector_evades_it(app, trained):
    detector, fooled, evaded = trained.model, {}, 0
    for number in range(len(EXAMPLES)):
        clean = pixels_of(number)
        before = detector(normalize(clean))
        after = {
            change: detector(normalize(app.perturb(detector, normalize, clean, change, 0.15))) for change in CHANGES
        }
        for change, output in after.items():
            fooled[change] = fooled.get(change, 0) + int(output.logits.argmax() != before.logits.argmax())
        assert after[CHANGES[-1]].scores < after["PGD"].scores
        evaded += int(after[CHANGES[-1]].scores <= detector.threshold())
    assert fooled["nothing"] == 0 and fooled["uniform noise"] <= 1
    assert fooled["PGD"] == fooled[CHANGES[-1]] == len(EXAMPLES)
    assert evaded >= 5  # which is what the page says of itself


def test_the_examples_were_not_trained_on():
    results = json.loads((TRAINED / "results.json").read_text())
    train = results["settings"]["train"]
    test = split_by_source(load_images(train["images"]), tuple(train["split_sizes"]), results["seeds"][0])[
        "detector_test"
    ]
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
        client.predict(name and written(tmp_path, name), "PGD", 0.1, api_name="/judge")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "change, eps",
    [("PGD", 0.5), ("PGD", -1), ("PGD", "x"), ("PGD", None), ("PGD", 1e400), ("CW", 0.1), (None, 0.1), (["PGD"], 0.1)],
)
def test_settings_out_of_bounds_are_refused_without_a_trace(space, client, change, eps):
    with pytest.raises((AppError, ValueError)) as refusal:
        client.predict(handle_file(str(EXAMPLES[0])), change, eps, api_name="/judge")
    assert "Traceback" not in str(refusal.value) and str(ROOT) not in str(refusal.value)
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
    number = next(function["id"] for function in functions if function["api_name"] == "judge")
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
    example = ask(space, [{"path": client_path(space), "meta": {"_type": "gradio.FileData"}}, "FGSM", 0.1])
    assert example["success"] is True  # so that what follows is not refused for its form
    for path in (str(FOLDER / "README.md"), str(ROOT / "docs" / "images" / "softmax1_space.png"), "/etc/passwd"):
        for payload in ({"meta": {"_type": "gradio.FileData"}}, {}, {"orig_name": "x.svg"}, {"is_stream": True}):
            answer = ask(space, [{"path": path, **payload}, "FGSM", 0.1])
            assert answer["success"] is False and "root:" not in str(answer), (path, payload, answer)


def test_nobody_skips_the_queue(space):
    request = urllib.request.Request(
        f"{space.url}/gradio_api/run/judge", b'{"data": [null, "PGD", 0.1]}', {"Content-Type": "application/json"}
    )
    assert status(request) == 404


def test_without_models_the_app_says_what_to_do(monkeypatch):
    monkeypatch.setenv("MODEL_IDS", "")
    with pytest.raises(
        SystemExit, match="^No models: run `hf-methods space mbf`, or set MODEL_IDS to a folder or Hub id.$"
    ):
        runpy.run_path(str(FOLDER / "app.py"), run_name="__main__")


def test_the_model_may_stand_in_the_header_of_the_readme(tmp_path, monkeypatch, model):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    metadata_save(tmp_path / "README.md", {**metadata_load(FOLDER / "README.md"), "models": [model, "no/such"]})
    launched = {}
    monkeypatch.delenv("MODEL_IDS", raising=False)
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options, demo=demo))
    runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
    assert "PGD that knows the detector" in str(launched["demo"].config)
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


def visit_as(opened, path, detect, app, change):
    """Upload an image, choose a change, and read the verdicts."""
    page = opened.page
    page.get_by_role("button", name="Remove Image").click()
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Remove Image").wait_for()
    page.get_by_role("radio", name=change, exact=True).check()
    click = page.get_by_role("button", name="Judge").click
    image = Image.open(path).convert("RGB")
    after = plain(app.judge(detect, image, change, 0.15)[0]).partition("After: ")[2].partition(".  Largest")[0]
    until(click, page.get_by_text(sentence_of(detect(image))))
    page.get_by_text(after.split(", the detector")[0]).first.wait_for(timeout=8000)
    assert page.locator(FIGURE).count() == 3
    for figure in page.locator(FIGURE).all():
        assert figure.evaluate("image => image.complete && image.naturalWidth > 0")


@pytest.mark.parametrize("size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"])
def test_a_visitor_uploads_attacks_and_reads_the_verdict(space, browser, detect, app, tmp_path, size):
    with visit(browser, space.url, size) as opened:
        visit_as(opened, EXAMPLES[3], detect, app, "FGSM")
        page = opened.page
        assert page.get_by_text("It does not withstand an attacker who knows it").is_visible()
        assert page.get_by_text("with 83.1 % or 0.0 % of their images").is_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
        assert screenshot(page, f"visit_{size[0]}.png", tmp_path).stat().st_size > 20_000
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_the_keyboard_is_enough_and_every_input_has_a_name(space, browser, detect):
    focused = "() => document.activeElement.tagName + ' ' + (document.activeElement.innerText || '').trim()"
    with visit(browser, space.url) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        page.get_by_role("button", name="Judge").wait_for()
        order = []
        while len(order) < 25 and "BUTTON Judge" not in order:
            keyboard.press("Tab")
            order.append(page.evaluate(focused))
            if order[-1] == "BUTTON 5":
                keyboard.press("Enter")
                page.locator("#image img[src*='mnist-5']").wait_for()
        until(lambda: keyboard.press("Enter"), page.get_by_text(sentence_of(detect(example(5)))))
        names = page.evaluate(
            "() => [...document.querySelectorAll('main input, main button')]"
            ".map(e => e.ariaLabel || [...(e.labels || [])].map(l => l.innerText).join() || e.innerText)"
        )
        assert len(names) >= 12 and all(name.strip() for name in names), names
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_errors_are_told_as_messages(space, browser, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    with visit(browser, space.url) as opened:
        page = opened.page
        click = page.get_by_role("button", name="Judge").click
        page.get_by_role("button", name="Remove Image").click()
        until(click, page.get_by_text("Choose an image first."))
        page.locator("input[type=file]").first.set_input_files(broken)
        page.get_by_role("button", name="Remove Image").wait_for()
        until(click, page.get_by_text("This is no image that can be read"))
        assert page.locator(FIGURE).count() == 3  # the last result stays
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_the_trained_model_can_be_visited(browser, trained, app, tmp_path):
    with running_space(FOLDER, tmp_path, {"MODEL_IDS": str(TRAINED)}, without=("hf_methods",)) as running:
        with visit(browser, running.url) as opened:
            visit_as(opened, EXAMPLES[5], trained, app, "PGD that knows the detector")
            screenshot(opened.page, "mbf_space.png", tmp_path)
        assert opened.errors == [] and opened.outside == [] and running.outside == []
