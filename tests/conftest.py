import asyncio
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import pytest

from geo_utils.corpus import Example, KeyPoint

PROJECT = Path(__file__).resolve().parent.parent
# Folders of tests share their stand-ins.
sys.path += [str(folder) for folder in (PROJECT / "tests").iterdir() if folder.is_dir()]
# A machine without a GPU is tested: where there is one, recipes that are refused would train.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Nobody's keys are used, and no address but that of a test's own server.
for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
    os.environ.pop(name, None)
# Its own limit of 200 ms an example would measure how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def rows_file(tmp_path):
    """Write rows as JSON lines and return the path."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


def make_row(query_id="q1", **changes):
    return {
        "query_id": query_id,
        "query": "how do tides work?",
        "target_id": 1,
        "text_list": [
            "The sea rises twice a day in most harbours. Boats wait for it.",
            "The Moon raises two bulges of water. A harbour sees a new tide every 12 hours.",
            "Fishermen know the tide tables by heart. They sail with the ebb.",
        ],
        "ori_keypoint_dict": {
            "points": [
                {"point_number": 1, "point_content": "The Moon raises two bulges of water."},
                {"point_number": 2, "point_content": "A new tide arrives every 12 hours."},
            ]
        },
    } | changes


def make_example(query_id="q1", **changes):
    fields = {
        "query": "how do tides work?",
        "sources": tuple(make_row()["text_list"]),
        "target_id": 1,
        "key_points": (KeyPoint(1, "The Moon raises two bulges of water."),),
    } | changes
    return Example(query_id, **fields)


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def gemini_server(tmp_path, monkeypatch):
    """Start Gemini look-alikes; each call with options starts one, ended with the test."""
    from servers import SimulatedGemini

    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    with contextlib.ExitStack() as stack:

        def start(**options):
            log = tmp_path / f"server-{len(options)}-{len(list(tmp_path.iterdir()))}.jsonl"
            return stack.enter_context(SimulatedGemini(log, **options))

        yield start


@pytest.fixture
def small_disk(tmp_path):
    """Make a disk of a few bytes; where that is not allowed, the test is skipped."""
    mounted = []

    def make(size):
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# Of a Python that has this as its `sitecustomize`, with `HEAVY` at its end.
NOTES_IMPORTS = """
import os, sys

def note(event, arguments):
    if event == "import" and arguments[0] in HEAVY:
        with open(os.environ["IMPORTS_OF_TEST"], "a") as file:
            file.write(f"{os.getpid()} {arguments[0]}\\n")

sys.addaudithook(note)
"""
HEAVY = {
    "torch", "transformers", "trl", "peft", "vllm", "datasets", "google.genai", "openai",
    "pandas", "scipy", "matplotlib", "nupunkt", "papermill", "nbclient", "ipykernel",
}  # fmt: skip


@pytest.fixture
def heavy_imports(tmp_path, monkeypatch):
    """What the programs that a test starts import of `HEAVY`, or what one process of them does.

    What a program does before it refuses to go on is the same on a busy machine; how many seconds
    that takes is not.
    """
    folder, notes = tmp_path / "notes_imports", tmp_path / "imports.txt"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NOTES_IMPORTS + f"HEAVY = {HEAVY!r}")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("IMPORTS_OF_TEST", str(notes))

    def found(pid=None):
        lines = notes.read_text().splitlines() if notes.exists() else []
        told = [line.split() for line in lines]
        return {name for number, name in told if pid in (None, int(number))}

    return found


@pytest.fixture
def naps(monkeypatch):
    """The seconds that each `asyncio.sleep` is asked for, which is slept all the same."""
    asked, sleep = [], asyncio.sleep

    async def noting(seconds, *result):
        asked.append(seconds)
        return await sleep(seconds, *result)

    monkeypatch.setattr(asyncio, "sleep", noting)
    return asked


def is_linear(act, text):
    """Tell whether CPU time grows with a text: a tenfold one takes 15 times as long, at most.

    Or four times that one takes 6 times as long: what outgrows the processor's caches, or shares
    them with a busy program, becomes slower once. What is not linear becomes slower again.
    """
    return any(
        growth(act, text, text * 10) < 15 or growth(act, text * 10, text * 40) < 6 for _ in range(3)
    )


def growth(act, small, large, tries=5):
    """How many times the CPU time of the small input the large one takes."""
    cpu_time(act, small)  # tables and imports that are made once
    return cpu_time(act, large, tries) / cpu_time(act, small, tries)


def cpu_time(act, given, tries=1):
    """CPU seconds that an input takes which the project's caches do not hold.

    Other programs take wall time and little CPU time; the least of some tries leaves out the rest.
    """
    spent = []
    gc.disable()  # it looks at all that the tests before have left
    try:
        for _ in range(tries):
            for cached in caches():
                cached.cache_clear()
            started = time.thread_time()
            act(given)
            spent.append(time.thread_time() - started)
    finally:
        gc.enable()
    return min(spent)


def caches():
    """Return the caches of the project's modules, less those of tables that are made once."""
    modules = [module for name, module in sys.modules.items() if name.startswith("geo_utils")]
    found = [value for module in modules for value in vars(module).values()]
    cached = [value for value in found if hasattr(value, "cache_clear")]
    return [value for value in cached if value.cache_parameters()["maxsize"] != 1]


GEMINI = "gemini/gemini-2.5-flash-lite"
SECRET = "AIza-a-secret-that-must-never-show"


LONGEST = ("slurm_time", "slurm_cluster", "test_kills", "test_headless.py", "headless_grpo",
           "headless_models", "test_repository", "test_linear", "test_efficiency.py",
           "test_training.py", "test_accounts")  # fmt: skip


def pytest_collection_modifyitems(items):
    """Start with the files that take longest, so that no worker is left alone with one."""
    places = {name: place for place, name in enumerate(LONGEST)}
    first = len(places)
    items.sort(key=lambda item: min((p for n, p in places.items() if n in item.nodeid),
                                    default=first))  # fmt: skip
