"""The week's deck: what was asked, what was found, what failed, what comes next."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from IPython.display import HTML

from geo_utils.files import resolve_path
from geo_utils.meeting.headlines import interval_kind, results, telling_results
from geo_utils.meeting.index_page import duration
from geo_utils.meeting.params import WeeklyParams
from geo_utils.meeting.recorded import (
    EXAMPLE_TAG,
    MOST_ROWS,
    Recorded,
    markdown_html,
    question,
    recorded_outputs,
)
from geo_utils.meeting.records import Chosen, Record, choose_records
from geo_utils.meeting.side_by_side import comparison_view

_LINES, _LINE_CHARS = 15, 88  # what a slide holds of a notes file
_SECTION = re.compile(r"^## +(.+)$", re.MULTILINE)
# 19 px on a slide of 1280 are 14 pt on one of 13.3 inches, the least that a projector shows well.
_CSS = """
.geo-slide{font:21px/1.4 system-ui,sans-serif;color:#222;text-align:left;max-width:1250px}
.geo-slide .geo-head{display:flex;justify-content:space-between;align-items:baseline;gap:24px;
margin:0 0 10px}
.geo-slide .geo-head h2{font-size:28px;margin:0;font-weight:700;line-height:1.2}
.geo-slide .geo-head span{font-size:19px;color:#555;white-space:nowrap}
.geo-slide img,.reveal .jp-OutputArea-output .geo-slide img{display:block;
width:100%!important;height:auto;max-height:640px!important;
object-fit:contain;object-position:left top}
.geo-slide .geo-figure svg{max-width:100%;max-height:640px}
.geo-slide table{border-collapse:collapse;font-size:19px!important;line-height:1.3;margin:0}
.geo-slide tr{background:none!important}
.geo-slide th,.geo-slide td{text-align:left!important;vertical-align:top;padding:5px 18px 5px 0;
border:0!important;border-bottom:1px solid #ddd!important;max-width:none;
font-variant-numeric:tabular-nums}
.geo-slide .geo-headlines td:is(:nth-child(1),:nth-child(3),:nth-child(4)){white-space:nowrap}
.geo-slide table caption{font-size:19px;caption-side:bottom;text-align:left;color:#555}
.geo-slide pre{font-size:19px;white-space:pre-wrap}
.geo-slide .geo-foot{font-size:19px;color:#555;margin-top:10px}
.geo-slide .geo-view,.geo-slide .geo-view h4,.geo-slide .geo-view .geo-small{font-size:19px}
.geo-slide .geo-view .geo-box{font-size:19px;line-height:1.3;max-height:none;overflow:visible}
.geo-slide .geo-none{color:#8a3030}
.geo-slide li{margin:6px 0}
"""


@dataclass(frozen=True)
class Deck:
    """The slides of a meeting.

    Attributes:
        slides: One HTML fragment a slide, each with its own style.
        chosen: The runs that it was made from.
        left_out: Recorded figures that there was no room for.
    """

    slides: tuple[HTML, ...]
    chosen: Chosen
    left_out: tuple[Recorded, ...]

    @property
    def read(self) -> list[str]:
        """The runs that it was made from."""
        return [str(record) for record in (*self.chosen.finished, *self.chosen.unfinished)]

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
        parts = [
            f"{len(self.slides)} slides from {len(self.chosen.finished)} finished and "
            f"{len(self.chosen.unfinished)} unfinished runs"
        ]
        if self.left_out:
            parts.append(f"{len(self.left_out)} recorded figures did not fit")
        return "; ".join(parts)


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
        raise ValueError(
            f"no run since {params.since} in {params.root}; choose an earlier date, or leave "
            "since out for the newest of each notebook and variant"
        )
    notes = list(_notes(resolve_path(params.notes).read_text(encoding="utf-8")))
    example = _example(chosen.finished)
    room = params.most_slides - len(notes) - 3 - bool(example)
    if room < 0:
        raise ValueError(
            f"notes={params.notes!r}: {len(notes)} slides of notes leave no room for results in "
            f"most_slides={params.most_slides}; shorten them"
        )
    outputs = [recorded_outputs(record) for record in chosen.finished]
    kept, left_out = _fitting(outputs, room)
    slides = [
        _asked(params, chosen, left_out),
        _headlines(chosen.finished),
        *(_result(found) for found in [*kept, *example]),
        _failed(chosen.unfinished),
        *notes,
    ]
    return Deck(tuple(slides), chosen, tuple(left_out))


def runs_view(records: Sequence[Record]) -> HTML:
    """Show runs beside each other as `side_by_side.comparison_view`, where there are two."""
    if len(records) < 2:
        return HTML(f"<p>{len(records)} finished run: nothing to compare.</p>")
    return comparison_view(records)


def sources(chosen: Chosen) -> str:
    """Return where the figures of all runs come from, for the deck's own manifest."""
    kinds = list(dict.fromkeys(record.provenance for record in chosen.finished))
    return f"figures of {len(chosen.finished)} runs: {'; '.join(kinds) or 'none finished'}"


def _fitting(
    outputs: Sequence[Sequence[Recorded]], room: int
) -> tuple[list[Recorded], list[Recorded]]:
    """Share the room among the runs, each run's first output before any second one."""
    taken = [0] * len(outputs)
    while room and any(count < len(own) for count, own in zip(taken, outputs, strict=True)):
        for i, own in enumerate(outputs):
            if room and taken[i] < len(own):
                taken[i] += 1
                room -= 1
    pairs = list(zip(taken, outputs, strict=True))
    kept = [found for count, own in pairs for found in own[:count]]
    return kept, [found for count, own in pairs for found in own[count:]]


def _example(finished: Sequence[Record]) -> list[Recorded]:
    """Return the example of the run that was started last among those that recorded one."""
    for record in sorted(finished, key=lambda r: r.run_id, reverse=True):
        found = recorded_outputs(record, EXAMPLE_TAG)
        if found:
            return found[:1]
    return []


def _asked(params: WeeklyParams, chosen: Chosen, left_out: Sequence[Recorded]) -> HTML:
    asked: dict[tuple[str, str], list[str]] = {}
    for r in chosen.finished:
        asked.setdefault((question(r), r.provenance), []).append(
            f"{_cut(r.variant, 28)}, {_day(r)}"
        )
    rows = [
        (name, "; ".join(runs[:5]) + _more(runs, 5), _cut(source, 220))
        for (name, source), runs in asked.items()
    ]
    span = "the runs named" if params.runs else "the newest run of each notebook and variant"
    span = f"everything since {params.since}" if params.since else span
    remarks = [f"{date.fromisoformat(params.day):%d %B %Y} · {span}"]
    bare = [f"{r.notebook[:2]} {r.variant}" for r in chosen.finished if not recorded_outputs(r)]
    if bare:
        remarks.append(
            f"Without figures here: {', '.join(bare[:3])}{_more(bare, 3)} (its folder holds no "
            "executed notebook, or one without a cell tagged “weekly”)."
        )
    if left_out:
        remarks.append(
            f"{len(left_out)} more recorded figures did not fit; name fewer runs to see them."
        )
    table = _table(("asked", "runs", "source"), rows, 6)
    body = table if rows else '<p class="geo-none">No run has finished.</p>'
    foot = "".join(f'<div class="geo-foot">{html.escape(text)}</div>' for text in remarks)
    return _slide(params.title, body + foot)


def _headlines(finished: Sequence[Record]) -> HTML:
    told = [telling_results(results(record)) for record in finished]
    each = next((n for n in (4, 3, 2) if sum(len(t[:n]) for t in told) <= MOST_ROWS), 1)
    rows = []
    for r, own in zip(finished, told, strict=True):
        run = f"{r.notebook[:2]} {_cut(r.variant, 28)}"
        for n in own[:each] if each > 1 else own[1:2] or own[:1]:
            rows.append((run, n.name, n.text, n.counts.removeprefix("n = "), r.short_source))
    if not rows:
        return _slide("Headline numbers", "<p>No finished run recorded any.</p>")
    body = _table(("run", "quantity", "value [interval]", "n", "source"), rows)
    kind = interval_kind(found for own in told for found in own)
    note = f"[ ]: {kind}. A gain is paired: the trained policy minus its start."
    told_as = f'<div class="geo-headlines">{body}</div><div class="geo-foot">{note}</div>'
    return _slide("Headline numbers", told_as)


def _result(found: Recorded) -> HTML:
    record = found.record
    run = f"{record.variant} · {record.run_id}"
    return _slide(f"{record.notebook[:2]} · {found.heading}", found.body, run)


def _failed(unfinished: Sequence[Record]) -> HTML:
    if not unfinished:
        return _slide("What failed", "<p>Nothing: every run that was looked at has finished.</p>")
    rows = [
        (
            f"{r.notebook[:2]} {_cut(r.variant, 28)}",
            r.status,
            _when(r),
            _cut(r.reason or "still running", 140),
        )
        for r in unfinished
    ]
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
            yield _slide(f"{heading.strip()}{number}", markdown_html(page))


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


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int = MOST_ROWS) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>"
        for row in rows[:most]
    )
    rest = f"<p>{len(rows) - most} more: see outputs/index.html.</p>" if len(rows) > most else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _slide(title: str, body: str, aside: str = "") -> HTML:
    head = f"<h2>{html.escape(title)}</h2><span>{html.escape(aside)}</span>"
    return HTML(
        f'<style>{_CSS}</style><div class="geo-slide"><div class="geo-head">{head}</div>'
        f"{body}</div>"
    )


def _day(record: Record) -> str:
    return f"{record.started:%d %b}" if record.started else "date not recorded"


def _when(record: Record) -> str:
    time = f" {record.started:%H:%M}" if record.started else ""
    took = "" if record.seconds is None else f", {duration(record.seconds)}"
    return f"{_day(record)}{time}{took}"


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _more(items: Sequence[object], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""
