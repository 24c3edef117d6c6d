"""When the calls of a batch were under way."""

from __future__ import annotations

import itertools
from collections import defaultdict
from statistics import fmean

Clock = defaultdict[str, list[tuple[float, float]]]  # begin and end of each call, by role


def walls(clock: Clock, started: float) -> dict[str, float]:
    """Return the mean seconds of a call by role, and how the batch's wall time divides.

    `engine_wall` is the time in which an engine call was under way, `judge_wall` that in which
    only judge calls were; calls that began before the batch count from its start.
    """
    found = {f"{role}_seconds": fmean(e - b for b, e in calls) for role, calls in clock.items()}
    edges = sorted(
        {started, *(max(t, started) for calls in clock.values() for c in calls for t in c)}
    )
    walls = {"engine": 0.0, "judge": 0.0}
    for begin, end in itertools.pairwise(edges):
        middle = (begin + end) / 2
        for role in walls:
            if any(b <= middle <= e for b, e in clock.get(role, ())):
                walls[role] += end - begin
                break
    return found | {f"{role}_wall": seconds for role, seconds in walls.items()}
