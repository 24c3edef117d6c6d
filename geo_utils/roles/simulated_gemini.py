"""A Gemini look-alike on loopback: the offline roles' answers, with latency and faults."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import ConfigDict, Field

from geo_utils.corpus import Example, KeyPoint
from geo_utils.files import append_jsonl
from geo_utils.parameters import Options
from geo_utils.roles.engines import ExtractiveEngine
from geo_utils.roles.judges import LexicalJudge
from geo_utils.roles.rewriters import EDITS
from geo_utils.text import sentences


async def reply(prompt: str, schema: dict[str, Any] | None, draw: int) -> str:
    """Answer a prompt of the shipped templates by the offline role that it is for.

    Args:
        prompt: Its parts are found by their tags.
        schema: The JSON schema asked for, if any.
        draw: Seed of the answer's noise, so that repeats differ.
    """
    wanted = (schema or {}).get("properties", {})
    if "key_points" in wanted:
        found = [s for s in sentences(_part(prompt, "page")) if 6 <= len(s.split()) <= 30]
        return json.dumps({"key_points": [{"content": s, "quotes": [s]} for s in found[:8:2]]})
    if "verdicts" in wanted:
        points = re.findall(r"^(\d+)\. (.+)$", _part(prompt, "key_points"), re.MULTILINE)
        listed = [{"number": int(n), **await _verdict(point, prompt)} for n, point in points]
        return json.dumps({"verdicts": listed})
    if "<source>" in prompt:
        names = re.findall(r"^([OR]\d+)\. ", prompt, re.MULTILINE)
        labels = {"O": "kept", "R": "supported"}
        lines = ({"claim": name, "verdict": labels[name[0]]} for name in names)
        return "\n".join(map(json.dumps, lines))
    if "verdict" in wanted:
        return json.dumps(await _verdict(_part(prompt, "key_point"), prompt))
    sources = re.findall(r'<source number="\d+">\n(.*?)\n</source>', prompt, re.DOTALL)
    if sources:
        answer = await ExtractiveEngine(seed=draw).answer(_part(prompt, "query"), sources)
        return answer.text or "The sources do not answer the question."
    if "You have no sources" in prompt:
        return f"From memory, about this question little can be said: {_part(prompt, 'query')}"
    page = _part(prompt, "page")
    if page:
        stated = re.search(r"The key point is: (.+)$", prompt, re.MULTILINE)
        point = KeyPoint(1, stated[1] if stated else _part(prompt, "key_point"))
        example = Example("simulated", "", (page,), 0)
        return EDITS["key_point" if point.content else "easy_to_understand"](example, point)
    if "yes or no" in prompt:
        verdict = await _verdict(_part(prompt, "key_point"), prompt)
        return "yes" if verdict["verdict"] == "supported" else "no"
    return "This is a simulated answer to a prompt of unknown form."


async def _verdict(key_point: str, prompt: str) -> dict[str, str]:
    verdict = await LexicalJudge().judge(key_point, _part(prompt, "answer"))
    return {"reason": verdict.explanation, "verdict": str(verdict.label)}


def _part(prompt: str, tag: str) -> str:
    found = re.search(rf"<{tag}>\n(.*)\n</{tag}>", prompt, re.DOTALL)
    return found.group(1) if found else ""


Fault = Literal["429", "500", "blocked", "truncated", "hang", "reset", "empty"]
_HANG_S = 3600.0


class Settings(Options):
    """How the look-alike behaves.

    Attributes:
        host: Address that it listens on.
        port: Likewise.
        latency: `constant:S`, `lognormal:MEDIAN_S,SIGMA` or `uniform:LOW_S,HIGH_S`.
        faults: Probability of each fault.
        retry_after_s: Sent with a 429; None to send none.
        key: The only key that is accepted; None for any.
        revoke_after: Refuse every key after so many requests; None for never.
        log: File that gets one JSON line a request.
        seed: Seed of latencies and faults.
        thoughts: Tokens that an answer is thought about, where thinking is not off or minimal.
        served_as: The version that it says answers; None for the one that was asked.
        models: Ids that it serves.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    host: str = "127.0.0.1"
    port: int = 8765
    latency: str = "lognormal:1.2,0.4"
    faults: dict[Fault, Annotated[float, Field(ge=0, le=1)]] = {}  # noqa: RUF012
    retry_after_s: float | None = 1.0
    key: str | None = None
    revoke_after: int | None = None
    log: Path | None = None
    seed: int = 0
    thoughts: int = 0
    served_as: str | None = None
    models: tuple[str, ...] = (
        "gemini-3.1-flash-lite",
        "gemini-3.5-flash-lite",
        "gemini-2.5-flash-lite",
        "gemini-2.5-flash",
    )


