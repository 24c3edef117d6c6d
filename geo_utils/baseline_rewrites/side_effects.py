"""What a rewrite does to the rest of the answer, as figure and table."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.collateral import FIGURES
from geo_utils.roles.methods import label
from geo_utils.show.plots import (
    basis,
    canvas,
    colour,
    draw_interval,
    finished,
    listed,
    name_rows,
)
from geo_utils.show.tables import intervals, styled


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
    title = (
        f"Clearly lowered: {'; '.join(claims)}"
        if claims
        else (f"No method clearly lowers {unharmed}")
    )
    methods = list(found.loc[figures[0]].index)
    figure, panels = canvas(len(methods), extra=0.8, columns=len(figures))
    for axes, name in zip(panels, figures, strict=True):
        for y, method in enumerate(methods):
            row = found.loc[(name, method)]
            values = row["difference"], row["low"], row["high"]
            draw_interval(axes, y, values, colour(method), hollow=not row["clear"])
            if np.isnan(values[0]):
                continue
            digits = 1 if name == "answer_words" else 3
            axes.annotate(
                f"{values[0]:+z.{digits}f}",
                (values[0], y),
                (0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=14,
            )
        axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
        axes.margins(x=0.25)
        axes.locator_params(axis="x", nbins=3)
        axes.set_xlabel("\n".join(textwrap.wrap(FIGURES[name], 18)), fontsize=15)
    name_rows(panels[0], [label(method) for method in methods])
    marks = "Differences to the original page, paired. Filled: clear after Holm; hollow: not."
    return finished(figure, title, basis(found, source, marks))


def collateral_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out what each method changes beside the key point.

    Args:
        found: As `collateral.collateral` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    columns = {}
    for figure in found.index.get_level_values("figure").unique():
        part = found.loc[figure]
        stars = part["clear"].map({True: " *", False: ""})
        columns[FIGURES[figure]] = intervals(part, "difference", signed=True) + stars
    counts = found.groupby(level="method", sort=False)
    columns["n pairs"] = counts["n_samples"].min()
    columns["abstentions"] = counts["abstentions"].max()
    told = (
        "Differences to the original page, paired; * p below 0.05 after Holm over the table. The "
        "other sources' points are the sentences of their pages closest to the query"
    )
    table = pd.DataFrame(columns).rename(index=label).rename_axis(None)
    return styled(table, [], f"{told}. {caption}")
