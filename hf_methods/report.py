# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A table as text, and a report as one HTML file with everything inside."""

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

from hf_methods.checkpoints import atomic_write_text


STYLE = (
    "body{font:16px system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}table{border-collapse:collapse}"
    "td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%;margin:.3rem}pre{white-space:pre-wrap}"
)


@dataclass
class Section:
    """A part of a report: heading, text as it stands, and pictures."""

    heading: str
    text: str = ""
    plots: list[Path] = field(default_factory=list)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns of equal width, flush right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def write_report(
    path: str | Path, title: str, caption: str, header: list[str], rows: list[list[str]], sections: list[Section]
) -> None:
    """Write an HTML file that needs no other file and asks no server for anything.

    Args:
        path: the file.
        title: heading of the page.
        caption: text in front of the table.
        header, rows: cells of the table.
        sections: what comes behind it.
    """
    cells = lambda line, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)  # noqa: E731
    table = f"<tr>{cells(header, 'th')}</tr>" + "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    atomic_write_text(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(caption)}</p><table>{table}</table>"
        f"{''.join(map(_section, sections))}</html>\n",
    )


def _section(section: Section) -> str:
    text = f"<pre>{html.escape(section.text)}</pre>" if section.text else ""
    images = "".join(
        f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in section.plots
    )
    return f"<h2>{html.escape(section.heading)}</h2>{text}{images}"
