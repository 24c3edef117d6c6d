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
SPREAD = "Median seconds a step [quartiles over steps]; n = steps x repeats."
# Measured before this harness, with stock TRL, random weights of Qwen3-1.7B's shape and no reward
# to wait for; 16 completions of 512 tokens. For comparison only.
EARLIER_STEPS = {
    ("NVIDIA H200", "transformers"): 25.4,
    ("NVIDIA H200", "server"): 3.6,
    ("NVIDIA H200", "colocate"): 4.0,
}
_ON_POLICY = {"stock": ("stock",), "best on policy": ("stock", "fused", "early")}

_WORDS = ("setting", "against", "group", "work", "policy", "schedule", "status", "limited by",
          "rows", "note", "reason")  # fmt: skip


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
        table = table.drop(columns=["group", "work", "note"], errors="ignore")
    best = min((r.seconds for r in shown), default=None)
    marked = [i for i, r in enumerate(shown) if r.seconds == best]
    caption = f"{SPREAD} GPU-s: over all GPUs held.{cut} {sentence(measured)}"
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
            "s a step": seconds(result),
            "synchronous": f"{b.synchronous:.2f}",
            "streaming": f"{b.streaming:.2f}",
            "one step ahead": f"{b.ahead:.2f}",
            "measured / bound": f"{b.ratio:.2f}",
            "reward / floor": NONE if b.reward_ratio is None else f"{b.reward_ratio:.2f}",
            "n": count(result),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    if most is not None:
        table = table.drop(columns="work", errors="ignore")
    caption = (
        "Least seconds a step by the mean of the measured parts: every part after the other; "
        "rewards begun as completions are written (on policy); the next batch "
        "written meanwhile (one step off). "
        f"Measured / bound: the mean step over that of its own schedule. {sentence(results)}"
    )
    return _laid_out(table, [], caption)


def contrast_table(contrasts: Sequence[Contrast], what: str, most: int | None = None) -> Styler:
    """List ratios of step times.

    Args:
        contrasts: Of `contrasts`.
        what: What the ratio compares, for the caption.
        most: Show the first so many, for a slide.
    """
    cut = f" {most} of {len(contrasts)} rows." if most and len(contrasts) > most else ""
    rows = [
        {
            "setting": named(c.result.setting),
            "against": named(c.against.setting),
            "work": work_name(c.result),
            "latency": latency(c.result),
            "s a step": seconds(c.result),
            "against, s": seconds(c.against),
            "ratio": f"{c.ratio:.2f} [{c.low:.2f}, {c.high:.2f}]",
            "n": f"{count(c.result)} / {count(c.against)}",
        }
        for c in contrasts[:most]
    ]
    both = [r for c in contrasts for r in (c.result, c.against)]
    caption = f"{what} {SPREAD} Ratio [from the quartiles of both].{cut} {sentence(both)}"
    return _laid_out(pd.DataFrame(rows), [], caption)


def repeat_table(rows: Sequence[Measurement]) -> Styler:
    """Show how well the repeats of one measurement agree, and what the phases leave out."""
    lines = [
        {
            "setting": named(a.result.setting),
            "work": work_name(a.result),
            "s a step, by repeat": ", ".join(f"{s:.2f}" for s in a.steps_s),
            "apart": f"{a.apart:.1%}" if len(a.steps_s) > 1 else NONE,
            "phases / step": ", ".join(f"{share:.3f}" for share in a.covered),
        }
        for a in agreement(rows)
    ]
    caption = (
        "Apart: slowest over fastest repeat, less 1. Phases / step: sum of the main thread's "
        f"phases over the mean step. {sentence(rows)}"
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


def earlier_table(results: Sequence[Measurement]) -> Styler:
    """Put the steps measured before this harness beside the same settings here."""
    rows = []
    for (device, policy), before in EARLIER_STEPS.items():
        same = [
            r for r in results
            if r.measured and r.work[:4] == (device, 16, 512, False) and r.policy == policy
            and r.reward == "negative_length"
        ]  # fmt: skip
        for kind, schedules in _ON_POLICY.items():
            stock = [r for r in same if r.schedule in schedules]
            now = min(stock, key=lambda r: r.seconds, default=None)
            rows.append({
                "policy": policy,
                "schedule": kind,
                "earlier, s a step": f"{before:.1f}",
                "here": NONE if now is None else seconds(now),
                "setting": NONE if now is None else named(now.setting),
                "n": NONE if now is None else count(now),
            })  # fmt: skip
    caption = (
        "Earlier: one H200 each for policy and trainer where it is a server; stock TRL, random "
        "weights of Qwen3-1.7B's shape, 16 × 512 tokens, not by this harness and without n. "  # noqa: RUF001
        f"Here: {SPREAD} {sentence(results)}"
    )
    return _laid_out(pd.DataFrame(rows), [], caption)


def _step_row(result: Measurement) -> dict[str, Any]:
    def number(value: float | None, form: str = "{:.2f}") -> str:
        return NONE if value is None else form.format(value)

    memory = max(result.peak_memory_gib, default=None) if result.peak_memory_gib else None
    notes = ["roles share a GPU"] if result.shared else []
    notes += ["hardly asked its engine"] if result.unasked else []
    return {
        "setting": named(result.setting),
        "group": result.group,
        "work": work_name(result),
        "latency": latency(result),
        "policy": "on" if result.on_policy else "one step off",
        "GPUs": result.gpus,
        "s a step": seconds(result),
        "GPU-s a sample": number(result.gpu_seconds_per_sample),
        "samples a s": number(result.samples_per_s),
        "peak GiB": number(memory, "{:.0f}"),
        "abstained": number(result.abstained, "{:.0%}"),
        "n": count(result),
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
