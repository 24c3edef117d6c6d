"""Is RL worth it? The trained policy beside what is cheaper, on held-out queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.certificate import Correction
from geo_utils.corpus import Example
from geo_utils.fidelity import page_fidelity
from geo_utils.files import read_jsonl
from geo_utils.grpo import recorded, rivals
from geo_utils.grpo.data import Split, base_model, policies
from geo_utils.grpo.params import ASKING, GrpoParams
from geo_utils.models.caller import Caller
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.plan import plan_calls
from geo_utils.roles.by_model import NamedRewriters
from geo_utils.roles.make import Roles
from geo_utils.roles.methods import label
from geo_utils.runs import Run
from geo_utils.show.plots import QUANTITIES, listed
from geo_utils.show.tables import DASH, count_range, intervals, over_queries
from geo_utils.statistics import jackknife, with_interval
from geo_utils.summary import (
    PAIR,
    TRIVIAL,
    adjusted,
    contrasts,
    headline,
    plain_numbers,
    rivals_headline,
)

BEFORE, AFTER = "policy/before", "policy/after"
PROMPT = "policy/prompt"  # where a supervised start lies between the model and `BEFORE`
BEST_OF, DISTILLED = "policy/best_of_n", "policy/distilled"
# What training has to beat to be worth it: each is cheaper.
CHEAPER = (PROMPT, BEFORE, *TRIVIAL, DISTILLED)
MARGIN = 0.05  # a gain that is surely smaller is none
_CHANGE = {"difference": "mean", "low": "low", "high": "high"}


def compare(
    params: GrpoParams, roles: Roles, split: Split, base: str, trained: Path, run: Run
) -> pd.DataFrame:
    """Evaluate the policy before and after training beside its rivals.

    Args:
        params: The recipe.
        roles: Engine, judge and rewriter of the comparison (`params.for_evaluation()`).
        split: Brings the queries that training never saw.
        base: The policy before, as `prepare_policy` returns it.
        trained: The adapter, as `train` returns it.
        run: Holds what the rivals wrote.

    Returns:
        The samples, as `evaluate` returns them.
    """
    if params.recorded:
        return pd.read_parquet(params.recorded / recorded.SAMPLES)
    with policies(params, roles) as policy:
        named: dict[str, Any] = {BEFORE: policy(base), AFTER: policy(str(trained))}
        cold = params.policy.cold_start
        if cold.steps and not cold.small_model:
            named[PROMPT] = policy(base_model(params))
        if params.evaluation.best_of:
            named[BEST_OF] = rivals.BestOf(run.folder)
            if made := rivals.distilled(params, split, base, run):
                named[DISTILLED] = policy(str(made))
        mixed = replace(roles, rewriter=NamedRewriters(roles.rewriter, named))
        order = [name for name in (PROMPT, BEFORE, BEST_OF, DISTILLED, AFTER) if name in named]
        return mixed.evaluate(split.held_out, [*params.methods, *order])


def against_rivals(samples: pd.DataFrame, seed: int = 0, aim: str = "supported") -> pd.DataFrame:
    """Compare the trained policy with everything else, on the same pairs.

    Args:
        samples: As `compare` returns them.
        seed: Seed of the resampling.
        aim: By which column: what the reward aims at, as `RewardOptions.aim` tells it.

    Returns:
        Indexed by rival: as `summary.contrasts`, Holm over the rivals.
    """
    names = [m for m in dict.fromkeys(samples["method"]) if m != AFTER]
    each = [contrasts(samples, aim, rival, [AFTER], seed) for rival in names]
    return adjusted(pd.concat(each).set_axis(pd.Index(names, name="rival")))


def pasting_share(samples: pd.DataFrame, aim: str = "supported") -> tuple[float, float, float]:
    """Return which share of the policy's lift over the original pasting has as well.

    Returns:
        The ratio of the two lifts, with its jackknife interval over queries; NaN where the policy
        has no lift.
    """
    wide = samples.pivot(index=PAIR, columns="method", values=aim).astype(float)
    wide = wide[["original", "paste_key_point", AFTER]].dropna()
    queries = wide.index.get_level_values("query_id").tolist()

    def share(mask: Any) -> float:
        means = wide[mask].mean()
        lift = means[AFTER] - means["original"]
        return float((means["paste_key_point"] - means["original"]) / lift) if lift > 0 else np.nan

    found = jackknife(share, queries) if queries else None
    return (found.mean, found.low, found.high) if found else (np.nan,) * 3


def where_it_helps(samples: pd.DataFrame, seed: int = 0, aim: str = "supported") -> pd.DataFrame:
    """Compare the policy after training with before, by how often the original page has the aim.

    Returns:
        As `summary.contrasts`, a row for pairs whose original page never lands its point, or is
        never seen, and one for the others; a part without pairs is left out.
    """
    own = samples[samples["method"] == "original"].groupby(PAIR[:2])[aim].mean()
    lands = samples.set_index(PAIR[:2]).index.map(own.to_dict()).to_numpy(float)
    parts = {"never": lands == 0, "at times": lands > 0}
    rows = {
        name: contrasts(samples[mask], aim, BEFORE, [AFTER], seed).iloc[0]
        for name, mask in parts.items()
        if mask.any()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def costs(params: GrpoParams, run: Run) -> pd.DataFrame:
    """Return what was paid for each way, by method.

    Returns:
        `calls` of the engine and `minutes` on the GPU before the first page is written for use, and
        `completions` and `answers` that each page in use costs.
    """
    files = ("metrics.jsonl", "validation.jsonl", "prefilter.jsonl", rivals.FILE)
    steps, watched, tried, lines = (read_jsonl(run.folder / name) for name in files)
    chosen = len(tried) * (params.data.prefilter.trials if params.data.prefilter else 0)
    calls = chosen + sum(row["n_samples"] + row["abstentions"] for row in watched)
    calls += sum(row.get("reward/engine_calls", 0) for row in steps)
    minutes = sum(row["phases"]["step"] for row in steps) / 60
    rows: dict[str, tuple[float, ...]] = {BEFORE: (0, 0, 1, 0), AFTER: (calls, minutes, 1, 0)}
    if n := params.evaluation.best_of:
        rows[BEST_OF] = (0, 0, n, n * params.reward.repeats)
        own = [row for row in lines if row["part"] == "train"]
        taught = run.manifest.get("distilled", {}).get("seconds", 0)
        minutes = (sum(row["seconds"] for row in own) + taught) / 60
        asked = sum(row["n"] for row in own) * params.reward.repeats
        rows[DISTILLED] = chosen + asked, minutes, 1, 0
    columns = ["calls", "minutes", "completions", "answers"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def verdict(
    samples: pd.DataFrame,
    found: pd.DataFrame,
    paid: pd.DataFrame,
    seed: int = 0,
    corrected: Correction | None = None,
    aim: str = "supported",
) -> str:
    """Say in Markdown whether the training was worth it, by how much, at what cost, and where.

    Worth it: clearly above everything that is cheaper, by what the reward aims at. Not worth it:
    clearly not above one of these by `MARGIN`. Else it is not decided.

    Args:
        samples: As `compare` returns them.
        found: As `against_rivals` returns them.
        paid: As `costs` returns it.
        seed: Seed of the resampling.
        corrected: What hand labels make of the gain over the policy before, if there are any.
        aim: As `against_rivals` had it.
    """
    cheaper = found.loc[[name for name in CHEAPER if name in found.index]]
    rows = cheaper[cheaper["n_samples"] > 0]
    unscored = cheaper.index.difference(rows.index, sort=False)
    if rows.empty:
        return "**No verdict**: the trained policy could not be compared."
    beaten = rows["clear"] & (rows["difference"] > 0)
    # Where no query differs there is no interval, and at most three in n of all queries differ.
    lost = rows[~beaten & (rows["high"].fillna(3 / rows["n_examples"]) < MARGIN)]
    if beaten.all() and len(unscored):
        claim = f"**Not decided**: training could not be compared with {listed(unscored)}"
    elif beaten.all():
        claim = f"**Worth it**: training beats {listed(rows.index)}"
    elif len(lost):
        claim = f"**Not worth it**: training is not above {listed(lost.index)} by {MARGIN:.2f}"
    else:
        claim = f"**Not decided**: training is not clearly above {listed(rows.index[~beaten])}"
    after = samples.loc[samples["method"] == AFTER, aim].mean()
    has, never = f"land their key point in {after:.1%} of answers", "lands its point"
    landing = ""
    if aim != "supported":
        claim += " in visibility, which was rewarded"
        has, never = f"have {after:.1%} of the answers' {QUANTITIES[aim]}", "shows"
        lands = contrasts(samples, "supported", BEFORE, [AFTER], seed).iloc[0]
        means = " before, ".join(f"{lands[name]:.1%}" for name in ("reference", "mean"))
        landing = f"- **Key-point probability**: {means} after, {_change(lands)}.\n"
    gains = [f"{_change(row)} over {label(str(name))}" for name, row in found.iterrows()]
    n = f"{count_range(found['n_examples'])} held-out queries, "
    n += f"{count_range(found['n_samples'])} pairs"
    cost, share, over = paid.loc[AFTER], pasting_share(samples, aim), found.loc["original"]
    said = "Which share of its lift pasting has is not known"
    if over["clear"] and over["difference"] > 0 and not np.isnan(share[0]):
        said = f"Pasting the key point has {with_interval(*share, digits=2)} of its lift"
    by_hand = ""
    if corrected is not None and not corrected.lifts.loc[AFTER, "note"]:
        gain = intervals(corrected.lifts, "corrected", signed=True)[AFTER]
        read = f"{int(corrected.lifts['n_labels'][AFTER])} of its answers"
        by_hand = f"- **By hand labels** ({read}): {gain} over {label(BEFORE)}.\n"
    helps = "; ".join(
        f"{_change(row)} where the original {name} {never} ({row['n_examples']:.0f})"
        for name, row in where_it_helps(samples, seed, aim).iterrows()
    )
    return f"""\
{claim}. The trained policy's pages {has}.

