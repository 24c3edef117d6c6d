"""What tokens cost. Prices change: the table is dated, and a run can override it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# As public price lists quoted https://ai.google.dev/gemini-api/docs/pricing (paid tier, text).
PRICES_AS_OF = "2026-05"


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens.

    Attributes:
        tokens_in: Prompt.
        tokens_out: Answer, thoughts included.
        tokens_cached: Prompt tokens that the service had cached; None to charge them in full,
            so that an estimate is never too low.
    """

    tokens_in: float
    tokens_out: float
    tokens_cached: float | None = None

    def cost(self, tokens_in: int, tokens_out: int, tokens_cached: int = 0) -> float:
        """Return US dollars."""
        cached = self.tokens_in if self.tokens_cached is None else self.tokens_cached
        fresh = tokens_in - tokens_cached
        return (
            fresh * self.tokens_in + tokens_cached * cached + tokens_out * self.tokens_out
        ) / 1e6


PRICES = {
    "gemini-2.5-flash-lite": Price(0.10, 0.40),
    "gemini-2.5-flash": Price(0.30, 2.50),
    "gemini-2.5-pro": Price(1.25, 10.0),
}


def price_of(model: str, overrides: Mapping[str, Price] | None = None) -> Price | None:
    """Return a model's price, or None if it is unknown; unknown is never free."""
    return {**PRICES, **(overrides or {})}.get(model)
