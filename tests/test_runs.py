import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import GEMINI, PROJECT

from geo_utils import runs
from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.files import (
    append_jsonl,
    project_root,
    read_jsonl,
    resolve_path,
    write_atomic,
)
from geo_utils.parameters import default_parameters
from geo_utils.runs import Run, locate_run, provenance, start_run

NAME = "02_baseline_rewrites"
DEFAULTS = default_parameters(PROJECT / "notebooks" / f"{NAME}.ipynb")


@pytest.fixture
def params(tmp_path):
    def make(**changes):
        values = DEFAULTS | changes
        values["paths"] = {"output": str(tmp_path)} | changes.get("paths", {})
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
    assert last["parameters"]["resolved"]["corpus"]["name"] == "sample"
    assert last["provenance"].startswith("offline roles")
    for entry in ("notebook_hash", "git", "seeds", "packages", "gpus", "slurm", "models", "python"):
        assert entry in last
    assert last["packages"]["papermill"]


def test_the_same_parameters_resume_an_unfinished_run(params):
    first = start_run(NAME, params())
    assert start_run(NAME, params()).folder == first.folder
    assert len(first.manifest["attempts"]) == 2
    first.end("failed", "why: api_key=hunter2hunter")
    assert first.manifest["reason"] == "why: api_key=[secret]"
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
    there = params(paths={"output": str(tmp_path / "elsewhere")})
    assert locate_run(NAME, params()).folder.name[-8:] == locate_run(NAME, there).folder.name[-8:]


def test_another_content_of_what_is_named_is_another_run(params, tmp_path):
    (tmp_path / "model").mkdir()
    files = {"labels": tmp_path / "labels.jsonl", "judge": tmp_path / "model" / "config.json"}
    for name, path in files.items():
        found = set()
        for content in ("one", "two"):
            path.write_text(content)
            given = {"labels": str(path), "judge": f"entailment/{path.parent}"}[name]
            found.add(locate_run(NAME, params(**{name: given})).folder.name[-8:])
        assert len(found) == 2, name


def test_weights_that_were_copied_are_the_same_and_other_ones_are_not(
    params, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "_READ_UP_TO", 64)
    monkeypatch.setattr(runs, "_PART", 8)
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()

    def made(content, time=0):
        path.write_bytes(content)
        os.utime(path, (time, time))
        return locate_run(NAME, params(judge=f"entailment/{path.parent}")).folder.name[-8:]

    plain = bytes(range(200))
    assert made(plain) == made(plain, 86400)
    for other in (b"x" + plain[1:], plain[:-1] + b"x", plain + b"x", plain[:100] + plain[101:]):
        assert made(other) != made(plain)


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


@pytest.mark.parametrize("attempts", [None, "x", 3, {"a": 1}])
def test_a_manifest_of_another_shape_is_gone_on_from(params, attempts):
    run = start_run(NAME, params())
    run.end("failed", "x")
    kept = json.dumps({"status": "failed", "headline": {"lift": 0.5}, "attempts": attempts})
    (run.folder / "manifest.json").write_text(kept)
    again = start_run(NAME, params())
    assert again.folder == run.folder and len(again.manifest["attempts"]) == 1
    assert again.manifest["provenance"].startswith("offline roles")


def test_a_manifest_that_cannot_be_read_for_a_moment_is_not_written_anew(params, monkeypatch):
    run = start_run(NAME, params())
    run.finish({"lift": 0.5})
    read = Path.read_text

    def broken(path, **options):
        if path.name == "manifest.json":
            raise OSError(5, "Input/output error", str(path))
        return read(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", broken)
        assert run.manifest == {}
        with pytest.raises(OSError, match=r"Input/output error: .*manifest.json"):
            run.update(reason="x")
    assert run.manifest["headline"] == {"lift": 0.5}


def test_a_clock_that_ran_ahead_does_not_hide_a_run_that_can_be_resumed(params, monkeypatch):
    run = start_run(NAME, params())
    run.finish({})
    run.folder.rename(run.folder.with_name(f"2999{run.folder.name[4:]}"))
    monkeypatch.setattr(runs, "code_hash", lambda: "changed")
    later = start_run(NAME, params())
    later.end("interrupted", "x")
    assert locate_run(NAME, params()).folder == later.folder


@pytest.mark.parametrize("ended", [True, False])
def test_a_rerun_that_does_not_end_well_leaves_the_run_finished(params, monkeypatch, ended):
    run = start_run(NAME, params())
    run.finish({"lift": 0.5})
    assert start_run(NAME, params()).manifest["rerun"] == "started"
    if ended:  # else it was killed
        run.end("failed", "x")
    assert run.manifest["status"] == "finished"
    assert run.manifest["rerun"] == ("failed: x" if ended else "started")
    with monkeypatch.context() as patched:
        patched.setattr(runs, "code_hash", lambda: "changed")
        assert locate_run(NAME, params()).folder != run.folder  # that would overwrite its samples
    start_run(NAME, params()).finish({"lift": 0.5})
    assert run.manifest["rerun"] is None


def test_the_code_that_a_result_depends_on_is_every_file_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "geo_utils"
    (package / "data").mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    found = {runs.code_hash.__wrapped__()}
    for name in ("runs.py", "data/talk.json", "data/record.xz", "page.html", "job.sh", "rules.md"):
        (package / name).write_text("x")
        found.add(runs.code_hash.__wrapped__())
    assert len(found) == 7
    (package / "runs.cpython-311.pyc").write_text("x")
    assert runs.code_hash.__wrapped__() in found


def test_a_file_system_without_locks_is_named(params, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("geo_utils.runs.fcntl.flock", refuse)
    said = r"locked here \(Function not implemented\); set paths.output to .*/\.locks/.*\.work"
    with pytest.raises(OSError, match=said):
        start_run(NAME, params())


def test_a_run_is_held_until_its_end_is_written(params, monkeypatch):
    run = start_run(NAME, params())
    held = []
    update = Run.update
    monkeypatch.setattr(
        Run, "update",
        lambda self, **entries: held.append(self.folder in runs._HELD) or update(self, **entries),
    )  # fmt: skip
    run.end("failed", "x")
    assert held == [True] and run.folder not in runs._HELD


def test_a_kernel_does_not_go_on_with_another_run_than_it_was_started_for(params, monkeypatch):
    monkeypatch.setenv(runs.EXPECTED, "/another/run")
    with pytest.raises(runs.RunChanged, match="was edited while the run was being started"):
        start_run(NAME, params())
    assert not locate_run(NAME, params()).folder.exists()


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


def test_a_disk_that_cannot_be_written_at_all_is_named_by_the_file(small_disk):
    folder = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(OSError, match=rf"Read-only file system: '{folder}/manifest.json'"):
        write_atomic(folder / "manifest.json", "new")


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
        return params(engine=GEMINI)

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
