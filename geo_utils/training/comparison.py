"""What training gained: the policy before and after it, beside prompts, on held-out queries."""

from __future__ import annotations

from collections.abc import Sequence
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

    The reward's are counted on the original pages of the training queries and scaled to the
    rollouts; equal completions share answers, so that it will be fewer. Trial rewrites of a
    prefilter and demonstrations come on top.

    Returns:
        As `plan.plan_calls`, the reward's roles first.
    """
    shares = []
    if {"key_point", "visibility"} & set(params.reward.funcs):
        examples = list(dict.fromkeys(example for example, _ in split.train))
        reward = plan_calls(roles, examples, ["original"], params.reward.repeats)
        points = {"one": 1, "exclusive": 1}.get(params.key_points)
        asked = sum(points or len(example.key_points) for example in examples)
        counts = ["calls", "tokens_in", "tokens_out", "cost_usd"]
        scale = params.rollouts / max(asked, 1)
        reward[counts] = reward[counts].astype(float) * scale
        reward["held"] = 0
        shares.append(reward[reward.index != "rewriter"].rename(index=lambda r: f"reward's {r}"))
    shares.append(plan_calls(final, split.held_out, compared_methods(params)))
    plan = pd.concat([part for part in shares if len(part)] or shares[-1:])
    return plan.astype({name: int for name in ("calls", "held", "tokens_in", "tokens_out")})
