"""What training could gain: the best of k rewrites, and the GRPO groups that teach something."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import betaln

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress, samples_of
from geo_utils.key_point_prompt.params import HeadroomOptions
from geo_utils.key_point_prompt.study import Found, Setting, laid_out
from geo_utils.models.loops import gather_all
from geo_utils.runs import Run
from geo_utils.show.plots import BLUE, interval_figure
from geo_utils.show.tables import intervals
from geo_utils.statistics import Estimate, cluster_mean, jackknife
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
_FRESH, _SAME = "best of k, fresh answers", "best of k, same answers"
_ROOM, _CURSE, _IN_BAND = "room above the mean", "winner's curse", "in the trainable band"
_WASTED, _USEFUL = "no variance, G = {}", "useful groups in 1,000 calls, G = {}"
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
        `fresh` (the best's fresh answers; without any, by halves), `rewrite_variance` and
        `answer_variance` (unbiased), `mean_variance` (of `mean`, unbiased), `rewrite_means` (an
        array), and `first` and `second`: the mean by halves of the answers.
    """
    scored = samples.dropna(subset="supported")
    chosen, fresh = (scored[scored["stage"] == stage] for stage in ("choose", "fresh"))
    rewrites = chosen.groupby([*UNIT, "rewrite"])["supported"].agg(["mean", "var", "count"])
    by_unit = rewrites.assign(error=rewrites["var"] / rewrites["count"]).groupby(UNIT)
    means, count = by_unit["mean"], by_unit.size()
    spread = means.var().where((by_unit["var"].count() == count) & (count > 1))
    half = (chosen["repeat"] % 2).map({0: "first", 1: "second"}).rename("half")
    halves = chosen.groupby([*UNIT, "rewrite", half])["supported"].mean()
    anew = fresh.groupby(UNIT)["supported"].mean()
    if fresh.empty:
        by_half = pd.DataFrame(halves.unstack()).reindex(columns=["first", "second"]).dropna()
        best = by_half.eq(by_half.groupby(UNIT).transform("max")).to_numpy()
        other = np.where(best, by_half[["second", "first"]].to_numpy(float), np.nan)
        anew = pd.DataFrame(other, by_half.index).groupby(UNIT).mean().mean(axis=1)
    units = pd.DataFrame(
        {
            "mean": means.mean(),
            "best": means.max(),
            "fresh": anew,
            "rewrite_variance": spread - by_unit["error"].mean(),
            "answer_variance": by_unit["var"].mean().where(spread.notna()),
            "mean_variance": spread / count,
            "rewrite_means": means.apply(np.array),
        }
    ).join(halves.groupby([*UNIT, "half"]).mean().unstack().reindex(columns=["first", "second"]))
    return units.reindex(pd.MultiIndex.from_frame(samples[UNIT].drop_duplicates()))


