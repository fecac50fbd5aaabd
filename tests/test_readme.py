# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The figures of the README are those of the committed JSON files."""

import importlib.util
import re
from pathlib import Path


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def load_renderer():
    spec = importlib.util.spec_from_file_location("render_readme", ROOT / "training" / "render_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_what_its_json_file_says():
    renderer = load_renderer()
    assert len(renderer.MARKED.findall(README)) == README.count("<!-- table:") == README.count("<!-- end -->") > 0
    assert renderer.render(README) == README, "run `python training/render_readme.py`"


def test_a_changed_figure_is_noticed():
    table = README.index("<!-- table:")
    digit = re.compile(r"\d\.\d").search(README, README.index("\n| ", table))
    changed = README[: digit.start()] + "9" + README[digit.start() :]
    assert load_renderer().render(changed) == README != changed


def test_links_point_to_files_that_are_there():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README) + re.findall(r"`([\w/]+\.(?:md|py|yaml|cff))`", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
