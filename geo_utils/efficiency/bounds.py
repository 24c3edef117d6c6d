"""The least time that a step could take, from the measured parts of the step itself.

A step has these parts, in seconds:

- S, weight sync, and G, generation of the whole batch;
- R, reward of the whole batch, and L, the least that one completion's reward takes;
- O, old log-probabilities: they need the completions and no reward;
- T, everything the trainer does with the batch, O among it.

All bounds keep the parts as long as they were measured, so that a step can go below them only by
making a part itself shorter; and they take it that a GPU does one thing at a time, so that parts
on one GPU add up. A measurement below its bound shows where that does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.efficiency.rows import (
    TRAIN_PHASES,
    compared,
    each,
    laid_out,
    numbers,
    of_work,
    sentence,
    source,
)

Shared = Literal["nothing", "policy", "trainer"]
# `fused` leaves a pass out and overlaps nothing.
REGIME = {
    "stock": "synchronous",
    "fused": "synchronous",
    "early": "streaming",
    "ahead": "ahead",
}


@dataclass(frozen=True)
class Parts:
    """Seconds of the parts of a step; see the module.

    Attributes:
        sync: S.
        generation: G.
        reward: R.
        one_reward: L.
        old: O.
        train: T.
    """

    sync: float
    generation: float
    reward: float
    one_reward: float
    old: float
    train: float


def reward_floor(row: Any, latency_s: float | None = None, parallel: bool | None = None) -> float:
    """Return the least seconds that a batch's rewards take at a stated latency.

    That is the latency where all are asked for at once, and the sum of all where one follows the
    other. NaN where the reward has no stated latency: a model of this machine's, the real
    service, or a reward that asks nothing.

    Args:
        row: A row of `rows.table_of`.
        latency_s: Another latency than the row's.
        parallel: Whether all are asked for at once, where not as the row's.
    """
    if row.reward != "gemini":
        return np.nan
    latency: float = row.reward_latency_s if latency_s is None else latency_s
    at_once = row.parallel if parallel is None else parallel
    return latency if at_once else latency * row.completions


def parts(row: Any, latency_s: float | None = None, parallel: bool | None = None) -> Parts:
    """Return the parts of a measured step.

    The reward's part is its floor where the latency is stated. Else it is the time in which
    engine or judge were asked, and without that the reward's phase. A single completion of a
    batch whose reward has no stated latency takes at least its share of the batch.

    Args:
        row: A row with phases.
        latency_s: Take this latency of the reward instead of the row's own.
        parallel: Take all rewards as asked for at once, or one by one.
    """
    phases = row.phases | row.background  # there, the main thread shows only the wait
    floor = reward_floor(row, latency_s, parallel)
    asked = np.nan_to_num(row.engine_s + np.nan_to_num(row.judge_s))
    reward = (asked or phases.get("reward", 0.0)) if np.isnan(floor) else floor
    latency = row.reward_latency_s if latency_s is None else latency_s
    return Parts(
        sync=phases.get("weight sync", 0.0),
        generation=phases.get("generation", 0.0),
        reward=reward,
        one_reward=reward / row.completions if np.isnan(floor) else latency,
        old=phases.get("old log-probabilities", 0.0),
        train=sum(phases.get(name, 0.0) for name in TRAIN_PHASES),
    )


def synchronous(p: Parts) -> float:
    """Return S + G + R + T: nothing overlaps."""
    return p.sync + p.generation + p.reward + p.train


def streaming(p: Parts, shares: Shared = "nothing") -> float:
    """Return the least on-policy step when a reward begins as its completion is written.

    The batch has to be written with the new weights (S + G) before it is trained on. Rewards can
    be worked out meanwhile, but the last completion's begins only when it is written: after G
    there remain max(R - G, L) of them. The old log-probabilities fit into that wait; the rest of
    the training needs every reward:

        S + G + max(max(R - G, L), O) + (T - O)

    That much is hidden only if the other completions end early enough. Where all have the same
    length they end together, and a parallel reward hides nothing but O.

    Args:
        p: The parts.
        shares: Whose GPU the engine shares: the policy's, so that rewards begin after G; or the
            trainer's as well, so that nothing overlaps.
    """
    if shares == "trainer":
        return synchronous(p)
    tail = p.reward if shares == "policy" else max(p.reward - p.generation, p.one_reward)
    return p.sync + p.generation + max(tail, p.old) + (p.train - p.old)


def ahead(p: Parts, row: Any, parallel: bool | None = None) -> float:
    """Return the least step at a staleness of one: batch k+1 is written while k is trained on.

    Two things bound it. What does one thing at a time is busy for all its parts every step:

    - policy on the trainer's GPU: S + G + T there;
    - policy on a server: S + T on the trainer's GPU and S + G on the server's;
    - a model as engine: R on its GPU; where it shares a GPU, R is added there;
    - a service asked one by one: R. Asked in parallel, it is taken to have no limit.

    And a batch has a way to go: it is written with the weights of the batch two before it, judged
    and trained on, so two steps hold S + G + reward + T one after the other. With rewards begun
    early that way is the streaming bound, and half of it bounds the step. The reward is hidden
    whole until that half is the largest.
    """
    shares, model_engine = engine_shares(row), row.reward.startswith("qwen")
    busy = [p.sync + p.train, p.sync + p.generation]
    if row.policy != "server" or row.gpus <= 1:
        busy = [p.sync + p.generation + p.train]
    if shares != "nothing":
        busy[-1] += p.reward
    elif model_engine or not (row.parallel if parallel is None else parallel):
        busy.append(p.reward)
    return max(*busy, streaming(p, shares) / 2)


def all_bounds(p: Parts, row: Any, parallel: bool | None = None) -> dict[str, float]:
    """Return the bound under each regime for parts on a row's placement."""
    return {
        "synchronous": synchronous(p),
        "streaming": streaming(p, engine_shares(row)),
        "ahead": ahead(p, row, parallel),
    }


def bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the least seconds per step under each regime, and the measured step beside its own.

    One step ahead, two batches are at a model's engine at once, and the time of each holds the
    other's. What one costs is then that of the same sitting's row in TRL's order, if there is one.

    Args:
        rows: As `rows.table_of`; all measured.

    Returns:
        With the index of the rows: `synchronous`, every part after the other; `streaming`, on
        policy, rewards begun as completions are written; `ahead`, one step off policy, the next
        batch generated and judged meanwhile; `own`, the one for the row's schedule; `ratio`, the
        measured step over `own`, NaN where that is nothing but the sum of the row's own phases;
        `reward_ratio`, the reward's phase over its floor, where it is waited for and has a stated
        latency, else NaN.
    """

    def key(row: Any) -> tuple[Any, ...]:
        return row.work, row.policy, row.reward, row.gpus, row.sitting

    found = []
    in_order = {key(row): row for row in each(rows) if row.schedule == "stock"}
    for row in each(rows):
        if row.schedule == "ahead" and row.reward.startswith("qwen") and key(row) in in_order:
            one = in_order[key(row)]
            row = row._replace(engine_s=one.engine_s, judge_s=one.judge_s)
        least = all_bounds(parts(row), row)
        own, floor = least[REGIME[row.schedule]], reward_floor(row)
        alone = REGIME[row.schedule] == "synchronous"
        waited = alone and floor > 0
        found.append(
            {
                **least,
                "own": own,
                "ratio": row.typical_s / own if own and not alone else np.nan,
                "reward_ratio": row.phases.get("reward", 0.0) / floor if waited else np.nan,
            }
        )
    columns = ["synchronous", "streaming", "ahead", "own", "ratio", "reward_ratio"]
    return pd.DataFrame(found, columns=columns, index=rows.index, dtype=float)


def predicted_step(row: Any, latency_s: float, parallel: bool | None = None) -> float:
    """Predict a row's step time at another latency of its reward, or asked in another way.

    It is the bound of the row's schedule at that latency, and what the measurement took above its
    own bound. A row whose reward has no stated latency keeps its measured time.
    """
    seconds: float = row.step_s
    if np.isnan(reward_floor(row)):
        return seconds
    regime = REGIME[row.schedule]
    then = all_bounds(parts(row, latency_s, parallel), row, parallel)[regime]
    return seconds + then - all_bounds(parts(row), row)[regime]


def engine_shares(row: Any) -> Shared:
    """Return whose GPU the engine shares.

    A row says how many GPUs it held: with fewer than its roles, the engine is the one that
    shares, with the policy, wherever that is.
    """
    server = row.policy == "server"
    if not row.reward.startswith("qwen") or row.gpus >= 2 + server:
        return "nothing"
    return "policy" if server and row.gpus == 2 else "trainer"


def bound_table(results: pd.DataFrame, most: int | None = None) -> Styler:
    """Put each measured step beside the least that its own parts allow.

    Args:
        results: Put together by `rows.pooled`.
        most: Show so many rows of the main work only, for a slide; see `rows.compared`.
    """
    shown = results[results["measured"]] if most is None else compared(of_work(results), most)
    least = bounds(shown)
    table = pd.DataFrame(
        {
            "setting": shown["label"],
            "work": shown["amount"],
            "schedule": shown["schedule"],
            "s per step": shown["took"],
            "synchronous": numbers(least["synchronous"]),
            "streaming": numbers(least["streaming"]),
            "one step ahead": numbers(least["ahead"]),
            "measured / bound": numbers(least["ratio"]),
            "reward / floor": numbers(least["reward_ratio"]),
            "n": shown["n"],
        }
    )
    caption = (
        "Least seconds per step by the measured parts: every part after the other; rewards begun "
        "as completions are written (on policy); the next batch written meanwhile (one step off). "
        "Measured / bound: over that of its own schedule, where that is not simply the sum of the "
        f"row's phases. {sentence(source(results))}."
    )
    return laid_out(table if most is None else table.drop(columns="work"), caption)
