import asyncio
import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from geo_utils.corpus import Example, KeyPoint

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def rows_file(tmp_path):
    """Write rows as JSON lines and return the path."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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


SECRET = "AIza-a-secret-that-must-never-show"


def pytest_collection_modifyitems(items):
    """Start with the file that takes longest, so that no worker is left alone with it."""
    items.sort(key=lambda item: "test_slurm_cluster" not in item.nodeid)
