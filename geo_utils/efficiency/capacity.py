"""How many experiments fit side by side, and which setting to choose for one and for many."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from geo_utils.efficiency.bounds import predicted_step
from geo_utils.efficiency.measurements import Measurement
from geo_utils.efficiency.params import CapacityOptions
from geo_utils.efficiency.pooling import of_work, works
from geo_utils.efficiency.sittings import SAME


@dataclass(frozen=True)
class Plan:
    """What one setting can do with the GPUs and the limits that there are.

    Attributes:
        setting: Its name.
        gpus: GPUs of one experiment.
        step_s: Seconds a step of one experiment that has everything to itself; longer than
            measured where the API's limit is below what it asks for.
        step_gpu_s: GPU-seconds of a step that no limit slows down.
        at_once: Experiments at a time that do not slow each other down; 0 where one does not fit.
            One that the API's limit slows down even alone is 1.
        binds: What keeps it from more: `GPUs`, `requests`, `tokens`, or the `memory` of one GPU.
        slowed: Whether one experiment alone is slowed down by the API's limit.
        hours: Of one experiment.
        per_day: Experiments a day, with as many side by side as the GPUs hold; where the API's
            limit slows them down, what it lets through.
        sweep_hours: Of the sweep, with as many side by side as finish it soonest.
        gpu_hours: Of one experiment.
        cost: US dollars of one experiment's API calls; 0 without an API, None if not known.
        affordable: Whether the budget covers the sweep; None if the cost is not known.
    """

    setting: str
    gpus: int
    step_s: float
    step_gpu_s: float
    at_once: int
    binds: str
    slowed: bool
    hours: float
    per_day: float
    sweep_hours: float
    gpu_hours: float
    cost: float | None
    affordable: bool | None


def plan_setting(
    row: Measurement, options: CapacityOptions, latency_s: float | None = None
) -> Plan:
    """Work out what one setting can do.

    The API's limits are shared by all experiments; the GPUs are the user's. An experiment asks
    for requests and tokens at the rate of its steps, so that a slower step leaves room for more.

    Args:
        row: A measured row.
        options: GPUs, limits, budget, and what an experiment is.
        latency_s: Plan for this latency of the reward, with a predicted step, instead of the
            measured one.
    """
    step_s = row.seconds if latency_s is None else predicted_step(row, latency_s)
    gpus = max(row.gpus, 1)
    room = {"GPUs": options.gpus / gpus}
    limits = {"requests": options.requests_per_minute, "tokens": options.tokens_per_minute}
    for name, asked in asked_per_minute(row, step_s).items():
        if limit := limits[name]:
            room[name] = limit / asked
    api = min((share for name, share in room.items() if name != "GPUs"), default=math.inf)
    binds = min(room, key=lambda name: _whole(room[name]))
    held, hours = _whole(room["GPUs"]), options.steps * step_s / 3600
    if row.needed_gib is not None and row.needed_gib > options.gpu_memory_gib:
        held, binds = 0, "memory"
    slowed = hours / min(api, 1.0)
    cost = _cost(row, options)
    return Plan(
        setting=row.setting, gpus=gpus, step_s=step_s / min(api, 1.0),
        step_gpu_s=step_s * gpus, at_once=min(held, max(_whole(api), 1)), binds=binds,
        slowed=api < 1, hours=slowed,
        per_day=min(held, api) * 24 / hours, sweep_hours=_sweep_hours(hours, held, api, options),
        gpu_hours=slowed * gpus, cost=cost, affordable=_affordable(cost, options),
    )  # fmt: skip


def asked_per_minute(row: Measurement, step_s: float) -> dict[str, float]:
    """Return the requests and tokens that one experiment asks of a service in a minute.

    They are those that the row's measurement really sent; empty for a setting that asks none.

    Args:
        row: A row that knows what it sent.
        step_s: Seconds per step.
    """
    if not uses_api(row):
        return {}
    sent = {"requests": row.calls_per_1000, "tokens": row.tokens_per_1000}
    rate = (row.completions or 1) * 60 / step_s
    return {name: rate * each / 1000 for name, each in sent.items() if each}


def limits_for(row: Measurement, count: int) -> dict[str, tuple[float, float]]:
    """Return the limits per minute under which so many experiments run and one more would not.

    Args:
        row: A row that asks a service, and knows what it sent.
        count: Experiments side by side.

    Returns:
        `requests` and `tokens`, each from the first limit that carries `count` of them to the
        first that carries one more.
    """
    asked = asked_per_minute(row, row.seconds)
    return {name: (count * each, (count + 1) * each) for name, each in asked.items()}


def knows_its_calls(row: Measurement, options: CapacityOptions) -> bool:
    """Return whether a row can be held against the API's limits; rows of an earlier harness cannot.

    Args:
        row: A measured row.
        options: The limits.
    """
    limits = {"requests": options.requests_per_minute, "tokens": options.tokens_per_minute}
    needed = {name for name, limit in limits.items() if limit}
    return not uses_api(row) or needed <= set(asked_per_minute(row, row.seconds))


def uses_api(row: Measurement) -> bool:
    """Return whether a setting asks a service whose limits all experiments share."""
    return row.reward == "gemini"


def rewarded(rows: Sequence[Measurement]) -> list[Measurement]:
    """Leave out rows whose reward asks no engine: they are for comparison, not to be chosen."""
    asking = [row for row in rows if row.measured and row.reward != "negative_length"]
    return [row for row in asking if not row.unasked]


def planned_work(results: Sequence[Measurement]) -> list[Measurement]:
    """Return what a plan compares: settings with an engine, of the work most were measured at.

    A setting that was measured at several latencies stands with its longest.
    """
    main = next(iter(works(rewarded(results), 1)), None)
    rows: dict[str, Measurement] = {}
    for row in rewarded(of_work(results, main)):
        before = rows.get(row.setting)
        if before is None or (row.reward_latency_s or 0) > (before.reward_latency_s or 0):
            rows[row.setting] = row
    return list(rows.values())


def plan(
    rows: Sequence[Measurement], options: CapacityOptions, latency_s: float | None = None
) -> list[Plan]:
    """Plan every measured setting that has an engine, and whose calls are known.

    Args:
        rows: Measured with the same work, one a setting.
        options: What there is.
        latency_s: As of `plan_setting`.
    """
    known = [row for row in rewarded(rows) if knows_its_calls(row, options)]
    return [plan_setting(row, options, latency_s) for row in known]


def urgent(plans: Sequence[Plan]) -> Plan | None:
    """Return the plan that finishes one experiment first; None if none fits.

    Of those that no measurement tells apart, it is the one that needs the GPUs least.
    """
    return _best(_fitting(plans), "hours")


def sweep(plans: Sequence[Plan]) -> Plan | None:
    """Return the plan that finishes the sweep first and within the budget; as `urgent`."""
    return _best([p for p in _fitting(plans) if p.affordable is not False], "sweep_hours")


def over_latency(
    rows: Sequence[Measurement], options: CapacityOptions, latencies: Sequence[float]
) -> pd.DataFrame:
    """Predict hours of one experiment and of the sweep at other latencies of the reward.

    Rows without a stated latency keep their measured step: their engine is not what changes.

    Returns:
        A row a latency and setting: `at`, `setting`, `hours`, `sweep_hours`, `urgent` and
        `sweep`, whether it wins. A winner stays one until it is beaten by more than `SAME`.
    """
    return _frame({at: plan(rows, options, at) for at in latencies})


def over_limits(
    rows: Sequence[Measurement], options: CapacityOptions, factors: Sequence[float]
) -> pd.DataFrame:
    """Plan with the API's limits multiplied by some factors; as `over_latency`."""
    plans = {}
    for factor in factors:
        limits = {
            name: None if limit is None else limit * factor
            for name, limit in (
                ("requests_per_minute", options.requests_per_minute),
                ("tokens_per_minute", options.tokens_per_minute),
            )
        }
        plans[factor] = plan(rows, options.model_copy(update=limits))
    return _frame(plans)


