"""What a step takes under each setting, where its seconds go, and what it costs of the GPUs."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler

from geo_utils.efficiency.bounds import bounds
from geo_utils.efficiency.rows import (
    PHASES,
    SPREAD,
    basis,
    compared,
    each,
    laid_out,
    named,
    nothing,
    numbers,
    of_work,
    sentence,
    source,
    works,
)
from geo_utils.show.plots import BLUE, canvas, finished, interval_figure, name_rows
from geo_utils.statistics import with_interval

_CUT = 8  # bars that are so many times the shortest are cut
_SHADES = ["#7a5195", BLUE, "#c1272d", "#e0a030", "#3b8f6e", "#63b38f", "#a8d5ba"]  # by phase
_SHADES += ["#bbbbbb", "#dddddd"]


def step_table(results: pd.DataFrame, most: int | None = None) -> Styler:
    """List what a step of each measured setting takes.

    Args:
        results: Put together by `rows.pooled`.
        most: Show so many rows of the main work only, for a slide; see `rows.compared`.
    """
    main = of_work(results)
    shown = results[results["measured"]] if most is None else compared(main, most)
    shares = np.where(shown["shared"], "roles share a GPU", "")
    idle = np.where(shown["unasked"], "hardly asked its engine", "")
    table = pd.DataFrame(
        {
            "setting": shown["label"],
            "group": shown["group"],
            "work": shown["amount"],
            "latency": shown["latency"],
            "policy": np.where(shown["on_policy"], "on", "one step off"),
            "GPUs": shown["gpus"],
            "s per step": shown["took"],
            "mean": numbers(shown["mean_s"]),
            "GPU-s a sample": numbers(shown["gpu_seconds_per_sample"]),
            "samples a s": numbers(shown["samples_per_s"]),
            "peak GiB": numbers(shown["needed_gib"], "{:.0f}"),
            "abstained": numbers(shown["abstained"], "{:.0%}"),
            "n": shown["n"],
            "sitting": shown["bench"],
            "note": [", ".join(filter(None, notes)) for notes in zip(shares, idle, strict=True)],
        }
    )
    cut = ""
    if most is not None:
        table = table.drop(columns=["group", "work", "mean", "sitting", "note"])
        cut = f" A step: {shown['amount'].iloc[0]}." if len(shown) else ""
        cut += f" {len(shown)} of {len(main)} rows of this work; all are in the report."
    caption = (
        f"{SPREAD} GPU-s: over all GPUs held. Peak: without GPUs that hold a vLLM server alone, "
        f"which takes the share it is given.{cut} {sentence(source(results))}."
    )
    best = shown.index[shown["step_s"] == shown["step_s"].min()]
    return laid_out(table, caption, list(best))


def missing_table(missing: pd.DataFrame) -> Styler:
    """List settings without a figure, as `rows.unmeasured` finds them, with the reason."""
    table = pd.DataFrame(
        {
            "setting": missing["setting"].map(named),
            "group": missing["group"],
            "GPUs wanted": missing["gpus_wanted"],
            "status": missing["status"],
            "reason": [
                html.escape(row.reason.removeprefix(f"{row.status}: ")[:160])
                for row in each(missing.fillna({"reason": ""}))
            ],
        }
    )
    return laid_out(table, f"{len(missing)} settings without a figure.")


def step_figure(results: pd.DataFrame, place: int = 0) -> Figure:
    """Stack the phases of a step for each setting, the bound of its schedule marked.

    A bar that is much longer than the others is cut.

    Args:
        results: Put together by `rows.pooled`.
        place: 0 for the work that most settings were measured at, 1 for the next.
    """
    every = of_work(results, place)
    if every.empty:
        return nothing("No second amount of work was measured" if place else "Nothing measured")
    rows = compared(every)
    best, slow = rows.iloc[0], rows.iloc[-1]
    title = f"{best['amount']}: {best['label']} is fastest, {best['step_s']:.1f} s per step"
    if len(rows) > 1:
        times = slow["step_s"] / best["step_s"]
        title += f"; {slow['label']} takes {times:.1f} times as long"
    figure, axes = canvas(len(rows))
    widest = float(rows.loc[rows["step_s"] <= _CUT * best["step_s"], "step_s"].max())
    least = each(bounds(rows))
    for y, (row, bound) in enumerate(zip(each(rows), least, strict=True)):
        left, cut = 0.0, bool(row.step_s > widest)
        for phase, shade in zip(PHASES, _SHADES, strict=True):
            width = min(row.phases.get(phase, 0.0), 1.05 * widest - left)
            axes.barh(y, width, left=left, color=shade, height=0.72)
            left += width
        if not cut and bound.ratio > 0:  # one that is the sum of the phases says nothing
            own = min(bound.own, 1.05 * widest)
            axes.plot((own, own), (y - 0.45, y + 0.45), color="black", linewidth=2.5)
            left = max(left, own)
        axes.annotate(f" {'… ' * cut}{row.took}", (left, y), va="center", fontsize=14)
    name_rows(axes, _names(rows))
    axes.set(xlim=(0, 1.4 * widest))
    axes.set_xlabel(
        "seconds per step of the main thread, by phase; line: the least by its own parts"
    )
    handles = [Rectangle((0, 0), 1, 1, color=shade) for shade in _SHADES]
    figure.legend(handles, PHASES, frameon=False, fontsize=14, loc="outside right center")
    shown = f"{len(rows)} of {len(every)} settings: the fastest and the slowest. "
    return finished(figure, title, shown * (len(rows) < len(every)) + basis(rows, results))


def gpu_figure(results: pd.DataFrame) -> Figure:
    """Draw the GPU-seconds that a sample costs, over all GPUs held."""
    rows = compared(of_work(results))
    rows = rows[rows["gpu_seconds_per_sample"] > 0]
    rows = rows.sort_values("gpu_seconds_per_sample", kind="stable")
    if rows.empty:
        return nothing("No measured setting held a GPU")
    cost, fastest = rows["gpu_seconds_per_sample"], rows["step_s"].idxmin()
    best = rows.iloc[0]["label"].capitalize()
    title = f"{best} takes least of the GPUs: {cost.iloc[0]:.2f} s a sample"
    quick = rows.index == fastest
    if not quick[0]:
        title += f"; the fastest, {rows['label'][quick].iloc[0]}, {cost[quick].iloc[0]:.2f} s"
    marks = pd.DataFrame(
        {
            "mean": cost,
            "low": rows["low"] * cost / rows["step_s"],
            "high": rows["high"] * cost / rows["step_s"],
            "shade": np.where(quick, "#c1272d", BLUE),
        }
    )
    held = rows["gpus"].map(lambda count: f", {count} GPU{'s' * (count != 1)}")
    ends: Iterable[Any] = marks[["mean", "low", "high"]].itertuples(index=False)
    marks["text"] = [with_interval(m, low, high, digits=2) for m, low, high in ends] + held
    note = f"{rows['amount'].iloc[0]}; red: the fastest. Brackets: quartiles of the step. "
    return interval_figure(
        marks.set_axis(_names(rows)),
        title,
        "GPU-seconds a sample, all GPUs held",
        note + basis(rows, results),
    )


def _names(rows: pd.DataFrame) -> list[str]:
    """Return the rows' names as a figure writes them, those off policy marked."""
    return list(rows["label"] + np.where(rows["on_policy"], "", " *"))


