"""Figures of the analyses: one message each, computed; nothing for an analysis switched off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geo_utils.plots import beside, canvas, colour, draw_interval, finish, probability_figure
from geo_utils.tables import label, with_interval

_STAGES = {"supported": ("o", False), "credited": ("s", True), "attributed": ("D", False)}


def strict_figure(summary: pd.DataFrame, strict: pd.DataFrame | None, source: str) -> Figure:
    """Draw key-point probability and strict probability of each method.

    Args:
        summary: As `summary.summarise` returns it.
        strict: As `contrasts.means` returns it for the column `strict`; None leaves it out.
        source: Where the figures come from.
    """
    if strict is None:
        return probability_figure(summary, source)
    best, honest = str(summary["key_point_probability"].idxmax()), str(strict["mean"].idxmax())
    share, kept = summary["key_point_probability"][best], strict["mean"][honest]
    other = "" if best == honest else f"{label(honest)} leads with "
    title = (
        f"{label(best).capitalize()} puts the key point into {share:.0%} of answers; "
        f"{other}{kept:.0%} count once unfaithful rewrites are failures"
    )
    figure, axes = canvas(1.15 * len(summary))
    for y, (method, row) in enumerate(summary.iterrows()):
        shade, held = colour(str(method)), strict.loc[str(method)]
        values = row["key_point_probability"], row["ci_low"], row["ci_high"]
        draw_interval(axes, y - 0.17, values, shade)
        beside(axes, y - 0.19, with_interval(*values))
        values = held["mean"], held["low"], held["high"]
        draw_interval(axes, y + 0.2, values, shade, "D", hollow=True)
        beside(axes, y + 0.22, f"{with_interval(*values)} strict")
    name_rows(axes, [label(str(method)) for method in summary.index])
    axes.set(xlim=(-0.02, 1.0), xlabel="key-point probability")
    marks = "Dots: all rewrites; diamonds: strict, a rewrite that fails the fidelity gate fails."
    finish(figure, axes, title, summary, source, marks)
    return figure


def lift_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw what each page adds to the answers of the other sources alone.

    Args:
        found: As `counterfactual.lifts` returns it.
        source: Where the figures come from.
    """
    if found is None:
        return None
    title = "Without the target page no answer could be scored"
    shown = found.drop(index="original").dropna(subset="difference")
    if len(shown) and found["difference"].notna()["original"]:
        best = str(shown["difference"].idxmax())
        title = _lift_title(found, best)
    figure, axes = canvas(len(found))
    _differences(axes, found)
    axes.set(xlabel="difference to the answers without the target page, paired")
    finish(figure, axes, title, found, source)
    return figure


def _lift_title(found: pd.DataFrame, best: str) -> str:
    own, most = found.loc["original"], found.loc[best]
    return (
        f"Without the target page {own['reference']:.0%} of answers carry the key point; the "
        f"original page adds {_points(own['difference'])}, {label(best)} "
        f"{_points(most['difference'])}"
    )


def placebo_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw each rewrite's lift on its own query and on another.

    Args:
        found: As `counterfactual.placebos` returns it.
        source: Where the figures come from.
    """
    if found is None:
        return None
    methods = list(dict.fromkeys(found.index.get_level_values("method")))
    lost = [m for m in methods if found.loc[(m, "shuffled"), "lost"]]
    names = f"{len(lost)} of {len(methods)} methods" if len(methods) > 1 else label(methods[0])
    title = f"Shuffled among the queries, the rewrites of {names} lose their lift"
    unscored = [m for m in methods if pd.isna(found.loc[(m, "shuffled"), "difference"])]
    if unscored:
        title = f"No score for the shuffled rewrites of {listed(unscored)}"
    elif len(methods) == 1 and not lost:
        title = f"Shuffled among the queries, the rewrites of {names} still change the answers"
    figure, axes = canvas(1.2 * len(methods))
    for y, method in enumerate(methods):
        for offset, kind in ((-0.18, "own"), (0.2, "shuffled")):
            row = found.loc[(method, kind)]
            values = row["difference"], row["low"], row["high"]
            hollow = kind == "shuffled"
            draw_interval(axes, y + offset, values, colour(method), "D" if hollow else "o", hollow)
            suffix = " shuffled" if hollow else ""
            beside(axes, y + offset, f"{with_interval(*values, signed=True)}{suffix}")
    name_rows(axes, [label(method) for method in methods])
    axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.set(xlabel="difference to the original page in the same place, paired")
    marks = "Dots: each rewrite on its own query; diamonds: on another query."
    finish(figure, axes, title, found, source, marks)
    return figure


def funnel_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw how often the point is in the answer, credited, and the original page's own.

    Args:
        found: As `funnel.funnel` returns it.
        source: Where the figures come from.
    """
    if found is None:
        return None
    wide = found["mean"].unstack().reindex(found.index.get_level_values("method").unique())
    best = str(wide["supported"].idxmax())
    title = (
        f"{label(best).capitalize()}: the point is in {wide['supported'][best]:.0%} of answers and "
        f"credited to the target in {wide['credited'][best]:.0%}"
    )
    if "attributed" in wide:
        title += f"; the original page holds it in {wide['attributed'][best]:.0%}"
    figure, axes = canvas(1.15 * len(wide))
    for y, method in enumerate(wide.index):
        stages = [s for s in _STAGES if s in wide]
        for offset, stage in zip(np.linspace(-0.24, 0.24, len(stages)), stages, strict=True):
            row = pd.Series(found.xs((method, stage)))
            marker, hollow = _STAGES[stage]
            values = row["mean"], row["low"], row["high"]
            draw_interval(axes, y + offset, values, colour(str(method)), marker, hollow)
        shares = " > ".join(f"{wide[stage][method]:.3f}" for stage in stages)
        beside(axes, y, shares)
    name_rows(axes, [label(str(method)) for method in wide.index])
    axes.set(xlim=(-0.02, 1.0), xlabel="share of all answers")
    marks = "Dot: in the answer; square: its sentence cites the target"
    marks += "; diamond: and the original page holds it." if "attributed" in wide else "."
    first = pd.DataFrame(found.xs("supported", level="stage"))
    finish(figure, axes, title, first, source, marks)
    return figure


