"""What a language model is asked, what it answers, and how it can fail."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

_THOUGHTS = re.compile(
    r"^\s*<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE
)
_OPEN_THOUGHTS = re.compile(r"^\s*<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn.

    Attributes:
        temperature: 0 for the likeliest tokens.
        max_tokens: Longest completion in tokens.
        top_p: Probability mass that tokens are drawn from.
    """

    temperature: float = 0.7
    max_tokens: int = 2048
    top_p: float = 1.0


@dataclass(frozen=True)
class Request:
    """One question to a language model.

    Attributes:
        role: `engine`, `judge`, `rewriter` or `extractor`; usage is counted by it.
        prompt: The user's message, complete.
        template: Hash of the prompt template it was made from.
        sampling: How the completion is drawn.
        schema: JSON schema of the answer, or None for text.
        choices: Allowed one-token answers whose probabilities are wanted, or empty.
        sample_index: Tells repeats of the same prompt apart.
        attempt: How many unusable answers came before; no part of the cache key.
        as_is: Take whatever comes, cut off or empty: a policy is judged by its first reply.
    """

    role: str
    prompt: str
    template: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    sample_index: int = 0
    attempt: int = 0
    as_is: bool = False

    @property
    def seed(self) -> int:
        """Seed for services that take one; another try draws anew."""
        return self.sample_index * 1000 + self.attempt


# How a plan's guess says that no model wrote it.
GUESSED = "guessed"


@dataclass(frozen=True)
class Completion:
    """What a language model answered.

    Attributes:
        text: The answer.
        parsed: The JSON value, where a schema was asked for.
        tokens_in: Tokens of the prompt.
        tokens_out: Tokens of the answer, thoughts included.
        tokens_cached: Tokens of the prompt that the service had cached.
        finish_reason: `stop`, `length`, the service's own word, or `GUESSED`.
        latency_s: Seconds from sending to receiving.
        logprobs: Log-probability of each allowed choice, where asked for and given.
        served_by: The model as the service names it; starts with `simulated` if it is a stand-in.
    """

    text: str
    parsed: Any = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    finish_reason: str = "stop"
    latency_s: float = 0.0
    logprobs: dict[str, float] | None = None
    served_by: str = ""


class LanguageModel(Protocol):
    """Anything that completes prompts.

    Attributes:
        model: Its id, by which it is priced.
        cache_id: Its id in cache keys: as `model`, but another one for a stand-in's address.
    """

    model: str
    cache_id: str

    async def complete(self, request: Request) -> Completion:
        """Answer one request.

        Raises:
            TransientError: Worth another try.
            UnusableError: Answered, but with nothing that can be used.
            FatalError: No call can succeed.
        """
        ...

    async def probe(self) -> None:
        """Check, before a run spends money, that the model is there and may be used.

        Raises:
            FatalError: It is not; the message says what is.
        """
        ...

    async def close(self) -> None:
        """Release connections and memory."""
        ...


class ModelError(Exception):
    """A completion that could not be had: an abstention; failures are counted by `kind`."""

    kind = "error"


class TransientError(ModelError):
    """Worth another try: busy, down, reset, timed out.

    Attributes:
        retry_after_s: How long the service asked to wait, if it did.
    """

    kind = "transient"

    def __init__(
        self, message: str, kind: str = "transient", retry_after_s: float | None = None
    ) -> None:
        """Describe the fault; `kind` is such as `429`, `500`, `timeout` or `reset`."""
        super().__init__(message)
        self.kind, self.retry_after_s = kind, retry_after_s


class UnusableError(ModelError):
    """The service answered, but with nothing that can be used; an abstention in the end.

    Attributes:
        again: Whether another try may do better.
        counts: The tokens that the service reports all the same; None if it reports none.
    """

    def __init__(
        self,
        message: str,
        kind: str = "unusable",
        again: bool = False,
        counts: Completion | None = None,
    ) -> None:
        """Describe what came; `kind` is such as `blocked`, `truncated`, `empty`, `unparsable`."""
        super().__init__(message)
        self.kind, self.again, self.counts = kind, again, counts


class FatalError(Exception):
    """No call of this run can succeed: refused key, unknown model. Stops the run."""


def usable(completion: Completion, request: Request) -> Completion:
    """Return a completion with its parsed value.

    Raises:
        UnusableError: It is cut off, empty, or has not the schema's shape.
    """
    if request.as_is:
        return completion
    if completion.finish_reason == "length" and not request.choices:
        raise UnusableError(f"cut off: {request.sampling}", "truncated", again=True)
    if request.choices and not completion.logprobs:
        raise UnusableError("the server gave no log-probabilities", "no_logprobs", again=True)
    if not completion.text.strip() and completion.logprobs is None:
        raise UnusableError("an empty answer", "empty", again=True)
    if request.schema is not None:
        return replace(completion, parsed=parse_json(completion.text, request.schema))
    return completion


def strip_thoughts(text: str) -> str:
    """Return an answer without the thinking block that it opens with, also an unclosed one."""
    bare = _THOUGHTS.sub("", text, count=1)
    return "" if _OPEN_THOUGHTS.match(bare) else bare.strip()


def redacted(text: str, longest: int = 300) -> str:
    """Return a service's message without the keys of the environment, which some echo."""
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(("_KEY", "_TOKEN", "_SECRET")):
            text = text.replace(value, f"[{name}]")
    return text[:longest]


def parse_json(text: str, schema: dict[str, Any]) -> Any:
    """Read the JSON value of an answer, also out of a fence or from between words.

    Args:
        text: The answer.
        schema: A schema of the kinds that the roles use: nested objects, arrays, strings with
            `enum`, numbers, booleans.

    Returns:
        The first value in the text that has the schema's shape.

    Raises:
        UnusableError: None has.
    """
    bare = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", strip_thoughts(text))
    starts = itertools.islice((m.start() for m in re.finditer(r"[\[{]", bare)), 50)
    decoder = json.JSONDecoder()
    problem = "no JSON"
    for start in starts:
        try:
            value, _ = decoder.raw_decode(bare, start)
        except (ValueError, RecursionError):
            continue
        wrong = _mismatch(value, schema)
        if wrong is None:
            return value
        problem = wrong
    raise UnusableError(f"{problem} in {text[:200]!r}", "unparsable", again=True)


def _mismatch(value: Any, schema: dict[str, Any]) -> str | None:
    """Say where a value departs from a schema, or None."""
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "number": (int, float),
        "integer": int, "boolean": bool,
    }  # fmt: skip
    expected = schema.get("type", "object")
    if not isinstance(value, kinds[expected]) or (
        isinstance(value, bool) and expected in ("number", "integer")
    ):
        return f"{type(value).__name__} instead of {expected}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{value!r} instead of one of {', '.join(schema['enum'])}"
    if expected == "object":
        for name in schema.get("required", ()):
            if name not in value:
                return f"{name} is missing"
        parts = [(value[n], s) for n, s in schema.get("properties", {}).items() if n in value]
    else:
        parts = [(item, schema["items"]) for item in value] if expected == "array" else []
    return next((wrong for part in parts if (wrong := _mismatch(*part))), None)
