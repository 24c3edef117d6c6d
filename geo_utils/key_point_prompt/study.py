"""The shape of every study: what it is run with, and what it found, laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.corpus import Example, KeyPoint, choose_key_points, draw_queries
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.roles.make import Roles
from geo_utils.show.tables import over_queries
from geo_utils.statistics import with_interval


@dataclass(frozen=True)
class Setting:
    """What a study is run with.

    Attributes:
        params: The run's parameters.
        options: The study's own.
        roles: The run's roles, and after them those that only this study has.
        examples: The corpus.
        samples: Of the comparison.
    """

    params: KeyPointPromptParams
    options: Any
    roles: Sequence[Roles]
    examples: Sequence[Example]
    samples: pd.DataFrame

    @property
    def drawn(self) -> list[Example]:
        """The examples of as many queries as the study asks for."""
        return draw_queries(self.examples, self.options.queries, self.params.seed)

    @property
    def pairs(self) -> list[tuple[Example, KeyPoint]]:
        """Their key points, as the comparison chooses them."""
        return choose_key_points(self.drawn, self.params.key_points, self.params.seed)


@dataclass(frozen=True)
class Found:
    """What a study found.

    Attributes:
        findings: In words, as Markdown.
        figures: By name; one that there is nothing to draw of is missing.
        views: Its tables, laid out.
        tables: The numbers behind them, by name.
        headline: The numbers that the manifest records.
    """

    findings: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    views: Sequence[Styler] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    headline: Mapping[str, Any] = field(default_factory=dict)


def laid_out(
    shown: Mapping[str, pd.Series], rows: pd.DataFrame, counts: list[str], caption: str
) -> Styler:
    """Lay out columns of text, and beside them columns of the table that they were made from."""
    names = {"n_examples": "n queries", "n_units": "n key points"}
    beside = rows[counts].rename(columns=lambda name: names.get(name, name.replace("_", " ")))
    return over_queries(pd.DataFrame(shown).join(beside), [], caption)


def change_text(found: Mapping[Any, Any], less: str, more: str, neither: str) -> str:
    """Say in which of three ways a paired difference goes: by Holm in a family, else by itself."""
    difference, low, high = (found[name] for name in ("difference", "low", "high"))
    clear = found.get("clear", high < 0 or low > 0)
    way = f"clearly {less if difference < 0 else more}" if clear else neither
    return f"**{way}**: {with_interval(difference, low, high, signed=True)}"


def draw_curve(axes: Axes, rows: pd.DataFrame, shade: str, text: str, at_end: bool = True) -> None:
    """Draw a line with its band, and name it at its right end, or below its left end.

    Args:
        axes: Where.
        rows: Indexed by the place on the x axis: the line, and the lower and upper end of its band.
        shade: A colour.
        text: The line's name.
        at_end: Name it at the right end.
    """
    x, y, low, high = rows.index.to_numpy(float), *rows.to_numpy(float).T
    axes.fill_between(x, low, high, color=shade, alpha=0.15)
    axes.plot(x, y, "o-", color=shade, linewidth=3, markersize=9)
    place, beside = ((x[-1], y[-1]), "center") if at_end else ((x[0], low[0]), "top")
    axes.annotate(f"  {text}", place, color=shade, fontsize=16, va=beside, annotation_clip=False)
