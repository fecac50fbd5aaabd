# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Space: its numbers against the package's, what it refuses, and a visit with a browser."""

import importlib.util
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import PHONE, chromium, running_space, screenshot, until, visit
from huggingface_hub import metadata_load, metadata_save
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.softmax1 import (
    Softmax1LlamaConfig,
    Softmax1LlamaForCausalLM,
    inspect_model,
    perplexity,
    quantize_tensor,
    token_kurtosis,
)
from hf_methods.softmax1.quantization_softmax1 import block_linears


gr = pytest.importorskip("gradio")
from gradio_client import Client  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "spaces" / "softmax1"
MODELS = [str(ROOT / "model_cards" / name) for name in ("softmax-adamw", "softmax1-orthoadam")]
TEXT = "class Queue:\n    def __init__(self, size):\n        self.size = size\n"
LONG = "x = 1\n" * 100  # more tokens than positions, fewer characters than are taken
BOUNDS = "^Type at least two tokens and at most 1000 characters.$"
FIGURE = "img[src^='data:image/webp']"


class Cells(HTMLParser):
    """Rows of the cells' text of an HTML table."""

    def __init__(self, source):
        super().__init__()
        self.rows = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_softmax1", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(app):
    return [app.load(folder) for folder in MODELS]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    env = {"MODEL_IDS": ",".join(MODELS), "HF_ENDPOINT": "https://huggingface.co"}
    scratch = tmp_path_factory.mktemp("space")
    with running_space(FOLDER, scratch, env, without=("hf_methods", "accelerate", "datasets", "evaluate")) as running:
        yield running
        assert running.outside == []


@pytest.fixture(scope="module")
def browser():
    with chromium() as context:
        yield context


