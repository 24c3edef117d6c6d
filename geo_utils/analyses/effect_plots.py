"""Figures of where a lift is, what it costs the rest, and what the formulas make of it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from geo_utils.analyses.collateral import FIGURES
from geo_utils.analyses.conventions import CONVENTIONS, rank_flips
from geo_utils.analyses.plots import listed, name_rows, side_labels
from geo_utils.plots import beside, canvas, colour, draw_interval, finish
from geo_utils.tables import label, with_interval


def collateral_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw what each method changes beside the key point, a panel a figure.

    Args:
        found: As `collateral.collateral` returns it.
        source: Where the figures come from.
    """
    if found is None:
        return None
    figures = list(dict.fromkeys(found.index.get_level_values("figure")))
    harmed = {
        name: found.loc[name].query("clear and difference < 0").index
        for name in figures
        if name != "answer_words"
    }
    claims = [
        f"{FIGURES[name]} by {listed(methods) if len(methods) < 3 else f'{len(methods)} methods'}"
        for name, methods in harmed.items()
        if len(methods)
    ]
    unharmed = " or ".join(FIGURES[name] for name in harmed)
    title = f"Clearly lowered: {'; '.join(claims)}" if claims else (
        f"No method clearly lowers {unharmed}"
    )  # fmt: skip
    methods = list(found.loc[figures[0]].index)
    sns.set_theme(style="white", font_scale=1.3)
    figure, panels = plt.subplots(
        1, len(figures), figsize=(14, 3.2 + 0.6 * len(methods)), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    plt.close(figure)
    for axes, name in zip(panels[0], figures, strict=True):
        for y, method in enumerate(methods):
            row = found.loc[(name, method)]
            values = row["difference"], row["low"], row["high"]
            draw_interval(axes, y, values, colour(method), hollow=not row["clear"])
            if np.isnan(values[0]):
                continue
            digits = 1 if name == "answer_words" else 3
            axes.annotate(
                f"{values[0]:+z.{digits}f}", (values[0], y), (0, 9), textcoords="offset points",
                ha="center", fontsize=14,
            )  # fmt: skip
        axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
        axes.margins(x=0.25)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("\n".join(textwrap.wrap(FIGURES[name], 18)), fontsize=15)
    name_rows(panels[0][0], [label(method) for method in methods])
    marks = "Differences to the original page, paired. Filled: clear after Holm; hollow: not."
    finish(figure, panels[0][0], title, found, source, marks)
    return figure


def strata_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw where a method's lift over the original page is.

    Args:
        found: As `strata.strata` returns it.
        source: Where the figures come from.
    """
    if found is None:
        return None
    method = str(found["method"].iloc[0])
    factors = found.drop_duplicates("factor")
    clear = factors.loc[factors["clear"], "factor"].tolist()
    name = label(method).capitalize()
    title = (
        f"{name}'s lift differs by {' and by '.join(clear)}"
        if clear
        else f"{name}'s lift does not clearly differ by {', '.join(factors['factor'])}"
    )
    figure, axes = canvas(len(found))
    rows: Iterable[Any] = list(found.itertuples(index=False))
    for y, row in enumerate(rows):
        values = row.mean, row.low, row.high
        draw_interval(axes, y, values, colour(method), hollow=not row.clear)
        beside(axes, y, f"{with_interval(*values, signed=True)}, {row.n_examples} queries")
    name_rows(axes, [f"{row.factor}: {row.stratum}" for row in rows])
    axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.set(xlabel="lift over the original page, paired")
    known = factors.dropna(subset="p_holm")
    tested = "; ".join(
        f"{factor} p = {p:.3f}" for factor, p in zip(known["factor"], known["p_holm"], strict=True)
    )
    marks = f"Filled: the factor's strata clearly differ (permutation, Holm: {tested})."
    finish(figure, axes, title, found, source, marks, each="stratum")
    return figure


def convention_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw PAWC by method under the corrected and the two earlier formulas.

    Args:
        found: As `conventions.by_convention` returns it.
        source: Where the figures come from.
    """
    if found is None:
        return None
    methods = list(found.loc["pawc"].index)
    pairs = len(methods) * (len(methods) - 1) // 2
    flips = {name: len(rank_flips(found, name)) for name in list(CONVENTIONS)[1:]}
    told = "; ".join(f"{CONVENTIONS[name]} {count}" for name, count in flips.items())
    title = f"Of {pairs} pairs of methods the earlier formulas put in another order: {told}"
    figure, axes = canvas(len(methods), extra=1.0)
    for i, method in enumerate(methods):
        shade, at = colour(method), (i - len(methods) / 2) * 0.02
        rows = [found.loc[(name, method)] for name in CONVENTIONS]
        places = [j + at for j in range(len(rows))]
        axes.plot(places, [row["mean"] for row in rows], "-o", color=shade, linewidth=2)
        for x, row in zip(places, rows, strict=True):
            axes.plot((x, x), (row["low"], row["high"]), color=shade, linewidth=3, alpha=0.4)
    last = found.loc[list(CONVENTIONS)[-1]]
    axes.set(xlim=(-0.3, 2.3), ylabel="PAWC of the target, share")
    axes.set_xticks(range(len(CONVENTIONS)), list(CONVENTIONS.values()))
    texts = [f"{label(m)}, rank {last['rank'][m]:.0f}" for m in methods]
    side_labels(axes, pd.Series(2.0, index=last.index), last["mean"], texts, methods)
    marks = (
        "The same answers in all three. AutoGEO's code counts sources from 0: of answers that "
        "cite from 1, as here, it credits the neighbour."
    )
    finish(figure, axes, title, pd.DataFrame(found.loc["pawc"]), source, marks)
    return figure
