"""The week's deck: what was asked and found, recorded figures, what failed, and the notes."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

from IPython.display import HTML
from markupsafe import Markup

from geo_utils.files import resolve_path
from geo_utils.records import Chosen, Record, choose_records, conclusion
from geo_utils.show.jinja import filled, from_markdown, from_run
from geo_utils.show.pages import duration
from geo_utils.text import capitalised
from geo_utils.weekly.params import WeeklyParams

RESULT_TAG, EXAMPLE_TAG = "weekly", "weekly-example"
MOST_ROWS = 12
_EMPTY = Markup()
_MOST_FAILED = 8
# Of a slide of 1280 x 720, in pixels: its room, a heading, a line of text, a row of a table, and
# what an item of a list takes beside its lines.
_WIDTH, _ROOM, _HEAD, _LINE, _ROW_HEIGHT, _ITEM = 1250, 680, 40, 25, 36, 10
_LINE_CHARS, _FIRST_ROOM = 120, 760  # a little smaller is better than a slide with one sentence
_NEXT = re.compile(r"next steps?", re.IGNORECASE)
_TEXT_END = re.compile(r"</(?:p|li|h\d|pre|caption|summary)>|<br/?>|\n")
_PNG = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/]{44})')
_BODY = re.compile(r"<tbody>(.*?)</tbody>", re.DOTALL)
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
_SECTION = re.compile(r"^## +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A part of a slide.

    Attributes:
        part: Blocks of one part that follow each other share a slide where they fit.
        title: Its heading.
        body: What is shown.
        aside: Small, at the end of the heading's line.
        feet: Small lines below.
    """

    part: str
    title: str
    body: Markup = _EMPTY
    aside: str = ""
    feet: Sequence[str] = ()

    @cached_property
    def height(self) -> int:
        """The pixels that it is expected to take; what is higher is shown smaller."""
        found, rest = _HEAD * bool(self.title), str(self.body)
        if picture := _PNG.search(rest):
            wide, high = struct.unpack(">II", base64.b64decode(picture[1])[16:24])
            found += min(_WIDTH * high // max(wide, 1), 640)
        if "geo-view" in rest:
            found += _ROOM
        found += _ROW_HEIGHT * rest.count("<tr") + _ITEM * rest.count("<li")
        texts = [re.sub("<[^>]*>", "", part) for part in _TEXT_END.split(_BODY.sub("", rest))]
        texts += self.feet
        return found + _LINE * sum(-(-len(text.strip()) // _LINE_CHARS) for text in texts)


class Recorded(NamedTuple):
    """What a run's executed notebook tells; a run without one tells its notebook's name.

    Attributes:
        question: The notebook's title, or its name.
        figures: The cells tagged `weekly`, in the notebook's order.
        examples: Those tagged `weekly-example`.
    """

    question: str
    figures: list[Block]
    examples: list[Block]


def recorded(record: Record) -> Recorded:
    """Read a run's executed notebook; a torn one is as none."""
    try:
        node = json.loads((record.folder / "notebook.ipynb").read_text(encoding="utf-8"))
        cells = [cell for cell in node["cells"] if isinstance(cell, dict)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        cells = []
    headings, run = [record.notebook], f"{record.variant} · {record.run_id}"
    found: dict[str, list[Block]] = {RESULT_TAG: [], EXAMPLE_TAG: []}
    for cell in cells:
        if cell.get("cell_type") == "markdown":
            headings += _HEADING.findall("".join(cell.get("source", ())))
            continue
        body = Markup().join(_shown(o, headings[-1]) for o in cell.get("outputs", ()))
        for tag in found.keys() & cell.get("metadata", {}).get("tags", ()) if body else ():
            title = f"{record.notebook[:2]} · {headings[-1]}"
            found[tag].append(Block(str(record), title, body, run))
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
        return from_run(_shortened(data["text/html"]))
    if "text/markdown" in data:
        pages = _pages(data["text/markdown"])
        more = "\n\nThe rest is in the run's report." * (len(pages) > 1)
        return from_markdown(pages[0] + more)
    if output.get("output_type") in ("display_data", "execute_result") and "text/plain" in data:
        return Markup("<pre>{}</pre>").format(data["text/plain"])
    return Markup()


def _shortened(table: str) -> str:
    """Return an HTML table with its first rows and a word on how many were left out."""
    found = _BODY.search(table)
    rows = _ROW.findall(found.group(1)) if found else []
    if found is None or len(rows) <= MOST_ROWS:
        return table
    kept = table[: found.start(1)] + "".join(rows[:MOST_ROWS]) + table[found.end(1) :]
    left_out = len(rows) - MOST_ROWS
    return f"{kept}<p>{left_out} more rows are in the run's report.</p>"


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
        In order: what was asked and found, a sentence a run; the outputs tagged `weekly` of each
        run's executed notebook; one tagged `weekly-example`; what did not finish, and the notes,
        the next steps last.

    Raises:
        ValueError: The parameters choose no run, or the notes leave no room for results.
    """
    known = params.records
    trials = [] if params.trials else [r for r in known if r.trial(params.least_queries)]
    shown = known if params.runs else [record for record in known if record not in set(trials)]
    chosen = choose_records(shown, params.runs, params.since)
    tried = () if params.runs else choose_records(trials, (), params.since).finished
    if not chosen.finished and not chosen.unfinished:
        way = "run a notebook first, such as geo run 02"
        if tried:
            way = f"{_trials(tried, params.least_queries)}; trials=true takes them"
        elif params.since:
            way = "choose an earlier date, or leave it out for the newest of each kind"
        raise ValueError(f"no run since={params.since!r} in {params.root}; {way}")
    told = {record: recorded(record) for record in chosen.finished}
    newest = sorted(told, key=lambda record: record.run_id, reverse=True)
    example = [shown for record in newest for shown in told[record].examples[:1]][:1]
    notes = resolve_path(params.notes).read_text(encoding="utf-8")
    last = _packed([*_failed(chosen.unfinished), *_notes(notes)])
    for record, own in told.items():  # the first says what the run found, where that fits
        for block in own.figures[:1]:
            more = Markup("<p>{}</p>").format(conclusion(record))
            fuller = replace(block, body=block.body + more)
            own.figures[0] = fuller if fuller.height <= _ROOM else block
    # Each run's first figure comes before any second one.
    figures = [shown for own in told.values() for shown in enumerate(own.figures)]
    ranked = sorted(range(len(figures)), key=lambda i: (figures[i][0], i))
    remarks = _remarks(params, chosen, tried)
    for count in range(len(figures), -1, -1):
        left_out = len(figures) - count
        fits = "{} more recorded figures did not fit; name fewer runs to see them."
        feet = [*remarks, *[fits.format(left_out)] * bool(left_out)]
        first = _conclusions(params, told, feet)
        kept = [figures[i][1] for i in sorted(ranked[:count])]
        slides = [*first, *_packed(kept), *_packed(example), *last]
        if len(slides) <= params.most_slides:
            pages = (HTML(filled("slide.html", blocks=blocks)) for blocks in slides)
            return Deck(tuple(pages), chosen, left_out)
    raise ValueError(
        f"notes={params.notes!r}: {len(last)} slides of notes and of what did not finish leave "
        f"no room for results in most_slides={params.most_slides}; shorten the notes"
    )


def _packed(blocks: Iterable[Block], room: int = _ROOM) -> list[list[Block]]:
    """Put blocks of one part that follow each other on one slide where they fit."""
    slides: list[list[Block]] = []
    for block in blocks:
        own = slides[-1] if slides else []
        if own and own[-1].part == block.part and _heights(own) + block.height <= room:
            own.append(block)
        else:
            slides.append([block])
    return slides


def _heights(blocks: Iterable[Block]) -> int:
    return sum(block.height for block in blocks)


def _conclusions(
    params: WeeklyParams, told: dict[Record, Recorded], remarks: Sequence[str]
) -> list[list[Block]]:
    """Return the first slides: each question with a sentence a run, and where it comes from."""
    asked: dict[str, list[Record]] = {}
    for record, own in told.items():
        asked.setdefault(own.question, []).append(record)
    none = Markup('<p class="geo-none">No run has finished.</p>' * (not told))
    head = Block("first", params.title, none, f"{date.fromisoformat(params.day):%d %B %Y}")
    for most in (4, 3, 2, 1):
        parts = [_answered(question, runs, most) for question, runs in asked.items()]
        blocks = [head, *parts, Block("first", "", feet=remarks)]
        if (high := _heights(blocks)) <= 2 * _FIRST_ROOM:
            break
    return _packed(blocks, high if high <= _FIRST_ROOM else high // 2 + 60)


def _answered(question: str, runs: Sequence[Record], most: int) -> Block:
    """Return a question with a sentence and the source of so many runs."""
    said = []
    for record in runs[:most]:
        run, source = f"{_cut(record.variant, 28)}, {_day(record)}", _cut(record.provenance, 220)
        text = Markup("<p><b>{}</b> {} <small>{}</small></p>")
        said.append(text.format(run, conclusion(record), source))
    return Block("first", question, Markup().join(said), feet=_rest(runs, most))


def _remarks(params: WeeklyParams, chosen: Chosen, tried: Sequence[Record]) -> list[str]:
    """Say which runs these are, and which were left out."""
    span = "The runs named" if params.runs else "The newest run of each notebook and variant"
    span = f"Everything since {params.since}" if params.since else span
    ended = "" if chosen.unfinished or not chosen.finished else "; every run looked at has finished"
    remarks = [f"{span}{ended}. [ ]: 95 % interval, or quartiles where named."]
    if tried:
        remarks.append(capitalised(f"{_trials(tried, params.least_queries)}."))
    return remarks


def _trials(tried: Sequence[Record], least: int) -> str:
    named = [f"{_name(record)} ({record.trial(least)})" for record in tried[:4]]
    more = f" and {len(tried) - 4} more" * (len(tried) > 4)
    return f"trials left out: {', '.join(named)}{more}"


def _failed(unfinished: Sequence[Record]) -> Iterator[Block]:
    text, said = Markup("<p><b>{}</b> {}{}: {}</p>"), []
    for r in unfinished[:_MOST_FAILED]:
        took = "" if r.seconds is None else f", {duration(r.seconds)}"
        reason = _cut(r.reason or "still running", 140)
        said.append(text.format(f"{_name(r)}, {_day(r)}", r.status, took, reason))
    if said:
        feet = _rest(unfinished, _MOST_FAILED)
        yield Block("last", "What did not finish", Markup().join(said), feet=feet)


def _notes(text: str) -> Iterator[Block]:
    """Return the sections of a notes file, long ones in parts, the next steps last."""
    parts = _SECTION.split(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    sections = list(zip(parts[1::2], parts[2::2], strict=True))
    if parts[0].strip():
        sections.insert(0, ("Notes", parts[0]))
    sections.sort(key=lambda section: bool(_NEXT.search(section[0])))
    for heading, body in sections or [("Open questions and next steps", "*None were written.*")]:
        pages = _pages(body)
        for i, page in enumerate(pages):
            number = f" ({i + 1} of {len(pages)})" if len(pages) > 1 else ""
            yield Block("last", f"{heading.strip()}{number}", from_markdown(page))


def _pages(body: str) -> list[str]:
    """Split Markdown between its lines into what a slide holds."""
    pages: list[list[str]] = [[]]
    used = _HEAD
    for line in body.strip().splitlines():
        height = _LINE * -(-len(line) // _LINE_CHARS) + _ITEM
        if pages[-1] and used + height > _ROOM:
            pages.append([])
            used = _HEAD
        pages[-1].append(line)
        used += height
    return ["\n".join(page) for page in pages]


def _name(record: Record) -> str:
    return f"{record.notebook[:2]} {_cut(record.variant, 28)}"


def _day(record: Record) -> str:
    return f"{record.started:%d %b}" if record.started else "date not recorded"


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _rest(runs: Sequence[Record], shown: int) -> list[str]:
    more = len(runs) - shown
    return [f"and {more} more: see outputs/index.html."] if more > 0 else []