def frontier_figure(found: pd.DataFrame | None, source: str, gate: float) -> Figure | None:
    """Draw lift against fidelity, length and instructions, all methods on it.

    Args:
        found: As `frontier.frontier` returns it.
        source: Where the figures come from.
        gate: Least fidelity of a rewrite that counts.
    """
    found = None if found is None else found.dropna(subset=["difference", "fidelity"])
    if found is None or found.empty:
        return None
    clean = found[found["flagged"] == 0]
    title = "Every method's pages carry instructions to the engine"
    if len(clean):
        best = clean.loc[str(clean["difference"].idxmax())]
        name, gain = label(str(best.name)), _points(best["difference"])
        price = f"at fidelity {best['fidelity']:.2f} and {best['words_added']:+.0%} words"
        title = (
            f"{name.capitalize()} gains most of the methods without instructions: {gain} {price}"
            if best["clear"] and best["difference"] > 0
            else f"No method without instructions clearly gains; the most is {gain}, by {name}, "
            f"{price}"
        )
    figure, axes = canvas(max(len(found), 5), extra=1.2)
    low = min(float(found["fidelity_low"].fillna(found["fidelity"]).min()), gate)
    axes.set(xlim=(low - 0.02, 1.01), xlabel="fidelity: the worse of kept and grounded",
             ylabel="lift over the original page")  # fmt: skip
    for method, row in found.iterrows():
        shade = colour(str(method))
        for ends, at in (((row["low"], row["high"]), "y"),
                         ((row["fidelity_low"], row["fidelity_high"]), "x")):  # fmt: skip
            here = (row["fidelity"],) * 2 if at == "y" else (row["difference"],) * 2
            pair = (here, ends) if at == "y" else (ends, here)
            axes.plot(*pair, color=shade, linewidth=3, alpha=0.4)
        size = 120 + 1500 * max(row["words_added"], 0.0)
        edge = "#000000" if row["flagged"] else shade
        axes.scatter(row["fidelity"], row["difference"], s=size, color=shade, alpha=0.85,
                     edgecolor=edge, linewidth=3, zorder=3,
                     marker="X" if row["flagged"] else "o")  # fmt: skip
    axes.axhline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.axvline(gate, color="#999999", linestyle="--", linewidth=1.5, zorder=0)
    texts = [
        f"{label(str(m))}, {row['words_added']:+.0%} words"
        + (f", {row['flagged']:.0%} flagged" if row["flagged"] else "")
        for m, row in found.iterrows()
    ]
    side_labels(axes, found["fidelity"], found["difference"], texts, found.index)
    marks = (
        f"Larger marks add more words; a cross: an instruction was flagged. Dashed: the gate, "
        f"{gate:g}. No other method beats {listed(found.index[found['efficient']])} in all of "
        "lift, fidelity, words and flags."
    )
    finish(figure, axes, title, found, source, marks)
    return figure


def _points(difference: Any) -> str:
    return f"{100 * difference:+.0f} points"


def listed(methods: Iterable[object]) -> str:
    """Return the names of methods as a sentence lists them."""
    names = [label(str(method)) for method in methods]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "any"


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a figure, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.6)


def _differences(axes: Axes, found: pd.DataFrame) -> None:
    """Draw a row a method: its difference with the interval, and a line at no difference."""
    for y, (method, row) in enumerate(found.iterrows()):
        values = row["difference"], row["low"], row["high"]
        draw_interval(axes, y, values, colour(str(method)))
        beside(axes, y, with_interval(*values, signed=True))
    name_rows(axes, [label(str(method)) for method in found.index])
    axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)


def side_labels(
    axes: Axes, x: pd.Series, y: pd.Series, texts: Sequence[str], methods: Iterable[object]
) -> None:
    """Name points in a column to the right, in their order, with a line from each."""
    low, high = axes.get_ylim()
    gap = (high - low) / max(1.15 * len(texts), 12)
    order = np.argsort(y.to_numpy(float), kind="stable")
    places = y.to_numpy(float).copy()
    for i, j in pairwise(order):
        places[j] = max(places[j], places[i] + gap)
    places -= np.mean(places - y.to_numpy(float))  # spread to both sides
    places -= max(places.max() - high, 0.0)
    for text, method, x_at, y_at, place in zip(texts, methods, x, y, places, strict=True):
        axes.annotate(
            text, (x_at, y_at), (1.03, place), xycoords="data",
            textcoords=("axes fraction", "data"), va="center", fontsize=14,
            color=colour(str(method)), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(str(method)), "alpha": 0.5},
        )  # fmt: skip
    axes.set_ylim(min(low, places.min()), high)
