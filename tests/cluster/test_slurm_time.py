"""Arrays on a real SLURM of one node: out of time, and collected by the README's commands."""

import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pandas as pd
import pytest
from conftest import GEMINI, PROJECT, SECRET
from servers import SimulatedGemini
from slurm_cluster import (
    TINY,
    cluster,  # noqa: F401
    restarts_by_slurm,
    runs_of,
    steps_of_running,
    sweeps,  # noqa: F401
    why_not,
)

from geo_utils.cluster.arrays import find
from geo_utils.files import read_jsonl

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
NB04 = "04_grpo"


def test_tasks_that_run_out_of_time_save_are_requeued_and_finish(cluster, sweeps, tmp_path):
    """Two of them: one has the array's own job id. SLURM's shortest limit is a minute, set late.

    The engine takes seconds, so that trainings last until SLURM, which looks at limits every 30 s,
    has signalled them, and cost no CPU; afterwards it takes none.
    """
    log = tmp_path / "server.jsonl"
    cluster.env["GEMINI_API_KEY"] = SECRET
    with SimulatedGemini(log, latency="constant:2") as slow:
        submission = sweeps.submit(
            NB04, "--params", "smoke", "--concurrency", "2", "--grid", "seed=0,1", signal_s=120,
            parameters=TINY | {
                "engine": GEMINI, "servers": f"{{engine: ['{slow.url}']}}",
                "calls.max_concurrency": "64",
            },
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
    with SimulatedGemini(log, latency="constant:0", port=slow.port):
        sweeps.wait(submission, 900)
    counted = restarts_by_slurm(cluster, submission)
    for index, run in zip(tasks, runs_of(submission), strict=True):
        record = submission.record(index)
        assert record.outcome == run.manifest["status"] == "finished"
        assert len(record.starts) >= 2 and record.starts[1]["progress"][0] > 4  # not from the start
        ends = [start["end"] for start in record.starts]
        assert ends == ["SIGUSR1"] * (len(ends) - 1) + [None]
        steps = [row["step"] for row in read_jsonl(run.folder / "metrics.jsonl")]
        assert steps == list(range(1, 41))  # each once
        assert run.manifest["restarts"] == counted[index] == len(ends) - 1


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
