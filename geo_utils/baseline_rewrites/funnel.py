"""From a key point in the answer to one that the target is rightly credited for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.citations import parse_answer
from geo_utils.lexical import coverage
from geo_utils.roles.methods import is_arm, label
from geo_utils.show.plots import basis, interval_figure, method_rows
from geo_utils.show.tables import intervals, styled
from geo_utils.summary import means

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
    parsed = parse_answer(answer, n_sources).sentences
    found = coverage(key_point, [sentence.text for sentence in parsed], window=1)
    if not found.end:
        return "", ()
    return parsed[found.start].text, parsed[found.start].citations


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
        Indexed by method and stage (a key of `STAGES`): as `summary.means`, and `of_previous`,
        the share that the stage keeps of the one before (1.0 for the first), over the samples
        that have both. A stage that was not asked for is missing.
    """
    own = samples[~samples["method"].map(is_arm)]
    asked = [stage for stage in STAGES if own[stage].notna().any()]
    parts = {stage: means(own, stage, bounded=True).assign(of_previous=1.0) for stage in asked}
    for before, stage in pairwise(asked):
        both = own.dropna(subset=[before, stage]).groupby("method")[[before, stage]].sum()
        parts[stage]["of_previous"] = both[stage] / both[before]  # NaN where that one is empty
    found = pd.concat(parts, names=["stage"]).swaplevel()
    return found.loc[
        [(method, stage) for method in dict.fromkeys(own["method"]) for stage in asked]
    ]


def funnel_figure(found: pd.DataFrame, source: str) -> Figure:
    """Draw how often the point is in the answer, credited, and the page's own; see `funnel`."""
    wide = found["mean"].unstack()
    ends = {stage: (f"{wide[stage].min():.0%}", f"{wide[stage].max():.0%}") for stage in wide}
    spans = {stage: " to ".join(dict.fromkeys(pair)) for stage, pair in ends.items()}
    title = (
        f"By method, the point is in {spans['supported']} of answers and credited to the target in "
        f"{spans['credited']}"
    )
    marks = "Dot: in the answer; square: its sentence cites the target"
    if "attributed" in wide:
        title += f"; the original page holds it in {spans['attributed']}"
        marks += "; diamond: and the original page holds it"
    stages = found.index.get_level_values("stage")
    rows = method_rows(found.droplevel("stage")).assign(
        marker=stages.map({"supported": "o", "credited": "s", "attributed": "D"}),
        hollow=stages == "credited",
    )
    note = basis(pd.DataFrame(found.xs("supported", level="stage")), source, f"{marks}.")
    return interval_figure(rows, title, "share of all answers", note, limits=(-0.02, 1.0))


def funnel_table(found: pd.DataFrame, samples: pd.DataFrame, caption: str) -> Styler:
    """Lay out the funnel from answer to original page, one row a method.

    Args:
        found: As `funnel.funnel` returns it.
        samples: The samples it was made from.
        caption: What the figures rest on.
    """
    held = samples.groupby(["query_id", "key_point_number"])["original_supports"].first().dropna()
    if len(held):
        caption = (
            f"The judge finds {held.mean():.1%} of {len(held)} key points on their original pages. "
            f"{caption}"
        )
    kept = found["of_previous"].map(" ({:.0%} kept)".format)
    kept = kept.where(found["of_previous"].notna(), "")
    kept = kept.where(found.index.get_level_values("stage") != "supported", "")
    table = (intervals(found) + kept).unstack("stage", sort=False).rename(columns=STAGES)
    each = found.groupby(level="method", sort=False)
    table["n queries"], table["n samples"] = each["n_examples"].min(), each["n_samples"].min()
    table["abstentions"] = each["abstentions"].max()
    return styled(table.rename(index=label).rename_axis(index=None, columns=None), [], caption)
