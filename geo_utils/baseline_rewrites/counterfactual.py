"""What the engine says without the page, and with another query's rewrite in its place."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from scipy import stats

from geo_utils.baseline_rewrites.params import AnalysisOptions
from geo_utils.corpus import Example, KeyPoint, choose_key_points
from geo_utils.evaluate import Progress, Row, draw_source_order, empty_row, samples_of
from geo_utils.models.loops import gather_all
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import NO_SOURCES, REMOVED, label, placebo_of, shuffled_method
from geo_utils.show.plots import basis, interval_figure, listed, method_rows, points
from geo_utils.show.tables import DASH, intervals, p_values, styled
from geo_utils.statistics import CONFIDENCE, more_clusters, with_interval
from geo_utils.summary import PAIR, contrasts

Pair = tuple[Example, KeyPoint]


def arms(options: AnalysisOptions) -> list[str]:
    """Return the names of the arms that the options ask for.

    A placebo brings its own reference: the original pages, shuffled in the same way.
    """
    found = [REMOVED] * options.removed + [NO_SOURCES] * options.no_sources
    shuffled = ["original", *options.placebo] if options.placebo else []
    return found + [placebo_of(method) for method in shuffled]


def evaluate_arms(
    examples: Iterable[Example],
    names: Sequence[str],
    roles: Roles,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Score the arms on the pairs, places and repeats of `evaluate.evaluate`.

    Args:
        examples: Those without key points are left out.
        names: As `arms` returns them: `removed` (the other sources alone), `no_sources` (none),
            or `placebo of METHOD` (in the target's place the method's page for another query).
        roles: Engine, judge, and the rewriter of the placebos; what it wrote before comes from
            the cache.
        progress: Called with (samples done, samples in all).

    Returns:
        Rows as `evaluate.evaluate` writes them, the arm as `method`. Without the target there is
        no page and no visibility of it; a placebo's fidelity to a page that it is none of is
        left out.

    Raises:
        ValueError: A placebo over a single query.
    """
    seed, numbers = roles.params.seed, range(roles.params.repeats)
    pairs = choose_key_points(examples, roles.params.key_points, seed)
    donor = _donors(pairs, seed) if any(map(shuffled_method, names)) else {}

    async def one(pair: Pair, arm: str) -> list[Row]:
        example, point = pair
        placement, place = draw_source_order(example, seed), None
        order = [i for i in placement.order if i != example.target_id] if arm == REMOVED else []
        sources = [example.sources[i] for i in order]
        known: Row = {"source_order": order}
        if method := shuffled_method(arm):
            rewrite = await roles.rewriter.rewrite(method, *donor[example.query_id, point.number])
            page, place = None if rewrite.abstention else rewrite.text, placement.place
            sources = placement.sources(example, page or "")
            lost = rewrite.abstention and f"rewriter: {rewrite.abstention}"
            known = {"page": page, "abstention": lost}
        row = empty_row(example, point, placement, sources) | known | {"method": arm}

        async def scored(repeat: int) -> Row:
            start = row | {"repeat": repeat}
            if row["abstention"]:
                return start
            return start | await roles.scorer.sources(example.query, sources, place, point, repeat)

        return await gather_all(map(scored, numbers))

    tasks = [one(pair, arm) for pair in pairs for arm in names]
    show = progress or roles.counter("counterfactual samples")
    return samples_of(tasks, show, len(numbers))


def _donors(pairs: Sequence[Pair], seed: int) -> dict[tuple[str, int], Pair]:
    """Give every pair one of another query: queries in a drawn order, each the next one's."""
    groups = itertools.groupby(pairs, key=lambda pair: pair[0].query_id)
    by_query = {query: list(group) for query, group in groups}
    order = sorted(by_query, key=lambda q: random.Random(f"{seed}|placebo|{q}").random())
    if len(order) < 2:
        raise ValueError(
            f"a placebo shuffles rewrites among queries, and there is only {len(order)}; give a "
            "larger corpus or limit, or leave analyses.placebo empty"
        )
    found = {}
    for query, other in zip(order, [*order[1:], order[0]], strict=True):
        donors = itertools.cycle(by_query[other])
        for (example, point), donor in zip(by_query[query], donors, strict=False):
            found[example.query_id, point.number] = donor
    return found


