"""GEO's objective metrics by method, beside the earlier formulas and the published values."""

from __future__ import annotations

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
    upstream = samples.apply(_upstream_pawc, axis=1, result_type="expand")
    for column, name in enumerate(_UPSTREAM.values()):
        found = means(samples[["query_id", "method"]].assign(mean=upstream[column]), "mean")
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


def _upstream_pawc(sample: pd.Series) -> list[float]:
    """Return the target's PAWC by each upstream formula; NaN where the corrected figure is."""
    if pd.isna(sample["pawc"]) or not isinstance(sample["answer"], str):
        return [float("nan")] * len(_UPSTREAM)
    split, n = upstream_sentences(sample["answer"]), len(sample["source_order"])
    place = sample["target_place"]
    return [float(visibility_from_sentences(split, n, c).pawc[place]) for c in _UPSTREAM]
