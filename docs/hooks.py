# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the documentation takes from outside docs/.

Into the pages: measured tables, rendered from their JSON files as in README.md, and the plots of training/, as
images/METHOD_NAME.png. Into the reference: Hugging Face's way to write types in docstrings.
"""

import importlib.util
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File


ROOT = Path(__file__).parents[1]
HUGGING_FACE_TYPE = re.compile(r"\(`(.+?)`, \*optional\*(?:, defaults to `?([^)`]+)`?)?\):")


def load_renderer():
    """The script that renders the tables of README.md; training/ is no package."""
    spec = importlib.util.spec_from_file_location("render_readme", ROOT / "training" / "render_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_files(files, config):
    """MkDocs' event: add the plots."""
    plots = [*ROOT.glob("training/*/results/*.png"), *ROOT.glob("tests/benchmarks/results/*.png")]
    for path in sorted(plots):
        files.append(File.generated(config, f"images/{path.parts[-3]}_{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, **kwargs):
    """MkDocs' event: fill the tables."""
    return load_renderer().render(markdown)


class HuggingFaceTypes(griffe.Extension):
    """Reads "bits (`int`, *optional*, defaults to 4): 2 to 8" as a type, a text and a default."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = HUGGING_FACE_TYPE.sub(
                lambda match: f"({match[1]}): " + (f"(default `{match[2]}`)" if match[2] else "(optional)"),
                obj.docstring.value,
            )
