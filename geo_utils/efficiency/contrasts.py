"""What one change does to a step: pairs that differ in one thing, measured in one sitting."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from geo_utils.efficiency.rows import SPREAD, basis, each, laid_out, source, written
from geo_utils.efficiency.steps import SHADES, predicted_step
from geo_utils.show.plots import canvas, finished, interval_figure, name_rows

# What is there instead of what, the field that differs, its value before, and after.
CHANGES: tuple[tuple[str, str, Any, Any], ...] = (
    ("Policy: vLLM server, not Transformers", "policy", "transformers", "server"),
    ("Policy: vLLM colocated, not Transformers", "policy", "transformers", "colocate"),
    ("Engine: vLLM, not Transformers", "reward", "qwen_transformers", "qwen_vllm"),
    ("Asked in parallel, not one by one", "parallel", False, True),
    ("Policy: server, not colocated", "policy", "colocate", "server"),
    ("Engine: server, not in process", "reward", "qwen_vllm", "qwen_server"),
    ("Old log-probabilities fused, not TRL's order", "schedule", "stock", "fused"),
    ("Rewards begun early, not TRL's order", "schedule", "stock", "early"),
    ("One step ahead, not TRL's order", "schedule", "stock", "ahead"),
    ("One step ahead, not on policy early", "schedule", "early", "ahead"),
    ("Two trainers with half of the batch each", "trainers", 1, 2),
    ("Layers compiled, not eager", "compiled", False, True),
    ("A group's prompt once, not with each completion", "shared_prefix", "each", "flex"),
    ("Weights written into vLLM, not merged and sent", "direct_sync", False, True),
    ("Target as last source, not in a drawn place", "target_place", "drawn", "last"),
)
# A step's phases as they follow each other, in TRL's order and, the policy in vLLM within the
# trainer's process, one step ahead: there the next batch is written, this one's rewards awaited.
_IN_ORDER = ["between steps", "weight sync", "generation", "old log-probabilities", "reward"]
_IN_ORDER += ["batch preparation", "loss forward", "backward", "optimizer"]
# Two rows are compared where all of this is the same, but for what the comparison is about.
_SAME = ["sitting", "work", "policy", "reward", "schedule", "parallel", "compiled"]
_SAME += ["trainers", "shared_prefix", "direct_sync", "target_place"]
_SAME += ["asked_s", "page_tokens"]


def _paired(ones: pd.DataFrame, others: pd.DataFrame, *but: str) -> pd.DataFrame:
    """Return each row with the one that is the same but for some fields; see `changed`.

    Of several it is one of the same group where there is one, and the fastest of those.
    """

    def keyed(rows: pd.DataFrame) -> pd.DataFrame:
        told = rows[rows["measured"] & ~rows["unasked"]]
        same = [
            json.dumps(recipe | {"torch_compile": 0}, sort_keys=True) for recipe in told["recipe"]
        ]
        return told.assign(same_recipe=pd.Series(same, told.index, object), row=told.index)

    on = ["same_recipe", *(name for name in _SAME if name not in but)]
    pairs = keyed(ones).merge(keyed(others), on=on, suffixes=("", "_against"))
    pairs["other_group"] = pairs["group"] != pairs["group_against"]
    nearest = pairs.sort_values(["row", "other_group", "step_s_against"], kind="stable")
    return _divided(nearest.drop_duplicates("row"))


def _divided(pairs: pd.DataFrame) -> pd.DataFrame:
    """Divide the step times of pairs, the interval from the quartiles of both."""
    ratio = pairs["step_s"] / pairs["step_s_against"]
    low, high = pairs["low"] / pairs["high_against"], pairs["high"] / pairs["low_against"]
    return pairs.assign(
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        longer=written(ratio, low, high),
        faster=written(1 / ratio, 1 / high, 1 / low),
        both_n=pairs["n"] + " and " + pairs["n_against"],
    )


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
        with the quartiles of both; `longer` and `faster`, the ratio and its inverse as written;
        `both_n`.
    """
    return _paired(results[results[field] == after], results[results[field] == before], field)


def study_contrasts(results: pd.DataFrame) -> pd.DataFrame:
    """Return what the study asks: each of `CHANGES`, named in `change`; else as `changed`."""
    pairs = [changed(results, *values).assign(change=name) for name, *values in CHANGES]
    return pd.concat(pairs, ignore_index=True)


