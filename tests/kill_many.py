"""Kills real runs with -9 at random moments, starts them again until they finish, and compares.

    python tests/kill_many.py evaluations 20
    python tests/kill_many.py trainings 10 [BESIDE]

BESIDE of them run at a time; default, one. Prints a line a kill and a summary, and exits with 1 if
anything differs from the run that nobody killed. The service of all roles that have one is the
simulated Gemini, which counts its calls.
"""

import collections
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from conftest import GEMINI, PROJECT
from headless import run_command
from servers import SimulatedGemini
from train_many import SMALL, learned

from geo_utils.files import read_jsonl
from geo_utils.runs import Run

WIDTH = 4  # calls in flight, at most
SHORT = {"policy.cold_start.steps": "40", "evaluation.repeats": "1", "evaluation.key_points": "one"}
RUNS = {
    "evaluations": (
        "03_key_point_prompt",
        {
            "corpus.limit": "3",
            "judge": GEMINI,
            "rewriter": GEMINI,
        },
    ),
    "trainings": ("04_grpo", SMALL | SHORT),
}
# The command starts Papermill, which starts the kernel, which starts the client of the service.
KINDS = {"all": slice(None), "parent": slice(1), "papermill": slice(1, 2), "kernel": slice(2, 3)}
LAST = ", after the last checkpoint and before final"