def changes(frame: pd.DataFrame, goal: str) -> list[tuple[float, str]]:
    """Return from where on which setting wins.

    Args:
        frame: Of `over_latency` or `over_limits`.
        goal: `urgent` or `sweep`.
    """
    found: list[tuple[float, str]] = []
    for at, setting in frame.loc[frame[goal], ["at", "setting"]].itertuples(index=False):
        if not found or found[-1][1] != setting:
            found.append((float(at), str(setting)))
    return found


def _frame(plans: dict[float, list[Plan]]) -> pd.DataFrame:
    rows = []
    first: Plan | None = None
    most: Plan | None = None
    for at, each in plans.items():
        first = _stays(first, urgent(each), each, "hours")
        most = _stays(most, sweep(each), each, "sweep_hours")
        rows += [
            {"at": at, "setting": p.setting, "hours": p.hours, "sweep_hours": p.sweep_hours,
             "urgent": p is first, "sweep": p is most} for p in each
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["at", "setting", "hours", "sweep_hours", "urgent", "sweep"])


def _stays(
    before: Plan | None, best: Plan | None, plans: Sequence[Plan], hours: str
) -> Plan | None:
    """Return the winner so far where nothing beats it by more than what repeats differ by."""
    if before is None or best is None:
        return best
    now = next(p for p in plans if p.setting == before.setting)
    near: float = getattr(now, hours) / getattr(best, hours)
    return now if near <= SAME and now.at_once and now.affordable is not False else best


def _best(plans: Sequence[Plan], hours: str) -> Plan | None:
    least = min((getattr(p, hours) for p in plans), default=0.0)
    near = [p for p in plans if getattr(p, hours) <= SAME * least]
    return min(near, key=lambda p: (p.step_gpu_s, getattr(p, hours)), default=None)


def _fitting(plans: Sequence[Plan]) -> list[Plan]:
    return [p for p in plans if p.at_once > 0]


def _sweep_hours(hours: float, held: int, api: float, options: CapacityOptions) -> float:
    """Try every number of experiments side by side; more than the API carries slow each other."""
    rounds = (
        math.ceil(options.experiments / k) * hours * max(1.0, k / api) for k in range(1, held + 1)
    )
    return min(rounds, default=math.inf)


def _whole(share: float) -> int:
    if math.isinf(share):
        return sys.maxsize
    return math.floor(share + 1e-9)  # a quotient that is just short of a whole number


def _cost(row: Measurement, options: CapacityOptions) -> float | None:
    if not uses_api(row):
        return 0.0
    price = options.price_per_1000_rollouts
    price = row.cost_per_1000 if price is None else price
    return None if price is None else price * (row.completions or 0) * options.steps / 1000


def _affordable(cost: float | None, options: CapacityOptions) -> bool | None:
    if options.budget is None:
        return True
    return None if cost is None else cost * options.experiments <= options.budget
