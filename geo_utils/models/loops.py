"""The one event loop that all calls run on, whichever loop or thread they come from."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_AT_ONCE, _MOST = 16, 1024
_LOOP: asyncio.AbstractEventLoop | None = None
_LOCK = threading.Lock()


def _forget_loop() -> None:
    """Forget the loop in a forked child, whose copy has no thread to run it."""
    global _LOOP, _LOCK
    _LOOP, _LOCK = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_loop)


def _the_loop() -> asyncio.AbstractEventLoop:
    """Return the loop, which runs in a thread of its own for the life of the process."""
    global _LOOP
    with _LOCK:
        if _LOOP is None:
            # What is imported by now stays: garbage collection, which stops the loop, looks at a
            # third of a second's worth of objects less.
            gc.freeze()
            _LOOP = asyncio.new_event_loop()
            threading.Thread(target=_LOOP.run_forever, name="geo-utils loop", daemon=True).start()
        return _LOOP


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from a script, a notebook cell or under a running event loop.

    It runs on the one loop, so that clients, which are bound to a loop, are made once and their
    connections outlive a notebook cell. An interrupt cancels it.
    """
    if asyncio._get_running_loop() is _the_loop():
        coroutine.close()
        raise RuntimeError("run_sync was called on its own loop; await the coroutine instead")
    future = asyncio.run_coroutine_threadsafe(coroutine, _the_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def on_the_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that has to run on the one loop, also from another loop.

    Whoever cancels the call cancels the coroutine.
    """
    loop = _the_loop()
    if asyncio.get_running_loop() is loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all coroutines, and only then raise the first exception among them.

    When a budget or a failing service stops a run, calls that are under way still come to their
    end, and their answers, which are paid for, into the cache. An interrupt cancels them.

    They begin a few at a time, and so many are under way at most as a caller may have in flight:
    tens of thousands at once would leave the loop no time for anything else.
    """
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}
    each, workers, over = enumerate(coroutines), list[asyncio.Task[None]](), list[bool]()

    async def work() -> None:
        for place, coroutine in each:
            try:
                results[place] = await coroutine
            except Exception as error:
                errors[place] = error
        over.append(True)

    try:
        while not over and len(workers) < _MOST:
            workers.append(asyncio.create_task(work()))
            if len(workers) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        ended = await asyncio.gather(*workers, return_exceptions=True)
    except asyncio.CancelledError:
        for worker in workers:
            worker.cancel()
        for _, coroutine in each:
            coroutine.close()
        raise
    errors |= {len(errors) + len(results): e for e in ended if isinstance(e, BaseException)}
    if errors:
        raise errors[min(errors)]
    return [results[place] for place in range(len(results))]
