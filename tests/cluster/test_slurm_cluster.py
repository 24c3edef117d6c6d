"""Arrays on a real SLURM of one node: preempted, out of time, wrong, cancelled, and collected.

`GEO_UTILS_ARRAY=12 pytest -k preempted -s tests/cluster` runs the large array.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import PROJECT
from headless import sets
from slurm_cluster import Cluster, why_not
from train_many import SMALL, learned

from geo_utils.cluster.arrays import find
from geo_utils.files import read_jsonl
from geo_utils.grpo.checkpoints import newest_complete
from geo_utils.runs import Run

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
NB02, NB04 = "02_baseline_rewrites", "04_grpo"
ARRAY = int(os.environ.get("GEO_UTILS_ARRAY", "2"))
TINY = SMALL | {
    "policy.cold_start.steps": "40", "grpo.save_steps": "10", "grpo.max_steps": "60",
    "evaluation.repeats": "1", "evaluation.key_points": "one",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two tasks of 8 cores fill it."""
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster", cores=16) as started:
        yield started
        assert not started.queue("%A")
        started.wait_until(lambda: not started.processes(), 300)


class Sweeps:
    """The command line against a cluster, with runs and settings of its own."""

    def __init__(self, cluster, root):
        self.cluster, self.root = cluster, root

    def __call__(self, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "geo_utils", "slurm", *map(str, arguments)], cwd=PROJECT,
            env=self.cluster.env | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def submit(self, notebook, *arguments, parameters=(), code=0, **settings):
        given = yaml.safe_load((PROJECT / "params/slurm.yaml").read_text()) | settings
        file = self.root / "slurm.yaml"
        file.write_text(yaml.safe_dump(given))
        own = {"paths.output": self.root, "paths.cache": self.root / "cache"}
        given = sets(*(own | dict(parameters)).items())
        said = self("submit", notebook, *given, *arguments, "--settings", file, code=code)
        return find(None, str(self.root)) if code == 0 else said

    def wait(self, submission, seconds):
        job = submission.info["job_id"]
        ended = lambda: not self.cluster("squeue", "-h", "-j", job, check=False).strip()  # noqa: E731
        self.cluster.wait_until(ended, seconds)

    def status(self, submission):
        return self("status", submission.folder.name, "--root", self.root)


@pytest.fixture
def sweeps(cluster, tmp_path):
    return Sweeps(cluster, tmp_path)


def runs_of(submission):
    records = [submission.record(index) for index in range(len(submission.info["changes"]))]
    return [Run(Path(record.run)) for record in records if record.run]


def restarts_by_slurm(cluster, submission):
    job = submission.info["job_id"]
    told = cluster("scontrol", "show", "job", job)
    pairs = re.findall(r"ArrayTaskId=(\d+)\b.*?Restarts=(\d+)", told, re.DOTALL)
    return {int(index): int(count) for index, count in pairs}


class Watch(threading.Thread):
    """Sees trainings go back, and to where: (task, from step, to step, newest checkpoint)."""

    def __init__(self, submission, tasks):
        super().__init__(daemon=True)
        self.submission, self.tasks, self.over, self.seen = submission, tasks, False, []

    def run(self):
        last, saved = dict.fromkeys(range(self.tasks), 0), dict.fromkeys(range(self.tasks), 0)
        while not self.over:
            for index in range(self.tasks):
                record = self.submission.record(index)
                if record.run is None:
                    continue
                folder = Path(record.run)
                newest = newest_complete(folder / "checkpoints")
                # the checkpoint first: what is rewound afterwards must not go behind it
                held = int(newest.name.rpartition("-")[2]) if newest else 0
                with contextlib.suppress(OSError):
                    rows = read_jsonl(folder / "metrics.jsonl")
                    step = rows[-1]["step"] if rows else 0
                    if step < last[index]:
                        self.seen.append((index, last[index], step, saved[index]))
                    last[index], saved[index] = step, held
            time.sleep(0.05)