- **By how much** ({n}): {"; ".join(gains)}.
{landing}{by_hand}- **At what cost**: {cost["minutes"]:.1f} minutes of training and \
{cost["calls"]:,.0f} engine calls. {said}.
- **What it writes**: {_written(samples, seed, aim)}
- **Where it helps**, over {label(BEFORE)} (n queries; one may count in both): \
{helps or "not known, as no original page was scored"}."""


def _written(samples: pd.DataFrame, seed: int, aim: str) -> str:
    """Say how many pages are unchanged or missing, and what is gained where both policies wrote."""
    missing = samples["verdict"].eq("no page")
    wrote = samples.assign(none=missing.astype(float)).groupby("method")
    left = wrote[["unchanged", "none"]].mean().map("{:.0%}".format, na_action="ignore").fillna(DASH)
    said = f"{left.unchanged[AFTER]} of the pages are the original, unchanged (before training "
    said += f"{left.unchanged[BEFORE]}), and {left.none[AFTER]} of the replies hold no page "
    said += f"(before {left.none[BEFORE]})."
    lost = samples[missing & samples["method"].isin([BEFORE, AFTER])]
    if lost.empty:
        return said
    both = samples[~samples.set_index(PAIR).index.isin(lost.set_index(PAIR).index)]
    if both.empty:
        return f"{said} No key point has a page before and after."
    row = contrasts(both, aim, BEFORE, [AFTER], seed).iloc[0]
    where = f"there is a page before and after ({row['n_examples']:.0f} queries)"
    return f"{said} Where {where} the gain is {_change(row)}."


def _change(row: pd.Series) -> str:
    return with_interval(row["difference"], row["low"], row["high"], signed=True)


def cost_table(paid: pd.DataFrame, summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out what each way costs beside how often its pages land their key point."""
    known = summary.reindex(paid.index)
    table = pd.DataFrame(
        {
            "key-point probability": intervals(known, "key_point_probability", "ci"),
            "engine calls to make it": paid["calls"].map("{:,.0f}".format),
            "minutes to make it": paid["minutes"].map("{:.1f}".format),
            "completions a page": paid["completions"].map("{:.0f}".format),
            "engine calls a page": paid["answers"].map("{:.0f}".format),
        }
    )
    return over_queries(table.rename(index=label).rename_axis(None), [], caption)


