"""What the calls of a run used and cost, by role, and the budget that ends it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.models.base import Completion, Request
from geo_utils.models.prices import Price, price_of
from geo_utils.runs import RunInterrupted

CHARS_PER_TOKEN = 4  # of English prose, for estimates before an answer is there


class BudgetReached(RunInterrupted):
    """The run has made or spent what it was allowed to; answers so far are kept."""


def _is_call(row: Mapping[str, Any]) -> bool:
    """Tell whether a ledger's row is a call as `Usage.settle` books it."""
    counted = "tokens_in" in row
    numbers = ("tokens_in", "tokens_out", "tokens_cached", "latency_s") if counted else ()
    texts = ("role", "model", "served_by") if counted else ("role", "model")
    failure = row.get("failure", 0)
    return (
        all(isinstance(row.get(name), str) for name in texts)
        and (failure is None or isinstance(failure, str))
        and all(isinstance(n := row.get(name), int | float) and 0 <= n < 1e15 for name in numbers)
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
    """Usage of all roles of a run and its budget; shared by its callers, safe over threads.

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
        self._lock = threading.Lock()
        self._calls, self._spent, self._reserved = 0, 0.0, 0.0
        self._ledger = ledger
        for row in read_jsonl(ledger) if ledger else ():
            if _is_call(row):
                self._book(row)
                self._calls += 1

    def role(self, name: str, model: str) -> RoleUsage:
        """Return a role's counts, for the caller to add to."""
        with self._lock:
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
        longest = request.sampling.max_tokens
        cost = price.cost(estimated_tokens(request), longest) if price else 0.0
        with self._lock:
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
        self, role: RoleUsage, reserved: float, completion: Completion | None, failure: str | None
    ) -> None:
        """Book what became of a call: its completion, or the kind of its failure.

        Raises:
            OSError: The ledger cannot be written, as on a full disk; the call is counted.
        """
        with self._lock:
            self._reserved -= reserved
            row: dict[str, Any] = {"role": role.name, "model": role.model, "failure": failure}
            if completion is not None:
                names = ("tokens_in", "tokens_out", "tokens_cached", "latency_s", "served_by")
                row |= {name: getattr(completion, name) for name in names}
            self._book(row)
            if self._ledger is not None:
                append_jsonl(self._ledger, [row])

    def _book(self, row: Mapping[str, Any]) -> None:
        """Add one call, of now or from the ledger."""
        role = self.roles.setdefault(row["role"], RoleUsage(row["model"], row["role"]))
        failure = row["failure"]
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
        price = price_of(role.model, self._prices)
        if price:
            self._spent += price.cost(row["tokens_in"], row["tokens_out"], row["tokens_cached"])

    def count_cached(self, role: RoleUsage, completion: Completion) -> None:
        """Book an answer that needed no call."""
        with self._lock:
            role.cached += 1
            self.served_by.add(completion.served_by)

    def report(self) -> dict[str, Any]:
        """Return the counts by role for the manifest; unknown costs are None."""
        with self._lock:
            return {name: self._row(role) for name, role in sorted(self.roles.items())}

    def _row(self, role: RoleUsage) -> dict[str, Any]:
        price = price_of(role.model, self._prices)
        cost = price and price.cost(role.tokens_in, role.tokens_out, role.tokens_cached)
        p50, p95 = np.percentile(role.latencies_s, (50, 95)) if role.latencies_s else (None, None)
        return {
            "model": role.model,
            "calls": role.calls,
            "answered": role.answered,
            "cached": role.cached,
            "retries": role.retries,
            "failures": dict(role.failures),
            "tokens_in": role.tokens_in,
            "tokens_out": role.tokens_out,
            "tokens_cached": role.tokens_cached,
            "latency_p50_s": None if p50 is None else round(float(p50), 4),
            "latency_p95_s": None if p95 is None else round(float(p95), 4),
            "cost_usd": cost,
        }
