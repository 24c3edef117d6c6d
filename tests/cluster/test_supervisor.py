"""Nothing that was started is left: success, failure, interrupt, kill -9 of the starter."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from geo_utils.cluster.servers import ServerError, wait_until_up
from geo_utils.cluster.supervisor import Supervised

# A program with a child in a session of its own that ignores SIGTERM, as an engine's worker may.
STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
'''], start_new_session=True)
time.sleep({wait})
sys.exit({code})
"""


def started(log: Path) -> int:
    """The process id that the stubborn child prints."""
    for _ in range(3000):  # a minute
        text = log.read_text() if log.exists() else ""
        if text.strip():
            return int(text.split()[0])
        time.sleep(0.02)
    raise AssertionError("the child did not start")


def gone(pid: int, within_s: float = 60.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def program(wait: float, code: int) -> list[str]:
    return [sys.executable, "-c", STUBBORN.format(wait=wait, code=code)]


@pytest.mark.parametrize("code", [0, 3])
def test_a_program_that_ends_leaves_nothing(tmp_path, code):
    log = tmp_path / "log"
    with Supervised(program(0.5, code), log) as running:
        child = started(log)
        assert running.wait(60) == code
    assert gone(child)


def test_leaving_the_block_takes_everything_down(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt), Supervised(program(600, 0), log) as running:
        child = started(log)
        assert running.poll() is None
        raise KeyboardInterrupt
    assert gone(child) and running.poll() is not None


def test_killing_the_program_takes_its_children_down(tmp_path):
    log = tmp_path / "log"
    with Supervised(program(600, 0), log) as running:
        child = started(log)
        parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        assert running.wait(60) == 128 + signal.SIGKILL
    assert gone(child)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_the_starter_takes_everything_down(tmp_path, number):
    log = tmp_path / "log"
    starter = textwrap.dedent(f"""
        import signal, time
        from pathlib import Path
        from geo_utils.cluster.supervisor import Supervised
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        with Supervised({program(600, 0)!r}, Path({str(log)!r})):
            time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", starter], stderr=subprocess.DEVNULL)
    child = started(log)
    process.send_signal(number)
    process.wait(60)
    assert gone(child)


def test_a_program_that_is_not_there_says_so(tmp_path):
    with Supervised(["no-such-program-here"], tmp_path / "log") as running:
        assert running.wait(60) == 127
        assert "no-such-program-here" in running.tail()


def test_a_servers_last_words_are_told_without_its_key(tmp_path):
    ends = "import sys; print('args: api_key=hunter2hunter2'); sys.exit(3)"
    with Supervised([sys.executable, "-c", ends], tmp_path / "log") as program:
        while program.poll() is None:
            time.sleep(0.05)
        with pytest.raises(ServerError, match=r"ended with status 3: args: api_key=\[secret\]"):
            wait_until_up(program, "http://127.0.0.1:9/health", "server", 60)
