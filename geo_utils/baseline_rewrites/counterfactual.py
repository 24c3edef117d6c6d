"""What the engine says without the page, and with another query's rewrite in its place."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

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
from geo_utils.summary import contrasts

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
        score, known = await _scored(pair, arm, donor.get(_key(pair)), roles)
        rows = [known | {"method": arm, "repeat": repeat} for repeat in numbers]
        if score is None:
            return rows
        found = await gather_all(score(repeat) for repeat in numbers)
        return [row | part for row, part in zip(rows, found, strict=True)]

    tasks = [one(pair, arm) for pair in pairs for arm in names]
    show = progress or roles.counter("counterfactual samples")
    return samples_of(tasks, show, len(numbers))


async def _scored(
    pair: Pair, arm: str, donor: Pair | None, roles: Roles
) -> tuple[Callable[[int], Coroutine[Any, Any, Row]] | None, Row]:
    """Return what scores one repeat of an arm, or None if it cannot be, and the row's start."""
    example, point = pair
    placement, scorer = draw_source_order(example, roles.params.seed), roles.scorer
    if donor is not None and (method := shuffled_method(arm)):
        rewrite = await roles.rewriter.rewrite(method, *donor)
        page = None if rewrite.abstention else rewrite.text
        row = empty_row(example, point, placement, placement.sources(example, page or ""))
        if page is None:
            return None, row | {"abstention": f"rewriter: {rewrite.abstention}"}
        return partial(scorer.page, example, point, page), row | {"page": page}
    order = [i for i in placement.order if i != example.target_id] if arm == REMOVED else []
    sources = [example.sources[i] for i in order]
    row = empty_row(example, point, placement, sources) | {"source_order": order}
    return partial(scorer.sources, example.query, sources, None, point), row


def _donors(pairs: Sequence[Pair], seed: int) -> dict[tuple[str, int], Pair]:
    """Give every pair one of another query: queries in a drawn order, each the next one's."""
    by_query: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_query.setdefault(pair[0].query_id, []).append(pair)
    order = sorted(by_query, key=lambda q: random.Random(f"{seed}|placebo|{q}").random())
    if len(order) < 2:
        raise ValueError(
            f"a placebo shuffles rewrites among queries, and there is only {len(order)}; give a "
            "larger corpus or limit, or leave analyses.placebo empty"
        )
    found = {}
    for i, query in enumerate(order):
        others = by_query[order[(i + 1) % len(order)]]
        for j, pair in enumerate(by_query[query]):
            found[_key(pair)] = others[j % len(others)]
    return found


def _key(pair: Pair) -> tuple[str, int]:
    return pair[0].query_id, pair[1].number


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
    wide = samples.pivot(
        index=["query_id", "key_point_number", "repeat"], columns="method", values="supported"
    )
    both = wide[["original", REMOVED]].dropna()
    kept, bare = both["original"] == 1, both[REMOVED] == 1
    shares = {
        "anyway": kept & bare,
        "through the page": kept & ~bare,
        "despite the page": ~kept & bare,
        "neither": ~kept & ~bare,
    }
    return {name: float(share.mean()) if len(both) else np.nan for name, share in shares.items()}


def lift_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw what each page adds to the answers of the other sources alone; see `lifts`."""
    if found is None:
        return None
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


def placebo_figure(found: pd.DataFrame | None, source: str) -> Figure | None:
    """Draw each rewrite's lift on its own query and on another; see `placebos`."""
    if found is None:
        return None
    shuffled = pd.DataFrame(found.xs("shuffled", level="pages"))
    names = (
        f"{shuffled['lost'].sum()} of {len(shuffled)} methods"
        if len(shuffled) > 1
        else label(str(shuffled.index[0]))
    )
    title = f"Shuffled among the queries, the rewrites of {names} lose their lift"
    if shuffled["difference"].isna().any():
        unscored = shuffled.index[shuffled["difference"].isna()]
        title = f"No score for the shuffled rewrites of {listed(unscored)}"
    elif len(shuffled) == 1 and not shuffled["lost"].any():
        title = f"Shuffled among the queries, the rewrites of {names} still change the answers"
    other = found.index.get_level_values("pages") == "shuffled"
    rows = method_rows(found.droplevel("pages"), "difference").assign(
        marker=np.where(other, "D", "o"), hollow=other
    )
    texts = intervals(found, "difference", signed=True) + np.where(other, " shuffled", "")
    marks = "Dots: each rewrite on its own query; diamonds: on another query."
    quantity = "difference to the original page in the same place, paired"
    note = basis(found, source, marks)
    return interval_figure(rows.assign(text=texts.tolist()), title, quantity, note, signed=True)


def lift_table(found: pd.DataFrame | None, samples: pd.DataFrame, caption: str) -> Styler | None:
    """Lay out what each page adds to the answers without it.

    Args:
        found: As `counterfactual.lifts` returns it.
        samples: The samples it was made from.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    shares = pd.Series(contribution(samples)).dropna()
    told = ", ".join(f"{share:.1%} {name}" for name, share in shares.items()) or "none was scored"
    return _contrast_table(
        found,
        "with the page",
        "without it",
        "lift",
        f"Key point in the answer, of pairs with and without the original page: {told}. {caption}",
    )


def placebo_table(found: pd.DataFrame | None, caption: str) -> Styler | None:
    """Lay out each rewrite's lift on its own query and on another.

    Args:
        found: As `counterfactual.placebos` returns it.
        caption: What the figures rest on.
    """
    if found is None:
        return None
    names = [f"{label(method)}, {kind}" for method, kind in found.index]
    return _contrast_table(found.set_axis(names), "rewrite", "original", "difference", caption)


def _contrast_table(
    found: pd.DataFrame, mean: str, reference: str, change: str, caption: str
) -> Styler:
    table = pd.DataFrame(
        {
            mean: found["mean"].map("{:.3f}".format),
            reference: found["reference"].map("{:.3f}".format),
            change: intervals(found, "difference", signed=True),
            "effect (d)": found["effect"].map(lambda d: DASH if pd.isna(d) else f"{d:+.2f}"),
            "p (Holm)": p_values(found["p_holm"]),
            "n queries": found["n_examples"],
            "n pairs": found["n_samples"],
            "abstentions": found["abstentions"],
        }
    ).rename(index=label)
    return styled(table.rename_axis(None), [], caption)
