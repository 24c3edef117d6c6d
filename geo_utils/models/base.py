"""What a language model is asked, what it answers, and how it can fail."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Final, Protocol
from urllib.parse import quote, quote_plus

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn; None for what nobody asked for.

    Attributes:
        temperature: 0 for the likeliest tokens.
        max_tokens: Longest completion in tokens, beside the thoughts that were asked for.
        top_p: Probability mass that tokens are drawn from.
        top_k: How many of the likeliest tokens are drawn from; 0 for all.
        repetition_penalty: Divides the scores of tokens that are there already; 1 for none.
        thinking: `off`, a level's name, or the most tokens of thought.
    """

    temperature: float | None = 0.7
    max_tokens: int = 2048
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    thinking: str | int | None = None

    @property
    def thoughts(self) -> int:
        """Most tokens of thought, where a number was asked for."""
        return self.thinking if isinstance(self.thinking, int) else 0


TOKENS = "a number of tokens"
# What leaves the model's own distribution as it is.
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
SERVICE_DEFAULT = "the service's default"


@dataclass(frozen=True)
class Takes:
    """Which sampling parameters a model takes; what it does not is the service's own default.

    Attributes:
        fields: Names of `Sampling`'s, but for `max_tokens` and `thinking`.
        thinking: What `thinking` may be, the least first; empty if nothing can be said of it.
    """

    fields: frozenset[str] = frozenset(_NEUTRAL)
    thinking: tuple[str, ...] = ("off", TOKENS)

    def sent(self, sampling: Sampling) -> dict[str, Any]:
        """Return every parameter that is sent: as asked for, else the neutral or least value."""
        asked = {name: getattr(sampling, name) for name in _NEUTRAL if name in self.fields}
        found = {name: _NEUTRAL[name] if v is None else v for name, v in asked.items()}
        if self.thinking and (sampling.thinking is not None or self.thinking[0] != TOKENS):
            found["thinking"] = self.thinking[0] if sampling.thinking is None else sampling.thinking
        return found

    def told(self, sampling: Sampling) -> dict[str, Any]:
        """Return what a model's completions are drawn by, for the manifest."""
        unsaid = dict.fromkeys((*_NEUTRAL, "thinking"), SERVICE_DEFAULT)
        return unsaid | self.sent(sampling) | {"max_tokens": sampling.max_tokens}

    def problem(self, sampling: Sampling) -> str | None:
        """Say which parameter that was asked for the model does not take, or None."""
        for name in _NEUTRAL:
            if getattr(sampling, name) is not None and name not in self.fields:
                return f"{name}={getattr(sampling, name)!r}: it takes none; set it to null"
        asked = sampling.thinking
        if asked is None or (TOKENS if isinstance(asked, int) else asked) in self.thinking:
            return None
        instead = f"choose {', '.join(self.thinking)}, or" if self.thinking else "it takes none;"
        return f"thinking={asked!r}: {instead} set it to null for the least it can do"


EMBEDDER: Final = "embedder"


@dataclass(frozen=True)
class Request:
    """One question to a language model.

    Attributes:
        role: `engine`, `judge`, `rewriter`, `extractor`, or `EMBEDDER`, whose answer is the
            prompt's vector, a JSON list; usage is counted by it.
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
        tokens_thought: Tokens of the answer that are thoughts, where the service tells.
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
    tokens_thought: int = 0
    finish_reason: str = "stop"
    latency_s: float = 0.0
    logprobs: dict[str, float] | None = None
    served_by: str = ""


class Price(BaseModel):
    """US dollars per million tokens of prompt and answer, thoughts included.

    What the service had cached is charged in full, so that an estimate is never too low.

    Attributes:
        tokens_in: Of the prompt.
        tokens_out: Of the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tokens_in: Annotated[float, Field(ge=0)]
    tokens_out: Annotated[float, Field(ge=0)]

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Return US dollars."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


class LanguageModel(Protocol):
    """Anything that completes prompts.

    Attributes:
        model: Its id, by which it is priced.
        cache_id: Its id in cache keys: as `model`, but another one for a stand-in's address.
        takes: The sampling parameters that it takes; of a server, known from `probe` on.
    """

    model: str
    cache_id: str
    takes: Takes

    async def complete(self, request: Request) -> Completion:
        """Answer one request.

        Raises:
            TransientError: Worth another try.
            UnusableError: Answered, but with nothing that can be used.
            FatalError: No call can succeed.
        """

    async def probe(self) -> None:
        """Check, before a run spends money, that the model is there and may be used.

        Raises:
            FatalError: It is not; the message says what is.
        """

    async def close(self) -> None:
        """Release connections and memory."""


