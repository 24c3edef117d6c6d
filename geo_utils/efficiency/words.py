"""What the measured steps say, in words computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geo_utils.efficiency.bounds import bounds, predicted_step
from geo_utils.efficiency.capacity import (
    Plan,
    changes,
    knows_its_calls,
    limits_for,
    over_latency,
    rewarded,
    sweep,
    urgent,
    uses_api,
)
from geo_utils.efficiency.contrasts import (
    CHANGES,
    Contrast,
    against_no_latency,
    against_stock,
    changed,
    one_by_one,
    study_contrasts,
)
from geo_utils.efficiency.measurements import PHASES, Measurement
from geo_utils.efficiency.params import CapacityOptions, Setting
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
        f"{(r.engine_s or 0.0) + (r.judge_s or 0.0):.2f} s per step of a stated "
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
            f"{abs(saved):.2f} s per step beside `stock` ({work_name(c.result)}: "
            f"{named(c.result.setting)} {seconds(c.result)} s, {named(c.against.setting)} "
            f"{seconds(c.against)} s; ratio {_ratio(c)}; n = {_counts(c)})."
        )
    return _ratios(lines, results)


def study_findings(results: Sequence[Measurement]) -> str:
    """Say in Markdown what each of the study's changes does to a step, within one sitting."""
    lines = []
    for name, c in study_contrasts(results):
        more = c.ratio > 1
        factor = c if more else Contrast(c.against, c.result, 1 / c.ratio, 1 / c.high, 1 / c.low)
        lines.append(
            f"- {name[:1].upper()}{name[1:]}: **{_ratio(factor)} times "
            f"{'as long' if more else 'as fast'}** ({named(c.result.setting)} {seconds(c.result)} "
            f"s, {named(c.against.setting)} {seconds(c.against)} s; {work_name(c.result)}; n = "
            f"{_counts(c)})."
        )
    return _ratios(lines, results)


def vllm_gain_findings(results: Sequence[Measurement]) -> str:
    """Say in Markdown how much faster vLLM makes a step with Gemini, and when it is double."""
    pairs = vllm_gains(results)
    lines = []
    for c in pairs:
        at = c.result.reward_latency_s or 0.0
        lines.append(
            f"- With vLLM in place of Transformers, Gemini asked in parallel ({at:g} s), a step is "
            f"**{1 / c.ratio:.1f} [{1 / c.high:.1f}, {1 / c.low:.1f}] times** as fast "
            f"({named(c.result.setting)} {seconds(c.result)} s, {named(c.against.setting)} "
            f"{seconds(c.against)} s; n = {_counts(c)})."
        )
        gain = _predicted_gain(c, at, False)
        lines.append(f"- Asked one by one at the same latency it is {gain:.2f} times (predicted).")
        double = [_double_from(c, parallel) for parallel in (True, False)]
        told = [
            f"{latency:.1f} s a completion where they are asked {how}"
            for latency, how in zip(double, ("in parallel", "one by one"), strict=True)
            if latency is not None
        ]
        lines.append(
            f"- It is slightly less than double (below 2, predicted) from {' or '.join(told)}."
            if told else "- It is above double at every latency up to 120 s (predicted)."
        )  # fmt: skip
    return _ratios(lines, results)


def vllm_gains(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide steps with the policy on vLLM by the same with Transformers, Gemini in parallel."""
    return [
        c for change in CHANGES if change.field == "policy" and change.before == "transformers"
        for c in changed(results, change)
        if c.result.reward == "gemini" and c.result.parallel and c.result.reward_latency_s
        and c.result.schedule == "stock"
    ]  # fmt: skip


def _predicted_gain(c: Contrast, latency_s: float, parallel: bool) -> float:
    slow, fast = (predicted_step(row, latency_s, parallel) for row in (c.against, c.result))
    return slow / fast


def _double_from(c: Contrast, parallel: bool) -> float | None:
    """Return the latency from which on vLLM gains less than a factor of 2."""
    grid = [s / 10 for s in range(1201)]
    return next((at for at in grid if _predicted_gain(c, at, parallel) < 2), None)


def count_findings(
    results: Sequence[Measurement], planned: Mapping[str, Setting], options: CapacityOptions
) -> str:
    """Say in Markdown how many experiments run at once, and the limits behind the study's counts.

    The study ran eight experiments of three GPUs on 24, and two under the API's limit.
    """
    lines = []
    for wanted in sorted({s.gpus_wanted for s in planned.values()}):
        fit = options.gpus // wanted
        lines.append(f"- {fit} experiments of {wanted} GPU{'s' * (wanted != 1)} fit on "
                     f"{options.gpus} GPUs: {options.gpus} / {wanted}.")  # fmt: skip
    for row in results:
        if row.measured and row.policy == "server" and row.parallel and uses_api(row):
            found = limits_for(row, 2)
            told = [f"{low:,.0f} to {high:,.0f} {name}" for name, (low, high) in found.items()]
            if told:
                lines.append(
                    f"- Two of {named(row.setting)} ({work_name(row)}, {seconds(row)} s per step) "
                    f"run at once, and a third would slow them down, where the API allows "
                    f"{' or '.join(told)} a minute."
                )
    unknown = [r for r in rewarded(results) if not knows_its_calls(r, options)]
    if unknown:
        names = ", ".join(sorted({named(r.setting) for r in unknown}))
        lines.append(f"- Not planned, as their rows do not say what they sent: {names}.")
    return "\n".join([*lines, "", _source(results)])


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
        "seconds per step, median [quartiles]": {
            f"{named(r.setting)}, {work_name(r)}": {
                "mean": r.step_s, "low": (r.step_s_spread or [None, None])[0],
                "high": (r.step_s_spread or [None, None])[1], "n_steps": r.steps,
                "hardware": r.hardware, "simulated": r.simulated,
                "bound_ratio": bounds(r).ratio, "sitting": r.bench or r.sitting,
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
            ratio = bounds(best).ratio
            bound = "" if ratio is None else f", measured / bound {ratio:.2f}"
            found.append(
                f"- Fastest {how}: **{named(best.setting)}**, {seconds(best)} s per step{bound} "
                f"(n = {count(best)})."
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
    known = [(ratio, r.setting) for r in rows if (ratio := bounds(r).ratio) is not None]
    if not known:
        return []
    (low, near), (high, far) = min(known), max(known)
    return [
        f"- Where waiting is hidden, measured over the least possible by its own parts: {low:.2f} "
        f"({named(near)}) to {high:.2f} ({named(far)})."
    ]


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
