"""What training gained: the policy before and after it, beside prompts, on held-out queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from geo_utils.corpus import Example
from geo_utils.evaluate import evaluate
from geo_utils.loops import run_sync
from geo_utils.model_rewriters import NamedRewriters
from geo_utils.models.base import LanguageModel
from geo_utils.models.caller import Caller
from geo_utils.plan import plan_calls
from geo_utils.policies import policy_rewriter
from geo_utils.roles import Roles, make_caller
from geo_utils.statistics import PairedDifference, paired_difference
from geo_utils.summary import PAIR, headline
from geo_utils.training.data import Split, policy_card
from geo_utils.training.params import GrpoParams

BEFORE, AFTER = "policy/before", "policy/after"


def compared_methods(params: GrpoParams) -> list[str]:
    """Return the methods of the comparison, the trained policy last."""
    return [*params.methods, BEFORE, AFTER]


def compare(
    params: GrpoParams, roles: Roles, held_out: Sequence[Example], base: str, trained: Path
) -> pd.DataFrame:
    """Evaluate the policy before and after training beside other methods.

    Args:
        params: The recipe.
        roles: Engine, judge and rewriter of the comparison (`params.for_evaluation()`).
        held_out: Queries that training never saw.
        base: The policy before, as `grpo.prepare_policy` returns it.
        trained: The adapter, as `grpo.train` returns it.

    Returns:
        The samples, as `evaluate` returns them.
    """
    loaded: list[LanguageModel] = []

    def calls(model: LanguageModel) -> Caller:
        loaded.append(model)
        return make_caller(model, params, roles.usage)

    card = policy_card(params)
    policies = {
        BEFORE: policy_rewriter(base, calls, card),
        AFTER: policy_rewriter(str(trained), calls, card),
    }
    try:
        return evaluate(
            held_out, compared_methods(params), roles.engine, roles.judge, params.repeats,
            rewriter=NamedRewriters(roles.rewriter, policies), key_points=params.key_points,
            seed=params.seed,
        )  # fmt: skip
    finally:
        for model in loaded:
            run_sync(model.close())


def gain(samples: pd.DataFrame, figure: str = "supported", seed: int = 0) -> PairedDifference:
    """Return what training changed: after minus before, paired, over held-out queries."""
    wide = samples.pivot(index=PAIR, columns="method", values=figure)
    queries = wide.index.get_level_values("query_id").tolist()
    return paired_difference(
        wide[AFTER].to_numpy(float), wide[BEFORE].to_numpy(float), queries, seed
    )


def training_headline(summary: pd.DataFrame, found: PairedDifference) -> dict[str, Any]:
    """Return the numbers that the manifest records: those by method, and the gain."""
    change = found.estimate
    values = {"mean": change.mean, "low": change.low, "high": change.high, "p": found.p_value}
    clean = {name: None if pd.isna(value) else float(value) for name, value in values.items()}
    return headline(summary) | {"gain": clean | {"n_queries": change.n_clusters}}


def plan_training(params: GrpoParams, roles: Roles, final: Roles, split: Split) -> pd.DataFrame:
    """Count the calls of the reward and of the comparison, before the first is made.

    A rollout is a page of its own: as many answers as the reward repeats, and as many verdicts
    where a component asks for them, each as long as on the original pages and none of them held.
    Equal completions share answers, so that it will be fewer. The original pages' answers that
    `visibility` compares with, trial rewrites of a prefilter and demonstrations come on top.

    Returns:
        As `plan.plan_calls`, the reward's roles first.
    """
    shares = []
    if {"key_point", "visibility"} & set(params.reward.funcs):
        shares.append(_reward_calls(params, roles, split))
    shares.append(plan_calls(final, split.held_out, compared_methods(params)))
    plan = pd.concat([part for part in shares if len(part)] or shares[-1:])
    return plan.astype({name: int for name in ("calls", "held", "tokens_in", "tokens_out")})


def _reward_calls(params: GrpoParams, roles: Roles, split: Split) -> pd.DataFrame:
    """Return what the rollouts cost, by tokens and price of a call on the original pages."""
    examples = list(dict.fromkeys(example for example, _ in split.train))
    callers = {r: Caller(c.model) for r, c in roles.callers.items() if isinstance(c, Caller)}
    plan = plan_calls(
        replace(roles, callers=callers), examples, ["original"], params.reward.repeats
    )  # without a cache: what is held of the original pages is of no use to a rollout
    asked = {"engine", "judge"} if "key_point" in params.reward.funcs else {"engine"}
    plan = plan[plan.index.isin(asked)].copy()
    calls = params.rollouts * params.reward.repeats
    spent = ["tokens_in", "tokens_out", "cost_usd"]
    plan[spent] = plan[spent].astype(float).mul(calls / plan["calls"], axis=0)
    plan["calls"] = calls
    return plan.rename(index=lambda role: f"reward's {role}")
