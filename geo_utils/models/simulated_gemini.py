"""A Gemini look-alike for tests and rehearsals, answering through the offline roles.

It speaks enough of the real REST protocol that the unmodified google-genai client works against
it: structured output, usage metadata, finish reasons, error bodies, the list of models. Every
answer calls itself `simulated-...`, and what is made with it is labelled so.

    python -m geo_utils.models.simulated_gemini --latency lognormal:1.2,0.4 --rpm 600 \
        --faults 429:0.05,500:0.02,blocked:0.01,truncated:0.02,hang:0.005
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from geo_utils.models.simulated_answers import reply

FAULTS = ("429", "500", "blocked", "truncated", "hang", "reset", "empty")
_HANG_S = 3600.0


@dataclass
class Settings:
    """How the look-alike behaves.

    Attributes:
        latency: `constant:S`, `lognormal:MEDIAN_S,SIGMA` or `uniform:LOW_S,HIGH_S`.
        rpm: Requests a minute before it answers 429; None for no limit.
        faults: Probability of each fault.
        retry_after_s: Sent with a 429; None to send none.
        key: The only key that is accepted; None for any.
        revoke_after: Refuse every key after so many requests; None for never.
        models: Ids that it serves.
        log: File that gets one JSON line a request.
        seed: Seed of latencies and faults.
    """

    latency: str = "constant:0"
    rpm: int | None = None
    faults: dict[str, float] = field(default_factory=dict)
    retry_after_s: float | None = 1.0
    key: str | None = None
    revoke_after: int | None = None
    models: tuple[str, ...] = ("gemini-2.5-flash-lite", "gemini-2.5-flash")
    log: Path | None = None
    seed: int = 0


class SimulatedGemini:
    """The server's state; `app` is its aiohttp application."""

    def __init__(self, settings: Settings) -> None:
        """Check the settings.

        Raises:
            ValueError: Unknown fault or latency distribution.
        """
        unknown = set(settings.faults) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults {sorted(unknown)}; choose from {', '.join(FAULTS)}")
        self.settings = settings
        self._random = random.Random(settings.seed)
        self._draw_latency()
        self._recent: deque[float] = deque()
        self._requests = 0
        self._log = settings.log.open("a", buffering=1) if settings.log else None
        self.app = web.Application(client_max_size=64 * 2**20)
        for version in ("v1", "v1beta"):
            self.app.router.add_get(f"/{version}/models", self._list)
            self.app.router.add_get(f"/{version}/models/{{model}}", self._card)
            self.app.router.add_post(f"/{version}/models/{{model}}:generateContent", self._generate)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [_card(model) for model in self.settings.models]})

    async def _card(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        refused = self._refusal(request, model)
        return refused or web.json_response(_card(model))

    async def _generate(self, request: web.Request) -> web.Response:
        model, body = request.match_info["model"], await request.json()
        prompt = "".join(p.get("text", "") for c in body["contents"] for p in c["parts"])
        config = body.get("generationConfig", {})
        self._requests += 1
        fault = self._draw_fault()
        refused = self._refusal(request, model) or self._limited() or _error_for(fault, self)
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
        response = _response(model, prompt, text, fault)
        await asyncio.sleep(max(until - time.monotonic(), 0.0))  # thinking is part of the latency
        gone = request.transport is None or request.transport.is_closing()
        self._note(prompt, config, "undelivered" if gone else fault or "answered", None)
        return web.json_response(response)

    def _refusal(self, request: web.Request, model: str) -> web.Response | None:
        key = request.headers.get("x-goog-api-key") or request.query.get("key")
        wrong = self.settings.key is not None and key != self.settings.key
        last = self.settings.revoke_after
        if wrong or (last is not None and self._requests > last):
            return _error(
                400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."
            )
        if model not in self.settings.models:
            return _error(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta")
        return None

    def _limited(self) -> web.Response | None:
        if self.settings.rpm is None:
            return None
        now = time.monotonic()
        while self._recent and now - self._recent[0] > 60:
            self._recent.popleft()
        if len(self._recent) >= self.settings.rpm:
            return _error(429, "RESOURCE_EXHAUSTED", "Quota exceeded", self.settings.retry_after_s)
        self._recent.append(now)
        return None

    def _draw_fault(self) -> str | None:
        draw = self._random.random()
        for fault, probability in self.settings.faults.items():
            draw -= probability
            if draw < 0:
                return fault
        return None

    def _draw_latency(self) -> float:
        kind, _, numbers = self.settings.latency.partition(":")
        try:
            values = [float(number) for number in numbers.split(",")]
            if kind == "constant":
                return values[0]
            if kind == "lognormal":
                return self._random.lognormvariate(math.log(values[0]), values[1])
            if kind == "uniform":
                return self._random.uniform(values[0], values[1])
        except (ValueError, IndexError):
            pass
        raise ValueError(
            f"latency={self.settings.latency!r}: must be constant:S, lognormal:MEDIAN_S,SIGMA "
            "or uniform:LOW_S,HIGH_S"
        )

    def _note(
        self, prompt: str, config: dict[str, Any], outcome: str, refused: web.Response | None
    ) -> None:
        if self._log is not None:
            digest = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()
            entry = {
                "time": time.time(),
                "prompt": digest,
                "seed": config.get("seed"),
                "outcome": outcome,
            }
            if refused is not None:
                entry["status"] = refused.status
            self._log.write(json.dumps(entry) + "\n")


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


def _error_for(fault: str | None, server: SimulatedGemini) -> web.Response | None:
    if fault == "429":
        wait = server.settings.retry_after_s
        return _error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted", wait)
    return _error(500, "INTERNAL", "An internal error has occurred") if fault == "500" else None


def _response(model: str, prompt: str, text: str, fault: str | None) -> dict[str, Any]:
    tokens_in, version = len(prompt) // 4 + 1, f"simulated-{model}"
    used = {"promptTokenCount": tokens_in, "totalTokenCount": tokens_in}
    if fault == "blocked":
        feedback = {"blockReason": "SAFETY"}
        return {"promptFeedback": feedback, "usageMetadata": used, "modelVersion": version}
    text = {"truncated": text[: len(text) // 2], "empty": ""}.get(fault or "", text)
    used |= {"candidatesTokenCount": len(text) // 4 + 1}
    used["totalTokenCount"] += used["candidatesTokenCount"]
    reason = "MAX_TOKENS" if fault == "truncated" else "STOP"
    content = {"role": "model", "parts": [{"text": text}]}
    candidate = {"content": content, "finishReason": reason, "index": 0}
    return {"candidates": [candidate], "usageMetadata": used, "modelVersion": version}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m geo_utils.models.simulated_gemini", description=main.__doc__
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--latency", default="lognormal:1.2,0.4")
    parser.add_argument("--rpm", type=int)
    parser.add_argument("--faults", default="", help="such as 429:0.05,500:0.02,blocked:0.01")
    parser.add_argument("--retry-after", type=float, default=1.0, help="negative to send none")
    parser.add_argument("--key", help="the only key that is accepted")
    parser.add_argument("--revoke-after", type=int, help="refuse the key after so many requests")
    parser.add_argument("--log", type=Path, help="file that gets one JSON line a request")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        faults = {name: float(p) for name, p in
                  (part.split(":") for part in args.faults.split(",") if part)}  # fmt: skip
        retry_after = None if args.retry_after < 0 else args.retry_after
        server = SimulatedGemini(
            Settings(
                args.latency,
                args.rpm,
                faults,
                retry_after,
                args.key,
                args.revoke_after,
                log=args.log,
                seed=args.seed,
            )
        )
    except ValueError as error:
        sys.exit(str(error))
    try:
        web.run_app(server.app, host=args.host, port=args.port, print=None, access_log=None)
    except OSError as error:
        sys.exit(f"{args.host}:{args.port}: {error.strerror or error}; choose another --port")


if __name__ == "__main__":
    main()
