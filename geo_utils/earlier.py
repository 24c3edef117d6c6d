"""Earlier runs of a comparison: how often it was looked at, and with what else it was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from geo_utils.records import Record, find_records
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import label
from geo_utils.runs import Run
from geo_utils.statistics import Estimate, cluster_mean, interval_reach, level_spread, with_interval
from geo_utils.summary import PAIR
from geo_utils.text import capitalised

# Parameters that shape an answer or a verdict; a comparison may grow in the second.
_SHAPE = {"corpus", "engine", "judge", "rewriter", "seed", "sampling", "repeats", "record"}
_GROWS = {"corpus.limit", "repeats"}
_SOURCES = {"judge": "judge", "sampling.judge_mode": "judge", "engine": "engine"}
_WORDING, _VERSION = "prompt wording", "model version"
Levels = dict[str, pd.DataFrame]  # samples by what they were made with


@dataclass(frozen=True)
class Earlier:
    """What other finished runs say of a comparison.

    Attributes:
        looks: (queries, samples of the original page) of those that were part of it, each once.
        levels: By source of variance (`judge`, `engine`, `prompt wording`, `model version`), the
            samples of this run and of those that differ from it in nothing else.
    """

    looks: list[tuple[int, int]]
    levels: dict[str, Levels]


def earlier_runs(run: Run, samples: pd.DataFrame, roles: Roles) -> Earlier:
    """Look through the output folder for finished runs of the same comparison.

    Args:
        run: The run; its manifest holds the parameters and the templates.
        samples: As `evaluate.evaluate` returns it.
        roles: Which models have served it.
    """
    own, served, looks = Record(run.folder), sorted(roles.usage.served_by), set()
    levels: dict[str, Levels] = {}
    size = int(samples.loc[samples["method"] == "original", "supported"].count())
    for record in find_records(run.folder.parents[2]):
        if record.notebook != own.notebook or record.status != "finished":
            continue
        simulated = ["SIMULATED" in text for text in (record.provenance, roles.source())]
        if record.folder == run.folder or simulated[0] != simulated[1]:
            continue
        changed, theirs = _changed(record, own), _served(record, served)
        if not changed - _GROWS:
            look = _size(record)
            if look and look[1] < size:
                looks.add(look)
            changed = {_VERSION} if theirs != served else set()
        sources = {_SOURCES.get(name, name) for name in changed - _GROWS}
        if len(sources) == 1 and sources <= {*_SOURCES.values(), _WORDING, _VERSION}:
            (source,) = sources
            names = [_level(source, record, theirs), _level(source, own, served)]
            try:
                found = pd.read_parquet(record.folder / "samples.parquet")
            except (OSError, ValueError):  # deleted or torn meanwhile
                continue
            levels.setdefault(source, {names[1]: samples})[names[0]] = found
    return Earlier(sorted(looks), levels)


def _size(record: Record) -> tuple[int, int] | None:
    """Return the queries and samples of a run's original page, where its manifest tells them."""
    try:
        row = record.headline["methods"]["original"]
        return int(row["n_examples"]), int(row["n_samples"])
    except (KeyError, TypeError, ValueError):
        return None


def _served(record: Record, unknown: list[str]) -> list[str]:
    """Return what the models of a run called themselves, where its manifest tells it."""
    usage = record.manifest.get("usage")
    found = usage.get("served_by", unknown) if isinstance(usage, dict) else unknown
    return [str(name) for name in found]


def _changed(record: Record, own: Record) -> set[str]:
    """Return in which parameters that shape an answer two runs differ, or in prompts."""
    first, second = (
        {name: v for name, v in one.parameters.items() if name.partition(".")[0] in _SHAPE}
        for one in (record, own)
    )
    changed = {name for name in first | second if first.get(name) != second.get(name)}
    mine, other = (dict(one.manifest.get("templates") or {}) for one in (own, record))
    if any(mine[name] != other[name] for name in mine.keys() & other):
        changed.add(_WORDING)
    return changed


def _level(source: str, record: Record, served: list[str]) -> str:
    """Name what a run has of a source of variance."""
    if source == _VERSION:
        return ", ".join(served) or "not recorded"
    if source == _WORDING:
        prompts = record.manifest["parameters"]["resolved"].get("paths", {}).get("prompts")
        return f"{prompts or 'as shipped'} ({record.run_id[:8]})"
    mode = record.parameters.get("sampling.judge_mode")
    return f"{record.parameters[source]}{f' {mode}' if source == 'judge' else ''}"


