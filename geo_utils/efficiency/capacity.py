"""How many experiments fit side by side, and which setting to choose for one and for many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.efficiency.params import CapacityOptions, Setting
from geo_utils.efficiency.rows import SAME, SLIDE_ROWS, each, laid_out, named, of_work, source

# The training that AutoGEO (arXiv:2510.11438) ran: prompts of Researchy-GEO, completions of each.
_PROMPTS, _GROUP = 9_998, 8


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


def _limits(options: CapacityOptions) -> dict[str, float]:
    given = {"requests": options.requests_per_minute, "tokens": options.tokens_per_minute}
    return {name: limit for name, limit in given.items() if limit}


def asked_per_minute(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the requests and tokens that one experiment of each row asks of a service a minute.

    They are those that the row's measurement really sent: 0 for a setting that asks no service
    whose limits all experiments share, NaN where the row does not know what it sent.
    """
    sent = rows[["calls_per_1000", "tokens_per_1000"]].set_axis(["requests", "tokens"], axis=1)
    asked = sent.mul(rows["completions"] * 60 / rows["step_s"], axis=0) / 1000
    return asked.where(asked > 0).where(rows["reward"] == "gemini", 0.0, axis=0)


def _known(rows: pd.DataFrame, options: CapacityOptions) -> pd.Series:
    """Tell which rows can be held against the API's limits; earlier harnesses' cannot."""
    return asked_per_minute(rows)[list(_limits(options))].notna().all(axis=1)


def plan(rows: pd.DataFrame, options: CapacityOptions) -> pd.DataFrame:
    """Work out what each setting that has an engine, and whose calls are known, can do.

    The API's limits are shared by all experiments; the GPUs are the user's. An experiment asks
    for requests and tokens at the rate of its steps, so that a slower step leaves room for more.

    Args:
        rows: Measured with the same work, one per setting.
        options: GPUs, limits, and what an experiment is.

    Returns:
        A row for each setting:

        - `setting`;
        - `gpus`: of one experiment;
        - `step_gpu_s`: GPU-seconds per step that no limit slows down;
        - `at_once`: experiments at a time that do not slow each other down; 0 where one does not
          fit. One that the API's limit slows down even alone is 1;
        - `limited_by`: what keeps it from more: `GPUs`, `requests`, `tokens`, or the `memory` of
          one GPU;
        - `slowed`: whether one experiment alone is slowed down by the API's limit;
        - `hours`: of one experiment, and `gpu_hours`;
        - `per_day`: experiments a day, with as many side by side as the GPUs hold; where the API's
          limit slows them down, what it lets through;
        - `sweep_hours`: of the sweep, with as many side by side as finish it soonest; NaN where
          none fits;
        - `cost`: US dollars of one experiment's API calls; 0 without an API, NaN if not known.
    """
    found = rewarded(rows)
    found = found[_known(found, options)].reset_index(drop=True)
    gpus, hours = found["gpus"].clip(lower=1), options.steps * found["step_s"] / 3600
    limits = pd.Series(_limits(options), dtype=float)
    calls = limits / asked_per_minute(found)[limits.index]
    api = calls.min(axis=1).fillna(math.inf)
    alone = hours / api.clip(upper=1)
    # A quotient may be just short of a whole number.
    room = calls.assign(GPUs=options.gpus / gpus)[["GPUs", *limits.index]].add(1e-9).apply(np.floor)
    fits = ~found["needed_gib"].gt(options.gpu_memory_gib)
    held = room["GPUs"].where(fits, 0)
    # Any number side by side is tried; more than the API carries slow each other.
    tried = {
        k: (math.ceil(options.experiments / k) * hours * (k / api).clip(lower=1)).where(held >= k)
        for k in range(1, options.gpus + 1)
    }
    cost = found["cost_per_1000"] * found["completions"] * options.steps / 1000
    return pd.DataFrame(
        {
            "setting": found["setting"],
            "gpus": gpus,
            "step_gpu_s": found["step_s"] * gpus,
            "at_once": np.minimum(held, np.floor(api + 1e-9).clip(lower=1)).astype(int),
            "limited_by": room.idxmin(axis=1).where(fits, "memory"),
            "slowed": api < 1,
            "hours": alone,
            "per_day": np.minimum(held, api) * 24 / hours,
            "sweep_hours": pd.DataFrame(tried).min(axis=1),
            "gpu_hours": alone * gpus,
            "cost": cost.where(found["reward"] == "gemini", 0.0),
        }
    )


def best(plans: pd.DataFrame, hours: str) -> Any:
    """Return the plan that is done first, as a named tuple; None if none fits.

    Of those that no measurement tells apart, it is the one that needs the GPUs least.

    Args:
        plans: As `plan` returns them.
        hours: `hours` for one urgent experiment, `sweep_hours` for the sweep.
    """
    fitting = plans[plans["at_once"] > 0]
    near = fitting[fitting[hours] <= SAME * fitting[hours].min()]
    return next(each(near.sort_values(["step_gpu_s", hours], kind="stable")), None)


def plan_table(plans: pd.DataFrame, results: pd.DataFrame, options: CapacityOptions) -> Styler:
    """Show how many experiments fit side by side in each setting, and what that is worth."""
    chosen = best(plans, "sweep_hours")
    marked = [] if chosen is None else [chosen.Index]
    order = plans.assign(other=~plans.index.isin(marked), near=plans["sweep_hours"].round(1))
    shown = order.sort_values(["other", "near", "step_gpu_s"], kind="stable")[:SLIDE_ROWS]
    shown["limited_by"] += np.where(shown["slowed"], " (slows even one)", "")
    work = next(iter(results.loc[results["measured"], "amount"]), "no measured work")
    limits = [f"{limit:,.0f} {name} a minute" for name, limit in _limits(options).items()]
    caption = (
        "At once: without slowing each other down. A day, and for the sweep of "
        f"{options.experiments}: with as many side by side as finish soonest. The best "
        f"{len(shown)} of {len(plans)} settings. Computed for {options.gpus} GPUs of "
        f"{options.gpu_memory_gib:g} GiB, {' and '.join(limits) or 'no API limit'} for all "
        f"experiments together, {options.steps} steps an experiment of {work}; no preemption and "
        f"no start-up counted; steps {source(results)}."
    )
    columns = "setting gpus at_once limited_by hours per_day sweep_hours gpu_hours cost"
    return laid_out(shown, columns, caption, marked)


