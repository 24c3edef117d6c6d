"""A service's client in a process of its own, for a process that has better things to compute.

A client takes milliseconds of Python for each call. In the process of a training these come out
of the training's own, as Python runs one thread at a time: on two CPU cores, a loop of small
operations lost 0.3 to 0.6 s beside 64 rewards, and 0.2 s where the client was apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO, Any

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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "geo_utils.models.apart"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._calls: dict[int, Future[Any]] = {}
        self._write(make)
        try:
            made = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except EOFError:
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
            assert self._process.stdin is not None
            self._process.stdin.close()
            await asyncio.to_thread(self._process.wait)

    async def _call(self, name: str, *args: Any) -> Any:
        number, call = next(self._numbers), Future[Any]()
        self._calls[number] = call
        try:
            self._write((number, name, args))
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            with contextlib.suppress(FatalError):
                self._write((number, "cancel", ()))
            raise
        finally:
            self._calls.pop(number, None)

    def _write(self, message: Any) -> None:
        data = pickle.dumps(message)
        stream = self._process.stdin
        assert stream is not None
        try:
            with self._sending:
                stream.write(data)
                stream.flush()
        except (OSError, ValueError):  # broken, or closed
            raise self._ended() from None

    def _read(self) -> None:
        """Hand each answer to its call, until the process ends."""
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                number, found = pickle.load(self._process.stdout)  # type: ignore[arg-type]
                call = self._calls.get(number)
                if call is not None:
                    with contextlib.suppress(Exception):  # cancelled in this very moment
                        if isinstance(found, Exception):
                            call.set_exception(found)
                        else:
                            call.set_result(found)
        for call in list(self._calls.values()):
            with contextlib.suppress(Exception):
                call.set_exception(self._ended())

    def _ended(self) -> FatalError:
        return FatalError(
            f"the client's process ended with {self._process.wait()}; run again to go on"
        )


async def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer what comes in until the other end is closed."""
    loop = asyncio.get_running_loop()
    tasks: dict[int, asyncio.Task[None]] = {}
    over = asyncio.Event()

    def tell(message: Any) -> None:
        answers.write(pickle.dumps(message))
        answers.flush()

    async def answer(number: int, name: str, args: tuple[Any, ...]) -> None:
        try:
            found = await getattr(model, name)(*args)
        except Exception as error:
            found = _portable(error)
        tell((number, found))

    def begin(number: int, name: str, args: tuple[Any, ...]) -> None:
        if name == "cancel":
            if number in tasks:
                tasks[number].cancel()
        else:
            tasks[number] = loop.create_task(answer(number, name, args))
            tasks[number].add_done_callback(lambda _: tasks.pop(number))

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                loop.call_soon_threadsafe(begin, *pickle.load(requests))
        loop.call_soon_threadsafe(over.set)

    try:
        model: LanguageModel = pickle.load(requests)()
    except Exception as error:
        tell(_portable(error))
        return
    tell((model.model, model.cache_id))
    threading.Thread(target=read, daemon=True).start()
    await over.wait()


def _portable(error: Exception) -> Exception:
    """Return an error, or what it says where it cannot be told to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    """Serve the process that started this one; only its end, or its word, ends this."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which still waits for answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    asyncio.run(_serve(sys.stdin.buffer, answers))


if __name__ == "__main__":
    main()
