"""Requests and tokens per minute, shared by all processes of a host through a small file."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import struct
import time
from functools import lru_cache
from pathlib import Path

_BURST_S = 3.0  # seconds' worth of the limit that may go out at once
_STATE = struct.Struct("dd")
_FARTHEST_S = 86_400.0  # no booking is made for a later time than a day ahead


class RateLimit:
    """A limit on requests and on tokens per minute (generic cell rate algorithm).

    Each process books its next place in a file that is locked while it is read and written, then
    sleeps until that place comes. The limit holds for every window of 60 seconds: the steady rate
    is lowered by what a burst may add. Places are times of the clock that runs from the machine's
    start, which is the same for all its processes and which nobody sets; each start of each
    machine therefore has a file of its own.

    Attributes:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit; tokens of prompt and answer together.
    """

    def __init__(
        self,
        path: Path,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        """Share the limit with the processes of this host that name the same `path`.

        Args:
            path: Of the state, without what tells machines and their starts apart.
            requests_per_minute: None for no limit.
            tokens_per_minute: None for no limit.
        """
        self.path = path.with_name(f"{path.name}.{_machine_start()}")
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        steady = 1 - _BURST_S / 60
        self._request_s = 60 / (requests_per_minute * steady) if requests_per_minute else 0.0
        self._token_s = 60 / (tokens_per_minute * steady) if tokens_per_minute else 0.0

    async def wait(self, tokens: int) -> None:
        """Book one request of about `tokens` tokens and wait for its turn."""
        if not self._request_s and not self._token_s:
            return
        pause = self._book(self._request_s, tokens * self._token_s)
        if pause > 0:
            await asyncio.sleep(pause)

    def correct(self, tokens: int) -> None:
        """Add tokens that a booking left out, or give back (negative) what it did not use."""
        if self._token_s and tokens:
            self._book(0.0, tokens * self._token_s)

    def _book(self, request_s: float, token_s: float) -> float:
        """Take the next place and return the seconds until it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            raw = os.pread(descriptor, _STATE.size, 0)
            now = time.monotonic()
            booked = _STATE.unpack(raw) if len(raw) == _STATE.size else (now, now)
            # What no process has booked, such as a torn file, must not block.
            starts = [t if now < t < now + _FARTHEST_S else now for t in booked]
            ends = [max(t + s, now) for t, s in zip(starts, (request_s, token_s), strict=True)]
            pause = float(max(ends) - now - max(_BURST_S, request_s))
            os.pwrite(descriptor, _STATE.pack(*ends), 0)
        finally:
            os.close(descriptor)
        return pause


@lru_cache(maxsize=1)
def _machine_start() -> str:
    """Return what tells this start of this machine from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux: the clock begins anew as well, but nothing says so
        return platform.node()
