"""What training could gain: the best of k rewrites, and the GRPO groups that teach something."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas.io.formats.style import Styler
from scipy.special import betaln

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress, samples_of
from geo_utils.key_point_prompt.params import HeadroomOptions
from geo_utils.key_point_prompt.study import Setting
from geo_utils.models.loops import gather_all
from geo_utils.runs import Run
from geo_utils.show.plots import BLUE, interval_figure
from geo_utils.show.tables import intervals, over_queries
from geo_utils.statistics import Estimate, cluster_mean, jackknife, with_interval
from geo_utils.summary import estimates, plain_numbers

UNIT = ["query_id", "key_point_number"]
BAND = (0.2, 0.8)
# A rollout asks the engine once and the judge once; the policy's own writing is not counted.
CALLS_PER_ROLLOUT = 2
# A gain of the best of k rewrites that is worth a training, in key-point probability.
WORTH = 0.05
_FRESH, _SAME = "best of k, fresh answers", "best of k, same answers"
_CURSE, _IN_BAND = "winner's curse", "in the trainable band"
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
    step = options.answers + options.fresh_answers
    each = options.rewrites * options.answers + options.fresh_answers

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
            rows += await gather_all(sample(best, j, "fresh") for j in range(len(answers), step))
        return rows

    tasks = [one(example, point) for example, point in setting.pairs]
    return samples_of(tasks, progress or roles.counter("samples of headroom"), each)


def best_rewrite(rows: Sequence[dict[str, Any]], seed: str) -> int | None:
    """Return the number of the rewrite with the largest mean; ties are drawn; None if none has."""
    means = pd.DataFrame(rows).groupby("rewrite")["supported"].mean().dropna()
    if means.empty:
        return None
    best = means.index[means == means.max()].tolist()
    return int(random.Random(seed).choice(best))


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
    mean, between = units["mean"], units["rewrite_variance"]
    rows: dict[str, tuple[Estimate, str]] = {}

    def add(name: str, values: Any, how: str = "", bottom: float = -1.0) -> None:
        found = cluster_mean(np.asarray(values, float), clusters, bounded=name == _IN_BAND)
        rows[name] = (_within(found, bottom, 1.0), how)

    def share(kept: NDArray[np.bool_]) -> float:
        both = (between + units["answer_variance"])[kept].sum()
        return float(between[kept].sum() / both) if both else float("nan")

    add("mean of rewrites", mean, bottom=0.0)
    add("room above the mean", 1 - mean, bottom=0.0)
    inside = mean.between(*BAND).astype(float).where(mean.notna())
    add(_IN_BAND, inside, "share of key points at 20 to 80 %")
    add(_FRESH, units["fresh"] - mean)
    add(_SAME, units["best"] - mean, "holds the winner's curse")
    add(_CURSE, units["best"] - units["fresh"])
    add("between key points", _between_units(units))
    add("between rewrites", between)
    add("between answers", units["answer_variance"])
    rows["share of rewrites"] = (jackknife(share, clusters), "jackknife")
    for size in groups:
        wasted, how = _no_variance(units, clusters, size)
        most = 1000 / (CALLS_PER_ROLLOUT * size)
        share_used, low, high = (1 - end for end in (wasted.mean, wasted.high, wasted.low))
        useful = replace(wasted, mean=most * share_used, low=most * low, high=most * high)
        rows[_WASTED.format(size)] = (_within(wasted, 0.0, 1.0), how)
        rows[_USEFUL.format(size)] = (_within(useful, 0.0, most), how)
    columns = ["mean", "low", "high", "n_queries", "n_units", "how"]
    values = [
        (found.mean, found.low, found.high, found.n_clusters, found.n_samples, how)
        for found, how in rows.values()
    ]
    return pd.DataFrame(values, columns=columns, index=pd.Index(list(rows), name="quantity"))


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


def _between_units(units: pd.DataFrame) -> NDArray[np.float64]:
    """Return a value a unit whose mean is the variance between units, without its noise."""
    known = units["mean_variance"].notna()
    mean, n = units["mean"].where(known), int(known.sum())
    if n < 2:
        return np.full(len(units), np.nan)
    squared = n / (n - 1) * (mean - mean.mean()) ** 2
    return (squared - units["mean_variance"]).to_numpy(float)


def no_variance_chance(rewrite_means: NDArray[np.float64], size: int) -> float:
    """Return the chance that `size` different rewrites, an answer each, all do or all do not.

    Unbiased for independent rollouts: the mean, over all choices of `size` rewrites, of the
    product of their means (and of their complements).
    """
    return _mean_product(rewrite_means, size) + _mean_product(1 - rewrite_means, size)


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


def _mean_product(values: NDArray[np.float64], size: int) -> float:
    """Return the mean product over all choices of `size` values."""
    sums = np.zeros(size + 1)  # after j values: the mean product of i of them
    sums[0] = 1.0
    for j, value in enumerate(values, 1):
        for i in range(min(j, size), 0, -1):
            kept = sums[i] * (j - i) / j if i < j else 0.0
            sums[i] = kept + value * sums[i - 1] * i / j
    return float(sums[size])


def _no_variance(
    units: pd.DataFrame, clusters: Sequence[object], size: int
) -> tuple[Estimate, str]:
    """Estimate the chance that a GRPO group's rewards have no variance, and say how."""
    means = units["rewrite_means"]
    held = means.map(lambda found: len(found) if isinstance(found, np.ndarray) else 0)
    if size <= held.max():
        values = [
            no_variance_chance(found, size) if n >= size else np.nan
            for found, n in zip(means, held, strict=True)
        ]
        return cluster_mean(np.array(values), clusters), "counted over sets of rewrites"
    between = pd.Series(_between_units(units))
    mean = units["mean"].reset_index(drop=True)

    def chance(kept: NDArray[np.bool_]) -> float:
        if between[kept].isna().all():
            return float("nan")
        return beta_no_variance_chance(mean[kept].mean(), between[kept].mean(), size)

    return jackknife(chance, clusters), "beta distribution of key points; fewer rewrites"


