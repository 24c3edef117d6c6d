"""Figures: one message each, its claim computed into the title, intervals on every estimate."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geo_utils.roles.methods import (
    METHODS,
    NO_SOURCES,
    REMOVED,
    is_pooled,
    label,
    published_method,
    shuffled_method,
)
from geo_utils.show.tables import abstentions, count_range
from geo_utils.statistics import with_interval
from geo_utils.summary import PAIR
from geo_utils.text import capitalised, singular

# Key-point probabilities of the study that this project continues (Gemini flash-lite engine).
EARLIER_STUDY = {
    "earlier: original 0.609": 0.609,
    "earlier: rewritten 0.632": 0.632,
    "earlier: key-point prompt 0.891": 0.891,
}
# Columns of the samples, as they are written. A visibility is the target's share of the answer's.
QUANTITIES = {
    "supported": "key-point probability",
    "word": "word count",
    "position": "position count",
    "pawc": "position-adjusted word count",
}
BLUE = "#1f4e9c"  # of what is no method's
# Methods that are named one after the other stand beside each other: give them distant hues.
_PUBLISHED = dict.fromkeys(map(published_method, METHODS))
_HUES = sns.color_palette("husl", len(_PUBLISHED)).as_hex()
_COLOURS: dict[str, str] = {m: _HUES[(7 * i) % len(_HUES)] for i, m in enumerate(_PUBLISHED)}
_COLOURS |= {
    "original": "#555555", "key_point": "#c1272d",
    "policy/before": "#8a8ac0", "policy/after": BLUE,
    REMOVED: "#999999", NO_SOURCES: "#c4c4c4",
}  # fmt: skip


def colour(method: str) -> str:
    """Return the colour that a method has in every figure, shared by what is made of it."""
    if is_pooled(method):
        return "#7a5230"
    return _COLOURS.get(published_method(shuffled_method(method) or method), BLUE)


def method_rows(found: pd.DataFrame, column: str = "mean", ends: str | None = None) -> pd.DataFrame:
    """Return what `interval_figure` draws of a table that has a row a method.

    Args:
        found: Indexed by method.
        column: The estimate.
        ends: Its ends are `<ends>_low` and `<ends>_high`; by default `low` and `high`.

    Returns:
        `mean`, `low`, `high` and `shade`, indexed by the methods' names as they are written.
    """
    low, high = ("low", "high") if ends is None else (f"{ends}_low", f"{ends}_high")
    shades = [colour(str(method)) for method in found.index]
    rows = pd.DataFrame(
        {"mean": found[column], "low": found[low], "high": found[high], "shade": shades}
    )
    return rows.set_axis([label(str(method)) for method in found.index])


def interval_figure(
    rows: pd.DataFrame,
    title: str,
    quantity: str,
    note: str,
    *,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw estimates with their intervals, a row a name, the first on top, numbers beside them.

    Args:
        rows: Indexed by the row's name, which may stand several times for several marks: `mean`,
            `low` and `high` (NaN where there is none) and, where wanted, `shade` (a colour),
            `marker`, `hollow`, and `text`, which stands for the number with its interval.
        title: The claim.
        quantity: Label of the axis.
        note: What the figure rests on.
        signed: The numbers are differences: they get a sign, and the axis a line at 0.
        limits: Ends of the axis.
        lines: Values to compare with, by name.
    """
    names = list(dict.fromkeys(rows.index))
    several = 1.15 if len(rows) > len(names) else 1.0
    figure, axes = canvas(several * len(names), extra=1.0 if lines else 0.0, texts=len(rows))
    plain: dict[str, Any] = {"shade": BLUE, "marker": "o", "hollow": False, "text": None}
    for y, name in enumerate(names):
        marks = rows.loc[[name]].to_dict("records")
        for place, mark in zip(np.linspace(-0.2, 0.2, len(marks)), marks, strict=True):
            at = y + (place if len(marks) > 1 else 0.0)
            given = {k: v for k, v in mark.items() if k not in plain or pd.notna(v)}
            mark = plain | given  # where marks of two kinds were joined, one lacks the other's
            values = mark["mean"], mark["low"], mark["high"]
            draw_interval(axes, at, values, mark["shade"], mark["marker"], mark["hollow"])
            own = with_interval(*values, signed)
            beside(axes, at, own if mark["text"] is None else mark["text"])
    name_rows(axes, names)
    for height, (name, value) in enumerate((lines or {}).items()):
        axes.axvline(value, color="#999999", linestyle="--", linewidth=1.5, zorder=0)
        axes.annotate(
            name, (value, 1.02 + 0.075 * height), xycoords=("data", "axes fraction"),
            ha="left" if 0.62 < value < 0.8 else "right", fontsize=14, color="#666666",
        )  # fmt: skip
    if signed:
        axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.set(xlabel=quantity, xlim=limits)
    return finished(figure, title, note)


