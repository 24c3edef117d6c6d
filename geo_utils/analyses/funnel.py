"""From a key point in the answer to one that the target is rightly credited for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.analyses.contrasts import means
from geo_utils.citations import CitedSentence, parse_answer
from geo_utils.lexical import coverage
from geo_utils.methods import is_arm

STAGES = {
    "supported": "in the answer",
    "credited": "its sentence cites the target",
    "attributed": "and the original page holds it",
}


def carrier(key_point: str, answer: str, n_sources: int) -> tuple[str, tuple[int, ...]]:
    """Return the sentence of an answer that carries most of a key point, and what it cites.

    Args:
        key_point: The point.
        answer: The engine's text.
        n_sources: How many sources the engine saw.

    Returns:
        The sentence without its marks and 0-based places of the sources it cites; empty if no
        sentence shares a word with the point.
    """
    parsed = _parsed(answer, n_sources)
    found = coverage(key_point, [sentence.text for sentence in parsed], window=1)
    if not found.end:
        return "", ()
    return parsed[found.start].text, parsed[found.start].citations


@lru_cache(maxsize=8192)
def _parsed(answer: str, n_sources: int) -> tuple[CitedSentence, ...]:
    return parse_answer(answer, n_sources).sentences


def attribution(samples: pd.DataFrame) -> pd.DataFrame:
    """Follow each key point from the answer to the original page.

    Args:
        samples: As `evaluate.evaluate` returns it, with `original_supports`.

    Returns:
        A row a sample. `credited`: 1.0 if the answer supports the point and the sentence that
        carries most of it cites the target. `attributed`: 1.0 if also the original page supports
        it; NaN, credited or not, where the judge was not asked about that page, or abstained:
        to leave out the credited ones alone would make the share too small. Both NaN where the
        verdict is, and for answers that saw no target.
    """
    rows = []
    each: Iterable[Any] = samples.itertuples(index=False)
    for row in each:
        credited = row.supported
        if is_arm(row.method):
            credited = np.nan
        elif row.supported == 1:
            _, cited = carrier(row.key_point, row.answer, len(row.source_order))
            credited = float(row.target_place in cited)
        rows.append((credited, credited * row.original_supports))
    return pd.DataFrame(rows, columns=["credited", "attributed"], index=samples.index, dtype=float)


def funnel(samples: pd.DataFrame) -> pd.DataFrame:
    """Estimate each stage of the funnel, as a share of all samples, by method.

    Args:
        samples: With the columns of `attribution`.

    Returns:
        Indexed by method and stage (a key of `STAGES`): as `contrasts.means`, and `of_previous`,
        the share that the stage keeps of the one before (1.0 for the first), over the samples
        that have both. A stage that was not asked for is missing.
    """
    own = samples[~samples["method"].map(is_arm)]
    parts = {
        stage: means(own, stage, bounded=True).assign(of_previous=_kept(own, stage))
        for stage in STAGES
        if own[stage].notna().any()
    }
    found = pd.concat(parts, names=["stage"]).swaplevel().sort_index(sort_remaining=False)
    return found.reindex([(m, s) for m in dict.fromkeys(own["method"]) for s in parts])


def _kept(samples: pd.DataFrame, stage: str) -> pd.Series | float:
    """Return by method what a stage keeps of the one before; NaN where that one is empty."""
    stages = list(STAGES)
    if stage == stages[0]:
        return 1.0
    before = stages[stages.index(stage) - 1]
    both = samples.dropna(subset=[before, stage]).groupby("method")[[before, stage]].sum()
    return both[stage] / both[before].where(both[before] > 0)