def plan_findings(
    plans: pd.DataFrame,
    compared: pd.DataFrame,
    results: pd.DataFrame,
    planned: Mapping[str, Setting],
    options: CapacityOptions,
) -> str:
    """Say in Markdown which setting to choose, and the limits behind the study's counts.

    The study ran eight experiments of three GPUs on 24, and two under the API's limit.

    Args:
        plans: As `plan` returns them, of `compared`.
        compared: As `planned_work` returns them.
        results: All, as `rows.pooled` returns them.
        planned: The study's settings.
        options: As for `plan`.
    """
    one, many = best(plans, "hours"), best(plans, "sweep_hours")
    lines = ["No setting with an engine was measured: there is nothing to plan."]
    if one is not None:
        cost = (
            "API cost not known"
            if math.isnan(many.cost)
            else f"US$ {many.cost:.2f} of API calls each"
        )
        lines = [
            f"- **One urgent experiment**: {named(one.setting)}, {one.hours:.1f} h on {one.gpus} "
            f"GPU{'s' * (one.gpus != 1)}.",
            f"- **A sweep of {options.experiments}**: {named(many.setting)}, {many.at_once} at "
            f"once (limited by {many.limited_by}), {many.sweep_hours:.1f} h, "
            f"{many.per_day:.1f} experiments a day, {cost}.",
        ]
    fixed = results[results["measured"] & ~results["natural_lengths"] & results["gpus"].le(1)]
    many_steps = _PROMPTS * _GROUP / fixed["completions"] / 3600
    fixed = fixed.assign(**fixed[["step_s", "low", "high"]].mul(many_steps, axis=0))
    of = {
        "with an engine": rewarded(fixed),
        "without one": fixed[fixed["reward"] == "negative_length"],
    }
    lines += [
        f"- **A training of AutoGEO's size** ({_PROMPTS:,} prompts, {_GROUP} completions each), "
        f"on one GPU, the fastest {kind}: {named(row.setting)} ({row.amount}), {row.step_s:.2f} h "
        f"[{row.low:.2f}, {row.high:.2f}]."
        for kind, rows in of.items()
        for row in each(rows.nsmallest(1, "step_s"))
    ]
    sizes = sorted({setting.gpus_wanted for setting in planned.values()})
    fit = ", ".join(f"{options.gpus // gpus} of {gpus}" for gpus in sizes)
    lines.append(f"- On {options.gpus} GPUs fit, by the GPUs of one experiment: {fit}.")
    served = compared[compared["measured"] & compared["policy"].eq("server") & compared["parallel"]]
    asked = asked_per_minute(served).to_dict("records")
    for row, rates in zip(each(served), asked, strict=True):
        told = [f"{2 * n:,.0f} to {3 * n:,.0f} {name}" for name, n in rates.items() if n > 0]
        if told:
            lines.append(
                f"- Two of {row.label} ({row.amount}, {row.took} s per step) run at once, and a "
                f"third would slow them down, where the API allows {' or '.join(told)} a minute."
            )
    asking = rewarded(compared)
    unknown = sorted(set(asking.loc[~_known(asking, options), "label"]))
    if unknown:
        lines.append(
            f"- Not planned, as their rows do not say what they sent: {', '.join(unknown)}."
        )
    return "\n".join([*lines, "", f"Source: {source(results)}."])


def efficiency_headline(
    results: pd.DataFrame, plans: pd.DataFrame, missing: pd.DataFrame, pairs: pd.DataFrame
) -> dict[str, Any]:
    """Return the numbers that the manifest records.

    Args:
        results: As `rows.pooled` returns them.
        plans: As `plan` returns them.
        missing: As `rows.unmeasured` returns them.
        pairs: As `contrasts.study_contrasts` returns them.
    """
    one, many = best(plans, "hours"), best(plans, "sweep_hours")
    measured = results[results["measured"]]
    return {
        "fastest": one and _fastest(one.setting, results, pairs),
        "seconds per step, median [quartiles]": {
            f"{row.label}, {row.amount}": {
                "mean": row.step_s,
                "low": row.low,
                "high": row.high,
                "n_steps": row.steps,
            }
            for row in each(measured)
        },
        "settings not measured": len(missing),
        "urgent": one and one.setting,
        "sweep": many and many.setting,
    }


def _fastest(setting: str, results: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return a setting's step time, and the change that saved most of it within one sitting."""
    (row,) = each(planned_work(results).query("setting == @setting"))
    found: dict[str, Any] = {
        "setting": row.label,
        "work": row.amount,
        "seconds": {"mean": row.step_s, "low": row.low, "high": row.high, "n_steps": row.steps},
    }
    own = pairs[(pairs["setting"] == setting) & pairs["amount"].eq(row.amount)]
    for pair in each(own.sort_values("ratio")[:1]):
        share = {"mean": pair.ratio, "low": pair.ratio_low, "high": pair.ratio_high}
        found |= {"change": pair.change, "instead of": pair.label_against}
        found["share of the time"] = share | {"n_steps": int(pair.steps)}
    return found
