"""What training could gain: the best of k rewrites, and the GRPO groups that teach something.

The room above the mean of k rewrites bounds what training could gain from below and above; the
best of k alone does not. A few answers choose the best rewrite badly, so it is often not decided.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress, samples_of
from geo_utils.key_point_prompt.params import HeadroomOptions
from geo_utils.key_point_prompt.study import Found, Setting, laid_out
from geo_utils.models.loops import gather_all
from geo_utils.runs import Run
from geo_utils.show.plots import BLUE, interval_figure
from geo_utils.show.tables import intervals
from geo_utils.statistics import (
    Estimate,
    cluster_mean,
    cluster_ratio,
    cross_fitted,
    jackknife,
    more_clusters,
    with_interval,
)
from geo_utils.summary import estimates, plain_numbers

UNIT = ["query_id", "key_point_number"]
BAND = (0.2, 0.8)
# A rollout asks the engine once and the judge once; the policy's own writing is not counted.
CALLS_PER_ROLLOUT = 2
# A gain of the best of k rewrites that is worth a training, in key-point probability.
WORTH = 0.05
# Least distance of two rewrites' answers. The shipped record was made with it, and holds no fresh
# answers of rewrites that another judge calls the best: there `fresh_answers` is 0.
_STEP = 12
_GAIN, _OTHER = "gain of the best of k", "best of k, other answers"
_SAME, _ROOM, _IN_BAND = "best of k, same answers", "room above the mean", "in the trainable band"
_WASTED, _USEFUL = "no variance, G = {}", "useful groups in 1,000 calls, G = {}"
_WORDS = {
    "headroom": "There is headroom",
    "little": "There is little headroom",
    "not decided": "Whether there is headroom is not decided",
}
_STRATA = {"below 20 %": (-0.1, 0.2), "20 to 80 %": BAND, "above 80 %": (0.8, 1.1)}


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Sample rewrites and answers, choose the best rewrite, and answer for it anew.

    Args:
        setting: As `study.Setting`; the rewriter's `sample_index` tells its rewrites apart.
        progress: As `evaluate`'s.

    Returns:
        Rows as `evaluate` returns them, with `rewrite` (its number, from 0), `repeat` (the
        answer's number within its rewrite) and `stage`: `choose` for the k x m answers, `fresh`
        for those that only the best rewrite got, drawn after the choice.
    """
    roles, method, seed = setting.roles[0], setting.params.method, setting.params.seed
    options: HeadroomOptions = setting.options
    numbers, answers = range(options.rewrites), range(options.answers)
    # An answer's index is one that no other rewrite has: the offline engine's noise would be
    # theirs too, and the answers of two rewrites no independent draws. The first rewrite has the
    # comparison's.
    step = max(options.answers + options.fresh_answers, _STEP)

    async def one(example: Example, point: KeyPoint) -> list[dict[str, Any]]:
        pages = await gather_all(
            roles.rewriter.rewrite(method, example, point, sample_index=i) for i in numbers
        )

        async def sample(rewrite: int, repeat: int, stage: str) -> dict[str, Any]:
            index = rewrite * step + repeat
            row = await roles.scorer.rewrite(example, point, method, pages[rewrite], index)
            return row | {"rewrite": rewrite, "repeat": repeat, "stage": stage}

        rows = await gather_all(sample(i, j, "choose") for i in numbers for j in answers)
        best = best_rewrite(rows, f"{seed}|best|{example.query_id}|{point.number}")
        if best is not None:
            anew = range(len(answers), len(answers) + options.fresh_answers)
            rows += await gather_all(sample(best, j, "fresh") for j in anew)
        return rows

    tasks = [one(example, point) for example, point in setting.pairs]
    each = options.rewrites * options.answers + options.fresh_answers
    return samples_of(tasks, progress or roles.counter("samples of headroom"), each)


def best_rewrite(rows: Sequence[dict[str, Any]], seed: str) -> int | None:
    """Return the number of the rewrite with the largest mean; ties are drawn; None if none has."""
    means = pd.DataFrame(rows).groupby("rewrite")["supported"].mean().dropna()
    best = means.index[means == means.max()].tolist()
    return int(random.Random(seed).choice(best)) if best else None


