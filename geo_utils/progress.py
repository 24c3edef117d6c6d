"""Progress of many calls, said in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]


class Counter:
    """Progress as one line that counts: updated in place in a notebook, on stderr elsewhere."""

    def __init__(self, what: str, every_s: float = 1.0) -> None:
        """Count `what`, showing at most one update every `every_s` seconds."""
        self.what, self.every_s = what, every_s
        self.started = self.shown = time.monotonic()
        self.handle: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if 0 < done < total and now - self.shown < self.every_s:
            return
        self.shown = now
        line = f"{done:,} of {total:,} {self.what}, {now - self.started:.0f} s"
        if "ipykernel" in sys.modules:
            from IPython.display import display

            if self.handle is None:
                self.handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self.handle.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty() or done == total:
            sys.stderr.write(f"\r{line}" + "\n" * (done == total))
