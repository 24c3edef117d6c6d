"""From a samples table to estimates by group, and to paired differences between methods."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.models.usage import Usage
from geo_utils.roles.methods import PREVIOUS, is_pooled, pooled
from geo_utils.statistics import cluster_mean, cross_fitted, holm, paired_difference
from geo_utils.visibility import FIGURES

ALPHA = 0.05
PAIR = ["query_id", "key_point_number", "repeat"]
TRIVIAL = ("paste_key_point", "repeat_key_point")


def estimates(
    samples: pd.DataFrame,
    by: str,
    columns: Sequence[str],
    bounded: Container[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> pd.DataFrame:
    """Estimate the mean of each column by group, over queries.

    Args:
        samples: With `query_id`; a number that is NaN is an abstention.
        by: The column that names the groups.
        columns: What to estimate.
        bounded: Those of the columns that hold 0 or 1, so that their means are probabilities.
        ranges: Between what others of them lie; their intervals are cut there.

    Returns:
        Indexed by group, in the order of the samples. For each column its mean, by its own name,
        with `_low` and `_high`, the samples `n_<column>` and the queries `queries_<column>`
        behind it.
    """
    rows = {}
    for group, part in samples.groupby(by, sort=False):
        row: dict[str, float] = {}
        for name in columns:
            values = part[name].to_numpy(float)
            found = cluster_mean(values, part["query_id"].tolist(), bounded=name in bounded)
            ends = np.clip([found.low, found.high], *(ranges or {}).get(name, (-np.inf, np.inf)))
            row |= {name: found.mean, f"{name}_low": ends[0], f"{name}_high": ends[1]}
            row |= {f"n_{name}": found.n_samples, f"queries_{name}": found.n_clusters}
        rows[group] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


def means(samples: pd.DataFrame, column: str, bounded: bool = False) -> pd.DataFrame:
    """Estimate one column's mean by method, over queries.

    Returns:
        Indexed by method: `mean`, `low`, `high`, `n_examples`, `n_samples`, `abstentions`.
    """
    found = estimates(samples, "method", [column], [column] if bounded else ())
    found.columns = pd.Index(["mean", "low", "high", "n_samples", "n_examples"])
    return found.assign(abstentions=samples.groupby("method").size() - found["n_samples"])


def paired(values: pd.Series, reference: pd.Series, seed: int = 0) -> dict[str, float]:
    """Compare two columns of the same pairs.

    Args:
        values: Indexed by pair, of which `query_id` is a level; NaN for an abstention.
        reference: What it is compared with, indexed likewise.
        seed: Seed of the permutations.

    Returns:
        `difference` with `low` and `high`, `p_value` (sign-flip permutation over queries),
        `n_examples`, `n_samples` (pairs) and `abstentions` (pairs dropped because either side has
        no score).
    """
    queries = values.index.get_level_values("query_id").tolist()
    base = reference.reindex(values.index).to_numpy(float)
    found = paired_difference(values.to_numpy(float), base, queries, seed)
    return {
        "difference": found.estimate.mean,
        "low": found.estimate.low,
        "high": found.estimate.high,
        "p_value": found.p_value,
        "n_examples": found.estimate.n_clusters,
        "n_samples": found.estimate.n_samples,
        "abstentions": found.n_dropped,
    }


def contrasts(
    samples: pd.DataFrame,
    column: str,
    reference: str,
    methods: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare one column between methods and a reference, on the same pairs.

    Args:
        samples: As `evaluate.evaluate` returns it.
        column: A number a sample; NaN is an abstention.
        reference: The method that differences are taken to.
        methods: Those to compare, one family of tests; default, all but the reference.
        seed: Seed of the resampling.

    Returns:
        Indexed by method: as `paired`, `mean` and `reference` over the pairs that both have,
        `effect` (Cohen's d_z: the queries' mean difference over its standard deviation; NaN where
        all queries agree), `p_holm` and `clear` (adjusted p below 0.05).
    """
    wide = samples.pivot(index=PAIR, columns="method", values=column).astype(float)
    if methods is None:
        methods = [m for m in dict.fromkeys(samples["method"]) if m != reference]
    rows = []
    for method in methods:
        both = wide[[method, reference]].dropna()
        each = (both[method] - both[reference]).groupby("query_id").mean()
        spread = float(each.std())
        rows.append(
            paired(wide[method], wide[reference], seed)
            | {"mean": both[method].mean(), "reference": both[reference].mean()}
            | {"effect": each.mean() / spread if spread > 0 else np.nan}
        )
    return adjusted(pd.DataFrame(rows, index=pd.Index(methods, name="method")))


def adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """Add Holm's adjustment of a family of tests: `p_holm`, and `clear` where it is below 0.05."""
    found = holm(table["p_value"].tolist())
    return table.assign(p_holm=found, clear=found < ALPHA)


def with_pooled(samples: pd.DataFrame) -> pd.DataFrame:
    """Add the previous methods as one, behind the last of them.

    Those of `methods.PREVIOUS` count, as published, from two on. Every number of a pair is the
    mean over the methods that have it; where none has, the pair is an abstention.

    Args:
        samples: As `evaluate.evaluate` returns it.

    Returns:
        The samples with a row a pair more, under the name `methods.pooled` of how many they are.
    """
    previous = [m for m in dict.fromkeys(samples["method"]) if m in PREVIOUS]
    if len(previous) < 2:
        return samples
    own = samples[samples["method"].isin(previous)]
    numbers = own.select_dtypes("number").columns.difference(PAIR)
    rows = own.groupby(PAIR, sort=False)[list(numbers)].mean().reset_index()
    rows["method"] = pooled(len(previous))
    behind = int(samples["method"].eq(previous[-1]).to_numpy().argmax()) + 1
    return pd.concat([samples.iloc[:behind], rows, samples.iloc[behind:]], ignore_index=True)


def leading(
    samples: pd.DataFrame, column: str, seed: int = 0, among: Container[object] | None = None
) -> pd.Series:
    """Tell which method leads in a column, if one does.

    It does if its paired difference to the runner-up has an interval above 0, and p below 0.05.
    Of 1,000 studies of six methods on 30 queries, `python tests/measure_verdicts.py winners`, none
    named a leader where all were alike, 0.5 % where one was ahead by 0.05 and 88.3 % where it was
    by 0.25, always that one.

    Args:
        samples: As `evaluate.evaluate` returns it; pooled methods do not compete.
        column: A number a sample; NaN is an abstention.
        seed: Seed of the permutations.
        among: The methods that compete; default, all.

    Returns:
        Indexed by method: true for the one that leads, if there is one.
    """
    shares = samples.groupby("method", sort=False)[column].mean().astype(float)
    leads = pd.Series(False, index=shares.index)
    compete = [not is_pooled(m) and (among is None or m in among) for m in shares.index]
    first = shares[compete].nlargest(2)
    if len(first) == 2:
        both = samples[samples["method"].isin(first.index)].set_index([*PAIR, "method"])
        ahead = both[column].astype(float).unstack()[list(first.index)].dropna()
        best, second = ahead.to_numpy().T
        queries = ahead.index.get_level_values("query_id").tolist()
        if cluster_mean(best - second, queries).low > 0:
            p_value = paired_difference(best, second, queries, seed).p_value
            leads[first.index[0]] = p_value < ALPHA
    return leads


