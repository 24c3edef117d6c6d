"""outputs/index.html: a page of all runs, sortable and filtered in the browser, one file."""

from __future__ import annotations

import contextlib
import fcntl
import html
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from geo_utils.files import write_atomic
from geo_utils.meeting.headlines import headline_phrase
from geo_utils.meeting.records import Record, changed_parameters, find_records, flattened
from geo_utils.notebooks import PARAMS, read_parameters
from geo_utils.parameter_errors import ParameterError

_TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "geo_index" / "index.html"
_LINKS = {"report": "report.html", "slides": "slides.html", "pdf": "slides.pdf",
          "notebook": "notebook.ipynb", "manifest": "manifest.json"}  # fmt: skip
_PATIENCE_S = 20.0
_MOST_PARAMETERS = 6  # beside the headline; the rest unfolds


def write_index(output_root: Path) -> Path:
    """Write the page of all runs under an output folder.

    Processes that finish at the same time write one after another, so that the last one has seen
    all the others' manifests.

    Returns:
        Path of `index.html`.
    """
    with _one_at_a_time(output_root):
        records = find_records(output_root)
        rows = "\n".join(index_row(record, output_root) for record in reversed(records))
        counts = "".join(
            f" · {sum(r.status == status for r in records)} {status}"
            for status in sorted({r.status for r in records})
        )
        page = _TEMPLATE.read_text(encoding="utf-8")
        for mark, text in (
            ("@COUNT@", f"{len(records):,} run{'s' * (len(records) != 1)}{counts}"),
            ("@WHEN@", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
            ("@ROWS@", rows),  # last: what a run says is not searched for marks
        ):
            page = page.replace(mark, text)
        write_atomic(output_root / "index.html", page)
    return output_root / "index.html"


def index_row(record: Record, output_root: Path) -> str:
    """Return a run's row of the page."""
    seconds = record.seconds
    started = record.started
    attempts = len(record.attempts)
    again = f" ({attempts} attempts)" if attempts > 1 else ""
    cells = [
        (record.status, f'<b class="{record.status}">{record.status}</b>'),
        (record.notebook, html.escape(record.notebook)),
        (record.variant, html.escape(record.variant)),
        (record.run_id, f"{started:%Y-%m-%d %H:%M}" if started else "not recorded"),
        (f"{seconds or 0:012.1f}", html.escape(duration(seconds) + again)),
        ("", _parameters(record)),
        ("", _headline(record)),
        ("", _links(record, output_root)),
    ]
    columns = "".join(f'<td data-key="{html.escape(key)}">{body}</td>' for key, body in cells)
    return f'<tr id="{html.escape(record.run_id)}">{columns}</tr>'


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


@lru_cache(maxsize=32)
def default_parameters_of(notebook: str) -> dict[str, Any] | None:
    """Return the flattened parameters of a notebook's `default.yaml`; none without it."""
    if notebook not in PARAMS:
        return None
    try:
        values = read_parameters(notebook, "default")[2].model_dump(mode="json")
    except (ParameterError, OSError, ValueError):
        return None
    return flattened(values)


def parameter_text(name: str, value: Any) -> str:
    """Write one parameter as name=value."""
    return f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"


def _parameters(record: Record) -> str:
    changed = changed_parameters(record, default_parameters_of)
    texts = [html.escape(parameter_text(*item)) for item in changed.items()]
    if not texts:
        return "not recorded" if not record.parameters else "default"
    shown = "<br>".join(texts[:_MOST_PARAMETERS])
    rest = texts[_MOST_PARAMETERS:]
    if not rest:
        return shown
    return f"{shown}<details><summary>{len(rest)} more</summary>{'<br>'.join(rest)}</details>"


def _headline(record: Record) -> str:
    reason = f'<div class="reason">{html.escape(record.reason[:600])}</div>'
    said = headline_phrase(record).replace("; ", "\n")
    source = f'<div class="source">{html.escape(record.provenance)}</div>' if said else ""
    body = html.escape(said).replace("\n", "<br>")
    return body + source + (reason if record.reason else "")


def _links(record: Record, output_root: Path) -> str:
    folder = record.folder.relative_to(output_root)
    there = [
        f'<a href="{quote(str(folder / file))}">{name}</a>'
        for name, file in _LINKS.items()
        if (record.folder / file).is_file()
    ]
    return " ".join(there)


@contextlib.contextmanager
def _one_at_a_time(output_root: Path) -> Iterator[None]:
    """Hold the index against other processes, as far as the file system can.

    Nobody waits for ever: a run must not fail to end because another one hangs.
    """
    path = output_root / ".locks" / "index"
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _PATIENCE_S
    with path.open("w") as lock:
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks: the last one wins
                break
            else:
                break
        yield