def training_headline(
    samples: pd.DataFrame,
    summary: pd.DataFrame,
    found: pd.DataFrame,
    said: str,
    seed: int = 0,
    aim: str = "supported",
) -> dict[str, Any]:
    """Return what the manifest records: numbers by method, the gain, the lift over each rival.

    Args:
        samples: As `compare` returns them.
        summary: As `summary.summarise` returns it.
        found: As `against_rivals` returns it.
        said: As `verdict` returns it; its first sentence is kept.
        seed: Seed of the resampling.
        aim: As `against_rivals` had it; of a visibility, gain and lifts are named by it and stand
            behind the gain in key-point probability.
    """
    landing = contrasts(samples, "supported", BEFORE, [AFTER], seed)
    recorded = headline(summary) | {"gain": _gain(landing)}
    lifts = rivals_headline(found)
    if aim != "supported":
        recorded[f"gain in {QUANTITIES[aim]}"] = _gain(found.loc[[BEFORE]])
        lifts = {f"{QUANTITIES[aim]}, {name}": rows for name, rows in lifts.items()}
    return recorded | lifts | {"verdict": said.partition(". ")[0].replace("*", "")}


def _gain(row: pd.DataFrame) -> dict[str, Any]:
    told = _CHANGE | {"p_value": "p", "n_examples": "n_queries"}
    (gain,) = plain_numbers(row[list(told)].rename(columns=told)).values()
    return gain