def by_query(samples: pd.DataFrame, reference: str = "original") -> pd.DataFrame:
    """Look behind the mean: on how many queries each method wins, and how it does on the worst.

    The worst is chosen on some answers and its difference taken from the others
    (`statistics.cross_fitted`): the lowest of many noisy means is low by bad luck alone.
    Of 1,000 planted studies of 30 pages with 3 queries, the intervals of `net`, `page_mean` and
    `page_worst` held the truth in 95.2 %, 94.6 % and 95.3 %,
    `python tests/measure_verdicts.py queries`.

    Args:
        samples: As `evaluate.evaluate` returns it.
        reference: The method that differences in `supported` are taken to.

    Returns:
        Indexed by method: over queries `wins`, `ties`, `losses` and `net` (wins minus losses, a
        share of the `n_queries`), `lowest_query` and its difference `lowest`, and `worst`: the
        difference of the worst on other answers; NaN with one answer a page. Over the `n_pages`
        that several queries share: `page_mean` and `page_worst`, the differences of all and of the
        worst of a page's queries. `net`, `page_mean` and `page_worst` with `_low` and `_high`, the
        queries of a page being no independent draws.
    """
    wide = samples.pivot(index=PAIR, columns="method", values="supported").astype(float)
    own = samples[samples["method"] == reference].drop_duplicates("query_id")
    pages = own.set_index("query_id")["page"]
    pages = pages.where(pages.duplicated(keep=False) & pages.notna(), pages.index.to_series())
    rows = {}
    for method in wide.columns.drop(reference):
        changes = (wide[method] - wide[reference]).dropna().groupby(["query_id", "repeat"]).mean()
        table = changes.unstack("repeat")
        each = table.mean(axis=1)
        page = pages.reindex(each.index)
        net = cluster_mean(np.sign(each.to_numpy()), page.tolist())
        row: dict[str, Any] = {"n_queries": len(each), "worst": _worst(table)}
        row |= {"wins": (each > 0).sum(), "ties": (each == 0).sum(), "losses": (each < 0).sum()}
        low, high = np.clip([net.low, net.high], -1.0, 1.0).tolist()
        row |= {"net": net.mean, "net_low": low, "net_high": high}
        row |= {"lowest_query": each.idxmin() if len(each) else None, "lowest": each.min()}
        shared = [part for _, part in table.groupby(page.to_numpy()) if len(part) > 1]
        parts = {"page_mean": [part.mean(axis=1).mean() for part in shared]}
        parts["page_worst"] = [_worst(part) for part in shared]
        for name, values in parts.items():
            found = cluster_mean(np.array(values, dtype=float), range(len(values)))
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        rows[method] = row | {"n_pages": len(shared)}
    order = [method for method in dict.fromkeys(samples["method"]) if method != reference]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(order).rename_axis("method")


def _worst(table: pd.DataFrame) -> float:
    """Return the difference of the worst query on answers that did not choose it."""
    scores = cross_fitted(-table.to_numpy(float))
    return float(-np.nanmean(scores)) if (~np.isnan(scores)).any() else float("nan")


def rivals_in(methods: Iterable[str]) -> list[str]:
    """Return those of these methods that another has to beat.

    They are the original page, the previous methods as one (`with_pooled`; if there is only one,
    that one), pasting and repeating the key point.
    """
    names = list(dict.fromkeys(methods))
    previous = [m for m in names if is_pooled(m)] or [m for m in names if m in PREVIOUS]
    return [m for m in ("original", *previous, *TRIVIAL) if m in names]


def against(samples: pd.DataFrame, method: str, seed: int = 0) -> pd.DataFrame:
    """Compare a method's key-point probability with all that it has to beat, on the same pairs.

    Args:
        samples: As `evaluate.evaluate` returns it.
        method: A method, which is no part of what it is compared with.
        seed: Seed of the resampling.

    Returns:
        Indexed by rival, as `rivals_in` of the samples; columns as `contrasts`, Holm over the
        rivals.
    """
    is_own = samples["method"] == method
    others = with_pooled(samples[~is_own])
    rivals = rivals_in(others["method"])
    both = pd.concat([others, samples[is_own]])
    found = [contrasts(both, "supported", rival, [method], seed) for rival in rivals]
    return adjusted(pd.concat(found).set_axis(pd.Index(rivals, name="rival")))