class SimulatedGemini:
    """The server's state; `app` is its aiohttp application."""

    def __init__(self, settings: Settings) -> None:
        """Check the settings.

        Raises:
            ValueError: Unknown latency distribution.
        """
        self.settings = settings
        self._random = random.Random(settings.seed)
        self._draw_latency()
        self._requests = 0
        self.app = web.Application(client_max_size=64 * 2**20)
        for version in ("v1", "v1beta"):
            place = f"/{version}/models"
            self.app.add_routes(
                [
                    web.get(place, self._list),
                    web.get(place + "/{model}", self._card),
                    web.post(place + "/{model}:generateContent", self._generate),
                ]
            )

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [_card(model) for model in self.settings.models]})

    async def _card(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        return self._refusal(request, model) or web.json_response(_card(model))

    async def _generate(self, request: web.Request) -> web.Response:
        model, body = request.match_info["model"], await request.json()
        prompt = "".join(p.get("text", "") for c in body["contents"] for p in c["parts"])
        config = body.get("generationConfig", {})
        self._requests += 1
        fault = self._draw_fault()
        refused = self._refusal(request, model) or self._limited(fault)
        if refused is not None or fault in ("hang", "reset"):
            self._note(prompt, config, fault or str(refused and refused.status), refused)
            if refused is not None:
                return refused
            if fault == "hang":
                await asyncio.sleep(_HANG_S)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        until = time.monotonic() + self._draw_latency()
        draw = hashlib.sha256(f"{self.settings.seed}|{config.get('seed')}|{prompt}".encode())
        seed = int.from_bytes(draw.digest()[:4], "big")  # same prompt and seed, same answer
        text = await reply(prompt, config.get("responseJsonSchema"), seed)
        thoughts = _thoughts(config, self.settings.thoughts)
        if thoughts and thoughts + len(text) // 4 >= config.get("maxOutputTokens", 2**16):
            text, fault = "", "truncated"
        response = _response(self.settings.served_as or model, prompt, text, fault, thoughts)
        await asyncio.sleep(max(until - time.monotonic(), 0.0))  # thinking is part of the latency
        gone = request.transport is None or request.transport.is_closing()
        self._note(prompt, config, "undelivered" if gone else fault or "answered", None)
        return web.json_response(response)

    def _refusal(self, request: web.Request, model: str) -> web.Response | None:
        key = request.headers.get("x-goog-api-key") or request.query.get("key")
        last = self.settings.revoke_after
        if self.settings.key not in (None, key) or (last is not None and self._requests > last):
            return _error(
                400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."
            )
        if model not in self.settings.models:
            return _error(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta")
        return None

    def _limited(self, fault: str | None) -> web.Response | None:
        """Return the refusal of a service that is busy or broken, by a fault."""
        if fault == "429":
            wait = self.settings.retry_after_s
            return _error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted", wait)
        return _error(500, "INTERNAL", "An internal error has occurred") if fault == "500" else None

    def _draw_fault(self) -> str | None:
        faults = self.settings.faults
        chances = [*faults.values(), max(1 - sum(faults.values()), 0.0)]
        return self._random.choices([*faults, None], chances)[0]

    def _draw_latency(self) -> float:
        kind, _, numbers = self.settings.latency.partition(":")
        try:
            match kind, [float(number) for number in numbers.split(",")]:
                case "constant", [seconds]:
                    return seconds
                case "lognormal", [median, sigma]:
                    return self._random.lognormvariate(math.log(median), sigma)
                case "uniform", [low, high]:
                    return self._random.uniform(low, high)
        except ValueError:
            pass
        raise ValueError(
            f"latency={self.settings.latency!r}: must be constant:S, lognormal:MEDIAN_S,SIGMA "
            "or uniform:LOW_S,HIGH_S"
        )

    def _note(
        self, prompt: str, config: dict[str, Any], outcome: str, refused: web.Response | None
    ) -> None:
        if self.settings.log is None:
            return
        digest = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()
        entry = {"time": time.time(), "prompt": digest, "seed": config.get("seed")}
        status = {} if refused is None else {"status": refused.status}
        append_jsonl(self.settings.log, [entry | {"outcome": outcome} | status])


def _card(model: str) -> dict[str, Any]:
    return {
        "name": f"models/{model}",
        "displayName": f"Simulated {model}",
        "supportedGenerationMethods": ["generateContent"],
    }


def _error(
    code: int, status: str, message: str, retry_after_s: float | None = None
) -> web.Response:
    body: dict[str, Any] = {"error": {"code": code, "status": status, "message": message}}
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    return web.json_response(body, status=code, headers=headers)


def _thoughts(config: dict[str, Any], most: int) -> int:
    """Return how many tokens an answer is thought about; the client writes names either way."""
    asked = config.get("thinkingConfig") or {}
    level = asked.get("thinkingLevel", asked.get("thinking_level", ""))
    budget = asked.get("thinkingBudget", asked.get("thinking_budget", most))
    return 0 if level.upper() == "MINIMAL" else min(most, budget)


def _response(
    model: str, prompt: str, text: str, fault: str | None, thoughts: int = 0
) -> dict[str, Any]:
    tokens_in, version = len(prompt) // 4 + 1, f"simulated-{model}"
    used = {"promptTokenCount": tokens_in, "totalTokenCount": tokens_in}
    if fault == "blocked":
        feedback = {"blockReason": "SAFETY"}
        return {"promptFeedback": feedback, "usageMetadata": used, "modelVersion": version}
    text = {"truncated": text[: len(text) // 2], "empty": ""}.get(fault or "", text)
    used |= {"candidatesTokenCount": len(text) // 4 + 1}
    used |= {"thoughtsTokenCount": thoughts} if thoughts else {}
    used["totalTokenCount"] += used["candidatesTokenCount"] + thoughts
    reason = "MAX_TOKENS" if fault == "truncated" else "STOP"
    content = {"role": "model", "parts": [{"text": text}]}
    candidate = {"content": content, "finishReason": reason, "index": 0}
    return {"candidates": [candidate], "usageMetadata": used, "modelVersion": version}


def serve(settings: Settings) -> None:
    """Serve until interrupted.

    Raises:
        ValueError: Unknown latency distribution.
        OSError: The address is taken; the message names another way.
    """
    app, host, port = SimulatedGemini(settings).app, settings.host, settings.port
    try:
        web.run_app(app, host=host, port=port, print=None, access_log=None)
    except OSError as error:
        said = f"{host}:{port}: {error.strerror or error}; choose another port"
        raise OSError(said) from None
