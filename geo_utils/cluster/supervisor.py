"""Programs that never outlive whoever started them, however that ends.

A program runs under a small supervisor process. It holds one end of a pipe whose other end is the
starter's: when the starter lets go of it, is interrupted or killed, the supervisor kills the
program and everything that the program has started, also what has moved to a session of its own
(orphans fall to the supervisor, a child subreaper), and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
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
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).resolve()), str(held), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                pass_fds=[held],
                start_new_session=True,
            )
        os.close(held)

    def __enter__(self) -> Self:
        """Return the running program."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the program and all that it started down."""
        self.stop()

    def stop(self) -> None:
        """Take the program and all that it started down, and wait until they are gone."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self._process.wait()

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
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    try:
        program = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error}\n")
        return 127
    while program.poll() is None:
        if select.select([held], [], [], 0.05)[0] or told:
            _end_all(program)
    _end_all(program)  # what it left behind
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _end_all(program: subprocess.Popen[bytes]) -> None:
    """Ask every descendant to end, kill those that do not, and collect what has ended."""
    until = time.monotonic() + _GRACE_S
    asked: set[psutil.Process] = set()
    while left := psutil.Process().children(recursive=True):
        late = time.monotonic() > until
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if late or process not in asked:
                    process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
            # The program itself is Popen's to collect, and another's child is its parent's.
            with contextlib.suppress(ChildProcessError):
                if process.pid != program.pid:
                    os.waitpid(process.pid, os.WNOHANG)
        asked.update(left)
        program.poll()
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
