"""What a run's calls use and cost, and the budget that ends them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.models.base import Completion, Price, Request
from geo_utils.models.known import MODELS
from geo_utils.runs import RunInterrupted


def price_of(model: str, overrides: Mapping[str, Price] | None = None) -> Price | None:
    """Return a model's price, or None if it is unknown; unknown is never free."""
    known = MODELS.get(model)
    return (overrides or {}).get(model) or (known.price if known else None)


CHARS_PER_TOKEN = 4  # of English prose, for estimates before an answer is there


class BudgetReached(RunInterrupted):
    """The run has made or spent what it was allowed to; answers so far are kept."""


_NUMBERS = ("tokens_in", "tokens_out", "tokens_cached", "latency_s")


def _is_call(row: Mapping[str, Any]) -> bool:
    """Tell whether a ledger's row is a call as `Usage.settle` books it."""
    texts, numbers = ["role", "model"], []
    if "tokens_in" in row:
        texts, numbers = [*texts, "served_by"], [row.get(name) for name in _NUMBERS]
    return (
        all(isinstance(row.get(name), str) for name in texts)
        and isinstance(row.get("failure", 0), str | None)
        and all(isinstance(n, int | float) and 0 <= n < 1e15 for n in numbers)
    )


def estimated_tokens(request: Request) -> int:
    """Return about how many tokens a request's prompt has."""
    return len(request.prompt) // CHARS_PER_TOKEN + 1


@dataclass
class RoleUsage:
    """Counts of one role; `calls` are requests that were sent, each try counted."""

    model: str = ""
    name: str = ""
    calls: int = 0
    answered: int = 0
    cached: int = 0
    retries: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    latencies_s: list[float] = field(default_factory=list)


class Usage:
    """Usage of all roles of a run and its budget; shared by its callers, on the one event loop.

    Attributes:
        max_calls: Most requests that may be sent; None for no limit.
        max_cost: Most US dollars that may be spent; None for no limit.
        roles: Counts by role.
        served_by: What the models called themselves.
    """

    def __init__(
        self,
        max_calls: int | None = None,
        max_cost: float | None = None,
        prices: Mapping[str, Price] | None = None,
        ledger: Path | None = None,
    ) -> None:
        """Start with what the ledger holds, else at zero.

        Args:
            max_calls: Most requests that may be sent.
            max_cost: Most US dollars that may be spent.
            prices: By model, over the shipped table.
            ledger: File of the run with a line a call, which all starts of the run add to: a
                budget is the run's, not the start's.
        """
        self.max_calls, self.max_cost, self._prices = max_calls, max_cost, prices
        self.roles: dict[str, RoleUsage] = {}
        self.served_by: set[str] = set()
        self._calls, self._spent, self._reserved = 0, 0.0, 0.0
        self._ledger = ledger
        for row in read_jsonl(ledger) if ledger else ():
            if _is_call(row):
                self._book(row)
                self._calls += 1

    @property
    def spent(self) -> float:
        """US dollars that all starts of the run have spent, as far as prices are known."""
        return self._spent

    def role(self, name: str, model: str) -> RoleUsage:
        """Return a role's counts, for the caller to add to."""
        return self.roles.setdefault(name, RoleUsage(model, name))

    def reserve(self, model: str, request: Request) -> float | None:
        """Take one call out of the budget before it is sent.

        Returns:
            The dollars set aside; None while calls in flight hold so much of the budget that it
            has to be waited for what they do not use.

        Raises:
            BudgetReached: The call would go over a limit, whatever comes of those in flight.
        """
        price = price_of(model, self._prices)
        # The longest answer allowed; what it does not use is given back when it is there.
        longest = request.sampling.max_tokens + request.sampling.thoughts
        cost = price.cost(estimated_tokens(request), longest) if price else 0.0
        if self.max_calls is not None and self._calls >= self.max_calls:
            raise BudgetReached(
                f"max_calls={self.max_calls} is reached; all answers are kept. Raise it and "
                "run again to go on"
            )
        if self.max_cost is not None:
            if price is None:
                raise BudgetReached(
                    f"max_cost={self.max_cost} cannot be kept: the price of {model!r} is "
                    "unknown. Give it in prices, or set max_calls instead"
                )
            if self._spent + cost > self.max_cost:
                raise BudgetReached(
                    f"max_cost={self.max_cost} is reached ({self._spent:.4f} spent, the next "
                    f"call may cost {cost:.4f}); all answers are kept. Raise it and run again "
                    "to go on"
                )
            if self._spent + self._reserved + cost > self.max_cost:
                return None
        self._calls += 1
        self._reserved += cost
        return cost

    def settle(
        self,
        role: RoleUsage,
        reserved: float,
        completion: Completion | None,
        failure: str | None,
        key: str = "",
    ) -> None:
        """Book what became of a call: its completion, or the kind of its failure and its key.

        Raises:
            OSError: The ledger cannot be written, as on a full disk; the call is counted.
        """
        self._reserved -= reserved
        row: dict[str, Any] = {"role": role.name, "model": role.model, "failure": failure}
        row |= {"key": key} if failure else {}
        if completion is not None:
            row |= {name: getattr(completion, name) for name in (*_NUMBERS, "served_by")}
        self._book(row)
        if self._ledger is not None:
            append_jsonl(self._ledger, [row])

    def _book(self, row: Mapping[str, Any]) -> None:
        """Add one call, of now or from the ledger."""
        role, failure = self.role(row["role"], row["model"]), row["failure"]
        role.calls += 1
        if failure is not None:
            role.failures[failure] += 1
        if "tokens_in" not in row:
            return
        role.answered += failure is None
        role.tokens_in += row["tokens_in"]
        role.tokens_out += row["tokens_out"]
        role.tokens_cached += row["tokens_cached"]
        role.latencies_s.append(row["latency_s"])
        self.served_by.add(row["served_by"])
        if price := price_of(role.model, self._prices):
            self._spent += price.cost(row["tokens_in"], row["tokens_out"])

    def count_cached(self, role: RoleUsage, completion: Completion) -> None:
        """Book an answer that needed no call."""
        role.cached += 1
        self.served_by.add(completion.served_by)

    def report(self) -> dict[str, Any]:
        """Return the counts by role for the manifest; unknown costs are None."""
        return {name: self._row(role) for name, role in sorted(self.roles.items())}

    def _row(self, role: RoleUsage) -> dict[str, Any]:
        row = vars(role) | {"failures": dict(role.failures)}
        took, price = row.pop("latencies_s"), price_of(role.model, self._prices)
        del row["name"]
        for name, share in (("latency_p50_s", 50), ("latency_p95_s", 95)):
            row[name] = round(float(np.percentile(took, share)), 4) if took else None
        return row | {"cost_usd": price and price.cost(role.tokens_in, role.tokens_out)}