def _within(found: Estimate, bottom: float, top: float) -> Estimate:
    """Return an estimate whose interval keeps to what is possible."""
    low, high = np.clip([found.low, found.high], bottom, top).tolist()
    return replace(found, low=low, high=high)


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Headroom:
    """Keep the samples of `ask` as `headroom.parquet`, and read off them what there is to gain."""
    params, kept = setting.params, run.save_table(asked, "headroom")
    note = f"the k rewrites are sampled at temperature {params.sampling.temperature:g}"
    if params.rewriter == "offline":
        note = "the k rewrites are seeded forms of one edit, no model's"
    table = headroom_table(kept, setting.options.groups)
    return Headroom(kept, table, headroom_strata(kept), note)


@dataclass(frozen=True)
class Headroom:
    """What training could gain at most, where, and at what cost in calls.

    Attributes:
        samples: As `ask`.
        table: As `headroom_table`.
        strata: As `headroom_strata`.
        note: How the k rewrites of a page come about.
    """

    samples: pd.DataFrame
    table: pd.DataFrame
    strata: pd.DataFrame
    note: str

    @property
    def _sizes(self) -> list[str]:
        """The group sizes."""
        start = _WASTED.format("")
        return [n.removeprefix(start) for n in self.table.index if n.startswith(start)]

    @property
    def _design(self) -> tuple[int, int]:
        """The numbers of rewrites and of answers a rewrite."""
        chosen = self.samples[self.samples["stage"] == "choose"]
        return chosen["rewrite"].nunique(), chosen["repeat"].nunique()

    @property
    def _n(self) -> str:
        """What the figures rest on."""
        queries, points = self.table[["n_queries", "n_units"]].max()
        return f"n = {queries} queries, {points} key points"

    @property
    def _abstentions(self) -> str:
        lost = int(self.samples["supported"].isna().sum())
        return f"{lost} abstentions of {len(self.samples):,} samples"

    def figure(self, source: str) -> Figure:
        """Draw what the best of k rewrites gains, in all and by how likely the key point is."""
        names = {
            "room above the mean": ("all there is: every answer carries it", "#777777"),
            _SAME: ("best of k, on the answers it was chosen by", "#777777"),
            _FRESH: ("best of k, on fresh answers", BLUE),
        }
        rows = self.table.loc[list(names), ["mean", "low", "high"]]
        rows = rows.assign(shade=[shade for _, shade in names.values()])
        rows.index = pd.Index([text for text, _ in names.values()])
        strata = self.strata[self.strata["n_units"] > 0]
        gains = strata[["gain", "gain_low", "gain_high"]].set_axis(["mean", "low", "high"], axis=1)
        gains.index = pd.Index(
            [f"    at {name} so far ({n})" for name, n in strata["n_units"].items()]
        )
        title = (
            f"The best of {self._design[0]} rewrites is worth {self.table['mean'][_FRESH]:+.2f} "
            f"over their mean; all there is would be {rows['mean'].iloc[0]:+.2f}"
        )
        if pd.isna(self.table["mean"][_FRESH]):
            title = "No key point was scored often enough to say what training could gain"
        note = f"{self._n} (in brackets: of the row), {self._abstentions}; {self.note}. {source}"
        quantity = "gain in key-point probability over the mean rewrite"
        rows = pd.concat([rows, gains.assign(shade="#c1272d")])
        return interval_figure(rows, title, quantity, note, signed=True)

    def groups_figure(self, source: str) -> Figure | None:
        """Draw the share of GRPO groups that teach nothing; None where none could be scored."""
        rows = self.table.loc[[_WASTED.format(size) for size in self._sizes]]
        if rows["mean"].isna().all():
            return None
        useful = self.table["mean"][[_USEFUL.format(size) for size in self._sizes]].tolist()
        most = int(np.nanargmax(useful))
        title = (
            f"Groups of {self._sizes[most]} give most for a call: {rows['mean'].iloc[most]:.0%} of "
            f"them teach nothing, {useful[most]:.0f} in 1,000 calls do"
        )
        names = [
            f"G = {size}: {n:.0f} useful in 1,000 calls"
            for size, n in zip(self._sizes, useful, strict=True)
        ]
        note = (
            f"{self._n}, {self._abstentions}. {'; '.join(rows['how'].unique()).capitalize()}. A "
            f"rollout is one rewrite and one answer: 2 calls. {source}"
        )
        quantity = "share of groups whose rewards are all the same"
        rows = rows[["mean", "low", "high"]].set_axis(names)
        return interval_figure(rows, title, quantity, note, limits=(0, 1))

    def verdict(self) -> str:
        """Say in one sentence whether there is something to gain, where most, at what cost."""
        gain = self.table.loc[_FRESH]
        room = (self.strata["share"] * (1 - self.strata["mean"])).dropna()
        useful = self.table["mean"][[_USEFUL.format(size) for size in self._sizes]].dropna()
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
        size = str(useful.idxmax()).rpartition(" = ")[2]
        price = 1_000 * 1_000 / useful.max() if useful.max() > 0 else float("inf")
        return (
            f"{answer}; most room is at key points of probability {room.idxmax()} "
            f"(n = {self.strata['n_queries'][room.idxmax()]:.0f} queries); 1,000 useful "
            f"groups of {size} cost about {price:,.0f} calls."
        )

    def findings(self, source: str) -> str:
        """Say in Markdown what training could gain at most, where, and at what cost in calls."""
        said, gains = intervals(self.table), intervals(self.table, signed=True)
        k, m = self._design
        where = [
            f"{name} ({row['share']:.0%} of key points): "
            f"{with_interval(row['gain'], row['gain_low'], row['gain_high'], signed=True)}"
            f", n = {int(row['n_units'])}"
            for name, row in self.strata.iterrows()
            if row["n_units"]
        ]
        groups = []
        for size in self._sizes:
            wasted = _WASTED.format(size)
            useful: Any = self.table.loc[_USEFUL.format(size)]
            bought = with_interval(useful["mean"], useful["low"], useful["high"], digits=1)
            groups.append(
                f"- **G = {size}**: {said[wasted]} of groups have no variance; {bought} useful "
                f"groups in 1,000 calls ({useful['how']})."
            )
        lines = [
            f"- **{self.verdict()}**",
            f"- **At most**: the mean of {k} rewrites x {m} answers carries the key point with "
            f"probability {said['mean of rewrites']}; the room above it is "
            f"{said['room above the mean']}.",
            f"- **Within reach**: the best of {k} rewrites, re-scored with fresh answers, gains "
            f"{gains[_FRESH]}. On the answers it was chosen by it looks like {gains[_SAME]}; "
            f"{gains[_CURSE]} of that is luck.",
            f"- **Where**, by the probability so far: {'; '.join(where)}.",
            f"- **Rewrite or luck**: between rewrites {said['between rewrites']}, between "
            f"answers to one page {said['between answers']} (variances); "
            f"{said['share of rewrites']} of what varies within a key point is the rewrite's.",
            f"- **Trainable band** ({BAND[0]:.0%} to {BAND[1]:.0%}): "
            f"{said[_IN_BAND]} of key points.",
            *groups,
            "",
            f"{self._n}, {self._abstentions}; {self.note}. A rollout is {CALLS_PER_ROLLOUT} calls "
            f"(engine, judge). Source: {source}.",
        ]
        return "\n".join(lines)

    def views(self, caption: str) -> list[Styler]:
        """Lay out the headroom."""
        table = pd.DataFrame({"estimate": intervals(self.table)})
        table["n queries"], table["n key points"] = self.table["n_queries"], self.table["n_units"]
        table["how"], (k, m) = self.table["how"], self._design
        told = f"{k} rewrites x {m} answers; {self._abstentions}; {self.note}. {caption}"
        return [over_queries(table.rename_axis(None), [], told)]

    def headline(self) -> dict[str, Any]:
        """Return the numbers that the manifest records."""
        return {"headroom": plain_numbers(self.table[["mean", "low", "high", "n_queries"]])}
