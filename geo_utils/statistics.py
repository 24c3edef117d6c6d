"""Paired intervals and tests with the query as the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

N_RESAMPLES = 9_999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: NaN if nothing was scored.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n_clusters: Queries behind it.
        n_samples: Scored samples behind it.
    """

    mean: float
    low: float
    high: float
    n_clusters: int
    n_samples: int


def cluster_mean(
    values: NDArray[np.float64], clusters: Sequence[object], seed: int = 0, bounded: bool = False
) -> Estimate:
    """Estimate a mean over samples that come in clusters.

    Whole clusters are resampled (percentile bootstrap); a sample with value NaN is left out.
    Where all clusters agree the bootstrap has no spread to show: for a probability the exact
    Clopper-Pearson interval over the clusters takes its place, for other means there is none.

    Args:
        values: One a sample, shape (n,).
        clusters: The cluster of each sample, shape (n,).
        seed: Seed of the resampling.
        bounded: Whether the values are 0 or 1, so that the mean is a probability.

    Returns:
        The mean over samples with its interval.
    """
    frame = pd.DataFrame({"value": values, "cluster": list(clusters)}).dropna(subset="value")
    grouped = frame.groupby("cluster", sort=True)["value"].agg(["sum", "count"])
    sums, counts = grouped["sum"].to_numpy(float), grouped["count"].to_numpy(float)
    n = len(grouped)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    mean = float(sums.sum() / counts.sum())
    if np.ptp(sums / counts) == 0:
        low = high = np.nan
        if bounded and mean in (0.0, 1.0):
            low, high = map(float, proportion_confint(round(mean * n), n, 1 - CONFIDENCE, "beta"))
        return Estimate(mean, low, high, n, len(frame))
    interval = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=N_RESAMPLES,
        confidence_level=CONFIDENCE,
        batch=500,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), n, len(frame))


@dataclass(frozen=True)
class PairedDifference:
    """A method against a reference, on the same examples, key points and repeats.

    Attributes:
        estimate: Mean of the differences with its interval.
        p_value: Two-sided sign-flip permutation test over clusters; NaN without pairs.
        n_dropped: Pairs left out because either side abstained.
    """

    estimate: Estimate
    p_value: float
    n_dropped: int


def paired_difference(
    values: NDArray[np.float64],
    reference: NDArray[np.float64],
    clusters: Sequence[object],
    seed: int = 0,
) -> PairedDifference:
    """Estimate and test the difference of two paired columns.

    Args:
        values: The method's samples, shape (n,); NaN for an abstention.
        reference: The reference's samples of the same pairs, shape (n,).
        clusters: The cluster of each pair, shape (n,).
        seed: Seed of the resampling.

    Returns:
        The mean difference, its interval and its permutation test.
    """
    difference = values - reference
    kept = ~np.isnan(difference)
    estimate = cluster_mean(difference, clusters, seed)
    p_value = np.nan
    if kept.any():
        sums = pd.Series(difference[kept]).groupby(np.asarray(clusters, object)[kept]).sum()
        total = sums.to_numpy(float)
        p_value = 1.0
        if len(total) > 1 and np.any(total):
            p_value = float(
                stats.permutation_test(
                    (total, np.zeros_like(total)),
                    lambda x, y, axis: (x - y).sum(axis=axis),
                    permutation_type="samples",
                    vectorized=True,
                    n_resamples=N_RESAMPLES,
                    batch=500,
                    rng=np.random.default_rng(seed),
                ).pvalue
            )
    return PairedDifference(estimate, p_value, int((~kept).sum()))


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Return Holm's adjusted p-values over one family; NaN stays NaN and does not count."""
    raw = np.asarray(p_values, dtype=float)
    adjusted = raw.copy()
    known = ~np.isnan(raw)
    if known.any():
        adjusted[known] = multipletests(raw[known], method="holm")[1]
    return adjusted
