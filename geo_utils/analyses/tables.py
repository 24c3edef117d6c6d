"""Tables of the analyses: effects before p-values, n and abstentions beside every estimate."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.analyses.collateral import FIGURES
from geo_utils.analyses.conventions import CONVENTIONS, rank_flips
from geo_utils.analyses.counterfactual import contribution
from geo_utils.analyses.funnel import STAGES
from geo_utils.tables import interval_column, label, styled, visibility_table, with_interval

# Position-adjusted word count in per cent, as published; other corpora, engines and prompts.
GEO_PAPER = "Aggarwal et al., GEO, KDD 2024"
GEO_PAWC = {
    "original": 19.3, "keyword_stuffing": 17.7, "unique_words": 20.5, "authoritative": 21.3,
    "easy_to_understand": 22.0, "technical_terms": 22.7, "cite_sources": 24.6, "fluency": 24.7,
    "statistics": 25.2, "quotation": 27.2,
}  # fmt: skip
AUTOGEO_OVERALL = "20 → 34 to 44 with its API model, 19.3 when every page is optimised"


def lift_table(found: pd.DataFrame | None, samples: pd.DataFrame, caption: str) -> Styler | None:
    """Lay out what each page adds to the answers without it.

    Args:
        found: As `counterfactual.lifts` returns it.
        samples: The samples it was made from.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    shares = pd.Series(contribution(samples)).dropna()
    told = ", ".join(f"{share:.1%} {name}" for name, share in shares.items()) or "none was scored"
    return _contrast_table(
        found, "with the page", "without it", "lift",
        f"Key point in the answer, of pairs with and without the original page: {told}. {caption}",
    )  # fmt: skip


def placebo_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out each rewrite's lift on its own query and on another.

    Args:
        found: As `counterfactual.placebos` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    names = [f"{label(method)}, {kind}" for method, kind in found.index]
    return _contrast_table(found.set_axis(names), "rewrite", "original", "difference", caption)