def against_no_latency(results: pd.DataFrame) -> pd.DataFrame:
    """Divide each result with a stated latency by the same with a reward that asks nothing.

    Where the latter has nothing to begin early, `fused` stands for `early`.
    """
    asking, free = results[results["asked_s"] > 0], results[results["reward"] == "negative_length"]
    stand_ins = free[free["schedule"] == "fused"].assign(schedule="early")
    but = ("reward", "parallel", "asked_s")
    pairs = pd.concat([_paired(asking, rows, *but) for rows in (free, stand_ins)])
    return pairs.drop_duplicates("row").sort_values("row", ignore_index=True)


def ablation(results: pd.DataFrame, settings: Iterable[str]) -> pd.DataFrame:
    """Divide the results of an ablation by the first of them, work by work and sitting by sitting.

    Args:
        results: Put together by `rows.pooled` within each sitting.
        settings: In the order of the file: the first of a size is what the others change. A
            sitting without it is compared with nothing.
    """
    order = {name: place for place, name in enumerate(settings)}
    found = results[results["measured"]].assign(place=results["setting"].map(order))
    found = found.drop_duplicates(["setting", "sitting", "work"], keep="last")
    found = found.dropna(subset="place").sort_values("place", kind="stable")
    base = found.merge(found.drop_duplicates("completions")[["setting", "completions"]])
    pairs = found.merge(base, on=["sitting", "work"], suffixes=("", "_against"))
    return _divided(pairs.sort_values(["sitting", "completions", "place"], ignore_index=True))


def contrast_table(pairs: pd.DataFrame, what: str) -> Styler:
    """List ratios of step times.

    Args:
        pairs: As `changed` returns them, with or without `change`.
        what: What the ratio compares, for the caption.
    """
    columns = "setting setting_against amount latency took took_against longer both_n"
    told = f"Ratio [from the quartiles of both]. Source: {source(_sides(pairs))}."
    return laid_out(pairs, "change " * ("change" in pairs) + columns, f"{what} {SPREAD} {told}")


