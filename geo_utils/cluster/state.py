"""How the tasks of an array stand, from their run folders and from whatever SLURM still knows."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import pandas as pd

from geo_utils.cluster.arrays import UNREADABLE, Submission, TaskRecord
from geo_utils.files import read_jsonl, resolve_path
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import NotebookParams, ParameterError
from geo_utils.records import PROBABILITY, Record, results
from geo_utils.roles.methods import label
from geo_utils.runs import Run, locate_run
from geo_utils.statistics import with_interval

# What each program is asked for, and where the task's number is in what it answers. The second
# one's word counts where both know a task.
_PROGRAMS = {
    "sacct": (("-n", "-P", "-X", "--format=JobID,State"), r"\d+_(\d+)"),
    "squeue": (("-h", "-r", "-t", "all", "-o", "%K|%T"), r"(\d+)"),
}
_LAST_STEPS = 10
_NONE = "–"  # noqa: RUF001
_WORDS = {
    "TIMEOUT": "out of time",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed",
    "REQUEUED": "requeued",
}


def ask_slurm(*command: str, timeout_s: float | None = None) -> str:
    """Return what a SLURM command prints.

    Raises:
        ParameterError: It is missing or fails.
    """
    # What a job's own environment says about it would be taken for options of the new one.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_JOB"))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=clean, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ParameterError(
            f"{command[0]} cannot be started ({getattr(error, 'strerror', error)}); submit from a "
            "machine of the cluster, or see the script with --dry-run"
        ) from None
    if done.returncode:
        raise ParameterError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def slurm_states(job_id: str | None) -> tuple[dict[int, str], list[str]]:
    """Return the state of every task that SLURM knows, and what it could not say.

    `squeue` knows tasks that wait, run or ended in the last minutes; `sacct`, where the cluster
    keeps accounts, those that ended before.
    """
    if job_id is None:
        return {}, ["sbatch took no job: nothing of this array will run."]
    states, notes = {}, []
    for program, (options, index) in _PROGRAMS.items():
        try:
            told = ask_slurm(program, "-j", job_id, *options, timeout_s=60)
        except ParameterError as error:
            if program == "squeue" and "Invalid job id" not in str(error):
                notes.append(
                    "squeue does not answer: tasks that have not ended are shown as their own "
                    "records leave them."
                )
            continue
        for line in told.splitlines():
            name, _, state = line.partition("|")
            if (found := re.fullmatch(index, name.strip())) and state.strip():
                states[int(found[1])] = state.split()[0]
    return states, notes


def status_table(submission: Submission) -> tuple[pd.DataFrame, list[str]]:
    """Lay out an array, one row a task.

    Returns:
        Indexed by task: what tells it from the others, state, restarts, progress, headline so
        far, and the reason of a failure; and what has to be said below the table.
    """
    info = submission.info
    states, notes = slurm_states(info["job_id"])
    rows, sources = [], set()
    for index, changes in enumerate(info["changes"]):
        record = submission.record(index)
        run, params = task_run(submission, index, record)
        begun = bool(record.starts) or record.outcome == UNREADABLE  # then the run itself tells
        reason = (record.reason or "").strip().partition("\n")[0]
        rows.append(
            {
                "task": index,
                **changes,
                "state": _state(record, states.get(index), "cancelled_at" in info),
                "restarts": record.restarts,
                "progress": progress(run, params) if run and params and begun else _NONE,
                "headline so far": headline_text(run) if run and begun else _NONE,
                "reason": reason if len(reason) <= 100 else f"{reason[:99]}…",
            }
        )
        manifest = run.manifest if run else {}
        if manifest.get("provenance") and manifest.get("headline"):
            sources.add(f"Source: {manifest['provenance']}.")
    table = pd.DataFrame(rows).set_index("task")
    if not table["reason"].any():
        table = table.drop(columns="reason")
    return table, [*notes, *sorted(sources)]


def _state(record: TaskRecord, slurm: str | None, cancelled: bool) -> str:
    """Say in a word how a task stands: its own record first, then SLURM's."""
    if record.outcome:
        return record.outcome
    if cancelled and slurm in (None, "PENDING", "CANCELLED"):
        return "cancelled"
    if slurm == "PENDING":
        return "requeued" if record.starts else "waiting"
    if slurm is None:
        return "started, then lost" if record.starts else "unknown"
    return _WORDS.get(slurm, slurm.lower())


