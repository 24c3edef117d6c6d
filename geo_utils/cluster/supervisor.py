"""Programs that never outlive whoever started them, however that ends.

A program runs under a small supervisor process. It holds one end of a pipe whose other end is the
starter's: when the starter lets go of it, is interrupted or killed, the supervisor kills the
program and everything that the program has started, also what has moved to a session of its own
(orphans fall to the supervisor, a child subreaper), and ends. Should the supervisor itself be
killed, the starter finds what is left by a mark in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_MARK = "GEO_UTILS_SUPERVISED"
_GRACE_S = 5.0  # between SIGTERM and SIGKILL


class Supervised:
    """A program under a supervisor, for a `with` block.

    Attributes:
        log: File that gets its output.
    """

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the program.

        Args:
            command: Program and arguments.
            log: File that gets what it writes.
            env: Variables set over this process's.
        """
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        held, self._pipe = os.pipe()
        mark = uuid.uuid4().hex
        self._mark = f"{_MARK}={mark}"
        out: IO[bytes] = log.open("wb")
        with out:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).resolve()), str(held), *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {}), _MARK: mark},
                pass_fds=[held], start_new_session=True,
            )  # fmt: skip
        os.close(held)

    def __enter__(self) -> Self:
        """Return the running program."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the program and all that it started down."""
        self.stop()

    def stop(self) -> None:
        """Take the program and all that it started down, and wait until they are gone."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self._process.wait()
        while left := _marked(self._mark.encode()):  # the supervisor was killed
            for pid in left:
                _signal(pid, signal.SIGKILL)
            time.sleep(0.02)

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """Return the exit status.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        return self._process.wait(timeout_s)

    def tail(self, characters: int = 600) -> str:
        """Return the end of what it wrote."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")[-characters:].strip()
        except OSError:
            return ""


def supervise(held: int, command: Sequence[str]) -> int:
    """Run a program until it ends or the pipe's other end is closed; leave nothing behind.

    Args:
        held: This process's end of the pipe.
        command: Program and arguments.

    Returns:
        The program's exit status; 128 + the signal's number if one ended it.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    os.set_inheritable(held, False)
    awake, ended = os.pipe()
    os.set_blocking(ended, False)
    signal.set_wakeup_fd(ended, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        program = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error}\n")
        return 127
    selector = selectors.DefaultSelector()
    selector.register(held, selectors.EVENT_READ)
    selector.register(awake, selectors.EVENT_READ)
    while program.poll() is None:
        for key, _ in selector.select():
            woken = os.read(key.fd, 64)
            if key.fd == held or {signal.SIGTERM, signal.SIGINT} & set(woken):
                _end_all(program)
    _end_all(program)  # what it left behind
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _end_all(program: subprocess.Popen[bytes]) -> None:
    """Ask every descendant to end, and kill those that do not."""
    until = time.monotonic() + _GRACE_S
    asked: set[int] = set()
    while left := _descendants(os.getpid()):
        for pid in left:
            late = time.monotonic() > until
            if late or pid not in asked:
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
                asked.add(pid)
        program.poll()
        _reap(program.pid)
        time.sleep(0.02)


def _reap(but: int) -> None:
    """Collect orphans that have ended; the program itself is Popen's to collect."""
    for pid in _descendants(os.getpid(), ended=True):
        if pid != but:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # not an orphan: its own parent collects it
                continue


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _marked(mark: bytes) -> list[int]:
    """Return the running processes that have a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _descendants(root: int, ended: bool = False) -> list[int]:
    """Return the processes below one that run, or those that have ended and wait to be collected.

    Args:
        root: Its process id.
        ended: Which of the two.
    """
    below: dict[int, list[int]] = {}
    zombies = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            below.setdefault(int(parent), []).append(int(entry.name))
            if state in "ZX":
                zombies.add(int(entry.name))
    found, frontier = [], [root]
    while frontier:
        children = below.get(frontier.pop(), [])
        found += children
        frontier += children
    return [pid for pid in found if (pid in zombies) == ended]


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