def contrast_figure(pairs: pd.DataFrame) -> Figure | None:
    """Draw what each of the study's changes gains: how many times as fast a step is.

    Of each, the pair whose ratio is furthest from 1 is filled, and written beside it.
    None without a pair.

    Args:
        pairs: As `study_contrasts`.
    """
    if pairs.empty:
        return None
    far = np.log(pairs["ratio"]).abs().groupby(pairs["change"]).idxmax()
    named = pairs.loc[far].sort_values("ratio", kind="stable")
    best, slow = named.iloc[0], named[named["ratio_low"] > 1]
    told = ["No change makes a step faster beyond the quartiles of both"]
    if best["ratio_high"] < 1:
        told = [f"{best['change']}: a step is {1 / best['ratio']:.1f} times as fast"]
    if len(slow):
        worst = slow.iloc[-1]
        told.append(f"{worst['change']}: {worst['ratio']:.2f} times as long")
    title = "; ".join(told)
    rows = pd.DataFrame(
        {
            "change": pd.Categorical(pairs["change"], named["change"]),
            "mean": 1 / pairs["ratio"],
            "low": 1 / pairs["ratio_high"],
            "high": 1 / pairs["ratio_low"],
            "hollow": ~pairs.index.isin(named.index),
            "text": pairs["faster"].where(pairs.index.isin(named.index), ""),
        }
    )
    sides = _sides(pairs)
    figure = interval_figure(
        rows.sort_values("change", kind="stable").set_index("change"),
        title,
        "times as fast as without the change, one thing changed in one sitting",
        f"{len(pairs)} pairs; filled and written: of each change the one furthest from 1. "
        f"Bars: from the quartiles of both. {basis(sides, sides)}",
    )
    (axes,) = figure.axes
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def timeline_figure(results: pd.DataFrame) -> Figure | None:
    """Lay out the phases of a step in TRL's order, and of two steps one step ahead, over time.

    Of the pairs whose reward has a stated latency it is the one that gains most. A model's engine
    that serves two batches at once has long and short steps in turn, and no step is like the mean.
    None without such a pair.

    Args:
        results: Put together by `rows.pooled` within each sitting.
    """
    pairs = changed(results, "schedule", "stock", "ahead")
    pairs = pairs[pairs["asked_s"].gt(0) & pairs["policy"].eq("colocate")]
    if pairs.empty:
        return None
    pair = pairs.sort_values("ratio", kind="stable").head(1)
    ahead, stock = each(results.loc[pair[["row", "row_against"]].values[0]])
    figure, axes = canvas(4)

    def draw(y: int, start: float, seconds: float, phase: str, text: str = "") -> None:
        left, right = max(start, 0.0), min(start + seconds, end)
        if left < right:
            axes.barh(y, right - left, 0.75, left, color=SHADES[phase], edgecolor="white")
        if right - left > end / 20:
            middle = (left + right) / 2
            axes.text(middle, y, text, ha="center", va="center", color="white", fontsize=14)

    wholes = []
    for y, row, steps in ((0, stock, 1), (2, ahead, 2)):  # `ahead` last: the title is about it
        means = {name: np.mean(seconds) for name, seconds in (row.phases_all or row.phases).items()}
        spent = pd.Series(means).reindex(_IN_ORDER).fillna(0.0)
        starts: Any = spent.cumsum() - spent
        whole = float(spent.sum())
        later = steps - 1  # a batch is trained on so many steps after the one that writes it
        rewards = row.background.get("reward", spent["reward"])
        engine, judge = np.nan_to_num([row.engine_s, row.judge_s])
        asked = {"engine": engine, "judge": judge, "": rewards - engine - judge}
        wholes.append(whole)
        end = steps * whole
        for step in range(steps):
            texts = {"generation": str(step + later + 1), "loss forward": str(step + 1)}
            for phase, start in starts.items():
                draw(y, step * whole + start, spent[phase], phase, texts.get(phase, ""))
            axes.plot([(step + 1) * whole] * 2, (y - 0.45, y + 1.45), color="black", linewidth=2)
        for batch in range(steps + later):
            start = (batch - later) * whole + starts["reward"]
            for name, seconds in asked.items():
                draw(y + 1, start, seconds, "reward", name and f"{name} {batch + 1}")
                start += seconds
    for phase in _IN_ORDER:
        axes.barh(0, 0, color=SHADES[phase], label=phase)
    figure.legend(frameon=False, fontsize=14, loc="outside right center")
    beside = "engine and judge"
    name_rows(axes, ["TRL's order: trainer", beside, "one step ahead *: trainer", beside])
    axes.set(xlabel="seconds; a number is a batch")
    title = (
        f"{ahead.amount}: one step ahead, {rewards - spent['reward']:.1f} of {rewards:.1f} s of "
        f"rewards run beside the trainer: {wholes[1]:.1f} s a step, not {wholes[0]:.1f} s"
    )
    note = (
        "Drawn from mean seconds; no start is recorded. Phases follow each other as the schedule "
        "has them, each in one piece; where the trainer's row is red, it waits. A batch's rewards "
        "are begun when it is written, engine before judge. Black line: a step ends. "
    )
    sides = _sides(pair)
    return finished(figure, title, note + basis(sides, sides))


def vllm_findings(results: pd.DataFrame) -> str:
    """Say in Markdown how much faster vLLM makes a step with Gemini, and when it is double.

    Args:
        results: Put together by `rows.pooled` within each sitting.
    """
    kinds = [changed(results, "policy", "transformers", vllm) for vllm in ("server", "colocate")]
    pairs = pd.concat(kinds)
    pairs = pairs[pairs["parallel"] & pairs["asked_s"].gt(0) & pairs["schedule"].eq("stock")]
    at, lines = np.arange(1201) / 10, []
    for c in each(pairs):
        fast, slow = each(results.loc[[c.row, c.row_against]])
        lines.append(
            f"- With vLLM in place of Transformers, Gemini asked in parallel ({c.asked_s:g} s), a "
            f"step is **{c.faster} times as fast** ({c.label} {c.took} s, {c.label_against} "
            f"{c.took_against} s; n = {c.both_n})."
        )
        for parallel, how in ((True, "in parallel"), (False, "one by one")):
            gain = predicted_step(slow, at, parallel) / predicted_step(fast, at, parallel)
            under = [f"from {latency:.1f} s a completion" for latency in at[gain < 2][:1]]
            lines.append(
                f"- Asked {how}, {np.interp(c.asked_s, at, gain):.2f} times at the same latency, "
                f"less than double {''.join(under) or 'at no latency up to 120 s'} (predicted)."
            )
    note = f"Ratios of medians [from the quartiles of both]. Source: {source(_sides(pairs))}."
    return "\n".join([*(lines or ["No two settings differ in vLLM alone."]), "", note])


def _sides(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return what both rows of each pair rest on."""
    told = ["setting", "measured", "hardware", "simulated", "n"]
    others = pairs[[f"{name}_against" for name in told]].set_axis(told, axis=1)
    return pd.concat([pairs[told], others], ignore_index=True)
