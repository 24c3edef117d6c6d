"""One completion of the policy and all that is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from geo_utils.corpus import Example, KeyPoint


@dataclass
class Rollout:
    """One completion and all that is known of it.

    Attributes:
        example: What it was written for.
        key_point: The point under study.
        reply: What the policy wrote.
        tokens: Its length.
        shown: How many units of the page the prompt held; None for all.
        page: The page that it stands for; None if it holds none, and `problem` says why.
        problem: Reason for a missing page.
        rewards: Value by component; empty on an abstention.
        abstention: Reason why it could not be scored.
        answer: The first answer that was had.
        verdict: The judge's word on it.
    """

    example: Example
    key_point: KeyPoint
    reply: str
    tokens: int
    shown: int | None = None
    page: str | None = None
    problem: str | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    abstention: str | None = None
    answer: str | None = None
    verdict: str | None = None


def shuffled(batch: Sequence[Rollout]) -> list[Rollout]:
    """Return for each rollout one of another query, the placebo's donor.

    The k-th rollout of a query gets the k-th of the next query, so that a group's rewards still
    vary, but by what other completions say.

    Raises:
        ValueError: The batch is for one query only.
    """
    by_query: dict[str, list[Rollout]] = {}
    for rollout in batch:
        by_query.setdefault(rollout.example.query_id, []).append(rollout)
    if len(by_query) < 2:
        raise ValueError("placebo: a batch needs completions for at least two queries")
    ids = list(by_query)
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    seen: Counter[str] = Counter()
    donors = []
    for rollout in batch:
        own = rollout.example.query_id
        others = by_query[following[own]]
        donors.append(others[seen[own] % len(others)])
        seen[own] += 1
    return donors
