"""Real servers on loopback for the tests of clients."""

import collections
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(url, process, seconds=60):
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
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        defaults = {"latency": "constant:0", "port": self.port, "log": log}
        self.arguments = [
            part
            for name, value in (defaults | options).items()
            for part in (f"--{name.replace('_', '-')}={value}",)
        ]
        self.process = None

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "geo_utils.models.simulated_gemini", *self.arguments]
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