def steps_of_running(sweeps, submission):
    """Steps that each running task has logged, by task."""
    running = sweeps.cluster("squeue", "-h", "-t", "R", "-j", submission.info["job_id"],
                             "-o", "%K", check=False).split()  # fmt: skip
    runs = {index: submission.record(int(index)).run for index in running}
    return {i: len(read_jsonl(Path(r) / "metrics.jsonl")) if r else 0 for i, r in runs.items()}


def resumed(submission):
    """Steps after which a training went on that had been preempted."""
    records = [submission.record(index) for index in range(len(submission.info["changes"]))]
    begun = [start["progress"][0] for record in records for start in record.starts]
    return [step for step in begun if step]


def preempt(sweeps, submission, times, draw):
    """Let jobs of high priority take the place of tasks; return how many did.

    Every second one waits a random time, whatever the tasks are at; the others wait for a random
    step of a training, which is the smaller part of so small a run. SLURM chooses the task that
    goes, which may be the other one: it goes on until a training was hit.
    """
    hits, job = 0, submission.info["job_id"]
    busy = lambda job: sweeps.cluster("squeue", "-h", "-j", job, check=False).strip()  # noqa: E731
    deadline = time.monotonic() + 300 * times
    while (hits < times or not resumed(submission)) and time.monotonic() < deadline:
        step, until = draw.randint(2, 40), time.monotonic() + draw.uniform(1, 14)
        while busy(job) and time.monotonic() < deadline:
            steps = steps_of_running(sweeps, submission).values()
            if hits % 2 and hits < times:
                if time.monotonic() > until:
                    break
            elif any(step <= n < 50 for n in steps):
                break
        if not busy(job):
            break
        if len(steps) < 2:
            continue  # there would be room for both
        high = sweeps.cluster(
            "sbatch", "--parsable", "-p", "high", "-c", "8", "-o", "/dev/null", "--wrap", "sleep 1"
        ).strip()
        sweeps.cluster.wait_until(lambda high=high: not busy(high), 300)
        hits += 1
    return hits


