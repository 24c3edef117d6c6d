"""Figures: one message each, its claim computed into the title, intervals on every estimate."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geo_utils.methods import METHODS, NO_SOURCES, REMOVED, shuffled_method
from geo_utils.tables import count_range, label, with_interval

# Key-point probabilities of the study that this project continues (Gemini flash-lite engine).
EARLIER_STUDY = {
    "earlier: original 0.609": 0.609,
    "earlier: rewritten 0.632": 0.632,
    "earlier: key-point prompt 0.891": 0.891,
}
# Methods that are named one after the other stand beside each other: give them distant hues.
_HUES = sns.color_palette("husl", len(METHODS)).as_hex()
_COLOURS: dict[str, str] = {m: _HUES[(7 * i) % len(METHODS)] for i, m in enumerate(METHODS)}
_COLOURS |= {
    "original": "#555555", "key_point": "#c1272d",
    "policy/before": "#8a8ac0", "policy/after": "#1f4e9c",
    REMOVED: "#999999", NO_SOURCES: "#c4c4c4",
}  # fmt: skip


def colour(method: str) -> str:
    """Return the colour that a method has in every figure."""
    return _COLOURS.get(shuffled_method(method) or method, "#1f4e9c")


def probability_figure(
    summary: pd.DataFrame, source: str, references: Mapping[str, float] | None = None
) -> Figure:
    """Draw the key-point probability of each method with its interval.

    Args:
        summary: As `evaluate.summarise` returns it.
        source: Where the figures come from, as `Roles.source` says it.
        references: Labelled vertical lines, such as `EARLIER_STUDY`.
    """
    if summary["key_point_probability"].isna().any():
        return _unscored(summary, source)
    best = str(summary["key_point_probability"].idxmax())
    row, base = summary.loc[best], summary.loc["original"]
    title = (
        f"{label(best).capitalize()} puts the key point into "
        f"{row['key_point_probability']:.0%} of answers, the original page into "
        f"{base['key_point_probability']:.0%}"
    )
    figure, axes = canvas(len(summary), extra=1.0 if references else 0.0)
    _intervals(axes, summary, "key_point_probability", "ci")
    axes.set(xlim=(0, 1.0), xlabel="key-point probability")
    for height, (name, value) in enumerate((references or {}).items()):
        axes.axvline(value, color="#999999", linestyle="--", linewidth=1.5, zorder=0)
        right = value > 0.62
        axes.annotate(
            name,
            (value, 1.02 + 0.075 * height),
            xycoords=("data", "axes fraction"),
            ha="left" if right and value < 0.8 else "right",
            fontsize=14,
            color="#666666",
        )
    finish(figure, axes, title, summary, source)
    return figure


def difference_figure(summary: pd.DataFrame, source: str) -> Figure:
    """Draw each method's paired difference to the original page."""
    shown = summary.drop(index="original")
    raised = shown[shown["clear"] & (shown["difference"] > 0)]
    clear = [label(str(method)) for method in raised.index]
    title = (
        f"{len(clear)} of {len(shown)} methods clearly raise the key-point probability"
        if len(clear) > 2 or not clear
        else f"{' and '.join(clear).capitalize()} clearly raise{'s' * (len(clear) == 1)} "
        "the key-point probability"
    )
    figure, axes = canvas(len(shown))
    _intervals(axes, shown, "difference", "difference", signed=True)
    axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.set(xlabel="difference to the original page, paired")
    finish(figure, axes, title, shown, source)
    return figure


def visibility_figure(summary: pd.DataFrame, source: str) -> Figure:
    """Draw the target page's position-adjusted word count by method."""
    if summary["pawc"].isna().any():
        return _unscored(summary, source)
    best = str(summary["pawc"].idxmax())
    title = (
        f"{label(best).capitalize()} gives the target page most visibility: "
        f"PAWC {float(summary['pawc'].max()):.2f}, "
        f"original {float(summary['pawc']['original']):.2f}"
    )
    figure, axes = canvas(len(summary))
    _intervals(axes, summary, "pawc", "pawc")
    axes.set(xlabel="position-adjusted word count of the target, share")
    finish(figure, axes, title, summary, source)
    return figure


