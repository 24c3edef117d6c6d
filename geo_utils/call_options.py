"""How models are called: limits, deadlines, budget and prices."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class PriceOptions(BaseModel):
    """US dollars per million tokens of prompt and answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_in: Annotated[float, Field(ge=0)]
    tokens_out: Annotated[float, Field(ge=0)]


class CallOptions(BaseModel):
    """How models are called; see `models.caller.Policy` and `models.limits.RateLimit`.

    Attributes:
        max_calls: Most requests that the run may send.
        max_cost: Most US dollars that the run may spend.
        prices: Prices by model id, over the shipped table.
        apart: Ask services from a process of its own, which leaves this one to a training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    timeout_s: Annotated[float, Field(gt=0)] = 90.0
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    max_tries: Annotated[int, Field(ge=1)] = 8
    max_retries: Annotated[int, Field(ge=0)] = 5_000
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    max_calls: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_cost: Annotated[float, Field(gt=0, strict=True)] | None = None
    prices: dict[str, PriceOptions] = {}
    apart: Annotated[bool, Field(strict=True)] = False
