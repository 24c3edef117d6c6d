"""How many experiments fit side by side, and which setting to choose for one and for many."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.efficiency.bounds import bounds, predicted_step
from geo_utils.efficiency.params import CapacityOptions, Setting
from geo_utils.efficiency.rows import (
    SAME,
    SLIDE_ROWS,
    each,
    laid_out,
    named,
    numbers,
    of_work,
    source,
)
from geo_utils.show.tables import DASH

_LATENCIES = [s / 4 for s in range(81)]


class Plan(NamedTuple):
    """What one setting can do with the GPUs and the limits that there are.

    Attributes:
        setting: Its name.
        gpus: GPUs of one experiment.
        step_s: Seconds per step of one experiment that has everything to itself; longer than
            measured where the API's limit is below what it asks for.
        step_gpu_s: GPU-seconds per step that no limit slows down.
        at_once: Experiments at a time that do not slow each other down; 0 where one does not fit.
            One that the API's limit slows down even alone is 1.
        binds: What keeps it from more: `GPUs`, `requests`, `tokens`, or the `memory` of one GPU.
        slowed: Whether one experiment alone is slowed down by the API's limit.
        hours: Of one experiment.
        per_day: Experiments a day, with as many side by side as the GPUs hold; where the API's
            limit slows them down, what it lets through.
        sweep_hours: Of the sweep, with as many side by side as finish it soonest.
        gpu_hours: Of one experiment.
        cost: US dollars of one experiment's API calls; 0 without an API, NaN if not known.
        affordable: Whether the budget covers the sweep: `yes`, `no`, or `not known`.
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
    cost: float
    affordable: str