def reference(folder, text):
    """The package's model, tokens and report of a text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    return model, ids, inspect_model(model, ids)


# --- The numbers


@pytest.mark.parametrize("number", range(2), ids=["softmax", "softmax1"])
def test_rounded_weights_are_those_of_the_package(shown, number):
    _, _, _, weights = shown[number]
    model = weights["float32"]
    linears = dict(block_linears(model))
    assert len(linears) == 16
    for bits, rounded in ((8, weights["8 bits"]), (4, weights["4 bits"])):
        parameters = dict(rounded.named_parameters())
        for name, parameter in model.named_parameters():
            module = linears.get(name.removesuffix(".weight"))
            if module is None:
                assert parameters[name] is parameter  # shared, so that a copy costs little
            else:
                axis = 0 if isinstance(module, nn.Linear) else 1
                assert torch.equal(parameters[name], quantize_tensor(parameter, bits, "zeropoint", "channel", axis)[0])


@pytest.mark.parametrize("number", range(2), ids=["softmax", "softmax1"])
def test_attention_and_kurtosis_are_those_of_inspect_model(app, shown, number):
    _, ids, report = reference(MODELS[number], TEXT)
    inspected = shown[number][2]
    attention, kurtosis = app.inspect(inspected, ids)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4, 4, dtype=torch.float64))
    close = lambda ours, theirs: torch.testing.assert_close(ours, torch.tensor(theirs).double(), atol=1e-4, rtol=1e-5)  # noqa: E731
    close(100 * attention[..., 0], report.first_token_mass_pct_by_head)
    close(100 * attention[..., -1], report.null_mass_pct_by_head)
    close(100 * attention[..., 0].mean(), report.first_token_mass_pct)
    close(kurtosis[:, 0], report.kurtosis_first_by_layer)
    close(kurtosis[:, 1], report.kurtosis_rest_by_layer)
    for block, layer in zip(inspected.transformer.h, kurtosis):
        torch.testing.assert_close(layer[0], token_kurtosis(block.residual)[0, 0])


def test_the_tables_have_the_figures_of_the_package(space):
    *_, summary, continuations = Client(space.url, verbose=False).predict(TEXT, 8, api_name="/compare")
    columns = list(zip(*Cells(summary).rows))[1:]
    rows = Cells(continuations).rows[1:]
    assert [row[1] for row in rows] == 2 * ["float32", "8 bits", "4 bits"]
    for folder, column, row in zip(MODELS, columns, rows[::3]):
        model, ids, report = reference(folder, TEXT)
        figures = (report.first_token_mass_pct, report.null_mass_pct, report.kurtosis_first, report.kurtosis_rest)
        assert column == (Path(folder).name, f"{ids.shape[1]} of {ids.shape[1]}", *(f"{x:.1f}" for x in figures))
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        continuation = AutoTokenizer.from_pretrained(folder).decode(output[0, ids.shape[1] :])
        assert row == [column[0], "float32", f"{perplexity(model, ids):.2f}", continuation.rstrip().lstrip("\n")]


def test_a_llama_can_be_shown(app, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MODELS[1])
    config = Softmax1LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    Softmax1LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = app.load(str(tmp_path))
    _, ids, report = reference(tmp_path, TEXT)
    attention, kurtosis = app.inspect(model[2], ids)
    torch.testing.assert_close(100 * attention[..., -1].mean().item(), report.null_mass_pct, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(kurtosis[:, 1].tolist(), report.kurtosis_rest_by_layer)
    weight = model[3]["float32"].model.layers[0].mlp.down_proj.weight
    rounded = model[3]["4 bits"].model.layers[0].mlp.down_proj.weight
    assert torch.equal(rounded, quantize_tensor(weight, 4, "zeropoint", "channel", 0)[0])
    assert len(app.compare([model], TEXT, 4)) == 4


@pytest.mark.slow
def test_any_text_can_be_drawn(app, shown):
    for text in ("$x_{ $$ $$ \\frac{", "<script>${alert(1)}</script>{{#if}}`", "你好 😀 \x00\t\r\u202e", "a b"):
        *figures, _, _ = app.compare(shown, text, 1)
        for figure in figures:
            figure.savefig(io.BytesIO(), format="webp")


def test_cells_are_text_and_not_markup(app):
    texts = ("<script>alert(1)</script>", "&lt;", 'a"b')
    source = app.table(("text",), *((text,) for text in texts))
    assert "<script" not in source and [row[0] for row in Cells(source).rows[1:]] == list(texts)


# --- What it refuses


@pytest.mark.parametrize(
    "text, new_tokens, message",
    [
        ("", 8, BOUNDS),
        (None, 8, BOUNDS),
        ("x", 8, BOUNDS),
        ("x = 1\n" * 1000, 8, BOUNDS),
        (TEXT, 33, "maximum value 32"),
        (TEXT, 0, "minimum value 1"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_message(space, text, new_tokens, message):
    with pytest.raises(AppError, match=message) as refusal:
        Client(space.url, verbose=False).predict(text, new_tokens, api_name="/compare")
    assert "Traceback" not in str(refusal.value) and "/" not in str(refusal.value)


def test_a_long_text_is_cut_to_what_the_positions_leave(space):
    *_, summary, _ = Client(space.url, verbose=False).predict(LONG, 32, api_name="/compare")
    assert Cells(summary).rows[1] == ["tokens", "32 of 400", "32 of 400"]


def status(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_of_the_server_can_be_read(space):
    assert status(f"{space.url}/config") == 200
    paths = [
        "app.py",
        "/etc/passwd",
        "../README.md",
        str(FOLDER / "app.py"),
        f"{MODELS[0]}/config.json",
        "%2e%2e/README.md",
    ]
    for path in paths:
        for route in ("gradio_api/file=", "gradio_api/file/", "file=", "file/", "gradio_api/proxy=file://"):
            assert status(f"{space.url}/{route}{path}") in (400, 403, 404), (route, path)


def test_nobody_skips_the_queue(space):
    body = b'{"data": ["import os", 8]}'
    request = f"{space.url}/gradio_api/run/compare"
    assert status(urllib.request.Request(request, body, {"Content-Type": "application/json"})) == 404


@pytest.mark.slow
def test_without_models_the_app_says_what_to_do():
    env = {**os.environ, "MODEL_IDS": ""}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=FOLDER, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "No models: run `hf-methods space softmax1`, or set MODEL_IDS to two folders or Hub ids."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_models_may_stand_in_the_header_of_the_readme(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    metadata_save(tmp_path / "README.md", {**metadata_load(FOLDER / "README.md"), "models": MODELS})
    launched = {}
    monkeypatch.delenv("MODEL_IDS", raising=False)
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options, demo=demo))
    runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
    names = re.findall(r"softmax1?-\w+", str(launched["demo"].config))
    assert set(names) >= {"softmax-adamw", "softmax1-orthoadam"}
    assert launched["share"] is False and launched["ssr_mode"] is False and "allowed_paths" not in launched


def test_the_committed_header_names_no_models_and_its_files_exist():
    header = metadata_load(FOLDER / "README.md")
    assert "models" not in header  # anybody could register a made-up name, and the app runs a model's code
    assert header["sdk"] == "gradio" and (FOLDER / header["app_file"]).exists()
    assert len(header["short_description"]) <= 60


# --- A visit


def cells(page, number):
    return [row.locator("td, th").all_inner_texts() for row in page.locator("table").nth(number).locator("tr").all()]


def answer(page, text, read=None):
    """The cell that tells how many tokens of the text were read."""
    tokens = len(AutoTokenizer.from_pretrained(MODELS[0])(text, verbose=False).input_ids)
    return page.get_by_role("cell", name=f"{read or tokens} of {tokens}", exact=True)


def test_a_visitor_types_clicks_and_reads(space, browser, tmp_path):
    with visit(browser, space.url) as opened:
        page = opened.page
        page.get_by_label("Text").fill(TEXT)
        until(page.get_by_role("button", name="Compare").click, answer(page, TEXT))
        summary, continuations = cells(page, 0), cells(page, 1)
        _, _, report = reference(MODELS[1], TEXT)
        assert summary[0] == ["", "softmax-adamw", "softmax1-orthoadam"]
        assert summary[2][2] == f"{report.first_token_mass_pct:.1f}" and summary[3][1] == "0.0"
        assert continuations[0] == ["model", "weights", "perplexity of your text", "continuation"]
        assert len(continuations) == 7 and all(len(row) == 4 for row in continuations)
        assert page.get_by_text("Tiny models").is_visible() and page.get_by_text("is noisy").is_visible()
        assert page.locator(FIGURE).count() == 3
        for image in page.locator(FIGURE).all():
            assert image.evaluate("image => image.complete && image.naturalWidth > 0")
        assert screenshot(page, "softmax1_space.png", tmp_path).stat().st_size > 20_000
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_the_keyboard_is_enough(space, browser):
    focused = "() => document.activeElement.tagName + ' ' + (document.activeElement.innerText || '').trim()"
    with visit(browser, space.url) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        page.get_by_label("Text").wait_for()
        order = []
        while len(order) < 20 and "BUTTON Compare" not in order:
            keyboard.press("Tab")
            order.append(page.evaluate(focused))
            if order[-1].startswith("TEXTAREA"):
                keyboard.press("Control+A")
                keyboard.type("x = 1")
                keyboard.press("Shift+Enter")
                keyboard.type("y = 2")
        kinds = [element.split()[0] for element in order]
        assert order[-1] == "BUTTON Compare" and kinds.index("TEXTAREA") < kinds.index("INPUT"), order
        until(lambda: keyboard.press("Enter"), answer(page, "x = 1\ny = 2"))
        while not page.evaluate(focused).startswith("TEXTAREA"):
            keyboard.press("Shift+Tab")
        keyboard.press("End")
        keyboard.type(" + x")
        until(lambda: keyboard.press("Enter"), answer(page, "x = 1\ny = 2 + x"))
    assert opened.errors == [] and opened.outside == []


def test_every_input_has_a_label(space, browser):
    with visit(browser, space.url) as opened:
        opened.page.get_by_label("Text").wait_for()
        names = opened.page.evaluate(
            "() => [...document.querySelectorAll('main input, main textarea')]"
            ".map(e => e.ariaLabel || [...(e.labels || [])].map(l => l.innerText).join())"
        )
        assert len(names) >= 3 and all(name.strip() for name in names), names


@pytest.mark.slow
def test_errors_and_cuts_are_told_as_messages(space, browser):
    with visit(browser, space.url) as opened:
        page = opened.page
        box, click = page.get_by_label("Text"), page.get_by_role("button", name="Compare").click
        box.fill("")
        until(click, page.get_by_text("Type at least two tokens"))
        assert page.locator(FIGURE).count() == 3  # the last result stays
        box.fill(LONG)
        until(click, page.get_by_text("softmax1-orthoadam reads 48 of 400 tokens"))
        until(click, answer(page, LONG, 48))
        assert box.get_attribute("maxlength") == "1000"
        page.get_by_role("button", name="import os").click()
        until(click, answer(page, "import os\n\n\ndef main(argv):\n"))
    assert opened.errors == [] and opened.outside == []


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(space, browser, tmp_path):
    width = "() => document.documentElement.scrollWidth"
    with visit(browser, space.url, PHONE) as opened:
        page = opened.page
        text = "import collections\n\n\nclass Graph:\n    def add_edge(self, first, second):\n"
        page.get_by_label("Text").fill(text)
        until(page.get_by_role("button", name="Compare").click, answer(page, text))
        assert page.evaluate(width) <= PHONE[0]
        for table in page.locator("table").all():
            box = table.bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= PHONE[0]
        screenshot(page, "softmax1_space_phone.png", tmp_path)
    assert opened.errors == [] and opened.outside == []
