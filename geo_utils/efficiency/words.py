"""What the measured steps say, in words computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from geo_utils.efficiency.bounds import bounds
from geo_utils.efficiency.capacity import Plan, changes, over_latency, rewarded, sweep, urgent
from geo_utils.efficiency.contrasts import Contrast, against_no_latency, against_stock, one_by_one
from geo_utils.efficiency.measurements import PHASES, Measurement
from geo_utils.efficiency.params import CapacityOptions
from geo_utils.efficiency.pooling import of_work, works
from geo_utils.efficiency.text import (
    capital,
    count,
    named,
    plan_basis,
    seconds,
    source,
    work_name,
)


def step_findings(results: Sequence[Measurement]) -> str:
    """Say in Markdown which setting is fastest and cheapest, and where its seconds go."""
    lines = []
    for work in works(results):
        rows = of_work(results, work)
        lines += [f"**{work_name(rows[0])}, {rows[0].device}** ({len(rows)} settings)", ""]
        lines += _fastest(rows) + _cheapest(rows) + _spent(rows) + _bound_range(rows) + [""]
    lines += [
        f"**{capital(r.setting)} hardly asked its engine**: "
        f"{(r.engine_s or 0.0) + (r.judge_s or 0.0):.2f} s a step of a stated "
        f"{r.reward_latency_s:g} s; its step says nothing about one that waits.\n"
        for r in results
        if r.unasked
    ]
    lost = [r for r in results if not r.measured]
    if lost:
        reasons = sorted({f"{named(r.setting)} ({r.status})" for r in lost})
        lines += [f"Without a figure: {', '.join(reasons)}.", ""]
    if not works(results):
        lines.insert(0, "Nothing was measured.\n")
    return "\n".join([*lines, f"Seconds are medians over steps [quartiles]. {_source(results)}"])


def latency_findings(results: Sequence[Measurement]) -> str:
    """Say in Markdown what asking in parallel gained, and what latency is left to pay for."""
    lines = []
    for c in one_by_one(results):
        calls = c.result.completions or 0
        lines.append(
            f"- Asked one by one instead of in parallel, {calls} completions make a step "
            f"**{_ratio(c)} times** as long ({named(c.result.setting)} {seconds(c.result)} s, "
            f"{named(c.against.setting)} {seconds(c.against)} s; {_latency(c)}; n = {_counts(c)})."
        )
    for c in _best_of_each(against_no_latency(results)):
        how = "on policy" if c.result.on_policy else "one step off policy"
        lines.append(
            f"- {capital(c.result.setting)} ({how}, {_latency(c)}, {work_name(c.result)}): "
            f"**{_ratio(c)} times** the step without an engine ({seconds(c.result)} s, "
            f"{named(c.against.setting)} {seconds(c.against)} s; n = {_counts(c)})."
        )
    return _ratios(lines, results)


def schedule_findings(results: Sequence[Measurement]) -> str:
    """Say in Markdown what the other schedules gain, by the best setting of each."""
    lines = []
    for c in _best_of_each(against_stock(results)):
        saved = c.against.seconds - c.result.seconds
        lines.append(
            f"- Schedule `{c.result.schedule}` {'saves' if saved >= 0 else 'costs'} "
            f"{abs(saved):.2f} s a step beside `stock` ({work_name(c.result)}: "
            f"{named(c.result.setting)} {seconds(c.result)} s, {named(c.against.setting)} "
            f"{seconds(c.against)} s; ratio {_ratio(c)}; n = {_counts(c)})."
        )
    return _ratios(lines, results)


def _ratios(lines: Sequence[str], results: Sequence[Measurement]) -> str:
    body = lines or ["No two settings were measured that differ in this alone."]
    note = f"Ratios of medians [from the quartiles of both]. {_source(results)}"
    return "\n".join([*body, "", note])


def plan_findings(
    plans: Sequence[Plan], results: Sequence[Measurement], options: CapacityOptions
) -> str:
    """Say in Markdown which setting to choose for one experiment and for the sweep."""
    one, many = urgent(plans), sweep(plans)
    lines = []
    if one is not None:
        lines.append(
            f"- **One urgent experiment**: {named(one.setting)}, {one.hours:.1f} h on "
            f"{one.gpus} GPU{'s' * (one.gpus != 1)}."
        )
    if many is not None:
        lines.append(
            f"- **A sweep of {options.experiments}**: {named(many.setting)}, {many.at_once} at "
            f"once (limited by {many.binds}), {many.sweep_hours:.1f} h, "
            f"{many.per_day:.1f} experiments a day, {_cost(many)}."
        )
    elif plans:
        lines.append(f"- **A sweep of {options.experiments}**: no setting fits GPUs and budget.")
    frame = over_latency(rewarded(results), options, [s / 4 for s in range(81)])
    for goal, name in (("urgent", "one experiment"), ("sweep", "the sweep")):
        moved = changes(frame, goal)
        if moved:
            parts = [f"{named(setting)} from {at:g} s" for at, setting in moved]
            lines.append(
                f"- Over latencies of 0 to 20 s (predicted), for {name}: {', '.join(parts)}."
            )
    body = lines or ["No setting with an engine was measured: there is nothing to plan."]
    return "\n".join([*body, "", f"For {plan_basis(results, options)}."])


def efficiency_headline(
    results: Sequence[Measurement], plans: Sequence[Plan], missing: Sequence[Measurement]
) -> dict[str, Any]:
    """Return the numbers that the manifest records; `missing` as by `pooling.unmeasured`."""
    one, many = urgent(plans), sweep(plans)
    return {
        "seconds a step, median [quartiles]": {
            f"{named(r.setting)}, {work_name(r)}": {
                "mean": r.step_s, "low": (r.step_s_spread or [None, None])[0],
                "high": (r.step_s_spread or [None, None])[1], "n_steps": r.steps,
                "hardware": r.hardware, "simulated": r.simulated,
                "bound_ratio": _finite(bounds(r).ratio),
            }
            for r in results
            if r.measured
        },
        "settings not measured": len(missing),
        "urgent": one and one.setting,
        "sweep": many and many.setting,
    }  # fmt: skip


def _best_of_each(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Return the lowest ratio of each work and schedule."""
    best: dict[Any, Contrast] = {}
    for c in sorted(contrasts, key=lambda c: c.ratio):
        if c.result.parallel:
            best.setdefault((c.result.work, c.result.schedule), c)
    return sorted(best.values(), key=lambda c: contrasts.index(c))


