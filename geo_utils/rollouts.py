"""One completion of the policy and all that is known of it."""

from __future__ import annotations

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


def shuffled_pages(batch: Sequence[Rollout]) -> list[str | None]:
    """Return for each rollout the page of another query's rollout: the placebo."""
    pages: list[str | None] = []
    for i, rollout in enumerate(batch):
        others = (batch[(i + j) % len(batch)] for j in range(1, len(batch)))
        other = next((o for o in others if o.example.query_id != rollout.example.query_id), None)
        if other is None:
            raise ValueError("placebo: a batch needs completions for at least two queries")
        pages.append(other.page)
    return pages
