"""Progress of many calls, said in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]


_LOGGED_S = 60.0  # between two lines in a log that is no terminal


class Counter:
    """Progress as one line that counts: updated in place in a notebook or terminal.

    In a log that is neither, it is a line a minute.
    """

    def __init__(self, what: str, every_s: float = 1.0) -> None:
        """Count `what`, showing at most one update every `every_s` seconds."""
        self.what, self.every_s = what, every_s
        self.started = self.shown = self.logged = time.monotonic()
        self.handle: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if 0 < done < total and now - self.shown < self.every_s:
            return
        self.shown = now
        spent = now - self.started
        line = f"{done:,} of {total:,} {self.what}, {spent:.0f} s"
        if 0 < done < total:
            line += f", about {spent * (total - done) / done:.0f} s left"
        if "ipykernel" in sys.modules:
            from IPython.display import display

            if self.handle is None:
                self.handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self.handle.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{line:60}" + "\n" * (done == total))
        elif done == total or now - self.logged >= _LOGGED_S:
            self.logged = now
            sys.stderr.write(f"{line}\n")
