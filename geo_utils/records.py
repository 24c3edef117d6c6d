"""Runs as their manifests tell them: which there are, how they ended, what they were asked."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import groupby
from math import isfinite, nan
from pathlib import Path
from typing import Any, get_args

from geo_utils.files import resolve_path
from geo_utils.roles.methods import label
from geo_utils.runs import Run, Status, process_mark
from geo_utils.statistics import with_interval

# A notebook's folder starts with its number; caches, locks and prompts do not.
_PATTERN = "[0-9][0-9]_*/*/*/manifest.json"
_WARNINGS = ("SIMULATED", "random weights")  # as `provenance` and the harness write them
# Parameters that say where and how a run went, not what it was about.
_PLACES = {"variant", "paths", "servers"}
_SKEW = timedelta(days=1)  # no more than that do the clocks of machines differ
# What is read of a manifest is of these kinds; an entry of another counts as not there.
_KINDS: dict[str, type] = {"headline": dict, "parameters": dict, "attempts": list}
_KINDS |= {"provenance": str, "reason": str}
_REASONS = {
    "unreadable": "manifest.json is torn or empty; delete the folder, or run it again",
    "abandoned": "its process is gone without a word (killed, or the machine went down)",
}
PROBABILITY = "key-point probability"
_NO_N = "n not recorded"
_MOST_NUMBERS = 4  # of a run in one line
_COUNTS = {
    "n_examples": "queries",
    "n_queries": "queries",
    "n_samples": "samples",
    "n_pairs": "pairs",
    "n_labels": "labels",
    "n_steps": "steps",
    "n": "",
}


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
        read = Run(self.folder).manifest.items()
        return {name: value for name, value in read if isinstance(value, _KINDS.get(name, object))}

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
        status = self.manifest.get("status")
        if status not in get_args(Status):
            return "unreadable"
        return "abandoned" if status == "started" and self._gone() else str(status)

    @property
    def reason(self) -> str:
        """Why the run is not finished, in the manifest's words; empty where there is none."""
        return _REASONS.get(self.status) or self.manifest.get("reason", "")

    @property
    def rehearsed(self) -> bool:
        """Whether it was a dry run, which ends without a result and as it should."""
        return self.reason.startswith("dry run")

    @property
    def headline(self) -> dict[str, Any]:
        """The headline numbers; empty where there are none."""
        return dict(self.manifest.get("headline", {}))

    @property
    def provenance(self) -> str:
        """Where the figures come from."""
        return self.manifest.get("provenance") or "source not recorded"

    @property
    def short_source(self) -> str:
        """What the provenance warns of, else its first words."""
        warned = [warning for warning in _WARNINGS if warning in self.provenance]
        return ", ".join(warned) or re.split("[:,;]", self.provenance)[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """The resolved parameters, nested ones under dotted names, without those of places."""
        return self.given("resolved")

    def given(self, which: str) -> dict[str, Any]:
        """Return the parameters that were `passed`, or those `resolved`, as `parameters`."""
        found = self.manifest.get("parameters", {}).get(which) or {}
        return flattened({name: v for name, v in found.items() if name not in _PLACES})

    @property
    def started(self) -> datetime | None:
        """When the run was first started."""
        return _time(self.manifest.get("started_at"))

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The times at which it was started or resumed."""
        return [dict(attempt) for attempt in self.manifest.get("attempts", [])]

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
        # Its number may be another's by now, also after the machine was started again; the clock
        # by which the system tells when a process began may be put right meanwhile.
        began, mark = process_mark(last["pid"]), last.get("process")
        return began is None or (isinstance(mark, float) and abs(began - mark) > 60.0)


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
    wanted = named_records(names, known) if names else [r for r in known if not r.rehearsed]
    if since is not None and not names:
        wanted = [record for record in wanted if _day(record) >= since]
    finished = [record for record in wanted if record.status == "finished"]
    unfinished = [record for record in wanted if record.status != "finished"]
    if not names and since is None:
        newest = {(r.notebook, r.variant): r for r in finished}
        finished, ids = list(newest.values()), {key: r.run_id for key, r in newest.items()}
        unfinished = [r for r in unfinished if ids.get((r.notebook, r.variant), "") < r.run_id]
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


def _day(record: Record) -> str:
    try:
        started = record.started or datetime.fromtimestamp(record.folder.stat().st_mtime, UTC)
    except OSError:  # deleted meanwhile
        return ""
    return started.date().isoformat()


def _time(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Result:
    """One headline number.

    Attributes:
        quantity: What was measured, `PROBABILITY` or the manifest's own name for it.
        method: The method it was measured for, empty where there is none.
        mean: The number; none where nothing could be scored.
        low: Lower end of its interval, if there is one: `interval_kind` says of which.
        high: Upper end.
        counts: n and abstentions in words; says so where the manifest has none.
    """

    quantity: str
    method: str
    mean: float | None
    low: float | None
    high: float | None
    counts: str

    @property
    def name(self) -> str:
        """The quantity, and the method where there is one."""
        return f"{self.quantity}, {label(self.method)}" if self.method else self.quantity

    @property
    def text(self) -> str:
        """The number with its interval."""
        if self.mean is None:
            return "no score"
        if self.low is None and not self.counts:
            return f"{self.mean:,.0f}"
        low, high = (nan if end is None else end for end in (self.low, self.high))
        signed = self.quantity == "gain" or "lift over" in self.quantity
        return with_interval(self.mean, low, high, signed)


def results(record: Record) -> list[Result]:
    """Return the headline numbers of a run in the manifest's order.

    Numbers by method stand under `methods`; any other mapping with a `mean` is an estimate, any
    other number stands for itself under its dotted name.
    """
    headline = record.headline
    methods, columns = headline.pop("methods", None), ("key_point_probability", "ci_low", "ci_high")
    found = [
        _result(PROBABILITY, row, columns, str(method))
        for method, row in (methods.items() if isinstance(methods, dict) else ())
        if isinstance(row, dict)
    ]
    return found + _estimates(headline, "")


def telling_results(found: list[Result]) -> list[Result]:
    """Return what a run is about: original, trained policy, best other method; then the rest.

    Of the rest, a number without an n tells nobody anything.
    """
    rows = {r.method: r for r in found if r.quantity == PROBABILITY}
    named = [rows.pop(name) for name in ("original", "policy/after") if name in rows]
    rows.pop("policy/before", None)
    scored = [row for row in rows.values() if row.mean is not None]
    best = max(scored, key=lambda r: r.mean or 0.0, default=None)
    rest = (r for r in found if r.quantity != PROBABILITY and r.counts != _NO_N)
    return [*named, *([best] if best else []), *rest]


def interval_kind(found: Iterable[Result]) -> str:
    """Say what the ends of these numbers are; a quantity with quartiles has them in its name."""
    named = {"quartiles" in result.quantity for result in found if result.low is not None}
    if named == {True}:
        return "quartiles"
    return "95 % interval" + ", or quartiles where named" * (True in named)


def headline_phrase(record: Record) -> str:
    """Return the most telling results of a run in one line; counts that they share stand once."""
    shown = telling_results(results(record))[:_MOST_NUMBERS]
    if not shown:
        return "no headline recorded" if record.status == "finished" else ""
    parts = []
    for counts, group in groupby(shown, key=lambda result: result.counts):
        named = [f"{label(r.method) if r.method else r.quantity} {r.text}" for r in group]
        each = " each" if len(named) > 1 else ""
        parts.append("; ".join(named) + (f" ({counts}{each})" if counts else ""))
    return "; ".join(parts)


def _estimates(values: Mapping[str, Any], prefix: str) -> list[Result]:
    found = []
    for name, value in values.items():
        place = f"{prefix}{name}"
        if isinstance(value, dict):
            if "mean" in value:
                found.append(_result(place, value, ("mean", "low", "high")))
            else:
                found += _estimates(value, f"{place}.")
        elif f"{name}_low" in values:  # an estimate, its ends and its n beside it
            found.append(_result(place, values, (name, f"{name}_low", f"{name}_high")))
        elif name in _COUNTS or name.endswith(("_low", "_high")):
            continue  # of an estimate
        elif _number(value) is not None:
            counts = "" if isinstance(value, int) else _NO_N  # a count is its own n
            found.append(Result(place, "", _number(value), None, None, counts))
    return found


def _result(
    quantity: str, row: Mapping[str, Any], names: tuple[str, str, str], method: str = ""
) -> Result:
    mean, low, high = (_number(row.get(name)) for name in names)
    counted = [
        f"{row[name]:,} {unit}".strip()
        for name, unit in _COUNTS.items()
        if isinstance(row.get(name), int)
    ]
    counts = f"n = {', '.join(counted)}" if counted else _NO_N
    if isinstance(row.get("abstentions"), int):
        counts += f", {row['abstentions']:,} abstentions"
    return Result(quantity, method, mean, low, high, counts)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)
