"""Tables of measured steps; every row with its n, its spread and what it was measured on."""

from __future__ import annotations

import html
from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.efficiency.bounds import bounds
from geo_utils.efficiency.capacity import Plan, sweep
from geo_utils.efficiency.contrasts import Contrast, agreement
from geo_utils.efficiency.measurements import Measurement
from geo_utils.efficiency.params import CapacityOptions
from geo_utils.efficiency.pooling import compared, works
from geo_utils.efficiency.sittings import SAME, sittings
from geo_utils.efficiency.text import (
    NONE,
    count,
    latency,
    named,
    plan_basis,
    seconds,
    sentence,
    work_name,
)
from geo_utils.tables import styled

SLIDE_ROWS = 12
SPREAD = "Median seconds per step [quartiles over steps]; n = steps x repeats."
_WORDS = ("setting", "against", "group", "work", "policy", "schedule", "status", "limited by",
          "rows", "note", "reason", "sitting", "device", "reference", "shown with",
          "what differs")  # fmt: skip


def main_rows(results: Sequence[Measurement], most: int = SLIDE_ROWS) -> list[Measurement]:
    """Return what a slide shows: rows of the work that most settings were measured at."""
    return compared((r for r in results if r.work in works(results, 1)), most)


def step_table(results: Sequence[Measurement], most: int | None = None) -> Styler:
    """List what a step of each measured setting takes.

    Args:
        results: Put together by `pooling.pooled`.
        most: Show so many rows of the main work only, for a slide; see `pooling.compared`.
    """
    measured = [r for r in results if r.measured]
    shown, cut = measured, ""
    if most is not None:
        main = [r for r in measured if r.work in works(results, 1)]
        shown = main_rows(results, most)
        cut = f" A step: {work_name(shown[0])}." if shown else ""
        cut += f" {len(shown)} of {len(main)} rows of this work; all are in the report."
    table = pd.DataFrame([_step_row(result) for result in shown])
    if most is not None:
        table = table.drop(columns=["group", "work", "mean", "sitting", "note"], errors="ignore")
    best = min((r.seconds for r in shown), default=None)
    marked = [i for i, r in enumerate(shown) if r.seconds == best]
    caption = (
        f"{SPREAD} GPU-s: over all GPUs held. Peak: without GPUs that hold a vLLM server alone, "
        f"which takes the share it is given.{cut} {sentence(measured)}"
    )
    return _laid_out(table, marked, caption)


def missing_table(missing: Sequence[Measurement]) -> Styler:
    """List settings without a figure, as `pooling.unmeasured` finds them, with the reason."""
    rows = [
        {
            "setting": named(r.setting),
            "group": r.group,
            "GPUs wanted": r.gpus_wanted,
            "status": r.status,
            "reason": html.escape((r.reason or "").removeprefix(f"{r.status}: ")[:160]),
        }
        for r in missing
    ]
    return _laid_out(pd.DataFrame(rows), [], f"{len(missing)} settings without a figure.")


