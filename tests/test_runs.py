import json
import multiprocessing
import os
import signal
import time

import pytest
from conftest import PROJECT

from geo_utils import runs
from geo_utils.cells import default_parameters
from geo_utils.files import (
    append_jsonl,
    project_root,
    read_jsonl,
    resolve_path,
    write_atomic,
)
from geo_utils.params import BaselineRewritesParams
from geo_utils.provenance import provenance
from geo_utils.runs import locate_run, start_run

NAME = "02_baseline_rewrites"
DEFAULTS = default_parameters(PROJECT / "notebooks" / f"{NAME}.ipynb")


@pytest.fixture
def params(tmp_path):
    def make(**changes):
        values = DEFAULTS | {"output_root": str(tmp_path)} | changes
        return BaselineRewritesParams.check(values, changes)

    return make


def test_the_manifest_is_written_first_and_last(params):
    run = start_run(NAME, params(repeats=2))
    first = run.manifest
    assert first["status"] == "started" and first["headline"] is None
    assert run.folder.parent.parts[-2:] == (NAME, "default")
    run.finish({"methods": {}}, {"samples": 3})
    last = run.manifest
    assert last["status"] == "finished" and last["headline"] == {"methods": {}}
    assert last["parameters"]["passed"] == {"repeats": 2}
    assert last["parameters"]["resolved"]["corpus"] == "sample"
    assert last["provenance"].startswith("offline roles")
    for entry in ("notebook_hash", "git", "seeds", "packages", "gpus", "slurm", "models", "python"):
        assert entry in last
    assert last["packages"]["papermill"]


def test_the_same_parameters_resume_an_unfinished_run(params):
    first = start_run(NAME, params())
    assert start_run(NAME, params()).folder == first.folder
    assert len(first.manifest["attempts"]) == 2
    first.end("failed", "why")
    assert start_run(NAME, params()).folder == first.folder
    assert first.manifest["reason"] is None
    assert start_run(NAME, params(seed=1)).folder != first.folder


def test_a_finished_run_is_reused_only_by_the_same_code(params, monkeypatch):
    run = start_run(NAME, params())
    run.finish({})
    assert locate_run(NAME, params()).folder == run.folder
    monkeypatch.setattr(runs, "code_hash", lambda: "changed")
    assert not locate_run(NAME, params()).manifest
    run.update(status="interrupted")
    assert locate_run(NAME, params()).folder == run.folder


def test_where_outputs_lie_does_not_make_another_run(params, tmp_path):
    there = params(output_root=str(tmp_path / "elsewhere"))
    assert locate_run(NAME, params()).folder.name[-8:] == locate_run(NAME, there).folder.name[-8:]


def test_a_finished_run_stays_finished(params):
    run = start_run(NAME, params())
    run.finish({})
    run.end("failed", "a cell run by hand afterwards")
    assert run.manifest["status"] == "finished"


@pytest.mark.parametrize("content", ["", '{"status": "fini', "[]", "\x00"])
def test_a_torn_manifest_reads_as_none(params, content):
    run = start_run(NAME, params())
    (run.folder / "manifest.json").write_text(content)
    assert run.manifest == {}
    run.end("failed", "torn")
    assert run.manifest["status"] == "failed"


def test_not_a_number_never_enters_a_manifest(params):
    with pytest.raises(ValueError, match="JSON"):
        start_run(NAME, params()).finish({"x": float("nan")})


def _write_for_ever(path):
    for i in range(10_000_000):
        write_atomic(path, json.dumps({"i": i, "filler": "x" * 200_000}))


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "manifest.json"
    for pause in (0.05, 0.08, 0.13, 0.21, 0.3):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        writer.start()
        while not path.exists():  # it begins late on a busy machine
            assert writer.is_alive()
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert len(json.loads(path.read_text())["filler"]) == 200_000


@pytest.mark.parametrize("data", ["\ud800", "x" * 10, b"x" * 10], ids=["no text", "text", "bytes"])
@pytest.mark.parametrize("broken", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch, data, broken):
    path = tmp_path / "manifest.json"
    write_atomic(path, "old")

    def fail(descriptor):
        raise broken

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((OSError, KeyboardInterrupt, UnicodeEncodeError)) as raised:
        write_atomic(path, data)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"] and path.read_text() == "old"
    if isinstance(raised.value, OSError):
        assert str(raised.value) == f"[Errno 28] No space left on device: '{path}'"


def test_a_log_loses_no_row_to_a_torn_one_or_to_what_a_text_holds(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"n": 1, "text": "a\u2028b\x85c\u00e9\nd"}, {"n": 2}, {"n": 3, "text": "\u00e9"}]
    append_jsonl(path, rows[:2])
    append_jsonl(path, [])
    assert read_jsonl(path) == rows[:2]
    append_jsonl(path, rows[2:])
    os.truncate(path, path.stat().st_size - 4)  # in the middle of a letter
    assert read_jsonl(path) == rows[:2]
    append_jsonl(path, rows[2:])
    assert read_jsonl(path) == rows


def test_a_log_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/rows.jsonl'"):
        append_jsonl(tmp_path / "rows.jsonl", [{"n": 1}])


def test_relative_paths_start_at_the_projects_root(monkeypatch):
    monkeypatch.chdir(PROJECT / "notebooks")
    assert project_root() == PROJECT
    assert resolve_path("outputs") == PROJECT / "outputs"
    assert str(resolve_path("/tmp/x")) == "/tmp/x"


class TestRehearsal:
    """A run against a stand-in of Gemini's service is never taken for one of the service."""

    @pytest.fixture
    def gemini(self, params):
        return params(engine="gemini")

    def test_it_is_a_run_of_its_own(self, gemini, monkeypatch):
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:8765")
        rehearsal = start_run(NAME, gemini)
        rehearsal.finish({"lift": 0.5})
        assert "at another address" in rehearsal.manifest["provenance"]
        monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
        real = start_run(NAME, gemini)
        assert real.folder != rehearsal.folder and real.manifest["headline"] is None
        assert "another address" not in real.manifest["provenance"]

    def test_figures_that_are_kept_keep_their_label(self, gemini):
        run = start_run(NAME, gemini)
        run.update(provenance="SIMULATED by a stand-in")
        run.finish({"lift": 0.5})
        again = start_run(NAME, gemini)
        again.end("failed", "Gemini cannot be reached")
        assert again.folder == run.folder
        assert again.manifest["provenance"] == "SIMULATED by a stand-in"

    def test_a_model_that_was_asked_besides_is_named(self, params, gemini):
        asked = ["simulated-flash", "/somewhere/checkpoints/final"]
        assert provenance(params(), asked).startswith("SIMULATED by a stand-in (simulated-flash)")
        assert "no model" not in provenance(params(), asked)
        assert "somewhere" not in provenance(params(), asked)
        assert "no model" in provenance(params()) and "SIMULATED" in provenance(gemini, asked)
