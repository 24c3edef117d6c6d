"""What training gained: the policy before and after it, beside prompts, on held-out queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from geo_utils.corpus import Example
from geo_utils.grpo.data import Split, policies
from geo_utils.grpo.params import GrpoParams
from geo_utils.models.caller import Caller
from geo_utils.plan import plan_calls
from geo_utils.roles.by_model import NamedRewriters
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import label
from geo_utils.show.plots import BLUE, interval_figure
from geo_utils.statistics import PairedDifference, paired_difference, with_interval
from geo_utils.summary import PAIR, headline

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
    with policies(params, roles) as policy:
        trained_and_not = {BEFORE: policy(base), AFTER: policy(str(trained))}
        named = replace(roles, rewriter=NamedRewriters(roles.rewriter, trained_and_not))
        return named.evaluate(held_out, compared_methods(params))


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


def gain_figure(gains: Mapping[str, PairedDifference], source: str) -> Figure:
    """Draw what training changed on held-out queries, each figure with its interval.

    Args:
        gains: As `gain` returns them, by the figure's name; the claim is about the first.
        source: Where the figures come from.
    """
    rows = pd.DataFrame([asdict(found.estimate) for found in gains.values()], index=list(gains))
    name, main = str(rows.index[0]), rows.iloc[0]
    title = f"Training did not clearly change the {name} on held-out queries"
    if main["low"] > 0 or main["high"] < 0:
        verb = "raised" if main["mean"] > 0 else "lowered"
        title = f"Training {verb} the {name} on held-out queries by {abs(main['mean']):.2f}"
    n = f"n = {main['n_clusters']:.0f} held-out queries, {main['n_samples']:.0f} pairs"
    note = f"{n}; 95 % intervals over queries. {source}"
    rows["shade"] = [BLUE, *["#777777"] * (len(rows) - 1)]
    return interval_figure(rows, title, "after training minus before, paired", note, signed=True)


def training_findings(summary: pd.DataFrame, gain: PairedDifference, source: str) -> str:
    """Say in Markdown what training gained on held-out queries, and what it is worth.

    Args:
        summary: As `summary.summarise` returns it, the policies among its methods.
        gain: As `comparison.gain` returns it for the key point.
        source: Where the figures come from.
    """
    found = gain.estimate
    change = with_interval(found.mean, found.low, found.high, signed=True)
    clear = gain.p_value < 0.05 and not pd.isna(found.low)
    verb = "raised" if found.mean > 0 else "lowered"
    claim = f"**clearly {verb}**" if clear else "did **not clearly** change"
    after, prompt = summary.loc["policy/after"], summary.drop(index=["policy/before"])
    others = prompt["key_point_probability"].drop(index="policy/after")
    best, strongest = str(others.idxmax()), float(others.max())
    return "\n".join(
        [
            f"- Training {claim} the key-point probability on held-out queries: {change}, "
            f"p = {gain.p_value:.4f}, {found.n_clusters} queries, {found.n_samples} pairs, "
            f"{gain.n_dropped} pairs dropped for abstentions.",
            f"- The trained policy stands at {after['key_point_probability']:.3f}, "
            f"{after['key_point_probability'] - strongest:+.3f} beside the best other method "
            f"({label(best)}, {strongest:.3f}; not tested here).",
            f"- Its pages have {after['page_words']:.0f} words (original "
            f"{summary['page_words']['original']:.0f}) and keep {after['kept']:.1%} of the "
            f"original; {after['grounded']:.1%} of them is grounded in it or is the key point.",
            "",
            f"Source: {source}.",
        ]
    )


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