def cpu_s(process):
    """The CPU time of a process and all that it started: a clock that no busy machine holds up."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return sum(sum(p.cpu_times()[:4]) for p in (process, *process.children(recursive=True)))
    return 0.0


def after(process, at_s):
    time.sleep(0.1)  # looking costs CPU time as well
    return cpu_s(process) > at_s


class Case:
    """One run, with a server, an output folder and a cache of its own.

    Attributes:
        lost: Calls in flight at each kill, which reached the server and brought no answer.
    """

    def __init__(self, what, root):
        notebook, parameters = RUNS[what]
        self.root, self.said, self.lost = root, root / "said.txt", []
        root.mkdir(parents=True)
        self.server = SimulatedGemini(root / "server.jsonl", latency="uniform:0.05,0.2")
        servers = ", ".join(f"{r}: ['{self.server.url}']" for r in ("engine", "judge", "rewriter"))
        options = parameters | {
            "engine": GEMINI, "servers": f"{{{servers}}}", "calls.max_concurrency": WIDTH,
            "paths.cache": root / "cache",
        }  # fmt: skip
        self.command = run_command(notebook, "smoke", root / "outputs", *options.items())
        self.env = os.environ | {"GEMINI_API_KEY": "a-key-of-this-test", "OMP_NUM_THREADS": "1"}

    def start(self):
        with self.said.open("a") as said:
            return psutil.Popen(
                self.command, cwd=PROJECT, env=self.env, stdout=subprocess.DEVNULL, stderr=said
            )

    def finish(self):
        assert self.start().wait() == 0, self.said.read_text()[-2000:]

    def files(self, name):
        return list(self.root.glob(f"outputs/0*/smoke/2*/{name}"))

    def rows(self, name):
        return [row for path in self.files(name) for row in read_jsonl(path)]

    def calls(self):
        """How many calls reached the server, and of how many the run has recorded an outcome.

        A kernel whose parent is killed still books what it breaks off, as cancelled: some of that
        had not reached the server yet.
        """
        rows = self.rows("usage.jsonl")  # also of policies in the run's own process
        booked = [row for row in rows if "gemini" in row["model"]]
        return len(self.server.entries()), sum(row["failure"] != "cancelled" for row in booked)

    def closed(self):
        """Whether a training has saved its last step, and not yet its result."""
        last, result = "checkpoint-16/trainer_state.json", "final/policy.json"
        return bool(self.files(f"checkpoints/{last}") and not self.files(f"checkpoints/{result}"))

    def kill(self, kind, moment):
        """Start, kill `kind` of `KINDS` at a `moment` of the process that was started; tell of it.

        Where those processes are not there yet, all are killed.
        """
        process = self.start()
        while not moment(process):
            if process.poll() is not None:
                assert process.returncode == 0, self.said.read_text()[-2000:]
                return f"{kind}: had ended"
            time.sleep(0.01)
        tree = [process, *process.children(recursive=True)]
        spent, victims = cpu_s(process), tree[KINDS[kind]] or tree
        kind = kind if tree[KINDS[kind]] else "all"
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        closed = LAST if self.closed() else ""
        assert not psutil.wait_procs(tree, timeout=600)[1]  # whichever was killed, none is left
        time.sleep(2)  # the server answers what was in flight
        paid, recorded = self.calls()
        self.lost.append(paid - recorded - sum(self.lost))
        done = f"{len(self.rows('metrics.jsonl'))} steps, {paid} calls paid, {recorded} recorded"
        of = f"{len(victims)} of {len(tree)} processes"
        return f"{kind} killed ({of}) after {spent:.1f} s of CPU time, {done}{closed}"

    def results(self):
        """Everything that must be the same: tables and adapter to the byte, steps, calls."""
        files = self.files("*.parquet") + self.files("checkpoints/final/*.safetensors")
        (manifest,) = self.files("manifest.json")
        return {path.name: path.read_bytes() for path in files} | {
            "steps or headline": learned(Run(manifest.parent)),
            "calls": {(entry["prompt"], entry["seed"]) for entry in self.server.entries()},
        }

    def problems(self, expected):
        """Name what is not as in the undisturbed run."""
        found, (paid, recorded) = self.results(), self.calls()
        manifest = Run(self.files("manifest.json")[0].parent).manifest
        told = sum(role["calls"] for role in manifest["usage"]["roles"].values())
        checks = {
            "status": manifest["status"] == "finished",
            f"{told} calls in the manifest": told == len(self.rows("usage.jsonl")),
            f"in flight {self.lost}": all(0 <= lost <= WIDTH for lost in self.lost),
            f"{paid} paid": paid == recorded + sum(self.lost),
            "asked twice": paid - len(found["calls"]) <= WIDTH * len(self.lost),
        }
        differs = [name for name in expected | found if found.get(name) != expected.get(name)]
        return differs + [name for name, right in checks.items() if not right]


def tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def undisturbed(what, root):
    """The results of a run that nobody kills."""
    case = Case(what, root)
    with case.server:
        case.finish()
    assert not case.problems(case.results()), case.problems(case.results())
    return case.results()


def one(what, root, number, expected, whole_s):
    """Kill one run once or twice and let it finish; tell of each kill, and count."""
    draw, case, told = random.Random(number), Case(what, root), []
    with case.server:
        if what == "trainings" and number % 3 == 1:
            kind = ("all", "kernel")[number % 2]
            told.append(case.kill(kind, lambda _: case.closed()))
        elif number % 2:
            paid = draw.randrange(len(expected["calls"]))
            told.append(case.kill(draw.choice(list(KINDS)), lambda _: case.calls()[0] >= paid))
        while not told or (len(told) == 1 and draw.random() < 0.4):
            kind, at_s = draw.choice(list(KINDS)), draw.uniform(0, whole_s)
            told.append(case.kill(kind, lambda process, at_s=at_s: after(process, at_s)))
        case.finish()
    wrong, (paid, recorded) = ", ".join(case.problems(expected)), case.calls()
    for line in told:
        tell(f"{number}. {line}; {f'DIFFERENT: {wrong}' if wrong else 'equal'}")
    return collections.Counter(
        paid=paid, recorded=recorded, lost=sum(case.lost), wrong=bool(wrong),
        kills=sum(" killed " in line for line in told), last=sum(LAST in line for line in told),
    )  # fmt: skip


def main(what, count, beside=1):
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(int(beside)) as pool:
        expected = undisturbed(what, Path(folder) / "undisturbed")
        whole_s = sum(os.times()[2:4])  # of the children
        tell(f"undisturbed: {whole_s:.0f} s of CPU time, {len(expected['calls'])} calls")
        cases = [
            pool.submit(one, what, Path(folder) / str(number), number, expected, whole_s)
            for number in range(1, int(count) + 1)
        ]
        totals = sum((case.result() for case in cases), collections.Counter())
    tell(
        f"{count} {what}, {totals['kills']} kills, {totals['last']} of them {LAST[2:]}: "
        f"{totals['wrong']} different; {totals['paid']} calls paid = {totals['recorded']} recorded "
        f"+ {totals['lost']} in flight at a kill; {(time.monotonic() - started) / 60:.0f} min"
    )
    few = what == "trainings" and totals["last"] < min(2, int(count) // 3)
    return int(few or totals["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
