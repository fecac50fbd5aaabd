# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are whole or not there, and results.json."""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def atomic_save(folder: str | Path, save: Callable[[Path], Any]) -> None:
    """Let `save` fill a folder beside `folder`, then put it in place of the old one.

    A failing `save` leaves the old folder as it was.

    Args:
        folder: where the result goes; an existing folder is replaced.
        save: called with the folder to fill, e.g. `model.save_pretrained`.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    old = aside.with_name(aside.name + ".old")
    try:
        save(aside)
        aside.chmod(0o755)
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def environment() -> dict[str, Any]:
    """Versions and the kind of machine, without its name."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}",
    }


def write_results(path: str | Path, *, seeds: list[int], data: dict[str, str], wall_seconds: float, **results) -> None:
    """Write results.json: the command, the environment, seeds, data digests, wall time and `results`.

    Args:
        path: the file.
        seeds: seeds of the runs.
        data: digest of each split.
        wall_seconds: time of the whole command.
        results: anything JSON can hold.
    """
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    head = {"command": command, "environment": environment(), "seeds": seeds, "data": data}
    text = json.dumps({**head, "wall_seconds": round(wall_seconds, 1), **results}, indent=1)
    atomic_write_text(path, text + "\n")
