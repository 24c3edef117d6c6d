"""A client in a process of its own: the same answers and errors, no process left, less of ours."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from conftest import PROJECT
from servers import Gathering

from geo_utils.models.apart import Apart
from geo_utils.models.base import FatalError, Request, TransientError, UnusableError
from geo_utils.models.caller import Caller, Retries
from geo_utils.models.gemini import DEFAULT_MODEL, Gemini
from geo_utils.models.loops import run_sync
from geo_utils.roles.make import make_model

PROMPT = "what of tides? " * 200


@pytest.fixture
def apart():
    """Make clients of an address; each is closed in the end."""
    made = []

    def make(url):
        made.append(Apart(partial(Gemini, DEFAULT_MODEL, url)))
        return made[-1]

    yield make
    for client in made:
        run_sync(client.close())
        assert client._process.poll() == 0


def ask(number=0):
    return Request("engine", f"{number} {PROMPT}")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid):
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


async def batch(model, size):
    return await asyncio.gather(*(model.complete(ask(i)) for i in range(size)))


def test_it_answers_as_the_client_itself_does(gemini_server, apart):
    url = gemini_server().url
    here, there = Gemini(DEFAULT_MODEL, url), apart(url)
    run_sync(there.probe())
    assert (there.model, there.cache_id) == (here.model, here.cache_id)
    for own, other in zip(run_sync(batch(here, 8)), run_sync(batch(there, 8)), strict=True):
        assert own.text and own.text == other.text and own.tokens_in == other.tokens_in
        assert other.served_by.startswith("simulated")


@pytest.mark.parametrize(
    ("faults", "kind", "attributes"),
    [
        ("429:1", TransientError, {"kind": "429", "retry_after_s": 7.0}),
        ("blocked:1", UnusableError, {"kind": "blocked", "again": False}),
        ("reset:1", TransientError, {"kind": "connection"}),
    ],
)
def test_errors_are_the_clients_own(gemini_server, apart, faults, kind, attributes):
    client = apart(gemini_server(faults=faults, retry_after=7).url)
    with pytest.raises(kind) as caught:
        run_sync(client.complete(ask()))
    assert {name: getattr(caught.value, name) for name in attributes} == attributes
    assert str(caught.value)


def test_a_refused_key_and_a_missing_one_stop_the_run(gemini_server, apart, monkeypatch):
    url = gemini_server(key="another").url
    client = apart(url)
    with pytest.raises(FatalError, match="the key is refused"):
        run_sync(client.complete(ask()))
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(FatalError, match="no Gemini key: set GEMINI_API_KEY"):
        run_sync(apart(url).probe())


def test_a_cancelled_call_is_cancelled_there(apart, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "k")

    async def impatient():
        async with asyncio.timeout(120), Gathering(2) as server:  # answers no call alone
            client = apart(server.url)
            first = asyncio.create_task(client.complete(ask(1)))
            while not server.calls:
                await asyncio.sleep(0.01)
            (connection,) = server.connections
            first.cancel()
            while not connection.is_closing():
                await asyncio.sleep(0.01)
            assert (await client.complete(ask(2))).text
            assert first.cancelled() and not client._calls
            await client.close()

    run_sync(impatient())


def test_a_killed_client_ends_its_calls_and_the_run(gemini_server, apart):
    client = apart(gemini_server(latency="constant:30").url)

    async def killed():
        calls = [asyncio.ensure_future(client.complete(ask(i))) for i in range(3)]
        await asyncio.sleep(0.3)
        os.kill(client._process.pid, signal.SIGKILL)
        return await asyncio.gather(*calls, return_exceptions=True)

    found = run_sync(killed())
    assert all(isinstance(e, FatalError) and "ended with -9; run again" in str(e) for e in found)
    with pytest.raises(FatalError, match="ended with -9"):
        run_sync(client.complete(ask()))
    client._process.returncode = 0  # for the fixture's own check


def test_signals_to_the_run_leave_the_client_to_it(gemini_server, apart):
    client = apart(gemini_server().url)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(client._process.pid, number)
    assert run_sync(client.complete(ask())).text


def test_it_ends_with_the_process_that_started_it(gemini_server):
    program = (
        "import time; from functools import partial\n"
        "from geo_utils.models.apart import Apart\nfrom geo_utils.models.gemini import Gemini\n"
        "print(Apart(Gemini)._process.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    client = int(starter.stdout.readline())
    assert alive(client)
    starter.kill()
    starter.wait()
    assert gone(client)


def test_a_training_keeps_most_of_the_time_that_calls_take(gemini_server, apart):
    url = gemini_server(latency="constant:0.2").url

    def spent(model):
        caller = Caller(model, retries=Retries(max_concurrency=64))
        run_sync(batch(caller, 8))  # connections and imports
        before = time.process_time()
        run_sync(batch(caller, 64))
        return time.process_time() - before

    here = min(spent(Gemini(DEFAULT_MODEL, url)) for _ in range(3))
    assert min(spent(apart(url)) for _ in range(3)) < 0.5 * here


def test_services_are_asked_apart_where_the_recipe_says_so(gemini_server):
    url = gemini_server().url
    for backend, server in (("gemini", url), ("openai", f"{url}/v1")):
        model = make_model(backend, "m", (server,), apart=True)
        assert isinstance(model, Apart) and model.model == "m"
        run_sync(model.close())
        assert gone(model._process.pid)
