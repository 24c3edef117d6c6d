"""One event loop for all synchronous doors, so that connections outlive a notebook cell."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_LOOP: asyncio.AbstractEventLoop | None = None
_LOCK = threading.Lock()


def _forget_loop() -> None:
    """Forget the loop in a forked child, whose copy has no thread to run it."""
    global _LOOP, _LOCK
    _LOOP, _LOCK = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_loop)


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from a script, a notebook cell or under a running event loop.

    It runs in a thread of its own, on one loop for the life of the process: clients that are
    bound to a loop are made once. An interrupt cancels it.
    """
    global _LOOP
    if _LOOP is not None and asyncio._get_running_loop() is _LOOP:
        coroutine.close()
        raise RuntimeError("run_sync was called on its own loop; await the coroutine instead")
    with _LOCK:
        if _LOOP is None:
            _LOOP = asyncio.new_event_loop()
            threading.Thread(target=_LOOP.run_forever, name="geo-utils loop", daemon=True).start()
    future = asyncio.run_coroutine_threadsafe(coroutine, _LOOP)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all coroutines, and only then raise the first exception among them.

    When a budget or a failing service stops a run, calls that are under way still come to their
    end, and their answers, which are paid for, into the cache. An interrupt cancels them.
    """
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
