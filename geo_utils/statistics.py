"""Paired intervals and tests with the query as the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    values: NDArray[np.float64], clusters: Sequence[object], *, bounded: bool = False
) -> Estimate:
    """Estimate a mean over samples that come in clusters.

    A sample with value NaN is left out. The interval is Student's t on the linearised variance
    of the ratio of sums, n - 1 degrees of freedom for n clusters. A probability gets Wilson's
    interval at the effective sample size that this variance implies (Korn and Graubard, 1998),
    so that it stays inside 0..1 and keeps its coverage near the ends. Where all clusters agree
    there is no spread to show: for a probability the exact Clopper-Pearson interval over the
    clusters takes its place, for other means there is none.

    Measured coverage of nominal 95 %, 1,500 draws each, 3 samples a cluster: probabilities of
    0.5 to 0.91 over 6 to 120 clusters 94.7 % to 99.3 %, paired differences of 0 to 0.22
    92.2 % to 98.9 % (over 20 and more clusters 93.7 % to 95.8 %). The percentile bootstrap,
    which these took the place of, had 73.3 % to 95.6 % and 72.9 % to 95.3 %.

    Args:
        values: One a sample, shape (n,).
        clusters: The cluster of each sample, shape (n,).
        bounded: Whether the values are 0 or 1, so that the mean is a probability.

    Returns:
        The mean over samples with its interval.
    """
    frame = pd.DataFrame({"value": values, "cluster": list(clusters)}).dropna(subset="value")
    grouped = frame.groupby("cluster", sort=True)["value"].agg(["sum", "count"])
    sums, counts = grouped["sum"].to_numpy(float), grouped["count"].to_numpy(float)
    n, total = len(grouped), counts.sum()
    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    mean = float(sums.sum() / total)
    low = high = np.nan
    if np.ptp(sums / counts) == 0:
        if bounded and mean in (0.0, 1.0):
            low, high = proportion_confint(round(mean * n), n, 1 - CONFIDENCE, "beta")
    else:
        error = float(np.sqrt(n / (n - 1) * ((sums - mean * counts) ** 2).sum())) / total
        reach = interval_reach(n)
        low, high = mean - reach * error, mean + reach * error
        if bounded:
            low, high = wilson_interval(mean, error, n, len(frame))
    return Estimate(mean, float(low), float(high), n, len(frame))


def wilson_interval(
    mean: float, error: float, n_clusters: int, n_samples: int
) -> tuple[float, float]:
    """Return Wilson's interval of a probability at the sample size that its error implies.

    Args:
        mean: The probability, between 0 and 1.
        error: Its standard error, above 0.
        n_clusters: How many clusters tell the error.
        n_samples: Samples behind it: the most that the effective size can be.
    """
    wider = stats.norm.ppf(0.5 + CONFIDENCE / 2) / interval_reach(n_clusters)
    effective = min(mean * (1 - mean) / error**2 * wider**2, n_samples)
    low, high = proportion_confint(mean * effective, effective, 1 - CONFIDENCE, "wilson")
    return float(low), float(high)


def jackknife(
    statistic: Callable[[NDArray[np.bool_]], float], clusters: Sequence[object]
) -> Estimate:
    """Estimate any statistic of samples that come in clusters, one cluster left out at a time.

    Args:
        statistic: From a mask of the samples that count, shape (n,), to the number.
        clusters: The cluster of each sample, shape (n,).

    Returns:
        The number, with Student's t interval on the jackknife's error; without one where leaving
        a cluster out changes nothing, or leaves nothing to tell.
    """
    named = np.asarray(clusters, dtype=object)
    names = list(dict.fromkeys(clusters))
    n, whole = len(names), statistic(np.ones(len(named), dtype=bool))
    low = high = np.nan
    if n > 1 and not np.isnan(whole):
        left = np.array([statistic(named != name) for name in names])
        error = float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
        if error > 0:
            half = interval_reach(n) * error
            low, high = whole - half, whole + half
    return Estimate(whole, low, high, n, len(named))


def kappa(said: NDArray[np.bool_], clusters: Sequence[object]) -> Estimate:
    """Estimate Cohen's kappa of two readers, with the jackknife's interval over clusters.

    Args:
        said: What each says, shape (n, 2).
        clusters: The cluster of each row, shape (n,).

    Returns:
        NaN where both say one and the same throughout: there is no agreement beyond chance.
    """

    def of(kept: NDArray[np.bool_]) -> float:
        counts = np.bincount(2 * said[kept, 0] + said[kept, 1], minlength=4).reshape(2, 2)
        n = counts.sum()
        by_chance = (counts.sum(0) * counts.sum(1)).sum()
        if by_chance >= n**2:  # also of no rows
            return float("nan")
        return float((np.trace(counts) * n - by_chance) / (n**2 - by_chance))

    found = jackknife(of, clusters)
    low, high = np.clip([found.low, found.high], -1.0, 1.0).tolist()
    return replace(found, low=low, high=high)


def interval_reach(n_clusters: int) -> float:
    """Return how many standard errors the 95 % interval over so many clusters reaches."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(n_clusters - 1, 1)))


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
        seed: Seed of the permutations.

    Returns:
        The mean difference, its interval and its permutation test.
    """
    difference = values - reference
    kept = ~np.isnan(difference)
    estimate = cluster_mean(difference, clusters)
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


def with_interval(
    mean: float, low: float, high: float, signed: bool = False, digits: int = 3
) -> str:
    """Write a number with its 95 % interval; a dash where there is none."""
    if pd.isna(mean):
        return "–"  # noqa: RUF001
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    if pd.isna(low):
        return form.format(mean)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"
