"""The least time that a step could take, from the measured parts of the step itself.

A step has these parts, in seconds:

- S, weight sync, and G, generation of the whole batch;
- R, reward of the whole batch, and L, the least that one completion's reward takes;
- O, old log-probabilities: they need the completions and no reward;
- T, everything the trainer does with the batch, O among it.

All bounds keep the parts as long as they were measured, so that a step can go below them only by
making a part itself shorter; and they take it that a GPU does one thing at a time, so that parts
on one GPU add up. A measurement below its bound shows where that does not hold.

`synchronous`: nothing overlaps.

    S + G + R + T

`streaming`: the least on-policy step when a reward begins as its completion is written. The batch
has to be written with the new weights (S + G) before it is trained on. Rewards can be worked out
meanwhile, but the last completion's begins only when it is written: after G there remain
max(R - G, L) of them. The old log-probabilities fit into that wait; the rest of the training needs
every reward:

    S + G + max(max(R - G, L), O) + (T - O)

That much is hidden only if the other completions end early enough. Where all have the same length
they end together, and a parallel reward hides nothing but O. An engine that shares the policy's
GPU begins after G, so that all of R remains; one that shares the trainer's overlaps nothing.

`ahead`: the least step at a staleness of one, where batch k+1 is written while k is trained on.
Two things bound it. What does one thing at a time is busy for all its parts every step:

- policy on the trainer's GPU: S + G + T there;
- policy on a server: S + T on the trainer's GPU and S + G on the server's;
- a model as engine: R on its GPU; where it shares a GPU, R is added there;
- a service asked one by one: R. Asked in parallel, it is taken to have no limit.

And a batch has a way to go: it is written with the weights of the batch two before it, judged and
trained on, so two steps hold S + G + reward + T one after the other. With rewards begun early that
way is the streaming bound, and half of it bounds the step. The reward is hidden whole until that
half is the largest.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.efficiency.rows import TRAIN_PHASES, each

# The bound of each schedule; `fused` leaves a pass out and overlaps nothing.
REGIME = {"stock": "synchronous", "fused": "synchronous", "early": "streaming", "ahead": "ahead"}


def least_step(row: Any, latency_s: Any = None, parallel: bool | None = None) -> dict[str, Any]:
    """Return the least seconds of a step with the parts of a measured one, under each regime.

    The reward of a service with a stated latency takes that latency where all are asked for at
    once, and the sum of all where one follows the other. Any other takes the time in which engine
    or judge were asked, without that the reward's phase; and one completion its share of it.

    Args:
        row: A row of `rows.table_of` with phases.
        latency_s: Another latency than the row's, where that is stated; also an array of them.
        parallel: Whether all are asked for at once, where not as the row's.

    Returns:
        `synchronous`, `streaming`, `ahead`, and `own`, the one of the row's schedule.
    """
    phases = row.phases | row.background  # there, the main thread shows only the wait
    sync, generation = phases.get("weight sync", 0.0), phases.get("generation", 0.0)
    old = phases.get("old log-probabilities", 0.0)
    train = sum(phases.get(name, 0.0) for name in TRAIN_PHASES)
    at_once = row.parallel if parallel is None else parallel
    if row.reward == "gemini" and row.reward_latency_s >= 0:
        one = row.reward_latency_s if latency_s is None else latency_s
        reward = one if at_once else one * row.completions
    else:
        asked = np.nan_to_num(row.engine_s + np.nan_to_num(row.judge_s))
        reward = asked or phases.get("reward", 0.0)
        one = reward / row.completions
    # A row says how many GPUs it held: with fewer than its roles, the engine is the one that
    # shares, with the policy, wherever that is.
    model, server = row.reward.startswith("qwen"), row.policy == "server"
    shares = model and row.gpus < 2 + server
    apart = server and row.gpus > 1

    synchronous = sync + generation + reward + train
    rest = reward if shares else np.maximum(reward - generation, one)
    streaming = sync + generation + np.maximum(rest, old) + (train - old)
    if shares and not apart:
        streaming = synchronous
    busy = [sync + train, sync + generation] if apart else [sync + generation + train]
    if shares:
        busy[-1] += reward
    elif model or not at_once:
        busy.append(reward)
    found = {
        "synchronous": synchronous,
        "streaming": streaming,
        "ahead": reduce(np.maximum, [*busy, streaming / 2]),
    }
    return found | {"own": found[REGIME[row.schedule]]}


def bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the least seconds per step under each regime, and the measured step beside its own.

    One step ahead, two batches are at a model's engine at once, and the time of each holds the
    other's. What one costs is then that of the same sitting's row in TRL's order, if there is one.

    Args:
        rows: As `rows.table_of`; all measured.

    Returns:
        With the index of the rows: as `least_step`; `ratio`, the measured step over `own`, NaN
        where that is nothing but the sum of the row's own phases.
    """
    same = ["work", "policy", "reward", "gpus", "sitting"]
    in_order = rows[rows["schedule"] == "stock"].drop_duplicates(same, keep="last")
    one = rows[same].merge(in_order, "left", on=same).set_axis(rows.index)
    doubled = ~rows["on_policy"] & rows["reward"].str.startswith("qwen") & one["setting"].notna()
    alone = {name: rows[name].mask(doubled, one[name]) for name in ("engine_s", "judge_s")}
    columns = ["synchronous", "streaming", "ahead", "own"]
    least = [least_step(row) for row in each(rows.assign(**alone))]
    found = pd.DataFrame(least, columns=columns, index=rows.index, dtype=float)
    hidden = rows["schedule"].isin(["early", "ahead"]) & found["own"].ne(0)
    return found.assign(ratio=(rows["typical_s"] / found["own"]).where(hidden))


def predicted_step(row: Any, latency_s: Any, parallel: bool | None = None) -> Any:
    """Predict a row's step time at another latency of its reward, or asked in another way.

    It is the bound of the row's schedule at that latency, and what the measurement took above its
    own bound. A row whose reward has no stated latency keeps its measured time.

    Args:
        row: As `least_step`.
        latency_s: Likewise.
        parallel: Likewise.
    """
    then = least_step(row, latency_s, parallel)["own"]
    return row.step_s + (then - least_step(row)["own"])
