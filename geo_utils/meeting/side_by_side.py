"""Runs side by side: parameters that differ, headlines with intervals, one figure."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from geo_utils.files import write_atomic
from geo_utils.meeting.headlines import PROBABILITY, Result, interval_kind, results
from geo_utils.meeting.index_page import duration
from geo_utils.meeting.records import Record
from geo_utils.plots import estimate_figure
from geo_utils.tables import label

_MISSING = "–"  # noqa: RUF001
_WIDE = 6  # runs that stand side by side; more stand one below the other
_CSS = """
.geo-compare{font:15px/1.45 system-ui,sans-serif;color:#222;text-align:left}
.geo-compare table{border-collapse:collapse;margin:6px 0 18px;font-size:15px}
.geo-compare th,.geo-compare td{text-align:left;vertical-align:top;padding:4px 12px 4px 0;
border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
.geo-compare small{color:#555;font-size:13px}
.geo-compare img{max-width:100%}
.geo-compare .geo-note{color:#8a3030}
"""


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: Letter, notebook and variant, run, status, time, commit and source of each.
        parameters: Parameters that differ, a column a run.
        headlines: Headline numbers with interval and n, a column a run.
        notes: What to know before the numbers are compared.
        figure: The numbers that have an interval; none where no run has any.
    """

    runs: pd.DataFrame
    parameters: pd.DataFrame
    headlines: pd.DataFrame
    notes: tuple[str, ...]
    figure: Figure | None


def compare_runs(records: Sequence[Record]) -> Comparison:
    """Put runs beside each other, each under a letter.

    Args:
        records: At least two runs, of one notebook or of several.

    Raises:
        ValueError: Fewer than two.
    """
    if len({record.folder for record in records}) < 2:
        raise ValueError("a comparison needs at least two different runs")
    lettered = {_letter(i): record for i, record in enumerate(records)}
    found = {letter: results(record) for letter, record in lettered.items()}
    parameters, notes = _differing(lettered)
    return Comparison(
        runs=pd.DataFrame([_run_row(*item) for item in lettered.items()]).set_index(""),
        parameters=parameters,
        headlines=_headlines(found),
        notes=(*notes, *_cautions(lettered)),
        figure=_figure(found),
    )


def comparison_view(records: Sequence[Record], folder: Path | None = None) -> HTML:
    """Show runs beside each other, in a notebook cell or on a page.

    Args:
        records: At least two runs.
        folder: Where the page will lie, for its links to the runs; none for no links.

    Raises:
        ValueError: As `compare_runs`.
    """
    compared = compare_runs(records)
    links = {}
    if folder is not None:
        for record in records:
            place = quote(os.path.relpath(record.folder, folder))
            links[html.escape(record.run_id)] = place
    runs = compared.runs.rename_axis(None).to_html(escape=True, border=0)
    for run_id, place in links.items():
        runs = runs.replace(f"<td>{run_id}</td>", f'<td><a href="{place}/">{run_id}</a></td>')
    notes = "".join(f'<p class="geo-note">{html.escape(note)}</p>' for note in compared.notes)
    kind = interval_kind(r for record in records for r in results(record))
    picture = "<p>No run has a headline number with an interval.</p>"
    if compared.figure is not None:
        picture = _picture(compared.figure)
    return HTML(
        f'<style>{_CSS}</style><div class="geo-compare">{runs}{notes}'
        f"<h3>Parameters that differ</h3>{_table(compared.parameters)}"
        f"<h3>Headlines [{kind}]</h3>{_table(compared.headlines)}{picture}</div>"
    )


def write_comparison(records: Sequence[Record], output_root: Path) -> Path:
    """Write the comparison as one page; the same runs in the same order write the same file.

    Raises:
        ValueError: As `compare_runs`.
    """
    names = "\n".join(str(record.folder) for record in records)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    path = output_root / "comparisons" / f"{digest}.html"
    body = comparison_view(records, path.parent).data
    title = html.escape(", ".join(f"{r.notebook} {r.variant}" for r in records))
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<title>{title}</title><link rel="icon" href="data:,"></head>'
        '<body style="max-width:1280px;margin:24px auto;font-family:system-ui,sans-serif">'
        f"<h2>{title}</h2>{body}</body></html>"
    )
    write_atomic(path, page)
    return path


def _letter(place: int) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return (letters[place // 26 - 1] if place >= 26 else "") + letters[place % 26]


def _run_row(letter: str, record: Record) -> dict[str, Any]:
    git = record.manifest.get("git")
    commit = str(git.get("commit"))[:10] if isinstance(git, dict) else "not recorded"
    ended = f"{record.status}: {record.reason[:200]}" if record.reason else record.status
    return {
        "": letter, "notebook": record.notebook, "variant": record.variant, "run": record.run_id,
        "status": ended, "took": duration(record.seconds), "commit": commit,
        "source": record.provenance,
    }  # fmt: skip


def _differing(lettered: dict[str, Record]) -> tuple[pd.DataFrame, list[str]]:
    """Return the parameters that all runs have and that differ, and notes on the others."""
    values = {letter: record.parameters for letter, record in lettered.items()}
    notes = [f"{letter} recorded no parameters." for letter, have in values.items() if not have]
    known = {letter: have for letter, have in values.items() if have}
    names = list(dict.fromkeys(name for have in known.values() for name in have))
    if len({record.notebook for record in lettered.values()}) > 1:
        alone = [name for name in names if not all(name in have for have in known.values())]
        names = [name for name in names if name not in alone]
        notes += ["Different notebooks: parameters that not all of them have are left out."]
    rows = {
        name: {letter: _value(have, name) for letter, have in values.items()}
        for name in names
        if len({_value(have, name) for have in known.values()}) > 1
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(values)), notes


def _value(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return _MISSING
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _headlines(found: dict[str, list[Result]]) -> pd.DataFrame:
    names = list(dict.fromkeys((r.quantity, r.method) for rows in found.values() for r in rows))
    cells = {}
    for quantity, method in names:
        name = f"{quantity}, {label(method)}" if method else quantity
        cells[name] = {
            letter: next(
                (f"{r.text}\n{r.counts}" for r in rows if (r.quantity, r.method) ==
                 (quantity, method)), _MISSING
            )
            for letter, rows in found.items()
        }  # fmt: skip
    return pd.DataFrame.from_dict(cells, orient="index", columns=list(found))


def _cautions(lettered: dict[str, Record]) -> list[str]:
    """Return what stands in the way of reading the runs' numbers against each other."""
    notes = []
    inputs = (record.manifest.get("inputs") for record in lettered.values())
    corpora = {str(i["corpus"]) for i in inputs if isinstance(i, dict) and "corpus" in i}
    if len(corpora) > 1:
        notes.append("They did not read the same corpus: their numbers are not of one population.")
    if len({record.provenance for record in lettered.values()}) > 1:
        notes.append("Their figures come from different roles or models: see the sources.")
    codes = {str(record.manifest.get("code_hash")) for record in lettered.values()}
    if len(codes) > 1:
        notes.append("They were made by different versions of the code.")
    unfinished = [letter for letter, r in lettered.items() if r.status != "finished"]
    if unfinished:
        notes.append(f"Not finished: {', '.join(unfinished)}.")
    return notes


def _figure(found: dict[str, list[Result]]) -> Figure | None:
    with_ends = {
        letter: {(r.quantity, r.method): r for r in rows if r.low is not None}
        for letter, rows in found.items()
    }
    names = list(dict.fromkeys(name for rows in with_ends.values() for name in rows))
    shown = [name for name in names if name[0] == PROBABILITY] or names
    rows = []
    for quantity, method in shown:
        for letter, have in with_ends.items():
            if (quantity, method) in have:
                result = have[quantity, method]
                name = label(method) if method else quantity
                rows.append((f"{letter} · {name}", method, result))
    if not rows:
        return None
    frame = pd.DataFrame(
        {"method": m, "mean": r.mean, "low": r.low, "high": r.high} for _, m, r in rows
    ).set_index(pd.Index([name for name, _, _ in rows]))
    counts = sorted({r.counts for _, _, r in rows})
    note = counts[0] if len(counts) == 1 else "n of each in the table"
    kind = interval_kind(r for _, _, r in rows)
    axis = PROBABILITY if shown[0][0] == PROBABILITY else "headline number"
    return estimate_figure(frame, _claim(with_ends, shown), axis, f"{note}; {kind}.")


def _claim(found: dict[str, dict[tuple[str, str], Result]], names: list[tuple[str, str]]) -> str:
    """Say where the runs differ most, and whether their intervals meet."""
    spreads = []
    for name in names:
        rows = {letter: have[name] for letter, have in found.items() if name in have}
        scored = {letter: r for letter, r in rows.items() if r.mean is not None}
        if len(scored) > 1:
            low = min(scored, key=lambda k: scored[k].mean or 0.0)
            high = max(scored, key=lambda k: scored[k].mean or 0.0)
            spreads.append(((scored[high].mean or 0) - (scored[low].mean or 0), name, low, high))
    if not spreads:
        return "The runs have no headline number in common"
    spread, name, low, high = max(spreads, key=lambda entry: entry[0])
    what = label(name[1]).capitalize() if name[1] else name[0].capitalize()
    if not spread:
        return f"The runs agree; {what}: {found[low][name].mean:.3f} in all of them"
    below, above = found[low][name], found[high][name]
    apart = (below.high or np.inf) < (above.low or -np.inf)
    meet = "their intervals do not meet" if apart else "their intervals overlap"
    return f"{what} differs most: {below.mean:.3f} in {low}, {above.mean:.3f} in {high}; {meet}"


def _table(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "<p>None.</p>"
    turned = frame if frame.shape[1] <= _WIDE else frame.T

    def cell(text: str) -> str:
        first, _, rest = html.escape(text).partition("\n")
        return f"{first}<br><small>{rest}</small>" if rest else first

    return turned.map(cell).to_html(escape=False, border=0)


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="the runs\' numbers with their intervals" src="data:image/png;base64,{data}">'
