"""What is submitted, refused and guarded against, where no cluster is needed to see it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import yaml
from conftest import PROJECT, SECRET
from run_folders import HEADLINE

from geo_utils.cli import app
from geo_utils.cluster.arrays import (
    SlurmSettings,
    TaskRecord,
    collect_table,
    create,
    find,
    make_tasks,
    parse_grid,
    progress,
    script_text,
    slurm_states,
)
from geo_utils.cluster.servers import ServerError, serve_here
from geo_utils.cluster.task import run_task, servers_up
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import LocalServer, ParameterError
from geo_utils.runs import Run, code_hash, locate_run

NB02, NB04 = "02_baseline_rewrites", "04_grpo"


def main(arguments):
    """`geo slurm`, and its exit code."""
    return app(["slurm", *arguments], standalone_mode=False) or 0


def settings(**changes):
    return SlurmSettings(**changes)


@pytest.fixture
def submission(tmp_path):
    """Two tasks of notebook 02, written and not submitted."""
    overrides = [("paths.output", str(tmp_path)), ("paths.cache", str(tmp_path / "cache"))]
    notebook, tasks = make_tasks(NB02, ["smoke"], {"seed": [0, 1]}, overrides)
    return create("sweep", notebook, tasks, settings(max_restarts=3, max_stalled=2))


class TestGrid:
    @pytest.mark.parametrize(
        "text, values",
        [
            ("grpo.learning_rate=1e-6,5e-6", [1e-6, 5e-6]),
            ("grpo.learning_rate=1E-6", [1e-6]),
            ("seed=0,1,2", [0, 1, 2]),
            ("variant=e,one", ["e", "one"]),
            ("sampling.judge_mode=soft", ["soft"]),
            ("methods=[original,key_point],[original,rules]",
             [["original", "key_point"], ["original", "rules"]]),
            ("corpus.limit=null,5", [None, 5]),
            ("calls.max_cost=0.5", [0.5]),
        ],
    )  # fmt: skip
    def test_values_are_read_as_yaml_and_exponents_as_numbers(self, text, values):
        name = text.partition("=")[0]
        assert parse_grid([text]) == {name: values}
        assert [type(v) for v in parse_grid([text])[name]] == [type(v) for v in values]

    @pytest.mark.parametrize("text", ["seed", "seed=", "=1", "methods=[original", "seed={a"])
    def test_what_is_no_entry_is_named(self, text):
        with pytest.raises(ParameterError, match="write name=value,value"):
            parse_grid([text])

    def test_a_name_given_twice_is_refused(self):
        with pytest.raises(ParameterError, match="seed is given twice"):
            parse_grid(["seed=0", "seed=1"])

    def test_the_last_name_varies_fastest_and_every_file_meets_every_point(self):
        grid = {"grpo.learning_rate": [1e-6, 5e-6], "seed": [0, 1]}
        name, tasks = make_tasks(NB04, ["smoke", "default"], grid)
        assert name == NB04 and len(tasks) == 8
        assert [t.changes["seed"] for t in tasks[:4]] == [0, 1, 0, 1]
        assert [t.changes["params"] for t in tasks] == ["smoke"] * 4 + ["default"] * 4
        assert tasks[2].params.grpo["learning_rate"] == 5e-6

    @pytest.mark.parametrize(
        ("files", "seeds"), [(["smoke"], [0, 1, 0]), (["smoke", "default", "smoke"], [0])]
    )
    def test_no_run_is_submitted_twice(self, files, seeds):
        with pytest.raises(ParameterError, match=r"task 2 \(.*seed=0\) is there already"):
            make_tasks(NB02, files, {"seed": seeds})

    def test_every_task_is_checked_and_the_first_wrong_one_is_named(self):
        with pytest.raises(ParameterError, match="choose a multiple of 192") as error:
            make_tasks(NB04, ["smoke"], {"seed": [0, 1], "grpo.num_generations": [16, 3]})
        assert str(error.value).startswith("task 1 (seed=0, grpo.num_generations=3): 04_grpo: ")


class TestSettings:
    def test_the_shipped_file_names_every_setting(self):
        shipped = yaml.safe_load((PROJECT / "params" / "slurm.yaml").read_text())
        assert set(shipped) == set(SlurmSettings.model_fields)
        assert SlurmSettings.read(None, {"gpus": 2, "time": "2-00"}).gpus == 2

    @pytest.mark.parametrize(
        "text, said",
        [
            ("time: 240", "240 is no time limit.*in quotes"),
            ("time: soon", "'soon' is no time limit"),
            ("partitoin: gpu", "did you mean 'partition'"),
            ("concurrency: 0", "concurrency=0"),
            ("sbatch: [--nodes=2]", "--nodes is set here"),
            ("sbatch: [-N 2]", "by its long name"),
            ("sbatch: [--array=0-3]", "--array is set here"),
            ("sbatch: [--cpus-per-task=2]", "--cpus-per-task is set here"),
            ("sbatch: [--part=big]", "--part is set here"),
            ('time: "\u0664:00:00"', "is no time limit"),
            ("sbatch: [--outp=/tmp/x]", "--outp is set here"),
            ("sbatch: [-o /tmp/x]", "by its long name"),
            ("sbatch: [-J evil]", "by its long name"),
            ("sbatch: ['--mem=64G -a 0-9']", "one option a line"),
            ("sbatch: ['--mem=64G --output=x']", "one option a line"),
            ('sbatch: ["--mem=1G\\ntouch x"]', "without line breaks"),
            ('sbatch: ["--mem=1G\\u2028touch x"]', "without line breaks"),
            ('setup: ["module load a\\ntouch x"]', "without line breaks"),
            ('setup: ["export T_TOKEN=hunter2hunter\\nx"]', r"N=\[secret\].*without line breaks"),
            ('partition: "gpu\\ntouch x"', "partition='gpu.*string should match"),
            ('partition: "gpu\\n"', "partition='gpu.*string should match"),
            ("account: 'lab; touch x'", "account='lab; touch x': string should match"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, tmp_path, text, said):
        file = tmp_path / "slurm.yaml"
        file.write_text(text)
        with pytest.raises(ParameterError, match=said):
            SlurmSettings.read(file, {})


class TestGpus:
    @pytest.mark.parametrize(
        "notebook, recipe, gpus",
        [
            (NB04, "smoke", 0), (NB04, "default", 1), (NB04, "colocate", 1), (NB04, "gemini", 2),
            (NB04, "qwen_server", 3), (NB02, "smoke", 0), (NB02, "gemini", 0),
            (NB02, "qwen_server", 1),
        ],
    )  # fmt: skip
    def test_a_recipe_needs_the_gpus_that_the_readme_says(self, notebook, recipe, gpus):
        assert read_parameters(notebook, recipe)[2].gpus_needed == gpus

    def test_a_server_elsewhere_needs_no_gpu_here_and_a_shared_one_counts_once(self):
        far = ("servers", "{engine: http://node7:8000/v1, judge: [http://node7:8000/v1], "
               "rewriter: http://127.0.0.1:9000/v1}")  # fmt: skip
        params = read_parameters(NB04, "qwen_server", [far])[2]
        found = {server.address: server for server in params.servers_here}
        assert set(found) == {"http://127.0.0.1:8001", "http://127.0.0.1:9000"}
        assert found["http://127.0.0.1:8001"].policy
        assert found["http://127.0.0.1:9000"].model == "Qwen/Qwen2.5-7B-Instruct"

    def test_a_model_in_this_process_needs_one(self):
        local = [("engine", "transformers/any")]
        assert read_parameters(NB02, "smoke", local)[2].gpus_needed == 1


class TestScript:
    def test_it_is_one_array_and_bash_can_read_it(self, tmp_path):
        notebook, tasks = make_tasks(NB04, ["gemini"], {"seed": [0, 1, 2]})
        given = settings(partition="spot", account="lab", concurrency=2, signal_s=90,
                         sbatch=["--mem=64G"], setup=["module load cuda"])  # fmt: skip
        text = script_text(tmp_path / "a b", notebook, tasks, given)
        for line in ("--array=0-2%2", "--requeue", "--open-mode=append", "--signal=B:USR1@90",
                     "--gres=gpu:2", "--partition=spot", "--account=lab", "--mem=64G",
                     "--time=04:00:00", "--nodes=1"):  # fmt: skip
            assert f"#SBATCH {line}\n" in text
        assert "\nmodule load cuda\n" in text and f"'{tmp_path}/a b'" in text
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)

    def test_a_key_is_in_no_file_of_the_submission(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GEMINI_API_KEY", SECRET)
        notebook, tasks = make_tasks(NB02, ["gemini"], {}, [("paths.output", str(tmp_path))])
        submission = create("sweep", notebook, tasks, settings())
        written = [p.read_text() for p in submission.folder.rglob("*") if p.is_file()]
        assert len(written) == 3 and not any(SECRET in text for text in written)

    def test_a_task_file_runs_by_hand_as_it_would_in_the_array(self, submission):
        _, tasks = make_tasks(NB02, ["smoke"], {"seed": [0, 1]})
        again = read_parameters(NB02, str(submission.task_file(1)))[2]
        changed = {"paths": again.paths.model_dump()}
        assert again.model_dump() == tasks[1].params.model_dump() | changed

    @pytest.mark.parametrize(
        "name", ["../../x", "a/b", "", ".x", "a" * 101, "a\nb", "a b", "$(touch x)"]
    )
    def test_a_name_stays_in_its_folder(self, tmp_path, name):
        _, tasks = make_tasks(NB02, ["smoke"], {}, [("paths.output", str(tmp_path / "out"))])
        with pytest.raises(ParameterError, match=r"letters, digits, _ \. and - alone"):
            create(name, NB02, tasks, settings())
        assert not list(tmp_path.iterdir())

    def test_text_of_a_grid_is_no_parameter_and_no_command(self, tmp_path):
        """The written script is run by bash, with a Python that tells what it was given."""
        root = tmp_path / "it's 5 % @PYTHON@ $(touch a) `touch b`"
        evil = "x', repeats: 1000} # $(touch c)"
        _, tasks = make_tasks(
            NB02, ["smoke"], {"corpus.name": ["jsonl"], "corpus.path": [evil, "y"]},
            [("paths.output", json.dumps(str(root)))],
        )  # fmt: skip
        said = tmp_path / "said"
        given = settings(setup=[f"python() {{ printf '%s|' \"$@\" > {said}; }}"])
        submission = create("sweep", NB02, tasks, given)
        text = (submission.folder / "job.sh").read_text().replace(sys.executable, "python")
        directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
        assert f"--output='{str(root).replace('%', '%%')}".replace("it's", """it'"'"'s""") in text
        assert len(directives) == 10
        done = subprocess.run(["bash"], input=text, text=True, cwd=tmp_path, capture_output=True,
                              env=os.environ | {"SLURM_ARRAY_TASK_ID": "0"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        asked = said.read_text().split("|")
        assert asked[:4] == ["-m", "geo_utils", "slurm", "task"]
        assert asked[4:6] == [str(submission.folder), "0"]
        again = read_parameters(NB02, str(submission.task_file(0)))[2]
        assert again.corpus.path == evil and again.repeats == tasks[0].params.repeats
        assert {path.name for path in tmp_path.iterdir()} == {"said", root.name}

    def test_others_may_not_read_what_setup_lines_hold(self, submission):
        assert submission.folder.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("text", ["a\ntouch x", "a\u2028b", "a\0b", "\ud800"])
    def test_text_with_a_line_break_or_control_character_is_refused(self, text):
        with pytest.raises(ParameterError, match=r"task 0 .*corpus\.path=.*: no line breaks"):
            make_tasks(NB02, ["smoke"], {"corpus.path": [text]})

    def test_what_is_set_for_all_tasks_is_not_set_again_by_the_grid(self):
        with pytest.raises(ParameterError, match="seed=0: seed is given twice"):
            make_tasks(NB02, ["smoke"], {"seed": [0, 1]}, [("seed", "2")])

    def test_a_name_is_taken_once(self, submission):
        _, tasks = make_tasks(
            NB02, ["smoke"], {}, [("paths.output", str(submission.folder.parents[1]))]
        )
        with pytest.raises(ParameterError, match="is there; choose another"):
            create("sweep", NB02, tasks, settings())

    def test_dry_run_shows_script_and_tasks_and_leaves_nothing(self, tmp_path, capsys):
        code = main(["submit", NB04, "--params", "smoke", "--grid", "grpo.learning_rate=1e-6,5e-6",
                     "--grid", "seed=0,1,2", "--dry-run", f"paths.output={tmp_path}"])  # fmt: skip
        said = capsys.readouterr().out
        assert code == 0 and "#SBATCH --array=0-5%4" in said
        assert "task 5: grpo.learning_rate=5e-06, seed=2" in said
        assert not list(tmp_path.iterdir())

    def test_without_a_cluster_submit_says_so_and_leaves_no_folder(
        self, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert main(["submit", NB02, "--params", "smoke", f"paths.output={tmp_path}"]) == 2
        assert "sbatch cannot be started" in capsys.readouterr().err
        assert not list((tmp_path / "slurm").iterdir())


SBATCH = '#!/bin/sh\n[ -f "$2" ] || exit 9\n'


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put programs that print something in SLURM's place."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def program(name, script):
        path = tmp_path / "bin" / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return program


class TestJobId:
    def submit(self, root):
        return main(["submit", NB02, "--params", "smoke", "--name", "a",
                     f"paths.output={root}"])  # fmt: skip

    @pytest.mark.parametrize(
        "printed",
        ["71", "71;cluster", "Welcome to the cluster\n2026\nRules: 1;2;3 of them\n71\n",
         "  71;cluster-2 \nhave a nice day"],
    )  # fmt: skip
    def test_it_is_the_last_line_that_is_one(self, fake, tmp_path, printed, capsys):
        fake("sbatch", f"{SBATCH}cat <<'END'\n{printed}\nEND\n")
        assert self.submit(tmp_path) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.startswith("array 71: 1 runs of")
        assert find("71", str(tmp_path)).folder.name == "a"

    def test_a_greeting_in_another_encoding_costs_no_array_its_folder(self, fake, tmp_path, capsys):
        fake("sbatch", f"{SBATCH}printf 'Bienvenue \\340 tous\\n71\\n'\n")
        assert self.submit(tmp_path) == 0, capsys.readouterr().err
        assert find("71", str(tmp_path)).folder.name == "a"

    @pytest.mark.parametrize("printed", ["", "Welcome", "Submitted batch job 71", "job 71;cluster"])
    def test_without_one_what_was_printed_is_said(self, fake, tmp_path, printed, capsys):
        fake("sbatch", f"{SBATCH}echo '{printed}'\n")
        assert self.submit(tmp_path) == 2
        assert f"sbatch printed no job id but {printed!r}; see with" in capsys.readouterr().err
        assert not list((tmp_path / "slurm").iterdir())

    def test_a_program_that_fails_and_says_nothing_is_named_with_its_status(
        self, fake, tmp_path, capsys
    ):
        fake("sbatch", f"{SBATCH}exit 3\n")
        assert self.submit(tmp_path) == 2
        assert "sbatch ended with status 3: it says nothing" in capsys.readouterr().err

    @pytest.mark.parametrize("size, ended", [("4k", False), ("8k", False), ("12k", True)])
    def test_on_a_full_disk_nothing_is_left(self, fake, small_disk, tmp_path, size, ended, capsys):
        """No room for the script, for the list of tasks, or to keep the id of an array then."""
        fake("sbatch", f"{SBATCH}echo 71\n")
        fake("scancel", f"#!/bin/sh\necho $1 > '{tmp_path}/ended'\n")
        root = small_disk(size)
        assert self.submit(root) == 2
        said = capsys.readouterr().err
        assert "No space left on device: " in said and str(root) in said
        assert not list(root.glob("slurm/*"))
        assert [path.read_text() for path in tmp_path.glob("ended")] == ["71\n"] * ended


class TestCancel:
    @pytest.mark.parametrize("works", [True, False])
    def test_it_is_noted_only_once_it_is_done(self, fake, submission, works, capsys):
        submission.update(job_id="7")
        fake("scancel", f"#!/bin/sh\necho 'scancel: error: no connection' >&2\nexit {1 - works}\n")
        code = main(["cancel", "sweep", "--root", str(submission.folder.parents[1])])
        assert code == (0 if works else 2) and ("cancelled_at" in submission.info) == works
        assert ("no connection" in capsys.readouterr().err) != works

    def test_an_array_that_sbatch_never_took(self, submission, capsys):
        assert main(["cancel", "sweep", "--root", str(submission.folder.parents[1])]) == 2
        assert "sbatch took no job, there is nothing to cancel" in capsys.readouterr().err


def signalled(*_):
    """Stands for a notebook that SLURM ended before its time was up."""
    return 128 + 10


class TestGuards:
    """A task that should not start never reaches its notebook."""

    def end(self, submission, monkeypatch, restart):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        return run_task(submission, 0, lambda *_: pytest.fail("it started")), submission.record(0)

    def stalled(self, submission, ends):
        notebook, _, params = read_parameters(NB02, str(submission.task_file(0)))
        work = params.saved_work(locate_run(notebook, params).folder)
        starts = [{"at": "", "host": "", "restart": i, "progress": work, "end": end}
                  for i, end in enumerate(ends)]  # fmt: skip
        submission.save(0, TaskRecord(starts=starts))

    def test_starts_of_another_version_are_no_fault(self, submission):
        submission.save(0, TaskRecord(starts=[{}, {"at": "then"}, {"progress": None}]))
        assert run_task(submission, 0, signalled) == 138

    def test_a_finished_task_whose_run_was_deleted_leaves_no_run(self, submission, monkeypatch):
        gone = submission.folder.parents[1] / NB02 / "smoke" / "20260101-1"
        submission.save(0, TaskRecord(outcome="finished", run=str(gone), starts=[{"end": None}]))
        assert self.end(submission, monkeypatch, 1)[0] == 0
        assert not gone.exists()

    def test_too_many_restarts(self, submission, monkeypatch):
        code, record = self.end(submission, monkeypatch, 4)
        assert code == 1 and record.outcome == "failed"
        assert "restarted 4 times, max_restarts=3" in record.reason

    @pytest.mark.parametrize("ends", [["SIGUSR1", "SIGUSR1"], ["SIGUSR1", "SIGTERM", None]])
    def test_starts_that_save_nothing(self, submission, monkeypatch, ends):
        self.stalled(submission, ends)
        code, record = self.end(submission, monkeypatch, len(ends))
        assert code == 1 and "2 starts in a row saved nothing" in record.reason

    def test_preempted_starts_are_no_fault_and_progress_counts(self, submission, monkeypatch):
        self.stalled(submission, ["SIGTERM", "SIGTERM", "SIGUSR1"])
        monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
        assert run_task(submission, 0, signalled) == 138
        (submission.folder.parents[1] / "cache").mkdir()
        (submission.folder.parents[1] / "cache/a.answers.jsonl").write_text("{}\n")
        assert run_task(submission, 0, signalled) == 138  # the cache has grown since
        record = submission.record(0)
        assert record.outcome is None and [s["end"] for s in record.starts[-2:]] == ["SIGUSR1"] * 2
        assert run_task(submission, 0, signalled) == 138
        assert run_task(submission, 0, signalled) == 1  # and twice not

    def test_a_wrong_parameter_fails_once(self, submission, monkeypatch):
        path = submission.task_file(0)
        path.write_text(path.read_text() + "repaets: 3\n")
        code, record = self.end(submission, monkeypatch, 0)
        assert code == 1 and "did you mean 'repeats'" in record.reason
        path.write_text("no longer read")
        assert self.end(submission, monkeypatch, 1)[0] == 1

    @pytest.mark.parametrize("finished", [True, False])
    def test_a_torn_record_is_as_good_as_none(self, submission, monkeypatch, finished):
        """Whether the task has finished is known by its run."""
        run_task(submission, 0, signalled)
        run = Run(Path(submission.record(0).run))
        run.update(status="finished" if finished else "interrupted", code_hash=code_hash())
        torn = submission.folder / "state" / "0.json"
        os.truncate(torn, 30)
        with pytest.warns(UserWarning, match=r"state/0\.json is torn"):
            assert run_task(submission, 0, signalled) == (0 if finished else 138)
        record = submission.record(0)
        assert record.run == str(run.folder) or finished
        assert (record.outcome, len(record.starts)) == (("finished", 0) if finished else (None, 1))

    def test_a_finished_task_ends_at_once(self, submission, monkeypatch, tmp_path):
        run = Run(tmp_path / "run")
        run.update(status="finished", restarts=0)
        started = TaskRecord(outcome="finished", run=str(run.folder), starts=[{"restart": 1}])
        submission.save(0, started)
        code, record = self.end(submission, monkeypatch, 2)
        assert code == 0 and run.manifest["restarts"] == record.restarts == 2

    def test_a_server_that_does_not_come_up_fails_the_task_once(self, submission, monkeypatch):
        def broken(server, gpu, log):
            raise OSError("no such program: vllm")

        local = ("servers", "{engine: ['http://127.0.0.1:1/v1']}")
        model = [("engine", "openai/any"), local]
        text = yaml.safe_dump(read_parameters(NB02, str(submission.task_file(0)), model)[1])
        submission.task_file(0).write_text(text)
        monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        assert run_task(submission, 0, lambda *_: pytest.fail("it started"), broken) == 1
        assert submission.record(0).reason == "OSError: no such program: vllm"


def test_servers_come_up_before_the_task_and_go_down_with_it(tmp_path, monkeypatch):
    params, seen = read_parameters(NB04, "qwen_server")[2], []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")

    class Server:
        def __init__(self, server, gpu, log):
            self.server, self.gpu, self.log = server, gpu, log

        def __enter__(self):
            seen.append(("up", self.server.address, self.gpu, self.log.name))

        def __exit__(self, *_):
            seen.append(("down", self.server.address))

    with pytest.raises(SystemExit), servers_up(params, tmp_path, 3, Server):
        seen.append(f"task on {os.environ['CUDA_VISIBLE_DEVICES']}")
        raise SystemExit(143)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6"
    assert seen == [
        ("up", "http://127.0.0.1:8001", "5", "3-server-0.log"),
        ("up", "http://127.0.0.1:8000", "6", "3-server-1.log"), "task on 4",
        ("down", "http://127.0.0.1:8000"), ("down", "http://127.0.0.1:8001"),
    ]  # fmt: skip


class TestStatus:
    def test_without_slurm_the_records_speak(self, submission, capsys, monkeypatch, tmp_path):
        submission.update(job_id="7")
        submission.save(0, TaskRecord(outcome="failed", reason="seed=-1: too small\nmore"))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert main(["status", "7", "--root", str(submission.folder.parents[1])]) == 0
        said = capsys.readouterr().out
        assert "failed" in said and "seed=-1: too small" in said and "unknown" in said
        assert "squeue does not answer" in said

    @pytest.mark.parametrize("text", ["", '{"outcome": "fin', "[]", "\x00\x00", '{"starts": 3}'])
    def test_a_torn_record_is_shown_as_such_and_the_others_as_they_are(
        self, submission, capsys, text
    ):
        submission.update(job_id="7")
        submission.save(1, TaskRecord(outcome="failed", reason="the corpus was gone"))
        (submission.folder / "state" / "0.json").write_text(text)
        with pytest.warns(UserWarning, match=r"state/0\.json is torn; the task's run is not"):
            assert main(["status", "7", "--root", str(submission.folder.parents[1])]) == 0
        said = capsys.readouterr().out
        assert " failed " in said and "the corpus was gone" in said

    def test_a_torn_record_does_not_hide_a_finished_run(self, submission):
        params = read_parameters(NB02, str(submission.task_file(0)))[2]
        run = locate_run(NB02, params)
        run.update(provenance="offline roles", status="finished", code_hash=code_hash(),
                   headline=HEADLINE)  # fmt: skip
        submission.save(0, TaskRecord())
        os.truncate(submission.folder / "state" / "0.json", 3)
        with pytest.warns(UserWarning, match=r"state/0\.json is torn"):
            table, said = collect_table(submission)
        assert set(table["task"]) == {0} and set(table["run"]) == {str(run.folder)}
        manifest = {n: v for n, v in run.manifest.items() if n != "provenance"}
        (run.folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.warns(UserWarning, match=r"state/0\.json is torn"):
            assert set(collect_table(submission)[0]["provenance"]) == {"source not recorded"}
        assert said[0].startswith("task 0 (seed=0): Key point in the answer: original 0.400 [0.3")
        assert said[1:] == ["1 of 2 tasks have not finished and are left out: 1."]

    @pytest.mark.parametrize(
        "headline",
        [
            [1],
            "x",
            {"methods": [1]},
            {"methods": {"original": {}}},
            {"methods": {"original": None}},
        ],
    )
    def test_a_headline_of_another_shape_does_not_hide_the_others(
        self, submission, capsys, headline
    ):
        submission.update(job_id="7")
        for seed, found in ((0, headline), (1, HEADLINE)):
            params = read_parameters(NB02, str(submission.task_file(seed)))[2]
            run = locate_run(NB02, params)
            run.update(status="finished", code_hash=code_hash(), headline=found)
            submission.save(seed, TaskRecord(outcome="finished", run=str(run.folder), starts=[{}]))
        for command in ("status", "collect"):
            assert main([command, "7", "--root", str(submission.folder.parents[1])]) == 0
            said = capsys.readouterr().out
            assert "(n = 30 queries, 90 samples, 2 abstentions each)" in said

    def test_a_torn_submission_does_not_hide_the_others(self, submission, capsys):
        root = submission.folder.parents[1]
        submission.update(job_id="7")
        torn = root / "slurm" / "torn" / "submission.json"
        torn.parent.mkdir()
        whole = {"submitted_at": "2026", "job_id": "8", "notebook": NB02, "settings": {}}
        lacking = [whole, {"submitted_at": "2026"}, whole | {"changes": "seed"}]
        for text in ("", "{", "[]", "{}", "3", *map(json.dumps, lacking)):
            torn.write_text(text)
            with pytest.warns(UserWarning, match=r"torn/submission.json is missing or torn"):
                assert find(None, str(root)) == submission
            assert main(["status", "torn", "--root", str(root)]) == 2
            assert f"{torn} is missing or torn; the runs of its tasks" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "cells", ["[]", '{"cells": null}', '{"cells": [3]}', '{"cells": [{}]}']
    )
    def test_a_notebook_of_another_shape_does_not_hide_the_array(self, tmp_path, cells):
        run = Run(tmp_path)
        (tmp_path / "notebook.ipynb").write_text(cells)
        assert progress(run, read_parameters(NB02, "smoke")[2]) == "–"

    def test_what_slurm_says_in_another_encoding_or_besides_is_passed_over(self, fake):
        fake(
            "squeue", "#!/bin/sh\nprintf 'squeue: \\351\\n\\n 0 | RUNNING \\nN/A|PENDING\\n1|\\n'\n"
        )
        fake("sacct", "#!/bin/sh\nprintf '\\351\\n7_1|COMPLETED\\n7_[2-3%%2]|PENDING\\n'\n")
        assert slurm_states("7") == ({0: "RUNNING", 1: "COMPLETED"}, [])

    @pytest.mark.parametrize(
        "usage, shown",
        [({"samples": 90, "abstentions": 0}, "90 samples"), ({}, "–"), (None, "–"), ([1], "–")],
    )
    def test_only_what_was_counted_is_shown_of_a_finished_run(self, tmp_path, usage, shown):
        """Notebook 01 has settings, no samples."""
        run = Run(tmp_path / "run")
        run.update(status="finished", usage=usage)
        assert progress(run, read_parameters("01_efficiency", "smoke")[2]) == shown

    def test_what_sacct_knows_is_shown_where_squeue_has_forgotten(self, monkeypatch, tmp_path):
        """Programs that print what sacct 22.05 prints for an array, and squeue for none."""
        known = ("7_0|COMPLETED", "7_1|TIMEOUT", "7_2|CANCELLED by 0", "7_[3-5%2]|PENDING")
        said = {
            "sacct": "; ".join(f"echo '{line}'" for line in known),
            "squeue": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        }
        for name, line in said.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        states, notes = slurm_states("7")
        assert states == {0: "COMPLETED", 1: "TIMEOUT", 2: "CANCELLED"} and not notes

    def test_an_array_is_found_by_name_job_or_folder_and_else_named(self, submission):
        submission.update(job_id="7")
        root = str(submission.folder.parents[1])
        for array in (None, "7", "sweep", str(submission.folder)):
            assert find(array, root) == submission
        with pytest.raises(ParameterError, match="did you mean 'sweep'"):
            find("sweeep", root)
        with pytest.raises(ParameterError, match="no array was submitted under"):
            find(None, f"{root}/elsewhere")

    def test_collect_without_a_finished_task_says_so(self, submission, capsys):
        root = str(submission.folder.parents[1])
        assert main(["collect", "--root", root]) == 2
        assert "no task has finished yet" in capsys.readouterr().err


def test_the_commands_start_quickly():
    """Nothing heavy is imported on a login node."""
    code = "import geo_utils.cli, sys; print(*{'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0 and not done.stdout.strip(), done.stderr + done.stdout


def test_a_server_without_a_gpu_says_what_to_do(tmp_path):
    missing = LocalServer("http://127.0.0.1:1", "Qwen/Qwen2.5-7B-Instruct", policy=False)
    with (
        pytest.raises(ServerError, match="there is no GPU for Qwen/Qwen2"),
        serve_here(missing, "", tmp_path / "log"),
    ):
        raise AssertionError


def test_an_error_of_the_body_is_the_body_s_own(tmp_path, gemini_server):
    """A run that fails to reach something else is no server that could not be started."""
    up = LocalServer(gemini_server().url, "m", policy=False)
    with pytest.raises(URLError, match="elsewhere"), serve_here(up, "", tmp_path / "log"):
        raise URLError("elsewhere")
