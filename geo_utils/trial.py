"""Try a page of one's own: rewritten by a method, answered before and after, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import SourceOrder, draw_source_order
from geo_utils.models.base import Request
from geo_utils.plan import quiet
from geo_utils.roles.make import Roles, make_roles
from geo_utils.roles.methods import check_methods, known_method, label


@dataclass(frozen=True)
class Trial:
    """A page before and after a method.

    Attributes:
        example: The page with its query, key point and other sources.
        method: How it was rewritten.
        samples: As `evaluate.evaluate` returns it: of the original page, then of the rewrite.
        order: The sources as the engine sees them.
        requests: What the models were asked.
        source: What answered, as `Roles.source` says it.
    """

    example: Example
    method: str
    samples: pd.DataFrame
    order: SourceOrder
    requests: Sequence[Request]
    source: str

    @property
    def key_point(self) -> KeyPoint:
        """What the page wants said."""
        return self.example.key_points[0]

    @property
    def findings(self) -> list[str]:
        """What came out, in sentences: support and visibility before and after, and by whom."""
        told = []
        for method, rows in self.samples.groupby("method", sort=False):
            scored = rows["supported"].dropna()
            text = f"{label(str(method)).capitalize()}: the answer supports the key point in "
            text += f"{scored.sum():.0f} of {len(scored)} answers"
            if rows["pawc"].notna().any():
                text += f"; visibility (PAWC) {rows['pawc'].mean():.2f}"
            if lost := rows["abstention"].dropna().tolist():
                text += f"; {len(lost)} abstained: {lost[0]}"
            told.append(f"{text}.")
        if len(self.example.sources) == 1:
            told.append("The page is the engine's only source: it competes with no other.")
        return [*told, f"Source: {self.source}."]


def changing_method(name: str) -> str:
    """Return a method's name.

    Raises:
        ValueError: The method is unknown, or changes nothing.
    """
    if known_method(name) == "original":
        raise ValueError("method='original' changes nothing; choose another, such as 'key_point'")
    return name


def try_page(roles: Roles, example: Example, method: str, repeats: int = 1) -> Trial:
    """Rewrite an example's target page by one method, and ask and judge before and after.

    Args:
        roles: Engine, judge and rewriter. A record knows no page but its own: offline roles
            stand in for it.
        example: As `corpus.own_example` makes it; its first key point is the one.
        method: The method.
        repeats: Sampled answers a page.

    Raises:
        ValueError: The method is unknown, changes nothing, or is not the rewriter's.
        FatalError: A model could not be asked.
    """
    changing_method(method)
    if roles.params.recorded:
        offline = dict.fromkeys(("engine", "judge", "rewriter"), "offline")
        roles = make_roles(roles.params.model_copy(update=offline | {"record": None}))
    check_methods([method], roles.params.roles.get("rewriter", "offline"))
    noted, requests = roles.noted()
    samples = noted.evaluate([example], ["original", method], repeats, quiet)
    order = draw_source_order(example, roles.params.seed)
    return Trial(example, method, samples, order, requests, roles.source())
