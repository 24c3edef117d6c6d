"""Runs on one page: a row each, and those that are ticked side by side."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

from IPython.display import HTML

from geo_utils.files import write_atomic
from geo_utils.notebooks import NOTEBOOKS, read_parameters
from geo_utils.parameters import ParameterError
from geo_utils.records import (
    Record,
    conclusion,
    find_records,
    flattened,
    paired_differences,
    results,
)
from geo_utils.roles.methods import label
from geo_utils.show.jinja import TEMPLATES, filled, secured
from geo_utils.statistics import with_interval
from geo_utils.text import capitalised

_LINKS = {
    "report": "report.html",
    "slides": "slides.html",
    "pdf": "slides.pdf",
    "notebook": "notebook.ipynb",
    "manifest": "manifest.json",
}


_MOST_PAIRS = 15


def write_index(output_root: Path) -> Path:
    """Write the page of all runs under an output folder, and return its path, `index.html`."""
    path = output_root / "index.html"
    anew = ", anew by geo runs and at the end of each run"
    _write(path, find_records(output_root)[::-1], "Runs", anew, ticked=False)
    return path


def write_comparison(records: Sequence[Record], output_root: Path) -> Path:
    """Write a page of these runs alone, all ticked; the same runs write the same file.

    Raises:
        ValueError: Fewer than two runs.
    """
    if len({record.folder for record in records}) < 2:
        raise ValueError("a comparison needs at least two different runs")
    names = "\n".join(str(record.folder) for record in records)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    path = output_root / "comparisons" / f"{digest}.html"
    title = ", ".join(f"{record.notebook} {record.variant}" for record in records)
    _write(path, records, title, "", ticked=True)
    return path


def runs_view(records: Sequence[Record]) -> HTML:
    """Show runs side by side in a notebook cell, where there are two."""
    if len(records) < 2:
        return HTML(f"<p>{len(records)} finished run{'s' * (not records)}: nothing to compare.</p>")
    return HTML(filled("runs.html", **_values(records, None, True), ticked=True, written=""))


def _write(path: Path, records: Sequence[Record], title: str, anew: str, ticked: bool) -> None:
    written = f" · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC{anew}"
    values = _values(records, path.parent, pairs=ticked)
    page = filled("index.html", **values, title=title, ticked=ticked, written=written)
    write_atomic(path, secured(page, [(TEMPLATES / "runs.js").read_text("utf-8")]))


def _values(records: Sequence[Record], place: Path | None, pairs: bool) -> dict[str, Any]:
    """Return what the template asks for.

    Args:
        records: The runs, in the page's order.
        place: The page's folder, for its links to the runs; none for no links.
        pairs: Whether runs of a notebook are compared sample by sample, if they are not many.
    """
    both = [
        two
        for two in combinations(records if pairs else (), 2)
        if two[0].notebook == two[1].notebook
    ]
    pairs &= len(both) <= _MOST_PAIRS
    counts = Counter(record.status for record in records)
    parts = [f"{len(records):,} run{'s' * (len(records) != 1)}"]
    return {
        "count": " · ".join([*parts, *(f"{n} {status}" for status, n in sorted(counts.items()))]),
        "runs": [_row(record, place) for record in records],
        "compared": {
            "runs": [_compared(record, place) for record in records],
            "paired": [found for found in map(_paired, both) if found] if pairs else None,
        },
    }


def _row(record: Record, place: Path | None) -> dict[str, Any]:
    """Return what a run's row says beside the record itself."""
    texts = [f"{name}={_text(value)}" for name, value in changed_parameters(record).items()]
    attempts = len(record.attempts)
    return {
        "record": record,
        "took": duration(record.seconds) + (f" ({attempts} attempts)" if attempts > 1 else ""),
        "changed": texts,
        "found": conclusion(record),
        "links": {
            name: _link(record.folder / file, place)
            for name, file in _LINKS.items()
            if place and (record.folder / file).is_file()
        },
    }


def _compared(record: Record, place: Path | None) -> dict[str, Any]:
    """Return what of a run is compared with others."""
    git, inputs = record.manifest.get("git"), record.manifest.get("inputs")
    corpus = inputs.get("corpus") if isinstance(inputs, dict) else None
    return {
        "id": record.run_id,
        "notebook": record.notebook,
        "variant": record.variant,
        "found": conclusion(record),
        "finished": record.status == "finished",
        "ended": ": ".join(filter(None, [record.status, record.reason[:200]])),
        "took": duration(record.seconds),
        "commit": str(git.get("commit"))[:10] if isinstance(git, dict) else "not recorded",
        "source": record.provenance,
        "code": str(record.manifest.get("code_hash")),
        "corpus": None if corpus is None else str(corpus),
        "link": f"{_link(record.folder, place)}/" if place else None,
        "parameters": [(name, _text(value)) for name, value in record.parameters.items()],
        "results": [
            {"name": result.name, "text": result.text, "counts": result.counts}
            for result in results(record)
        ],
    }


def _paired(pair: tuple[Record, Record]) -> dict[str, Any] | None:
    """Return what two runs differ in query by query; None where their samples do not match."""
    found = paired_differences(*pair)
    rows = [
        {
            "name": capitalised(label(str(method))),
            "text": with_interval(row["mean"], row["low"], row["high"], signed=True),
            "clear": row["low"] > 0 or row["high"] < 0,
            "counts": f"n = {row['n_queries']:,} queries, {row['n_points']:,} key points, "
            f"{row['lost']:,} more without a score in either",
        }
        for method, row in found.to_dict("index").items()
    ]
    return {"from": pair[0].run_id, "to": pair[1].run_id, "rows": rows} if rows else None


def _link(path: Path, place: Path) -> str:
    return quote(os.path.relpath(path, place))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def duration(seconds: float | None) -> str:
    """Write a duration in its two largest units."""
    if seconds is None:
        return "not ended"
    whole = round(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts: list[str] = []
    for size, name in units:
        count, whole = divmod(whole, size)
        if count or (parts and len(parts) < 2) or name == "s":
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def changed_parameters(record: Record) -> dict[str, Any]:
    """Return the parameters of a run that are not its notebook's default, as it is now.

    Where there is no such notebook any more, those that were passed count as changed.
    """
    usual = default_parameters_of(record.notebook)
    if usual is None:
        return record.given("passed")
    return {n: v for n, v in record.parameters.items() if n not in usual or usual[n] != v}


@lru_cache(maxsize=32)
def default_parameters_of(notebook: str) -> dict[str, Any] | None:
    """Return the flattened parameters of a notebook's `default.yaml`; none without it."""
    if notebook not in NOTEBOOKS:
        return None
    try:
        values = read_parameters(notebook, "default")[2].model_dump(mode="json")
    except (ParameterError, OSError, ValueError):
        return None
    return flattened(values)
