# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are whole or not there, and results.json."""

import json
import math
import os
import platform
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 beside `path`, then rename: a reader sees the old file or the new one."""
    path = Path(path).resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _name_beside(path)
    try:
        aside.write_text(text, "utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN and infinities become null: JSON has no word for them."""
    atomic_write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def atomic_save(folder: str | Path, save: Callable[[Path], Any]) -> None:
    """Let `save` fill a folder beside `folder`, then put it in place of the old one.

    A `save` that fails or is interrupted leaves the old folder as it was. Only a process killed between the two renames
    leaves none: the old folder is then beside, as `.NAME.*.old`.

    Args:
        folder: where the result goes; an existing folder is replaced with all that is in it.
        save: called with the folder to fill, e.g. `model.save_pretrained`.

    Raises:
        NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder that may be replaced.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _name_beside(folder)
    old = aside.with_name(aside.name + ".old")
    aside.mkdir()
    try:
        save(aside)
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _name_beside(path: Path) -> Path:
    # Not of `tempfile`, whose files and folders are for the owner only, whatever the umask says.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


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
        results: anything JSON can hold; NaN and infinities become null.
    """
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    head = {"command": command, "environment": environment(), "seeds": seeds, "data": data}
    write_json(path, {**head, "wall_seconds": round(wall_seconds, 1), **results})
