"""The shape of every study: what it is run with, what it asks models, and what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.corpus import Example, KeyPoint, choose_key_points, draw_queries
from geo_utils.evaluate import Progress
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.roles.make import Roles
from geo_utils.runs import Run


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


class Found(Protocol):
    """What a study found."""

    def figure(self, source: str) -> Figure | None:
        """Draw it, its claim as the title; None where there is nothing to draw."""
        ...

    def findings(self, source: str) -> str:
        """Say it in Markdown."""
        ...

    def views(self, caption: str) -> list[Styler]:
        """Lay it out in tables."""
        ...

    def headline(self) -> dict[str, Any]:
        """Return the numbers that the manifest records."""
        ...


class Study(Protocol):
    """A module that is a study: what it asks models, and what it reads off the answers."""

    def ask(self, setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
        """Make every call of the study; with planned roles, only count them."""
        ...

    def read(self, setting: Setting, asked: pd.DataFrame, run: Run) -> Found | None:
        """Keep what was asked in the run folder and compute its tables; None for nothing found."""
        ...


@dataclass(frozen=True)
class Off:
    """A study that was not run, or found nothing to work on.

    Attributes:
        name: Of its parameter.
    """

    name: str

    def figure(self, source: str) -> None:
        """Draw nothing."""

    groups_figure = figure

    def findings(self, source: str) -> str:
        """Say that the study was not run, and how to."""
        return f"*Not run here: `studies.{self.name}` is null, or found nothing to work on.*"

    def views(self, caption: str) -> list[Styler]:
        """Lay out nothing."""
        return []

    def headline(self) -> dict[str, Any]:
        """Return no numbers."""
        return {}
