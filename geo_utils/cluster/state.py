"""An array and SLURM: submitted, cancelled, and how its tasks stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd

from geo_utils.cluster.arrays import (
    SlurmSettings,
    Submission,
    Task,
    TaskRecord,
    create,
    described,
    place,
    script_text,
)
from geo_utils.files import read_jsonl, resolve_path, write_atomic
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import NotebookParams, ParameterError
from geo_utils.records import Record, conclusion
from geo_utils.runs import Run, locate_run

# What each program is asked for, and where the task's number is in what it answers. The second
# one's word counts where both know a task.
_PROGRAMS = {
    "sacct": (("-n", "-P", "-X", "--format=JobID,State"), r"\d+_(\d+)"),
    "squeue": (("-h", "-r", "-t", "all", "-o", "%K|%T"), r"(\d+)"),
}
_JOB_ID = re.compile(r"(\d+)(;\S+)?")  # as --parsable prints it, with the cluster's name or not
_LAST_STEPS = 10
_NONE = "–"  # noqa: RUF001


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


def submit(
    name: str, notebook: str, tasks: Sequence[Task], settings: SlurmSettings
) -> tuple[Submission, str]:
    """Write a submission's folder and hand its array to sbatch.

    Returns:
        The submission and its job id.

    Raises:
        ParameterError: The name is taken, sbatch is missing or refuses, or it prints no job id;
            no folder is left.
        OSError: The folder cannot be written, as on a full disk; no folder and no job is left.
    """
    submission = create(name, notebook, tasks, settings)
    try:
        answer = ask_slurm("sbatch", "--parsable", str(submission.folder / "job.sh"))
        # A site's own sbatch may greet before, and say more after.
        told = [found for line in answer.splitlines() if (found := _JOB_ID.fullmatch(line.strip()))]
        if not told:
            raise ParameterError(
                f"sbatch printed no job id but {answer.strip()!r}; see with squeue whether it has "
                "taken a job, and end that with scancel: its folder is gone"
            )
        job_id = told[-1].group(1)
        try:
            submission.update(job_id=job_id)
        except OSError:
            ask_slurm("scancel", job_id)  # an array that nothing knows of
            raise
    except BaseException:
        shutil.rmtree(submission.folder)
        raise
    return submission, job_id


def submitted(
    name: str | None,
    notebook: str,
    tasks: Sequence[Task],
    settings: SlurmSettings,
    dry_run: bool,
) -> list[str]:
    """Submit an array, or show its script on a dry run, and return what is to be said of it."""
    name = name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{notebook}"
    if dry_run:
        return [
            script_text(place(name, tasks), notebook, tasks, settings),
            *(f"task {index}: {described(task.changes)}" for index, task in enumerate(tasks)),
            f"{len(tasks)} tasks are in order; nothing was submitted",
        ]
    submission, job_id = submit(name, notebook, tasks, settings)
    return [
        f"array {job_id}: {len(tasks)} runs of {notebook}, {submission.folder}/job.sh",
        f"see how it stands: geo slurm status {name}",
    ]


def cancel(submission: Submission) -> list[str]:
    """End an array, and return what is to be said of it.

    Raises:
        ParameterError: There is nothing to cancel, or SLURM refuses.
    """
    job_id = submission.info["job_id"]
    if job_id is None:
        raise ParameterError(
            f"{submission.folder.name}: sbatch took no job, there is nothing to cancel; delete "
            f"{submission.folder}"
        )
    ask_slurm("scancel", job_id)
    submission.update(cancelled_at=datetime.now(UTC).isoformat(timespec="seconds"))
    kept = "what its runs have saved is kept, and the same submit goes on from it"
    return [f"cancelled array {job_id}; {kept}"]


def status_lines(submission: Submission) -> list[str]:
    """Return how an array stands, as `status_table` has it, in lines for a terminal."""
    table, notes = status_table(submission)
    told = "array {job_id} of {notebook}, submitted {submitted_at:.16} UTC"
    head = f"{submission.folder.name}: {told.format(**submission.info)}"
    return [head, table.to_string(), *notes]


def collect_lines(submission: Submission) -> list[str]:
    """Write headlines.csv beside an array, and return it in lines for a terminal.

    Raises:
        ParameterError: There is nothing to collect yet.
    """
    table, said = collect_table(submission)
    if table.empty:
        raise ParameterError(
            f"{submission.folder.name}: no task has finished yet, or its notebook compares no "
            "methods; `geo runs --compare RUN --compare RUN` shows any runs side by side"
        )
    path = submission.folder / "headlines.csv"
    write_atomic(path, table.to_csv(index=False))
    sources = [f"Source: {source}." for source in sorted(set(table["provenance"]))]
    return [*said, "95 % intervals over queries.", *sources, str(path)]


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
        reason = (record.reason or "").strip().partition("\n")[0]
        rows.append(
            {
                "task": index,
                **changes,
                "state": _state(record, states.get(index), "cancelled_at" in info),
                "restarts": record.restarts,
                "progress": progress(run, params) if run and params else _NONE,
                "headline so far": headline_text(run) if run else _NONE,
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
    return slurm.lower().replace("_", " ")


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
    logged = [row.get("reward") for row in read_jsonl(run.folder / "metrics.jsonl")]
    last = [reward for reward in logged if reward is not None][-_LAST_STEPS:]
    if last and not run.manifest.get("headline"):
        return f"reward {sum(last) / len(last):.3f} (mean of the last {len(last)} steps)"
    return conclusion(Record(run.folder)) or _NONE


def collect_table(submission: Submission) -> tuple[pd.DataFrame, list[str]]:
    """Gather the headlines of the finished runs, one row a task and method.

    Returns:
        Columns: task, what tells it from the others, method, the headline's numbers with
        intervals and counts, a training's gain on the row of the trained policy, provenance and
        run folder; and in lines, the most telling numbers of each, and which tasks are missing.
    """
    changes, rows, said, missing = submission.info["changes"], [], [], []
    for index, changed in enumerate(changes):
        run, _ = task_run(submission, index, submission.record(index))
        told = Record(run.folder) if run else None
        if told is None or told.status != "finished" or not told.headline:
            missing.append(str(index))
            continue
        said.append(f"task {index} ({described(changed)}): {conclusion(told)}")
        methods, gain = (told.headline.get(name) for name in ("methods", "gain"))
        methods = methods if isinstance(methods, dict) else {}
        for method, numbers in methods.items():
            row = {"task": index, **changed, "method": method, **dict(numbers or {})}
            if isinstance(gain, dict) and method == list(methods)[-1]:
                row |= {f"gain_{name}": value for name, value in gain.items()}
            rows.append(row | {"provenance": told.provenance, "run": str(told.folder)})
    if missing:
        left = f"{len(missing)} of {len(changes)} tasks have not finished and are left out"
        said.append(f"{left}: {', '.join(missing)}.")
    return pd.DataFrame(rows), said
