"""Requests and tokens per minute, shared by all processes of a host through a small file."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import time
from pathlib import Path

_BURST_S = 3.0  # seconds' worth of the limit that may go out at once
_STATE = struct.Struct("dd")


class RateLimit:
    """A limit on requests and on tokens per minute (generic cell rate algorithm).

    Each process books its next place in a file that is locked while it is read and written, then
    sleeps until that place comes. The limit holds for every window of 60 seconds: the steady rate
    is lowered by what a burst may add.

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
        """Use `path` for the shared state; processes that name the same file share the limit."""
        self.path = path
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
        """Move the shared clocks on and return the seconds until the booked place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            raw = os.pread(descriptor, _STATE.size, 0)
            now = time.time()
            booked = _STATE.unpack(raw) if len(raw) == _STATE.size else (now, now)
            # A clock that ran far ahead (a changed system time) must not block for ever.
            starts = [max(now, min(t, now + 3600)) for t in booked]
            ends = [max(t + s, now) for t, s in zip(starts, (request_s, token_s), strict=True)]
            os.pwrite(descriptor, _STATE.pack(*ends), 0)
        finally:
            os.close(descriptor)
        return float(max(ends) - now - max(_BURST_S, request_s))
