"""Notebooks as a user runs them: from the command line, through bare Papermill, and badly."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from conftest import PROJECT, make_row
from headless import command, only_run, run_command, run_notebook, sets

from geo_utils import notebooks
from geo_utils.cli import app
from geo_utils.parameters import read_yaml
from geo_utils.roles.methods import PREVIOUS, is_pooled, pooled
from geo_utils.runs import Run

NB02, NB03 = "02_baseline_rewrites", "03_key_point_prompt"


def geo(*arguments):
    """The exit code of `geo`, in this process."""
    return app([*arguments], standalone_mode=False) or 0


def last_executed(executed):
    """The source of the last code cell that was begun."""
    cells = [c for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code"]
    return [c.source for c in cells if c.metadata.papermill.get("start_time")][-1]


@pytest.fixture(scope="module", params=[NB02, NB03])
def finished(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    done = run_notebook(request.param, "smoke", root)
    assert done.returncode == 0, done.stderr
    return request.param, done, only_run(root, request.param)


class TestSmoke:
    def test_the_run_folder_holds_what_it_promises(self, finished):
        notebook, done, run = finished
        names = {path.name for path in run.folder.iterdir()}
        studies = {"headroom.parquet", "adoption.parquet"} if notebook == NB03 else set()
        assert names == studies | {
            "manifest.json",
            "params.yaml",
            "samples.parquet",
            "figures",
            "notebook.ipynb",
            "report.html",
            "slides.html",
        }
        for kind in ("report", "slides"):
            assert f"{kind}: {run.folder / f'{kind}.html'}" in done.stdout

    def test_the_manifest_tells_how_it_came_about(self, finished):
        notebook, _, run = finished
        manifest = run.manifest
        assert manifest["status"] == "finished" and manifest["notebook"] == notebook
        assert manifest["parameters"]["passed"]["paths"]
        assert manifest["parameters"]["resolved"]["repeats"] == 3
        assert len(manifest["inputs"]["corpus"]) == 64
        assert manifest["usage"] == {
            "samples": 30 * 3 * (len(manifest["headline"]["methods"]) - 1),  # one row is pooled
            "abstentions": 0,
            "served_by": [],
            "roles": {},
        }
        for row in manifest["headline"]["methods"].values():
            assert row["ci_low"] <= row["key_point_probability"] <= row["ci_high"]
            assert (row["n_examples"], row["n_samples"]) == (30, 90)

    def test_the_headline_is_computed_from_the_samples(self, finished):
        _, _, run = finished
        samples = pd.read_parquet(run.folder / "samples.parquet")
        for method, row in run.manifest["headline"]["methods"].items():
            pool = PREVIOUS if is_pooled(method) else [method]
            part = samples[samples["method"].isin(pool)]
            assert row["key_point_probability"] == pytest.approx(part["supported"].mean())
            assert row["pawc"] == pytest.approx(part["pawc"].mean())

    @pytest.mark.parametrize("finished", [NB03], indirect=True)
    def test_the_key_point_edit_beats_the_original_offline(self, finished):
        _, _, run = finished
        methods = run.manifest["headline"]["methods"]
        assert methods["key_point"]["ci_low"] > methods["original"]["ci_high"]
        rivals = run.manifest["headline"]["lift over"]
        assert [*rivals][2:] == ["paste_key_point", "repeat_key_point"]
        assert rivals[pooled(2)]["low"] > 0 and rivals["original"]["n_samples"] == 90

    def test_the_report_says_offline_and_carries_no_code(self, finished):
        _, _, run = finished
        report = (run.folder / "report.html").read_text()
        slides = (run.folder / "slides.html").read_text()
        assert "offline roles: extractive engine" in report and "No hand labels: " in report
        assert "from_notebook" not in report + slides

    @pytest.mark.parametrize("finished", [NB03], indirect=True)
    def test_the_studies_are_in_manifest_figures_and_report(self, finished):
        _, _, run = finished
        found = run.manifest["headline"]["studies"]
        gain = found["headroom"]["gain of the best of k"]
        assert gain["low"] <= gain["mean"] <= gain["high"]
        assert found["adoption"]["5"]["adopter"] > found["adoption"]["0"]["other"]
        figures = {path.stem for path in (run.folder / "figures").glob("*.png")}
        assert {"headroom", "groups", "adoption", "power"} <= figures
        assert not {"transfer", "agreement"} & figures
        report = (run.folder / "report.html").read_text()
        assert "studies.transfer</code> is null" in report
        assert "seeded forms of one edit" in report

    @pytest.mark.parametrize("finished", [NB03], indirect=True)
    def test_notebook_03_shows_the_earlier_studys_values(self, finished):
        _, _, run = finished
        svg = (run.folder / "figures" / "key_point_probability.svg").read_text()
        assert all(value in svg for value in ("0.609", "0.632", "0.891"))

    @pytest.mark.parametrize("finished", [NB02], indirect=True)
    def test_a_second_run_reuses_the_folder_and_gives_the_same_table(self, finished):
        notebook, _, run = finished
        before = (run.folder / "samples.parquet").read_bytes()
        root = run.folder.parents[2]
        assert run_notebook(notebook, "smoke", root).returncode == 0
        again = only_run(root, notebook)
        assert again.folder == run.folder and len(again.manifest["attempts"]) == 2
        assert (again.folder / "samples.parquet").read_bytes() == before


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("page", ["report.html", "slides.html#/1"])
def test_pages_load_without_a_network_and_without_console_errors(finished, page, tmp_path):
    """Every host resolves to nothing, so that a request shows up in the network log as failed."""
    _, _, run = finished
    netlog = tmp_path / "net.json"
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={netlog}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=5000", "--dump-dom", f"file://{run.folder}/{page}",
        ],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    if page.startswith("slides"):
        assert re.search(r'class="[^"]*\bready\b', done.stdout), "reveal.js did not start"
        assert "present" in done.stdout
    # The browser asks for hosts of its own; a host that the page names would be the page's doing.
    source = (run.folder / page.partition("#")[0]).read_text()
    asked = set(re.findall(r'"url":"https?://([^/":]+)', netlog.read_text()))
    assert not [host for host in asked if host in source]
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", source, flags=re.DOTALL)
    loads = r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:|#)([^"']+)"""
    assert re.findall(loads, markup) == []
    assert not re.search(r"@import|url\([\"']?(?:https?:)?//", markup)


