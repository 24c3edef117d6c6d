"""What training could gain: k sampled rewrites x m sampled answers of each key point."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_utils.corpus import Example, KeyPoint
from geo_utils.engines import Engine
from geo_utils.evaluate import score_rewrite
from geo_utils.judges import Judge
from geo_utils.loops import gather_all, run_sync
from geo_utils.progress import Counter, Progress
from geo_utils.rewriters import Rewriter
from geo_utils.statistics import Estimate, cluster_mean, jackknife
from geo_utils.studies.group_variance import beta_no_variance_chance, no_variance_chance
from geo_utils.studies.options import HeadroomOptions

UNIT = ["query_id", "key_point_number"]
BAND = (0.2, 0.8)
# A rollout asks the engine once and the judge once; the policy's own writing is not counted.
CALLS_PER_ROLLOUT = 2
_IN_BAND = "in the trainable band"
_STRATA = {"below 20 %": (-0.1, 0.2), "20 to 80 %": BAND, "above 80 %": (0.8, 1.1)}


def headroom_samples(
    pairs: Sequence[tuple[Example, KeyPoint]],
    method: str,
    engine: Engine,
    judge: Judge,
    rewriter: Rewriter,
    options: HeadroomOptions,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Sample rewrites and answers, choose the best rewrite, and answer for it anew.

    Args:
        pairs: (example, key point), as `corpus.choose_key_points` returns them.
        method: What rewrites.
        engine: Answers.
        judge: Gives verdicts.
        rewriter: Rewrites; `sample_index` tells its rewrites apart.
        options: How many of each.
        seed: Seed of places, and of the choice between equally good rewrites.
        progress: As `evaluate`'s.

    Returns:
        Rows as `evaluate` returns them, with `rewrite` (its number, from 0), `repeat` (the
        answer's number within its rewrite) and `stage`: `choose` for the k x m answers, `fresh`
        for those that only the best rewrite got, drawn after the choice.
    """
    show, done = progress or Counter("samples of headroom"), 0
    each = options.rewrites * options.answers + options.fresh_answers
    numbers = range(options.rewrites)

    async def one(example: Example, point: KeyPoint) -> list[dict[str, Any]]:
        nonlocal done
        pages = await gather_all(
            rewriter.rewrite(method, example, point, sample_index=i) for i in numbers
        )

        async def sample(rewrite: int, repeat: int, stage: str) -> dict[str, Any]:
            # An index that no other rewrite has: the offline engine's noise would be theirs, too,
            # and the answers of two rewrites no independent draws. The first has the comparison's.
            index = rewrite * (options.answers + options.fresh_answers) + repeat
            row = await score_rewrite(
                example, point, method, pages[rewrite], engine, judge, seed, index
            )
            return row | {"rewrite": rewrite, "repeat": repeat, "stage": stage}

        rows = await gather_all(
            sample(i, j, "choose") for i in numbers for j in range(options.answers)
        )
        best = best_rewrite(rows, f"{seed}|best|{example.query_id}|{point.number}")
        if best is not None:
            anew = range(options.answers, options.answers + options.fresh_answers)
            rows += await gather_all(sample(best, j, "fresh") for j in anew)
        done += each
        show(done, each * len(pairs))
        return rows

    show(0, each * len(pairs))
    tasks = gather_all(one(example, point) for example, point in pairs)
    return pd.DataFrame([row for rows in run_sync(tasks) for row in rows])


def best_rewrite(rows: Sequence[dict[str, Any]], seed: str) -> int | None:
    """Return the number of the rewrite with the largest mean; ties are drawn; None if none has."""
    means = pd.DataFrame(rows).groupby("rewrite")["supported"].mean().dropna()
    if means.empty:
        return None
    best = means.index[means == means.max()].tolist()
    return int(random.Random(seed).choice(best))


