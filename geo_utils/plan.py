"""What an experiment will call and cost, counted before the first call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from geo_utils.analyses import add_analyses
from geo_utils.analysis_options import AnalysisOptions
from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import evaluate
from geo_utils.loops import gather_all, run_sync
from geo_utils.methods import is_policy
from geo_utils.model_rewriters import NamedRewriters
from geo_utils.model_roles import extract_key_points
from geo_utils.models.planner import Planner
from geo_utils.models.prices import PRICES_AS_OF, Price, price_of
from geo_utils.params import RunParams
from geo_utils.rewriters import Unchanged
from geo_utils.roles import Roles
from geo_utils.runs import RunInterrupted


def plan_calls(
    roles: Roles,
    examples: Iterable[Example],
    methods: list[str],
    repeats: int | None = None,
    analyses: AnalysisOptions | None = None,
) -> pd.DataFrame:
    """Count the calls of an evaluation by running it with guessed answers.

    Args:
        roles: The run's roles; those without a model call nothing.
        examples: The corpus.
        methods: The methods to compare; a policy's pages are taken to be as long as the original.
        repeats: Sampled answers a page, if not the run's.
        analyses: What else is asked of the samples.

    Returns:
        One row a model-backed role: `model`, `calls` still to make, `held` in the cache,
        `tokens_in` and `tokens_out` (estimates from lengths), `cost_usd` (NaN if the model's
        price is unknown). Retries come on top.
    """
    params, planned = roles.params, roles.planned()
    policies = [method for method in methods if is_policy(method)]
    if planned.callers:
        examples = run_sync(gather_all(_with_stand_in(example, planned) for example in examples))
        rewriter = NamedRewriters(planned.rewriter, dict.fromkeys(policies, Unchanged()))
        samples = evaluate(
            examples, methods, planned.engine, planned.judge, repeats or params.repeats,
            rewriter=rewriter, key_points=params.key_points, seed=params.seed, progress=_quiet,
        )  # fmt: skip
        if analyses is not None:
            planned = replace(planned, rewriter=rewriter)
            add_analyses(samples, list(examples), planned, analyses, _quiet, repeats)
    prices = {model: Price(p.tokens_in, p.tokens_out) for model, p in params.calls.prices.items()}
    rows = []
    places = [(role, planned.callers[role]) for role in planned.callers]
    if planned.extractor is not None:
        places.append(("extractor", planned.extractor))
    for role, planner in places:
        assert isinstance(planner, Planner)
        if role == "extractor" and not planner.calls[role] + planner.held[role]:
            continue
        model = planner.caller.model.model
        price = price_of(model, prices)
        tokens = planner.tokens_in[role], planner.tokens_out[role]
        cost = price.cost(*tokens) if price else float("nan")
        rows.append((role, model, planner.calls[role], planner.held[role], *tokens, cost))
    columns = ["role", "model", "calls", "held", "tokens_in", "tokens_out", "cost_usd"]
    return pd.DataFrame(rows, columns=columns).set_index("role")


async def _with_stand_in(example: Example, planned: Roles) -> Example:
    """Return the example with a key point to count with, where a model would have to find one."""
    if example.key_points or planned.extractor is None:
        return example
    found = await extract_key_points(example, planned.extractor, planned.prompts)
    stand_in = KeyPoint(
        1, "A key point that a model has yet to read off the page, in one sentence."
    )
    return found if found.key_points else replace(example, key_points=(stand_in,))


def plan_text(plan: pd.DataFrame) -> str:
    """Say a plan in Markdown; an unknown price is said to be unknown, never free."""
    if plan.empty:
        return "No model is called: all roles are offline."
    lines = [
        f"- **{role}** ({row['model']}): {row['calls']:,} calls, {row['held']:,} already held; "
        f"about {row['tokens_in']:,} tokens in, {row['tokens_out']:,} out; {_dollars(row)}"
        for role, row in plan.iterrows()
    ]
    known = plan["cost_usd"].fillna(0).sum()
    unknown = plan.loc[plan["cost_usd"].isna() & (plan["calls"] > 0), "model"].unique()
    total = f"in all {plan['calls'].sum():,} calls, about {known:.4f} US dollars"
    if len(unknown):
        total += f" and what {', '.join(unknown)} costs, which is unknown"
    return "\n".join([*lines, "", f"{total}; retries come on top (prices as of {PRICES_AS_OF})."])


def stop_if_dry_run(params: RunParams, plan: pd.DataFrame) -> None:
    """End a dry run here.

    Raises:
        RunInterrupted: `dry_run` is set; nothing was spent.
    """
    if params.dry_run:
        raise RunInterrupted(f"dry run, nothing was spent\n{plan_text(plan)}")


def _quiet(done: int, total: int) -> None:
    """Show no progress of a rehearsal."""


def _dollars(row: pd.Series) -> str:
    if pd.isna(row["cost_usd"]):
        return "price unknown"
    return f"about {row['cost_usd']:.4f} US dollars"
