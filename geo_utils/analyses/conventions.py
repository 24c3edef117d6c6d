"""Visibility as the earlier formulas would have reported it, and what that does to the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.analyses.contrasts import means
from geo_utils.methods import is_arm
from geo_utils.visibility import Convention, upstream_sentences, visibility_from_sentences

# Position-adjusted word count under each convention; the first is the samples' own column.
CONVENTIONS = {"pawc": "corrected", "pawc_geo": "GEO's code", "pawc_autogeo": "AutoGEO's code"}
_UPSTREAM: tuple[Convention, ...] = ("geo", "autogeo")


def legacy_visibility(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the target's PAWC as the two upstream formulas give it on the same answers.

    Args:
        samples: As `evaluate.evaluate` returns it.

    Returns:
        A row a sample: `pawc_geo` (counts sources from 1) and `pawc_autogeo` (from 0, so that
        the credit goes to the source one place up); NaN where the corrected figure is.
    """
    rows = []
    each: Iterable[Any] = samples.itertuples(index=False)
    for row in each:
        if not isinstance(row.answer, str) or np.isnan(row.pawc):
            rows.append((np.nan, np.nan))
            continue
        split, n = upstream_sentences(row.answer), len(row.source_order)
        geo, autogeo = (
            float(visibility_from_sentences(split, n, convention).pawc[row.target_place])
            for convention in _UPSTREAM
        )
        rows.append((geo, autogeo))
    return pd.DataFrame(rows, columns=["pawc_geo", "pawc_autogeo"], index=samples.index)


def by_convention(samples: pd.DataFrame) -> pd.DataFrame:
    """Estimate PAWC by method under each convention, with ranks.

    Args:
        samples: With the columns of `legacy_visibility`.

    Returns:
        Indexed by convention (a key of `CONVENTIONS`) and method: as `contrasts.means`, and
        `rank`, 1 for the largest mean; equal means share a rank.
    """
    own = samples[~samples["method"].map(is_arm)]
    parts = {column: means(own, column) for column in CONVENTIONS}
    for part in parts.values():
        part["rank"] = part["mean"].rank(ascending=False, method="min")
    return pd.concat(parts, names=["convention"])


def rank_flips(table: pd.DataFrame, convention: str) -> list[tuple[str, str]]:
    """Return the pairs of methods whose order differs from the corrected one.

    Args:
        table: As `by_convention` returns it.
        convention: The one to compare, such as `pawc_geo`.

    Returns:
        (a, b) where the corrected figure puts a above b and this convention b above a.
    """
    true, other = table.loc["pawc"]["mean"], table.loc[convention]["mean"]
    flips = []
    for a, b in combinations(true.index, 2):
        if true[a] < true[b]:
            a, b = b, a
        if true[a] > true[b] and other[a] < other[b]:
            flips.append((str(a), str(b)))
    return flips
