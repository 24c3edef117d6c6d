"""Any OpenAI-compatible server: `vllm serve`, `transformers serve`, or replicas of one."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any

import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from geo_utils.models.base import (
    Completion,
    FatalError,
    Request,
    TransientError,
    UnusableError,
    redacted,
)

_REST_S = 20.0  # how long a replica that failed is left out


class OpenAIServer:
    """A model on one or more servers; each call goes to the replica with the fewest in flight.

    Attributes:
        model: Its id on the servers.
        base_urls: Addresses, each ending in `/v1`.
    """

    def __init__(self, model: str, base_urls: Sequence[str], timeout_s: float = 600.0) -> None:
        """Name the servers; connections are made by each event loop that calls.

        Raises:
            FatalError: No address is given.
        """
        if not base_urls:
            raise FatalError("an OpenAI-compatible server needs base_urls, such as "
                             "['http://127.0.0.1:8000/v1']")  # fmt: skip
        self.model = self.cache_id = model
        self.base_urls = [url.rstrip("/") for url in base_urls]
        self._timeout_s = timeout_s
        self._in_flight = dict.fromkeys(self.base_urls, 0)
        self._resting = dict.fromkeys(self.base_urls, 0.0)
        self._order = itertools.count()
        self._last_used = dict.fromkeys(self.base_urls, -1)
        # One client a loop: one that is shared breaks with "Event loop is closed".
        self._clients: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[str, AsyncOpenAI]
        ] = weakref.WeakKeyDictionary()

    async def complete(self, request: Request) -> Completion:
        """Answer one request; see `LanguageModel`."""
        url = self._replica()
        self._in_flight[url] += 1
        started = time.monotonic()
        try:
            response = await self._client(url).chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": request.prompt}],
                temperature=request.sampling.temperature,
                top_p=request.sampling.top_p,
                max_tokens=1 if request.choices else request.sampling.max_tokens,
                **_structure(request),
            )
        except asyncio.CancelledError:  # also the caller's timeout: it may be hanging
            self._resting[url] = time.monotonic() + _REST_S
            raise
        except openai.APIConnectionError as error:
            self._resting[url] = time.monotonic() + _REST_S
            kind = "timeout" if isinstance(error, openai.APITimeoutError) else "connection"
            raise TransientError(f"{url}: {error}", kind) from None
        except openai.APIStatusError as error:
            raise self._translated(error, url) from None
        except (openai.APIError, ValueError) as error:
            raise TransientError(f"{url}: unreadable answer: {error}", "unreadable") from None
        finally:
            self._in_flight[url] -= 1
        self._resting[url] = 0.0
        return _completion(response, request, time.monotonic() - started)

    async def probe(self) -> None:
        """Ask every server for its models; one that answers with ours is enough."""
        wrong = []
        for url in self.base_urls:
            try:
                names = [m.id async for m in self._client(url).models.list()]
            except openai.AuthenticationError as error:
                raise FatalError(redacted(f"{url} refuses the key: {error.message}")) from None
            except openai.APIError as error:
                self._resting[url] = time.monotonic() + _REST_S
                wrong.append(f"{url}: {type(error).__name__}")
                continue
            if names and self.model not in names:
                raise FatalError(f"{url} does not serve {self.model!r} but {', '.join(names)}")
        if len(wrong) == len(self.base_urls):
            raise FatalError(f"no server answers ({'; '.join(wrong)}); is it up?")

    async def close(self) -> None:
        """Close the connections of this event loop."""
        for client in self._clients.pop(asyncio.get_running_loop(), {}).values():
            await client.close()

    def _replica(self) -> str:
        """Choose the replica with the fewest calls in flight, the longest unused among equals."""
        now = time.monotonic()
        awake = [url for url in self.base_urls if self._resting[url] <= now] or self.base_urls
        chosen = min(awake, key=lambda url: (self._in_flight[url], self._last_used[url]))
        self._last_used[chosen] = next(self._order)
        return chosen

    def _client(self, url: str) -> AsyncOpenAI:
        clients = self._clients.setdefault(asyncio.get_running_loop(), {})
        if url not in clients:
            clients[url] = AsyncOpenAI(
                base_url=url,
                api_key=os.environ.get("OPENAI_API_KEY") or "none",
                max_retries=0,
                timeout=self._timeout_s,
                http_client=DefaultAioHttpClient(),
            )
        return clients[url]

    def _translated(self, error: openai.APIStatusError, url: str) -> Exception:
        code = error.status_code
        said = redacted(f"{url}: {code} {error.message}")
        if code >= 500:
            self._resting[url] = time.monotonic() + _REST_S
        if code in (401, 403):
            return FatalError(f"the key is refused: {said}")
        if code == 404:
            return FatalError(f"{self.model!r} is not served: {said}")
        if code in (408, 409, 429) or code >= 500:
            asked = error.response.headers.get("Retry-After", "")
            wait = float(asked) if asked.replace(".", "", 1).isdigit() else None
            return TransientError(said, str(code), wait)
        return UnusableError(said, str(code))


def _structure(request: Request) -> dict[str, Any]:
    """Return the fields that ask for a schema or for one of several words with probabilities."""
    if request.choices:
        structured = {"structured_outputs": {"choice": list(request.choices)}}
        return {"logprobs": True, "top_logprobs": 20, "extra_body": structured}
    if request.schema:
        schema = {"name": "answer", "schema": request.schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


def _completion(response: Any, request: Request, latency_s: float) -> Completion:
    if not getattr(response, "choices", None):
        raise UnusableError("no choice in the answer", "empty", again=True)
    choice, used = response.choices[0], response.usage
    details = getattr(used, "prompt_tokens_details", None)
    logprobs = None
    if request.choices and choice.logprobs and choice.logprobs.content:
        found = {t.token.strip().lower(): t.logprob for t in
                 reversed(choice.logprobs.content[0].top_logprobs)}  # fmt: skip
        logprobs = {c: found[c.lower()] for c in request.choices if c.lower() in found}
    completion = Completion(
        text=choice.message.content or "",
        tokens_in=getattr(used, "prompt_tokens", 0) or 0,
        tokens_out=getattr(used, "completion_tokens", 0) or 0,
        tokens_cached=getattr(details, "cached_tokens", 0) or 0,
        finish_reason="length" if choice.finish_reason == "length" else "stop",
        latency_s=latency_s,
        logprobs=logprobs or None,
        served_by=response.model or "",
    )
    if choice.finish_reason == "content_filter":
        said = "answer blocked by the server's filter"
        raise UnusableError(said, "blocked", counts=completion if used else None)
    return completion