def unit_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a key point, with what is estimated of it alone.

    Returns:
        Indexed by query and key point: `mean` over rewrites, `best` (largest rewrite mean),
        `found` (the best on answers that did not choose it, `cross_fitted` and fresh),
        `rewrite_variance` and `answer_variance` (unbiased), `mean_variance` (of `mean`,
        unbiased), `rewrite_means` (an array), and by halves of the answers: `first` and `second`,
        the mean, and `found_second`.
    """
    keys = pd.MultiIndex.from_frame(samples[UNIT])
    units = keys.unique()
    codes = units.get_indexer(keys)
    again = samples["stage"].eq("fresh").to_numpy()
    supported, repeats = samples["supported"].to_numpy(float), samples["repeat"].to_numpy(int)
    rewrites = samples["rewrite"].to_numpy(int)
    answers = np.full((len(units), *(samples.loc[~again, ["rewrite", "repeat"]].max() + 1)), np.nan)
    answers[codes[~again], rewrites[~again], repeats[~again]] = supported[~again]
    fresh = np.full((len(units), repeats.max() + 1), np.nan)
    fresh[codes[again], repeats[again]] = supported[again]

    means, counts = _nan_mean(answers), (~np.isnan(answers)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = (_nan_mean(answers**2) - means**2) * counts / (counts - 1)
        several = (np.isnan(noise) == np.isnan(means)).all(-1) & ((counts > 0).sum(-1) > 1)
        scored = (counts > 0).sum(-1)
        mean = _nan_mean(means)
        spread = (_nan_mean(means**2) - mean**2) * scored / (scored - 1)
    spread = np.where(several, spread, np.nan)
    found = np.concatenate([cross_fitted(answers), fresh], axis=-1)
    later = np.concatenate([np.arange(answers.shape[-1]) % 2 == 1, np.full(fresh.shape[-1], True)])
    table = {
        "mean": mean,
        "best": np.fmax.reduce(means, axis=-1),
        "found": _nan_mean(found),
        "rewrite_variance": spread - _nan_mean(noise / np.maximum(counts, 1)),
        "answer_variance": np.where(several, _nan_mean(noise), np.nan),
        "mean_variance": spread / np.maximum(scored, 1),
        "rewrite_means": [row[~np.isnan(row)] for row in means],
        "first": _nan_mean(_nan_mean(answers[..., 0::2])),
        "second": _nan_mean(_nan_mean(answers[..., 1::2])),
        "found_second": _nan_mean(found[:, later]),
    }
    return pd.DataFrame(table, index=units)


def _nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.where(known, values, 0.0).sum(-1) / known.sum(-1)
    return means


@lru_cache
def normal_best(k: int) -> float:
    """Return how many standard deviations the largest of k normal draws is above their mean."""
    return float(stats.order_statistic(stats.Normal(), r=k, n=k).mean())


def best_of_k(samples: pd.DataFrame, units: pd.DataFrame) -> dict[str, Estimate]:
    """Estimate what the truly best of k rewrites is worth over their mean.

    The choice of the best on a few answers falls short of it: what the chosen one is worth on
    other answers is a lower bound of the gain, whatever the distribution. What it seems to be
    worth on the answers that chose it is an upper bound, and so is the room above the mean. The
    lower end of the lower, and the lesser of the upper ends, are the interval of the gain. Its
    mean, from the variance between rewrites, takes them to be normal within a key point.

    Measured on planted gains of 0 to 0.27, 1,000 studies each of 10, 30 and 120 key points with 8
    rewrites, 4 answers and 8 fresh ones, `python tests/measure_verdicts.py headroom`: the interval
    holds the gain in 97.8 % to 100 %, and every verdict of `decision` was right. With 30 key points
    a gain of 0.17 is called headroom in 67.6 % where rewrites are good or bad, in 9.7 % where they
    are normal (20.4 % with 120), and is else not decided; at the ceiling little always is.

    Args:
        samples: As `ask` returns them.
        units: As `unit_table` returns them.

    Returns:
        `mean of rewrites`, `room above the mean`, `gain of the best of k`, and the bounds:
        `best of k, other answers` and `best of k, same answers`.
    """
    clusters = units.index.get_level_values("query_id").tolist()
    chosen, n_units = samples[samples["stage"] == "choose"], int(units["mean"].count())
    answers = chosen["supported"].to_numpy(float)
    mean = cluster_mean(answers, chosen["query_id"].tolist(), bounded=True)
    mean = replace(mean, n_samples=n_units)
    room = replace(mean, mean=1 - mean.mean, low=1 - mean.high, high=1 - mean.low)
    other = cluster_mean((units["found"] - units["mean"]).to_numpy(float), clusters)
    seeming = (units["best"] - units["mean"]).to_numpy(float)
    same = cluster_mean(seeming, clusters, bounded=not np.nansum(seeming))
    k = int(units["rewrite_means"].map(len).max())
    spread = np.sqrt(np.maximum(units["rewrite_variance"].mean(), 0.0))
    gain = low = high = np.nan
    if k > 1 and not np.isnan(spread):
        low, high = max(0.0, np.nan_to_num(other.low)), np.nanmin([same.high, room.high, 1.0])
        gain = np.clip(normal_best(k) * spread, low, high)
    return {
        "mean of rewrites": mean,
        _ROOM: room,
        _GAIN: Estimate(float(gain), float(low), float(high), mean.n_clusters, n_units),
        _OTHER: other,
        _SAME: same,
    }


def headroom_table(samples: pd.DataFrame, groups: Sequence[int]) -> pd.DataFrame:
    """Estimate what there is to gain, from the samples of `ask`.

    The raw variance of rewrite means holds answer noise; each component here is the unbiased
    method-of-moments estimate of a nested design, so that it may come out below 0. A key point
    whose rewrites have not two scored answers each is left out of the components.

    Args:
        samples: As `ask` returns them.
        groups: Group sizes of GRPO.

    Returns:
        Indexed by quantity: `mean`, `low`, `high`, `n_queries`, `n_units` (key points) and `how`:
        those of `best_of_k`; the probability `in the trainable band`; the variances `between key
        points`, `between rewrites`, `between answers`, and the `share of rewrites` among the last
        two. By group size G: `no variance, G = ...` and `useful groups in 1,000 calls, G = ...`.
    """
    units = unit_table(samples)
    clusters = units.index.get_level_values("query_id").tolist()
    mean, between, answers = units["mean"], units["rewrite_variance"], units["answer_variance"]
    found = best_of_k(samples, units)
    band: pd.Series = mean.between(*BAND).astype(float).where(mean.notna())
    found[_IN_BAND] = cluster_mean(band.to_numpy(float), clusters, bounded=True)
    variances: dict[str, pd.Series] = {
        "between key points": _between_units(units),
        "between rewrites": between,
        "between answers": answers,
    }
    for name, values in variances.items():
        found[name] = cluster_mean(values.to_numpy(float), clusters)
    parts, whole = between.to_numpy(float), (between + answers).to_numpy(float)
    found["share of rewrites"] = cluster_ratio(parts, whole, clusters)
    how = {
        _IN_BAND: "share of key points at 20 to 80 %",
        _GAIN: "from the variance; ends: other answers, same answers or room",
        _OTHER: "a lower bound: few answers choose badly",
        _SAME: "an upper bound: luck that chose is counted",
    }
    for size in groups:
        wasted, useful = _WASTED.format(size), _USEFUL.format(size)
        chance, how[wasted] = _no_variance(units, clusters, size)
        low, high = np.clip([chance.low, chance.high], 0.0, 1.0).tolist()
        found[wasted], how[useful] = replace(chance, low=low, high=high), how[wasted]
        most = 1000 / (CALLS_PER_ROLLOUT * size)
        used, low, high = (most * (1 - end) for end in (chance.mean, high, low))
        found[useful] = replace(chance, mean=used, low=low, high=high)
    table = pd.DataFrame(list(found.values()), index=pd.Index(found, name="quantity"))
    table = table.rename(columns={"n_clusters": "n_queries", "n_samples": "n_units"})
    return table.assign(how=pd.Series(how).reindex(table.index, fill_value=""))


def _between_units(units: pd.DataFrame) -> pd.Series:
    """Return a value a unit whose mean is the variance between units, without its noise."""
    mean = units["mean"].where(units["mean_variance"].notna())
    n = mean.count()
    if n < 2:
        return mean * np.nan
    return n / (n - 1) * (mean - mean.mean()) ** 2 - units["mean_variance"]


def _no_variance(
    units: pd.DataFrame, clusters: Sequence[object], size: int
) -> tuple[Estimate, str]:
    """Estimate the chance that a GRPO group's rewards have no variance, and say how."""
    means = units["rewrite_means"]
    if size <= means.map(len).max():
        chances = means.map(partial(no_variance_chance, size=size))
        counted = np.asarray(chances, dtype=float)
        return cluster_mean(counted, clusters), "counted over sets of rewrites"
    between = _between_units(units)

    def chance(kept: NDArray[np.bool_]) -> float:
        known = between[kept].notna().any()
        moments = units["mean"][kept].mean(), between[kept].mean()
        return beta_no_variance_chance(*moments, size) if known else float("nan")

    return jackknife(chance, clusters), "beta distribution of key points; fewer rewrites"