def summarise(samples: pd.DataFrame, reference: str = "original", seed: int = 0) -> pd.DataFrame:
    """Summarise a samples table by method.

    Args:
        samples: As `evaluate` returns it.
        reference: The method that paired differences are taken to.
        seed: Seed of the permutations.

    Returns:
        Indexed by method, in the order of the samples, the previous ones also as one (see
        `with_pooled`): `key_point_probability` with `ci_low` and
        `ci_high`, `n_examples`, `n_samples`, `abstentions`, mean `word`, `position`, `pawc`
        over `n_answers`, `kept` and `grounded` (fidelity of the pages) and `uncited` (share of the
        `n_uncited` answers that cite no source), each with `_low` and `_high`, `page_words`,
        `unchanged` (share of the pages); against the reference `difference`, `difference_low`,
        `difference_high`, `p_value`, `p_holm` (over the methods), `pairs_dropped`, and `clear`:
        whether the adjusted p-value is below 0.05; `leads` and `pawc_leads`, as `leading` tells of
        the key point and of the visibility.
    """
    samples = with_pooled(samples.assign(uncited=samples["uncited"].astype(float)))
    shares = [*FIGURES, "kept", "grounded"]
    columns = ["supported", *shares, "uncited"]
    names = {
        "supported": "key_point_probability",
        "supported_low": "ci_low",
        "supported_high": "ci_high",
        "queries_supported": "n_examples",
        "n_supported": "n_samples",
        "n_pawc": "n_answers",
    }
    ranges = dict.fromkeys(shares, (0.0, 1.0))
    summary = estimates(samples, "method", columns, ["supported", "uncited"], ranges)
    summary = summary.rename(columns=names)
    groups = samples.groupby("method")
    summary["abstentions"] = groups.size() - summary["n_samples"]
    summary["leads"] = leading(samples, "supported", seed)
    summary["pawc_leads"] = leading(samples, "pawc", seed)
    for name in ("page_words", "unchanged"):
        summary[name] = groups[name].agg(lambda each: each.astype(float).mean())
    changes = {
        "difference": "difference",
        "low": "difference_low",
        "high": "difference_high",
        "p_value": "p_value",
        "abstentions": "pairs_dropped",
    }
    against = pd.DataFrame(columns=list(changes), dtype=float)
    if reference in summary.index and len(summary) > 1:
        against = contrasts(samples, "supported", reference, seed=seed)[list(changes)]
    return adjusted(summary.join(against.rename(columns=changes)))


def headline(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the numbers by method that a manifest records."""
    columns = ["key_point_probability", "ci_low", "ci_high", "n_examples", "n_samples"]
    return {"methods": plain_numbers(summary[[*columns, "abstentions", *FIGURES, "uncited"]])}


def rivals_headline(found: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the differences of `against` that a manifest records, by rival."""
    columns = {"difference": "mean", "low": "low", "high": "high", "p_holm": "p"}
    columns |= {name: name for name in ("n_examples", "n_samples", "abstentions")}
    return {"lift over": plain_numbers(found[list(columns)].rename(columns=columns))}


def plain_numbers(table: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """Return a table's numbers by row as a manifest records them: None where there is none.

    Counts, `n_...` and `abstentions`, are whole numbers.
    """

    def plain(name: str, value: Any) -> float | int | None:
        if pd.isna(value):
            return None
        return int(value) if name.startswith(("n_", "abstentions")) else float(value)

    return {
        str(row): {str(name): plain(str(name), value) for name, value in values.items()}
        for row, values in table.to_dict("index").items()
    }


def usage_report(samples: pd.DataFrame, usage: Usage) -> dict[str, Any]:
    """Return what a run used, for its manifest: samples, abstentions, models, usage by role."""
    return {
        "samples": len(samples),
        "abstentions": int(samples["abstention"].notna().sum()),
        "served_by": sorted(usage.served_by),
        "roles": usage.report(),
    }