@pytest.mark.parametrize("file", ["gemini", "smoke"])
def test_a_dotted_name_sets_one_entry_and_keeps_the_others(monkeypatch, file):
    seen = {}
    monkeypatch.setattr(notebooks, "execute", lambda _, values, *rest: seen.update(values) or 0)
    assert geo("run", NB02, file, "calls.max_cost=5", "calls.max_tries=3") == 0
    before = read_yaml(PROJECT / "params" / NB02 / f"{file}.yaml").get("calls", {})
    assert seen["calls"] == before | {"max_cost": 5, "max_tries": 3}


def test_a_terminal_shows_how_far_the_notebook_is(tmp_path):
    ours, theirs = pty.openpty()
    line = run_command(NB02, "smoke", tmp_path, ("corpus.limit", "4"))
    process = subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # so the end of a terminal is told
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    assert re.search(rb"\r\x1b\[K  02: \d+ of 36 samples, \d+ s", shown), shown.decode()


def test_what_is_measured_and_what_is_drawn_load_nothing_that_they_do_not_need():
    """Six seconds of a run of 01 that has all its rows, and a second of every report."""
    code = "import sys, geo_utils.efficiency.bench, geo_utils.show.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert not {"torch", "trl", "rfc3987_syntax.syntax_helpers"} & set(loaded.stdout.split())


def test_help_and_parameters_are_shown_without_a_heavy_import(heavy_imports):
    for line in (["--help"], ["params", "03"], ["slurm", "submit", "--help"]):
        assert command("geo_utils", *line).returncode == 0
    assert not heavy_imports()


class TestBadParameters:
    def test_the_command_line_refuses_before_anything_runs(self, tmp_path, heavy_imports):
        done = run_notebook(NB02, "smoke", tmp_path / "out", ("repeats", "0"))
        assert done.returncode == 2 and "repeats=0: input should be greater" in done.stderr
        assert not heavy_imports() and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("repeat", "3", "'repeat' is no parameter; did you mean 'repeats'?"),
            ("engine", "ofline", "engine: 'ofline' names no model; did you mean 'offline'?"),
        ],
    )
    def test_bare_papermill_stops_before_anything_is_loaded(
        self, tmp_path, heavy_imports, name, value, message
    ):
        out = tmp_path / "out.ipynb"
        done = command(
            "papermill", f"notebooks/{NB02}.ipynb", out, "-y", f"paths: {{output: {tmp_path}}}",
            "-p", name, value, "--no-progress-bar",
        )  # fmt: skip
        assert done.returncode != 0 and message in done.stderr
        assert "params = BaselineRewritesParams.from_notebook(" in last_executed(out)
        assert heavy_imports() == {"papermill", "nbclient", "ipykernel"}
        assert not (tmp_path / NB02).exists()