def probability_figure(
    summary: pd.DataFrame, source: str, references: Mapping[str, float] | None = None
) -> Figure:
    """Draw the key-point probability of each method with its interval.

    Args:
        summary: As `summary.summarise` returns it.
        source: Where the figures come from, as `Roles.source` says it.
        references: Labelled vertical lines, such as `EARLIER_STUDY`.
    """
    scored = bool(summary["key_point_probability"].notna().all())
    title = claim(summary)
    return interval_figure(
        method_rows(summary, "key_point_probability", "ci"), title, "key-point probability",
        basis(summary, source), limits=(0, 1.0), lines=references if scored else None,
    )  # fmt: skip


def claim(summary: pd.DataFrame) -> str:
    """Say which method puts the key point into more answers, as far as the intervals bear it out.

    Args:
        summary: As `summary.summarise` returns it.
    """
    methods = summary.loc[[not is_pooled(name) for name in summary.index]]
    shares, leader = methods["key_point_probability"], methods.index[methods["leads"]]
    if shares.isna().any():
        return _unscored(summary)
    if shares.nunique() == 1 and shares.iloc[0] in (0, 1):
        end, what = ("Ceiling", "every") if shares.iloc[0] else ("Floor", "no")
        return f"{end}: {what} answer carries the key point, whatever the method; none can differ"
    base = f"{shares['original']:.0%}"
    if len(leader):
        name, share = capitalised(label(str(leader[0]))), shares[leader[0]]
        rest = "" if leader[0] == "original" else f", the original page into {base}"
        return f"{name} puts the key point into {share:.0%} of answers, more than all others{rest}"
    raised = methods.index[methods["clear"].eq(True) & methods["difference"].gt(0)]
    if len(raised):
        verb = f"clearly raise{'s' * (len(raised) == 1)}"
        who = f"{capitalised(listed(raised))} {verb}"
        if len(raised) > 2:
            who = f"{len(raised)} of {len(methods) - 1} methods {verb}"
        return (
            f"{who} the key-point probability over the original page's {base}; no method is "
            "clearly above all others"
        )
    differs = "is clearly above" if methods["clear"].any() else "differs clearly from"
    return f"No method {differs} the original page: key point in {base} of its answers"


