"""How the tasks of an array stand, from their run folders and from whatever SLURM still knows."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from geo_utils.cluster.folder import UNREADABLE, Submission, TaskRecord
from geo_utils.files import read_jsonl, resolve_path
from geo_utils.meeting.headlines import PROBABILITY, results
from geo_utils.meeting.records import Record
from geo_utils.notebook_params import NotebookParams
from geo_utils.notebooks import read_parameters
from geo_utils.parameter_errors import ParameterError
from geo_utils.params import RunParams
from geo_utils.policies import CARD
from geo_utils.runs import Run, locate_run
from geo_utils.tables import label, with_interval
from geo_utils.training.checkpoints import checkpoint_step, newest_complete
from geo_utils.training.params import GrpoParams

_SACCT_ID = re.compile(r"\d+_(\d+)")
_LAST_STEPS = 10
_SHARE = ("key_point_probability", "ci_low", "ci_high")
_GAIN = ("gain_mean", "gain_low", "gain_high")
_WORDS = {
    "TIMEOUT": "out of time", "PREEMPTED": "preempted", "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed", "REQUEUED": "requeued",
}  # fmt: skip


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
        manifest = run.manifest if run else {}
        state = _state(record, states.get(index), bool(info.get("cancelled_at")))
        row = {"task": index, **changes, "state": state}
        row["restarts"] = record.restarts
        begun = bool(record.starts) or record.outcome == UNREADABLE  # then the run itself tells
        row["progress"] = progress(run, params) if run and params and begun else "–"  # noqa: RUF001
        row["headline so far"] = headline_text(run) if run and begun else "–"  # noqa: RUF001
        row["reason"] = _one_line(record.reason or "")
        rows.append(row)
        if manifest.get("provenance") and manifest.get("headline"):
            sources.add(f"Source: {manifest['provenance']}.")
    table = pd.DataFrame(rows).set_index("task")
    if not table["reason"].any():
        table = table.drop(columns="reason")
    return table, [*notes, *sorted(sources)]


def slurm_states(job_id: str | None) -> tuple[dict[int, str], list[str]]:
    """Return the state of every task that SLURM knows, and what it could not say.

    `squeue` knows tasks that wait, run or ended in the last minutes; `sacct`, where the cluster
    keeps accounts, those that ended before.
    """
    if job_id is None:
        return {}, ["sbatch took no job: nothing of this array will run."]
    states, notes = {}, []
    told = _ask("sacct", "-n", "-P", "-X", "-j", job_id, "--format=JobID,State")
    for line in (told or "").splitlines():
        name, _, state = line.partition("|")
        if (found := _SACCT_ID.fullmatch(name)) and state.strip():
            states[int(found.group(1))] = state.split()[0]
    queued = _ask("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%K|%T")
    if queued is None:
        notes.append("squeue does not answer: tasks that have not ended are shown as their own "
                     "records leave them.")  # fmt: skip
    for line in (queued or "").splitlines():
        index, _, state = line.partition("|")
        if index.strip().isdecimal() and state.strip():
            states[int(index)] = state.strip()
    return states, notes


def task_run(
    submission: Submission, index: int, record: TaskRecord
) -> tuple[Run | None, NotebookParams | None]:
    """Return a task's run and its checked parameters; None for what cannot be had."""
    try:
        notebook, _, params = read_parameters(
            submission.info["notebook"], str(submission.task_file(index))
        )
        run = None if record.run else locate_run(notebook, params)
    except (ParameterError, OSError):  # the latter of a corpus that may not be read
        return (Run(resolve_path(record.run)) if record.run else None), None
    return run or Run(resolve_path(record.run or "")), params