def test_labels_that_cannot_be_read_stop_a_run_before_its_corpus(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"labels": {}}\n{"query_id": "q"}\n')
    done = run_notebook(NB03, "smoke", tmp_path, ("labels", tmp_path / "labels.jsonl"))
    assert done.returncode == 1
    run = only_run(tmp_path, NB03)
    said = "labels.jsonl, line 2: no key_point_number, repeat, method"
    assert said in run.manifest["reason"] and "`geo labels import`" in run.manifest["reason"]
    assert "load_labels(params.labels)" in last_executed(run.folder / "notebook.ipynb")


class TestFullDisk:
    """It ends with a line that names the file; what the manifest says is true."""

    def check(self, root, code, said):
        assert code in (1, 2) and "Traceback" not in said, said
        told = [line for line in said.splitlines() if "o space left" in line and str(root) in line]
        assert told, said  # of what could not be rendered for the same reason, one more
        assert not list(root.rglob(".*.json*")) and not list(root.rglob(".reserve"))
        for manifest in root.rglob("manifest.json"):
            written = json.loads(manifest.read_text())
            assert written["status"] == "failed" and "o space left" in written["reason"], written

    @pytest.mark.parametrize("size", ["100k", "320k", "400k", "1m"])
    def test_from_the_start_or_soon(self, small_disk, size):
        root = small_disk(size)
        done = run_notebook(NB02, "smoke", root, ("corpus.limit", "4"))
        self.check(root, done.returncode, done.stderr)

    def test_in_the_middle_and_then_there_is_room_again(self, small_disk):
        root = small_disk("16m")
        process = subprocess.Popen(
            run_command(NB02, "smoke", root, ("corpus.limit", 4)), cwd=PROJECT,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "running in" in first
        with (root / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        said = first + process.communicate(timeout=600)[1]
        self.check(root, process.returncode, said)
        assert only_run(root, NB02).manifest["status"] == "failed"
        (root / "filler").unlink()
        done = run_notebook(NB02, "smoke", root, ("corpus.limit", "4"))
        assert done.returncode == 0, done.stderr
        assert only_run(root, NB02).manifest["status"] == "finished"


def test_bare_papermill_with_a_parameter_file(tmp_path):
    out = tmp_path / "out.ipynb"
    done = command(
        "papermill", f"notebooks/{NB02}.ipynb", out, "-f", f"params/{NB02}/smoke.yaml",
        "-y", f"paths: {{output: {tmp_path}}}\ncorpus: {{limit: 4}}", "--no-progress-bar",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path, NB02)
    assert run.manifest["status"] == "finished"
    assert run.manifest["parameters"]["passed"]["corpus"] == {"limit": 4}
    rendered = command("geo_utils", "report", out)
    assert rendered.returncode == 0 and (tmp_path / "report.html").exists()


@pytest.mark.skipif(
    not (PROJECT / "../shared/data/researchy-geo-dev.jsonl").exists(), reason="no real rows here"
)
def test_real_rows_are_all_scored(tmp_path):
    done = run_notebook(
        NB02, "default", tmp_path, ("corpus.name", "jsonl"),
        ("corpus.path", str((PROJECT / "../shared/data/researchy-geo-dev.jsonl").resolve())),
        ("methods", "[original, keyword_stuffing, easy_to_understand, key_point, "
                    "paste_key_point, repeat_key_point]"),
        ("analyses", "{}"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path, NB02)
    executed = (run.folder / "notebook.ipynb").read_text()
    assert re.search(r"3,600 of 3,600 samples, \d+ s", executed)
    assert len(run.manifest["headline"]["methods"]) == 6 + 1


class TestMeanwhile:
    """What becomes of a run whose files are touched by somebody else."""

    def test_what_is_edited_while_the_kernel_starts_fails_the_run_that_was_found(self, tmp_path):
        prompts = tmp_path / "mine"
        prompts.mkdir()
        (prompts / "answer.md").write_text("one")
        process = subprocess.Popen(
            run_command(NB02, "smoke", tmp_path / "out", ("corpus.limit", 2),
                        ("paths.prompts", prompts)),
            cwd=PROJECT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None and "running in" in process.stderr.readline()
        (prompts / "answer.md").write_text("two")
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 1 and "RunChanged: a file that the parameters name" in said
        assert only_run(tmp_path / "out", NB02).manifest["status"] == "failed"

    def test_a_folder_that_is_deleted_is_said_and_not_made_anew(
        self, tmp_path, monkeypatch, capsys
    ):
        def papermill(notebook, executed, *_):
            shutil.rmtree(executed.parent)
            return 1

        monkeypatch.setattr(notebooks, "_papermill", papermill)
        assert geo("run", NB02, "smoke", f"paths.output={tmp_path}") == 1
        assert "was deleted while it ran; run it again" in capsys.readouterr().err
        assert not list(tmp_path.glob(f"{NB02}/*/*"))

    def test_a_disk_that_cannot_be_written_any_more_is_named(self, tmp_path, monkeypatch, capsys):
        def refuse(self, **_):
            raise OSError(30, "Read-only file system", str(self))

        def papermill(*_):
            monkeypatch.setattr(Path, "unlink", refuse)
            monkeypatch.setattr(Run, "update", lambda self, **_: refuse(self.folder))
            return 1

        monkeypatch.setattr(notebooks, "_papermill", papermill)
        assert geo("run", NB02, "smoke", f"paths.output={tmp_path}") == 1
        assert "cannot be recorded: [Errno 30] Read-only file sys" in capsys.readouterr().err

    def test_a_corpus_that_may_not_be_read_is_named(self, tmp_path, monkeypatch, capsys):
        corpus = tmp_path / "rows.jsonl"
        corpus.write_text(json.dumps(make_row()))
        opened = Path.open

        def refuse(path, *mode, **options):
            if path == corpus:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *mode, **options)

        monkeypatch.setattr(Path, "open", refuse)
        given = sets(("corpus.name", "jsonl"), ("corpus.path", corpus), ("paths.output", tmp_path))
        monkeypatch.setattr("geo_utils.cli._check_corpus", lambda params: None)
        assert geo("run", NB02, "smoke", *given) == 2
        assert capsys.readouterr().err == f"{NB02}: [Errno 13] Permission denied: '{corpus}'\n"


class TestEndings:
    """A run of 90,000 samples, ended from outside in the middle of it."""

    overrides = (("repeats", "1000"), ("variant", "long"))

    def start(self, root, attempt=1):
        process = subprocess.Popen(
            run_command(NB02, "smoke", root, *self.overrides), cwd=PROJECT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            time.sleep(0.2)
            manifests = list(Path(root).glob(f"{NB02}/long/*/manifest.json"))
            for run in (Run(path.parent) for path in manifests):
                if len(run.manifest.get("attempts", ())) == attempt:
                    time.sleep(1.5)  # into the evaluation
                    return process, run, run.manifest["attempts"][-1]["pid"]
        raise AssertionError("the run never started")

    @staticmethod
    def gone(pid):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            time.sleep(0.1)
        return False

    def test_a_kernel_that_dies_is_a_failed_run_that_can_be_resumed(self, tmp_path):
        process, run, kernel = self.start(tmp_path)
        os.kill(kernel, signal.SIGKILL)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 1
        assert run.manifest["status"] == "failed" and "kernel died" in run.manifest["reason"]
        assert "kernel died" in errors
        process, again, kernel = self.start(tmp_path, attempt=2)
        assert again.folder == run.folder
        assert again.manifest["status"] == "started"
        self.interrupt(process, again, kernel, signal.SIGTERM)

    def test_ctrl_c_ends_the_run_as_interrupted(self, tmp_path):
        process, run, kernel = self.start(tmp_path)
        # A port that Jupyter had chosen might have been taken before the kernel bound it.
        used = {c.laddr for c in psutil.Process(kernel).net_connections("unix")}
        assert len([name for name in used if re.match("/tmp/.+/kernel-ipc-", name)]) == 5, used
        self.interrupt(process, run, kernel, signal.SIGINT)

    def interrupt(self, process, run, kernel, number):
        process.send_signal(number)
        process.communicate(timeout=600)
        assert process.returncode == 128 + number
        assert run.manifest["status"] == "interrupted"
        assert run.manifest["reason"] == f"signal {number.name}"
        assert self.gone(kernel)
