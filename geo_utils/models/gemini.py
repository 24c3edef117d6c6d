"""Gemini through google-genai, asynchronous over aiohttp.

Tested against the look-alike (`geo simulate-gemini`); the real service was never asked. Whether it
bills what it blocks is not known; a budget counts it.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

import aiohttp
from google import genai
from google.genai import errors, types

from geo_utils.models.base import (
    Completion,
    FatalError,
    Request,
    TransientError,
    UnusableError,
    redacted,
)
from geo_utils.models.known import MODELS, gemini_takes
from geo_utils.models.replies import received, refusal, seconds, unreadable

KEY_NAMES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")


class Gemini:
    """A Gemini model; retries are the caller's, since the SDK ignores Retry-After.

    Attributes:
        model: Its id.
        cache_id: The id in cache keys; a service at another address is another model.
        takes: The sampling parameters that it takes.
    """

    def __init__(self, model: str, base_url: str | None = None) -> None:
        """Make a client; the key is read from the environment and kept nowhere else."""
        self.model, self.takes = model, gemini_takes(model)
        self._address = base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL")
        self.cache_id = f"{model} at another address" if self._address else model
        keys = (os.environ.get(name, "").strip() for name in KEY_NAMES)  # of a file: a line break
        self._key = next((key for key in keys if key), None)  # a plan is made without one
        options = types.HttpOptions(
            base_url=base_url,
            timeout=120_000,
            retry_options=types.HttpRetryOptions(attempts=1),  # else it sends twice, uncounted
            async_client_args={"allow_redirects": False},  # the key is for this address alone
        )
        self._client = genai.Client(api_key=self._key or "none", http_options=options)

    async def complete(self, request: Request) -> Completion:
        """Answer one request; see `LanguageModel`."""
        sent = self.takes.sent(request.sampling)
        config = types.GenerateContentConfig(
            temperature=sent.get("temperature"),
            top_p=sent.get("top_p"),
            thinking_config=_thinking(sent.get("thinking")),
            # Thoughts count.
            max_output_tokens=request.sampling.max_tokens + request.sampling.thoughts,
            seed=request.seed,
            response_mime_type="application/json" if request.schema else None,
            response_json_schema=request.schema,
        )
        started = time.monotonic()
        try:
            response = await self._client.aio.models.generate_content(
                model=self.model, contents=request.prompt, config=config
            )
        except errors.APIError as error:
            raise await self._translated(error) from None
        except TimeoutError:
            raise TransientError("the connection timed out", "timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            said = redacted(f"{type(error).__name__}: {error}")
            raise TransientError(said, "connection") from None
        except ValueError as error:  # a body that is no JSON, or of no known shape
            raise unreadable("a body", error) from None
        return _completion(response, time.monotonic() - started)

    async def probe(self) -> None:
        """Ask for the model's card, which costs nothing.

        Raises:
            FatalError: No key is set or it is refused, the model unknown, the service not there.
        """
        if self._key is None:
            raise FatalError(f"no Gemini key: set {KEY_NAMES[0]} in the environment")
        try:
            await self._client.aio.models.get(model=self.model)
        except errors.APIError as error:
            translated = await self._translated(error)
            if not isinstance(translated, TransientError):  # busy is not absent: calls will tell
                raise FatalError(str(translated)) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise FatalError(
                f"Gemini cannot be reached ({type(error).__name__}); is there "
                + (f"a service at {redacted(self._address)}?" if self._address else "a network?")
            ) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aio.aclose()

    async def _translated(self, error: errors.APIError) -> Exception:
        """Turn an API error into what the caller should do about it; never shows the key."""
        code, status = error.code, error.status or ""
        if code != 404:
            headers: Any = getattr(error.response, "headers", None) or {}
            found = re.search(r"'retryDelay': '([\d.]+)s'", str(error.details))
            wait = seconds(headers.get("Retry-After")) or seconds(found and found.group(1))
            return refusal(code, f"{code} {status}: {error.message or status}", wait)
        try:
            pages = await self._client.aio.models.list()
            names = [str(m.name).removeprefix("models/") async for m in pages]
        except (errors.APIError, aiohttp.ClientError, OSError, ValueError):
            names = []
        seen = ", ".join(sorted(n for n in names if "gemini" in n)) or "no list to be had"
        known = MODELS.get(self.model)
        became = f": {known.then}" if known and known.then else " (retired?)"
        return FatalError(f"model {self.model!r} is not served{became}; this key can see: {seen}")


def _thinking(asked: str | int | None) -> types.ThinkingConfig | None:
    if asked is None:
        return None
    if isinstance(asked, int) or asked == "off":
        return types.ThinkingConfig(thinking_budget=0 if asked == "off" else asked)
    return types.ThinkingConfig(thinking_level=types.ThinkingLevel(asked.upper()))


def _completion(response: types.GenerateContentResponse, latency_s: float) -> Completion:
    """Read a response; see `replies`."""
    blocked = response.prompt_feedback and response.prompt_feedback.block_reason
    used = response.usage_metadata or types.GenerateContentResponseUsageMetadata()
    reason = response.candidates[0].finish_reason if response.candidates else None
    # Whether what was blocked is billed is not known; the budget counts it, to be kept either way.
    what: dict[str, Any] = {
        "latency_s": latency_s,
        "tokens_in": used.prompt_token_count,
        "tokens_out": (used.candidates_token_count or 0) + (used.thoughts_token_count or 0),
        "tokens_cached": used.cached_content_token_count,
        "tokens_thought": used.thoughts_token_count,
        "served_by": response.model_version,
    }
    if response.candidates and not blocked:
        told = response.usage_metadata is not None
        return received(text=response.text, finish_reason=reason, counted=told, **what)
    counts = received(text="", finish_reason="stop", **what) if response.usage_metadata else None
    if blocked:
        raise UnusableError(f"prompt blocked: {blocked.value}", "blocked", counts=counts)
    raise UnusableError("no candidate in the answer", "empty", again=True, counts=counts)