def bound_table(results: Sequence[Measurement], most: int | None = None) -> Styler:
    """Put each measured step beside the least that its own parts allow."""
    rows = []
    for result in [r for r in results if r.measured] if most is None else main_rows(results, most):
        b = bounds(result)
        rows.append({
            "setting": named(result.setting),
            "work": work_name(result),
            "schedule": result.schedule,
            "s per step": seconds(result),
            "synchronous": f"{b.synchronous:.2f}",
            "streaming": f"{b.streaming:.2f}",
            "one step ahead": f"{b.ahead:.2f}",
            "measured / bound": NONE if b.ratio is None else f"{b.ratio:.2f}",
            "reward / floor": NONE if b.reward_ratio is None else f"{b.reward_ratio:.2f}",
            "n": count(result),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    if most is not None:
        table = table.drop(columns="work", errors="ignore")
    caption = (
        "Least seconds per step by the measured parts: every part after the other; rewards begun "
        "as completions are written (on policy); the next batch written meanwhile (one step off). "
        "Measured / bound: over that of its own schedule, where that is not simply the sum of the "
        f"row's phases. {sentence(results)}"
    )
    return _laid_out(table, [], caption)


def contrast_table(
    contrasts: Sequence[Contrast], what: str, most: int | None = None,
    names: Sequence[str] | None = None,
) -> Styler:  # fmt: skip
    """List ratios of step times.

    Args:
        contrasts: Of `contrasts`.
        what: What the ratio compares, for the caption.
        most: Show the first so many, for a slide.
        names: What differs in each of them.
    """
    cut = f" {most} of {len(contrasts)} rows." if most and len(contrasts) > most else ""
    rows = [
        {
            "setting": named(c.result.setting),
            "against": named(c.against.setting),
            "work": work_name(c.result),
            "latency": latency(c.result),
            "s per step": seconds(c.result),
            "against, s": seconds(c.against),
            "ratio": f"{c.ratio:.2f} [{c.low:.2f}, {c.high:.2f}]",
            "n": f"{count(c.result)} / {count(c.against)}",
        }
        for c in contrasts[:most]
    ]
    if names is not None:
        rows = [{"what differs": name} | row for name, row in zip(names, rows, strict=False)]
    both = [r for c in contrasts for r in (c.result, c.against)]
    caption = f"{what} {SPREAD} Ratio [from the quartiles of both].{cut} {sentence(both)}"
    return _laid_out(pd.DataFrame(rows), [], caption)


def repeat_table(rows: Sequence[Measurement]) -> Styler:
    """Show how well the repeats of one measurement agree, and what the phases leave out."""
    lines = [
        {
            "setting": named(a.result.setting),
            "work": work_name(a.result),
            "s per step, by repeat": ", ".join(f"{s:.2f}" for s in a.steps_s),
            "apart": f"{a.apart:.1%}" if len(a.steps_s) > 1 else NONE,
            "phases / step": ", ".join(f"{share:.3f}" for share in a.covered),
        }
        for a in agreement(rows)
    ]
    caption = (
        "Apart: slowest over fastest repeat, less 1. Phases / step: sum of the main thread's "
        f"phases over the step. {sentence(rows)}"
    )
    return _laid_out(pd.DataFrame(lines), [], caption)


def plan_table(
    plans: Sequence[Plan], results: Sequence[Measurement], options: CapacityOptions
) -> Styler:
    """Show how many experiments fit side by side in each setting, and what that is worth."""
    best = sweep(plans)
    shown = sorted(plans, key=lambda p: (p is not best, round(p.sweep_hours, 1), p.step_gpu_s))
    rows = [
        {
            "setting": named(p.setting),
            "GPUs each": p.gpus,
            "at once": p.at_once,
            "limited by": p.binds + (" (slows even one)" if p.slowed else ""),
            "hours each": f"{p.hours:.1f}",
            "experiments a day": f"{p.per_day:.1f}",
            f"hours for {options.experiments}": f"{p.sweep_hours:.1f}" if p.at_once else NONE,
            "GPU-hours each": f"{p.gpu_hours:.1f}",
            "US dollars each": "not known" if p.cost is None else f"{p.cost:.2f}",
            "in budget": {True: "yes", False: "no", None: "not known"}[p.affordable],
        }
        for p in shown[:SLIDE_ROWS]
    ]
    cut = f" The best {SLIDE_ROWS} of {len(plans)}." if len(plans) > SLIDE_ROWS else ""
    caption = (
        "At once: without slowing each other down. A day, and for the sweep: with as many side by "
        f"side as finish soonest. Computed for {plan_basis(results, options)}.{cut}"
    )
    return _laid_out(pd.DataFrame(rows), [0] if best else [], caption)


def sitting_table(rows: Sequence[Measurement]) -> Styler:
    """List the sittings that rows come from, and how steady their machines were.

    Args:
        rows: Not yet put together.
    """
    lines = [
        {
            "sitting": s.name,
            "date": s.date,
            "device": s.device,
            "settings": s.settings,
            "reference": NONE if s.reference is None else named(s.reference),
            "first, s": NONE if s.first_s is None else f"{s.first_s:.2f}",
            "last, s": NONE if s.last_s is None else f"{s.last_s:.2f}",
            "last over first": NONE if s.drift is None else f"{s.drift:+.1%}",
            "shown with": NONE if s.bench == s.name else s.bench,
        }
        for s in sittings(rows)
    ]
    caption = (
        "A sitting is one machine and one process tree; the reference is its first and last "
        f"measurement. Sittings whose reference differs by more than {SAME - 1:.0%}, or that have "
        "none, are shown apart; ratios are always of one sitting."
    )
    return _laid_out(pd.DataFrame(lines), [], caption)


def _step_row(result: Measurement) -> dict[str, Any]:
    def number(value: float | None, form: str = "{:.2f}") -> str:
        return NONE if value is None else form.format(value)

    mean = sum(result.step_s_all) / len(result.step_s_all) if result.step_s_all else None
    notes = ["roles share a GPU"] if result.shared else []
    notes += ["hardly asked its engine"] if result.unasked else []
    return {
        "setting": named(result.setting),
        "group": result.group,
        "work": work_name(result),
        "latency": latency(result),
        "policy": "on" if result.on_policy else "one step off",
        "GPUs": result.gpus,
        "s per step": seconds(result),
        "mean": number(mean),
        "GPU-s a sample": number(result.gpu_seconds_per_sample),
        "samples a s": number(result.samples_per_s),
        "peak GiB": number(result.needed_gib, "{:.0f}"),
        "abstained": number(result.abstained, "{:.0%}"),
        "n": count(result),
        "sitting": result.bench or result.sitting,
        "note": ", ".join(notes),
    }


def _laid_out(table: pd.DataFrame, marked: list[int], caption: str) -> Styler:
    if table.empty:
        table, caption = pd.DataFrame({"rows": ["none was measured"]}), ""
    words = [column for column in table if column in _WORDS]
    short: list[Hashable] = [column for column in table if column != "reason"]
    laid_out = styled(table, marked, caption).hide(axis="index")
    left: list[Any] = [
        {"selector": f"td.col{table.columns.get_loc(word)}", "props": "text-align: left"}
        for word in words
    ]
    tight = {"white-space": "nowrap", "padding": ".25em .45em"}
    return laid_out.set_properties(subset=short, **tight).set_table_styles(left, overwrite=False)
