"""Rewrite with one model, answer with another, judge with a third: does the lift carry over?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from geo_utils.corpus import Example, KeyPointChoice
from geo_utils.engines import Emphasis, Engine, ExtractiveEngine
from geo_utils.evaluate import evaluate
from geo_utils.judges import Judge
from geo_utils.params import RunParams
from geo_utils.progress import Counter, Progress
from geo_utils.rewriters import Rewriter
from geo_utils.roles import Roles, make_roles
from geo_utils.statistics import holm, paired_difference
from geo_utils.studies.options import EngineOptions, RoleOptions, TransferOptions
from geo_utils.summary import PAIR

OWN = "this run's"


@dataclass(frozen=True)
class TransferRoles:
    """The roles of a transfer matrix.

    Attributes:
        engines: By the name of its column; the run's own first.
        rewriters: By name; the run's own first.
        judge: Judges all of them.
        made: All sets of roles that they were taken from, so that calls can be counted.
        labels: What each role is, by name, for captions.
    """

    engines: Mapping[str, Engine]
    rewriters: Mapping[str, Rewriter]
    judge: Judge
    made: tuple[Roles, ...]
    labels: Mapping[str, str]

    def planned(self, own: Roles, options: TransferOptions) -> TransferRoles:
        """Return roles that count what these would call.

        Args:
            own: The run's roles, already planned.
            options: What these were made from.
        """
        return _assembled([own, *(roles.planned() for roles in self.made[1:])], options)


def transfer_roles(own: Roles, options: TransferOptions) -> TransferRoles:
    """Make the roles of a transfer matrix; models that the run has already are shared.

    Args:
        own: The run's roles.
        options: What stands beside them.

    Raises:
        FatalError: A model cannot be had.
    """
    made = [own]
    wanted: list[tuple[str, RoleOptions]] = [
        *(("engine", o) for o in options.engines.values()),
        *(("rewriter", o) for o in options.rewriters.values()),
        *([("judge", options.judge)] if options.judge else []),
    ]
    for role, other in wanted:
        made.append(make_roles(_as_params(own.params, role, other), like=own))
    return _assembled(made, options)


def transfer_samples(
    roles: TransferRoles,
    examples: Iterable[Example],
    methods: Sequence[str],
    repeats: int,
    key_points: KeyPointChoice = "one",
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Evaluate every rewriter's pages under every engine, by one judge.

    Args:
        roles: As `transfer_roles` makes them.
        examples: The corpus.
        methods: Rewriting methods; `original` is added, as the reference.
        repeats: Sampled answers a page.
        key_points: As `evaluate`'s.
        seed: As `evaluate`'s.
        progress: Called with (samples done, samples in all), for each engine and rewriter.

    Returns:
        Rows as `evaluate` returns them, with `engine` and `rewriter` by name. The original page,
        which no rewriter touches, is answered once an engine and stands under the first.
    """
    corpus, parts = list(examples), []
    for engine_name, engine in roles.engines.items():
        for number, (rewriter_name, rewriter) in enumerate(roles.rewriters.items()):
            show = progress or Counter(f"samples: {rewriter_name} rewrites, {engine_name} answers")
            part = evaluate(
                corpus, [*(["original"] if number == 0 else []), *methods], engine, roles.judge,
                repeats, rewriter=rewriter, key_points=key_points, seed=seed, progress=show,
            )  # fmt: skip
            parts.append(part.assign(engine=engine_name, rewriter=rewriter_name))
    return pd.concat(parts, ignore_index=True)


