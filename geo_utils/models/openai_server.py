"""Any OpenAI-compatible server: OpenAI, Ollama, LM Studio, `vllm serve`, or replicas of one."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from geo_utils.models.base import (
    EMBEDDER,
    Completion,
    FatalError,
    Request,
    Sampling,
    Takes,
    TransientError,
    UnusableError,
    redacted,
)
from geo_utils.models.replies import received, refusal, seconds, unreadable

log = logging.getLogger(__name__)

_TAKE_ALL = ("vllm", "sglang")
# A connection is left before the server leaves it, which uvicorn, and so vLLM, does after 5 s: a
# request that goes out at that moment is lost.
_CONNECTIONS = httpx2.Limits(
    max_connections=1024, max_keepalive_connections=1024, keepalive_expiry=2.0
)
_REST_S = 20.0  # how long a replica that failed is left out


class OpenAIServer:
    """A model on one or more servers; each call goes to the replica with the fewest in flight.

    Attributes:
        model: Its id on the servers.
        base_urls: Addresses, each ending in `/v1`.
        takes: The sampling parameters that the server takes: those of OpenAI's own, and after
            `probe` all of them where vLLM or SGLang says that it serves the model.
    """

    def __init__(self, model: str, base_urls: Sequence[str]) -> None:
        """Name the servers.

        Raises:
            FatalError: No address is given.
        """
        if not base_urls:
            raise FatalError(
                f"openai/{model} needs its server's address, such as http://127.0.0.1:8000/v1"
            )
        self.model = self.cache_id = model
        self.takes = Takes(frozenset({"temperature", "top_p"}), ())
        self._weights: dict[str, str] = {}  # by address, where they have another name
        self.base_urls = [url.rstrip("/") for url in base_urls]
        self._in_flight = dict.fromkeys(self.base_urls, 0)
        self._used = dict.fromkeys(self.base_urls, 0.0)
        self._rests_until = dict.fromkeys(self.base_urls, 0.0)
        self._clients: dict[str, AsyncOpenAI] = {}
        self._limit = "max_tokens"  # which OpenAI's newer models refuse

    async def complete(self, request: Request) -> Completion:
        """Answer one request; see `LanguageModel`."""
        url, limit, sampling = self._replica(), self._limit, request.sampling
        longest = 1 if request.choices else sampling.max_tokens + sampling.thoughts
        fields = {limit: longest} | self._sampled(sampling) | _structure(request)
        self._in_flight[url] += 1
        started = time.monotonic()
        try:
            if request.role == EMBEDDER:
                response: Any = await self._client(url).embeddings.with_raw_response.create(
                    model=self.model, input=request.prompt, encoding_format="float"
                )
            else:
                response = await self._client(url).chat.completions.with_raw_response.create(
                    model=self.model,
                    messages=[{"role": "user", "content": request.prompt}],
                    extra_body=fields,
                )
            body = response.http_response.text
        except asyncio.CancelledError:  # also the caller's timeout: it may be hanging
            self._rest(url)
            raise
        except openai.APIStatusError as error:
            if limit == "max_tokens" and "max_completion_tokens" in error.message:
                self._limit = "max_completion_tokens"
                return await self.complete(request)
            raise self._translated(error, url) from None
        except (openai.APIConnectionError, aiohttp.ClientError, OSError) as error:
            self._rest(url)
            # The SDK calls a connection that was cut a timeout of connecting.
            cut = isinstance(error.__cause__, httpx2.ConnectTimeout)
            late = isinstance(error, openai.APITimeoutError) and not cut
            kind = "timeout" if late else "connection"
            raise TransientError(redacted(f"{url}: {error}"), kind) from None
        except (openai.APIError, ValueError) as error:
            raise unreadable(url, error) from None
        finally:
            self._in_flight[url] -= 1
        self._rests_until[url] = 0.0
        return _completion(body, request, time.monotonic() - started, self._weights.get(url, ""))

    def _sampled(self, sampling: Sampling) -> dict[str, Any]:
        """Return the fields that shape the distribution, as vLLM and SGLang name OpenAI's and more.

        Each is sent, also if nobody asked for it: a server would take it from the model's own
        `generation_config.json`, and a model in this process does not.
        """
        sent = self.takes.sent(sampling)
        if "thinking" in sent:
            sent["chat_template_kwargs"] = {"enable_thinking": sent.pop("thinking") != "off"}
        if "top_k" in sent:
            sent["top_k"] = sent["top_k"] or -1
        return sent

    async def probe(self) -> None:
        """Ask every server for its models; one that answers with ours is enough."""
        wrong = []
        for url in self.base_urls:
            try:
                served = [card async for card in self._client(url).models.list()]
                names = [str(card.id) for card in served]
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                self._rest(url)
                wrong.append(_probed(error, url))
                continue
            except Exception as error:  # a list of no known shape says nothing of the model
                log.info("%s", redacted(f"{url}: its list of models is unreadable ({error})"))
                continue
            if names and self.model not in names:
                raise FatalError(f"{url} does not serve {self.model!r} but {', '.join(names[:20])}")
            card = next((card for card in served if card.id == self.model), None)
            if getattr(card, "owned_by", None) in _TAKE_ALL:
                self.takes = Takes()
            root = getattr(card, "root", None)
            if isinstance(root, str) and root != self.model:
                self._weights[url] = root
        if len(wrong) == len(self.base_urls):
            raise FatalError(f"no server can be asked: {'; '.join(wrong)}")

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    def _replica(self) -> str:
        """Choose the replica with the fewest calls in flight, the longest unused among equals."""
        now = time.monotonic()
        awake = [url for url in self.base_urls if self._rests_until[url] <= now] or self.base_urls
        chosen = min(awake, key=lambda url: (self._in_flight[url], self._used[url]))
        self._used[chosen] = now
        return chosen

    def _rest(self, url: str) -> None:
        """Leave a replica out for a while."""
        self._rests_until[url] = time.monotonic() + _REST_S

    def _client(self, url: str) -> AsyncOpenAI:
        if url not in self._clients:
            self._clients[url] = AsyncOpenAI(
                base_url=url,
                api_key=os.environ.get("OPENAI_API_KEY", "").strip() or "none",
                max_retries=0,
                timeout=600.0,
                http_client=DefaultAioHttpClient(follow_redirects=False, limits=_CONNECTIONS),
            )
        return self._clients[url]

    def _translated(self, error: openai.APIStatusError, url: str) -> Exception:
        code = error.status_code
        if code >= 500:
            self._rest(url)
        wait = seconds(error.response.headers.get("Retry-After"))
        said = f"{url}, model {self.model!r}: {code} {error.message}"
        return refusal(code, said, wait, error.param if isinstance(error.param, str) else None)


def _structure(request: Request) -> dict[str, Any]:
    """Return the fields that ask for a schema or for one of several words with probabilities."""
    if request.choices:
        structured = {"choice": list(request.choices)}
        return {"logprobs": True, "top_logprobs": 20, "structured_outputs": structured}
    if request.schema:
        schema = {"name": "answer", "schema": request.schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


_PROBED = {
    401: ": the key is refused",
    403: ": the key is refused",
    404: ": is this the address of an OpenAI-compatible API? Most end in /v1",
    503: ": it is up and loads its model, or is overloaded; wait for it",
}


def _probed(error: openai.APIStatusError | openai.APIConnectionError, url: str) -> str:
    """Say why a server does not list its models."""
    if isinstance(error, openai.APIConnectionError):
        return redacted(f"{url}: {error.__cause__ or error}; is it up?")
    code = error.status_code
    return redacted(f"{url}: {code} {error.message}") + _PROBED.get(code, "")


def _completion(body: str, request: Request, latency_s: float, weights: str) -> Completion:
    """Read a body; see `replies`.

    Args:
        body: What the server sent.
        request: What was asked.
        latency_s: Seconds from sending to receiving.
        weights: The folder that the server names beside the model's name, which may be any.
    """
    try:
        reply = json.loads(body)
        if isinstance(reply, dict) and reply.get("error"):
            raise _error_inside(reply["error"])
        used = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
        served_by = reply.get("model")
        if served_by and weights:
            served_by = f"{served_by}@{weights}"
        what: dict[str, Any] = {"latency_s": latency_s, "tokens_in": used.get("prompt_tokens")}
        what |= {"served_by": served_by, "counted": bool(used)}
        if request.role == EMBEDDER:
            vector = [float(number) for number in reply["data"][0]["embedding"]]
            if not vector or not all(map(math.isfinite, vector)):
                raise UnusableError("no vector in the answer", "empty", again=True)
            return received(text=json.dumps(vector), finish_reason="stop", **what)
        if not reply["choices"]:
            raise UnusableError("no choice in the answer", "empty", again=True)
        choice = reply["choices"][0]
        if choice.get("error"):
            raise _error_inside(choice["error"])
        details = used.get("prompt_tokens_details")
        spent = used.get("completion_tokens_details")
        message = choice["message"]
        thought = spent.get("reasoning_tokens") if isinstance(spent, dict) else 0
        if not message.get("content") and message.get(
            "reasoning_content", message.get("reasoning")
        ):
            thought = used.get("completion_tokens")
        return received(
            text=message.get("content"),
            finish_reason=choice.get("finish_reason"),
            tokens_out=used.get("completion_tokens"),
            tokens_cached=details.get("cached_tokens") if isinstance(details, dict) else 0,
            logprobs=_chances(choice, request) if request.choices else None,
            tokens_thought=thought,
            **what,
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise unreadable(body, error) from None


def _error_inside(error: Any) -> Exception:
    """Return what an error means that came with status 200."""
    found = error if isinstance(error, dict) else {"message": error}
    told = str(found.get("code"))
    code = int(told) if re.fullmatch(r"[1-5]\d\d", told, re.ASCII) else 500
    said = f"{code} {found.get('message') or found}"
    return refusal(code, said, seconds(found.get("retry_after")))


def _chances(choice: dict[str, Any], request: Request) -> dict[str, float]:
    """Return the log-probability of each allowed choice among the first token's likeliest."""
    places = (choice.get("logprobs") or {}).get("content") or []
    found: dict[str, float] = {}
    for token in places[0]["top_logprobs"] if places else []:
        found.setdefault(token["token"].strip().lower(), float(token["logprob"]))
    return {word: found[word.lower()] for word in request.choices if word.lower() in found}