def step_findings(results: pd.DataFrame) -> str:
    """Say in Markdown which setting is fastest and cheapest, and where its seconds go."""
    lines = []
    for place in range(min(len(works(results)), 2)):
        rows = of_work(results, place)
        device = rows["device"].iloc[0]
        lines += [f"**{rows['amount'].iloc[0]}, {device}** ({len(rows)} settings)", ""]
        lines += [*_of_work_findings(rows), ""]
    lines += [
        f"**{sentence(row.label)} hardly asked its engine**: "
        f"{row.engine_s + np.nan_to_num(row.judge_s):.2f} s per step of a stated "
        f"{row.reward_latency_s:g} s; its step says nothing about one that waits.\n"
        for row in each(results[results["unasked"]])
    ]
    lost = results[~results["measured"]]
    if len(lost):
        reasons = sorted(set(lost["label"] + " (" + lost["status"] + ")"))
        lines += [f"Without a figure: {', '.join(reasons)}.", ""]
    if not works(results):
        lines.insert(0, "Nothing was measured.\n")
    note = f"Seconds are medians over steps [quartiles]. Source: {source(results)}."
    return "\n".join([*lines, note])


def _of_work_findings(rows: pd.DataFrame) -> list[str]:
    found = []
    ratio = bounds(rows)["ratio"].dropna()
    for on_policy, how in ((True, "on policy"), (False, "one step off policy")):
        for best in each(compared(rows[rows["on_policy"] == on_policy])[:1]):
            known = best.Index in ratio
            bound = f", measured / bound {ratio[best.Index]:.2f}" if known else ""
            found.append(
                f"- Fastest {how}: **{best.label}**, {best.took} s per step{bound} (n = {best.n})."
            )
    held = rows[rows["gpu_seconds_per_sample"] > 0]
    for best in each(held.sort_values("gpu_seconds_per_sample", kind="stable")[:1]):
        found.append(
            f"- Least of the GPUs: **{best.label}**, {best.gpu_seconds_per_sample:.2f} "
            f"GPU-seconds a sample on {best.gpus} GPU{'s' * (best.gpus != 1)} (n = {best.n})."
        )
    fastest = compared(rows).iloc[0]
    phases = pd.Series(fastest["phases"], dtype=float).reindex(PHASES).fillna(0.0)
    longest = phases[phases > 0].sort_values(ascending=False, kind="stable")[:4]
    told = [f"{name} {s:.2f} s ({s / phases.sum():.0%})" for name, s in longest.items()]
    if told:
        found.append(f"- A step of {fastest['label']} goes into {', '.join(told)}.")
    if len(ratio):
        near, far = rows.loc[[ratio.idxmin(), ratio.idxmax()], "label"]
        found.append(
            "- Where waiting is hidden, measured over the least possible by its own parts: "
            f"{ratio.min():.2f} ({near}) to {ratio.max():.2f} ({far})."
        )
    return found