def no_variance_chance(rewrite_means: NDArray[np.float64], size: int) -> float:
    """Return the chance that `size` different rewrites, an answer each, all do or all do not.

    Unbiased for independent rollouts: the mean, over all choices of `size` rewrites, of the
    product of their means (and of their complements). NaN where there are fewer rewrites.
    """
    sets = comb(len(rewrite_means), size)
    if not sets:
        return float("nan")
    # Of the polynomial with roots -x, this coefficient is the sum over sets of their products.
    sums = (np.poly(-means)[size] for means in (rewrite_means, 1 - rewrite_means))
    return float(sum(sums) / sets)


def beta_no_variance_chance(mean: float, variance: float, size: int) -> float:
    """Return E[p^G + (1 - p)^G] for G = size and a beta distribution of p with these moments."""
    largest = mean * (1 - mean)
    if variance <= 0 or not largest:
        return mean**size + (1 - mean) ** size
    if variance >= largest:
        return 1.0
    both = largest / variance - 1
    beta = mean * both, (1 - mean) * both
    return float(np.sum(stats.betabinom.pmf([0, size], size, *beta)))


def headroom_strata(samples: pd.DataFrame) -> pd.DataFrame:
    """Say where the gain lies: by how likely the key point is already.

    A key point is put into its stratum by one half of its answers, and its mean is taken from the
    other, so that a lucky draw cannot make a gain.

    Returns:
        Indexed by stratum: `share` of the key points, `mean`, `gain` of the best of k on other
        answers, each with `_low` and `_high`, `n_queries`, `n_units`.
    """
    units = unit_table(samples).reset_index()
    parts = []
    for name, ends in _STRATA.items():
        inside = units["first"].between(*ends, inclusive="both" if ends == BAND else "neither")
        part = units[["query_id"]].assign(stratum=name, mean=units["second"].where(inside))
        part["share"] = inside.astype(float).where(units["first"].notna())
        part["gain"] = (units["found_second"] - units["second"]).where(inside)
        parts.append(part)
    columns, ranges = ["share", "mean", "gain"], {"mean": (0.0, 1.0), "gain": (-1.0, 1.0)}
    found = estimates(pd.concat(parts), "stratum", columns, ["share"], ranges)
    found = found.rename(columns={"queries_gain": "n_queries", "n_gain": "n_units"})
    return found.rename_axis("probability so far")


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Found:
    """Keep the samples of `ask` as `headroom.parquet`, and read off them what there is to gain."""
    params, options, kept = setting.params, setting.options, run.save_table(asked, "headroom")
    table, strata = headroom_table(kept, options.groups), headroom_strata(kept)
    said = intervals(table)
    heat = params.sampling.temperature
    at = "the service's own temperature" if heat is None else f"temperature {heat:g}"
    made = f"the k rewrites are sampled at {at}"
    if params.rewriter == "offline":
        made = "the k rewrites are seeded forms of one edit, no model's"
    queries, points = table[["n_queries", "n_units"]].max()
    lost = f"{kept['supported'].isna().sum()} abstentions of {len(kept):,} samples"
    note = f"n = {queries} queries, {points} key points; {lost}; {made}"
    source = setting.roles[0].source()
    share = (
        f"{said['share of rewrites']} of what varies within a key point is the rewrite's; the rest "
        "is the luck of an answer."
    )
    if pd.isna(table["low"]["share of rewrites"]):
        share = "Too little varies within key points to say how much of it is the rewrite's."
    findings = (
        f"- **{verdict(table)}**\n- {share}\n- {price_text(table)}\n\n{note}. A "
        f"rollout is {CALLS_PER_ROLLOUT} calls (engine, judge). Source: {source}."
    )
    figures = {
        "headroom": gain_figure(table, strata, options.rewrites, f"{note}. Source: {source}")
    }
    if table.filter(like=_WASTED.format(""), axis=0)["mean"].notna().any():
        figures["groups"] = groups_figure(table, f"{note}. Source: {source}")
    told = f"{options.rewrites} rewrites x {options.answers} answers; {note}. Source: {source}."
    view = laid_out({"estimate": said}, table, ["n_queries", "n_units", "how"], told)
    numbers = plain_numbers(table[["mean", "low", "high", "n_queries"]])
    tables = {"samples": kept, "headroom": table, "strata": strata}
    return Found(findings, figures, [view], tables, {"headroom": numbers})


