"""Real servers on loopback for the tests of clients."""

import asyncio
import collections
import contextlib
import json
import subprocess
import sys
import time
import urllib.request

from aiohttp import web

from geo_utils.cluster.servers import free_port
from geo_utils.roles import simulated_gemini


def wait_until_up(url, process, seconds=600):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server of {url} ended with {process.returncode}"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2)
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} did not come up")


class SimulatedGemini:
    """The look-alike in a process of its own, and its log."""

    def __init__(self, log, **options):
        self.log = log
        self.port = options.setdefault("port", free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        defaults = {"latency": "constant:0", "log": log}
        given = (defaults | options).items()
        self.arguments = [f"{name}={json.dumps(value, default=str)}" for name, value in given]
        self.process = None

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "geo_utils", "simulate-gemini", *self.arguments]
        )
        wait_until_up(f"{self.url}/v1beta/models", self.process)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def entries(self):
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def outcomes(self):
        return collections.Counter(entry["outcome"] for entry in self.entries())

    def answered(self):
        return collections.Counter(
            entry["prompt"] for entry in self.entries() if entry["outcome"] == "answered"
        )


class Gathering:
    """The look-alike in the test's event loop; answers no call before a crowd of them is there.

    Calls that are made one after another would wait for ever: what is asserted by this is that
    they overlap, however slow the machine is.

    Attributes:
        crowds: How many calls must be in flight before the first answer, how many more before the
            next one, ...
        most: Most calls in flight at once.
        calls: All calls.
        connections: Transports that they came over.
    """

    def __init__(self, *crowds):
        self.crowds, self.now, self.most, self.calls = list(crowds), 0, 0, 0
        self.connections = set()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._waiting, self._go = 0, asyncio.Event()

    async def _gather(self):
        self._waiting += 1
        if self.crowds and self._waiting < self.crowds[0]:
            go = self._go
            async with asyncio.timeout(120):
                await go.wait()
        elif self.crowds:
            self.crowds.pop(0)
            self._waiting = 0
            self._go.set()
            self._go = asyncio.Event()

    async def __aenter__(self):
        @web.middleware
        async def counted(request, handler):
            if request.method != "POST":
                return await handler(request)
            self.connections.add(request.transport)
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await self._gather()
                return await handler(request)
            finally:
                self.now -= 1

        settings = simulated_gemini.Settings(latency="constant:0")
        app = simulated_gemini.SimulatedGemini(settings).app
        app.middlewares.append(counted)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start()
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()