def test_an_array_that_is_preempted_ends_as_if_it_had_not_been(cluster, sweeps):
    started, seeds = time.monotonic(), "0" if ARRAY < 12 else "0,1,2"
    variants = [f"v{n}" for n in range(ARRAY // (1 if ARRAY < 12 else 3))]
    alone = sweeps.submit(NB04, "--params", "smoke", "--grid", f"seed={seeds}", parameters=TINY)
    sweeps.wait(alone, 900)
    undisturbed = {run.manifest["seeds"]["seed"]: learned(run) for run in runs_of(alone)}
    assert all(len(steps) == 60 for steps, _, _ in undisturbed.values())
    first = time.monotonic() - started

    submission = sweeps.submit(
        NB04, "--params", "smoke", "--concurrency", "2", "--grid", f"seed={seeds}",
        "--grid", f"variant={','.join(variants)}", parameters=TINY,
    )  # fmt: skip
    watch = Watch(submission, ARRAY)
    watch.start()
    hits = preempt(sweeps, submission, 2 if ARRAY < 12 else 24, random.Random(3))
    sweeps.wait(submission, 450 * ARRAY)
    watch.over = True
    watch.join()

    shown, runs = sweeps.status(submission), runs_of(submission)
    assert shown.count(" finished ") == ARRAY == len(runs), shown
    for run in runs:
        assert learned(run) == undisturbed[run.manifest["seeds"]["seed"]], run
    counted = restarts_by_slurm(cluster, submission)
    assert [run.manifest["restarts"] for run in runs] == [counted[i] for i in range(ARRAY)]
    assert [submission.record(i).restarts for i in counted] == list(counted.values())
    for index in range(ARRAY):
        logged = submission.log(index).read_text().count(f"task {index}, start ")
        assert logged <= counted[index] + 1 and submission.record(index).outcome == "finished"
    assert 1 <= sum(counted.values()) <= hits
    assert resumed(submission), "no preemption hit a training"
    for task, before, after, saved in watch.seen:
        assert after >= saved, f"task {task} went from step {before} to {after} behind {saved}"
    cluster.wait_until(lambda: not cluster.processes(), 300)
    sys.stderr.write(
        f"\n{ARRAY} tasks, {hits} preemptions, restarts {counted}, resumed after steps "
        f"{resumed(submission)}, gone back {watch.seen}, undisturbed {first:.0f} s, array "
        f" {time.monotonic() - started - first:.0f} s\n{shown}"
    )


def test_tasks_that_run_out_of_time_save_are_requeued_and_finish(cluster, sweeps):
    """Two of them: one has the array's own job id. SLURM's shortest limit is a minute, set late."""
    submission = sweeps.submit(
        NB04, "--params", "smoke", "--concurrency", "2", "--grid", "seed=0,1",
        parameters=TINY | {"grpo.max_steps": "400"}, signal_s=90,
    )  # fmt: skip
    tasks, job = (0, 1), submission.info["job_id"]
    first = lambda index: submission.record(index).starts[0]  # noqa: E731
    cluster.wait_until(
        lambda: sum(n > 4 for n in steps_of_running(sweeps, submission).values()) == 2, 900
    )
    for index in tasks:
        took = datetime.now(UTC) - datetime.fromisoformat(first(index)["at"])
        minutes = int(took.total_seconds() // 60) + 2
        cluster("scontrol", "update", f"JobId={job}_{index}", f"TimeLimit={minutes}")
    cluster.wait_until(lambda: all(first(index)["end"] for index in tasks), 300)
    assert [first(index)["end"] for index in tasks] == ["SIGUSR1"] * 2
    # At once: whoever comes back under the old limit is signalled once more.
    cluster("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    sweeps.wait(submission, 900)
    counted = restarts_by_slurm(cluster, submission)
    for index, run in zip(tasks, runs_of(submission), strict=True):
        record = submission.record(index)
        assert record.outcome == run.manifest["status"] == "finished"
        assert len(record.starts) >= 2 and record.starts[1]["progress"][0] > 4  # not from the start
        ends = [start["end"] for start in record.starts]
        assert ends == ["SIGUSR1"] * (len(ends) - 1) + [None]
        steps = [row["step"] for row in read_jsonl(run.folder / "metrics.jsonl")]
        assert steps == list(range(1, 401))  # each once
        assert run.manifest["restarts"] == counted[index] == len(ends) - 1


def test_a_parameter_gone_bad_fails_once_and_an_ended_task_never_starts_again(cluster, sweeps):
    submission = sweeps.submit(
        NB02, "--params", "smoke", "--grid", "seed=0,1",
        parameters={"corpus.limit": "4", "repeats": "1"}, sbatch=["--hold"],
    )  # fmt: skip
    job, path = submission.info["job_id"], submission.task_file(1)
    assert sweeps.status(submission).count(" waiting ") == 2
    path.write_text(path.read_text().replace("seed: 1", "sede: 1"))
    cluster("scontrol", "release", job)
    sweeps.wait(submission, 500)
    said = sweeps.status(submission)
    assert " finished " in said and " failed " in said and "'sede' is no parameter" in said
    assert restarts_by_slurm(cluster, submission) == {0: 0, 1: 0}
    for index, word in ((0, "finished"), (1, "failed")):  # somebody requeues both
        cluster("scontrol", "requeue", f"{job}_{index}")
        cluster.wait_until(
            lambda i=index, w=word: (
                "start 2" in (said := submission.log(i).read_text()) and f"it has {w}" in said
            ),
            300,
        )
    sweeps.wait(submission, 300)
    assert len(submission.record(0).starts) == 1 and not submission.record(1).starts
    assert submission.record(1).restarts == 1
    assert runs_of(submission)[0].manifest["restarts"] == 1


def test_what_is_wrong_or_refused_leaves_no_array(cluster, sweeps):
    said = sweeps.submit(NB04, "--params", "smoke", "--grid", "grpo.learning_rat=1e-6,5e-6", code=2)
    assert "2 of 2 tasks cannot run" in said and "did you mean 'learning_rate'" in said
    said = sweeps.submit(NB02, "--params", "smoke", "--partition", "nowhere", code=2)
    assert "sbatch: error: invalid partition specified: nowhere" in said
    said = sweeps.submit(NB02, "--params", "smoke", "--gpus", "9", code=2)
    assert "sbatch: error" in said
    assert not list((sweeps.root / "slurm").iterdir()) and not cluster.queue("%A")


def test_a_task_gets_its_gpus_and_a_cancelled_one_stays_down(cluster, sweeps):
    submission = sweeps.submit(
        NB02, "--params", "smoke", "--gpus", "2", "--concurrency", "1", "--grid", "seed=0,1",
        parameters={"repeats": "1000"}, setup=['echo "sees GPUs $CUDA_VISIBLE_DEVICES"'],
    )  # fmt: skip
    cluster.wait_until(lambda: submission.record(0).starts, 300)
    assert "sees GPUs 0,1" in submission.log(0).read_text()
    sweeps("cancel", submission.folder.name, "--root", sweeps.root)
    sweeps.wait(submission, 300)
    said = sweeps.status(submission)
    assert said.count(" cancelled ") == 2, said
    cluster.wait_until(lambda: not cluster.processes(), 300)
    assert submission.record(0).outcome is None and not cluster.queue("%A")


def test_a_task_that_is_given_grace_makes_room_at_once_and_goes_on(tmp_path):
    """Where a site sends the job's own signal and waits, the task does not use the wait up."""
    site = "SlurmctldParameters=preempt_send_user_signal"
    with Cluster(tmp_path / "cluster", cores=8, grace=300, site=site) as cluster:
        sweeps = Sweeps(cluster, tmp_path)
        submission = sweeps.submit(
            NB02, "--params", "smoke", "--concurrency", "1", parameters={"corpus.limit": "8"}
        )
        cluster.wait_until(lambda: submission.record(0).starts, 300)
        high = cluster("sbatch", "--parsable", "-p", "high", "-c", "8", "-o", "/dev/null",
                       "--wrap", "sleep 1").strip()  # fmt: skip
        cluster.wait_until(lambda: not cluster("squeue", "-h", "-j", high, check=False), 300)
        sweeps.wait(submission, 300)
        record = submission.record(0)
        assert record.outcome == "finished", submission.log(0).read_text()
        assert [start["restart"] for start in record.starts] == [0, 1]
        assert record.starts[0]["end"] == "SIGUSR1"


def test_the_readmes_commands_run(cluster, tmp_path):
    """In a copy of the project, so that its outputs stay clean."""
    for name in ("notebooks", "params"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    section = (PROJECT / "README.md").read_text().partition("## On a cluster")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1)
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    seen = []
    for command in commands:
        assert command[:2] == [".venv/bin/geo", "slurm"], command
        arguments = command[2:]
        if arguments[-1] == "ARRAY":
            arguments[-1] = find(None, str(tmp_path / "outputs")).info["job_id"]
        done = subprocess.run(
            [sys.executable, "-m", "geo_utils", "slurm", *arguments], cwd=tmp_path,
            env=cluster.env | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        seen.append(arguments[0])
        if arguments[0] == "status":
            cluster.wait_until(lambda: not cluster.queue("%A"), 300)
    assert set(seen) == {"submit", "status", "collect", "cancel"}
    submission = find(None, str(tmp_path / "outputs"))
    table = pd.read_csv(submission.folder / "headlines.csv")
    assert set(table["task"]) == {0, 1, 2, 3}
    for column in ("key_point_probability", "ci_low", "ci_high", "n_examples", "n_samples",
                   "abstentions", "provenance", "run", "seed"):  # fmt: skip
        assert table[column].notna().all(), column
