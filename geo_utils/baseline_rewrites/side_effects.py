"""What a rewrite does to the rest of the answer, as figure and table."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.collateral import FIGURES
from geo_utils.roles.methods import label
from geo_utils.show.plots import (
    basis,
    canvas,
    draw_interval,
    finished,
    listed,
    method_rows,
    name_rows,
)
from geo_utils.show.tables import intervals, styled


def panel_figure(
    panels: Mapping[str, pd.DataFrame], title: str, note: str, lines: Mapping[str, float]
) -> Figure:
    """Draw several estimates of each method, a panel a quantity, a row a method.

    Args:
        panels: By the quantity's name, as `plots.method_rows` makes them, with `hollow` (bool) and
            `text` (the number), each for the same methods.
        title: The claim.
        note: What the figure rests on.
        lines: The value that a panel's line stands at; 0 where none is given.
    """
    names = list(next(iter(panels.values())).index)
    figure, axes = canvas(len(names), extra=0.8, columns=len(panels), texts=1.8 * len(names))
    for panel, (quantity, rows) in zip(axes, panels.items(), strict=True):
        for y, row in enumerate(rows.to_dict("records")):
            values = row["mean"], row["low"], row["high"]
            draw_interval(panel, y, values, row["shade"], hollow=row["hollow"])
            if pd.notna(row["mean"]):
                above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
                box = {"color": "white", "pad": 0}  # over the panel's line
                panel.annotate(row["text"], (row["mean"], y), fontsize=14, bbox=box, **above)
        panel.axvline(lines.get(quantity, 0), color="#555555", linewidth=1.5, zorder=0)
        panel.margins(x=0.25)
        panel.locator_params(axis="x", nbins=3)
        panel.set_xlabel("\n".join(textwrap.wrap(quantity, 18)), fontsize=15)
    name_rows(axes[0], names)
    return finished(figure, title, note)


def collateral_figure(found: pd.DataFrame, source: str) -> Figure:
    """Draw what each method changes beside the key point, a panel a figure.

    Args:
        found: As `collateral.collateral` returns it.
        source: Where the figures come from.
    """
    panels, claims = {}, []
    for figure in found.index.get_level_values("figure").unique():
        rows, name = found.loc[figure], FIGURES[figure]
        digits = 1 if figure == "answer_words" else 3
        panels[name] = method_rows(rows, "difference").assign(
            hollow=~rows["clear"].to_numpy(),
            text=rows["difference"].map(f"{{:+z.{digits}f}}".format).to_numpy(),
        )
        harmed = rows.index[rows["clear"] & (rows["difference"] < 0)]
        if len(harmed) and figure != "answer_words":
            by = listed(harmed) if len(harmed) < 3 else f"{len(harmed)} methods"
            claims.append(f"{name} by {by}")
    unharmed = " or ".join(name for name in panels if name != FIGURES["answer_words"])
    title = f"Clearly lowered: {'; '.join(claims)}"
    if not claims:
        title = f"No method clearly lowers {unharmed}"
    marks = "Differences to the original page, paired. Filled: clear after Holm; hollow: not."
    return panel_figure(panels, title, basis(found, source, marks), {})


def collateral_table(found: pd.DataFrame, caption: str) -> Styler:
    """Lay out what each method changes beside the key point.

    Args:
        found: As `collateral.collateral` returns it.
        caption: What the figures rest on.
    """
    stars = found["clear"].map({True: " *", False: ""})
    table = (intervals(found, "difference", signed=True) + stars).unstack("figure", sort=False)
    counts = found.groupby(level="method", sort=False)
    table = table.rename(columns=FIGURES).rename_axis(index=None, columns=None)
    table["n pairs"], table["abstentions"] = counts["n_samples"].min(), counts["abstentions"].max()
    told = (
        "Differences to the original page, paired; * p below 0.05 after Holm over the table. The "
        "other sources' points are the sentences of their pages closest to the query"
    )
    return styled(table.rename(index=label), [], f"{told}. {caption}")