def plan_training(params: GrpoParams, roles: Roles, final: Roles, split: Split) -> pd.DataFrame:
    """Count the calls of the reward and of the comparison, before the first is made.

    A rollout is a page of its own: as many answers as the reward repeats, and as many verdicts
    where a component asks for them, each as long as on the original pages and none of them held,
    and one comparison of its claims where fidelity is rewarded and the judge reads it. Equal
    completions share answers, so that it will be fewer. Counted are the most that
    `reward.refills` may draw, validation, prefilter and rivals; the original pages' answers that
    `visibility` compares with and demonstrations come on top.

    Returns:
        As `plan.plan_calls`, the reward's roles first.
    """
    plan = plan_calls(final, split.held_out, [*params.methods, BEFORE, AFTER])
    if {*ASKING, "fidelity"} & set(params.reward.funcs) and not params.recorded:
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
    data, n = params.data, params.evaluation.best_of
    drawn = params.rollouts * (1 + params.reward.refills)
    rewarded = drawn + (drawn + len(split.held_out) * n if n else 0)
    landed = 0  # answers beside the reward's
    if data.validation:
        times = 1 + -(-params.grpo["max_steps"] // data.validation.every)
        landed += times * len(split.validation)
    if data.prefilter:
        tried = min(data.prefilter.pairs or len(split.train), len(split.train))
        landed += tried * data.prefilter.trials
    beside = landed * plan.index.isin(["engine", "judge"])
    calls = rewarded * plan.index.map(asked).to_numpy(int) + beside
    spent = ["tokens_in", "tokens_out", "cost_usd"]
    plan[spent] = plan[spent].astype(float).mul(calls / plan["calls"], axis=0)
    plan["calls"] = calls
    return plan.rename(index=lambda role: f"reward's {role}")
