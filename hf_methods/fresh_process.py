# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Use a model repository as somebody does who has only the packages of its requirements.txt.

python -I fresh_process.py FOLDER TASK EXAMPLE.json OUTPUT.json
"""

import json
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any, ClassVar

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required_distributions(requirements: list[str]) -> set[str]:
    """Canonical names of the distributions that `requirements` bring with them, without extras."""
    names: set[str] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in names or requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        names.add(name)
        try:
            todo += [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError as error:
            if not requirement.marker:
                raise ValueError(f"requirements.txt names {name}, which is not installed here.") from error
    return names


class HidingFinder(PathFinder):
    """Finds what Python's own finder does, save the packages in `hidden`."""

    hidden: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in cls.hidden else super().find_spec(fullname, path, target)


def hide_other_packages(requirements: list[str]) -> None:
    """From here on an installed package that `requirements` don't bring with them is as if not installed."""
    wanted = required_distributions(requirements)
    HidingFinder.hidden = {"hf_methods"} | {
        top
        for top, names in packages_distributions().items()
        if not wanted & {canonicalize_name(name) for name in names}
    }
    # Editable installations have finders of their own, which go.
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder in (BuiltinImporter, FrozenImporter)]
    sys.meta_path.append(HidingFinder)


def pipeline_records(folder: str, task: str, example: dict, **kwargs):
    """What `pipeline(task, model=folder)` answers: `example` is {"args": [...], "kwargs": {...}}."""
    from transformers import pipeline, set_seed

    set_seed(0)
    make_pipeline: Any = pipeline  # typed for the stock tasks only
    return make_pipeline(task, model=folder, **kwargs)(*example["args"], **example["kwargs"])


if __name__ == "__main__":
    folder, task, example, output = sys.argv[1:]
    hide_other_packages(Path(folder, "requirements.txt").read_text("utf-8").split())
    records = pipeline_records(folder, task, json.loads(Path(example).read_text("utf-8")), trust_remote_code=True)
    Path(output).write_text(json.dumps(records), "utf-8")
