"""Trains a small policy in forked children, one of which gets a signal; run by test_training.

    python train_many.py OUTPUT_ROOT WHAT [NAME=VALUE ...]

The heavy imports are paid for once. Prints one JSON object.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import transformers

from geo_utils.corpus import load_corpus
from geo_utils.files import read_jsonl
from geo_utils.grpo.cold_start import prepare_policy
from geo_utils.grpo.params import check_machine
from geo_utils.grpo.train import train
from geo_utils.notebooks import read_parameters
from geo_utils.roles.make import make_roles
from geo_utils.runs import RunInterrupted, start_run

SMALL = {
    "corpus.limit": "8",
    "policy.cold_start.batch_size": "16",
    "policy.cold_start.steps": "80",
    "policy.cold_start.small_model": "{hidden_size: 48, vocabulary: 900}",
    "data.max_prompt_tokens": "220",
    "grpo.max_steps": "16",
    "grpo.per_device_train_batch_size": "8",
    "grpo.num_generations": "4",
    "grpo.save_steps": "1",
    "reward.funcs": "[key_point, negative_length]",
    "reward.weights": "[1.0, 0.01]",
    "grpo.save_total_limit": "3",
}


def run_of(root, changes):
    overrides = list((SMALL | changes | {"paths.output": str(root)}).items())
    params = read_parameters("04_grpo", "smoke", overrides)[2]
    check_machine(params)
    return params, start_run("04_grpo", params)


def once(root, changes):
    """Prepare and train; in this process."""
    params, run = run_of(root, changes)
    roles, examples = make_roles(params), load_corpus(**params.corpus_options)
    base = prepare_policy(params, roles, examples, run.folder / "policy")
    return run, train(params, run, roles, examples, base)


def child(root, changes):
    """Train in a forked child; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            sys.stderr = (Path(root) / f"{os.getpid()}.log").open("w")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            once(root, changes)
            code = 0
        except RunInterrupted as error:
            sys.stderr.write(f"interrupted: {error}\n")
            code = 4
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid, limit_s):
    """Wait for a child; its exit code, or None if it has to be killed after `limit_s`."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def figures(root):
    (folder,) = Path(root).glob("04_grpo/smoke/2*")
    rows = read_jsonl(folder / "metrics.jsonl")
    rollouts = read_jsonl(folder / "rollouts.jsonl")
    return {
        "rewards": [(row["step"], row["reward"], row["loss"]) for row in rows],
        "rollouts": [(row["step"], row["kind"], row["reply"]) for row in rollouts],
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }


def learned(run):
    """Everything that a training logged, and its result, without what is measured in seconds."""
    rows = read_jsonl(run.folder / "metrics.jsonl")
    timed = re.compile("^at$|phases|background|step_time|seconds|_wall$")
    steps = [{k: v for k, v in row.items() if not timed.search(k)} for row in rows]
    rollouts = [(r["step"], r["kind"], r["reply"])
                for r in read_jsonl(run.folder / "rollouts.jsonl")]  # fmt: skip
    return steps, rollouts, run.manifest["headline"]


def signalled(root, number, changes):
    """Send a signal in the middle of the training, wait for the save, then let it end."""
    pid = child(root, changes)
    until = time.monotonic() + 300
    while not list(Path(root).glob("04_grpo/smoke/2*/checkpoints/checkpoint-2")):
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.15)
    os.kill(pid, number)
    sent, done = time.monotonic(), len(figures(root)["rewards"])
    code = ended(pid, 300)
    between = {"code": code, "done": done, "seconds": time.monotonic() - sent} | figures(root)
    return {"between": between, "code": ended(child(root, changes), 300)} | figures(root)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    folder, what, *rest = sys.argv[1:]
    given = dict(part.split("=", 1) for part in rest)
    Path(folder).mkdir(parents=True, exist_ok=True)
    if what == "undisturbed":
        found = {"code": ended(child(folder, given), 300)} | figures(folder)
    else:
        found = signalled(folder, signal.Signals[what], given)
    sys.stdout.write(json.dumps(found) + "\n")
