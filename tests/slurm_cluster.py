"""A SLURM cluster of one node on this machine, for as long as a test needs it.

Everything lies under one folder; the daemons are those of the Debian packages, started as root
and without systemd. Jobs in partition `low` are requeued when one in `high` needs their cores.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT
from headless import sets
from train_many import SMALL

from geo_utils.cluster.arrays import find
from geo_utils.cluster.servers import free_port
from geo_utils.files import read_jsonl
from geo_utils.runs import Run

DAEMONS = ("munged", "slurmctld", "slurmd")
PROGRAMS = (*DAEMONS, "sbatch", "squeue", "scancel", "scontrol", "sinfo")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
{site}
NodeName=box NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low Nodes=box Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=box PriorityTier=9 PreemptMode=OFF
"""


def why_not():
    """Say why no cluster can be started here, or return an empty text."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "a SLURM cluster of one's own needs root"


class Cluster:
    """The cluster; a context manager that takes it down, whatever happened."""

    def __init__(self, folder, cores=2, gpus=4, kill_wait=10, grace=0, site=""):
        self.folder = Path(folder)
        self.cores, self.gpus = cores, gpus
        self.options = {"kill_wait": kill_wait, "grace": grace, "site": site}
        self.conf = self.folder / "slurm.conf"
        # what a job of another cluster says about itself is not for this one
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.env = outer | {"SLURM_CONF": str(self.conf), "PATH": _path()}

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            assert (self.folder / "slurmctld.pid").exists(), "there is nobody to ask"
            self("scancel", "--quiet", "--user=root", check=False)
            self.wait_until(lambda: not self.queue("%A"), 60)
        for name in reversed(DAEMONS):
            self._end(name)
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def __call__(self, *command, check=True):
        """Run a command against this cluster and return what it prints."""
        done = subprocess.run(
            [str(part) for part in command], env=self.env, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def queue(self, form):
        """One line a job that waits, runs or is ending."""
        return self("squeue", "-h", "-r", "-o", form).split("\n")[:-1]

    def wait_until(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s\n{self.logs()}"
            time.sleep(0.2)

    def processes(self):
        """Process ids that belong to jobs of this cluster, or would outlive them."""
        wanted = f"SLURM_CONF={self.conf}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                entries = path.read_bytes().split(b"\0")
                if wanted in entries and any(e.startswith(b"SLURM_JOB_ID=") for e in entries):
                    found.append(int(path.parent.name))
        return found

    def logs(self):
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in paths)

    def _start(self):
        for name, mode in (("munge", 0o755), ("state", 0o700), ("spool", 0o755), ("gpu", 0o755)):
            (self.folder / name).mkdir(mode=mode, parents=True)
        for number in range(self.gpus):  # slurmd wants character devices; these are /dev/null
            os.mknod(self.folder / f"gpu/{number}", 0o666 | 0o020000, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(
            f"NodeName=box Name=gpu File={self.folder}/gpu/[0-{self.gpus - 1}]\n"
        )
        self.conf.write_text(CONF.format(
            folder=self.folder, host=socket.gethostname().partition(".")[0], cores=self.cores,
            gpus=self.gpus, controller_port=free_port(), node_port=free_port(), **self.options,
        ))  # fmt: skip
        key = self.folder / "munge/key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        munge = {"key-file": key, "socket": self.folder / "munge/socket",
                 "pid-file": self.folder / "munged.pid", "seed-file": self.folder / "munge/seed",
                 "log-file": self.folder / "munged.log"}  # fmt: skip
        self("munged", "--force", *(f"--{name}={path}" for name, path in munge.items()))
        self("slurmctld", "-c")
        self("slurmd", "-N", "box", "-c")
        self.wait_until(lambda: "idle" in self("sinfo", "-h", "-o", "%t", check=False), 120)

    def _end(self, name):
        """At once: asked to, the controller takes five seconds to save what is deleted."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)


def _path():
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


TINY = SMALL | {
    "policy.cold_start.steps": "40", "grpo.save_steps": "10", "grpo.max_steps": "40",
    "evaluation.repeats": "1", "evaluation.key_points": "one",
}  # fmt: skip


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


def runs_of(submission):
    records = [submission.record(index) for index in range(len(submission.info["changes"]))]
    return [Run(Path(record.run)) for record in records if record.run]


def restarts_by_slurm(cluster, submission):
    job = submission.info["job_id"]
    told = cluster("scontrol", "show", "job", job)
    pairs = re.findall(r"ArrayTaskId=(\d+)\b.*?Restarts=(\d+)", told, re.DOTALL)
    return {int(index): int(count) for index, count in pairs}


def steps_of_running(sweeps, submission):
    """Steps that each running task has logged, by task."""
    running = sweeps.cluster("squeue", "-h", "-t", "R", "-j", submission.info["job_id"],
                             "-o", "%K", check=False).split()  # fmt: skip
    runs = {index: submission.record(int(index)).run for index in running}
    return {i: len(read_jsonl(Path(r) / "metrics.jsonl")) if r else 0 for i, r in runs.items()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two tasks of 8 cores fill it."""
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster", cores=16) as started:
        yield started
        assert not started.queue("%A")
        started.wait_until(lambda: not started.processes(), 300)


@pytest.fixture
def sweeps(cluster, tmp_path):
    return Sweeps(cluster, tmp_path)
