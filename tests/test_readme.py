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


def test_many_arms_are_rows_and_few_are_columns():
    render = load_renderer().render_arms
    few = {"a": {"base": [20.04, 1.5], "novel": [30.0, None]}, "b": {"base": [21.0, 2.0]}}
    assert render(few).splitlines() == [
        "|  | a | b |",
        "| --- | ---: | ---: |",
        "| base classes, % | 20.0 ± 1.5 | 21.0 ± 2.0 |",
        "| novel classes, % | 30.0 |  |",
    ]
    many = render({**few, **{str(k): few["a"] for k in range(5)}}).splitlines()
    assert len(many) == 9 and many[0] == "|  | base classes, % | novel classes, % |"
    assert many[2:4] == ["| a | 20.0 ± 1.5 | 30.0 |", "| b | 21.0 ± 2.0 |  |"]


def test_links_point_to_files_that_are_there():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README) + re.findall(r"`([\w/]+\.(?:md|py|yaml|cff))`", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
