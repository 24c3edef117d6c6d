"""What a run's executed notebook shows in its tagged cells, taken out for other pages."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

from nbconvert.filters import markdown2html_mistune

from geo_utils.meeting.records import Record

RESULT_TAG, EXAMPLE_TAG = "weekly", "weekly-example"
MOST_ROWS = 12
_BODY = re.compile(r"<tbody>(.*?)</tbody>", re.DOTALL)
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_HEADING = re.compile(r"^#{1,6}\s+(.+)$", re.MULTILINE)
_ANCHOR = re.compile(r'<a class="anchor-link".*?</a>', re.DOTALL)


@dataclass(frozen=True)
class Recorded:
    """What one tagged cell shows.

    Attributes:
        record: The run.
        heading: The heading above the cell in the notebook.
        body: The cell's outputs as HTML.
    """

    record: Record
    heading: str
    body: str


def recorded_outputs(record: Record, tag: str = RESULT_TAG) -> list[Recorded]:
    """Return what the cells with a tag show, in the notebook's order.

    Args:
        record: A run; one without an executed notebook in its folder shows nothing.
        tag: Tag of the cells.
    """
    found, heading = [], record.notebook
    for cell in _cells(record):
        source = "".join(cell.get("source", ()))
        if cell.get("cell_type") == "markdown":
            titles = _HEADING.findall(source)
            heading = titles[-1].strip() if titles else heading
        elif tag in cell.get("metadata", {}).get("tags", ()):
            body = "".join(_shown(output, heading) for output in cell.get("outputs", ()))
            if body:
                found.append(Recorded(record, heading, body))
    return found


def question(record: Record) -> str:
    """Return what a run's notebook asks: its title; the notebook's name where it is missing."""
    for cell in _cells(record):
        titles = _HEADING.findall("".join(cell.get("source", ())))
        if cell.get("cell_type") == "markdown" and titles:
            return str(titles[0]).strip()
    return record.notebook


def markdown_html(text: str) -> str:
    """Return Markdown as HTML, without the anchors of its headings."""
    return _ANCHOR.sub("", markdown2html_mistune(text))


def shortened(table: str, most: int = MOST_ROWS) -> str:
    """Return an HTML table with its first rows and a word on how many were left out."""
    found = _BODY.search(table)
    rows = _ROW.findall(found.group(1)) if found else []
    if found is None or len(rows) <= most:
        return table
    kept = table[: found.start(1)] + "".join(rows[:most]) + table[found.end(1) :]
    return f"{kept}<p>{len(rows) - most} more rows are in the run's report.</p>"


def _cells(record: Record) -> list[dict[str, Any]]:
    try:
        node = json.loads((record.folder / "notebook.ipynb").read_text(encoding="utf-8"))
        return [cell for cell in node["cells"] if isinstance(cell, dict)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _shown(output: dict[str, Any], heading: str) -> str:
    """Return one output as HTML: a picture, a table, words; logs and errors are left out."""
    data = {kind: "".join(text) for kind, text in (output.get("data") or {}).items()
            if kind.startswith(("image/", "text/"))}  # fmt: skip
    alt = html.escape(heading)
    if "image/svg+xml" in data:
        return (
            f'<div class="geo-figure" role="img" aria-label="{alt}">{data["image/svg+xml"]}</div>'
        )
    if "image/png" in data:
        png = "".join(data["image/png"].split())
        return f'<img alt="{alt}" src="data:image/png;base64,{png}">'
    if "text/html" in data:
        return shortened(data["text/html"])
    if "text/markdown" in data:
        return markdown_html(data["text/markdown"])
    if output.get("output_type") in ("display_data", "execute_result") and "text/plain" in data:
        return f"<pre>{html.escape(data['text/plain'])}</pre>"
    return ""