def ladder_figure(
    summary: pd.DataFrame,
    rows: Sequence[str],
    source: str,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the key-point probability from the original page up, each row's step from the last one.

    Args:
        summary: As `summary.summarise` returns it.
        rows: Its rows to draw, such as `summary.rivals_in` and the method that is to beat them.
        source: Where the figures come from.
        references: As `probability_figure`.
    """
    shown = summary.loc[list(dict.fromkeys(rows))]
    steps = f"{source}. A box is the step from the row above"
    figure, means = probability_figure(shown, steps, references), shown["key_point_probability"]
    for y, (last, own) in enumerate(itertools.pairwise(means), 1):
        shade = "#2e7d32" if own > last else "#c1272d"
        figure.axes[0].barh(y, own - last, left=last, height=0.45, color=shade, alpha=0.25)
        figure.axes[0].plot((last, last), (y - 1, y), color="#999999", linewidth=1, zorder=0)
    return figure


def slopes_figure(samples: pd.DataFrame, method: str, source: str) -> Figure:
    """Draw each query's key-point probability for the original page and for a method.

    Args:
        samples: As `evaluate.evaluate` returns it.
        method: The method.
        source: Where the figures come from.
    """
    wide = samples.pivot(index=PAIR, columns="method", values="supported").astype(float)
    pairs = wide[["original", method]].dropna().groupby("query_id").mean()
    change = np.sign(pairs[method] - pairs["original"])
    up, down, alike = ((change == sign).sum() for sign in (1, -1, 0))
    figure, axes = canvas(8)
    kinds = ((0, "#999999", "the same"), (-1, "#c1272d", "worse"), (1, "#2e7d32", "better"))
    for sign, shade, name in kinds:
        lines = pairs[change == sign].value_counts()
        for (first, second), count in lines.items():
            axes.plot((0, 1), (first, second), "o-", color=shade, linewidth=1.5 * count, alpha=0.6)
        axes.plot([], [], "o-", color=shade, label=f"{name}: {int(lines.sum())} queries")
    axes.set_xticks([0, 1], ["original", label(method)])
    axes.set(ylabel="share of its answers", xlim=(-0.15, 1.15), ylim=(-0.03, 1.03))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    title = f"{capitalised(label(method))} does better on {up} queries, worse on {down}, "
    note = "A line a query, thicker where several are alike."
    n = f"n = {len(pairs)} queries, {wide[['original', method]].dropna().shape[0]} pairs"
    return finished(figure, f"{title}the same on {alike}", f"{note} {n}. Source: {source}")


def verdict_figure(samples: pd.DataFrame, source: str) -> Figure:
    """Draw of what each method's verdicts are made, abstentions among them.

    Args:
        samples: As `evaluate.evaluate` returns it.
        source: Where the figures come from.
    """
    kinds = {
        "supported": "#2e7d32", "omitted": "#c9c9c9", "contradicted": "#c1272d",
        "no page": "#8a5a00", "abstained": "#ffffff",
    }  # fmt: skip
    verdicts = samples["verdict"].fillna("abstained")
    shares = pd.crosstab(samples["method"], verdicts, normalize="index")
    shares = shares.reindex(index=list(dict.fromkeys(samples["method"])))
    figure, axes = canvas(len(shares))
    left = np.zeros(len(shares))
    for kind in filter(shares.columns.__contains__, kinds):
        part = shares[kind].to_numpy()
        axes.barh(
            range(len(shares)), part, left=left, color=kinds[kind], edgecolor="#777777", label=kind
        )
        left += part
    name_rows(axes, [label(str(method)) for method in shares.index])
    axes.set(xlabel="share of answers", xlim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    missed = verdicts[verdicts.isin(["omitted", "contradicted"])]
    against = (missed == "contradicted").mean()
    title = f"Of answers that do not support the key point, {against:.1%} contradict it"
    if missed.empty:
        scored = (verdicts != "abstained").any()
        title = "Every scored answer supports the key point" if scored else "No answer was scored"
    n = f"n = {len(samples):,} answers, {(verdicts == 'abstained').sum():,} abstentions"
    return finished(figure, title, f"{n}. Source: {source}")


def rival_figure(
    found: pd.DataFrame, method: str, source: str, column: str = "supported"
) -> Figure:
    """Draw a method's paired differences to all that it has to beat.

    Args:
        found: As `summary.against` returns it.
        method: The method.
        source: Where the figures come from.
        column: What differs; one of `QUANTITIES`.
    """
    clear, higher = found["clear"], found["difference"] > 0
    sides = {"clearly above": clear & higher, "clearly below": clear & ~higher}
    sides["not clearly apart from"] = ~clear
    parts = [f"{side} {listed(found.index[rows])}" for side, rows in sides.items() if rows.any()]
    title = f"{capitalised(label(method))} is {', '.join(parts)}"
    title += f" in {QUANTITIES[column]}" * (column != "supported")
    queries, pairs = count_range(found["n_examples"]), count_range(found["n_samples"])
    n = f"n = {queries} queries, {pairs} pairs a rival; 95 % intervals over queries"
    rows = method_rows(found, "difference")
    quantity = f"{QUANTITIES[column]}, {label(method)} minus the other, paired"
    return interval_figure(rows, title, quantity, f"{n}. Source: {source}", signed=True)


def visibility_figure(summary: pd.DataFrame, source: str) -> Figure:
    """Draw the target page's position-adjusted word count by method."""
    shares = summary["pawc"]
    title = _unscored(summary)
    if shares.notna().all():
        leader = shares.index[summary["pawc_leads"]].drop("original", errors="ignore")
        verdict = "No method clearly gives the target page more visibility than all others"
        if len(leader):
            name = capitalised(label(str(leader[0])))
            verdict = f"{name} gives the target page more visibility than all others"
        title = f"{verdict}: PAWC at most {shares.max():.2f}, original {shares['original']:.2f}"
    quantity = f"{QUANTITIES['pawc']} of the target, share"
    return interval_figure(
        method_rows(summary, "pawc", "pawc"), title, quantity, basis(summary, source)
    )


def points(difference: Any) -> str:
    """Write a difference of probabilities in percentage points."""
    return f"{100 * difference:+z.0f} points"


def listed(methods: Iterable[object]) -> str:
    """Return the names of methods as a sentence lists them."""
    names = [label(str(method)) for method in methods]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "any"


def _unscored(summary: pd.DataFrame) -> str:
    """Say which methods have no score at all, so that no claim can be made."""
    lost = [label(str(m)) for m in summary.index[summary["key_point_probability"].isna()]]
    return f"No score for {', '.join(lost) or 'some answers'}: every sample was an abstention"


def draw_interval(
    axes: Axes,
    y: float,
    values: tuple[float, float, float],
    shade: str,
    marker: str = "o",
    hollow: bool = False,
) -> None:
    """Draw one estimate (mean, low, high) in a row of its own; no bar where it has no interval."""
    if not np.isnan(values[1]):
        axes.plot(values[1:], (y, y), color=shade, linewidth=2 if hollow else 4, alpha=0.45)
    face = "white" if hollow else shade
    axes.plot(
        values[0], y, marker, color=shade, markerfacecolor=face, markeredgewidth=2, markersize=10
    )


def beside(axes: Axes, y: float, text: str) -> None:
    """Write a text to the right of a row."""
    place = ("axes fraction", "data")
    axes.annotate(text, (1.02, y), xycoords=place, va="center", fontsize=14)


def name_rows(axes: Axes, names: Sequence[object]) -> None:
    """Name the rows of a figure, the first on top."""
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def canvas(
    rows: float, extra: float = 0.0, columns: int = 1, texts: float = 0
) -> tuple[Figure, Any]:
    """Return an empty figure for so many rows, low enough that its 14 pt stay that on a slide.

    Args:
        rows: Rows, of 0.55 inches each where there is room.
        extra: Further inches, as for labels above the axes.
        columns: Panels beside each other.
        texts: Lines of text below each other, where there are more than rows.

    Returns:
        The figure, and its axes: an array of them where there are several columns.
    """
    foreign = {"text.parse_math": False}  # names and prices with dollar signs are no formulas
    sns.set_theme(style="white", font_scale=1.45 if columns == 1 else 1.3, rc=foreign)
    height = max(min(0.55 * rows, 4.2 - extra), 0.24 * max(rows, texts))
    figure, axes = plt.subplots(
        1, columns, figsize=(12, 2.4 + height + extra), sharey=True, layout="constrained"
    )
    plt.close(figure)  # shown once, by the cell that returns it
    return figure, axes


def basis(found: pd.DataFrame, source: str, marks: str = "", each: str = "method") -> str:
    """Say what a figure rests on.

    Args:
        found: Brings `n_examples`, `n_samples` and `abstentions`, a row a method.
        source: Where the figures come from.
        marks: What the reader has to know of the marks.
        each: What a row stands for.
    """
    queries, samples = count_range(found["n_examples"]), count_range(found["n_samples"])
    missing = f"{abstentions(found)} abstentions in these rows"
    n = f"n = {queries} queries, {samples} samples a {each}, {missing}"
    return f"{marks} {n}; 95 % intervals over queries. Source: {source}".strip()


def finished(figure: Figure, title: str, note: str) -> Figure:
    """Write a figure's claim above it, and under it what it rests on."""
    sns.despine(figure, left=True)
    for axes in figure.axes:
        axes.grid(axis="x", alpha=0.3)
    claim = "\n".join(textwrap.wrap(singular(title), 88))
    figure.suptitle(claim, x=0.01, ha="left", fontweight="bold", fontsize=17)
    figure.supxlabel("\n".join(textwrap.wrap(singular(note), 120)), x=0.01, ha="left", fontsize=14)
    return figure
