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
        between: Between queries, without the noise of their answers and key points; at least 0.
        between_points: Between the key points of a query, without the noise of their answers; at
            least 0. Where each query has one key point, `between` holds it, and this is 0.
        within: Between the repeats of a key point.
        mean: The difference itself.
        n_queries: Queries behind it.
        n_pairs: Pairs behind it.
        points_a_query: Key points of a query, on average.
        draws: (between, points, within) of bootstrap samples of queries, shape (n, 3).
    """

    method: str
    between: float
    between_points: float
    within: float
    mean: float
    n_queries: int
    n_pairs: int
    points_a_query: float
    draws: NDArray[np.float64]


@dataclass(frozen=True)
class Planned:
    """What a plan was counted for.

    Attributes:
        queries: Those with a key point.
        points_a_query: Key points of a query, on average.
        repeats: Sampled answers a page.
    """

    queries: int
    points_a_query: float
    repeats: int


def pilot_variance(samples: pd.DataFrame, method: str, seed: int = 0) -> PilotVariance | None:
    """Estimate the variance of a method's difference to the original page.

    Args:
        samples: As `evaluate` returns them.
        method: The method.
        seed: Seed of the bootstrap over queries.

    Returns:
        None where fewer than three queries have a key point with two pairs, or none differs from
        another: nothing can be said of any of the variances.
    """
    wide = samples.pivot(index=PAIR, columns="method", values="supported")
    difference = (wide[method] - wide["original"]).dropna().rename("difference")
    each = difference.groupby(["query_id", "key_point_number"]).agg(["mean", "var", "count"])
    each = each[each["count"] > 1].assign(error=lambda part: part["var"] / part["count"])
    by_query = each.groupby("query_id")
    counts = by_query.size().to_numpy(float)
    n = len(counts)
    if n < 3:
        return None
    mean, within = by_query["mean"].mean().to_numpy(float), by_query["var"].mean().to_numpy(float)
    error = by_query["error"].mean().to_numpy(float)  # of a key point's mean, by its answers
    spread = by_query["mean"].var().to_numpy(float)  # NaN for a query with one key point
    if not within.any() and not np.ptp(mean) and not np.nansum(spread):
        return None

    def components(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        several = (counts > 1)[rows]
        found = np.where(several, spread[rows] - error[rows], 0.0).sum(axis=-1)
        points = np.maximum(found / np.maximum(several.sum(axis=-1), 1), 0.0)
        noise = (error / counts)[rows].mean(axis=-1) + points * (1 / counts)[rows].mean(axis=-1)
        between = np.maximum(mean[rows].var(axis=-1, ddof=1) - noise, 0.0)
        return np.stack([between, points, within[rows].mean(axis=-1)], axis=-1)

    between, points, repeats = components(np.arange(n)).tolist()
    draws = components(np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n)))
    return PilotVariance(
        method, between, points, repeats, float(difference.mean()), n,
        int(each["count"].sum()), float(counts.mean()), draws,
    )  # fmt: skip


def load_pilot(path: str) -> pd.DataFrame:
    """Read the samples of an earlier run.

    Raises:
        ParameterError: The folder holds none, or one that is torn.
    """
    file = Path(resolve_path(path)) / "samples.parquet"
    if not file.is_file():
        raise ParameterError(
            f"studies.power.pilot={path!r}: no samples.parquet there; name the folder of a "
            "finished run"
        )
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"studies.power.pilot={path!r}: {file.name} is torn ({error}); run that run again"
        ) from None


def power_table(
    pilot: PilotVariance | None, options: PowerOptions, plan: pd.DataFrame | None = None,
    planned: Planned | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Say how many queries each lift needs, by repeats, and what they cost.

    A paired t-test over queries, two-sided at 5 %. The variance of a query's difference is that
    between queries, plus that between its key points over their number, plus that within over
    the number of its answers: key points times repeats. Without a pilot the variance is the largest
    that differences between -1 and 1 with this mean can have, so that the figure is an upper
    bound whatever the data.

    Args:
        pilot: As `pilot_variance` returns it, or None.
        options: Lifts, power and repeats.
        plan: As `plan.plan_calls` returns it, for calls and cost; only rows of the comparison
            itself, `engine`, `judge` and `rewriter`, count.
        planned: What the plan was counted for; without it, queries have as many key points as the
            pilot's.

    Returns:
        One row per lift x repeats: `queries`, with `low` and `high` over bootstrap samples of the
        pilot's queries (NaN without one), `answers` a method (queries x key points x repeats),
        `calls`, `cost_usd` (NaN where
        unknown) and `variance`: what it rests on.
    """
    rows = []
    points = planned.points_a_query if planned else pilot.points_a_query if pilot else 1.0
    for lift in options.lifts:
        for repeats in options.repeats:
            if pilot is None:
                needed, low, high = _queries(1 - lift**2, lift, options.power), np.nan, np.nan
                rests = "upper bound, no pilot"
            else:
                share = np.array([1.0, 1 / points, 1 / (points * repeats)])
                parts = np.array([pilot.between, pilot.between_points, pilot.within])
                needed = _queries(float(parts @ share), lift, options.power)
                drawn = pilot.draws @ share
                ends = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
                low, high = (_queries(float(end), lift, options.power) for end in ends)
                rests = f"pilot: {pilot.n_queries} queries, {pilot.n_pairs} pairs"
            calls, cost = _price(plan, planned, needed, repeats)
            answers = int(np.ceil(needed * points * repeats))
            rows.append((lift, repeats, needed, low, high, answers, calls, cost, rests))
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
    plan: pd.DataFrame | None, planned: Planned | None, queries: int, repeats: int
) -> tuple[float, float]:
    """Scale a plan's calls and cost to another number of queries and repeats.

    The plan's queries come with all their key points, so that these are in the price. Answers and
    verdicts grow with the repeats, rewrites do not. What the cache held when the plan was made is
    counted at the same price as the rest.
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
        scale = queries / planned.queries
        scale *= 1 if role == "rewriter" else repeats / planned.repeats
        calls += whole * scale
        each = dollars / sent if sent else float("nan")
        cost += each * whole * scale if whole else 0.0
    return float(np.ceil(calls)), cost
