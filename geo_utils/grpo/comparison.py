"""What training gained: the policy before and after it, beside prompts, on held-out queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geo_utils.corpus import Example
from geo_utils.fidelity import page_fidelity
from geo_utils.grpo.data import Split, policies
from geo_utils.grpo.params import ASKING, GrpoParams
from geo_utils.models.caller import Caller
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.plan import plan_calls
from geo_utils.roles.by_model import NamedRewriters
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import label
from geo_utils.show.plots import BLUE, interval_figure
from geo_utils.statistics import with_interval
from geo_utils.summary import contrasts, headline, plain_numbers

BEFORE, AFTER = "policy/before", "policy/after"
GAINS = {"key-point probability": "supported", "PAWC": "pawc", "original kept": "kept"}
_CHANGE = {"difference": "mean", "low": "low", "high": "high"}


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
        return named.evaluate(held_out, [*params.methods, BEFORE, AFTER])


def training_gains(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return what training changed: after minus before, paired, over held-out queries.

    Returns:
        Indexed by the names of `GAINS`, the key point's first: as `summary.contrasts`.
    """
    found = [contrasts(samples, column, BEFORE, [AFTER], seed) for column in GAINS.values()]
    return pd.concat(found).set_axis(list(GAINS))


def training_headline(summary: pd.DataFrame, gains: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers that the manifest records: those by method, and the gain."""
    told = _CHANGE | {"p_value": "p", "n_examples": "n_queries"}
    (gain,) = plain_numbers(gains[:1][list(told)].rename(columns=told)).values()
    return headline(summary) | {"gain": gain}


def gain_figure(gains: pd.DataFrame, source: str) -> Figure:
    """Draw what training changed on held-out queries, each figure with its interval.

    Args:
        gains: As `training_gains` returns them; the claim is about the first.
        source: Where the figures come from.
    """
    name, main = str(gains.index[0]), gains.iloc[0]
    title = f"Training did not clearly change the {name} on held-out queries"
    if main["low"] > 0 or main["high"] < 0:
        verb = "raised" if main["difference"] > 0 else "lowered"
        title = f"Training {verb} the {name} on held-out queries by {abs(main['difference']):.2f}"
    n = f"n = {main['n_examples']:.0f} held-out queries, {main['n_samples']:.0f} pairs"
    note = f"{n}; 95 % intervals over queries. {source}"
    shades = [BLUE, *["#777777"] * (len(gains) - 1)]
    rows = gains[list(_CHANGE)].rename(columns=_CHANGE).assign(shade=shades)
    return interval_figure(rows, title, "after training minus before, paired", note, signed=True)


def training_findings(summary: pd.DataFrame, gains: pd.DataFrame, source: str) -> str:
    """Say in Markdown what training gained on held-out queries, and what it is worth.

    Args:
        summary: As `summary.summarise` returns it, the policies among its methods.
        gains: As `training_gains` returns them.
        source: Where the figures come from.
    """
    gain, after = gains.iloc[0], summary.loc[AFTER]
    change = with_interval(gain["difference"], gain["low"], gain["high"], signed=True)
    clear = gain["p_value"] < 0.05 and not pd.isna(gain["low"])
    verb = "raised" if gain["difference"] > 0 else "lowered"
    claim = f"**clearly {verb}**" if clear else "did **not clearly** change"
    others = summary["key_point_probability"].drop(index=[BEFORE, AFTER])
    highest, share = str(others.idxmax()), float(others.max())
    return f"""\
- Training {claim} the key-point probability on held-out queries: {change}, \
p = {gain["p_value"]:.4f}, {gain["n_examples"]:.0f} queries, {gain["n_samples"]:.0f} pairs, \
{gain["abstentions"]:.0f} pairs dropped for abstentions.
- The trained policy stands at {after["key_point_probability"]:.3f}, \
{after["key_point_probability"] - share:+.3f} beside the highest of the other methods \
({label(highest)}, {share:.3f}; not tested here).
- Its pages have {after["page_words"]:.0f} words (original \
{summary["page_words"]["original"]:.0f}) and keep {after["kept"]:.1%} of the original; \
{after["grounded"]:.1%} of them is grounded in it or is the key point.

Source: {source}."""


def plan_training(params: GrpoParams, roles: Roles, final: Roles, split: Split) -> pd.DataFrame:
    """Count the calls of the reward and of the comparison, before the first is made.

    A rollout is a page of its own: as many answers as the reward repeats, and as many verdicts
    where a component asks for them, each as long as on the original pages and none of them held,
    and one comparison of its claims where fidelity is rewarded and the judge reads it. Equal
    completions share answers, so that it will be fewer. The original pages' answers that
    `visibility` compares with, trial rewrites of a prefilter and demonstrations come on top.

    Returns:
        As `plan.plan_calls`, the reward's roles first.
    """
    plan = plan_calls(final, split.held_out, [*params.methods, BEFORE, AFTER])
    if {*ASKING, "fidelity"} & set(params.reward.funcs):
        parts = _reward_calls(params, roles, split), plan
        plan = pd.concat([part for part in parts if len(part)] or [plan])
    return plan.astype(dict.fromkeys(("calls", "held", "tokens_in", "tokens_out"), int))


def _reward_calls(params: GrpoParams, roles: Roles, split: Split) -> pd.DataFrame:
    """Return what the rollouts cost, by tokens and price of a call on the original pages."""
    examples = list(dict.fromkeys(example for example, _ in split.train))
    callers = {r: Caller(c.model) for r, c in roles.callers.items() if isinstance(c, Caller)}
    # without a cache: what is held of the original pages is of no use to a rollout
    alone = replace(roles, callers=callers)

    def compared(planned: Roles, examples: list[Example], samples: pd.DataFrame) -> list[Roles]:
        pages = ((e.target, f"{e.target}\n{e.query}") for e in examples)
        run_sync(gather_all(page_fidelity(*both, (), planned.judge) for both in pages))
        return []

    funcs, repeats = set(params.reward.funcs), params.reward.repeats
    plan = plan_calls(alone, examples, ["original"], repeats, {"fidelity": compared})
    asked = {"engine": repeats if funcs & set(ASKING) else 0}
    asked |= {"judge": repeats if "key_point" in funcs else 0}
    asked |= {"judge, fidelity": int("fidelity" in funcs)}
    plan = plan[np.array([bool(asked.get(role)) for role in plan.index], dtype=bool)].copy()
    calls = params.rollouts * plan.index.map(asked).to_numpy(int)
    spent = ["tokens_in", "tokens_out", "cost_usd"]
    plan[spent] = plan[spent].astype(float).mul(calls / plan["calls"], axis=0)
    plan["calls"] = calls
    return plan.rename(index=lambda role: f"reward's {role}")
