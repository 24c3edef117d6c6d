"""What the engine says without the page, and with another query's rewrite in its place."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.baseline_rewrites.params import AnalysisOptions
from geo_utils.corpus import Example, KeyPoint, choose_key_points
from geo_utils.evaluate import Progress, Row, draw_source_order, empty_row, samples_of
from geo_utils.models.loops import gather_all
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import NO_SOURCES, REMOVED, label, placebo_of, shuffled_method
from geo_utils.show.plots import basis, interval_figure, listed, method_rows, points
from geo_utils.show.tables import DASH, intervals, p_values, styled
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


def placebos(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return what each rewrite does to its own query, and to a query it was not made for.

    The rewrite of another query stands in the target's place, and is compared with that query's
    original page in the same place: what is left is no effect of what the rewrite says.

    Args:
        samples: As `evaluate`, with the rows of the placebos.
        seed: Seed of the resampling.

    Returns:
        Indexed by method and `pages` (`own` or `shuffled`): as `summary.contrasts` to the
        original page and to the shuffled original; Holm within each kind. `lost` tells, for the
        shuffled, whether the interval of the difference covers 0 (a difference that is 0 in
        every pair has none, and is lost).
    """
    shuffled = [m for a in dict.fromkeys(samples["method"]) if (m := shuffled_method(a))]
    shuffled.remove("original")
    own = contrasts(samples, "supported", "original", shuffled, seed)
    arms_of = {placebo_of(method): method for method in shuffled}
    other = contrasts(samples, "supported", placebo_of("original"), list(arms_of), seed)
    other = other.rename(index=arms_of)
    table = pd.concat({"own": own, "shuffled": other}, names=["pages"]).swaplevel()
    table = table.loc[[(method, kind) for method in shuffled for kind in ("own", "shuffled")]]
    covers = table["low"].le(0) & table["high"].ge(0)
    flat = table["low"].isna() & table["difference"].eq(0)
    table["lost"] = covers | flat
    return table


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
    shown = found.drop(index="original").dropna(subset="difference")
    own = found.loc["original"]
    if len(shown) and pd.notna(own["difference"]):
        best = shown.loc[str(shown["difference"].idxmax())]
        title = (
            f"Without the target page {own['reference']:.0%} of answers carry the key point; the "
            f"original page adds {points(own['difference'])}, {label(str(best.name))} "
            f"{points(best['difference'])}"
        )
    quantity = "difference to the answers without the target page, paired"
    rows = method_rows(found, "difference")
    return interval_figure(rows, title, quantity, basis(found, source), signed=True)


def placebo_figure(found: pd.DataFrame, source: str) -> Figure:
    """Draw each rewrite's lift on its own query and on another; see `placebos`."""
    shuffled = pd.DataFrame(found.xs("shuffled", level="pages"))
    unscored = shuffled.index[shuffled["difference"].isna()]
    title = (
        f"No score for the shuffled rewrites of {listed(unscored)}"
        if len(unscored)
        else f"Shuffled among the queries, the rewrites of {shuffled['lost'].sum()} of "
        f"{len(shuffled)} methods lose their lift"
    )
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
    return _contrast_table(found.set_axis(names), "original in the same place", caption)


def _contrast_table(found: pd.DataFrame, reference: str, caption: str) -> Styler:
    table = pd.DataFrame(
        {
            "with the page": found["mean"].map("{:.3f}".format),
            reference: found["reference"].map("{:.3f}".format),
            "difference": intervals(found, "difference", signed=True),
            "effect (d)": found["effect"].map("{:+.2f}".format).replace("+nan", DASH),
            "p (Holm)": p_values(found["p_holm"]),
        }
    )
    counts = found[["n_examples", "n_samples", "abstentions"]]
    table = table.join(counts.set_axis(["n queries", "n pairs", "abstentions"], axis=1))
    return styled(table.rename(index=label).rename_axis(None), [], caption)
