"""The week's deck: what was asked, headlines, recorded figures, what failed, and the notes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from IPython.display import HTML
from markupsafe import Markup

from geo_utils.files import resolve_path
from geo_utils.records import (
    Chosen,
    Record,
    choose_records,
    interval_kind,
    results,
    telling_results,
)
from geo_utils.show.jinja import filled, from_markdown
from geo_utils.show.pages import duration
from geo_utils.weekly.params import WeeklyParams

RESULT_TAG, EXAMPLE_TAG = "weekly", "weekly-example"
MOST_ROWS = 12
_LINES, _LINE_CHARS = 15, 88  # what a slide holds of a notes file
_BODY = re.compile(r"<tbody>(.*?)</tbody>", re.DOTALL)
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
_SECTION = re.compile(r"^## +(.+)$", re.MULTILINE)


class Output(NamedTuple):
    """What one tagged cell of an executed notebook shows.

    Attributes:
        record: The run.
        heading: The heading above the cell.
        body: The cell's outputs as HTML.
    """

    record: Record
    heading: str
    body: Markup


class Recorded(NamedTuple):
    """What a run's executed notebook tells; a run without one tells its notebook's name.

    Attributes:
        question: The notebook's title, or its name.
        figures: The cells tagged `weekly`, in the notebook's order.
        examples: Those tagged `weekly-example`.
    """

    question: str
    figures: list[Output]
    examples: list[Output]


def recorded(record: Record) -> Recorded:
    """Read a run's executed notebook; a torn one is as none."""
    try:
        node = json.loads((record.folder / "notebook.ipynb").read_text(encoding="utf-8"))
        cells = [cell for cell in node["cells"] if isinstance(cell, dict)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        cells = []
    headings = [record.notebook]
    found: dict[str, list[Output]] = {RESULT_TAG: [], EXAMPLE_TAG: []}
    for cell in cells:
        if cell.get("cell_type") == "markdown":
            headings += _HEADING.findall("".join(cell.get("source", ())))
            continue
        body = Markup().join(_shown(o, headings[-1]) for o in cell.get("outputs", ()))
        for tag in found.keys() & cell.get("metadata", {}).get("tags", ()) if body else ():
            found[tag].append(Output(record, headings[-1], body))
    return Recorded(headings[:2][-1], found[RESULT_TAG], found[EXAMPLE_TAG])


def _shown(output: dict[str, Any], heading: str) -> Markup:
    """Return one output as HTML: a picture, a table, words; logs and errors are left out."""
    data = {
        kind: "".join(text)
        for kind, text in (output.get("data") or {}).items()
        if kind.startswith(("image/", "text/"))
    }
    if "image/png" in data:
        picture = Markup('<img alt="{}" src="data:image/png;base64,{}">')
        return picture.format(heading, "".join(data["image/png"].split()))
    if "text/html" in data:
        return _shortened(data["text/html"])
    if "text/markdown" in data:
        return from_markdown(data["text/markdown"])
    if output.get("output_type") in ("display_data", "execute_result") and "text/plain" in data:
        return Markup("<pre>{}</pre>").format(data["text/plain"])
    return Markup()


def _shortened(table: str) -> Markup:
    """Return an HTML table with its first rows and a word on how many were left out."""
    found = _BODY.search(table)
    rows = _ROW.findall(found.group(1)) if found else []
    if found is None or len(rows) <= MOST_ROWS:
        return Markup(table)
    kept = table[: found.start(1)] + "".join(rows[:MOST_ROWS]) + table[found.end(1) :]
    left_out = len(rows) - MOST_ROWS
    return Markup(f"{kept}<p>{left_out} more rows are in the run's report.</p>")


@dataclass(frozen=True)
class Deck:
    """The slides of a meeting.

    Attributes:
        slides: One HTML fragment a slide, each with its own style.
        chosen: The runs that it was made from.
        left_out: How many recorded figures there was no room for.
    """

    slides: tuple[HTML, ...]
    chosen: Chosen
    left_out: int

    @property
    def read(self) -> list[str]:
        """The runs that it was made from."""
        return [str(record) for record in (*self.chosen.finished, *self.chosen.unfinished)]

    @property
    def sources(self) -> str:
        """Where the figures of all runs come from, for the deck's own manifest."""
        kinds = list(dict.fromkeys(record.provenance for record in self.chosen.finished))
        return f"figures of {len(self.chosen.finished)} runs: {'; '.join(kinds) or 'none finished'}"

    @property
    def headline(self) -> dict[str, int]:
        """Counts, for the manifest."""
        return {
            "slides": len(self.slides),
            "finished runs": len(self.chosen.finished),
            "unfinished runs": len(self.chosen.unfinished),
        }

    def __str__(self) -> str:
        """Return the number of slides and of what they were made from."""
        made = (
            f"{len(self.slides)} slides from {len(self.chosen.finished)} finished and "
            f"{len(self.chosen.unfinished)} unfinished runs"
        )
        return made + f"; {self.left_out} recorded figures did not fit" * bool(self.left_out)


def make_deck(params: WeeklyParams) -> Deck:
    """Make the deck from what the chosen runs recorded.

    Args:
        params: Which runs, the notes, the most slides.

    Returns:
        In order: what was asked, headlines, the outputs tagged `weekly` of each run's executed
        notebook, one tagged `weekly-example`, what failed, and the notes, a slide a heading.

    Raises:
        ValueError: The parameters choose no run, or the notes leave no room for results.
    """
    chosen = choose_records(params.records, params.runs, params.since)
    if not chosen.finished and not chosen.unfinished:
        way = "run a notebook first, such as geo run 02 smoke"
        if params.since:
            way = "choose an earlier date, or leave it out for the newest of each kind"
        raise ValueError(f"no run since={params.since!r} in {params.root}; {way}")
    notes = list(_notes(resolve_path(params.notes).read_text(encoding="utf-8")))
    told = {record: recorded(record) for record in chosen.finished}
    newest = sorted(told, key=lambda record: record.run_id, reverse=True)
    example = [shown for record in newest for shown in told[record].examples[:1]][:1]
    room = params.most_slides - len(notes) - 3 - bool(example)
    if room < 0:
        raise ValueError(
            f"notes={params.notes!r}: {len(notes)} slides of notes leave no room for results in "
            f"most_slides={params.most_slides}; shorten them"
        )
    # Each run's first figure comes before any second one.
    figures = [shown for own in told.values() for shown in enumerate(own.figures)]
    ranked = sorted(range(len(figures)), key=lambda i: (figures[i][0], i))
    kept = [figures[i][1] for i in sorted(ranked[:room])]
    left_out = len(figures) - len(kept)
    slides = [
        _asked(params, told, left_out),
        _headlines(chosen.finished),
        *(_result(output) for output in [*kept, *example]),
        _failed(chosen.unfinished),
        *notes,
    ]
    return Deck(tuple(slides), chosen, left_out)


def _asked(params: WeeklyParams, told: dict[Record, Recorded], left_out: int) -> HTML:
    asked: dict[tuple[str, str], list[str]] = {}
    for record, own in told.items():
        run = f"{_cut(record.variant, 28)}, {_day(record)}"
        asked.setdefault((own.question, record.provenance), []).append(run)
    rows = [
        (question, "; ".join(runs[:5]) + _more(runs, 5), _cut(source, 220))
        for (question, source), runs in asked.items()
    ]
    span = "the runs named" if params.runs else "the newest run of each notebook and variant"
    span = f"everything since {params.since}" if params.since else span
    remarks = [f"{date.fromisoformat(params.day):%d %B %Y} · {span}"]
    bare = [f"{r.notebook[:2]} {r.variant}" for r, own in told.items() if not own.figures]
    if bare:
        remarks.append(
            f"Without figures here: {', '.join(bare[:3])}{_more(bare, 3)} (its folder holds no "
            "executed notebook, or one without a cell tagged “weekly”)."
        )
    if left_out:
        remarks.append(
            f"{left_out} more recorded figures did not fit; name fewer runs to see them."
        )
    none = Markup('<p class="geo-none">No run has finished.</p>')
    body = _table(("asked", "runs", "source"), rows, 6) if rows else none
    return _slide(params.title, body, feet=remarks)


def _headlines(finished: Sequence[Record]) -> HTML:
    told = [telling_results(results(record)) for record in finished]
    each = next((n for n in (4, 3, 2) if sum(len(t[:n]) for t in told) <= MOST_ROWS), 1)
    rows = [
        (_name(record), n.name, n.text, n.counts.removeprefix("n = "), record.short_source)
        for record, own in zip(finished, told, strict=True)
        for n in (own[:each] if each > 1 else own[1:2] or own[:1])
    ]
    if not rows:
        return _slide("Headline numbers", Markup("<p>No finished run recorded any.</p>"))
    table = _table(("run", "quantity", "value [interval]", "n", "source"), rows)
    kind = interval_kind(found for own in told for found in own)
    note = f"[ ]: {kind}. A gain is paired: the trained policy minus its start."
    body = Markup('<div class="geo-headlines">{}</div>').format(table)
    return _slide("Headline numbers", body, feet=[note])


def _result(output: Output) -> HTML:
    record = output.record
    run = f"{record.variant} · {record.run_id}"
    return _slide(f"{record.notebook[:2]} · {output.heading}", output.body, run)


def _failed(unfinished: Sequence[Record]) -> HTML:
    if not unfinished:
        none = Markup("<p>Nothing: every run that was looked at has finished.</p>")
        return _slide("What failed", none)
    rows = []
    for r in unfinished:
        when = _day(r) + (f" {r.started:%H:%M}" if r.started else "")
        took = "" if r.seconds is None else f", {duration(r.seconds)}"
        rows.append((_name(r), r.status, when + took, _cut(r.reason or "still running", 140)))
    return _slide("What did not finish", _table(("run", "status", "started", "reason"), rows, 8))


def _notes(text: str) -> Iterator[HTML]:
    """Return the slides of a notes file: one a heading of two hashes, or more if it is long."""
    parts = _SECTION.split(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    sections = list(zip(parts[1::2], parts[2::2], strict=True))
    if parts[0].strip():
        sections.insert(0, ("Notes", parts[0]))
    for heading, body in sections or [("Open questions and next steps", "*None were written.*")]:
        pages = _pages(body)
        for i, page in enumerate(pages):
            number = f" ({i + 1} of {len(pages)})" if len(pages) > 1 else ""
            yield _slide(f"{heading.strip()}{number}", from_markdown(page))


def _pages(body: str) -> list[str]:
    """Split Markdown between its lines into what a slide holds."""
    pages: list[list[str]] = [[]]
    used = 0
    for line in body.strip().splitlines():
        height = max(-(-len(line) // _LINE_CHARS), 1)
        if pages[-1] and used + height > _LINES:
            pages.append([])
            used = 0
        pages[-1].append(line)
        used += height
    return ["\n".join(page) for page in pages]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int = MOST_ROWS) -> Markup:
    return filled("slide_table.html", columns=columns, rows=rows, most=most)


def _slide(title: str, body: Markup, aside: str = "", feet: Sequence[str] = ()) -> HTML:
    return HTML(filled("slide.html", title=title, aside=aside, body=body, feet=feet))


def _name(record: Record) -> str:
    return f"{record.notebook[:2]} {_cut(record.variant, 28)}"


def _day(record: Record) -> str:
    return f"{record.started:%d %b}" if record.started else "date not recorded"


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _more(items: Sequence[object], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""
