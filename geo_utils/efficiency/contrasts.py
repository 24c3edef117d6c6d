"""What one change does to a step: pairs that differ in one thing, measured in one sitting."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from geo_utils.efficiency.bounds import predicted_step
from geo_utils.efficiency.rows import (
    SPREAD,
    basis,
    each,
    laid_out,
    nothing,
    of_work,
    sentence,
    source,
)
from geo_utils.show.plots import BLUE, canvas, finished, interval_figure
from geo_utils.statistics import with_interval

# What is there instead of what, the field that differs, its value before, and after.
CHANGES: tuple[tuple[str, str, Any, Any], ...] = (
    ("policy: vLLM server, not Transformers", "policy", "transformers", "server"),
    ("policy: vLLM colocated, not Transformers", "policy", "transformers", "colocate"),
    ("engine: vLLM, not Transformers", "reward", "qwen_transformers", "qwen_vllm"),
    ("asked in parallel, not one by one", "parallel", False, True),
    ("policy: server, not colocated", "policy", "colocate", "server"),
    ("engine: server, not in process", "reward", "qwen_vllm", "qwen_server"),
    ("one step ahead, not TRL's order", "schedule", "stock", "ahead"),
    ("one step ahead, not on policy early", "schedule", "early", "ahead"),
    ("layers compiled, not eager", "compiled", False, True),
)
# Two rows are compared where all of this is the same, but for what the comparison is about.
_SAME = ["sitting", "work", "policy", "reward", "schedule", "parallel", "shared"]
_SAME += ["micro_batch", "checkpointing", "compiled", "asked_s", "page_tokens"]
RED = "#c1272d"


def _paired(ones: pd.DataFrame, others: pd.DataFrame, *but: str) -> pd.DataFrame:
    """Return every pair of rows that are the same but for some fields.

    Compilation is a field of its own and one of the recipe.
    """
    left_out = "torch_compile" if "compiled" in but else ""

    def keyed(rows: pd.DataFrame) -> pd.DataFrame:
        told = rows[rows["measured"] & ~rows["unasked"]]
        recipes = [{k: v for k, v in recipe.items() if k != left_out} for recipe in told["recipe"]]
        same = [json.dumps(recipe, sort_keys=True) for recipe in recipes]
        return told.assign(same_recipe=pd.Series(same, told.index, object), row=told.index)

    on = ["same_recipe", *(name for name in _SAME if name not in but)]
    return keyed(ones).merge(keyed(others), on=on, suffixes=("", "_against"))


def _nearest(pairs: pd.DataFrame, *first: str) -> pd.DataFrame:
    """Return each row's partner: of the same group where there is one, and the fastest of several.

    Args:
        pairs: As `_paired`.
        first: Columns that count before the group; the smallest wins.
    """
    other = pairs["group"] != pairs["group_against"]
    order = ["row", *first, "other_group", "step_s_against"]
    nearest = pairs.assign(other_group=other).sort_values(order, kind="stable")
    return _divided(nearest.drop_duplicates("row").reset_index(drop=True))


def _divided(pairs: pd.DataFrame) -> pd.DataFrame:
    """Divide the step times of pairs, the interval from the quartiles of both."""
    ratio = pairs["step_s"] / pairs["step_s_against"]
    low, high = pairs["low"] / pairs["high_against"], pairs["high"] / pairs["low_against"]
    found = pairs.assign(ratio=ratio, ratio_low=low, ratio_high=high)
    for name, values in (
        ("longer", (ratio, low, high)),
        ("faster", (1 / ratio, 1 / high, 1 / low)),
    ):
        found[name] = [with_interval(*ends, digits=2) for ends in zip(*values, strict=True)]
    return found


def changed(results: pd.DataFrame, field: str, before: Any, after: Any) -> pd.DataFrame:
    """Divide each step time by that of the row which differs in one thing alone.

    Args:
        results: Put together by `rows.pooled` within each sitting.
        field: What differs.
        before: Its value in the row that is divided by.
        after: Its value in the other.

    Returns:
        A row for each pair: the columns of `results`, those of the row divided by with the suffix
        `_against`; `row` and `row_against`, their index; `ratio`, `ratio_low` and `ratio_high`,
        with the quartiles of both; `longer` and `faster`, the ratio and its inverse as written.
    """
    ones, others = results[results[field] == after], results[results[field] == before]
    return _nearest(_paired(ones, others, field))


def study_contrasts(results: pd.DataFrame) -> pd.DataFrame:
    """Return what the study asks: each of `CHANGES`, named in `what`; else as `changed`."""
    return pd.concat(
        [changed(results, *values).assign(what=name) for name, *values in CHANGES],
        ignore_index=True,
    )


def one_by_one(results: pd.DataFrame) -> pd.DataFrame:
    """Divide each result that asks one by one by the same that asks in parallel."""
    return changed(results, "parallel", True, False)


def against_no_latency(results: pd.DataFrame) -> pd.DataFrame:
    """Divide each result with a stated latency by the same with a reward that asks nothing.

    Where the latter has nothing to begin early, `fused` stands for `early`.
    """
    free = results[results["reward"] == "negative_length"]
    but = ("reward", "schedule", "parallel", "asked_s")
    pairs = _paired(results[results["asked_s"] > 0], free, *but)
    stands_in = pairs["schedule"] != pairs["schedule_against"]
    early = pairs["schedule"].eq("early") & pairs["schedule_against"].eq("fused")
    return _nearest(pairs.assign(stands_in=stands_in)[~stands_in | early], "stands_in")


def against_stock(results: pd.DataFrame) -> pd.DataFrame:
    """Divide each result of another schedule by the stock one with the same reward."""
    return pd.concat(
        [changed(results, "schedule", "stock", other) for other in ("fused", "early", "ahead")],
        ignore_index=True,
    )


def ablation(results: pd.DataFrame, settings: Iterable[str]) -> pd.DataFrame:
    """Divide the results of an ablation by the first of them, work by work and sitting by sitting.

    Args:
        results: Put together by `rows.pooled` within each sitting.
        settings: In the order of the file: the first of a size is what the others change. A
            sitting without it is compared with nothing.
    """
    names = {name: place for place, name in enumerate(settings)}
    found = results[results["measured"] & results["setting"].isin(names)]
    found = found.drop_duplicates(["setting", "sitting", "work"], keep="last")
    found = found.assign(
        part=found.groupby(["sitting", "work"], sort=False).ngroup(),
        place=found["setting"].map(names),
    ).sort_values(["part", "place"])
    first = found.sort_values("place").groupby("completions")["setting"].first()
    base = found[found["setting"] == found["completions"].map(first)]
    return _divided(found.merge(base, on=["part", "sitting", "work"], suffixes=("", "_against")))


def contrast_table(pairs: pd.DataFrame, what: str, most: int | None = None) -> Styler:
    """List ratios of step times.

    Args:
        pairs: As `changed` returns them, with or without `what`.
        what: What the ratio compares, for the caption.
        most: Show the first so many, for a slide.
    """
    shown = pairs[:most]
    table = pd.DataFrame(
        {
            **({"what differs": shown["what"]} if "what" in shown else {}),
            "setting": shown["label"],
            "against": shown["label_against"],
            "work": shown["amount"],
            "latency": shown["latency"],
            "s per step": shown["took"],
            "against, s": shown["took_against"],
            "ratio": shown["longer"],
            "n": shown["n"] + " / " + shown["n_against"],
        }
    )
    cut = f" {most} of {len(pairs)} rows." if most and len(pairs) > most else ""
    told = sentence(source(_sides(pairs)))
    return laid_out(table, f"{what} {SPREAD} Ratio [from the quartiles of both].{cut} {told}.")


def contrast_figure(results: pd.DataFrame) -> Figure:
    """Draw what each of the study's changes gains: how many times as fast a step is.

    Of many, those whose ratio is furthest from 1 are shown.

    Args:
        results: Put together by `rows.pooled` within each sitting.
    """
    every = study_contrasts(results)
    if every.empty:
        return nothing("No two settings of one sitting differ in one thing alone")
    furthest = every["ratio"].map(np.log).abs().sort_values(ascending=False, kind="stable")
    kept = every.loc[furthest.index[:14]].sort_values("ratio", kind="stable")
    best, slow = kept.iloc[0], kept[kept["ratio_low"] > 1]
    title = f"{sentence(best['what'])}: a step is {1 / best['ratio']:.1f} times as fast"
    if len(slow):
        title += f"; {slow.iloc[-1]['what']}: {slow.iloc[-1]['ratio']:.2f} times as long"
    rows = pd.DataFrame(
        {
            "mean": 1 / kept["ratio"],
            "low": 1 / kept["ratio_high"],
            "high": 1 / kept["ratio_low"],
            "text": kept["faster"],
        }
    ).set_axis(kept["what"] + "\n" + kept["label"])
    sides = _sides(kept)
    cut = f"{len(kept)} of {len(every)} pairs. " * (len(kept) < len(every))
    figure = interval_figure(
        rows,
        title,
        "times as fast as without the change, one thing changed in one sitting",
        f"{cut}Bars: from the quartiles of both. {basis(sides, sides)}",
    )
    (axes,) = figure.axes
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    return figure


def study_findings(results: pd.DataFrame) -> str:
    """Say in Markdown what each of the study's changes does to a step, within one sitting."""
    lines = []
    for c in each(study_contrasts(results)):
        factor = f"{c.longer} times as long" if c.ratio > 1 else f"{c.faster} times as fast"
        lines.append(
            f"- {sentence(c.what)}: **{factor}** ({c.label} {c.took} s, {c.label_against} "
            f"{c.took_against} s; {c.amount}; n = {c.n} and {c.n_against})."
        )
    return _ratios(lines, results)