def estimate_figure(rows: pd.DataFrame, title: str, quantity: str, note: str) -> Figure:
    """Draw estimates with their intervals, one below the other, in their methods' colours.

    Args:
        rows: `method`, `mean`, `low` and `high`, indexed by the name to write.
        title: The claim.
        quantity: Label of the axis.
        note: n and source.
    """
    figure, axes = canvas(len(rows))
    _draw(axes, rows, [str(name) for name in rows.index])
    axes.set(xlabel=quantity)
    sns.despine(figure, left=True)
    axes.grid(axis="x", alpha=0.3)
    _write(figure, title, note)
    return figure


def _unscored(summary: pd.DataFrame, source: str) -> Figure:
    """Draw what there is where a method has no score at all, so that no claim can be made."""
    lost = [label(str(m)) for m in summary.index[summary["key_point_probability"].isna()]]
    title = f"No score for {', '.join(lost) or 'some answers'}: every sample was an abstention"
    figure, axes = canvas(len(summary))
    _intervals(axes, summary, "key_point_probability", "ci")
    axes.set(xlim=(0, 1.0), xlabel="key-point probability")
    finish(figure, axes, title, summary, source)
    return figure


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


def canvas(rows: float, extra: float = 0.0) -> tuple[Figure, Axes]:
    """Return an empty figure for so many rows, low enough that its 14 pt stay that on a slide."""
    sns.set_theme(style="white", font_scale=1.45)
    height = max(min(0.55 * rows, 4.2 - extra), 0.24 * rows)
    figure, axes = plt.subplots(figsize=(12, 2.4 + height + extra), layout="constrained")
    plt.close(figure)  # shown once, by the cell that returns it
    return figure, axes


def _intervals(
    axes: Axes, summary: pd.DataFrame, mean: str, ends: str, signed: bool = False
) -> None:
    rows = summary.rename(columns={mean: "mean", f"{ends}_low": "low", f"{ends}_high": "high"})
    names = [label(str(method)) for method in rows.index]
    _draw(axes, rows.assign(method=rows.index), names, signed)


def _draw(axes: Axes, rows: pd.DataFrame, names: Sequence[str], signed: bool = False) -> None:
    for y, (_, row) in enumerate(rows.iterrows()):
        values = row["mean"], row["low"], row["high"]
        draw_interval(axes, y, values, colour(str(row["method"])))
        beside(axes, y, with_interval(*values, signed))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def finish(
    figure: Figure,
    axes: Axes,
    title: str,
    summary: pd.DataFrame,
    source: str,
    note: str = "",
    each: str = "method",
) -> None:
    """Put the claim above a figure and what it rests on below it.

    Args:
        figure: The figure.
        axes: Its axes.
        title: The claim.
        summary: Brings `n_examples`, `n_samples` and `abstentions`, a row a method.
        source: Where the figures come from.
        note: What the reader has to know of the marks.
        each: What a row stands for.
    """
    sns.despine(figure, left=True)
    axes.grid(axis="x", alpha=0.3)
    queries, samples = count_range(summary["n_examples"]), count_range(summary["n_samples"])
    n = f"n = {queries} queries, {samples} samples"
    missing = f"{int(summary['abstentions'].sum())} abstentions in all"
    _write(
        figure, title,
        f"{note} {n} a {each}, {missing}; 95 % intervals over queries. {source}".strip(),
    )  # fmt: skip


def _write(figure: Figure, title: str, note: str) -> None:
    claim = "\n".join(textwrap.wrap(title, 88))
    figure.suptitle(claim, x=0.01, ha="left", fontweight="bold", fontsize=17)
    figure.supxlabel("\n".join(textwrap.wrap(note, 120)), x=0.01, ha="left", fontsize=14)
