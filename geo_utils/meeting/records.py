"""Runs as their manifests tell them: which there are, how they ended, what they were asked."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from geo_utils.runs import Run, process_mark

# A notebook's folder starts with its number; caches, locks and prompts do not.
_PATTERN = "[0-9][0-9]_*/*/*/manifest.json"
_WARNINGS = ("SIMULATED", "random weights")  # as `provenance` and the harness write them
# Parameters that say where and how a run went, not what it was about.
_PLACES = {"variant", "output_root", "cache_root", "servers"}


_SKEW = timedelta(days=1)  # no more than that do the clocks of machines differ


@dataclass(frozen=True)
class Record:
    """A run folder and its manifest, read once; a torn or older manifest lacks entries.

    Attributes:
        folder: Absolute path.
    """

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest; empty if it cannot be read."""
        return Run(self.folder).manifest

    @property
    def run_id(self) -> str:
        """The folder's name, which starts with the time at which the run was opened."""
        return self.folder.name

    @property
    def notebook(self) -> str:
        """The notebook's name without ending."""
        return self.folder.parent.parent.name

    @property
    def variant(self) -> str:
        """The name of the set of parameters."""
        return self.folder.parent.name

    def __str__(self) -> str:
        """Return notebook, variant and run as captions write them."""
        return f"{self.notebook} · {self.variant} · {self.run_id}"

    @property
    def status(self) -> str:
        """The manifest's status, or `unreadable`, or `abandoned`: its process is gone."""
        if not self.manifest:
            return "unreadable"
        status = self.manifest.get("status")
        known = ("started", "finished", "failed", "interrupted")
        if status not in known:
            return "unreadable"
        return "abandoned" if status == "started" and self._gone() else str(status)

    @property
    def reason(self) -> str:
        """Why the run is not finished, in the manifest's words; empty where there is none."""
        said = {
            "unreadable": "manifest.json is torn or empty; delete the folder, or run it again",
            "abandoned": "its process is gone without a word (killed, or the machine went down)",
        }
        return said.get(self.status) or _text(self.manifest.get("reason"))

    @property
    def rehearsed(self) -> bool:
        """Whether it was a dry run, which ends without a result and as it should."""
        return self.reason.startswith("dry run")

    @property
    def headline(self) -> dict[str, Any]:
        """The headline numbers; empty where there are none."""
        return _mapping(self.manifest.get("headline"))

    @property
    def provenance(self) -> str:
        """Where the figures come from."""
        return _text(self.manifest.get("provenance")) or "source not recorded"

    @property
    def short_source(self) -> str:
        """What the provenance warns of, else its first words."""
        warned = [warning for warning in _WARNINGS if warning in self.provenance]
        return ", ".join(warned) or re.split("[:,;]", self.provenance)[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """The resolved parameters, nested ones under dotted names, without those of places."""
        resolved = _mapping(_mapping(self.manifest.get("parameters")).get("resolved"))
        return flattened({n: v for n, v in resolved.items() if n not in _PLACES})

    @property
    def started(self) -> datetime | None:
        """When the run was first started."""
        return _time(self.manifest.get("started_at"))

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The times at which it was started or resumed."""
        found = self.manifest.get("attempts")
        return [_mapping(entry) for entry in found] if isinstance(found, list) else []

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took; none where it has not ended or did not say."""
        last = self.attempts[-1].get("started_at") if self.attempts else None
        start = _time(last) or self.started
        end = _time(self.manifest.get("ended_at"))
        return None if start is None or end is None else max((end - start).total_seconds(), 0.0)

    def _gone(self) -> bool:
        """Whether the last attempt's process was on this machine and is no more."""
        last = self.attempts[-1] if self.attempts else {}
        if last.get("host") != platform.node() or not isinstance(last.get("pid"), int):
            return False
        try:
            os.kill(last["pid"], 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        # Its number may be another's by now, also after the machine was started again.
        mark = last.get("process")
        return isinstance(mark, str) and process_mark(last["pid"]) != mark


@dataclass(frozen=True)
class Chosen:
    """Runs to talk about.

    Attributes:
        finished: With results, by notebook, variant and time.
        unfinished: Failed, interrupted, abandoned, unreadable or running, newest first.
    """

    finished: tuple[Record, ...]
    unfinished: tuple[Record, ...]


def find_records(output_root: Path) -> list[Record]:
    """Return all runs under an output folder, oldest first.

    Those that are dated ahead, as by a clock that was wrong, come before all others: they would
    be the newest for as long.
    """
    found = [Record(path.parent) for path in output_root.glob(_PATTERN)]
    now = f"{datetime.now(UTC) + _SKEW:%Y%m%d-%H%M%S}"
    return sorted(found, key=lambda r: (r.run_id < now, r.run_id, str(r.folder)))


def named_records(names: Sequence[str | Path], records: Sequence[Record]) -> list[Record]:
    """Return the runs of these folders or run ids, in this order.

    Args:
        names: Folders, absolute or from the working directory or the project's root; or run ids.
        records: Runs known by id; a folder need not be among them.

    Raises:
        ValueError: A name is no run's; it says which.
    """
    from geo_utils.files import resolve_path

    by_id = {record.run_id: record for record in records}
    found = []
    for name in names:
        places = (Path(name).expanduser().resolve(), resolve_path(name))
        folder = next((place for place in places if (place / "manifest.json").exists()), None)
        if folder is None and str(name) not in by_id:
            newest = ", ".join(str(record) for record in records[-3:]) or "none"
            raise ValueError(
                f"{str(name)!r} is no run: give a run folder "
                f"(outputs/<notebook>/<variant>/<run_id>) or its id; the newest are: {newest}"
            )
        found.append(Record(folder) if folder else by_id[str(name)])
    return found


def choose_records(
    records: Iterable[Record], names: Sequence[str] = (), since: str | None = None
) -> Chosen:
    """Choose the runs to talk about.

    Args:
        records: All runs, as `find_records` returns them.
        names: Folders or run ids; if given, only these.
        since: An ISO date; if given, everything that was started then or later (UTC).

    Returns:
        With neither: the newest finished run of each notebook and variant, and what has been
        started after it (or without it) and not finished. Dry runs are left out.

    Raises:
        ValueError: A name is no run's.
    """
    known = list(records)
    wanted = [record for record in known if not record.rehearsed]
    if names:
        wanted = named_records(names, known)
    elif since is not None:
        wanted = [r for r in wanted if _day(r) >= since]
    finished = [record for record in wanted if record.status == "finished"]
    unfinished = [record for record in wanted if record.status != "finished"]
    if not names and since is None:
        newest = {(r.notebook, r.variant): r for r in finished}
        finished = list(newest.values())
        unfinished = [
            r for r in unfinished
            if (r.notebook, r.variant) not in newest
            or newest[r.notebook, r.variant].run_id < r.run_id
        ]  # fmt: skip
    finished.sort(key=lambda r: (r.notebook, r.variant, r.run_id))
    unfinished.sort(key=lambda r: r.run_id, reverse=True)
    return Chosen(tuple(finished), tuple(unfinished))


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changed_parameters(
    record: Record, defaults: Callable[[str], dict[str, Any] | None]
) -> dict[str, Any]:
    """Return the parameters of a run that are not its notebook's default.

    Args:
        record: The run.
        defaults: The flattened default parameters of a notebook, none where it has none any more;
            then those that were passed count as changed.
    """
    values, usual = record.parameters, defaults(record.notebook)
    if usual is None:
        passed = _mapping(_mapping(record.manifest.get("parameters")).get("passed"))
        return flattened({n: v for n, v in passed.items() if n not in _PLACES})
    return {n: v for n, v in values.items() if n not in usual or usual[n] != v}


def _day(record: Record) -> str:
    if record.started is not None:
        return record.started.date().isoformat()
    try:
        changed = record.folder.stat().st_mtime
    except OSError:  # deleted meanwhile
        return ""
    return datetime.fromtimestamp(changed, UTC).date().isoformat()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _time(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
