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
from typing import Literal

from geo_utils.efficiency.measurements import TRAIN_PHASES, Measurement

Regime = Literal["synchronous", "streaming", "ahead"]
Shared = Literal["nothing", "policy", "trainer"]
# `fused` leaves a pass out and overlaps nothing.
REGIME: dict[str, Regime] = {
    "stock": "synchronous", "fused": "synchronous", "early": "streaming", "ahead": "ahead",
}  # fmt: skip


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


@dataclass(frozen=True)
class Bounds:
    """Least seconds a step under each regime, and the measured step beside its own.

    Attributes:
        synchronous: Every part after the other.
        streaming: On policy, rewards begun as completions are written.
        ahead: One step off policy: the next batch is generated and judged meanwhile.
        own: The one for the row's schedule.
        ratio: Measured step over `own`; None where that is nothing but the sum of the row's own
            phases.
        reward_ratio: Reward phase over its floor, where it is waited for and has a stated
            latency; else None.
    """

    synchronous: float
    streaming: float
    ahead: float
    own: float
    ratio: float | None
    reward_ratio: float | None


def reward_floor(
    row: Measurement, latency_s: float | None = None, parallel: bool | None = None
) -> float | None:
    """Return the least seconds that a batch's rewards take at a stated latency.

    That is the latency where all are asked for at once, and the sum of all where one follows the
    other. None where the reward has no stated latency: a model of this machine's, the real
    service, or a reward that asks nothing.

    Args:
        row: A measurement.
        latency_s: Another latency than the row's.
        parallel: Whether all are asked for at once, where not as the row's.
    """
    latency = row.reward_latency_s if latency_s is None else latency_s
    if row.reward != "gemini" or latency is None:
        return None
    at_once = row.parallel if parallel is None else parallel
    return latency if at_once else latency * (row.completions or 1)


def parts(row: Measurement, latency_s: float | None = None, parallel: bool | None = None) -> Parts:
    """Return the parts of a measured step.

    The reward's part is its floor where the latency is stated. Else it is the time in which
    engine or judge were asked, and without that the reward's phase. A single completion of a
    batch whose reward has no stated latency takes at least its share of the batch.

    Args:
        row: A measurement with phases.
        latency_s: Take this latency of the reward instead of the row's own.
        parallel: Take all rewards as asked for at once, or one by one.
    """
    floor = reward_floor(row, latency_s, parallel)
    asked = None if row.engine_s is None else row.engine_s + (row.judge_s or 0.0)
    reward = floor if floor is not None else (asked or row.part("reward"))
    latency = row.reward_latency_s if latency_s is None else latency_s
    share = reward / max(row.completions or 1, 1)
    return Parts(
        sync=row.part("weight sync"),
        generation=row.part("generation"),
        reward=reward,
        one_reward=share if floor is None or latency is None else latency,
        old=row.part("old log-probabilities"),
        train=sum(row.part(name) for name in TRAIN_PHASES),
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


def ahead(p: Parts, row: Measurement) -> float:
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
    shares = engine_shares(row)
    busy = [p.sync + p.train, p.sync + p.generation]
    if row.policy != "server" or row.gpus <= 1:
        busy = [p.sync + p.generation + p.train]
    if shares != "nothing":
        busy[-1] += p.reward
    elif _model_engine(row) or not row.parallel:
        busy.append(p.reward)
    return max(*busy, streaming(p, shares) / 2)


def bounds(row: Measurement) -> Bounds:
    """Return the bounds of a measured row."""
    p = parts(row)
    found = all_bounds(p, row)
    own = found[REGIME[row.schedule]]
    floor = reward_floor(row)
    alone = REGIME[row.schedule] == "synchronous"
    return Bounds(
        synchronous=found["synchronous"],
        streaming=found["streaming"],
        ahead=found["ahead"],
        own=own,
        ratio=row.typical_s / own if own and not alone else None,
        reward_ratio=(row.phases or {}).get("reward", 0.0) / floor if alone and floor else None,
    )


def all_bounds(p: Parts, row: Measurement) -> dict[Regime, float]:
    """Return the bound under each regime for parts on a row's placement."""
    return {
        "synchronous": synchronous(p),
        "streaming": streaming(p, engine_shares(row)),
        "ahead": ahead(p, row),
    }


def predicted_step(row: Measurement, latency_s: float, parallel: bool | None = None) -> float:
    """Predict a row's step time at another latency of its reward, or asked in another way.

    It is the bound of the row's schedule at that latency, and what the measurement took above its
    own bound. A row whose reward has no stated latency keeps its measured time.
    """
    if reward_floor(row) is None:
        return row.seconds
    regime = REGIME[row.schedule]
    asked = row if parallel is None else row.model_copy(update={"parallel": parallel})
    then = all_bounds(parts(row, latency_s, parallel), asked)[regime]
    return row.seconds + then - all_bounds(parts(row), row)[regime]


def _model_engine(row: Measurement) -> bool:
    return row.reward.startswith("qwen")


def engine_shares(row: Measurement) -> Shared:
    """Return whose GPU the engine shares.

    A row says how many GPUs it held: with fewer than its roles, the engine is the one that
    shares, with the policy, wherever that is.
    """
    server = row.policy == "server"
    if not _model_engine(row) or row.gpus >= 2 + server:
        return "nothing"
    return "policy" if server and row.gpus == 2 else "trainer"
