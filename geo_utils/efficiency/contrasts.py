"""Settings beside each other: asked one by one or in parallel, latency hidden or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from geo_utils.efficiency.measurements import Condition, Measurement


@dataclass(frozen=True)
class Contrast:
    """Two results of the same work.

    Attributes:
        result: The one.
        against: The other.
        ratio: Its step time over the other's.
        low: The same with its lower and the other's upper quartile.
        high: The same with its upper and the other's lower quartile.
    """

    result: Measurement
    against: Measurement
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Repeats of one condition.

    Attributes:
        result: One of them.
        steps_s: Median seconds a step of each.
        apart: Largest over smallest, less 1.
        covered: Sum of the phases over the mean step, by repeat.
    """

    result: Measurement
    steps_s: tuple[float, ...]
    apart: float
    covered: tuple[float, ...]


def contrast(result: Measurement, against: Measurement) -> Contrast:
    """Divide one result's step time by another's."""
    ours = result.step_s_spread or (result.seconds, result.seconds)
    theirs = against.step_s_spread or (against.seconds, against.seconds)
    return Contrast(
        result, against, result.seconds / against.seconds,
        ours[0] / theirs[1], ours[1] / theirs[0],
    )  # fmt: skip


def one_by_one(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide each result that asks one by one by the same that asks in parallel."""
    found = []
    for slow in results:
        if _waits(slow) and not slow.parallel:
            fast = _closest(slow, [r for r in results if r.parallel and _same(slow, r)])
            found += [contrast(slow, fast)] if fast else []
    return found


def against_no_latency(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide each result with a stated latency by the same with a reward that asks nothing.

    Where the latter has nothing to begin early, `fused` stands for `early`.
    """
    found = []
    for result in results:
        if _waits(result) and result.reward_latency_s:
            free = [r for r in results if r.reward == "negative_length" and _alike(result, r)]
            alike = [r for r in free if r.schedule == result.schedule]
            if not alike and result.schedule == "early":
                alike = [r for r in free if r.schedule == "fused"]
            base = _closest(result, alike)
            found += [contrast(result, base)] if base else []
    return found


def against_stock(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide each result of another schedule by the stock one with the same reward."""
    found = []
    for result in results:
        if result.measured and result.schedule != "stock":
            stock = [r for r in results if r.schedule == "stock" and _alike(result, r)]
            asked = (_reward(result), result.parallel)
            same = [r for r in stock if (_reward(r), r.parallel) == asked]
            base = _closest(result, same)
            found += [contrast(result, base)] if base else []
    return found


def ablation(results: Sequence[Measurement], settings: Iterable[str]) -> list[Contrast]:
    """Divide the results of an ablation by the first of them, work by work.

    Args:
        results: Put together by `pooling.pooled`.
        settings: In the order of the file: the first of a work is what the others change.
    """
    names = list(settings)
    measured = {(r.setting, r.work): r for r in results if r.measured and r.setting in names}
    found = []
    for work in dict.fromkeys(work for _, work in measured):
        here = [measured[name, work] for name in names if (name, work) in measured]
        found += [contrast(result, here[0]) for result in here]
    return found


def agreement(rows: Sequence[Measurement]) -> list[Agreement]:
    """Compare the repeats of each condition that was measured."""
    repeats: dict[Condition, list[Measurement]] = {}
    for row in rows:
        if row.measured:
            repeats.setdefault(row.condition, []).append(row)
    found = []
    for group in repeats.values():
        seconds = tuple(row.seconds for row in group)
        covered = tuple(
            sum((row.phases or {}).values()) / float(np.mean(row.step_s_all or (row.seconds,)))
            for row in group
        )
        found.append(Agreement(group[0], seconds, max(seconds) / min(seconds) - 1, covered))
    return found


def _waits(result: Measurement) -> bool:
    return result.measured and result.reward == "gemini" and not result.unasked


def _alike(one: Measurement, other: Measurement) -> bool:
    """Return whether two results do the same work by the same recipe in the same place."""
    alike = ("work", "policy", "recipe", "shared")
    return (
        other.measured
        and not other.unasked
        and all(getattr(one, name) == getattr(other, name) for name in alike)
    )


def _same(one: Measurement, other: Measurement) -> bool:
    return _alike(one, other) and _reward(one) == _reward(other) and one.schedule == other.schedule


def _reward(row: Measurement) -> tuple[str, float | None]:
    return row.reward, row.reward_latency_s if row.reward == "gemini" else None


def _closest(result: Measurement, others: Sequence[Measurement]) -> Measurement | None:
    """Return the partner: of the same group where there is one, and the fastest of several."""
    near = [r for r in others if r.group == result.group] or list(others)
    return min(near, key=lambda r: r.seconds, default=None)