def headroom_table(samples: pd.DataFrame, groups: Sequence[int]) -> pd.DataFrame:
    """Estimate what there is to gain, from the samples of `headroom_samples`.

    The raw variance of rewrite means holds answer noise; each component here is the unbiased
    method-of-moments estimate of a nested design, so that it may come out below 0. A key point
    whose rewrites have not two scored answers each is left out of the components.

    Args:
        samples: As `headroom_samples` returns them.
        groups: Group sizes of GRPO.

    Returns:
        Indexed by quantity: `mean`, `low`, `high`, `n_queries`, `n_units` (key points) and `how`.
        Probabilities: `mean of rewrites`, `room above the mean`, `in the trainable band`. Gains:
        `best of k, fresh answers` and `best of k, same answers` over the mean of the rewrites,
        `winner's curse`. Variances: `between key points`, `between rewrites`,
        `between answers`, and the `share of rewrites` among the last two. By group size G:
        `no variance, G = ...` and `useful groups in 1,000 calls, G = ...`.
    """
    units = unit_table(samples)
    clusters = units.index.get_level_values("query_id").tolist()
    rows: dict[str, tuple[Estimate, str]] = {}

    def add(name: str, values: Any, how: str = "", bottom: float = -1.0) -> None:
        found = cluster_mean(np.asarray(values, float), clusters, bounded=name == _IN_BAND)
        rows[name] = (_within(found, bottom, 1.0), how)

    add("mean of rewrites", units["mean"], bottom=0.0)
    add("room above the mean", 1 - units["mean"], bottom=0.0)
    inside = units["mean"].between(*BAND).where(units["mean"].notna())
    add(_IN_BAND, inside.astype(float), "share of key points at 20 to 80 %")
    add("best of k, fresh answers", units["fresh"] - units["mean"])
    add("best of k, same answers", units["best"] - units["mean"], "holds the winner's curse")
    add("winner's curse", units["best"] - units["fresh"])
    add("between key points", _between_units(units))
    add("between rewrites", units["rewrite_variance"])
    add("between answers", units["answer_variance"])
    both = units["rewrite_variance"] + units["answer_variance"]
    share = partial(_ratio, units["rewrite_variance"].to_numpy(float), both.to_numpy(float))
    rows["share of rewrites"] = (jackknife(share, clusters), "jackknife")
    for size in groups:
        rows |= _group_rows(units, clusters, size)
    table = pd.DataFrame(
        {
            name: {
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "n_queries": found.n_clusters,
                "n_units": found.n_samples,
                "how": how,
            }
            for name, (found, how) in rows.items()
        }
    ).T.rename_axis("quantity")
    return table.astype(dict.fromkeys(("mean", "low", "high"), float))


