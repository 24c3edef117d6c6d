"""Headline numbers of runs, read back from their manifests, each with interval and n."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from geo_utils.meeting.records import Record
from geo_utils.tables import label, with_interval

PROBABILITY = "key-point probability"
_NO_N = "n not recorded"
_COUNTS = {
    "n_examples": "queries", "n_queries": "queries", "n_samples": "samples", "n_pairs": "pairs",
    "n_steps": "steps", "n": "",
}  # fmt: skip


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
        low, high = (float("nan") if end is None else end for end in (self.low, self.high))
        return with_interval(self.mean, low, high, signed=self.quantity == "gain")


def results(record: Record) -> list[Result]:
    """Return the headline numbers of a run in the manifest's order.

    Numbers by method stand under `methods`; any other mapping with a `mean` is an estimate, any
    other number stands for itself under its dotted name.
    """
    headline = dict(record.headline)
    methods = headline.pop("methods", None)
    rows = methods.items() if isinstance(methods, dict) else ()
    found = [
        _result(PROBABILITY, str(method), row, ("key_point_probability", "ci_low", "ci_high"))
        for method, row in rows
        if isinstance(row, dict)
    ]
    return found + list(_estimates(headline, ""))


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


def headline_phrase(record: Record, most: int = 4) -> str:
    """Return the most telling results of a run in one line.

    Args:
        record: The run.
        most: Numbers to name.
    """
    shown = telling_results(results(record))[:most]
    if not shown:
        return "no headline recorded" if record.status == "finished" else ""
    parts = []
    for i, result in enumerate(shown):
        name = label(result.method) if result.method else result.quantity
        last = i + 1 == len(shown) or shown[i + 1].counts != result.counts
        shared = " each" if i and shown[i - 1].counts == result.counts else ""
        parts.append(
            f"{name} {result.text}"
            + (f" ({result.counts}{shared})" if last and result.counts else "")
        )
    return "; ".join(parts)


def _estimates(values: Mapping[str, Any], prefix: str) -> list[Result]:
    found = []
    for name, value in values.items():
        place = f"{prefix}{name}"
        if isinstance(value, dict):
            if "mean" in value:
                found.append(_result(place, "", value, ("mean", "low", "high")))
            else:
                found += _estimates(value, f"{place}.")
        elif f"{name}_low" in values:  # an estimate, its ends and its n beside it
            ends = (name, f"{name}_low", f"{name}_high")
            found.append(_result(place, "", values, ends))
        elif name in _COUNTS or name.endswith(("_low", "_high")):
            continue  # of an estimate
        elif _number(value) is not None:
            counts = "" if isinstance(value, int) else _NO_N  # a count is its own n
            found.append(Result(place, "", _number(value), None, None, counts))
    return found


def _result(
    quantity: str, method: str, row: Mapping[str, Any], names: tuple[str, str, str]
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
