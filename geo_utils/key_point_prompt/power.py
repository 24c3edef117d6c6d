"""How many queries and repeats a lift needs, from the variance of a pilot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas.io.formats.style import Styler
from scipy import stats
from statsmodels.stats.power import TTestPower

from geo_utils import earlier
from geo_utils.corpus import Example, choose_key_points
from geo_utils.evaluate import Progress
from geo_utils.files import resolve_path
from geo_utils.key_point_prompt.params import KeyPointPromptParams, PowerOptions
from geo_utils.key_point_prompt.study import Found, Setting, draw_curve
from geo_utils.parameters import ParameterError
from geo_utils.roles.methods import label
from geo_utils.runs import Run
from geo_utils.show.plots import EARLIER_STUDY, canvas, finished
from geo_utils.show.tables import over_queries
from geo_utils.statistics import CONFIDENCE, Estimate, cluster_mean, interval_reach

_RESAMPLES = 2_000


@dataclass(frozen=True)
class PilotVariance:
    """Variance of a paired difference (method minus original).

    Attributes:
        between: Between queries, without the noise of their answers and key points; at least 0.
        between_points: Between the key points of a query, without the noise of their answers; at
            least 0. Where each query has one key point, `between` holds it, and this is 0.
        within: Between the repeats of a key point.
        n_queries: Queries behind it.
        n_pairs: Pairs behind it.
        points_a_query: Key points of a query, on average.
        draws: (between, points, within) of bootstrap samples of queries, shape (n, 3).
    """

    between: float
    between_points: float
    within: float
    n_queries: int
    n_pairs: int
    points_a_query: float
    draws: NDArray[np.float64]

    def variances(self, repeats: int, points: float) -> NDArray[np.float64]:
        """Return the variance of a query's difference, and behind it those of the draws."""
        own = [self.between, self.between_points, self.within]
        return np.vstack([own, self.draws]) @ [1.0, 1 / points, 1 / (points * repeats)]

    def half_width(self, queries: int, repeats: int, points: float | None = None) -> float:
        """Return how far the 95 % interval of a lift reaches to each side, over such a corpus."""
        variance = self.variances(repeats, points or self.points_a_query)[0]
        return float(interval_reach(queries) * np.sqrt(variance / queries))

    def corrected(self, raw: Estimate, corrected: Estimate) -> PilotVariance:
        """Return the variance of a lift that is corrected for the judge's errors by hand labels.

        Its interval is wider, and the variances are taken to grow alike.

        Args:
            raw: The pilot's lift in the judge's verdicts.
            corrected: The same, corrected.
        """
        wider = ((corrected.high - corrected.low) / (raw.high - raw.low)) ** 2
        names = ("between", "between_points", "within", "draws")
        return replace(self, **{name: getattr(self, name) * wider for name in names})


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
    pairs = earlier.lift(samples, method).dropna().groupby(["query_id", "key_point_number"])
    each = pairs.agg(["mean", "var", "count"])
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
    n_pairs, average = int(each["count"].sum()), float(counts.mean())
    return PilotVariance(between, points, repeats, n, n_pairs, average, draws)


def resolution_text(
    pilot: PilotVariance | None, queries: int, repeats: int, points: float | None = None
) -> str:
    """Say what lift a corpus can tell from none.

    Of 1,000 planted studies, what a pilot of 30 queries x 3 answers promised for 120 queries was
    1.04 times what these had (median; 95 % lay between 0.83 and 1.34 times),
    `python tests/measure_verdicts.py resolution`.

    Args:
        pilot: As `pilot_variance` returns it; None for the largest variance that there can be.
        queries: Of the corpus.
        repeats: Answers a page.
        points: Key points of a query; by default, the pilot's.
    """
    if pilot is None:
        return (
            f"{queries:,} queries x {repeats} answers: the 95 % interval of a lift reaches at most "
            f"{interval_reach(queries) / np.sqrt(queries):.3f} to each side, whatever the data."
        )
    half = pilot.half_width(queries, repeats, points)
    text = (
        f"{queries:,} queries x {repeats} answers: the 95 % interval of a lift reaches {half:.3f} "
        "to each side, so that a smaller one cannot be told from none."
    )
    original, previous, _ = EARLIER_STUDY.values()
    if (lift := previous - original) < half:
        variance = queries * (half / interval_reach(queries)) ** 2
        needed = _queries(variance, lift, 0.8)
        text += f" The {lift:.3f} that previous methods had in the earlier study is one; "
        text += f"to find it with power 80 % takes about {needed:,} queries."
    return text


