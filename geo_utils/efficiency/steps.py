"""What a step takes under each setting, where its seconds go, and what it costs of the GPUs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.efficiency.bounds import bounds
from geo_utils.efficiency.rows import (
    PHASES,
    SPREAD,
    basis,
    compared,
    each,
    laid_out,
    nothing,
    of_work,
    source,
    written,
)
from geo_utils.show.plots import BLUE, canvas, finished, interval_figure, name_rows

# Columns of `step_table`: of one work's steps, of their bounds, and all.
STEP = "setting schedule latency gpus took gpu_seconds_per_sample needed_gib abstained n"
BOUND = "setting schedule took synchronous streaming ahead ratio n"
EVERY = "setting group amount schedule latency gpus took mean_s synchronous streaming ahead ratio "
EVERY += "gpu_seconds_per_sample needed_gib abstained n bench note"
_CUT = 8  # bars that are so many times the shortest are cut
_RED = "#c1272d"
_SHADES = ["#7a5195", BLUE, _RED, "#e0a030", "#3b8f6e", "#63b38f", "#a8d5ba"]  # by phase
_SHADES += ["#bbbbbb", "#dddddd"]


def step_table(results: pd.DataFrame, columns: str = EVERY, most: int | None = None) -> Styler:
    """List what a step of each measured setting takes, beside the least that its parts allow.

    Args:
        results: Put together by `rows.pooled`.
        columns: Their names, in a line, such as `STEP`.
        most: Show so many rows of the main work only, for a slide; see `rows.compared`.
    """
    main = of_work(results)
    shown = results[results["measured"]] if most is None else compared(main, most)
    told = np.where(shown["unasked"], "hardly asked its engine", "")
    caption = (
        f"{SPREAD} GPU seconds: over all GPUs held. Needed GiB: without GPUs that hold a vLLM "
        "server alone, which takes the share it is given. Measured / bound: over that of its own "
        "schedule, where that is not simply the sum of the row's phases."
    )
    if most is not None:
        caption += f" {len(shown)} of {len(main)} rows of this work; all are in the report."
    best = shown.index[shown["step_s"] == shown["step_s"].min()]
    table = shown.assign(note=told).join(bounds(shown))
    return laid_out(table, columns, f"{caption} Source: {source(results)}.", list(best))


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
    phases = pd.DataFrame(list(rows["phases"])).reindex(columns=PHASES).fillna(0.0)
    ends = phases.cumsum(axis=1).clip(upper=1.05 * widest)
    left = pd.Series(0.0, ends.index)
    for phase, shade in zip(PHASES, _SHADES, strict=True):
        axes.barh(ends.index, ends[phase] - left, 0.72, left, color=shade, label=phase)
        left = ends[phase]
    for y, row in enumerate(each(rows.join(bounds(rows)))):
        end, cut = left[y], bool(row.step_s > widest)
        if not cut and row.ratio > 0:  # one that is the sum of the phases says nothing
            own = min(row.own, 1.05 * widest)
            axes.plot((own, own), (y - 0.45, y + 0.45), color="black", linewidth=2.5)
            end = max(end, own)
        axes.annotate(f" {'… ' * cut}{row.took}", (end, y), va="center", fontsize=14)
    name_rows(axes, _names(rows))
    axes.set(xlim=(0, 1.4 * widest))
    axes.set_xlabel(
        "seconds per step of the main thread, by phase; line: the least by its own parts"
    )
    figure.legend(frameon=False, fontsize=14, loc="outside right center")
    shown = f"{len(rows)} of {len(every)} settings: the fastest and the slowest. "
    return finished(figure, title, shown * (len(rows) < len(every)) + basis(rows, results))


def gpu_figure(results: pd.DataFrame) -> Figure:
    """Draw the GPU-seconds that a sample costs, over all GPUs held."""
    rows = compared(of_work(results))
    rows = rows[rows["gpu_seconds_per_sample"] > 0]
    rows = rows.sort_values("gpu_seconds_per_sample", kind="stable")
    if rows.empty:
        return nothing("No measured setting held a GPU")
    cost = rows["gpu_seconds_per_sample"]
    best, fastest = rows.iloc[0], rows.sort_values("step_s").iloc[0]
    title = f"{best['label'].capitalize()} takes least of the GPUs: {cost.iloc[0]:.2f} s a sample"
    if fastest.name != best.name:
        title += f"; the fastest, {fastest['label']}, {fastest['gpu_seconds_per_sample']:.2f} s"
    low, high = (rows[end] * cost / rows["step_s"] for end in ("low", "high"))
    held = rows["gpus"].map(lambda count: f", {count} GPU{'s' * (count != 1)}")
    marks = pd.DataFrame(
        {
            "mean": cost,
            "low": low,
            "high": high,
            "shade": np.where(rows.index == fastest.name, _RED, BLUE),
            "text": written(cost, low, high) + held,
        }
    )
    note = f"{best['amount']}; red: the fastest. Brackets: quartiles of the step. "
    quantity = "GPU-seconds a sample, all GPUs held"
    return interval_figure(
        marks.set_axis(_names(rows)), title, quantity, note + basis(rows, results)
    )


def _names(rows: pd.DataFrame) -> list[str]:
    """Return the rows' names as a figure writes them, those off policy marked."""
    return list(rows["label"] + np.where(rows["on_policy"], "", " *"))


def step_findings(results: pd.DataFrame) -> str:
    """Say in Markdown which setting is fastest on and off policy, and where its seconds go."""
    rows = of_work(results).sort_values(["on_policy", "step_s"], ascending=[False, True])
    lines = []
    for best in each(rows.drop_duplicates("on_policy")):
        how = "on policy" if best.on_policy else "one step off policy"
        phases = pd.Series(best.phases, dtype=float)
        shares = (phases / phases.sum()).nlargest(3)
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        lines.append(
            f"- Fastest {how}: **{best.label}**, {best.took} s per step of {best.amount} "
            f"(n = {best.n}); its seconds go into {told}."
        )
    note = f"Seconds are medians over steps [quartiles]. Source: {source(results)}."
    return "\n".join([*(lines or ["Nothing was measured."]), "", note])
