"""Servers that a run brings with it: vLLM and the Gemini look-alike, gone when it is done."""

from __future__ import annotations

import secrets
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from geo_utils.cluster.supervisor import Supervised
from geo_utils.models.base import redacted
from geo_utils.parameters import LocalServer

# What a policy server needs to take new weights and to give the sampled tokens' probabilities.
POLICY_OPTIONS = (
    *("--weight-transfer-config", '{"backend":"nccl"}'),
    *("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"),
)


class ServerError(RuntimeError):
    """A server did not come up.

    Attributes:
        log: The end of what it wrote.
    """

    def __init__(self, message: str, log: str = "") -> None:
        """Say what did not come up, and why."""
        super().__init__(message)
        self.log = log


def start_vllm(
    model: str, gpu: int | str, log: Path, options: Sequence[str] = (), port: int | None = None
) -> tuple[Supervised, str]:
    """Start a vLLM server on a GPU of this machine, without waiting for it.

    Args:
        model: Folder or Hub id.
        gpu: Index of its GPU.
        log: File that gets what it writes.
        options: Of `vllm serve`; `POLICY_OPTIONS` for one that a trainer sends weights to.
        port: Where it listens; default, one that is free.

    Returns:
        The program, and its address without `/v1`.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    command += ["--port", str(port), *options]
    env = {"CUDA_VISIBLE_DEVICES": str(gpu), "VLLM_SERVER_DEV_MODE": "1"}
    return Supervised(command, log, env), f"http://127.0.0.1:{port}"


def start_simulated_gemini(latency: str, key: str, log: Path) -> tuple[Supervised, str]:
    """Start the Gemini look-alike, without waiting for it.

    Args:
        latency: Distribution of a call's seconds, such as `constant:1.0`.
        key: The key that it accepts.
        log: File that gets what it writes.

    Returns:
        The program and its address.
    """
    port = free_port()
    command = [sys.executable, "-m", "geo_utils", "simulate-gemini"]
    command += [f"port={port}", f"latency={latency}", f"key={key}"]
    return Supervised(command, log), f"http://127.0.0.1:{port}"


@contextmanager
def serve_here(server: LocalServer, gpu: str, log: Path) -> Iterator[str]:
    """Serve what a run's parameters expect on this host, unless it is up already.

    Args:
        server: What is expected, and where.
        gpu: The GPU for it, as in CUDA_VISIBLE_DEVICES; empty if there is none left.
        log: File that gets what it writes.

    Yields:
        Its address.

    Raises:
        ServerError: There is no GPU for it, or it does not come up.
    """
    if _answers(f"{server.address}/v1/models"):
        yield server.address
        return
    if not gpu:
        raise ServerError(
            f"nothing answers at {server.address}, and there is no GPU for {server.model}: ask "
            "for one more (--gpus), or start the server in the lines of setup"
        )
    options = (*(POLICY_OPTIONS if server.policy else ()), *server.options)
    port = urlsplit(server.address).port
    program, url = start_vllm(server.model, gpu, log, options, port)
    with program:
        wait_until_up(program, f"{url}/health", f"vLLM server of {server.model}", 600.0)
        yield url


def wait_until_up(program: Supervised, url: str, name: str, start_s: float) -> None:
    """Wait until an address answers, be it with a refusal.

    Raises:
        ServerError: The program ended, or nothing answered in time.
    """
    until = time.monotonic() + start_s
    while (status := program.poll()) is None and time.monotonic() <= until:
        if _answers(url):
            return
        time.sleep(0.2)
    tail = redacted(program.tail(1500), 1500)
    said = f"was not up after {start_s:g} s" if status is None else f"ended with status {status}"
    raise ServerError(f"{name} {said}: {tail[-600:]}", tail)


def _answers(url: str) -> bool:
    """Tell whether an address answers, be it with a refusal."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def free_port() -> int:
    """Return a port of this machine that nothing listens on.

    Below those that the system gives to whoever asks for any (32,768 and more on Linux), as a
    server that loads a model binds its port only minutes later.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_768)  # no seed of a run's makes two choose the same
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