def gain_figure(table: pd.DataFrame, strata: pd.DataFrame, k: int, note: str) -> Figure:
    """Draw what the best of k rewrites gains, in all and by how likely the key point is."""
    ends, grey = ["mean", "low", "high"], "#777777"
    whole = table.loc[[_ROOM, _SAME, _GAIN, _OTHER], ends].assign(shade=[grey, grey, BLUE, grey])
    names = ["all there is: every answer carries it", "best of k, on the answers it was chosen by"]
    names += ["gain of the best of k", "best of k, on other answers"]
    strata = strata[strata["n_units"] > 0]
    parts = strata[["gain", "gain_low", "gain_high"]].set_axis(ends, axis=1).assign(shade="#c1272d")
    for name, row in strata.iterrows():
        names.append(f"    at {name} so far ({row['share']:.0%}, n = {row['n_units']:.0f})")
    gain = table.loc[_GAIN]
    title = (
        f"{_WORDS[decision(gain)]}: the best of {k} rewrites gains between {gain['low']:+z.2f} and "
        f"{gain['high']:+z.2f} over their mean"
    )
    if pd.isna(gain["mean"]):
        title = "No key point was scored often enough to say what training could gain"
    note = f"In brackets: share and number of key points. {note}"
    quantity = "gain in key-point probability over the mean rewrite"
    rows = pd.concat([whole, parts]).set_axis(names)
    return interval_figure(rows, title, quantity, note, signed=True)


