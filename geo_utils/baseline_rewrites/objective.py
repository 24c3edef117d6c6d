"""GEO's objective metrics by method, beside the earlier formulas and the published values."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.roles.methods import label
from geo_utils.show.tables import DASH, intervals, marked_leader, styled, visibility_table
from geo_utils.summary import means
from geo_utils.visibility import Convention, upstream_sentences, visibility_from_sentences

_UPSTREAM: dict[Convention, str] = {"geo": "PAWC, GEO's code", "autogeo": "PAWC, AutoGEO's code"}
# Position-adjusted word count in per cent, as published; other corpora, engines and prompts.
GEO_PAPER = "Aggarwal et al., GEO, KDD 2024"
GEO_PAWC = {
    "original": 19.3,
    "keyword_stuffing": 17.7,
    "unique_words": 20.5,
    "authoritative": 21.3,
    "easy_to_understand": 22.0,
    "technical_terms": 22.7,
    "cite_sources": 24.6,
    "fluency": 24.7,
    "statistics": 25.2,
    "quotation": 27.2,
}
AUTOGEO_OVERALL = "20 → 34 to 44 with its API model, 19.3 when every page is optimised"


def objective_table(samples: pd.DataFrame, summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out word, position and PAWC by method, the published values of the same methods below.

    Beside them PAWC as the two upstream formulas give it on the same answers: GEO's code, and
    AutoGEO's, which counts sources from 0 and so credits the source one place up.

    Args:
        samples: As `evaluate.evaluate` returns it.
        summary: As `summary.summarise` returns it.
        caption: What the figures rest on.
    """
    own = pd.DataFrame(visibility_table(summary, caption).data)  # type: ignore[attr-defined]
    upstream = samples[["query_id", "method"]].join(upstream_pawc(samples))
    for convention, name in _UPSTREAM.items():
        found = means(upstream, convention)
        own[name] = intervals(found.reindex(summary.index)).tolist()
    published = {
        f"in the paper: {label(method)}": {"PAWC": f"{share / 100:.3f}"}
        for method, share in GEO_PAWC.items()
        if method in summary.index
    }
    below = pd.DataFrame.from_dict(published, orient="index")
    table = pd.concat([own, below.reindex(columns=own.columns, fill_value=DASH)])
    told = (
        f"In the paper: {GEO_PAPER}, other data and engine, beside it AutoGEO's overall score in "
        f"per cent, {AUTOGEO_OVERALL}; for orientation, not for comparison"
    )
    marked, bold = marked_leader(summary["pawc_leads"])
    return styled(table, marked, f"{told}. {bold} {caption}")


def upstream_pawc(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the target's PAWC by each upstream formula; NaN where the corrected figure is."""
    scored = samples[samples["pawc"].notna() & samples["answer"].notna()]
    columns = scored["answer"], scored["source_order"].map(len), scored["target_place"].astype(int)
    rows = [_pawc(*each) for each in zip(*columns, strict=True)]
    return pd.DataFrame(rows, scored.index, list(_UPSTREAM)).reindex(samples.index)


@lru_cache(maxsize=8192)  # one answer is judged on many key points
def _pawc(answer: str, n_sources: int, place: int) -> list[float]:
    split = upstream_sentences(answer)
    return [float(visibility_from_sentences(split, n_sources, c).pawc[place]) for c in _UPSTREAM]
