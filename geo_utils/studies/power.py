"""How many queries and repeats a lift needs, from the variance of a pilot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.power import TTestPower

from geo_utils.files import resolve_path
from geo_utils.parameter_errors import ParameterError
from geo_utils.statistics import CONFIDENCE
from geo_utils.studies.options import PowerOptions
from geo_utils.summary import PAIR

_RESAMPLES = 2_000


@dataclass(frozen=True)
class PilotVariance:
    """Variance of a paired difference (method minus original).

    Attributes:
        method: Whose difference.
        between: Between queries, without the noise of their answers; unbiased, at least 0.
        within: Between the repeats of a query.
        mean: The difference itself.
        n_queries: Queries behind it.
        n_pairs: Pairs behind it.
        draws: (between, within) of bootstrap samples of queries, shape (n, 2).
    """

    method: str
    between: float
    within: float
    mean: float
    n_queries: int
    n_pairs: int
    draws: NDArray[np.float64]


def pilot_variance(samples: pd.DataFrame, method: str, seed: int = 0) -> PilotVariance | None:
    """Estimate the variance of a method's difference to the original page.

    Args:
        samples: As `evaluate` returns them.
        method: The method.
        seed: Seed of the bootstrap over queries.

    Returns:
        None where fewer than three queries have two pairs each, or none differs from another:
        nothing can be said of either variance.
    """
    wide = samples.pivot(index=PAIR, columns="method", values="supported")
    difference = (wide[method] - wide["original"]).dropna().rename("difference")
    parts = difference.groupby("query_id").agg(["mean", "var", "count"])
    parts = parts[parts["count"] > 1]
    n = len(parts)
    if n < 3:
        return None
    mean, error = parts["mean"].to_numpy(float), (parts["var"] / parts["count"]).to_numpy(float)
    within = parts["var"].to_numpy(float)
    if not within.any() and not np.ptp(mean):
        return None

    def components(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        between = mean[rows].var(axis=-1, ddof=1) - error[rows].mean(axis=-1)
        return np.stack([np.maximum(between, 0.0), within[rows].mean(axis=-1)], axis=-1)

    found = components(np.arange(n))
    draws = components(np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n)))
    return PilotVariance(
        method, float(found[0]), float(found[1]), float(difference.mean()), n,
        int(parts["count"].sum()), draws,
    )  # fmt: skip


def load_pilot(path: str) -> pd.DataFrame:
    """Read the samples of an earlier run.

    Raises:
        ParameterError: The folder holds none.
    """
    file = Path(resolve_path(path)) / "samples.parquet"
    if not file.is_file():
        raise ParameterError(
            f"studies.power.pilot={path!r}: no samples.parquet there; name the folder of a "
            "finished run"
        )
    return pd.read_parquet(file)


def power_table(
    pilot: PilotVariance | None, options: PowerOptions, plan: pd.DataFrame | None = None,
    planned: tuple[int, int] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Say how many queries each lift needs, by repeats, and what they cost.

    A paired t-test over queries, two-sided at 5 %. The variance of a query's difference is that
    between queries plus that within over the repeats. Without a pilot the variance is the largest
    that differences between -1 and 1 with this mean can have, so that the figure is an upper
    bound whatever the data.

    Args:
        pilot: As `pilot_variance` returns it, or None.
        options: Lifts, power and repeats.
        plan: As `plan.plan_calls` returns it, for calls and cost; only rows of the comparison
            itself, `engine`, `judge` and `rewriter`, count.
        planned: (queries, repeats) that the plan was counted for.

    Returns:
        One row per lift x repeats: `queries`, with `low` and `high` over bootstrap samples of the
        pilot's queries (NaN without one), `answers` a method, `calls`, `cost_usd` (NaN where
        unknown) and `variance`: what it rests on.
    """
    rows = []
    for lift in options.lifts:
        for repeats in options.repeats:
            if pilot is None:
                needed, low, high = _queries(1 - lift**2, lift, options.power), np.nan, np.nan
                rests = "upper bound, no pilot"
            else:
                needed = _queries(pilot.between + pilot.within / repeats, lift, options.power)
                drawn = pilot.draws[:, 0] + pilot.draws[:, 1] / repeats
                ends = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
                low, high = (_queries(float(end), lift, options.power) for end in ends)
                rests = f"pilot: {pilot.n_queries} queries, {pilot.n_pairs} pairs"
            calls, cost = _price(plan, planned, needed, repeats)
            rows.append((lift, repeats, needed, low, high, needed * repeats, calls, cost, rests))
    columns = ["lift", "repeats", "queries", "low", "high", "answers", "calls", "cost_usd",
               "variance"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _queries(variance: float, lift: float, power: float) -> int:
    """Return the smallest number of queries for a paired t-test with this power."""
    effect = lift / np.sqrt(max(variance, 1e-12))

    def reached(n: int) -> bool:
        return bool(TTestPower().power(effect, n, 1 - CONFIDENCE) >= power)

    z = stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(power)
    n = max(2, int(np.floor((z / effect) ** 2)) - 1)  # the t-test needs a few more than this
    while not reached(n):
        n += 1
    return n


def _price(
    plan: pd.DataFrame | None, planned: tuple[int, int] | None, queries: int, repeats: int
) -> tuple[float, float]:
    """Scale a plan's calls and cost to another number of queries and repeats.

    Answers and verdicts grow with the repeats, rewrites do not. What the cache held when the
    plan was made is counted at the same price as the rest.
    """
    if plan is None or planned is None or plan.empty:
        return float("nan"), float("nan")
    calls = cost = 0.0
    own = plan[plan.index.isin(("engine", "judge", "rewriter"))]
    counts = own[["calls", "held", "cost_usd"]].to_dict("index")
    for role in ("engine", "judge", "rewriter"):
        if role not in counts:
            continue
        sent, held, dollars = (float(value) for value in counts[role].values())
        whole = sent + held
        scale = queries / planned[0] * (1 if role == "rewriter" else repeats / planned[1])
        calls += whole * scale
        each = dollars / sent if sent else float("nan")
        cost += each * whole * scale if whole else 0.0
    return float(np.ceil(calls)), cost