def lifts(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return what each page adds to the key-point probability of the answers without it.

    Args:
        samples: As `evaluate`, with the rows of `removed`.
        seed: Seed of the resampling.

    Returns:
        As `summary.contrasts`, for the methods and `no_sources`: the original page's row is
        what the page itself contributes. Holm over all rows.
    """
    methods = [m for m in dict.fromkeys(samples["method"]) if shuffled_method(m) is None]
    methods.remove(REMOVED)
    return contrasts(samples, "supported", REMOVED, methods, seed)


def placebos(samples: pd.DataFrame, margin: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """Return what each rewrite does to its own query, and to a query it was not made for.

    The rewrite of another query stands in the target's place, and is compared with that query's
    original page in the same place: what is left is no effect of what the rewrite says.

    Args:
        samples: As `evaluate`, with the rows of the placebos.
        margin: Difference that counts as none.
        seed: Seed of the resampling.

    Returns:
        Indexed by method and `pages` (`own` or `shuffled`): as `summary.contrasts` to the
        original page and to the shuffled original; Holm within each kind. `verdict`, as
        `equivalence` gives it, with the margin and the 90 % interval `inner_low`, `inner_high`.
    """
    shuffled = [m for a in dict.fromkeys(samples["method"]) if (m := shuffled_method(a))]
    shuffled.remove("original")
    own = contrasts(samples, "supported", "original", shuffled, seed)
    arms_of = {placebo_of(method): method for method in shuffled}
    other = contrasts(samples, "supported", placebo_of("original"), list(arms_of), seed)
    other = other.rename(index=arms_of)
    table = pd.concat({"own": own, "shuffled": other}, names=["pages"]).swaplevel()
    table = table.loc[[(method, kind) for method in shuffled for kind in ("own", "shuffled")]]
    return table.join(equivalence(table, margin))


def equivalence(found: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Say of paired differences whether they are shown to be small, or not small.

    Two one-sided tests at 5 % (Schuirmann, 1987): `lost`, the 90 % interval lies within the
    margin on both sides of 0; `kept`, the 95 % interval lies beyond it on one side; else `not
    decided`. The 90 % interval reaches at least as far as so many queries leave room for some that
    change and are not among them: 1 - 0.05^(1/n), so that it takes 59 queries to lose an effect
    of 0.05.

    Measured on planted effects of 0 to 0.2 over 30 to 400 queries of 3 answers, 1,000 studies of
    each, `python tests/measure_verdicts.py placebo`: every verdict that was given was right.
    Without an effect 33.8 % are called lost with 120 queries and 95.6 % with 400; an effect of 0.1
    is called kept in 14.6 % with 30 queries and 49.3 % with 120, and never lost.

    Args:
        found: `difference`, `low` and `high` (95 %), `n_examples`.
        margin: Difference that counts as none.

    Returns:
        Indexed likewise: `inner_low`, `inner_high`, `margin`, `verdict`.
    """
    n, mean = found["n_examples"].clip(lower=1), found["difference"]
    freedom = (n - 1).clip(lower=1)
    half = (found["high"] - found["low"]) / 2 * stats.t.ppf(0.95, freedom)
    half = half / stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)
    half = half.where(found["low"].notna() | mean.ne(0), 0.0).clip(lower=1 - 0.05 ** (1 / n))
    low, high = mean - half, mean + half
    lost = (low > -margin) & (high < margin)
    kept = (found["low"] > margin) | (found["high"] < -margin)
    verdict = np.select([lost, kept], ["lost", "kept"], "not decided")
    table = pd.DataFrame({"inner_low": low, "inner_high": high, "verdict": verdict})
    return table.assign(margin=margin)


def placebo_text(found: pd.DataFrame) -> str:
    """Say in Markdown, a line a method, whether its placebo has lost its effect; see `placebos`."""
    lines = []
    for method, row in found.xs("shuffled", level="pages").iterrows():
        mean, margin, n = row["difference"], row["margin"], int(row["n_examples"])
        text = f"- Shuffled among the queries, the rewrites of {label(str(method))} "
        inner = with_interval(mean, row["inner_low"], row["inner_high"], signed=True)
        whole = with_interval(mean, row["low"], row["high"], signed=True)
        if pd.isna(mean):
            text += "could not be scored."
        elif row["verdict"] == "lost":
            text += (
                f"**lose their effect**: they change the key-point probability by {inner} (90 % "
                f"interval, {n} queries), less than {margin:.2f} either way."
            )
        elif row["verdict"] == "kept":
            text += (
                f"**keep an effect**: they change the key-point probability by {whole} (95 % "
                f"interval, {n} queries), more than {margin:.2f}."
            )
        else:
            half = (row["inner_high"] - row["inner_low"]) / 2, (row["high"] - row["low"]) / 2
            ways = [more_clusters(n, half[0], margin - abs(mean))]
            ways.append(more_clusters(n, half[1], abs(mean) - margin))
            fewest = min(filter(None, ways), default=None)
            more = "it is so close to it that no number of queries can be named"
            if fewest is not None:
                more = f"about {fewest:,} more queries would decide it"
            text += (
                f"have **not been shown to lose or to keep** their effect: they change the "
                f"key-point probability by {whole} (95 % interval, {n} queries), and {margin:.2f} "
                f"either way counts as none; {more}."
            )
        lines.append(text)
    return "\n".join(lines)


