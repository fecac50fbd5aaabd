# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""For the tests of a method's Space: run its app.py as a Hub Space does, and visit it with Chromium.

Browser tests are skipped where playwright (`pip install playwright`) or Chromium (`apt-get install chromium`) is missing;
with HF_METHODS_REQUIRE_BROWSER=1 they fail instead.
"""

import os
import shutil
import site
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass
class Space:
    """An app that runs; `outside` are the addresses that it tried to reach through a proxy."""

    url: str
    log: Path
    seconds_to_start: float
    outside: list[str]


@dataclass
class Visit:
    """An open page, and what went wrong on it."""

    page: object
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@contextmanager
def running_space(folder: Path, scratch: Path, env: dict[str, str], without: tuple[str, ...] = ()) -> Iterator[Space]:
    """`python app.py` in `folder` on a free port of this machine, until the block ends.

    Args:
        folder: the Space.
        scratch: an empty folder for caches and the log.
        env: environment variables beside those of this process.
        without: installed packages that the app must not see, by the name that is imported.
    """
    packages = packages_without(without, scratch / "packages")
    with recording_proxy() as (proxy, outside), open(scratch / "log.txt", "w") as log:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), proxy)
        settings = {
            "PYTHONPATH": str(packages),
            "HF_HOME": str(scratch / "home"),
            "GRADIO_TEMP_DIR": str(scratch / "gradio"),
            "GRADIO_SERVER_PORT": str(port),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        # -S: nothing but `packages`, not even what is installed in editable mode
        command = [sys.executable, "-S", "app.py"]
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **proxies, **settings, **env}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(f"{url}/config", process, Path(log.name))
            yield Space(url, Path(log.name), time.monotonic() - started, outside)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def packages_without(names: tuple[str, ...], folder: Path) -> Path:
    """A folder of links to all that is installed, but for these packages."""
    folder.mkdir()
    for entry in (entry for place in site.getsitepackages() for entry in Path(place).iterdir()):
        if entry.suffix != ".pth" and entry.name.split("-")[0].split(".")[0] not in names:
            (folder / entry.name).symlink_to(entry)
    return folder


@contextmanager
def recording_proxy() -> Iterator[tuple[str, list[str]]]:
    """Address of a proxy that lets nothing through, and the list of what was asked of it."""
    asked: list[str] = []

    class Refuse(socketserver.StreamRequestHandler):
        def handle(self):
            asked.append(self.rfile.readline().decode("latin-1").strip())
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    """Until the app answers; its log is the error if it ends or takes too long."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            direct.open(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the Space did not start:\n{log.read_text()}")


@contextmanager
def chromium():
    """A browser with an empty profile; skips the test where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or executable is None:
        reason = "playwright is not installed" if sync_playwright is None else "Chromium is not installed"
        (pytest.fail if os.environ.get("HF_METHODS_REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, headless=True, args=FLAGS
        )
        yield context
        context.close()


@contextmanager
def visit(context, url: str, size: tuple[int, int] = DESKTOP) -> Iterator[Visit]:
    """A new page at `url`; requests that leave the machine are recorded and refused."""
    page = context.new_page()
    opened = Visit(page)

    def route(route):
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            opened.outside.append(route.request.url)
            route.abort()

    page.route("**/*", route)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(url)
    yield opened
    page.close()


def until(act: Callable[[], object], locator, attempts: int = 5, seconds: float = 8) -> None:
    """Act until `locator` is seen: Gradio ignores an event while it still ends the one before."""
    from playwright.sync_api import TimeoutError as NotSeen

    for _ in range(attempts):
        act()
        try:
            return locator.first.wait_for(timeout=1000 * seconds)
        except NotSeen:
            continue
    raise AssertionError(f"not seen after {attempts} attempts: {locator}")


def screenshot(page, name: str, tmp_path: Path) -> Path:
    """Picture of the whole page in the folder HF_METHODS_SCREENSHOTS, or in `tmp_path`."""
    path = Path(os.environ.get("HF_METHODS_SCREENSHOTS") or tmp_path, name)
    page.screenshot(path=path, full_page=True)
    return path