def task_run(
    submission: Submission, index: int, record: TaskRecord
) -> tuple[Run | None, NotebookParams | None]:
    """Return a task's run and its checked parameters; None for what cannot be had."""
    run = Run(resolve_path(record.run)) if record.run else None
    try:
        notebook, _, params = read_parameters(
            submission.info["notebook"], str(submission.task_file(index))
        )
        return run or locate_run(notebook, params), params
    except (ParameterError, OSError):  # the latter of a corpus that may not be read
        return run, None


def progress(run: Run, params: NotebookParams) -> str:
    """Say how far a run is: its training's step, else its notebook's cell."""
    manifest = run.manifest
    try:
        if manifest.get("status") == "finished":
            return f"{manifest['usage']['samples']} samples"
        rows, last = read_jsonl(run.folder / "metrics.jsonl"), params.steps_to_train
        if rows and last and rows[-1]["step"] < last:
            return f"step {rows[-1]['step']} of {last}"
        cells = json.loads((run.folder / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _NONE
    done = sum(cell.get("execution_count") is not None for cell in code)
    return f"cell {done} of {len(code)}"


def headline_text(run: Run) -> str:
    """Return the headline of a finished run, or the reward of a training so far."""
    shares = [found for found in results(Record(run.folder)) if found.quantity == PROBABILITY]
    if shares:
        return f"{label(shares[-1].method)} {shares[-1].text} ({shares[-1].counts})"
    logged = [row.get("reward") for row in read_jsonl(run.folder / "metrics.jsonl")]
    last = [reward for reward in logged if reward is not None][-_LAST_STEPS:]
    if not last:
        return _NONE
    return f"reward {sum(last) / len(last):.3f} (mean of the last {len(last)} steps)"


def collect_table(submission: Submission) -> tuple[pd.DataFrame, list[str]]:
    """Gather the headlines of the finished runs, one row a task and method.

    Returns:
        Columns: task, what tells it from the others, method, the headline's numbers with
        intervals and counts, a training's gain on the row of the trained policy, provenance and
        run folder; and which tasks are missing.
    """
    changes, rows, missing = submission.info["changes"], [], []
    for index, changed in enumerate(changes):
        record = submission.record(index)
        run = Run(resolve_path(record.run)) if record.run else None
        if record.outcome == UNREADABLE:
            run, _ = task_run(submission, index, record)
        told = Record(run.folder) if run else None
        if told is None or told.status != "finished" or not told.headline:
            missing.append(str(index))
            continue
        methods, gain = (told.headline.get(name) for name in ("methods", "gain"))
        methods = methods if isinstance(methods, dict) else {}
        for method, numbers in methods.items():
            row = {"task": index, **changed, "method": method, **dict(numbers or {})}
            if isinstance(gain, dict) and method == list(methods)[-1]:
                row |= {f"gain_{name}": value for name, value in gain.items()}
            rows.append(row | {"provenance": told.provenance, "run": str(told.folder)})
    notes = []
    if missing:
        notes = [
            f"{len(missing)} of {len(changes)} tasks have not finished and are left out: "
            f"{', '.join(missing)}."
        ]
    return pd.DataFrame(rows), notes


def collected_text(table: pd.DataFrame, changes: Sequence[str]) -> str:
    """Write a collected table for the terminal: intervals in one column, counts beside them."""

    def intervals(*columns: str, signed: bool = False) -> list[str]:
        ends: Any = table.reindex(columns=list(columns)).astype(float).to_numpy()
        return [with_interval(mean, low, high, signed) for mean, low, high in ends]

    shown = table[["task", *changes]].assign(method=table["method"].map(label))
    shown["key-point probability"] = intervals("key_point_probability", "ci_low", "ci_high")
    titles = {"queries": "n_examples", "samples": "n_samples", "abstentions": "abstentions"}
    for title, column in titles.items():
        shown[title] = table[column]
    if "gain_mean" in table:
        shown["gain by training"] = intervals("gain_mean", "gain_low", "gain_high", signed=True)
    return shown.to_string(index=False)
