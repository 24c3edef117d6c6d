"""The caller of a language model: cache, limits, retries and budget between roles and model.

An answer is kept as soon as it is there: a process that is killed loses those under way alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import platform
import random
import re
import struct
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from geo_utils.models.base import (
    EMBEDDER,
    GUESSED,
    Completion,
    FatalError,
    LanguageModel,
    ModelError,
    Request,
    TransientError,
    UnusableError,
)
from geo_utils.models.cache import AnswerCache, request_key
from geo_utils.models.known import MODELS
from geo_utils.models.loops import on_the_loop
from geo_utils.models.record import Record
from geo_utils.models.replies import unreadable, usable
from geo_utils.models.usage import (
    CHARS_PER_TOKEN,
    BudgetReached,
    RoleUsage,
    Usage,
    estimated_tokens,
)
from geo_utils.runs import RunInterrupted

log = logging.getLogger(__name__)
# Requests in flight in this process by cache folder (or caller) and key; equal ones wait for the
# first.
_FLIGHTS: dict[tuple[str, str], asyncio.Future[Completion]] = {}


class ServiceDown(RunInterrupted):
    """The service is plainly down; going on would only burn the night."""


@dataclass(frozen=True)
class Retries:
    """How hard a call is tried.

    Attributes:
        max_concurrency: Calls in flight at once; 1 makes them one by one.
        timeout_s: Longest wait for one try.
        deadline_s: Longest time for one call, tries and pauses together.
        max_tries: Most tries of one call that fails transiently.
        max_unusable: Most answers of one call that are looked at in vain.
        max_retries: Most retries of the whole run; after them, the first failure is the last.
        backoff_s: First pause; doubles each time, drawn between half and the whole.
        max_backoff_s: Longest pause, unless the service asks for more.
        breaker_failures: So many tries in a row without one success ...
        breaker_s: ... over at least so many seconds stop the run.
    """

    max_concurrency: int = 32
    timeout_s: float = 90.0
    deadline_s: float = 300.0
    max_tries: int = 8
    max_unusable: int = 3
    max_retries: int = 5_000
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    breaker_failures: int = 25
    breaker_s: float = 30.0


class Caller:
    """A language model with cache, limits, retries and a budget; usable from any event loop.

    Every call hops to the one event loop of the process, which alone touches what is kept here.

    Attributes:
        model: The wrapped model.
        retries: How hard a call is tried.
        usage: Counts and budget, usually shared by the callers of a run.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: AnswerCache | Record | None = None,
        retries: Retries | None = None,
        usage: Usage | None = None,
        limit: RateLimit | None = None,
    ) -> None:
        """Wrap a model; without a cache nothing is kept."""
        self.model, self.retries = model, retries or Retries()
        self.usage = usage or Usage()
        self._cache, self._limit = cache, limit
        self._slots = asyncio.Semaphore(self.retries.max_concurrency)
        # By the loop that calls come from: of thousands, a few at a time are looked at.
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._gates = WeakKeyDictionary()
        self._scope = str(cache.folder) if cache else f"caller {id(self)}"
        # Why no call may be made any more, and until when the service asked all calls to wait.
        self._stopped: Exception | None = None
        self._not_before = 0.0
        # Failures in a row, when they began, and retries of the run.
        self._failures, self._failing_since, self._retried = 0, 0.0, 0
        self._version = ""  # which the first answer was of

    async def complete(self, request: Request) -> Completion:
        """Answer a request from the cache, from an equal call in flight, or by a call.

        Raises:
            ModelError: It could not be had after all tries; an abstention for the role.
            FatalError: The key is refused or the model unknown; stops the run.
            RunInterrupted: The budget is spent or the service down; stops the run.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._gates:
            self._gates[loop] = asyncio.Semaphore(2 * self.retries.max_concurrency)
        async with self._gates[loop]:
            return await on_the_loop(self._complete(request))

    async def _complete(self, request: Request) -> Completion:
        key, held = self.peek(request)
        role = self.usage.role(request.role, self.model.model)
        place = (self._scope, key)
        while held is None and (flight := _FLIGHTS.get(place)):
            await asyncio.wait([flight])
            if not flight.cancelled():  # else the call that led it was; the next one leads
                held = flight.result()
        if held is not None:
            self.usage.count_cached(role, held)
            return held
        flight = _FLIGHTS[place] = asyncio.get_running_loop().create_future()
        try:
            completion = await self._ask_once(key, request, role)
            flight.set_result(completion)
            return completion
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # also where nobody else waits for it
            raise
        finally:
            del _FLIGHTS[place]
            flight.cancel()

    def peek(self, request: Request) -> tuple[str, Completion | None]:
        """Return a request's cache key and the answer that is held for it, if one is.

        One of another version of the model is none.
        """
        key = request_key(self.model.cache_id, request)
        held = self._cache.get(key) if self._cache else None
        return key, held if held is None or self._is_asked_one(held) else None

    def _is_asked_one(self, completion: Completion) -> bool:
        """Tell whether the model that answered is the one that was asked, as it was before."""
        served = completion.served_by.removeprefix("simulated-")
        if not served:
            return True
        if not is_version(self.model.model, served):
            return False
        self._version = self._version or served
        return served == self._version

    async def _ask_once(self, key: str, request: Request, role: RoleUsage) -> Completion:
        """Ask unless another process of this cache has, or is about to have, the answer.

        What waits for its turn holds no lock: the operating system's list of them would grow.
        """
        async with self._slots, contextlib.AsyncExitStack() as held_back:
            if (cache := self._cache) is None:
                return await self._try(request, role)
            await held_back.enter_async_context(cache.in_flight(key))
            cache.refresh()
            held = cache.get(key)
            if held is not None and self._is_asked_one(held):
                self.usage.count_cached(role, held)
                return held
            completion = await self._try(request, role)
            try:
                cache.put(key, self.model.model, request, completion)
            except OSError as error:
                # This answer is used; the next would be paid for and lost as well.
                self._stop(
                    f"cache folder {cache.folder} cannot be written any more "
                    f"({error.strerror}); stopped before more answers are paid for and lost"
                )
            return completion

    def _another(self, served: str) -> FatalError:
        asked, before = self.model.model, self._version
        if is_version(asked, served.removeprefix("simulated-")):
            return FatalError(
                f"{asked!r} answers as {served!r}, and earlier answers are of {before!r}; set "
                "paths.cache to another folder, so that all answers are of one version"
            )
        known = MODELS.get(asked)
        became = f" ({known.then})" if known and known.then else ""
        return FatalError(
            f"{asked!r} was asked and {served!r} answered{became}; name the model that is meant"
        )

    def _stop(self, why: str) -> None:
        self._stopped = FatalError(why)
        log.error("%s", why)

    def _check(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    async def _try(self, request: Request, role: RoleUsage) -> Completion:
        """Try a call until it is answered, or may not or cannot be tried again."""
        spent_s, number, unusable = 0.0, 0, 0
        last: ModelError
        while True:
            number += 1
            await self._turn(request)
            reserved = await self._reserve(request)
            started = time.monotonic()
            try:
                left_s = max(self.retries.deadline_s - spent_s, 0.01)
                return await self._send(replace(request, attempt=unusable), role, left_s, reserved)
            except FatalError as error:
                self._stopped = error
                raise
            except UnusableError as error:
                unusable += 1
                if error.kind == "thoughts" and not role.answered:  # it will be so every time
                    self._stopped = FatalError(f"{request.role} {self.model.model}: {error}")
                    raise self._stopped from None
                if not error.again or unusable >= self.retries.max_unusable:
                    raise
                pause, last = 0.0, error
            except TransientError as error:
                pause, last = self._pause(number, error), error
            spent_s += time.monotonic() - started + pause
            if (
                number >= self.retries.max_tries
                or spent_s > self.retries.deadline_s
                or self._retried >= self.retries.max_retries
            ):
                raise last
            self._retried += 1
            role.retries += 1
            log.info("%s: %s; again in %.1f s", request.role, last, pause)
            await asyncio.sleep(pause)

    async def _turn(self, request: Request) -> None:
        """Wait until the service's own pause is over and the rate limit lets one more out."""
        self._check()
        while (pause := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(min(pause, 1.0))
            self._check()
        if self._limit is not None:
            await self._limit.wait(_most_tokens(request))
            self._check()

    async def _reserve(self, request: Request) -> float:
        """Take the call out of the budget; wait where calls in flight may give some of it back."""
        try:
            while (reserved := self.usage.reserve(self.model.model, request)) is None:
                await asyncio.sleep(0.05)
                self._check()
        except BudgetReached as error:
            self._stopped = error
            raise
        return reserved

    async def _send(
        self, request: Request, role: RoleUsage, left_s: float, reserved: float
    ) -> Completion:
        """Send one try and book what became of it."""
        completion: Completion | None = None
        failure: str | None = "cancelled"
        try:
            timeout = min(self.retries.timeout_s, left_s)
            async with asyncio.timeout(timeout):
                completion = await self.model.complete(request)
            if not self._is_asked_one(completion):
                raise self._another(completion.served_by)
            failure = None
            return usable(completion, request)
        except TimeoutError:
            failure = "timeout"
            raise TransientError(f"no answer within {timeout:g} s", "timeout") from None
        except (ModelError, FatalError) as error:
            failure = getattr(error, "kind", "fatal")
            completion = completion or getattr(error, "counts", None)  # of what was blocked
            raise
        except RunInterrupted:
            raise
        except Exception as error:  # whatever goes wrong in reading a reply
            failed = unreadable("nothing", error)
            failure = failed.kind
            raise failed from error
        finally:
            try:
                key = request_key(self.model.cache_id, request) if failure else ""
                self.usage.settle(role, reserved, completion, failure, key)
            except OSError as error:  # this answer is used, and kept
                self._stop(
                    f"{error.filename} cannot be written ({error.strerror}); stopped before more "
                    "is spent than the run's budget will know of"
                )
            self._watch(failure, completion is not None or failure == "blocked")
            if self._limit is not None:
                used = completion.tokens_in + completion.tokens_out if completion else 0
                self._limit.correct(used - _most_tokens(request))

    def _pause(self, number: int, error: TransientError) -> float:
        """Return the seconds until the next try, and hold back other calls where asked to."""
        longest = min(self.retries.backoff_s * 2 ** (number - 1), self.retries.max_backoff_s)
        pause: float = longest * random.uniform(0.5, 1.0)
        asked = error.retry_after_s
        if asked is None:
            return pause
        if asked > self.retries.deadline_s:
            self._stopped = ServiceDown(
                f"{self.model.model} asks to wait {asked:.0f} s (a daily quota?)."
                " All answers so far are kept; run again to go on"
            )
        elif error.kind == "429":
            self._not_before = max(self._not_before, time.monotonic() + asked)
        return asked if error.kind == "429" else max(asked, pause)

    def _watch(self, failure: str | None, answered: bool) -> None:
        """Stop all calls after a long enough run of failures without one answer."""
        if answered:
            self._failures = 0
        if answered or failure == "cancelled":
            return
        now = time.monotonic()
        self._failing_since = self._failing_since if self._failures else now
        self._failures += 1
        lasted_s = now - self._failing_since
        enough = self._failures >= self.retries.breaker_failures
        if enough and lasted_s >= self.retries.breaker_s:
            self._stopped = self._stopped or ServiceDown(
                f"{self.model.model} seems to be down: {self._failures} failures in a row over "
                f"{lasted_s:.0f} s, the last one {failure}. All answers so far are "
                "kept; run again to go on"
            )


def is_version(asked: str, served: str) -> bool:
    """Tell whether a service's name for a model is a version of the one that was asked.

    That is the name itself, also without the organisation; with a date or number behind it; or
    with what its weights are (`@`).
    """
    name = served.removeprefix("models/").lower()
    return any(
        re.fullmatch(re.escape(one) + r"(?:[-:]\d[\w.-]*|:latest)?(?:@.*)?", name, re.DOTALL)
        for one in (asked.lower(), asked.lower().rpartition("/")[2])
    )


def _most_tokens(request: Request) -> int:
    """Return about how many tokens a call takes at most, prompt and answer together."""
    return estimated_tokens(request) + request.sampling.max_tokens + request.sampling.thoughts


_BURST_S = 3.0  # seconds' worth of the limit that may go out at once
_STATE = struct.Struct("dd")
_FARTHEST_S = 86_400.0  # no booking is made for a later time than a day ahead


class RateLimit:
    """A limit on requests and on tokens per minute (generic cell rate algorithm).

    Each process books its next place in a file that is locked while it is read and written, then
    sleeps until that place comes. The limit holds for every window of 60 seconds: the steady rate
    is lowered by what a burst may add. Places are times of the clock that runs from the machine's
    start, which is the same for all its processes and which nobody sets; each start of each
    machine therefore has a file of its own.
    """

    def __init__(
        self,
        path: Path,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        """Share the limit with the processes of this host that name the same `path`.

        Args:
            path: Of the state, without what tells machines and their starts apart.
            requests_per_minute: None for no limit.
            tokens_per_minute: None for no limit; tokens of prompt and answer together.
        """
        self.path = path.with_name(f"{path.name}.{_machine_start()}")
        steady = 1 - _BURST_S / 60
        self._request_s = 60 / (requests_per_minute * steady) if requests_per_minute else 0.0
        self._token_s = 60 / (tokens_per_minute * steady) if tokens_per_minute else 0.0

    async def wait(self, tokens: int) -> None:
        """Book one request of about `tokens` tokens and wait for its turn."""
        if self._request_s or self._token_s:
            pause = self._book(self._request_s, tokens * self._token_s)
            if pause > 0:
                await asyncio.sleep(pause)

    def correct(self, tokens: int) -> None:
        """Add tokens that a booking left out, or give back (negative) what it did not use."""
        if self._token_s and tokens:
            self._book(0.0, tokens * self._token_s)

    def _book(self, request_s: float, token_s: float) -> float:
        """Take the next place and return the seconds until it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            raw = os.pread(descriptor, _STATE.size, 0)
            now = time.monotonic()
            booked = _STATE.unpack(raw) if len(raw) == _STATE.size else (now, now)
            # What no process has booked, such as a torn file, must not block.
            starts = [t if now < t < now + _FARTHEST_S else now for t in booked]
            ends = [max(t + s, now) for t, s in zip(starts, (request_s, token_s), strict=True)]
            pause = float(max(ends) - now - max(_BURST_S, request_s))
            os.pwrite(descriptor, _STATE.pack(*ends), 0)
        finally:
            os.close(descriptor)
        return pause


@lru_cache(maxsize=1)
def _machine_start() -> str:
    """Return what tells this start of this machine from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux: the clock begins anew as well, but nothing says so
        return platform.node()


# Tokens of a typical answer by role; a rewrite is about as long as the page in its prompt.
_TYPICAL_TOKENS = {"engine": 450, "judge": 50, "extractor": 500, EMBEDDER: 0}


class Planner:
    """Stands in for a caller: held answers are given, others guessed and counted.

    Attributes:
        caller: Whose calls are counted.
        counts: By role: requests that would be sent (equal ones once), requests that the cache
            answers, and about how many tokens of prompts and of answers the former have.
    """

    def __init__(self, caller: Caller) -> None:
        """Count for `caller`."""
        self.caller = caller
        self.counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(4, dtype=np.int64))
        self._seen: set[str] = set()

    async def complete(self, request: Request) -> Completion:
        """Return the held answer, or a guess of about the length of the real one."""
        key, held = self.caller.peek(request)
        if held is not None:
            self.counts[request.role] += (0, 1, 0, 0)
            return held
        tokens_out = _TYPICAL_TOKENS.get(request.role, estimated_tokens(request))
        if request.role == "judge" and not request.schema and not request.choices:
            tokens_out = request.sampling.max_tokens // 2  # a line for each claim of two pages
        if key not in self._seen:
            self._seen.add(key)
            self.counts[request.role] += (1, 0, estimated_tokens(request), tokens_out)
        # Each guess is another text, so that what is asked about it is another request.
        text = request.prompt if request.role == "rewriter" else "x" * CHARS_PER_TOKEN * tokens_out
        text = f"{key[:12]} {text}"
        if request.choices:
            chances = dict.fromkeys(request.choices, -0.7)
            return Completion(text, logprobs=chances, finish_reason=GUESSED)
        parsed = {"verdict": "omitted", "reason": "", "verdicts": [], "key_points": []}
        return Completion(text, parsed if request.schema else None, finish_reason=GUESSED)
