"""Lift against what it costs: fidelity, length and instructions, all methods together."""

from __future__ import annotations

import pandas as pd

from geo_utils.analyses.contrasts import contrasts, means
from geo_utils.methods import is_arm


def frontier(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Put every method's lift beside its price.

    Args:
        samples: With the columns of `gate.check_pages`.
        seed: Seed of the resampling.

    Returns:
        Indexed by method, the original page left out: the lift as `contrasts.contrasts` has it
        (`difference`, `low`, `high`, ...); `fidelity`, `grounded`, `new_claims`, `words_added`
        (a share of the original's words), each a mean over samples with `_low` and `_high`;
        `flagged` (share of samples whose page has a new instruction), `faithful` (share that
        passes the gate), `strict` (the strict probability, with its interval) and `efficient`:
        no other method has at least its lift and fidelity and at most its added words and flags,
        and is better in one of them.
    """
    own = samples[~samples["method"].map(is_arm)].copy()
    own["words_added"] = (own["page_words"] - own["original_words"]) / own["original_words"]
    own["flagged"] = own["instructions"].gt(0).astype(float).where(own["instructions"].notna())
    found = contrasts(own, "supported", "original", seed=seed)
    for column in ("fidelity", "grounded", "new_claims", "words_added", "strict"):
        part = means(own, column, bounded=column == "strict")
        for name, end in (("mean", column), ("low", f"{column}_low"), ("high", f"{column}_high")):
            found[end] = part[name]
    for column in ("flagged", "faithful"):
        found[column] = own.groupby("method")[column].mean()
    found["efficient"] = [_efficient(found, str(method)) for method in found.index]
    return found


def _efficient(table: pd.DataFrame, method: str) -> bool:
    """Tell whether no other method is as good in everything and better in something."""
    gains = pd.DataFrame({
        "lift": table["difference"], "fidelity": table["fidelity"],
        "words": -table["words_added"], "flags": -table["flagged"],
    })  # fmt: skip
    own, others = gains.loc[method], gains.drop(index=method)
    as_good, better = (others >= own).all(axis=1), (others > own).any(axis=1)
    return not bool((as_good & better).any())