def by_size(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return the rows of a quantity that there is for each group size, indexed by the size."""
    start = quantity.format("")
    return table.filter(like=start, axis=0).rename(index=lambda name: name.removeprefix(start))


def groups_figure(table: pd.DataFrame, note: str) -> Figure:
    """Draw the share of GRPO groups that teach nothing."""
    rows = by_size(table, _WASTED).dropna(subset="mean")
    useful = by_size(table, _USEFUL)["mean"].reindex(rows.index)
    shares = [f"{share:.0%} of groups of {size}" for size, share in rows["mean"].dropna().items()]
    title = f"{' and '.join(dict.fromkeys([shares[0], shares[-1]]))} teach nothing"
    note = f"{'; '.join(rows['how'].unique()).capitalize()}. A rollout is 2 calls. {note}"
    rows.index = pd.Index([f"G = {g}: {n:.0f} useful in 1,000 calls" for g, n in useful.items()])
    quantity = "share of groups whose rewards are all the same"
    return interval_figure(rows[["mean", "low", "high"]], title, quantity, note, limits=(0, 1))


def decision(gain: Any) -> str:
    """Return `headroom`, `little` or `not decided`: on which side of `WORTH` the interval lies."""
    if gain["low"] > WORTH:
        return "headroom"
    return "little" if gain["high"] < WORTH else "not decided"


def verdict(table: pd.DataFrame) -> str:
    """Say in one sentence whether there is something to gain, or what would decide it."""
    gain, n = table.loc[_GAIN], int(table["n_queries"][_GAIN])
    if pd.isna(gain["mean"]):
        return "Too few key points were scored to say what training could gain."
    decided = decision(gain)
    told = with_interval(gain["mean"], gain["low"], gain["high"], signed=True)
    said = (
        f"{_WORDS[decided]}: the best rewrite gains {told} over the mean rewrite (from the low end "
        f"of a lower bound to the high end of an upper one), {n} queries"
    )
    if decided != "not decided":
        side = "more" if decided == "headroom" else "less"
        return f"{said}; the whole interval is {side} than {WORTH:.2f}, what a training is worth."
    lower, uppers = table.loc[_OTHER], table.loc[[_SAME, _ROOM]]
    ways = [more_clusters(n, lower["mean"] - lower["low"], lower["mean"] - WORTH)]
    for _, upper in uppers.iterrows():
        ways.append(more_clusters(n, upper["high"] - upper["mean"], WORTH - upper["mean"]))
    fewest = min(filter(None, ways), default=None)
    more = "it is too close to say how many queries would decide it; more answers a rewrite may"
    if fewest is not None:
        more = f"about {fewest:,} more queries would decide it"
    return f"{said}; the interval holds {WORTH:.2f}, what a training is worth: {more}."


def price_text(table: pd.DataFrame) -> str:
    """Say what groups that teach something cost, by their size."""
    useful = by_size(table, _USEFUL)["mean"].dropna()
    prices = [f"{1e6 / n:,.0f} calls in groups of {g}" for g, n in useful[useful > 0].items()]
    told = f"about {', '.join(prices)}" if prices else "more than can be said"
    return f"1,000 useful groups cost {told}."