def _fastest(rows: Sequence[Measurement]) -> list[str]:
    found = []
    for on_policy, how in ((True, "on policy"), (False, "one step off policy")):
        best = min((r for r in rows if r.on_policy is on_policy), key=_seconds, default=None)
        if best is not None:
            found.append(
                f"- Fastest {how}: **{named(best.setting)}**, {seconds(best)} s a step, measured / "
                f"bound {bounds(best).ratio:.2f} (n = {count(best)})."
            )
    return found


def _cheapest(rows: Sequence[Measurement]) -> list[str]:
    held = [r for r in rows if r.gpu_seconds_per_sample]
    if not held:
        return []
    best = min(held, key=lambda r: r.gpu_seconds_per_sample or 0.0)
    return [
        f"- Least of the GPUs: **{named(best.setting)}**, {best.gpu_seconds_per_sample:.2f} "
        f"GPU-seconds a sample on {best.gpus} GPU{'s' * (best.gpus != 1)} (n = {count(best)})."
    ]


def _spent(rows: Sequence[Measurement]) -> list[str]:
    best = min(rows, key=_seconds)
    phases = {name: (best.phases or {}).get(name, 0.0) for name in PHASES}
    whole = sum(phases.values())
    if not whole:
        return []
    parts = sorted(phases.items(), key=lambda item: -item[1])[:4]
    told = ", ".join(f"{name} {s:.2f} s ({s / whole:.0%})" for name, s in parts if s > 0)
    return [f"- A step of {named(best.setting)} goes into {told}."]


def _bound_range(rows: Sequence[Measurement]) -> list[str]:
    ratios = sorted((bounds(r).ratio, r.setting) for r in rows)
    (low, near), (high, far) = ratios[0], ratios[-1]
    return [
        f"- Measured over the least possible by its own parts: {low:.2f} ({named(near)}) to "
        f"{high:.2f} ({named(far)})."
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seconds(result: Measurement) -> float:
    return result.seconds


def _ratio(c: Contrast) -> str:
    return f"{c.ratio:.2f} [{c.low:.2f}, {c.high:.2f}]"


def _counts(c: Contrast) -> str:
    return f"{count(c.result)} and {count(c.against)}"


def _latency(c: Contrast) -> str:
    latency = c.result.reward_latency_s
    return "the real service" if latency is None else f"{latency:g} s a completion"


def _cost(plan: Plan) -> str:
    if plan.cost is None:
        return "API cost not known"
    return f"US$ {plan.cost:.2f} of API calls each" if plan.cost else "no API cost"


def _source(results: Sequence[Measurement]) -> str:
    text = source(results)
    return f"Source: {text}."
