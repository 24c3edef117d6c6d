"""What a step takes under each setting, where its seconds go, and the least that it could take.

The least follows from the measured parts of the step itself, in seconds:

- S, weight sync, and G, generation of the whole batch;
- R, reward of the whole batch, and L, the least that one completion's reward takes;
- O, old log-probabilities: they need the completions and no reward;
- T, everything the trainer does with the batch, O among it.

All bounds keep the parts as long as they were measured, so that a step can go below them only by
making a part itself shorter; and they take it that a GPU does one thing at a time, so that parts
on one GPU add up. A measurement below its bound shows where that does not hold.

`synchronous`: nothing overlaps.

    S + G + R + T

`streaming`: the least on-policy step when a reward begins as its completion is written. The batch
has to be written with the new weights (S + G) before it is trained on. Rewards can be worked out
meanwhile, but the last completion's begins only when it is written: after G there remain
max(R - G, L) of them. The old log-probabilities fit into that wait; the rest of the training needs
every reward:

    S + G + max(max(R - G, L), O) + (T - O)

That much is hidden only if the other completions end early enough. Where all have the same length
they end together, and a parallel reward hides nothing but O. An engine that shares the policy's
GPU begins after G, so that all of R remains; one that shares the trainer's overlaps nothing.

`ahead`: the least step at a staleness of one, where batch k+1 is written while k is trained on.
Two things bound it. What does one thing at a time is busy for all its parts every step:

- policy on the trainer's GPU: S + G + T there;
- policy on a server: S + T on the trainer's GPU and S + G on the server's;
- a model as engine: R on its GPU; where it shares a GPU, R is added there;
- a service asked one by one: R. Asked in parallel, it is taken to have no limit.

And a batch has a way to go: it is written with the weights of the batch two before it, judged and
trained on, so two steps hold S + G + reward + T one after the other. With rewards begun early that
way is the streaming bound, and half of it bounds the step. The reward is hidden whole until that
half is the largest.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.efficiency.rows import (
    PHASES,
    SPREAD,
    TRAIN_PHASES,
    basis,
    compared,
    each,
    laid_out,
    of_work,
    source,
    written,
)
from geo_utils.show.plots import BLUE, canvas, finished, interval_figure, name_rows
from geo_utils.text import capitalised

# Columns of `step_table`: of one work's steps, of their bounds, and all.
STEP = "setting schedule latency gpus took gpu_seconds_per_sample needed_gib abstained n"
BOUND = "setting schedule took synchronous streaming ahead ratio n"
EVERY = "setting group amount schedule latency gpus took mean_s synchronous streaming ahead ratio "
EVERY += "gpu_seconds_per_sample needed_gib abstained n bench note"
_CUT = 8  # bars that are so many times the shortest are cut
_RED = "#c1272d"
_COLOURS = ["#7a5195", BLUE, _RED, "#e0a030", "#3b8f6e", "#63b38f", "#a8d5ba"]
SHADES = dict(zip(PHASES, [*_COLOURS, "#bbbbbb", "#dddddd"], strict=True))
# The bound of each schedule; `fused` leaves a pass out and overlaps nothing.
REGIME = {"stock": "synchronous", "fused": "synchronous", "early": "streaming", "ahead": "ahead"}


def least_step(row: Any, latency_s: Any = None, parallel: bool | None = None) -> dict[str, Any]:
    """Return the least seconds of a step with the parts of a measured one, under each regime.

    The reward of a service with a stated latency takes that latency where all are asked for at
    once, and the sum of all where one follows the other. Any other takes the time in which engine
    or judge were asked, without that the reward's phase; and one completion its share of it.

    Args:
        row: A row of `rows.table_of` with phases.
        latency_s: Another latency than the row's, where that is stated; also an array of them.
        parallel: Whether all are asked for at once, where not as the row's.

    Returns:
        `synchronous`, `streaming`, `ahead`, and `own`, the one of the row's schedule.
    """
    phases = row.phases | row.background  # there, the main thread shows only the wait
    sync, generation = phases.get("weight sync", 0.0), phases.get("generation", 0.0)
    old = phases.get("old log-probabilities", 0.0)
    train = sum(phases.get(name, 0.0) for name in TRAIN_PHASES)
    at_once = row.parallel if parallel is None else parallel
    if row.reward == "gemini" and row.reward_latency_s >= 0:
        one = row.reward_latency_s if latency_s is None else latency_s
        reward = one if at_once else one * row.completions
    else:
        asked = np.nan_to_num(row.engine_s + np.nan_to_num(row.judge_s))
        reward = asked or phases.get("reward", 0.0)
        one = reward / row.completions
    # A row says how many GPUs it held: with fewer than its roles, the engine is the one that
    # shares, with the policy, wherever that is.
    model, server = row.reward.startswith("qwen"), row.policy == "server"
    shares = model and row.gpus < 2 + server
    apart = server and row.gpus > 1

    synchronous = sync + generation + reward + train
    rest = reward if shares else np.maximum(reward - generation, one)
    streaming = sync + generation + np.maximum(rest, old) + (train - old)
    if shares and not apart:
        streaming = synchronous
    busy = [sync + train, sync + generation] if apart else [sync + generation + train]
    if shares:
        busy[-1] += reward
    elif model or not at_once:
        busy.append(reward)
    found = {
        "synchronous": synchronous,
        "streaming": streaming,
        "ahead": reduce(np.maximum, [*busy, streaming / 2]),
    }
    return found | {"own": found[REGIME[row.schedule]]}


def bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the least seconds per step under each regime, and the measured step beside its own.

    One step ahead, two batches are at a model's engine at once, and the time of each holds the
    other's. What one costs is then that of the same sitting's row in TRL's order, if there is one.

    Args:
        rows: As `rows.table_of`; all measured.

    Returns:
        With the index of the rows: as `least_step`; `ratio`, the measured step over `own`, NaN
        where that is nothing but the sum of the row's own phases.
    """
    same = ["work", "policy", "reward", "gpus", "sitting"]
    in_order = rows[rows["schedule"] == "stock"].drop_duplicates(same, keep="last")
    one = rows[same].merge(in_order, "left", on=same).set_axis(rows.index)
    doubled = ~rows["on_policy"] & rows["reward"].str.startswith("qwen") & one["setting"].notna()
    alone = {name: rows[name].mask(doubled, one[name]) for name in ("engine_s", "judge_s")}
    columns = ["synchronous", "streaming", "ahead", "own"]
    least = [least_step(row) for row in each(rows.assign(**alone))]
    found = pd.DataFrame(least, columns=columns, index=rows.index, dtype=float)
    hidden = rows["schedule"].isin(["early", "ahead"]) & found["own"].ne(0)
    return found.assign(ratio=(rows["typical_s"] / found["own"]).where(hidden))


