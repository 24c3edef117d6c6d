"""Runs as their manifests tell them: which there are, how they ended, what they were asked."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from geo_utils.files import resolve_path
from geo_utils.roles.methods import PREVIOUS, is_policy, is_pooled, label
from geo_utils.runs import Run, Status, process_mark
from geo_utils.statistics import cluster_mean, with_interval
from geo_utils.text import singular

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
_MOST_NUMBERS = 5  # of a run in one sentence
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

    def trial(self, least_queries: int) -> str:
        """Say why the run only tries things out; empty where its numbers are to be shown.

        A variant named `smoke...`, a limited corpus, a policy or engine of random weights or a
        service that was simulated, fewer queries than asked for. Step times are as true with
        random weights.
        """
        methods = self.headline.get("methods")
        given = methods.values() if isinstance(methods, dict) else ()
        rows = [row for row in given if isinstance(row, dict)]
        queries = [row["n_examples"] for row in rows if isinstance(row.get("n_examples"), int)]
        limit = self.parameters.get("corpus.limit")
        if self.variant.startswith("smoke"):
            return "smoke"
        if limit is not None:
            return f"corpus.limit={limit}"
        if rows and (warned := [w for w in _WARNINGS if w in self.provenance]):
            return ", ".join(warned)
        few = bool(queries) and max(queries) < least_queries
        return f"{max(queries)} queries" if few else ""

    @property
    def headline(self) -> dict[str, Any]:
        """The headline numbers; empty where there are none."""
        return dict(self.manifest.get("headline", {}))

    @property
    def provenance(self) -> str:
        """Where the figures come from."""
        return self.manifest.get("provenance") or "source not recorded"

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
    if names:
        wanted = named_records(names, known)
    else:
        asked = [record for record in known if record.status != "planned"]
        wanted = [record for record in asked if since is None or _day(record) >= since]
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
        signed = self.quantity.startswith("gain") or "lift over" in self.quantity
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


def conclusion(record: Record) -> str:
    """Say in a sentence what a run found, computed from its headline.

    Returns:
        Of a comparison of methods, whether the study's method beats the original page, or what
        training gained, where the headline holds that paired difference; then the key-point
        probabilities of the original page, the previous methods, the method or policy under study
        and the best of all. Of step times, the fastest and what it saves. Of anything else, its
        first numbers. Empty where an unfinished run has none.
    """
    found, head = results(record), record.headline
    rows = {r.method: r for r in found if r.quantity == PROBABILITY}
    if rows:
        verdict = _gained(record) or "Key point in the answer"
        return f"{verdict}: {_numbers(_telling(rows))}."
    fastest = head.get("fastest")
    if isinstance(fastest, dict) and isinstance(fastest.get("setting"), str):
        return _fastest(fastest)
    told = [r for r in found if r.counts != _NO_N][:_MOST_NUMBERS]
    if told:
        return f"{_numbers(told)}."
    return "No headline recorded." if record.status == "finished" else ""


def _telling(rows: dict[str, Result]) -> list[Result]:
    """Return the original, the previous methods as one, what is under study, and the best."""
    previous = [m for m in rows if is_pooled(m)] or [m for m in rows if m in PREVIOUS]
    names = ["original", *previous[:1], "policy/before", "policy/after"]
    names += [m for m in rows if m == "key_point" or (is_policy(m) and m not in names)]
    scored = [m for m in rows if rows[m].mean is not None]
    names += sorted(scored, key=lambda m: rows[m].mean or 0.0)[-1:]
    return [rows[name] for name in dict.fromkeys(names) if name in rows]


def _gained(record: Record) -> str:
    """Say whether a paired difference of a comparison is clear; empty where there is none."""
    lifts, gain = record.headline.get("lift over"), record.headline.get("gain")
    lift = lifts.get("original") if isinstance(lifts, dict) else None
    row = gain if isinstance(gain, dict) else lift
    if not isinstance(row, dict):
        return ""
    shown = _result("gain", row, ("mean", "low", "high"))
    if shown.mean is None:
        return ""
    p, ends = _number(row.get("p")), (shown.low or 0.0) * (shown.high or 0.0)
    clear, more = p < 0.05 if p is not None else ends > 0, shown.mean > 0
    if row is gain:
        verb = f"clearly {'raised' if more else 'lowered'}" if clear else "did not clearly change"
        said = f"Training {verb} the key-point probability on held-out queries"
        worth = record.headline.get("verdict")
        said = f"{worth}. {said}" if isinstance(worth, str) else said
    else:
        verb = ("clearly beats" if more else "is clearly worse than") if clear else ""
        method = label(str(record.parameters.get("method", "key_point")))
        said = f"The {method} {verb or 'does not clearly beat'} the original page"
    return f"{said}, {shown.text} paired"


def _fastest(found: Mapping[str, Any]) -> str:
    """Say which step with an engine is the fastest, and what its last change saves."""
    said = f"The fastest step with an engine is {found['setting']}"
    seconds, share = found.get("seconds"), found.get("share of the time")
    if isinstance(seconds, dict):
        took = _result("", seconds, ("mean", "low", "high"))
        work = f"{found['work']}, " if found.get("work") else ""
        said += f", {took.text} s, median [quartiles] ({work}{took.counts})"
    change, other = found.get("change"), found.get("instead of")
    row = share if isinstance(share, dict) else {}
    part, low, high = (_number(row.get(name)) for name in ("mean", "low", "high"))
    if part is not None and isinstance(change, str) and isinstance(other, str):
        verb = f"saves {1 - part:.0%} of" if part <= 1 else f"adds {part - 1:.0%} to"
        if low is not None and high is not None and low <= 1 <= high:
            verb = "does not clearly change"
        said += f"; {change[:1].lower()}{change[1:]}, {verb} the time of {other}"
    return f"{said}."


def _numbers(shown: Iterable[Result]) -> str:
    """Write results one after the other, those of the same counts together."""
    groups: dict[str, list[str]] = {}
    for r in shown:
        name = label(r.method) if r.method else r.quantity
        groups.setdefault(r.counts, []).append(f"{name} {r.text}")
    return "; ".join(
        ", ".join(named) + (f" ({counts}{' each' * (len(named) > 1)})" if counts else "")
        for counts, named in groups.items()
    )


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
    return Result(quantity, method, mean, low, high, singular(counts))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def paired_differences(one: Record, other: Record) -> pd.DataFrame:
    """Compare the key-point probabilities of two runs on the key points that both have.

    Returns:
        Indexed by method of both: the mean over key points of the share of answers that carry it,
        `other` minus `one`, as `mean` with `low` and `high`, its 95 % interval over queries;
        `n_queries`, `n_points`, and `lost`: key points without a score in either. Empty where a
        run has no samples, or not of the same corpus.
    """
    columns = ["method", "query_id", "key_point"]
    corpora = [(record.manifest.get("inputs") or {}).get("corpus") for record in (one, other)]
    shares, rows = [], {}
    for record in (one, other):
        try:
            path = record.folder / "samples.parquet"
            samples = pd.read_parquet(path, columns=[*columns, "supported"])
            scores = samples["supported"].astype(float)
        except (OSError, ValueError, TypeError, KeyError):  # none, torn, or of another shape
            return pd.DataFrame()
        shares.append(scores.groupby([samples[name] for name in columns], sort=False).mean())
    both = pd.concat(shares, axis=1, join="inner", keys=["one", "other"])
    changes = both["other"] - both["one"]
    for method, change in changes.groupby("method", sort=False) if corpora[0] == corpora[1] else ():
        queries = change.index.get_level_values("query_id").tolist()
        found = cluster_mean(change.to_numpy(float), queries)
        rows[method] = {
            "mean": found.mean, "low": found.low, "high": found.high,
            "n_queries": found.n_clusters, "n_points": found.n_samples,
            "lost": len(change) - found.n_samples,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