def contribution(samples: pd.DataFrame) -> dict[str, float]:
    """Return the shares of (example, repeat) pairs that the original page decides.

    Returns:
        `anyway`: supported with the page and without it; `through the page`: only with it;
        `despite the page`: only without it; `neither`; all NaN where no pair was scored twice.
    """
    wide = samples.pivot(index=PAIR, columns="method", values="supported")
    shares = wide[["original", REMOVED]].dropna().value_counts(normalize=True)
    kinds = {
        "anyway": (1.0, 1.0),
        "through the page": (1.0, 0.0),
        "despite the page": (0.0, 1.0),
        "neither": (0.0, 0.0),
    }
    missing = 0.0 if len(shares) else np.nan
    return {name: float(shares.get(kind, missing)) for name, kind in kinds.items()}


def lift_figure(found: pd.DataFrame, source: str) -> Figure:
    """Draw what each page adds to the answers of the other sources alone; see `lifts`."""
    title = "Without the target page no answer could be scored"
    shown = found.drop(index=["original", NO_SOURCES], errors="ignore").dropna(subset="difference")
    own = found.loc["original"]
    if len(shown) and pd.notna(own["difference"]):
        ends = dict.fromkeys(
            points(d) for d in (shown["difference"].min(), shown["difference"].max())
        )
        title = (
            f"Without the target page {own['reference']:.0%} of answers carry the key point; the "
            f"original page adds {points(own['difference'])}, rewritten pages {' to '.join(ends)}"
        )
        if not own["clear"]:
            title += "; that of the original may be chance"
    quantity = "difference to the answers without the target page, paired"
    rows = method_rows(found, "difference")
    return interval_figure(rows, title, quantity, basis(found, source), signed=True)


def placebo_figure(found: pd.DataFrame, source: str) -> Figure:
    """Draw each rewrite's lift on its own query and on another; see `placebos`."""
    shuffled = pd.DataFrame(found.xs("shuffled", level="pages"))
    unscored = shuffled.index[shuffled["difference"].isna()]
    margin = shuffled["margin"].iloc[0]
    kinds = {
        "lost": "lose their effect",
        "kept": f"keep one of more than {margin:.2f}",
        "not decided": "have not been shown to lose or to keep it",
    }
    told = []
    for kind, text in kinds.items():
        methods = shuffled.index[shuffled["verdict"] == kind]
        if len(methods):
            of = listed(methods) if len(methods) < 3 else f"{len(methods)} methods"
            told.append(f"{of} {text}")
    title = f"Shuffled among the queries, rewrites of {'; of '.join(told)}"
    if len(unscored):
        title = f"No score for the shuffled rewrites of {listed(unscored)}"
    other = found.index.get_level_values("pages") == "shuffled"
    texts = intervals(found, "difference", signed=True) + np.where(other, " shuffled", "")
    rows = method_rows(found.droplevel("pages"), "difference").assign(
        marker=np.where(other, "D", "o"), hollow=other, text=texts.tolist()
    )
    marks = "Dots: each rewrite on its own query; diamonds: on another query."
    quantity = "difference to the original page in the same place, paired"
    return interval_figure(rows, title, quantity, basis(found, source, marks), signed=True)


def lift_table(found: pd.DataFrame, samples: pd.DataFrame, caption: str) -> Styler:
    """Lay out what each page adds to the answers without it.

    Args:
        found: As `counterfactual.lifts` returns it.
        samples: The samples it was made from.
        caption: What the figures rest on.
    """
    shares = pd.Series(contribution(samples)).dropna()
    told = ", ".join(f"{share:.1%} {name}" for name, share in shares.items()) or "none was scored"
    told = f"Key point in the answer, of pairs with and without the original page: {told}. "
    return _contrast_table(found, "without the target page", told + caption)


def placebo_table(found: pd.DataFrame, caption: str) -> Styler:
    """Lay out each rewrite's lift on its own query and on another.

    Args:
        found: As `counterfactual.placebos` returns it.
        caption: What the figures rest on.
    """
    names = [f"{label(method)}, {kind}" for method, kind in found.index]
    told = (
        f"Effect of a shuffled rewrite: lost, if the 90 % interval lies within "
        f"{found['margin'].iloc[0]:.2f} of 0; kept, if the 95 % interval lies beyond. "
    )
    verdicts = found["verdict"].where(found.index.get_level_values("pages") == "shuffled", DASH)
    more = {"effect": verdicts.set_axis(names)}
    found = found.set_axis(names)
    return _contrast_table(found, "original in the same place", told + caption, more)


def _contrast_table(
    found: pd.DataFrame, reference: str, caption: str, more: Mapping[str, pd.Series] | None = None
) -> Styler:
    table = pd.DataFrame(
        {
            "with the page": found["mean"].map("{:.3f}".format),
            reference: found["reference"].map("{:.3f}".format),
            "difference": intervals(found, "difference", signed=True),
            "effect (d)": found["effect"].map("{:+z.2f}".format).replace("+nan", DASH),
            "p (Holm)": p_values(found["p_holm"]),
            **(more or {}),
        }
    )
    counts = found[["n_examples", "n_samples", "abstentions"]]
    table = table.join(counts.set_axis(["n queries", "n pairs", "abstentions"], axis=1))
    return styled(table.rename(index=label).rename_axis(None), [], caption)