def unit_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a key point, with what is estimated of it alone.

    Returns:
        Indexed by query and key point: `mean` over rewrites, `best` (largest rewrite mean),
        `fresh` (the best's fresh answers), `rewrite_variance` and `answer_variance` (unbiased),
        `mean_variance` (of `mean`, unbiased), `rewrite_means` (an array), and `first` and
        `second`: the mean by halves of the answers.
    """
    chosen = samples[samples["stage"] == "choose"].dropna(subset="supported")
    fresh = samples[samples["stage"] == "fresh"].groupby(UNIT)["supported"].mean()
    rewrites = chosen.groupby([*UNIT, "rewrite"])["supported"].agg(["mean", "var", "count"])
    rewrites["error"] = rewrites["var"] / rewrites["count"]
    by_unit = rewrites.groupby(UNIT)
    units = by_unit["mean"].agg(["mean", "max", "var", "count"])
    whole = (by_unit["var"].count() == units["count"]) & (units["count"] > 1)
    spread = units["var"].where(whole)
    means = [part.to_numpy(float) for _, part in by_unit["mean"]]
    units = pd.DataFrame(
        {
            "mean": units["mean"],
            "best": units["max"],
            "rewrite_variance": spread - by_unit["error"].mean(),
            "answer_variance": by_unit["var"].mean().where(whole),
            "mean_variance": spread / units["count"],
            "rewrite_means": pd.Series(means, index=units.index, dtype=object),
        }
    )
    every = pd.MultiIndex.from_frame(samples[UNIT].drop_duplicates())
    units = units.reindex(every)
    units["fresh"] = fresh.reindex(units.index)
    even = chosen["repeat"] % 2 == 0
    for name, half in (("first", chosen[even]), ("second", chosen[~even])):
        by_rewrite = half.groupby([*UNIT, "rewrite"])["supported"].mean()
        units[name] = by_rewrite.groupby(UNIT).mean().reindex(units.index)
    return units


def headroom_strata(samples: pd.DataFrame) -> pd.DataFrame:
    """Say where the gain lies: by how likely the key point is already.

    A key point is put into its stratum by one half of its answers, and its mean is taken from the
    other, so that a lucky draw cannot make a gain.

    Returns:
        Indexed by stratum: `share` of the key points, `mean`, `gain` of the best of k with fresh
        answers, each with `_low` and `_high`, `n_queries`, `n_units`.
    """
    units = unit_table(samples)
    clusters = units.index.get_level_values("query_id").to_numpy()
    rows = {}
    for name, (low, high) in _STRATA.items():
        closed = "both" if name == "20 to 80 %" else "neither"
        inside = units["first"].between(low, high, inclusive=closed)  # type: ignore[arg-type]
        known = inside.astype(float).where(units["first"].notna()).to_numpy(float)
        share = cluster_mean(np.asarray(known, float), clusters.tolist(), bounded=True)
        part, own = units[inside], clusters[inside.to_numpy()].tolist()
        mean = _within(cluster_mean(np.asarray(part["second"], float), own), 0.0, 1.0)
        gain = cluster_mean(np.asarray(part["fresh"] - part["second"], float), own)
        gain = _within(gain, -1.0, 1.0)
        row: dict[str, float] = {}
        for column, found in (("share", share), ("mean", mean), ("gain", gain)):
            row |= {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high}
        rows[name] = row | {"n_queries": gain.n_clusters, "n_units": gain.n_samples}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("probability so far")


def _ratio(
    above: NDArray[np.float64], below: NDArray[np.float64], kept: NDArray[np.bool_]
) -> float:
    total = float(np.nansum(below[kept]))
    return float(np.nansum(above[kept])) / total if total else float("nan")


def _between_units(units: pd.DataFrame) -> NDArray[np.float64]:
    """Return a value a unit whose mean is the variance between units, without its noise."""
    known = units["mean_variance"].notna()
    mean, n = units["mean"].where(known), int(known.sum())
    if n < 2:
        return np.full(len(units), np.nan)
    squared = n / (n - 1) * (mean - mean.mean()) ** 2
    return (squared - units["mean_variance"]).to_numpy(float)


def _no_variance(
    units: pd.DataFrame, clusters: Sequence[object], size: int
) -> tuple[Estimate, str]:
    """Estimate the chance of a group without variance, and say how."""
    means = units["rewrite_means"]
    held = means.map(lambda found: len(found) if isinstance(found, np.ndarray) else 0)
    if size <= held.max():
        values = [
            no_variance_chance(found, size) if n >= size else np.nan
            for found, n in zip(means, held, strict=True)
        ]
        return cluster_mean(np.array(values), clusters), "counted over sets of rewrites"
    mean = units["mean"].to_numpy(float)
    between = _between_units(units)

    def chance(kept: NDArray[np.bool_]) -> float:
        if np.isnan(between[kept]).all():
            return float("nan")
        found = float(np.nanmean(mean[kept])), float(np.nanmean(between[kept]))
        return beta_no_variance_chance(*found, size)

    return jackknife(chance, clusters), "beta distribution of key points; fewer rewrites"


def _group_rows(
    units: pd.DataFrame, clusters: Sequence[object], size: int
) -> dict[str, tuple[Estimate, str]]:
    """Return what there is to say of groups of one size: the waste, and what calls buy."""
    found, how = _no_variance(units, clusters, size)
    most = 1000 / (CALLS_PER_ROLLOUT * size)
    mean, low, high = (most * (1 - end) for end in (found.mean, found.high, found.low))
    useful = replace(found, mean=mean, low=low, high=high)
    return {
        f"no variance, G = {size}": (_within(found, 0.0, 1.0), how),
        f"useful groups in 1,000 calls, G = {size}": (_within(useful, 0.0, most), how),
    }


def _within(found: Estimate, bottom: float, top: float) -> Estimate:
    """Return an estimate whose interval keeps to what is possible."""
    low, high = np.clip([found.low, found.high], bottom, top).tolist()
    return replace(found, low=low, high=high)