def load_pilot(path: str) -> pd.DataFrame:
    """Read the samples of an earlier run.

    Raises:
        ParameterError: The folder holds none, or one that is torn.
    """
    file = Path(resolve_path(path)) / "samples.parquet"
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"studies.power.pilot={path!r}: cannot read {file.name} ({error}); name the folder of "
            "a finished run, or run that one again"
        ) from None


def power_table(
    pilot: PilotVariance | None, options: PowerOptions, points: float | None = None
) -> pd.DataFrame:
    """Say how many queries each lift needs, by repeats.

    A paired t-test over queries, two-sided at 5 %. The variance of a query's difference is that
    between queries, plus that between its key points over their number, plus that within over
    the number of its answers: key points times repeats. Without a pilot the variance is the largest
    that differences between -1 and 1 with this mean can have, so that the figure is an upper
    bound whatever the data.

    Args:
        pilot: As `pilot_variance` returns it, or None.
        options: Lifts, power and repeats.
        points: Key points of a query, on average; by default the pilot's, or 1.

    Returns:
        One row per lift x repeats: `queries`, with `low` and `high` over bootstrap samples of the
        pilot's queries (NaN without one), `answers` a method (queries x key points x repeats) and
        `variance`: what it rests on.
    """
    points = points or (pilot.points_a_query if pilot else 1.0)
    tails = [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]
    rows = []
    for lift, repeats in itertools.product(options.lifts, options.repeats):
        variances = [1 - lift**2]
        if pilot is not None:
            variance, *draws = pilot.variances(repeats, points)
            variances = [variance, *np.quantile(draws, tails)]
        needed = [_queries(float(variance), lift, options.power) for variance in variances]
        answers = int(np.ceil(needed[0] * points * repeats))
        rows.append([lift, repeats, answers, *needed])
    names = ["lift", "repeats", "answers", "queries", "low", "high"]
    table = pd.DataFrame(rows, columns=names[: len(rows[0])]).reindex(columns=names)
    rests = f"pilot: {pilot.n_queries} queries, {pilot.n_pairs} pairs" if pilot else None
    return table.assign(variance=rests or "upper bound, no pilot")


def _queries(variance: float, lift: float, power: float) -> int:
    """Return the smallest number of queries for a paired t-test with this power."""
    effect = lift / np.sqrt(max(variance, 1e-12))
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(power)
    n = max(2, int(np.floor((z / effect) ** 2)) - 1)  # the t-test needs a few more than this
    while TTestPower().power(effect, n, 1 - CONFIDENCE) < power:
        n += 1
    return n


def priced(table: pd.DataFrame, plan: pd.DataFrame, queries: int, repeats: int) -> pd.DataFrame:
    """Add what the queries cost: a plan's calls and cost, scaled to them and to their repeats.

    The plan's queries come with all their key points, so that these are in the price. Answers and
    verdicts grow with the repeats, rewrites do not. What the cache held when the plan was made is
    counted at the same price as the rest.

    Args:
        table: As `power_table` returns it.
        plan: As `plan.plan_calls` returns it; only rows of the comparison itself, `engine`,
            `judge` and `rewriter`, count.
        queries: How many queries with a key point it was counted for.
        repeats: How many sampled answers a page.

    Returns:
        The table with `calls` and `cost_usd` (NaN where unknown).
    """
    own = plan[plan.index.isin(("engine", "judge", "rewriter"))]
    whole, each = own["calls"] + own["held"], own["cost_usd"] / own["calls"].replace(0, np.nan)

    def price(row: pd.Series) -> pd.Series:
        again = np.where(own.index == "rewriter", 1.0, row["repeats"] / repeats)
        scaled = whole * again * row["queries"] / queries
        cost = (each * scaled).where(whole > 0, 0.0).sum(skipna=False)
        return pd.Series({"calls": np.ceil(scaled.sum()), "cost_usd": cost})

    return table.join(table.apply(price, axis=1))


def power_before(
    params: KeyPointPromptParams, plan: pd.DataFrame, examples: Sequence[Example]
) -> pd.DataFrame | None:
    """Say, before the first call, how many queries each lift needs and what they cost.

    Args:
        params: The run's parameters, which may name an earlier run as the pilot.
        plan: As `plan.plan_calls` returns it.
        examples: The corpus.

    Returns:
        As `power_table`, with what the corpus `resolves` in words, and `priced` where there is a
        plan; None where the study is off.
    """
    options = params.studies.power
    if options is None:
        return None
    pilot = None
    if options.pilot is not None:
        found = load_pilot(options.pilot)
        if params.method not in set(found["method"]):
            raise ParameterError(
                f"studies.power.pilot={options.pilot!r}: has no samples of "
                f"method={params.method!r}; it has {', '.join(found['method'].unique())}"
            )
        pilot = pilot_variance(found, params.method, params.seed)
    if pilot is None:  # the bound is the same for any number of answers
        options = options.model_copy(update={"repeats": [params.repeats]})
    pairs = choose_key_points(examples, params.key_points, params.seed)
    queries = max(len({example.query_id for example, _ in pairs}), 1)
    points = max(len(pairs), 1) / queries
    resolves = resolution_text(pilot, queries, params.repeats, points)
    table = power_table(pilot, options, points).assign(resolves=resolves)
    return table if plan.empty else priced(table, plan, queries, params.repeats)