def vllm_gains(results: pd.DataFrame) -> pd.DataFrame:
    """Divide steps with the policy on vLLM by the same with Transformers, Gemini in parallel."""
    kinds = [changed(results, "policy", "transformers", vllm) for vllm in ("server", "colocate")]
    pairs = pd.concat(kinds, ignore_index=True)
    return pairs[pairs["parallel"] & pairs["asked_s"].gt(0) & pairs["schedule"].eq("stock")]


def _predicted_gains(results: pd.DataFrame, pair: Any, parallel: bool) -> Callable[[float], float]:
    """Return how many times as fast vLLM is predicted to make the step of a pair at a latency."""
    fast, slow = each(results.loc[[pair.row, pair.row_against]])

    def gain(latency_s: float) -> float:
        then = [predicted_step(row, latency_s, parallel) for row in (slow, fast)]
        return then[0] / then[1]

    return gain


def vllm_gain_findings(results: pd.DataFrame) -> str:
    """Say in Markdown how much faster vLLM makes a step with Gemini, and when it is double."""
    lines = []
    for c in each(vllm_gains(results)):
        parallel, single = (_predicted_gains(results, c, at_once) for at_once in (True, False))
        lines.append(
            f"- With vLLM in place of Transformers, Gemini asked in parallel ({c.asked_s:g} s), a "
            f"step is **{1 / c.ratio:.1f} [{1 / c.ratio_high:.1f}, {1 / c.ratio_low:.1f}] times** "
            f"as fast ({c.label} {c.took} s, {c.label_against} {c.took_against} s; "
            f"n = {c.n} and {c.n_against})."
        )
        lines.append(
            f"- Asked one by one at the same latency it is {single(c.asked_s):.2f} times "
            "(predicted)."
        )
        told = []
        for gain, how in ((parallel, "in parallel"), (single, "one by one")):
            below = next((s / 10 for s in range(1201) if gain(s / 10) < 2), None)
            if below is not None:
                told.append(f"{below:.1f} s a completion where they are asked {how}")
        lines.append(
            f"- It is slightly less than double (below 2, predicted) from {' or '.join(told)}."
            if told
            else "- It is above double at every latency up to 120 s (predicted)."
        )
    return _ratios(lines, results)


