"""Batches for models in this process: requests that come together are answered together."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from geo_utils.models.base import Completion, FatalError, ModelError, Request

log = logging.getLogger(__name__)
_Job = tuple[Request, "concurrent.futures.Future[Completion]"]
Generate = Callable[[Sequence[Request]], Sequence[Completion]]


class Batcher:
    """One worker thread that gathers requests and hands them to a model in batches.

    Requests of a batch share their sampling parameters; others wait for the next batch.
    """

    def __init__(self, generate: Generate, max_batch: int, window_s: float = 0.02) -> None:
        """Start with no thread; the first request starts it.

        Args:
            generate: Answers a batch, in order; runs in the worker thread.
            max_batch: Largest batch.
            window_s: How long a batch waits for more after its first request.
        """
        self._generate, self._max_batch, self._window_s = generate, max_batch, window_s
        self._queue: queue.Queue[_Job | None] = queue.Queue()
        self._held: list[_Job] = []
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def complete(self, request: Request) -> Completion:
        """Answer one request with the next batch that it fits into."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        future: concurrent.futures.Future[Completion] = concurrent.futures.Future()
        self._queue.put((request, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the worker after the batch under way."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            jobs = [job for job in batch if job[1].set_running_or_notify_cancel()]
            if not jobs:
                continue
            began, tokens = time.monotonic(), 0
            try:
                for (_, future), completion in zip(
                    jobs, self._generate([request for request, _ in jobs]), strict=True
                ):
                    tokens += completion.tokens_out
                    future.set_result(completion)
                spent = time.monotonic() - began
                waiting = len(self._held) + self._queue.qsize()
                log.info(
                    "%d answers in %.1f s, %.0f tokens/s; %d wait, about %.0f s",
                    len(jobs), spent, tokens / max(spent, 1e-9), waiting,
                    spent * waiting / len(jobs),
                )  # fmt: skip
            except (ModelError, FatalError) as error:
                _fail(jobs, error)
            except Exception as error:  # out of memory, a broken model: every later call too
                _fail(jobs, FatalError(f"the local model failed: {type(error).__name__}: {error}"))

    def _next_batch(self) -> list[_Job] | None:
        first = self._held.pop(0) if self._held else self._queue.get()
        if first is None:
            return None
        batch: list[_Job] = [first]
        rest: list[_Job] = []
        for job in self._held:
            (batch if _fits(job, batch, self._max_batch) else rest).append(job)
        self._held = rest
        deadline = time.monotonic() + self._window_s
        while len(batch) < self._max_batch:
            try:
                late = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                break
            if late is None:
                self._queue.put(None)
                break
            (batch if _fits(late, batch, self._max_batch) else self._held).append(late)
        return batch


def _fits(job: _Job, batch: Sequence[_Job], max_batch: int) -> bool:
    first, request = batch[0][0], job[0]
    same = (request.sampling, request.choices) == (first.sampling, first.choices)
    return same and len(batch) < max_batch


def _fail(jobs: Sequence[_Job], error: Exception) -> None:
    for _, future in jobs:
        if not future.done():
            future.set_exception(error)