class _ServiceError(Exception):
    """An error whose message may quote a service; what may be a secret is taken out of it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_without_credentials(message))


class ModelError(_ServiceError):
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


class FatalError(_ServiceError):
    """No call of this run can succeed: refused key, unknown model. Stops the run."""


# A name that ends in one of these words, or in one and a number or "OLD" behind it; any API key.
_SECRET_NAME = re.compile(
    r"API_?KEY|(?:KEY|TOKEN|SECRET|PASS(?:WORD|WD|PHRASE)?|CREDENTIAL|_PWD?|_PAT|_AUTH)S?\d?(?:_\w{1,3})?$",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"(?<=://)[^/\s]{1,1000}@")
# In messages also what looks like a key or a password, by its name, its form or its place.
_CREDENTIALS = (
    (
        re.compile(r"(?s)-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END[^-]{0,60}-----|\Z)"),
        "[key]",
    ),
    (
        re.compile(
            r"((?:\b(?:bearer|basic)[\s:]{1,9}|(?:(?:api|secret|private|access|account|"
            r"subscription)[ _-]?key|credential|token|secret|cookie|passphrase|passw(?:or)?d|"
            r"\bpass|pwd|[?&;{][\"']?key|[?&]code|\bauth(?:orization)?|\bsig"
            r"(?:nature)?)(?:[\"']?\s?[=:]\s?[\"']?|\s(?:provided:?\s|is\s)?(?=[^\s:=]{0,99}[a-z])))"
            r"(?:(?:bearer|basic|token)\s)?)"
            r"(?=[^\s\"'&,;<>]{0,99}\d)[^\s\"'&,;<>]{8,}",
            re.IGNORECASE,
        ),
        r"\1[secret]",
    ),
    (
        re.compile(
            r"\b(?:[spr]k[-_][\w-]{16,}|AIza[\w-]{20,}|(?:hf|gh[a-z]|github_pat)_\w{16,}|"
            r"(?:nvapi|glpat|xox[a-z])-[\w-]{16,}|A[KS]IA[\dA-Z]{12,}|eyJ[\w-]{10,300}\.[\w.-]{6,}|"
            r"[a-z]{1,8}\d{0,2}[-_.](?:\w{1,6}[-_])?(?=[a-zA-Z]{0,99}\d)[a-zA-Z\d]{20,})"
        ),
        "[key]",
    ),
    (
        re.compile(
            r"(?:(?<=://)[^\s/@:]{1,99}:[^\s@]{1,400}|\b[\w.+-]{1,64}:[^\s@/]{3,400})@(?=[\w\[])"
        ),
        "",
    ),
)


def redacted(text: str, longest: int = 300) -> str:
    """Return a service's message without what may be a secret, and no longer than that."""
    return _without_credentials(text[: longest + 5_000])[:longest]


def without_secrets(text: str) -> str:
    """Return a text without the environment's keys and passwords, and those in addresses.

    They are found in any case, and as addresses, JSON, HTML and base64 write them.
    """
    secret = filter(_names_a_secret, os.environ)
    lowered = text.lower()
    for spelt, name in _spellings(tuple((os.environ.get(n, "").strip(), n) for n in secret)):
        if spelt in lowered:
            text = re.sub(re.escape(spelt), f"[{name}]", text, flags=re.IGNORECASE)
    return _LOGIN.sub("", text)


@lru_cache(maxsize=1024)
def _names_a_secret(variable: str) -> bool:
    return bool(_SECRET_NAME.search(variable))


def _without_credentials(text: str) -> str:
    text = without_secrets(text)
    for credentials, instead in _CREDENTIALS:
        text = credentials.sub(instead, text)
    return text


@lru_cache(maxsize=16)
def _spellings(named: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Return each way to write a secret, in lower case, with its name; the longest come first."""
    found: set[tuple[str, str]] = set()
    for value, name in named:
        if len(value) >= 16 or (len(value) >= 8 and re.search(r"\d", value)):  # and no plain word
            inside = json.dumps(value)[1:-1]
            plain = (value, inside, inside.replace("/", "\\/"), html.escape(value))
            coded = base64.b64encode(value.encode()).decode().rstrip("=")
            spelt = (*plain, quote(value), quote(value, safe=""), quote_plus(value), coded)
            found |= {(one.lower(), name) for one in spelt}
    return sorted(found, key=lambda each: (-len(each[0]), each))