def predicted_step(row: Any, latency_s: Any, parallel: bool | None = None) -> Any:
    """Predict a row's step time at another latency of its reward, or asked in another way.

    It is the bound of the row's schedule at that latency, and what the measurement took above its
    own bound. A row whose reward has no stated latency keeps its measured time.

    Args:
        row: As `least_step`.
        latency_s: Likewise.
        parallel: Likewise.
    """
    then = least_step(row, latency_s, parallel)["own"]
    return row.step_s + (then - least_step(row)["own"])


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
        "server alone, which takes the share it is given."
    )
    if "ratio" in columns.split():
        caption += " Measured / bound: over that of its own schedule, where that is not simply the "
        caption += "sum of the row's phases."
    if most is not None:
        caption += f" {len(shown)} of {len(main)} rows of this work; all are in the report."
    best = shown.index[shown["step_s"] == shown["step_s"].min()]
    table = shown.assign(note=told).join(bounds(shown))
    return laid_out(table, columns, f"{caption} Source: {source(results)}.", list(best))


def step_figure(results: pd.DataFrame, place: int = 0) -> Figure | None:
    """Stack the phases of a step for each setting, the bound of its schedule marked.

    A bar that is much longer than the others is cut. None if nothing was measured.

    Args:
        results: Put together by `rows.pooled`.
        place: 0 for the work that most settings were measured at, 1 for the next.
    """
    every = of_work(results, place)
    if every.empty:
        return None
    rows = compared(every)
    best, slow = rows.iloc[0], rows.iloc[-1]
    apart = len(rows) == 1 or best["high"] < rows.iloc[1]["low"]
    how = "is fastest" if apart else "has the lowest median"
    title = f"{best['amount']}: {best['label']} {how}, {best['step_s']:.1f} s per step"
    if len(rows) > 1:
        times = slow["step_s"] / best["step_s"]
        title += f"; {slow['label']} takes {times:.1f} times as long"
    figure, axes = canvas(len(rows))
    widest = float(rows.loc[rows["step_s"] <= _CUT * best["step_s"], "step_s"].max())
    phases = pd.DataFrame(list(rows["phases"])).reindex(columns=PHASES).fillna(0.0)
    ends = phases.cumsum(axis=1).clip(upper=1.05 * widest)
    left = pd.Series(0.0, ends.index)
    for phase, shade in SHADES.items():
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


def gpu_figure(results: pd.DataFrame) -> Figure | None:
    """Draw the GPU-seconds that a sample costs, over all GPUs held; None if none was."""
    rows = compared(of_work(results))
    rows = rows[rows["gpu_seconds_per_sample"] > 0]
    rows = rows.sort_values("gpu_seconds_per_sample", kind="stable")
    if rows.empty:
        return None
    cost = rows["gpu_seconds_per_sample"]
    best, fastest = rows.iloc[0], rows.sort_values("step_s").iloc[0]
    title = f"{capitalised(best['label'])} takes least of the GPUs: {cost.iloc[0]:.2f} s a sample"
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