def headroom_table(samples: pd.DataFrame, groups: Sequence[int]) -> pd.DataFrame:
    """Estimate what there is to gain, from the samples of `ask`.

    The raw variance of rewrite means holds answer noise; each component here is the unbiased
    method-of-moments estimate of a nested design, so that it may come out below 0. A key point
    whose rewrites have not two scored answers each is left out of the components.

    Args:
        samples: As `ask` returns them.
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
    mean, between, answers = units["mean"], units["rewrite_variance"], units["answer_variance"]
    averaged = {
        "mean of rewrites": mean,
        _ROOM: 1 - mean,
        _IN_BAND: mean.between(*BAND).astype(float).where(mean.notna()),
        _FRESH: units["fresh"] - mean,
        _SAME: units["best"] - mean,
        _CURSE: units["best"] - units["fresh"],
        "between key points": _between_units(units),
        "between rewrites": between,
        "between answers": answers,
    }
    found: dict[str, Estimate] = {}
    for name, values in averaged.items():
        estimate = cluster_mean(values.to_numpy(float), clusters, bounded=name == _IN_BAND)
        found[name] = _within(estimate, 0.0 if name in ("mean of rewrites", _ROOM) else -1.0)

    def share(kept: NDArray[np.bool_]) -> float:
        both = (between + answers)[kept].sum()
        return float(between[kept].sum() / both) if both else float("nan")

    found["share of rewrites"] = jackknife(share, clusters)
    how = {_IN_BAND: "share of key points at 20 to 80 %", _SAME: "holds the winner's curse"}
    how["share of rewrites"] = "jackknife"
    for size in groups:
        wasted, useful = _WASTED.format(size), _USEFUL.format(size)
        chance, how[wasted] = _no_variance(units, clusters, size)
        found[wasted], how[useful] = _within(chance, 0.0), how[wasted]
        most, least = 1000 / (CALLS_PER_ROLLOUT * size), found[wasted]
        share_used, low, high = (1 - end for end in (least.mean, least.high, least.low))
        found[useful] = replace(least, mean=most * share_used, low=most * low, high=most * high)
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
    if size <= means.map(len, na_action="ignore").max():
        chances = means.map(partial(no_variance_chance, size=size), na_action="ignore")
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
    a, b = mean * both, (1 - mean) * both
    powers = np.exp(betaln([a + size, a], [b, b + size]) - betaln(a, b))
    return float(powers.sum())


def _within(found: Estimate, bottom: float) -> Estimate:
    """Return an estimate whose interval keeps to what is possible."""
    low, high = np.clip([found.low, found.high], bottom, 1.0).tolist()
    return replace(found, low=low, high=high)


def headroom_strata(samples: pd.DataFrame) -> pd.DataFrame:
    """Say where the gain lies: by how likely the key point is already.

    A key point is put into its stratum by one half of its answers, and its mean is taken from the
    other, so that a lucky draw cannot make a gain.

    Returns:
        Indexed by stratum: `share` of the key points, `mean`, `gain` of the best of k with fresh
        answers, each with `_low` and `_high`, `n_queries`, `n_units`.
    """
    units = unit_table(samples).reset_index()
    parts = []
    for name, ends in _STRATA.items():
        inside = units["first"].between(*ends, inclusive="both" if ends == BAND else "neither")
        part = units[["query_id"]].assign(stratum=name, mean=units["second"].where(inside))
        part["share"] = inside.astype(float).where(units["first"].notna())
        part["gain"] = (units["fresh"] - units["second"]).where(inside)
        parts.append(part)
    found = estimates(pd.concat(parts), "stratum", ["share", "mean", "gain"], ["share"])
    for column, bottom in (("mean", 0.0), ("gain", -1.0)):
        interval = [f"{column}_low", f"{column}_high"]
        found[interval] = found[interval].clip(bottom, 1.0)
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
    findings = (
        f"- **{verdict(table, strata)}**\n- {said['share of rewrites']} of what varies within a "
        "key point is the rewrite's; the rest is the luck of an answer.\n\n"
        f"{note}. A rollout is {CALLS_PER_ROLLOUT} calls (engine, judge). Source: {source}."
    )
    figures = {"headroom": gain_figure(table, strata, options.rewrites, f"{note}. {source}")}
    if table.filter(like=_WASTED.format(""), axis=0)["mean"].notna().any():
        figures["groups"] = groups_figure(table, f"{note}. {source}")
    told = f"{options.rewrites} rewrites x {options.answers} answers; {note}. Source: {source}."
    view = laid_out({"estimate": said}, table, ["n_queries", "n_units", "how"], told)
    numbers = plain_numbers(table[["mean", "low", "high", "n_queries"]])
    tables = {"samples": kept, "headroom": table, "strata": strata}
    return Found(findings, figures, [view], tables, {"headroom": numbers})


def gain_figure(table: pd.DataFrame, strata: pd.DataFrame, k: int, note: str) -> Figure:
    """Draw what the best of k rewrites gains, in all and by how likely the key point is."""
    ends, grey = ["mean", "low", "high"], "#777777"
    whole = table.loc[[_ROOM, _SAME, _FRESH], ends].assign(shade=[grey, grey, BLUE])
    names = ["all there is: every answer carries it", "best of k, on the answers it was chosen by"]
    names.append("best of k, on fresh answers")
    strata = strata[strata["n_units"] > 0]
    parts = strata[["gain", "gain_low", "gain_high"]].set_axis(ends, axis=1).assign(shade="#c1272d")
    for name, row in strata.iterrows():
        names.append(f"    at {name} so far ({row['share']:.0%}, n = {row['n_units']:.0f})")
    gain = table["mean"][_FRESH]
    title = (
        f"The best of {k} rewrites is worth {gain:+.2f} over their mean; all there is would be "
        f"{table['mean'][_ROOM]:+.2f}"
    )
    if pd.isna(gain):
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
    rows, useful = by_size(table, _WASTED), by_size(table, _USEFUL)["mean"]
    most = str(useful.idxmax())
    title = (
        f"Groups of {most} give most for a call: {rows['mean'][most]:.0%} of them teach nothing, "
        f"{useful[most]:.0f} in 1,000 calls do"
    )
    note = f"{'; '.join(rows['how'].unique()).capitalize()}. A rollout is 2 calls. {note}"
    rows.index = pd.Index([f"G = {g}: {n:.0f} useful in 1,000 calls" for g, n in useful.items()])
    quantity = "share of groups whose rewards are all the same"
    return interval_figure(rows[["mean", "low", "high"]], title, quantity, note, limits=(0, 1))


def verdict(table: pd.DataFrame, strata: pd.DataFrame) -> str:
    """Say in one sentence whether there is something to gain, where most, at what cost."""
    gain, useful = table.loc[_FRESH], by_size(table, _USEFUL)["mean"].dropna()
    room = (strata["share"] * (1 - strata["mean"])).dropna()
    if pd.isna(gain["low"]) or room.empty or useful.empty:
        return "Too few key points to say what training could gain."
    if gain["low"] > WORTH:
        answer = f"There is headroom: at least {gain['low']:+.3f} is within reach"
    elif gain["high"] < WORTH:
        answer = f"Little headroom: the best of k gains less than {WORTH:.2f}"
    elif gain["low"] > 0:
        answer = f"Some headroom, perhaps not worth a training ({gain['mean']:+.3f})"
    else:
        answer = f"Open: the best of k gains {gain['mean']:+.3f}, and may gain nothing"
    price = 1_000 * 1_000 / useful.max() if useful.max() > 0 else float("inf")
    return (
        f"{answer}; most room is at key points of probability {room.idxmax()} "
        f"(n = {strata['n_queries'][room.idxmax()]:.0f} queries); 1,000 useful "
        f"groups of {useful.idxmax()} cost about {price:,.0f} calls."
    )
