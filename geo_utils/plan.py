"""What an experiment will call and cost, counted before the first call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_utils.corpus import Example, KeyPoint
from geo_utils.models.base import EMBEDDER
from geo_utils.models.caller import Planner
from geo_utils.models.known import AS_OF
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.models.usage import price_of
from geo_utils.roles.by_model import NamedRewriters, extract_key_points
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import is_policy
from geo_utils.roles.params import RunParams
from geo_utils.roles.rewriters import Rewrite
from geo_utils.runs import Planned

# Runs a further part of an experiment with planned roles, given the examples and the rehearsed
# samples of the comparison, and returns the other planned roles that it called.
Rehearsal = Callable[[Roles, list[Example], pd.DataFrame], Sequence[Roles]]


def plan_calls(
    roles: Roles,
    examples: Iterable[Example],
    methods: list[str],
    repeats: int | None = None,
    also: Mapping[str, Rehearsal] | None = None,
) -> pd.DataFrame:
    """Count the calls of an evaluation by running it with guessed answers.

    Args:
        roles: The run's roles; those without a model, or with a record of one, call nothing.
        examples: The corpus.
        methods: The methods to compare; a policy's pages are taken to be as long as the original.
        repeats: Sampled answers a page, if not the run's.
        also: Further parts of the experiment by name, which may call still other models. A call
            that an earlier part makes already is counted there only.

    Returns:
        One row a model-backed role, and one `role, part` for each further part: `model`, `calls`
        still to make, `held` in the cache, `tokens_in` and `tokens_out` (estimates from lengths),
        `cost_usd` (NaN if the model's price is unknown). Retries come on top.
    """
    params, planned = roles.params, roles.planned()
    policies = [method for method in methods if is_policy(method)]
    rewriter = NamedRewriters(planned.rewriter, dict.fromkeys(policies, _Unchanged()))
    planned = replace(planned, rewriter=rewriter)
    counts: Counts = {}
    rows: list[tuple[Any, ...]] = []
    parts = also or {}
    # The offline roles' share of a further part may precede another model's: it has to be run.
    if (planned.callers or parts) and not params.recorded:
        examples = run_sync(gather_all(_with_stand_in(example, planned) for example in examples))
        samples = planned.evaluate(examples, methods, repeats, quiet)
        rows += _new_rows("", [planned], counts, params)
        for part, rehearse in parts.items():
            others = rehearse(planned, list(examples), samples)
            rows += _new_rows(part, [planned, *others], counts, params)
    columns = ["role", "model", "calls", "held", "tokens_in", "tokens_out", "cost_usd"]
    table = pd.DataFrame(rows, columns=columns)
    # One model may serve a role in several places of a part.
    grouped = table.groupby(["role", "model"], sort=False, as_index=False).sum(min_count=1)
    return grouped.set_index("role")


@dataclass(frozen=True)
class _Unchanged:
    """Stands for a policy, whose pages are taken to be as long as the original."""

    async def rewrite(
        self, method: str, example: Example, key_point: KeyPoint, sample_index: int = 0
    ) -> Rewrite:
        """Return the page as it is."""
        return Rewrite(example.target)


Counts = dict[tuple[int, str], NDArray[np.int64]]


def _new_rows(
    part: str, planned: Sequence[Roles], counts: Counts, params: RunParams
) -> list[tuple[Any, ...]]:
    """Return a row for each role that called since the last time, and remember the counts.

    Without a part, that is for the comparison itself, every model-backed role has its row.
    """
    rows = []
    for roles in planned:
        extractor = {} if roles.extractor is None else {"extractor": roles.extractor}
        for role, planner in {**roles.callers, **extractor}.items():
            assert isinstance(planner, Planner)
            now = planner.counts[role].copy()
            calls, held, *tokens = (now - counts.get((id(planner), role), 0)).tolist()
            counts[id(planner), role] = now
            if not calls + held and (part or role in ("extractor", EMBEDDER)):
                continue
            model = planner.caller.model.model
            price = price_of(model, params.calls.prices)
            cost = price.cost(*tokens) if price else float("nan")
            name = f"{role}, {part}" if part else role
            rows.append((name, model, calls, held, *tokens, cost))
    return rows


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
        return "No model is called: all roles are offline, or their answers recorded."
    costs = [f"about {c:.4f} US dollars" if c >= 0 else "price unknown" for c in plan["cost_usd"]]
    lines = [
        f"- **{role}** ({row['model']}): {row['calls']:,} calls, {row['held']:,} already held; "
        f"about {row['tokens_in']:,} tokens in, {row['tokens_out']:,} out; {cost}"
        for (role, row), cost in zip(plan.iterrows(), costs, strict=True)
    ]
    known = plan["cost_usd"].fillna(0).sum()
    unknown = plan.loc[plan["cost_usd"].isna() & (plan["calls"] > 0), "model"].unique()
    total = f"in all {plan['calls'].sum():,} calls, about {known:.4f} US dollars"
    if len(unknown):
        total += f" and what {', '.join(unknown)} costs, which is unknown"
    return "\n".join([*lines, "", f"{total}; retries come on top (prices as of {AS_OF})."])


def plan_by_role(plan: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Return a plan as a manifest records it: all parts of a role together, None for unknown."""
    roles = [str(role).partition(",")[0] for role in plan.index]
    counts = plan.drop(columns="model").groupby(roles, sort=False)
    return {
        str(role): {str(n): None if pd.isna(v) else v for n, v in row.items()}
        for role, row in counts.sum(min_count=1).to_dict("index").items()
    }


def stop_if_dry_run(params: RunParams, plan: pd.DataFrame) -> None:
    """End a dry run here.

    Raises:
        Planned: `dry_run` is set; nothing was spent.
    """
    if params.dry_run:
        raise Planned(f"dry run, nothing was spent\n{plan_text(plan)}")


def quiet(done: int, total: int) -> None:
    """Show no progress of a rehearsal."""