def transfer_table(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Estimate each method's lift over the original page, under each engine.

    Args:
        samples: As `transfer_samples` returns them.
        seed: Seed of the permutation test.

    Returns:
        One row per rewriter x method x engine: `probability` of the rewritten and of the
        `original` page, paired `lift` with `low` and `high`, `p_holm` over all rows, `clear`,
        `n_queries`, `n_pairs`, `pairs_dropped`.
    """
    rows = []
    for engine, part in samples.groupby("engine", sort=False):
        base = part[part["method"] == "original"].set_index(PAIR)["supported"]
        rewritten = part[part["method"] != "original"]
        for (rewriter, method), own in rewritten.groupby(["rewriter", "method"], sort=False):
            values = own.set_index(PAIR)["supported"].reindex(base.index)
            queries = base.index.get_level_values("query_id").tolist()
            found = paired_difference(values.to_numpy(float), base.to_numpy(float), queries, seed)
            rows.append(
                {
                    "rewriter": rewriter,
                    "method": method,
                    "engine": engine,
                    "probability": float(values.mean()),
                    "original": float(base.mean()),
                    "lift": found.estimate.mean,
                    "low": found.estimate.low,
                    "high": found.estimate.high,
                    "p_value": found.p_value,
                    "n_queries": found.estimate.n_clusters,
                    "n_pairs": found.estimate.n_samples,
                    "pairs_dropped": found.n_dropped,
                }
            )
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p_value"].tolist())
    table["clear"] = table["p_holm"] < 0.05
    return table


def transfer_loss(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare each lift under another engine with the lift under the first, on the same pairs.

    Returns:
        One row per rewriter x method x other engine: `difference` of the lifts with `low` and
        `high`, and `n_queries`.
    """
    lifts = {}
    for engine, part in samples.groupby("engine", sort=False):
        base = part[part["method"] == "original"].set_index(PAIR)["supported"]
        for key, own in part[part["method"] != "original"].groupby(
            ["rewriter", "method"], sort=False
        ):
            lifts[engine, key] = own.set_index(PAIR)["supported"].reindex(base.index) - base
    first = next(iter(lifts))[0]
    rows = []
    for (engine, key), lift in lifts.items():
        if engine == first:
            continue
        reference = lifts[first, key]
        queries = lift.index.get_level_values("query_id").tolist()
        found = paired_difference(
            lift.to_numpy(float), reference.reindex(lift.index).to_numpy(float), queries, seed
        ).estimate
        rows.append((*key, engine, found.mean, found.low, found.high, found.n_clusters))
    columns = ["rewriter", "method", "engine", "difference", "low", "high", "n_queries"]
    return pd.DataFrame(rows, columns=columns)


def offline_engine(options: EngineOptions, seed: int) -> ExtractiveEngine:
    """Return the offline engine with other settings."""
    usual, factor = Emphasis(), options.emphasis
    scaled = Emphasis(
        bold=usual.bold * factor, heading=usual.heading * factor,
        lead=usual.lead * factor, repetition=usual.repetition * factor,
    )  # fmt: skip
    return ExtractiveEngine(options.word_budget, 0.8, options.noise, scaled, seed)


def _assembled(made: Sequence[Roles], options: TransferOptions) -> TransferRoles:
    """Take each role from the set of roles that was made for it."""
    own, others = made[0], iter(made[1:])
    engines: dict[str, Engine] = {OWN: own.engine}
    labels: dict[str, str] = {OWN: own.params.engine}
    for name, option in options.engines.items():
        roles = next(others)
        offline = option.backend == "offline"
        engines[name] = offline_engine(option, own.params.seed) if offline else roles.engine
        labels[name] = _label(option)
    rewriters: dict[str, Rewriter] = {OWN: own.rewriter}
    for name, other in options.rewriters.items():
        rewriters[name] = next(others).rewriter
        labels[name] = _label(other)
    judge = next(others).judge if options.judge else own.judge
    return TransferRoles(engines, rewriters, judge, tuple(made), labels)


def _label(option: RoleOptions) -> str:
    """Say what a role is: its model, or that it is an offline stand-in with which settings."""
    if option.backend != "offline":
        return option.model or option.backend
    if not isinstance(option, EngineOptions):
        return "offline"
    return (
        f"offline, {option.word_budget} words, emphasis x {option.emphasis:g}, "
        f"noise {option.noise:g}"
    )


def _as_params(params: RunParams, role: str, option: RoleOptions) -> RunParams:
    """Return the run's parameters with another model in one role; policies stay the run's."""
    models = {name: model for name, model in params.models.items() if name != role}
    servers = {name: found for name, found in params.servers.items() if name != role}
    if option.model is not None:
        models[role] = option.model  # type: ignore[index]
    if option.servers:
        servers[role] = list(option.servers)  # type: ignore[index]
    changes: dict[str, Any] = {role: option.backend, "models": models, "servers": servers}
    changes |= {"baseline_methods": ["original"], "method": "key_point"}  # loads no policy again
    if role == "judge" and option.backend in ("offline", "gemini"):
        changes["judge_mode"] = "verdict"
    return params.model_copy(update=changes)