def vllm_gain_figure(results: pd.DataFrame) -> Figure:
    """Draw how much faster vLLM makes a step with Gemini, over the latency of its answers.

    Args:
        results: Put together by `rows.pooled` within each sitting.
    """
    pairs = vllm_gains(results)
    if pairs.empty:
        return nothing("No pair with Gemini differs in vLLM alone")
    c = next(each(pairs))
    figure, axes = canvas(8)
    grid = np.geomspace(0.1, 60, 120)
    for parallel, name, shade in ((True, "in parallel", BLUE), (False, "one by one", RED)):
        gains = [*map(_predicted_gains(results, c, parallel), grid)]
        axes.plot(grid, gains, color=shade, linewidth=3)
        end = (grid[-1], gains[-1])
        axes.annotate(f" asked {name}", end, va="center", color=shade, fontsize=14)
    spread = (1 / c.ratio_high, 1 / c.ratio_low)
    axes.plot((c.asked_s, c.asked_s), spread, color=BLUE, linewidth=5, alpha=0.5)
    axes.plot(c.asked_s, 1 / c.ratio, "o", color=BLUE, markersize=11)
    axes.axhline(2.0, color="black", linewidth=1, linestyle="--")
    axes.annotate("double", (grid[0], 2.0), va="bottom", fontsize=14)
    axes.set(xscale="log", xlabel="seconds that engine and judge take for a completion")
    axes.set(ylabel="times as fast", ylim=(0, None), xlim=(0.1, 200))
    logarithmic(axes.xaxis)
    sides = _sides(pairs[:1])
    title = (
        f"With Gemini in parallel at {c.asked_s:g} s, vLLM makes a step {1 / c.ratio:.1f} times "
        "as fast; the longer Gemini takes, the less it gains"
    )
    marks = "Point: measured, bar: from the quartiles of both; lines: predicted."
    return finished(figure, title, f"{marks} {c.amount}. {basis(sides, sides)}")


