"""What is known of hosted models: price, what they take, when they go, and what becomes of them.

Read on the day of `AS_OF` from https://ai.google.dev/gemini-api/docs (pricing, deprecations,
thinking, what's new) and https://docs.cloud.google.com/vertex-ai/generative-ai/docs/models.
Prices and dates change: a run can override a price, and `geo models check` asks the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from geo_utils.models.base import TOKENS, Price, Takes

AS_OF = date(2026, 11, 29)
# Of what needs a Gemini and names none: of the kind that the study used, takes a temperature, and
# is served until May 2027 at least.
DEFAULT_MODEL = "gemini-3.1-flash-lite"

_HEAT = frozenset({"temperature", "top_p"})  # top_k is fixed at 64
_LEVELS = ("minimal", "low", "medium", "high")
# Of a Gemini that is not in the table, by the beginning of its id.
_FAMILIES = {"gemini-2": Takes(_HEAT, ("off", TOKENS)), "": Takes(_HEAT, _LEVELS)}


@dataclass(frozen=True)
class Known:
    """A hosted model.

    Attributes:
        takes: The sampling parameters that it takes; it ignores or refuses others.
        price: Per million tokens; None where it is not known.
        then: What becomes of calls to it, and which model is nearest.
        retires: From when it is not served any more; None if no day is announced.
        gone: Whether it is not served any more.
    """

    takes: Takes
    price: Price | None = None
    then: str = ""
    retires: date | None = None
    gone: bool = False


_STUDY = Known(
    _FAMILIES["gemini-2"],
    then="its general release, gemini-2.5-flash-lite, had the same weights and answers older "
    f"accounts; else take {DEFAULT_MODEL}",
    gone=True,
)
MODELS = {
    "gemini-3.1-flash-lite": Known(
        Takes(_HEAT, _LEVELS),
        Price(tokens_in=0.25, tokens_out=1.50),
        "gemini-3.5-flash-lite is the next of its kind",
        date(2027, 5, 7),
    ),
    "gemini-3.5-flash-lite": Known(
        Takes(frozenset(), _LEVELS), Price(tokens_in=0.30, tokens_out=2.50)
    ),
    "gemini-3.6-flash": Known(Takes(frozenset(), _LEVELS), Price(tokens_in=1.50, tokens_out=7.50)),
    # Half of that until the end of 2026.
    "gemini-3.8-flash": Known(
        Takes(frozenset(), _LEVELS[1:]), Price(tokens_in=1.50, tokens_out=7.50)
    ),
    "gemini-3.5-flash": Known(
        Takes(frozenset(), _LEVELS),
        Price(tokens_in=1.50, tokens_out=9.00),
        "gemini-3.6-flash answers in its place",
        gone=True,
    ),
    "gemini-2.5-flash-lite": Known(
        _FAMILIES["gemini-2"],
        Price(tokens_in=0.10, tokens_out=0.40),
        f"accounts that are new get 404; {DEFAULT_MODEL} is nearest",
    ),
    "gemini-2.5-flash": Known(
        _FAMILIES["gemini-2"],
        Price(tokens_in=0.30, tokens_out=2.50),
        "gemini-3.5-flash-lite answers in its place, at its own price",
        date(2026, 12, 1),
    ),
    "gemini-2.5-pro": Known(
        Takes(_HEAT, (TOKENS,)),
        Price(tokens_in=1.25, tokens_out=10.0),
        "gemini-3.8-flash answers in its place, at its own price",
        date(2026, 12, 1),
    ),
    "gemini-2.5-flash-lite-preview": _STUDY,
    "gemini-2.5-flash-lite-preview-06-17": _STUDY,
    "gemini-2.5-flash-lite-preview-09-2025": _STUDY,
}


def gemini_takes(model: str) -> Takes:
    """Return which sampling parameters a Gemini takes; one that is not known, as its family."""
    if model in MODELS:
        return MODELS[model].takes
    return next(takes for begin, takes in _FAMILIES.items() if model.startswith(begin))


def retirement(model: str, today: date | None = None) -> str | None:
    """Say that a model is not served any more, or goes within a month; else None."""
    known, today = MODELS.get(model), today or date.today()
    if known is None or not (known.gone or known.retires):
        return None
    when = f"on {known.retires:%d %B %Y}" if known.retires else "some time ago"
    if known.gone or (known.retires and known.retires <= today):
        fate = f"was taken out of service {when}"
    elif known.retires and (known.retires - today).days <= 31:
        fate = f"will be taken out of service {when}"
    else:
        return None
    return f"{model} {fate}: {known.then} (known as of {AS_OF:%d %B %Y})"