def progress(run: Run, params: NotebookParams) -> str:
    """Say how far a run is: its training's step, else its notebook's cell."""
    manifest = run.manifest
    if manifest.get("status") == "finished":
        usage = manifest.get("usage")
        samples = usage.get("samples") if isinstance(usage, dict) else None
        return "–" if samples is None else f"{samples} samples"  # noqa: RUF001
    if isinstance(params, GrpoParams):
        rows, last = read_jsonl(run.folder / "metrics.jsonl"), params.grpo["max_steps"]
        if rows and rows[-1]["step"] < last:
            return f"step {rows[-1]['step']} of {last}"
    try:
        cells = json.loads((run.folder / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "–"  # noqa: RUF001
    done = sum(cell.get("execution_count") is not None for cell in code)
    return f"cell {done} of {len(code)}"


def saved_work(run: Run, params: NotebookParams) -> list[int]:
    """Return what a run would not have to do again; equal before and after, it got nowhere.

    The newest complete checkpoint, how many policies are whole, the size of what was measured, and
    that of the cache, which other runs may add to as well.
    """
    checkpoints = run.folder / "checkpoints"
    newest = newest_complete(checkpoints)
    policies = [run.folder / "policy", checkpoints / "final"]
    written = list(run.folder.glob("rows.jsonl"))
    if isinstance(params, RunParams):
        written += resolve_path(params.cache_root).glob("*.answers.jsonl")
    return [
        (checkpoint_step(newest) or 0) if newest else 0,
        sum((folder / CARD).is_file() for folder in policies),
        sum(path.stat().st_size for path in written),
    ]


def headline_text(run: Run) -> str:
    """Return the headline of a finished run, or the reward of a training so far."""
    shares = [found for found in results(Record(run.folder)) if found.quantity == PROBABILITY]
    if shares:
        return f"{label(shares[-1].method)} {shares[-1].text} ({shares[-1].counts})"
    logged = read_jsonl(run.folder / "metrics.jsonl")
    rows = [row for row in logged if row.get("reward") is not None]
    if not rows:
        return "–"  # noqa: RUF001
    last = [row["reward"] for row in rows[-_LAST_STEPS:]]
    return f"reward {sum(last) / len(last):.3f} (mean of the last {len(last)} steps)"


def collect_table(submission: Submission) -> tuple[pd.DataFrame, list[str]]:
    """Gather the headlines of the finished runs, one row a task and method.

    Returns:
        Columns: task, what tells it from the others, method, the headline's numbers with
        intervals and counts, a training's gain on the row of the trained policy, provenance and
        run folder; and which tasks are missing.
    """
    info, rows, missing = submission.info, [], []
    for index, changes in enumerate(info["changes"]):
        record = submission.record(index)
        run = Run(resolve_path(record.run)) if record.run else None
        if record.outcome == UNREADABLE:
            run, _ = task_run(submission, index, record)
        told = Record(run.folder) if run else None
        if told is None or told.status != "finished" or not told.headline:
            missing.append(index)
            continue
        methods, gain = (told.headline.get(name) for name in ("methods", "gain"))
        methods = methods if isinstance(methods, dict) else {}
        for method, numbers in methods.items():
            row = {"task": index, **changes, "method": method, **dict(numbers or {})}
            if isinstance(gain, dict) and method == list(methods)[-1]:
                row |= {f"gain_{name}": value for name, value in gain.items()}
            rows.append(row | {"provenance": told.provenance, "run": str(told.folder)})
    notes = [] if not missing else [
        f"{len(missing)} of {len(info['changes'])} tasks have not finished and are left out: "
        f"{', '.join(map(str, missing))}."
    ]  # fmt: skip
    return pd.DataFrame(rows), notes


def collected_text(table: pd.DataFrame, changes: Sequence[str]) -> str:
    """Write a collected table for the terminal: intervals in one column, counts beside them."""
    shown = table[["task", *changes]].copy()
    shown["method"] = table["method"].map(label)
    shown["key-point probability"] = [_interval(row, _SHARE) for _, row in table.iterrows()]
    for column, title in (("n_examples", "queries"), ("n_samples", "samples")):
        shown[title] = table[column]
    shown["abstentions"] = table["abstentions"]
    if "gain_mean" in table:
        shown["gain by training"] = [
            _interval(row, _GAIN, signed=True) for _, row in table.iterrows()
        ]
    return shown.to_string(index=False)


def _state(record: TaskRecord, slurm: str | None, cancelled: bool) -> str:
    """Say in a word how a task stands: its own record first, then SLURM's."""
    if record.outcome:
        return record.outcome
    if slurm == "PENDING" and not cancelled:
        return "requeued" if record.starts else "waiting"
    if cancelled and slurm in (None, "PENDING", "CANCELLED"):
        return "cancelled"
    if slurm is not None:
        return _WORDS.get(slurm, slurm.lower())
    return "started, then lost" if record.starts else "unknown"


def _ask(*command: str) -> str | None:
    """Return what a SLURM command prints; empty if it knows no such job, None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" in done.stderr:
        return ""
    return done.stdout if done.returncode == 0 else None


def _one_line(text: str, longest: int = 100) -> str:
    first = text.strip().partition("\n")[0]
    return first if len(first) <= longest else first[: longest - 1] + "…"


def _interval(
    row: Mapping[str, Any] | pd.Series, columns: Sequence[str], signed: bool = False
) -> str:
    values = (row.get(name) for name in columns)
    mean, low, high = (math.nan if value is None else float(value) for value in values)
    return with_interval(mean, low, high, signed)