def latency_figure(results: pd.DataFrame) -> Figure:
    """Draw the step over the reward's latency: measured points, predicted lines."""
    rows = of_work(results[results["asked_s"].notna()])
    if rows.empty:
        return nothing("No setting with a stated latency of the reward was measured")
    at = np.linspace(0, 20, 81)
    free = against_no_latency(results[results["work"].isin(rows["work"])])
    without = dict(zip(free["setting"], free["step_s_against"], strict=True))
    figure, axes = canvas(8)
    ends: list[tuple[float, str, Any]] = []
    slopes = {}
    for number, (setting, group) in enumerate(rows.groupby("setting", sort=False)):
        shade = sns.color_palette("colorblind")[number % 10]
        style = ("-", "--", "-.", ":")[number // 10 % 4]
        longest = group.sort_values("asked_s", ascending=False, kind="stable")
        row = next(each(longest))
        line = [predicted_step(row, latency_s) for latency_s in at]
        axes.plot(at, line, style, color=shade, linewidth=2)
        axes.vlines(group["asked_s"], group["low"], group["high"], shade, linewidth=4, alpha=0.45)
        axes.plot(group["asked_s"], group["step_s"], "o", color=shade, markersize=10)
        if setting in without:
            hollow = {"fillstyle": "none", "markersize": 10, "clip_on": False}
            axes.plot(0, without[setting], "o", color=shade, **hollow)
        ends.append((line[-1], row.label, shade))
        last = list(each(group))[-1]
        slopes[row.label] = predicted_step(last, 20.0) - predicted_step(last, 0.0)
    axes.set(xlim=(0, 20), xlabel="seconds that engine and judge take for a completion")
    axes.set_ylabel("seconds per step")
    if max(ends)[0] > 20 * max(min(ends)[0], 1e-9):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
    axes.set_ylim(*axes.get_ylim())
    _label_ends(axes, ends)
    flat, steep = min(slopes, key=slopes.__getitem__), max(slopes, key=slopes.__getitem__)
    title = (
        f"With 20 s of latency instead of none, a step of {steep} is predicted to take "
        f"{slopes[steep]:.0f} s more, of {flat} {slopes[flat]:.0f} s"
    )
    marks = "Points: measured (open: without an engine), bars: quartiles; lines: predicted."
    return finished(figure, title, f"{marks} {rows['amount'].iloc[0]}. {basis(rows, results)}")


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Write each line's name at its right end, pushed apart where lines end together."""
    to_axes = axes.transData + axes.transAxes.inverted()
    floor = -1.0
    for end, name, shade in sorted(ends, key=lambda end: end[0]):
        floor = max(float(to_axes.transform((20.0, end))[1]), floor + 0.055)
        place: dict[str, Any] = {"xycoords": "axes fraction", "va": "center", "fontsize": 14}
        axes.annotate(name, (1.01, floor), color=shade, **place)


def latency_findings(results: pd.DataFrame) -> str:
    """Say in Markdown what asking in parallel gained, and what latency is left to pay for."""
    lines = []
    for c in each(one_by_one(results)):
        lines.append(
            f"- Asked one by one instead of in parallel, {c.completions:.0f} completions make a "
            f"step **{c.longer} times** as long ({c.label} {c.took} s, {c.label_against} "
            f"{c.took_against} s; {_waits(c)}; n = {c.n} and {c.n_against})."
        )
    for c in each(_best_of_each(against_no_latency(results))):
        how = "on policy" if c.on_policy else "one step off policy"
        lines.append(
            f"- {sentence(c.label)} ({how}, {_waits(c)}, {c.amount}): **{c.longer} times** the "
            f"step without an engine ({c.took} s, {c.label_against} {c.took_against} s; "
            f"n = {c.n} and {c.n_against})."
        )
    return _ratios(lines, results)


def _waits(c: Any) -> str:
    known = c.reward_latency_s >= 0
    return f"{c.reward_latency_s:g} s a completion" if known else "the real service"


def schedule_findings(results: pd.DataFrame) -> str:
    """Say in Markdown what the other schedules gain, by the best setting of each."""
    lines = []
    for c in each(_best_of_each(against_stock(results))):
        saved = c.step_s_against - c.step_s
        lines.append(
            f"- Schedule `{c.schedule}` {'saves' if saved >= 0 else 'costs'} {abs(saved):.2f} s "
            f"per step beside `stock` ({c.amount}: {c.label} {c.took} s, {c.label_against} "
            f"{c.took_against} s; ratio {c.longer}; n = {c.n} and {c.n_against})."
        )
    return _ratios(lines, results)


def _best_of_each(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the lowest ratio of each work and schedule, of those that ask in parallel."""
    best = pairs[pairs["parallel"].astype(bool)].sort_values("ratio", kind="stable")
    return best.drop_duplicates(["work", "schedule"]).sort_index()


def _ratios(lines: Sequence[str], results: pd.DataFrame) -> str:
    body = lines or ["No two settings were measured that differ in this alone."]
    note = f"Ratios of medians [from the quartiles of both]. Source: {source(results)}."
    return "\n".join([*body, "", note])


def _sides(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return what both rows of each pair rest on."""
    told = ["setting", "measured", "hardware", "simulated", "n"]
    others = pairs[[f"{name}_against" for name in told]].set_axis(told, axis=1)
    return pd.concat([pairs[told], others], ignore_index=True)


def logarithmic(axis: Axis) -> None:
    """Label an axis in steps of 1, 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