def power_views(table: pd.DataFrame | None, caption: str = "") -> list[Styler]:
    """Lay out how many queries each lift needs; nothing where it was not asked for."""
    if table is None:
        return []
    whole = table.filter(["queries", "low", "high", "answers", "calls"]).map("{:,.0f}".format)
    ends = (" [" + whole["low"] + ", " + whole["high"] + "]").where(table["low"].notna(), "")
    shown = pd.DataFrame(
        {
            "lift": table["lift"].map("{:.2f}".format),
            "repeats": table["repeats"],
            "queries": whole["queries"] + ends,
            "answers a method": whole["answers"],
        }
    )
    if "calls" in table:
        dollars = table["cost_usd"].map("{:,.2f}".format)
        shown["calls"], shown["US dollars"] = whole["calls"], dollars.replace("nan", "unknown")
    note = f"Paired t-test over queries, two-sided 5 %. Variance: {table['variance'].iloc[0]}."
    if "resolves" in table:
        note += f" This corpus, {table['resolves'].iloc[0]}"
    return [over_queries(shown, [], f"{note} {caption}".strip()).hide(axis="index")]


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Ask nothing: the comparison is the pilot."""
    return setting.samples


def read(
    setting: Setting, asked: pd.DataFrame, run: Run, corrected: Estimate | None = None
) -> Found | None:
    """Plan with the comparison as the pilot; None where it tells nothing of the variance.

    Args:
        setting: As `study.Setting`.
        asked: The samples of the comparison.
        run: Not written to.
        corrected: The method's lift corrected for the judge's errors, where there are labels: the
            plan is then for such a lift.
    """
    params, options, source = setting.params, setting.options, setting.roles[0].source()
    pilot = pilot_variance(asked, params.method, params.seed)
    if pilot is None:
        return None
    if corrected is not None:
        raw = earlier.lift(asked, params.method)
        queries = raw.index.get_level_values("query_id").tolist()
        pilot = pilot.corrected(cluster_mean(raw.to_numpy(float), queries), corrected)
    table = power_table(pilot, options)
    note = (
        f"Pilot: {pilot.n_queries} queries, {pilot.n_pairs} pairs of {label(params.method)}; "
        "intervals by bootstrap over its queries"
    )
    points = ""
    if pilot.points_a_query > 1:
        points = f", {pilot.between_points:.3f} between the key points of a query"
    findings = (
        f"- {resolution_text(pilot, pilot.n_queries, params.repeats)}\n"
        f"- Of the variance of a pair, {pilot.between:.3f} lies between queries{points} and "
        f"{pilot.within:.3f} between repeats: more repeats only help with the last.\n\n"
        f"{note}. Source: {source}."
    )
    told = f"Paired t-test over queries, power {options.power:.0%}. {note}. Source: {source}"
    figures, views = {"power": power_figure(table, told)}, power_views(table, f"Source: {source}.")
    return Found(findings, figures, views, {"power": table})


def power_figure(table: pd.DataFrame, note: str) -> Figure:
    """Draw the queries that each lift needs against the repeats."""
    small = table[table["lift"] == table["lift"].min()].iloc[-1]
    title = (
        f"To find a lift of {small['lift']:.2f} takes {small['queries']:,} queries even with "
        f"{small['repeats']} answers each"
    )
    figure, axes = canvas(7)
    shades = sns.color_palette("flare", table["lift"].nunique())
    for shade, (lift, rows) in zip(shades, table.groupby("lift"), strict=True):
        curve = rows.set_index("repeats")[["queries", "low", "high"]]
        draw_curve(axes, curve, shade, f"lift {lift:.2f}: {rows['queries'].iloc[-1]:,}")
    axes.set(yscale="log", xlabel="answers a page", ylabel="queries needed")
    axes.set_xticks(sorted(set(table["repeats"])))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    longest = float(table["repeats"].max())
    axes.set_xlim(float(table["repeats"].min()) - 0.03 * longest, longest * 1.28)
    return finished(figure, title, note)
