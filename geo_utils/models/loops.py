"""The one event loop that all calls run on, whichever loop or thread they come from."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_AT_ONCE = 16
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

    They begin a few at a time: thousands at once would leave the loop no time for anything else.
    """
    each = list(coroutines)
    begun: list[asyncio.Task[T]] = []
    try:
        for place, coroutine in enumerate(each):
            begun.append(asyncio.create_task(coroutine))
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        results = await asyncio.gather(*begun, return_exceptions=True)
    except asyncio.CancelledError:
        for task in begun:
            task.cancel()
        for coroutine in each[len(begun) :]:
            coroutine.close()
        raise
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
