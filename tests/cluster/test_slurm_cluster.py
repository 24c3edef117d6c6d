"""Arrays on a real SLURM of one node: preempted, wrong, cancelled, and given grace.

`GEO_UTILS_ARRAY=12 pytest -k preempted -s tests/cluster` runs the large array.
"""

import contextlib
import os
import random
import sys
import threading
import time
from pathlib import Path

import pytest
from slurm_cluster import (
    TINY,
    Cluster,
    Sweeps,
    cluster,  # noqa: F401
    restarts_by_slurm,
    runs_of,
    steps_of_running,
    sweeps,  # noqa: F401
    why_not,
)
from train_many import learned

from geo_utils.files import read_jsonl
from geo_utils.grpo.checkpoints import newest_complete

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
NB02, NB04 = "02_baseline_rewrites", "04_grpo"
ARRAY = int(os.environ.get("GEO_UTILS_ARRAY", "2"))


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
            time.sleep(0.2)


def log_of(submission, index):
    return (submission.folder / "logs" / f"{index}.log").read_text()


def begun(submission):
    """The step that each start of each task went on from."""
    records = [submission.record(index) for index in range(len(submission.info["changes"]))]
    return [start["progress"][0] for record in records for start in record.starts]


def resumed(submission):
    """Steps after which a training went on that had been preempted."""
    return [step for step in begun(submission) if step]


def preempt(sweeps, submission, times, draw):
    """Let jobs of high priority take the place of tasks; return how many did.

    Every second one waits a random time, whatever the tasks are at; the others wait for a random
    step of a training, which is the smaller part of so small a run. SLURM chooses the task that
    goes, which may be the other one. So those that come after take the whole node as soon as a
    training has saved a checkpoint, until one has gone on from it.
    """
    hits, job = 0, submission.info["job_id"]
    busy = lambda job: sweeps.cluster("squeue", "-h", "-j", job, check=False).strip()  # noqa: E731
    deadline = time.monotonic() + 300 * times
    while (hits < times or not resumed(submission)) and time.monotonic() < deadline:
        more = hits < times
        step = draw.randint(2, 25) if more else 12
        until = time.monotonic() + draw.uniform(1, 14)
        while busy(job) and time.monotonic() < deadline:
            time.sleep(0.1)
            steps = steps_of_running(sweeps, submission).values()
            if hits % 2 and more:
                if time.monotonic() > until:
                    break
            elif any(step <= n < 32 for n in steps):
                break
        if not busy(job):
            break
        if not steps:
            continue
        cores = "8" if more and len(steps) == 2 else "16"  # 8 have room beside one task
        starts = len(begun(submission))
        high = sweeps.cluster(
            *f"sbatch --parsable -p high -c {cores} -o /dev/null --wrap".split(), "sleep 1"
        ).strip()
        sweeps.cluster.wait_until(lambda high=high: not busy(high), 300)
        sweeps.cluster.wait_until(
            lambda starts=starts: len(begun(submission)) > starts or not busy(job), 300
        )
        hits += 1
    return hits


def test_an_array_that_is_preempted_ends_as_if_it_had_not_been(cluster, sweeps):
    started, seeds = time.monotonic(), "0" if ARRAY < 12 else "0,1,2"
    variants = [f"v{n}" for n in range(ARRAY // (1 if ARRAY < 12 else 3))]
    alone = sweeps.submit(NB04, "--params", "smoke", "--grid", f"seed={seeds}", parameters=TINY)
    sweeps.wait(alone, 900)
    undisturbed = {run.manifest["seeds"]["seed"]: learned(run) for run in runs_of(alone)}
    assert all(len(steps) == 40 for steps, _, _ in undisturbed.values())
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
        logged = log_of(submission, index).count(f"task {index}, start ")
        assert logged <= counted[index] + 1 and submission.record(index).outcome == "finished"
    assert 1 <= sum(counted.values()) <= 2 * hits  # the whole node is two tasks
    assert resumed(submission), "no preemption hit a training"
    for task, before, after, saved in watch.seen:
        assert after >= saved, f"task {task} went from step {before} to {after} behind {saved}"
    cluster.wait_until(lambda: not cluster.processes(), 300)
    sys.stderr.write(
        f"\n{ARRAY} tasks, {hits} preemptions, restarts {counted}, resumed after steps "
        f"{resumed(submission)}, gone back {watch.seen}, undisturbed {first:.0f} s, array "
        f" {time.monotonic() - started - first:.0f} s\n{shown}"
    )


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
                "start 2" in (said := log_of(submission, i)) and f"it has {w}" in said
            ),
            300,
        )
    sweeps.wait(submission, 300)
    assert len(submission.record(0).starts) == 1 and not submission.record(1).starts
    assert submission.record(1).restarts == 1
    assert runs_of(submission)[0].manifest["restarts"] == 1


def test_what_is_wrong_or_refused_leaves_no_array(cluster, sweeps):
    said = sweeps.submit(NB04, "--params", "smoke", "--grid", "grpo.learning_rat=1e-6,5e-6", code=2)
    assert "task 0" in said and "did you mean 'learning_rate'" in said
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
    assert "sees GPUs 0,1" in log_of(submission, 0)
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
        assert record.outcome == "finished", log_of(submission, 0)
        assert [start["restart"] for start in record.starts] == [0, 1]
        assert record.starts[0]["end"] == "SIGUSR1"
