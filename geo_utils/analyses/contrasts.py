"""Any column of a samples table, each method against a reference, paired, with Holm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from geo_utils.statistics import N_RESAMPLES, cluster_mean, holm, paired_difference
from geo_utils.summary import ALPHA, PAIR


def contrasts(
    samples: pd.DataFrame,
    column: str,
    reference: str,
    methods: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare one column between methods and a reference, on the same pairs.

    Args:
        samples: As `evaluate.evaluate` returns it.
        column: A number a sample; NaN is an abstention.
        reference: The method that differences are taken to.
        methods: Those to compare, one family of tests; default, all but the reference.
        seed: Seed of the resampling.

    Returns:
        Indexed by method: `mean` and `reference` over the pairs that both have, `difference` with
        `low` and `high`, `effect` (Cohen's d_z: the queries' mean difference over its standard
        deviation; NaN where all queries agree), `p_value` (sign-flip permutation over queries),
        `p_holm`, `clear` (adjusted p below 0.05), `n_examples`, `n_samples` (pairs) and
        `abstentions` (pairs dropped because either side has no score).
    """
    wide = samples.pivot(index=PAIR, columns="method", values=column).astype(float)
    queries = wide.index.get_level_values("query_id")
    if methods is None:
        methods = [m for m in dict.fromkeys(samples["method"]) if m != reference]
    base = wide[reference].to_numpy(float)
    rows = {}
    for method in methods:
        own = wide[method].to_numpy(float)
        found = paired_difference(own, base, queries.tolist(), seed)
        kept = ~np.isnan(own - base)
        rows[method] = {
            "mean": _mean(own[kept]),
            "reference": _mean(base[kept]),
            "difference": found.estimate.mean,
            "low": found.estimate.low,
            "high": found.estimate.high,
            "effect": _effect(pd.Series(own - base).groupby(queries).mean().dropna()),
            "p_value": found.p_value,
            "n_examples": found.estimate.n_clusters,
            "n_samples": found.estimate.n_samples,
            "abstentions": found.n_dropped,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    table["p_holm"] = holm(table["p_value"].tolist())
    table["clear"] = table["p_holm"] < ALPHA
    return table


def means(samples: pd.DataFrame, column: str, bounded: bool = False) -> pd.DataFrame:
    """Estimate one column's mean by method, over queries.

    Returns:
        Indexed by method: `mean`, `low`, `high`, `n_examples`, `n_samples`, `abstentions`.
    """
    rows = {}
    for method, part in samples.groupby("method", sort=False):
        values = part[column].to_numpy(float)
        found = cluster_mean(values, part["query_id"].tolist(), bounded=bounded)
        rows[method] = {
            "mean": found.mean, "low": found.low, "high": found.high,
            "n_examples": found.n_clusters, "n_samples": found.n_samples,
            "abstentions": int(np.isnan(values).sum()),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def differing(groups: Sequence[NDArray[np.float64]], seed: int = 0) -> float:
    """Return the p-value that groups of queries have one mean: permutation of the F statistic.

    Args:
        groups: One value a query, shape (n,) each.
        seed: Seed of the permutations.

    Returns:
        NaN with fewer than two groups of at least two queries, 1.0 where nothing varies.
    """
    held = [group for group in groups if len(group) > 1]
    if len(held) < 2:
        return np.nan
    every = np.concatenate(held)
    if np.ptp(every) == 0:
        return 1.0
    # With the total fixed, the F statistic grows with the sum of squared group sums over sizes.
    labels = np.repeat(np.arange(len(held)), [len(group) for group in held])
    sizes = np.array([len(group) for group in held], dtype=float)

    def between(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        sums = np.stack([values[..., labels == g].sum(axis=-1) for g in range(len(held))], axis=-1)
        return np.asarray((sums**2 / sizes).sum(axis=-1))

    found = stats.permutation_test(
        (every,), between, permutation_type="pairings", vectorized=True, alternative="greater",
        n_resamples=N_RESAMPLES, batch=500, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.nan


def _effect(differences: pd.Series) -> float:
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / spread if spread > 0 else np.nan