def lift(samples: pd.DataFrame, method: str) -> pd.Series:
    """Return a method's difference to the original page, by pair; NaN for an abstention."""
    wide = samples.pivot(index=PAIR, columns="method", values="supported").astype(float)
    return wide[method] - wide["original"]


def components(
    samples: pd.DataFrame, method: str, levels: Mapping[str, Levels]
) -> dict[str, Estimate]:
    """Put the spread between judges, wordings and engines beside the sampling error of a lift.

    Args:
        samples: Of the run.
        method: Whose lift over the original page.
        levels: As `Earlier.levels`.

    Returns:
        `sampling`, the lift's standard error; and by source, as `statistics.level_spread`, the
        standard deviation of the lift between its levels, on the queries that all of them have.
    """
    own = lift(samples, method)
    mean = cluster_mean(own.to_numpy(), own.index.get_level_values("query_id").tolist())
    error = (mean.high - mean.low) / 2 / interval_reach(mean.n_clusters)
    found = {"sampling": Estimate(error, np.nan, np.nan, mean.n_clusters, mean.n_samples)}
    for source, made in levels.items():
        had = [part for part in made.values() if {method, "original"} <= set(part["method"])]
        lifts = [lift(part, method).groupby("query_id").mean() for part in had]
        if len(lifts) > 1:
            found[source] = level_spread(pd.concat(lifts, axis=1, join="inner").dropna().to_numpy())
    return {n: spread for n, spread in found.items() if n == "sampling" or spread.mean >= 0}


def total_text(samples: pd.DataFrame, method: str, before: Earlier) -> str:
    """Say in Markdown how sure a lift is if one counts the looks, judges, wordings and engines.

    Args:
        samples: Of the run.
        method: Whose lift over the original page.
        before: As `earlier_runs` returns it; a study may have added levels.
    """
    own, name = lift(samples, method), label(method)
    queries = own.index.get_level_values("query_id").tolist()
    fixed, wide = (cluster_mean(own.to_numpy(), queries, looked=looked) for looked in (False, True))
    told = [with_interval(*_ends(found), signed=True) for found in (fixed, wide)]
    if fixed.n_clusters < 2:
        known = f"of one query ({told[0]})" if fixed.n_clusters else "of no query"
        return f"- The lift of {name} is {known}: nothing can be said of how sure it is."
    if np.isnan(fixed.low):
        return (
            f"- Of {fixed.n_clusters} queries none differs in the lift of {name} ({told[0]}), so "
            "that there is no interval, and nothing to say of how sure it is."
        )
    lines = [f"- No earlier run looked at a part of these {fixed.n_clusters} queries."]
    if before.looks:
        sizes = ", ".join(f"{n} queries ({size} samples)" for n, size in before.looks)
        still = "still excludes" if wide.low > 0 or wide.high < 0 else "does not exclude"
        lines = [
            f"- This comparison was looked at on {sizes} and then extended to {fixed.n_clusters} "
            f"queries, so that its 95 % intervals are too narrow. One that holds however often one "
            f"looks gives the lift of {name} as {told[1]}, for {told[0]}; it {still} 0."
        ]
    found = components(samples, method, before.levels)
    lines.append(
        f"- Queries and answers: the lift of {name} has a standard error of "
        f"{found['sampling'].mean:.3f} ({fixed.n_clusters} queries)."
    )
    for source, spread in list(found.items())[1:]:
        names, apart = ", ".join(before.levels[source]), with_interval(*_ends(spread))
        lines.append(
            f"- {capitalised(source)}: between {names} the lift has a standard deviation of "
            f"{apart} ({spread.n_clusters} queries)."
        )
    if len(found) > 1:
        whole = float(np.sqrt(sum(spread.mean**2 for spread in found.values())))
        lines.append(f"- All of these together: {whole:.3f}.")
    else:
        lines.append(
            "- One judge, one prompt wording and one engine were run: what another of them would "
            "do is not in any interval here."
        )
    return "\n".join(lines)


def _ends(found: Estimate) -> tuple[float, float, float]:
    return found.mean, found.low, found.high
