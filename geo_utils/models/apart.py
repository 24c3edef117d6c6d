"""A service's client in a process of its own, for a process that has better things to compute.

A client takes milliseconds of Python for each call. In the process of a training these come out
of the training's own, as Python runs one thread at a time: on two CPU cores, a loop of small
operations lost 0.3 to 0.6 s beside 64 rewards, and 0.2 s where the client was apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from typing import Any

from geo_utils.models.base import Completion, FatalError, LanguageModel, Request


class Apart:
    """A language model that a process of its own asks; it ends with this one, however that ends.

    Attributes:
        model: Its id.
        cache_id: Its id in cache keys.
    """

    def __init__(self, make: Callable[[], LanguageModel]) -> None:
        """Start the process, and make the model there.

        Args:
            make: Makes it; has to be picklable.

        Raises:
            FatalError: It cannot be made.
        """
        self._pipe, theirs = Pipe()
        end = theirs.fileno()
        command = [sys.executable, "-m", "geo_utils.models.apart", str(end)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[end], start_new_session=True
        )
        theirs.close()
        self._numbers = itertools.count()
        self._calls: dict[int, Future[Any]] = {}
        self._send(make)
        try:
            made = self._pipe.recv()
        except (EOFError, OSError):
            raise FatalError(f"no client: its process ended with {self._process.wait()}") from None
        if isinstance(made, Exception):
            raise made
        self.model, self.cache_id = made
        threading.Thread(target=self._read, daemon=True).start()

    async def complete(self, request: Request) -> Completion:
        """Answer one request; see `LanguageModel`."""
        found: Completion = await self._call("complete", request)
        return found

    async def probe(self) -> None:
        """Check that the model is there; see `LanguageModel`."""
        await self._call("probe")

    async def close(self) -> None:
        """Close the connections, and end the process."""
        if self._process.poll() is None:
            with contextlib.suppress(FatalError):
                await self._call("close")
                self._send(None)
            await asyncio.to_thread(self._process.wait)

    async def _call(self, name: str, *args: Any) -> Any:
        number, call = next(self._numbers), Future[Any]()
        self._calls[number] = call
        try:
            self._send((number, name, args))
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            with contextlib.suppress(FatalError):
                self._send((number, "cancel", ()))
            raise
        finally:
            self._calls.pop(number, None)

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise self._ended() from None

    def _read(self) -> None:
        """Hand each answer to its call, until the process ends."""
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                number, found = self._pipe.recv()
                if number in self._calls:
                    _settle(self._calls[number], found)
        for call in list(self._calls.values()):
            _settle(call, self._ended())

    def _ended(self) -> FatalError:
        return FatalError(
            f"the client's process ended with {self._process.wait()}; run again to go on"
        )


def _settle(call: Future[Any], found: Any) -> None:
    with contextlib.suppress(Exception):  # cancelled in this very moment
        if isinstance(found, Exception):
            call.set_exception(found)
        else:
            call.set_result(found)


async def _serve(pipe: Connection) -> None:
    """Answer what comes in until the other end is closed, or says that it is over."""
    loop = asyncio.get_running_loop()
    tasks: dict[int, asyncio.Task[None]] = {}
    over = asyncio.Event()

    async def answer(number: int, name: str, args: tuple[Any, ...]) -> None:
        try:
            found = await getattr(model, name)(*args)
        except Exception as error:
            found = _portable(error)
        pipe.send((number, found))

    def begin(number: int, name: str, args: tuple[Any, ...]) -> None:
        if name != "cancel":
            tasks[number] = loop.create_task(answer(number, name, args))
            tasks[number].add_done_callback(lambda _: tasks.pop(number))
        elif number in tasks:
            tasks[number].cancel()

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while message := pipe.recv():
                loop.call_soon_threadsafe(begin, *message)
        loop.call_soon_threadsafe(over.set)

    try:
        model: LanguageModel = pipe.recv()()
    except Exception as error:
        pipe.send(_portable(error))
        return
    pipe.send((model.model, model.cache_id))
    threading.Thread(target=read, daemon=True).start()
    await over.wait()


def _portable(error: Exception) -> Exception:
    """Return an error, or what it says where it cannot be told to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which still waits for answers
    asyncio.run(_serve(Connection(int(sys.argv[1]))))