def funnel_table(found: pd.DataFrame | None, samples: pd.DataFrame, caption: str) -> Styler | None:
    """Lay out the funnel from answer to original page, one row a method.

    Args:
        found: As `funnel.funnel` returns it.
        samples: The samples it was made from.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    held = samples.groupby(["query_id", "key_point_number"])["original_supports"].first().dropna()
    if len(held):
        caption = (
            f"The judge finds {held.mean():.1%} of {len(held)} key points on their original pages. "
            f"{caption}"
        )
    columns = {}
    for stage in found.index.get_level_values("stage").unique():
        part = pd.DataFrame(found.xs(stage, level="stage"))
        kept = "" if stage == "supported" else part["of_previous"].map(" ({:.0%} kept)".format)
        columns[STAGES[stage]] = _intervals(part, "mean") + kept
    last = found.groupby(level="method", sort=False)
    columns["n queries"], columns["n samples"] = last["n_examples"].min(), last["n_samples"].min()
    columns["abstentions"] = last["abstentions"].max()
    return styled(pd.DataFrame(columns).rename(index=label).rename_axis(None), [], caption)


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
        columns[FIGURES[figure]] = _intervals(part, "difference", signed=True) + stars
    counts = found.groupby(level="method", sort=False)
    columns["n pairs"] = counts["n_samples"].min()
    columns["abstentions"] = counts["abstentions"].max()
    told = (
        "Differences to the original page, paired; * p below 0.05 after Holm over the table. The "
        "other sources' points are the sentences of their pages closest to the query"
    )
    table = pd.DataFrame(columns).rename(index=label).rename_axis(None)
    return styled(table, [], f"{told}. {caption}")


def frontier_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out lift, fidelity, length, flags and strict probability, one row a method.

    Args:
        found: As `frontier.frontier` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    table = pd.DataFrame({
        "lift": _intervals(found, "difference", signed=True),
        "fidelity": interval_column(found, "fidelity", "fidelity"),
        "new claims a page": found["new_claims"].map("{:.2f}".format),
        "words added": found["words_added"].map("{:+.1%}".format),
        "flagged": found["flagged"].map("{:.1%}".format),
        "passes the gate": found["faithful"].map("{:.1%}".format),
        "strict probability": interval_column(found, "strict", "strict"),
        "n samples": found["n_samples"],
        "abstentions": found["abstentions"],
    }).rename(index=label)  # fmt: skip
    marked = [label(str(method)) for method in found.index[found["efficient"]]]
    told = "Bold: no other method is as good in lift, fidelity, words and flags and better in one"
    return styled(table.rename_axis(None), marked, f"{told}. {caption}")


def strata_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out where one method's lift is.

    Args:
        found: As `strata.strata` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    table = pd.DataFrame({
        "lift": _intervals(found, "mean", signed=True),
        "p of the factor (Holm)": found["p_holm"].map(_p_value),
        "n queries": found["n_examples"], "n pairs": found["n_samples"],
        "abstentions": found["abstentions"],
    }).set_axis(found["factor"] + ": " + found["stratum"])  # fmt: skip
    method, reference = (label(str(found[name].iloc[0])) for name in ("method", "reference"))
    told = f"Lift of {method} over {reference}; baseline by the even repeats, its lift by the odd"
    return styled(table, [], f"{told}. {caption}")


def convention_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out PAWC by method under each convention, with ranks.

    Args:
        found: As `conventions.by_convention` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    columns = {}
    for name, title in CONVENTIONS.items():
        part = pd.DataFrame(found.loc[name])
        columns[title] = _intervals(part, "mean")
        columns[f"rank, {title}"] = part["rank"].astype(int)
    columns["n answers"] = found.loc["pawc"]["n_samples"]
    told = []
    for name in list(CONVENTIONS)[1:]:
        pairs = [f"{label(a)} / {label(b)}" for a, b in rank_flips(found, name)]
        few = ", ".join(pairs[:6]) + (" and others" if len(pairs) > 6 else "")
        told.append(f"{CONVENTIONS[name]}: {len(pairs)} pairs turned round ({few or 'none'})")
    table = pd.DataFrame(columns).rename(index=label).rename_axis(None)
    return styled(table, [], f"PAWC of the target. {'. '.join(told)}. {caption}")


def objective_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out word, position and PAWC by method, the published values of the same methods below.

    Args:
        summary: As `summary.summarise` returns it.
        caption: What the figures rest on.
    """
    own = visibility_table(summary, caption)
    published = {
        f"published: {label(method)}": {"word": "–", "position": "–",  # noqa: RUF001
                                        "PAWC": f"{share / 100:.3f}", "n answers": "–"}  # noqa: RUF001
        for method, share in GEO_PAWC.items()
        if method in summary.index
    }  # fmt: skip
    if not published:
        return own
    below = pd.DataFrame.from_dict(published, orient="index")
    parts: list[pd.DataFrame] = [own.data, below]  # type: ignore[attr-defined]
    table = pd.concat(parts)
    told = (
        f"Published: {GEO_PAPER}, other data and engine, beside it AutoGEO's overall score in per "
        f"cent, {AUTOGEO_OVERALL}; for orientation, not for comparison"
    )
    best = [label(str(summary["pawc"].idxmax()))] if summary["pawc"].notna().any() else []
    return styled(table, best, f"{told}. {caption}")


def _contrast_table(
    found: pd.DataFrame, mean: str, reference: str, change: str, caption: str
) -> Styler:
    table = pd.DataFrame({
        mean: found["mean"].map("{:.3f}".format),
        reference: found["reference"].map("{:.3f}".format),
        change: _intervals(found, "difference", signed=True),
        "effect (d)": found["effect"].map(lambda d: "–" if pd.isna(d) else f"{d:+.2f}"),  # noqa: RUF001
        "p (Holm)": found["p_holm"].map(_p_value),
        "n queries": found["n_examples"], "n pairs": found["n_samples"],
        "abstentions": found["abstentions"],
    }).rename(index=label)  # fmt: skip
    return styled(table.rename_axis(None), [], caption)


def _intervals(found: pd.DataFrame, mean: str, signed: bool = False) -> pd.Series:
    rows = zip(found[mean], found["low"], found["high"], strict=True)
    return pd.Series([with_interval(*row, signed) for row in rows], index=found.index)


def _p_value(p: float) -> str:
    return "–" if pd.isna(p) else f"{p:.4f}"  # noqa: RUF001
