"""Where a method's lift is: by place of the target, by the other sources, by baseline."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.corpus import Example
from geo_utils.lexical import SUPPORT_THRESHOLD, coverage
from geo_utils.roles.methods import label
from geo_utils.show.plots import basis, colour, interval_figure
from geo_utils.show.tables import intervals, p_values, styled
from geo_utils.statistics import holm
from geo_utils.summary import ALPHA, PAIR, differing, estimates
from geo_utils.text import sentences

_BANDS = ("below 20 %", "20 to 80 %", "above 80 %")
_STRATA = ("first", "middle", "last", "do not carry it", "carry it", *_BANDS)
_COLUMNS = ["mean", "low", "high", "n_samples", "n_examples"]


def others_carry(samples: pd.DataFrame, examples: Iterable[Example]) -> pd.Series:
    """Tell for each sample whether another source carries its key point, by its words.

    Args:
        samples: As `evaluate.evaluate` returns it.
        examples: The corpus.

    Returns:
        1.0 or 0.0 a sample, as the lexical judge's threshold has it.
    """
    pages = {
        e.query_id: [sentences(s) for i, s in enumerate(e.sources) if i != e.target_id]
        for e in examples
    }
    points = samples[["query_id", "key_point"]].drop_duplicates()
    known = {
        (query, point): float(
            any(coverage(point, page).score >= SUPPORT_THRESHOLD for page in pages[query])
        )
        for query, point in points.itertuples(index=False, name=None)
    }
    keys = zip(samples["query_id"], samples["key_point"], strict=True)
    return pd.Series([known[key] for key in keys], index=samples.index)


def strongest(samples: pd.DataFrame, methods: Iterable[str], column: str = "supported") -> str:
    """Return the method with the largest mean of a column, the original page left out."""
    shown = samples[samples["method"].isin([m for m in methods if m != "original"])]
    return str(shown.groupby("method", sort=False)[column].mean().idxmax())


def strata(
    samples: pd.DataFrame, method: str, reference: str = "original", seed: int = 0
) -> pd.DataFrame:
    """Split a method's lift over a reference by what the queries have in common.

    The baseline is the reference's, measured on the even repeats, and its lift is that of the odd
    ones: on the same answers a low baseline would be followed by a high lift by chance alone.
    With one repeat there is no baseline.

    Args:
        samples: With the column `others_carry`, and the rows of the original page.
        method: The method; `original` to ask what the page itself contributes.
        reference: What it is compared with; then `removed`.
        seed: Seed of resampling and permutation.

    Returns:
        One row a stratum: `factor`, `stratum`, `mean`, `low`, `high` of the lift, `n_examples`,
        `n_samples`, `abstentions` (pairs without a score), `p_value` of the factor (permutation
        test that its strata have one lift; NaN if it has one stratum), `p_holm` over the factors,
        `clear`, `method` and `reference`.
    """
    wide = samples[samples["method"].isin([reference, method])]
    pairs = wide.pivot(index=PAIR, columns="method", values="supported")
    lift = (pairs[method] - pairs[reference]).rename("lift").reset_index()
    known = samples[samples["method"] == "original"]
    known = known.assign(sources=known["source_order"].map(len))
    columns = ["target_place", "sources", "others_carry"]
    about = known.groupby(PAIR[:2])[columns].first().reset_index()
    frame = lift.merge(about, on=PAIR[:2])
    carried = frame["others_carry"].map({1.0: "carry it", 0.0: "do not carry it"})
    parts = [
        ("place of the target", _place(frame["target_place"], frame["sources"]), frame),
        ("other sources", carried, frame),
    ]
    bases = samples[(samples["method"] == reference) & (samples["repeat"] % 2 == 0)]
    even = bases.groupby(PAIR[:2])["supported"].mean()
    odd = frame[frame["repeat"] % 2 == 1]
    if len(odd):
        base = odd.merge(even.rename("baseline").reset_index(), on=PAIR[:2], how="left")
        parts.append(("baseline", base["baseline"].map(_band), base))
    found = pd.concat([_factor(*part, seed) for part in parts], ignore_index=True)
    first = found.drop_duplicates("factor").set_index("factor")["p_value"]
    found["p_holm"] = found["factor"].map(dict(zip(first.index, holm(first.tolist()), strict=True)))
    found["clear"] = found["p_holm"] < ALPHA
    return found.assign(method=method, reference=reference)


def _factor(name: str, labels: pd.Series, frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows of one factor, its strata in their order; none where no stratum is known."""
    known = frame.assign(stratum=labels).dropna(subset="stratum")
    if known.empty:
        return pd.DataFrame()
    found = estimates(known, "stratum", ["lift"]).set_axis(_COLUMNS, axis=1)
    found["abstentions"] = known.groupby("stratum").size() - found["n_samples"]
    found = found.loc[[stratum for stratum in _STRATA if stratum in found.index]]
    means = known.groupby(["stratum", "query_id"])["lift"].mean().dropna().reset_index()
    groups = [means.loc[means["stratum"] == s, "lift"].to_numpy(float) for s in found.index]
    return found.reset_index().assign(factor=name, p_value=differing(groups, seed))


def _place(places: pd.Series, n: pd.Series) -> pd.Series:
    """Name each place among the query's own `n` sources; queries may have different numbers."""
    return pd.Series(
        np.select([places == 0, places == n - 1], ["first", "last"], "middle"), index=places.index
    )


def _band(share: float) -> str | None:
    """Name the band of a baseline: 20 % and 80 % lie in the middle."""
    if np.isnan(share):
        return None
    low, middle, high = _BANDS
    return low if share < 0.2 else high if share > 0.8 else middle


def strata_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw where a method's lift over the original page is; see `strata`."""
    if found is None:
        return None
    method = str(found["method"].iloc[0])
    factors = found.drop_duplicates("factor")
    clear = factors.loc[factors["clear"], "factor"].tolist()
    title = f"{label(method).capitalize()}'s lift " + (
        f"differs by {' and by '.join(clear)}"
        if clear
        else f"does not clearly differ by {', '.join(factors['factor'])}"
    )
    texts = intervals(found, signed=True) + ", " + found["n_examples"].map("{} queries".format)
    rows = found[["mean", "low", "high"]].assign(
        shade=colour(method), hollow=~found["clear"], text=texts
    )
    rows = rows.set_axis(found["factor"] + ": " + found["stratum"])
    known = factors.dropna(subset="p_holm")
    tested = "; ".join(f"{r.factor} p = {r.p_holm:.3f}" for r in known.itertuples())
    marks = f"Filled: the factor's strata clearly differ (permutation, Holm: {tested})."
    note = basis(found, source, marks, each="stratum")
    return interval_figure(rows, title, "lift over the original page, paired", note, signed=True)


def strata_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out where one method's lift is.

    Args:
        found: As `strata.strata` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    table = pd.DataFrame(
        {
            "lift": intervals(found, signed=True),
            "p of the factor (Holm)": p_values(found["p_holm"]),
            "n queries": found["n_examples"],
            "n pairs": found["n_samples"],
            "abstentions": found["abstentions"],
        }
    ).set_axis(found["factor"] + ": " + found["stratum"])
    method, reference = (label(str(found[name].iloc[0])) for name in ("method", "reference"))
    told = f"Lift of {method} over {reference}; baseline by the even repeats, its lift by the odd"
    return styled(table, [], f"{told}. {caption}")
