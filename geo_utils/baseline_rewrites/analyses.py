"""All analyses of a comparison: what they need from the roles, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from geo_utils.baseline_rewrites.counterfactual import arms, evaluate_arms, lifts, placebos
from geo_utils.baseline_rewrites.frontier import frontier
from geo_utils.baseline_rewrites.funnel import attribution, funnel
from geo_utils.baseline_rewrites.params import AnalysisOptions
from geo_utils.baseline_rewrites.retrieval import ranks, retrieval
from geo_utils.collateral import collateral, judge_points, point_shares
from geo_utils.corpus import Example
from geo_utils.evaluate import Progress
from geo_utils.fidelity import check_pages, least_fidelity, original_support
from geo_utils.models.base import EMBEDDER
from geo_utils.plan import Rehearsal, quiet
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import is_arm
from geo_utils.summary import against, leading, means, plain_numbers, with_pooled

Tables = dict[str, pd.DataFrame]
T = TypeVar("T")


def add_analyses(
    samples: pd.DataFrame,
    examples: Sequence[Example],
    roles: Roles,
    options: AnalysisOptions,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the calls that the analyses need, and the columns that their tables are read from.

    Args:
        samples: As `evaluate.evaluate` returns it for the run's methods.
        examples: The corpus.
        roles: Engine, judge and rewriter.
        options: Which analyses.
        progress: As in `evaluate.evaluate`.

    Returns:
        The samples with the rows of the arms and the columns `original_supports`, those of
        `fidelity.check_pages`, `funnel.attribution` and, where asked for, `retrieval.ranks` and
        `collateral.point_shares`; and the verdicts on other points, as `collateral.judge_points`
        returns them, empty if not asked for.
    """
    p = roles.params
    if names := arms(options):
        added = evaluate_arms(examples, names, roles, progress)
        # An arm that has none of the figures would lose their types.
        figures = samples.select_dtypes("float").dtypes
        samples = pd.concat([samples, added.astype(figures.to_dict())], ignore_index=True)
    support: dict[tuple[str, int], float] = {}
    if options.original_support:
        support = original_support(examples, roles.judge, p.key_points, p.seed)
    keys = zip(samples["query_id"], samples["key_point_number"], strict=True)
    samples["original_supports"] = [support.get(key, np.nan) for key in keys]
    least = least_fidelity(roles.judge, options.gate)
    parts = [samples, check_pages(samples, examples, least), attribution(samples)]
    if options.retrieval:
        parts.append(ranks(samples, examples, options.first, roles.callers.get(EMBEDDER)))
    points = pd.DataFrame()
    if options.collateral:
        points = judge_points(samples, examples, roles.judge, progress)
        parts.append(point_shares(samples, points))
    return pd.concat(parts, axis=1), points


def rehearsals(roles: Roles, options: AnalysisOptions) -> dict[str, Rehearsal]:
    """Return what `plan.plan_calls` runs to count the calls of the analyses; empty for none."""

    def analyses(planned: Roles, examples: list[Example], samples: pd.DataFrame) -> list[Roles]:
        add_analyses(samples, examples, planned, options, quiet)
        return []

    asks = arms(options) or options.original_support or options.collateral or options.embedder
    return {"analyses": analyses} if roles.callers and asks else {}


def analyse(samples: pd.DataFrame, options: AnalysisOptions, seed: int = 0) -> Tables:
    """Return the tables of the analyses that are switched on.

    Args:
        samples: As `add_analyses` returns it.
        options: Which analyses.
        seed: Seed of resampling and permutations.

    Returns:
        `strict` (as `summary.means`, with which method `leads`), `against` (of the key-point
        rewrite, if it is among the methods) and some of `lifts`, `placebos`, `funnel`,
        `collateral`, `frontier` and `retrieval`, each by the function of that name. Empty if a
        method has no score at all.
    """
    own = rewrites(samples)
    scored = own.groupby("method")["supported"].count()
    if not scored.all():
        return {}
    every = with_pooled(own)

    def strict() -> pd.DataFrame:
        leads = leading(every, "strict", seed)
        return means(every, "strict", bounded=True).assign(leads=leads)

    makers: dict[str, tuple[bool, Callable[[], pd.DataFrame]]] = {
        "strict": (True, strict),
        "against": ("key_point" in scored, lambda: against(own, "key_point", seed)),
        "lifts": (options.removed, lambda: lifts(samples, seed)),
        "placebos": (bool(options.placebo), lambda: placebos(samples, options.margin, seed)),
        "funnel": (options.funnel, lambda: funnel(samples)),
        "collateral": (options.collateral, lambda: collateral(samples, seed)),
        "frontier": (options.frontier, lambda: frontier(samples, seed)),
        "retrieval": ("rank_bm25" in samples, lambda: retrieval(samples, seed)),
    }
    return {name: make() for name, (wanted, make) in makers.items() if wanted}


def drawn(make: Callable[..., T], table: pd.DataFrame | None, *more: Any) -> T | None:
    """Return the figure or the view that `make` makes of an analysis; None if it is off."""
    return None if table is None else make(table, *more)


def rewrites(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the samples of the methods, without those of the arms."""
    return samples[~samples["method"].map(is_arm)]


def analysis_headline(tables: Tables) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the numbers of the tables that a manifest records; None where there is none."""
    columns = {
        "lifts": ["difference", "low", "high"],
        "against": ["difference", "low", "high"],
        "frontier": ["difference", "fidelity", "words_added", "flagged", "strict"],
    }
    found: Tables = {name: tables[name][columns[name]] for name in columns if name in tables}
    if "placebos" in tables:
        shuffled = pd.DataFrame(tables["placebos"].xs("shuffled", level="pages"))
        found["placebos"] = shuffled[columns["lifts"]]
    if "funnel" in tables:
        found["funnel"] = pd.DataFrame(tables["funnel"]["mean"].unstack())
    if "retrieval" in tables:
        shown = ["rank", "found", "end_to_end", "end_to_end_difference"]
        found["retrieval"] = pd.DataFrame(tables["retrieval"].loc["bm25", shown])
    return {name: plain_numbers(table) for name, table in found.items()}