def rewarded(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out rows whose reward asks no engine: they are for comparison, not to be chosen."""
    return rows[rows["measured"] & ~rows["unasked"] & rows["reward"].ne("negative_length")]


def planned_work(results: pd.DataFrame) -> pd.DataFrame:
    """Return what a plan compares: settings with an engine, of the work most were measured at.

    A setting that was measured at several latencies stands with its longest.
    """
    rows = of_work(rewarded(results))
    latency = rows["reward_latency_s"].fillna(0.0)
    return rows.loc[latency.groupby(rows["setting"], sort=False).idxmax()]


def asked_per_minute(row: Any, step_s: float) -> dict[str, float]:
    """Return the requests and tokens that one experiment asks of a service in a minute.

    They are those that the row's measurement really sent; empty for a setting that asks no service
    whose limits all experiments share, or whose row does not know what it sent.

    Args:
        row: A row of `rows.table_of`.
        step_s: Seconds per step.
    """
    sent = {"requests": row.calls_per_1000, "tokens": row.tokens_per_1000}
    rate = row.completions * 60 / step_s
    asks = row.reward == "gemini"
    return {name: rate * count / 1000 for name, count in sent.items() if asks and count > 0}


def _limits(options: CapacityOptions) -> dict[str, float]:
    given = {"requests": options.requests_per_minute, "tokens": options.tokens_per_minute}
    return {name: limit for name, limit in given.items() if limit}


def _knows_its_calls(row: Any, options: CapacityOptions) -> bool:
    """Return whether a row can be held against the API's limits; earlier harnesses' cannot."""
    return row.reward != "gemini" or _limits(options).keys() <= asked_per_minute(row, 1).keys()


def plan(
    rows: pd.DataFrame, options: CapacityOptions, latency_s: float | None = None
) -> pd.DataFrame:
    """Work out what each setting that has an engine, and whose calls are known, can do.

    The API's limits are shared by all experiments; the GPUs are the user's. An experiment asks
    for requests and tokens at the rate of its steps, so that a slower step leaves room for more.

    Args:
        rows: Measured with the same work, one per setting.
        options: GPUs, limits, budget, and what an experiment is.
        latency_s: Plan for this latency of the reward, with a predicted step, instead of the
            measured one.

    Returns:
        A row for each setting, the fields of `Plan` its columns.
    """
    known = [row for row in each(rewarded(rows)) if _knows_its_calls(row, options)]
    return pd.DataFrame([_plan(row, options, latency_s) for row in known], columns=Plan._fields)


def _plan(row: Any, options: CapacityOptions, latency_s: float | None) -> Plan:
    step_s: float = row.step_s if latency_s is None else predicted_step(row, latency_s)
    gpus, hours = max(row.gpus, 1), options.steps * step_s / 3600
    asked = asked_per_minute(row, step_s)
    calls = {name: limit / asked[name] for name, limit in _limits(options).items() if name in asked}
    api = min(calls.values(), default=math.inf)
    room = {"GPUs": options.gpus / gpus} | calls
    binds = min(room, key=lambda name: _whole(room[name]))
    held = _whole(room["GPUs"])
    if row.needed_gib > options.gpu_memory_gib:
        held, binds = 0, "memory"
    # Any number side by side is tried; more than the API carries slow each other.
    rounds = [
        math.ceil(options.experiments / k) * hours * max(1.0, k / api) for k in range(1, held + 1)
    ]
    price = options.price_per_1000_rollouts
    price = row.cost_per_1000 if price is None else price
    cost = price * row.completions * options.steps / 1000 if row.reward == "gemini" else 0.0
    affordable = "yes"
    if options.budget is not None and math.isnan(cost):
        affordable = "not known"
    elif options.budget is not None and cost * options.experiments > options.budget:
        affordable = "no"
    return Plan(
        setting=row.setting,
        gpus=gpus,
        step_s=step_s / min(api, 1.0),
        step_gpu_s=step_s * gpus,
        at_once=min(held, max(_whole(api), 1)),
        binds=binds,
        slowed=api < 1,
        hours=hours / min(api, 1.0),
        per_day=min(held, api) * 24 / hours,
        sweep_hours=min(rounds, default=math.inf),
        gpu_hours=hours / min(api, 1.0) * gpus,
        cost=cost,
        affordable=affordable,
    )


def _whole(share: float) -> int:
    if math.isinf(share):
        return sys.maxsize
    return math.floor(share + 1e-9)  # a quotient that is just short of a whole number


def urgent(plans: pd.DataFrame) -> Any:
    """Return the plan that finishes one experiment first, as a named tuple; None if none fits.

    Of those that no measurement tells apart, it is the one that needs the GPUs least.
    """
    return _best(plans, "hours")


def sweep(plans: pd.DataFrame) -> Any:
    """Return the plan that finishes the sweep first and within the budget; as `urgent`."""
    return _best(plans[plans["affordable"] != "no"], "sweep_hours")


def _best(plans: pd.DataFrame, hours: str) -> Any:
    fitting = plans[plans["at_once"] > 0]
    near = fitting[fitting[hours] <= SAME * fitting[hours].min()]
    return next(each(near.sort_values(["step_gpu_s", hours], kind="stable")), None)


def changes(
    rows: pd.DataFrame, options: CapacityOptions, hours: str, latencies: Iterable[float] = ()
) -> list[tuple[float, str]]:
    """Return from which latency of the reward on which setting is predicted to win.

    Rows without a stated latency keep their measured step: their engine is not what changes. A
    winner stays one until it is beaten by more than what repeats differ by.

    Args:
        rows: As of `plan`.
        options: Likewise.
        hours: `hours` for one experiment, `sweep_hours` for the sweep.
        latencies: Seconds of engine and judge; by default 0 to 20.
    """
    found: list[tuple[float, str]] = []
    winner = None
    for at in latencies or _LATENCIES:
        plans = plan(rows, options, at)
        best = (urgent if hours == "hours" else sweep)(plans)
        if winner is not None and best is not None:
            now = next(each(plans[plans["setting"] == winner.setting]))
            near = getattr(now, hours) / getattr(best, hours) <= SAME
            best = now if near and now.at_once and now.affordable != "no" else best
        winner = best
        if winner is not None and (not found or found[-1][1] != winner.setting):
            found.append((at, winner.setting))
    return found


def plan_table(plans: pd.DataFrame, results: pd.DataFrame, options: CapacityOptions) -> Styler:
    """Show how many experiments fit side by side in each setting, and what that is worth."""
    best = sweep(plans)
    order = plans.assign(
        other=best is None or plans.index != best.Index, near=plans["sweep_hours"].round(1)
    ).sort_values(["other", "near", "step_gpu_s"], kind="stable")
    shown = plans.loc[order.index[:SLIDE_ROWS]]
    slowed = shown["slowed"].map({True: " (slows even one)", False: ""})
    table = pd.DataFrame(
        {
            "setting": shown["setting"].map(named),
            "GPUs each": shown["gpus"],
            "at once": shown["at_once"],
            "limited by": shown["binds"] + slowed,
            "hours each": numbers(shown["hours"], "{:.1f}"),
            "experiments a day": numbers(shown["per_day"], "{:.1f}"),
            f"hours for {options.experiments}": numbers(shown["sweep_hours"], "{:.1f}").where(
                shown["at_once"] > 0, DASH
            ),
            "GPU-hours each": numbers(shown["gpu_hours"], "{:.1f}"),
            "US dollars each": numbers(shown["cost"]).replace(DASH, "not known"),
            "in budget": shown["affordable"],
        }
    )
    cut = f" The best {SLIDE_ROWS} of {len(plans)}." if len(plans) > SLIDE_ROWS else ""
    caption = (
        "At once: without slowing each other down. A day, and for the sweep: with as many side by "
        f"side as finish soonest. Computed for {_basis(results, options)}.{cut}"
    )
    return laid_out(table, caption, [] if best is None else [best.Index])


def plan_findings(plans: pd.DataFrame, results: pd.DataFrame, options: CapacityOptions) -> str:
    """Say in Markdown which setting to choose for one experiment and for the sweep."""
    one, many = urgent(plans), sweep(plans)
    lines = []
    if one is not None:
        lines.append(
            f"- **One urgent experiment**: {named(one.setting)}, {one.hours:.1f} h on "
            f"{one.gpus} GPU{'s' * (one.gpus != 1)}."
        )
    if many is not None:
        cost = f"US$ {many.cost:.2f} of API calls each" if many.cost else "no API cost"
        cost = "API cost not known" if math.isnan(many.cost) else cost
        lines.append(
            f"- **A sweep of {options.experiments}**: {named(many.setting)}, {many.at_once} at "
            f"once (limited by {many.binds}), {many.sweep_hours:.1f} h, "
            f"{many.per_day:.1f} experiments a day, {cost}."
        )
    elif len(plans):
        lines.append(f"- **A sweep of {options.experiments}**: no setting fits GPUs and budget.")
    for hours, name in (("hours", "one experiment"), ("sweep_hours", "the sweep")):
        moved = [f"{named(best)} from {at:g} s" for at, best in changes(results, options, hours)]
        if moved:
            lines.append(
                f"- Over latencies of 0 to 20 s (predicted), for {name}: {', '.join(moved)}."
            )
    body = lines or ["No setting with an engine was measured: there is nothing to plan."]
    return "\n".join([*body, "", f"For {_basis(results, options)}."])


def count_findings(
    results: pd.DataFrame, planned: Mapping[str, Setting], options: CapacityOptions
) -> str:
    """Say in Markdown how many experiments run at once, and the limits behind the study's counts.

    The study ran eight experiments of three GPUs on 24, and two under the API's limit.
    """
    lines = []
    for wanted in sorted({s.gpus_wanted for s in planned.values()}):
        fit = options.gpus // wanted
        lines.append(
            f"- {fit} experiments of {wanted} GPU{'s' * (wanted != 1)} fit on "
            f"{options.gpus} GPUs: {options.gpus} / {wanted}."
        )
    served = results[results["measured"] & results["policy"].eq("server") & results["parallel"]]
    for row in each(served):
        asked = asked_per_minute(row, row.step_s)
        told = [f"{2 * rate:,.0f} to {3 * rate:,.0f} {name}" for name, rate in asked.items()]
        if told:
            lines.append(
                f"- Two of {row.label} ({row.amount}, {row.took} s per step) run at once, and a "
                f"third would slow them down, where the API allows {' or '.join(told)} a minute."
            )
    asking = each(rewarded(results))
    unknown = sorted({row.label for row in asking if not _knows_its_calls(row, options)})
    if unknown:
        lines.append(
            f"- Not planned, as their rows do not say what they sent: {', '.join(unknown)}."
        )
    return "\n".join([*lines, "", f"Source: {source(results)}."])


def _basis(results: pd.DataFrame, options: CapacityOptions) -> str:
    """Say what a plan rests on."""
    work = next(iter(results.loc[results["measured"], "amount"]), "no measured work")
    limits = [f"{limit:,.0f} {name} a minute" for name, limit in _limits(options).items()]
    sent = results[results["reward"].eq("gemini") & results["calls_per_1000"].gt(0)]
    known = sorted(
        {
            f"{row.calls_per_1000 / 1000:.3g} calls and {row.tokens_per_1000 / 1000:,.0f} tokens"
            for row in each(sent[sent["tokens_per_1000"] > 0])
        }
    )
    asks = f"{' or '.join(known[:2]) or 'calls and tokens not recorded'} per rollout"
    return (
        f"{options.gpus} GPUs of {options.gpu_memory_gib:g} GiB, "
        f"{' and '.join(limits) or 'no API limit'} for all experiments together ({asks}), "
        f"{options.steps} steps an experiment of {work}; no preemption and no start-up counted; "
        f"steps {source(results)}"
    )


def efficiency_headline(
    results: pd.DataFrame, plans: pd.DataFrame, missing: pd.DataFrame
) -> dict[str, Any]:
    """Return the numbers that the manifest records; `missing` as by `rows.unmeasured`."""
    one, many = urgent(plans), sweep(plans)
    measured = results[results["measured"]]
    ratios = bounds(measured)["ratio"]
    return {
        "seconds per step, median [quartiles]": {
            f"{row.label}, {row.amount}": {
                "mean": row.step_s,
                "low": row.low,
                "high": row.high,
                "n_steps": row.steps,
                "hardware": row.hardware,
                "simulated": row.simulated,
                "bound_ratio": None if math.isnan(ratio) else ratio,
                "sitting": row.bench,
            }
            for row, ratio in zip(each(measured), ratios, strict=True)
        },
        "settings not measured": len(missing),
        "urgent": one and one.setting,
        "sweep": many and many.setting,
    }
