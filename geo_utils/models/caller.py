"""Between the roles and a model: no call is made twice, lost, or made in vain."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from dataclasses import dataclass, replace

from geo_utils.models.base import (
    Completion,
    FatalError,
    LanguageModel,
    ModelError,
    Request,
    TransientError,
    UnusableError,
)
from geo_utils.models.cache import AnswerCache, request_key
from geo_utils.models.limits import RateLimit
from geo_utils.models.replies import unreadable, usable
from geo_utils.models.slots import Slots
from geo_utils.models.usage import BudgetReached, RoleUsage, Usage, estimated_tokens
from geo_utils.runs import RunInterrupted

log = logging.getLogger(__name__)
# Requests in flight in this process, over all event loops and callers.
_FLIGHTS: dict[tuple[str, str], concurrent.futures.Future[Completion]] = {}
_FLIGHTS_LOCK = threading.Lock()


class _GivenUp(Exception):
    """The call that led a flight was cancelled; one of its followers leads the next."""


class ServiceDown(RunInterrupted):
    """The service is plainly down; going on would only burn the night."""


@dataclass(frozen=True)
class Policy:
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


@dataclass
class _Breaker:
    """Whether calls may be made; shared by all calls of a caller."""

    stopped: Exception | None = None
    failures: int = 0
    since: float = 0.0
    not_before: float = 0.0
    retries: int = 0


class Caller:
    """A language model with cache, limits, retries and a budget; usable from any event loop.

    Attributes:
        model: The wrapped model.
        policy: How hard a call is tried.
        usage: Counts and budget, usually shared by the callers of a run.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: AnswerCache | None = None,
        policy: Policy | None = None,
        usage: Usage | None = None,
        limit: RateLimit | None = None,
    ) -> None:
        """Wrap a model; without a cache nothing is kept."""
        self.model, self.policy = model, policy or Policy()
        self.usage = usage or Usage()
        self._cache, self._limit = cache, limit
        self._slots = Slots(self.policy.max_concurrency)
        self._breaker = _Breaker()
        self._scope = str(cache.folder) if cache else f"caller {id(self)}"

    async def complete(self, request: Request) -> Completion:
        """Answer a request from the cache, from an equal call in flight, or by a call.

        Raises:
            ModelError: It could not be had after all tries; an abstention for the role.
            FatalError: The key is refused or the model unknown; stops the run.
            RunInterrupted: The budget is spent or the service down; stops the run.
        """
        key, held = self.peek(request)
        role = self.usage.role(request.role, self.model.model)
        while True:
            if held is not None:
                self.usage.count_cached(role, held)
                return held
            with _FLIGHTS_LOCK:
                flight = _FLIGHTS.get((self._scope, key))
                leads = flight is None
                if flight is None:
                    flight = _FLIGHTS[self._scope, key] = concurrent.futures.Future()
                    flight.set_running_or_notify_cancel()  # so that no follower can cancel it
            if leads:
                return await self._lead(flight, key, request, role)
            try:
                completion = await asyncio.wrap_future(flight)
            except _GivenUp:
                _, held = self.peek(request)
                continue
            self.usage.count_cached(role, completion)
            return completion

    def peek(self, request: Request) -> tuple[str, Completion | None]:
        """Return a request's cache key and the answer that is held for it, if one is."""
        key = request_key(self.model.cache_id, request)
        return key, self._cache.get(key) if self._cache else None

    async def _lead(
        self,
        flight: concurrent.futures.Future[Completion],
        key: str,
        request: Request,
        role: RoleUsage,
    ) -> Completion:
        outcome: Completion | BaseException = _GivenUp()
        try:
            outcome = await self._ask_once(key, request, role)
            return outcome
        except Exception as error:
            outcome = error
            raise
        finally:
            with _FLIGHTS_LOCK:
                _FLIGHTS.pop((self._scope, key), None)
            if isinstance(outcome, Completion):
                flight.set_result(outcome)
            else:
                flight.set_exception(outcome)

    async def _ask_once(self, key: str, request: Request, role: RoleUsage) -> Completion:
        """Ask unless another process of this cache has, or is about to have, the answer."""
        if self._cache is None:
            async with self._slots:
                return await self._try(request, role)
        async with self._cache.in_flight(key):
            self._cache.refresh()
            held = self._cache.get(key)
            if held is not None:
                self.usage.count_cached(role, held)
                return held
            async with self._slots:
                completion = await self._try(request, role)
            self._keep(key, request, completion)
            return completion

    def _keep(self, key: str, request: Request, completion: Completion) -> None:
        assert self._cache is not None
        try:
            self._cache.put(key, self.model.model, request, completion)
        except OSError as error:
            # This answer is used; the next would be paid for and lost as well.
            self._stop(
                f"cache folder {self._cache.folder} cannot be written any more "
                f"({error.strerror}); stopped before more answers are paid for and lost"
            )

    def _stop(self, why: str) -> None:
        self._breaker.stopped = FatalError(why)
        log.error("%s", why)

    async def _try(self, request: Request, role: RoleUsage) -> Completion:
        """Try a call until it is answered, or may not or cannot be tried again."""
        spent_s, unusable = 0.0, 0
        last: ModelError
        for number in range(1, self.policy.max_tries + 1):
            await self._turn(request)
            reserved = await self._reserve(request)
            started = time.monotonic()
            try:
                left_s = max(self.policy.deadline_s - spent_s, 0.01)
                return await self._send(replace(request, attempt=unusable), role, left_s, reserved)
            except FatalError as error:
                self._breaker.stopped = error
                raise
            except UnusableError as error:
                unusable += 1
                if not error.again or unusable >= self.policy.max_unusable:
                    raise
                pause, last = 0.0, error
            except TransientError as error:
                pause, last = self._pause(number, error), error
            spent_s += time.monotonic() - started + pause
            out_of_time = spent_s > self.policy.deadline_s
            out_of_retries = self._breaker.retries >= self.policy.max_retries
            if number == self.policy.max_tries or out_of_time or out_of_retries:
                raise last
            self._breaker.retries += 1
            role.retries += 1
            log.info("%s: %s; again in %.1f s", request.role, last, pause)
            await asyncio.sleep(pause)
        raise AssertionError("max_tries is at least 1")

    async def _turn(self, request: Request) -> None:
        """Wait until the service's own pause is over and the rate limit lets one more out."""
        if self._breaker.stopped is not None:
            raise self._breaker.stopped
        while (pause := self._breaker.not_before - time.monotonic()) > 0:
            await asyncio.sleep(min(pause, 1.0))
            if self._breaker.stopped is not None:
                raise self._breaker.stopped
        if self._limit is not None:
            await self._limit.wait(estimated_tokens(request) + request.sampling.max_tokens)
        if self._breaker.stopped is not None:
            raise self._breaker.stopped

    async def _reserve(self, request: Request) -> float:
        """Take the call out of the budget; wait where calls in flight may give some of it back."""
        try:
            while (reserved := self.usage.reserve(self.model.model, request)) is None:
                await asyncio.sleep(0.05)
                if self._breaker.stopped is not None:
                    raise self._breaker.stopped
        except BudgetReached as error:
            self._breaker.stopped = error
            raise
        return reserved

    async def _send(
        self, request: Request, role: RoleUsage, left_s: float, reserved: float
    ) -> Completion:
        """Send one try and book what became of it."""
        completion: Completion | None = None
        failure: str | None = "cancelled"
        try:
            timeout = min(self.policy.timeout_s, left_s)
            async with asyncio.timeout(timeout):
                completion = await self._asked(request)
            failure = None
            return usable(completion, request)
        except TimeoutError:
            failure = "timeout"
            raise TransientError(f"no answer within {timeout:g} s", "timeout") from None
        except (ModelError, FatalError) as error:
            failure = getattr(error, "kind", "fatal")
            completion = completion or getattr(error, "counts", None)  # of what was blocked
            raise
        finally:
            try:
                self.usage.settle(role, reserved, completion, failure)
            except OSError as error:  # this answer is used, and kept
                self._stop(
                    f"{error.filename} cannot be written ({error.strerror}); stopped before more "
                    "is spent than the run's budget will know of"
                )
            self._watch(failure, completion is not None or failure == "blocked")
            if self._limit is not None:
                guessed = estimated_tokens(request) + request.sampling.max_tokens
                used = completion.tokens_in + completion.tokens_out if completion else 0
                self._limit.correct(used - guessed)

    async def _asked(self, request: Request) -> Completion:
        """Ask the model; whatever goes wrong in reading its reply is a call that failed."""
        try:
            return await self.model.complete(request)
        except (ModelError, FatalError, RunInterrupted, TimeoutError):
            raise
        except Exception as error:
            raise unreadable("nothing", error) from error

    def _pause(self, number: int, error: TransientError) -> float:
        """Return the seconds until the next try, and hold back other calls where asked to."""
        longest = min(self.policy.backoff_s * 2 ** (number - 1), self.policy.max_backoff_s)
        pause: float = longest * random.uniform(0.5, 1.0)
        if error.retry_after_s is not None:
            pause = max(error.retry_after_s, pause if error.kind != "429" else 0.0)
            if error.retry_after_s > self.policy.deadline_s:
                self._breaker.stopped = ServiceDown(
                    f"{self.model.model} asks to wait {error.retry_after_s:.0f} s (a daily quota?)."
                    " All answers so far are kept; run again to go on"
                )
            elif error.kind == "429":
                until = time.monotonic() + error.retry_after_s
                self._breaker.not_before = max(self._breaker.not_before, until)
        return pause

    def _watch(self, failure: str | None, answered: bool) -> None:
        """Open the breaker after a long enough run of failures without one answer."""
        breaker, now = self._breaker, time.monotonic()
        if answered or failure == "cancelled":
            breaker.failures = 0 if answered else breaker.failures
            return
        breaker.since = breaker.since if breaker.failures else now
        breaker.failures += 1
        long_enough = now - breaker.since >= self.policy.breaker_s
        if breaker.failures >= self.policy.breaker_failures and long_enough:
            breaker.stopped = breaker.stopped or ServiceDown(
                f"{self.model.model} seems to be down: {breaker.failures} failures in a row over "
                f"{now - breaker.since:.0f} s, the last one {failure}. All answers so far are "
                "kept; run again to go on"
            )
