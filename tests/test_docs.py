# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The documentation: its examples run, its commands exist, it quotes errors as they are, and it builds without a warning."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from transformers import pipeline
from transformers.dynamic_module_utils import resolve_trust_remote_code
from typer.main import get_command

import hf_methods
from hf_methods import cli
from hf_methods.hub import upload


ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "model_cards" / "softmax1-orthoadam"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PUBLISH = ROOT / "docs" / "publish.md"
COMMANDS = get_command(cli.app).commands


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory that looks like the root of the checkout, and takes what is written under runs/."""
    for path in ROOT.iterdir():
        if path.name != "runs" and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def my_model(hub):
    """The model that docs/publish.md loads, on the local Hub."""
    hub.organizations.add("me")
    upload(CHECKPOINT, "me/my-model", tag="v1")
    hub.log.clear()
    yield "me/my-model"
    hub.organizations.clear()
    del hub.repos["model", "me/my-model"]


# --- examples


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of)
def test_the_examples_of_a_page_run_in_their_order(page, checkout, my_model, hub):
    mktestdocs = pytest.importorskip("mktestdocs", reason="mktestdocs is not installed; the extra `dev` brings it")
    mktestdocs.check_md_file(page, memory=True)
    assert hub.log == [] or page == PUBLISH  # the other pages promise to need no network


# --- commands


def command_lines(page):
    """The calls of hf-methods in a page's bash blocks, as lists of words."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in calls if words[:1] == ["hf-methods"]]


def parse(command, *arguments):
    """As a call of the command does, up to the call itself."""
    return COMMANDS[command].make_context(command, list(arguments))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words))
        for page in [*PAGES, ROOT / "README.md"]
        for words in command_lines(page)
    ],
)
def test_a_command_in_the_documentation_exists_with_its_options(words):
    parse(*words)


def test_a_command_that_does_not_exist_would_be_noticed():
    with pytest.raises(KeyError):
        parse("upload")
    for arguments in (["--checkpoints", "x", "--repo-id", "a/b"], ["--checkpoint", "x"]):  # misspelt, and one missing
        with pytest.raises(cli.UsageError):
            parse("publish", "softmax1", *arguments)


def test_each_command_has_an_example():
    assert {words[0] for words in command_lines(ROOT / "docs" / "command_line.md")} == set(COMMANDS)


# --- errors


def test_the_errors_of_publish_are_quoted_as_they_are(checkout, my_model, monkeypatch, capsys):
    shutil.copytree(CHECKPOINT, "runs/mine")
    shutil.copytree(CHECKPOINT, "runs/unmeasured")
    Path("runs/unmeasured/results.json").unlink()
    monkeypatch.setattr("hf_methods.hub.verify_repository", lambda recipe, folder: None)  # tested elsewhere, and slow

    def error(checkpoint="runs/mine", repo_id=my_model, options=()):
        arguments = ["publish", "softmax1", "--checkpoint", checkpoint, "--repo-id", repo_id, "--tag", "v1", *options]
        monkeypatch.setattr(sys, "argv", ["hf-methods", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().err.splitlines()[-1]

    printed = [
        error(repo_id="org/my-model"),
        error(checkpoint="runs/nothing"),
        error(checkpoint="runs/unmeasured"),
        error(),  # the card names another repository than the one of the committed checkpoint, which was uploaded
        error(options=["--private"]),
    ]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        printed.append(error())
    monkeypatch.delenv("HF_TOKEN")
    printed.append(error())
    assert sorted(re.findall("^hf-methods: .*", PUBLISH.read_text(), re.MULTILINE)) == sorted(printed)


def test_the_errors_of_transformers_are_quoted_as_they_are(my_model):
    text = " ".join(PUBLISH.read_text().split())
    with pytest.raises(ValueError, match="trust_remote_code=True") as without_the_package:
        resolve_trust_remote_code(False, my_model, has_local_code=False, has_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code=True") as with_it:
        pipeline("softmax1-text-generation", model=my_model)
    for error in (without_the_package, with_it):
        assert "ValueError: " + " ".join(str(error.value).split()) in text


# --- the site


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The built site's folder and what MkDocs said."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason=f"{module} is not installed; the extra `docs` brings it")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    return folder, result


def test_the_site_builds_without_a_warning(build):
    _, result = build
    assert result.returncode == 0 and "WARNING" not in result.stdout, result.stdout


class Requests(HTMLParser):
    """Collects what a browser fetches for a page by itself; links that a reader may click are not among it."""

    def __init__(self, html):
        super().__init__()
        self.urls = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        names = ["src", "srcset", "poster", "data"] if tag != "link" or values.get("rel") == "canonical" else ["href"]
        self.urls += [values[name] for name in names if values.get(name)]
        self.urls += re.findall(r"url\(([^)]*)\)", values.get("style") or "")


def is_outside(url):
    return re.match(r"['\"]?(\w+:)?//", url) is not None


def test_no_page_asks_another_server(build):
    folder, _ = build
    pages, styles = list(folder.rglob("*.html")), list(folder.rglob("*.css"))
    urls = [url for page in pages for url in Requests(page.read_text()).urls]
    urls += [url for style in styles for url in re.findall(r"(?:url\(|@import )([^);]*)", style.read_text())]
    assert len(pages) > len(PAGES) and styles and any("bundle" in url for url in urls)
    assert [url for url in urls if is_outside(url)] == []


def test_an_outside_request_would_be_noticed():
    html = (
        '<link rel="preconnect" href="//a"><script src="https://b"></script><img src=c.png><a href="https://d">d</a>'
    )
    assert [url for url in Requests(html).urls if is_outside(url)] == ["//a", "https://b"]


def test_every_public_name_is_in_the_reference(build):
    folder, _ = build
    html = "".join(page.read_text() for page in (folder / "reference").glob("*.html"))
    assert [n for n in hf_methods.__all__ if not re.search(rf'id="hf_methods\.(\w+\.)?{n}"', html)] == []


def test_measured_tables_are_those_of_the_json_files(build):
    folder, _ = build
    measured = sum(page.read_text().count("<!-- table: ") for page in PAGES)
    html = "".join(page.read_text() for page in folder.glob("*.html"))
    readme = (ROOT / "README.md").read_text()  # whose tables test_readme.py compares with the files
    cells = re.findall(r"[-\d.]+ ± [\d.]+", readme)
    assert measured and html.count("<table>") > measured and cells
    assert [cell for cell in cells if cell not in html] == []
