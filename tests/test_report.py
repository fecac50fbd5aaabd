# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Reports are whole in one file, and text in them stays text."""

import base64

from hf_methods.report import Section, text_table, write_report


def test_columns_of_a_text_table_are_flush_right():
    assert text_table(["", "a"], [["x", "1.5"], ["long", "20"]]) == "        a\n   x  1.5\nlong   20"


def test_a_report_holds_its_pictures_and_escapes_its_text(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    path = tmp_path / "r" / "report.html"
    write_report(path, "a < b", "<i>", ["", "<b>"], [["&", "1"]], [Section("h & h", "<script>", [tmp_path / "p.png"])])
    page = path.read_text()
    assert "<h1>a &lt; b</h1><p>&lt;i&gt;</p>" in page and "<th>&lt;b&gt;</th>" in page and "<td>&amp;</td>" in page
    assert "<h2>h &amp; h</h2><pre>&lt;script&gt;</pre>" in page and "<script" not in page
    picture = base64.b64encode(b"\x89PNG").decode()
    assert f'src="data:image/png;base64,{picture}"' in page
