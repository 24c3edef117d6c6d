"""The chance that a GRPO group has no variance in its rewards, and teaches nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln


def no_variance_chance(rewrite_means: NDArray[np.float64], size: int) -> float:
    """Return the chance that `size` different rewrites, an answer each, all do or all do not.

    Unbiased for independent rollouts: the mean, over all choices of `size` rewrites, of the
    product of their means (and of their complements).
    """
    return mean_product(rewrite_means, size) + mean_product(1 - rewrite_means, size)


def beta_no_variance_chance(mean: float, variance: float, size: int) -> float:
    """Return E[p^G + (1 - p)^G] for G = size and a beta distribution of p with these moments."""
    largest = mean * (1 - mean)
    if variance <= 0 or not largest:
        return mean**size + (1 - mean) ** size
    if variance >= largest:
        return 1.0
    both = largest / variance - 1
    a, b = mean * both, (1 - mean) * both
    powers = np.exp([betaln(a + size, b) - betaln(a, b), betaln(a, b + size) - betaln(a, b)])
    return float(powers.sum())


def mean_product(values: NDArray[np.float64], size: int) -> float:
    """Return the mean product over all choices of `size` values."""
    sums = np.zeros(size + 1)  # after j values: the mean product of i of them
    sums[0] = 1.0
    for j, value in enumerate(values, 1):
        for i in range(min(j, size), 0, -1):
            kept = sums[i] * (j - i) / j if i < j else 0.0
            sums[i] = kept + value * sums[i - 1] * i / j
    return float(sums[size])
