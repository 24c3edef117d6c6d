"""SLURM arrays: what is submitted, a checked set of parameters a task; cancelled; how it stands."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from jinja2 import StrictUndefined, Template
from pydantic import BaseModel, ConfigDict, Field, field_validator

from geo_utils.files import project_root, read_jsonl, resolve_path, write_atomic
from geo_utils.models.base import redacted
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import (
    CONTROL,
    NotebookParams,
    ParameterError,
    checked,
    from_yaml,
    nearest,
    read_yaml,
    to_yaml,
)
from geo_utils.records import Record, conclusion
from geo_utils.runs import Run, locate_run

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}", re.ASCII)
_OURS = """--account --array --chdir --cpus-per-task --error --export-file --job-name --no-requeue
--nodes --ntasks --open-mode --output --partition --requeue --signal --time --wrap""".split()  # noqa: SIM905
_NAME = re.compile(r"\w[\w.-]{0,99}")
_Listed = Annotated[str, Field(pattern=r"^[\w.,@+-]+$")]  # partitions, accounts
# What each program is asked for, and where the task's number is in what it answers. The second
# one's word counts where both know a task.
_PROGRAMS = {
    "sacct": (("-n", "-P", "-X", "--format=JobID,State"), r"\d+_(\d+)"),
    "squeue": (("-h", "-r", "-t", "all", "-o", "%K|%T"), r"(\d+)"),
}
_JOB_ID = re.compile(r"(\d+)(;\S+)?")  # as --parsable prints it, with the cluster's name or not
_LAST_STEPS = 10
_NONE = "–"  # noqa: RUF001


class SlurmSettings(BaseModel):
    """How tasks ask for the cluster: the entries of `params/slurm.yaml`.

    Attributes:
        partition: Partition; none for the cluster's default.
        account: Account; likewise.
        time: Time limit of a task as SLURM writes it.
        concurrency: Tasks that run at once; none for no limit.
        gpus: GPUs a task; none for what its parameters need.
        cpus: Cores a task.
        signal_s: Seconds before the time limit at which a task is told to save.
        max_restarts: A task that is restarted more often fails.
        max_stalled: A task that gets nowhere in so many starts in a row fails.
        sbatch: Further lines for sbatch, without `#SBATCH`.
        setup: Shell lines before the task.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    partition: _Listed | None = None
    account: _Listed | None = None
    time: str = "04:00:00"
    concurrency: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    cpus: Annotated[int, Field(ge=1)] = 8
    signal_s: Annotated[int, Field(ge=10)] = 120
    max_restarts: Annotated[int, Field(ge=0)] = 20
    max_stalled: Annotated[int, Field(ge=1)] = 3
    sbatch: list[str] = []
    setup: list[str] = []

    @classmethod
    def read(cls, path: Path | None, flags: Mapping[str, Any]) -> Self:
        """Read the settings' file, by default `params/slurm.yaml`, flags over it.

        Raises:
            ParameterError: Every problem at once.
        """
        path = path or project_root() / "params" / "slurm.yaml"
        return checked(cls, read_yaml(path) | dict(flags), path.name)

    @field_validator("time", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise ValueError(
                f'{value!r} is no time limit; write "04:00:00" or "1-00:00:00", in quotes'
            )
        return value

    @field_validator("sbatch", "setup")
    @classmethod
    def _one_line_each(cls, lines: list[str]) -> list[str]:
        for line in lines:
            if CONTROL.search(line):
                raise ValueError(f"{redacted(line)!r}: one line each, without line breaks")
        return lines

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, lines: list[str]) -> list[str]:
        for line in lines:
            option = re.match(r"--[a-z-]+", line)
            if option is None or re.search(r"\s--?[A-Za-z]", line):
                raise ValueError(f"{line!r}: one option a line, by its long name: --mem=32G")
            if any(own.startswith(option[0]) for own in _OURS):  # sbatch takes what begins so
                raise ValueError(f"{line!r}: {option[0]} is set here; leave it out")
        return lines


@dataclass(frozen=True)
class Task:
    """One run of the array.

    Attributes:
        changes: What tells it from the other tasks: file and grid values.
        values: The parameters to pass.
        params: The same, checked.
    """

    changes: dict[str, Any]
    values: dict[str, Any]
    params: NotebookParams


def parse_grid(entries: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values of every name of a grid.

    Args:
        entries: Each `name=value,value`; a value is read as YAML.

    Raises:
        ParameterError: An entry that is none, or a name given twice.
    """
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        try:
            values = from_yaml(f"[{text}]")
        except ValueError:
            values = None
        if not name or not equals or not values:
            raise ParameterError(f"--grid {entry!r}: write name=value,value")
        if name in grid:
            raise ParameterError(f"--grid {entry!r}: {name} is given twice")
        grid[name] = values
    return grid


def make_tasks(
    notebook: str,
    files: Sequence[str],
    grid: Mapping[str, Sequence[Any]],
    overrides: Sequence[tuple[str, str]] = (),
) -> tuple[str, list[Task]]:
    """Return one checked task for every file and every point of the grid.

    Args:
        notebook: As `notebooks.read_parameters` takes it.
        files: Parameter files, likewise.
        grid: Values by name.
        overrides: What is set for all tasks, as (name, value as YAML).

    Returns:
        The notebook's name and the tasks, the last name of the grid varying fastest.

    Raises:
        ParameterError: The first task that the notebook would refuse, or that is another's twin.
    """
    name, tasks = notebook, list[Task]()
    for number, (file, *values) in enumerate(itertools.product(files, *grid.values())):
        changes = dict(zip(grid, values, strict=True))
        text = [(key, json.dumps(value, default=str)) for key, value in changes.items()]
        if len(files) > 1:
            changes = {"params": Path(file).stem} | changes
        try:
            name, passed, params = read_parameters(notebook, file, [*overrides, *text])
        except ParameterError as error:
            raise ParameterError(f"task {number} ({described(changes)}): {error}") from None
        if passed in (task.values for task in tasks):
            raise ParameterError(f"task {number} ({described(changes)}) is there already")
        tasks.append(Task(changes, passed, params))
    return name, tasks


def described(changes: Mapping[str, Any]) -> str:
    """Return what tells a task from the others, in one line."""
    each = (f"{name}={value}" for name, value in changes.items())
    return ", ".join(CONTROL.sub(" ", text) for text in each) or "no changes"


class TaskRecord(BaseModel):
    """How a task stands, kept by the task itself.

    Attributes:
        outcome: `finished` or `failed` once it has ended; it is never started again.
        reason: Why it failed.
        run: Its run folder.
        restarts: How often SLURM has started it again.
        starts: One entry a start: `at`, `host`, `restart`, `progress` then, and `end`: the
            signal that ended it, or none if it ended by itself or without a word.
    """

    outcome: str | None = None
    reason: str | None = None
    run: str | None = None
    restarts: int = 0
    starts: list[dict[str, Any]] = []


class _Info(BaseModel):
    """What `submission.json` must hold; `cancelled_at` is there once that is done."""

    notebook: str
    job_id: str | None
    submitted_at: str
    settings: dict[str, Any]
    changes: list[dict[str, Any]]
    cancelled_at: str | None = None


@dataclass(frozen=True)
class Submission:
    """One job array and its folder, `outputs/slurm/<name>/`.

    Attributes:
        folder: Absolute path; holds `submission.json`, `job.sh`, `tasks/`, `state/`, `logs/` and,
            once collected, `headlines.csv`.
    """

    folder: Path

    @property
    def info(self) -> dict[str, Any]:
        """What was submitted: notebook, settings, `changes` by task, job id and time.

        Raises:
            ParameterError: The file is missing or torn, or lacks an entry.
        """
        path = self.folder / "submission.json"
        try:
            return _Info.model_validate_json(path.read_bytes()).model_dump(exclude_unset=True)
        except (OSError, ValueError):
            raise ParameterError(
                f"{path} is missing or torn; the runs of its tasks are kept, and the same submit "
                "under another name goes on from them"
            ) from None

    def update(self, **entries: Any) -> None:
        """Set entries of `submission.json`."""
        path = self.folder / "submission.json"
        info = self.info if path.is_file() else {}
        text = json.dumps(info | entries, indent=2, ensure_ascii=False, default=str)
        write_atomic(path, text + "\n")

    def task_file(self, index: int) -> Path:
        """Return the parameter file of a task."""
        return self.folder / "tasks" / f"{index}.yaml"

    def record(self, index: int) -> TaskRecord:
        """Return how a task stands; one that never started has an empty record.

        One that is torn is as good as none, with a warning: the task's run tells the rest.
        """
        path = self.folder / "state" / f"{index}.json"
        try:
            return TaskRecord.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                warnings.warn(f"{path} is torn; the task's run is not", stacklevel=2)
            return TaskRecord()

    def save(self, index: int, record: TaskRecord) -> None:
        """Keep how a task stands."""
        text = record.model_dump_json(indent=2)
        write_atomic(self.folder / "state" / f"{index}.json", text + "\n")


def create(name: str, notebook: str, tasks: Sequence[Task], settings: SlurmSettings) -> Submission:
    """Write a submission's folder, beside the runs of its tasks.

    Others may not read it: `setup` is as a user wrote it, and may hold a key.

    Raises:
        ParameterError: The name is taken.
        OSError: The folder cannot be written, as on a full disk; none is left.
    """
    submission = Submission(place(name, tasks))
    if submission.folder.exists():
        raise ParameterError(f"--name {name!r}: {submission.folder} is there; choose another")
    try:
        submission.folder.mkdir(mode=0o700, parents=True)
        write_atomic(
            submission.folder / "job.sh", script_text(submission.folder, notebook, tasks, settings)
        )
        for index, task in enumerate(tasks):
            header = f"# {notebook}, task {index}: {described(task.changes)}\n"
            text = to_yaml(task.values)
            write_atomic(submission.task_file(index), header + text)
        (submission.folder / "logs").mkdir()
        submission.update(
            notebook=notebook,
            job_id=None,
            submitted_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            settings=settings.model_dump(),
            changes=[task.changes for task in tasks],
        )
    except OSError:
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return submission


def place(name: str, tasks: Sequence[Task]) -> Path:
    """Return the folder of a submission, beside the runs of its tasks.

    Raises:
        ParameterError: The name would leave it, or a script cannot name it.
    """
    folder = resolve_path(tasks[0].params.paths.output) / "slurm" / name
    if not _NAME.fullmatch(name):
        raise ParameterError(f"--name {name!r}: letters, digits, _ . and - alone, at most 100")
    return folder


def script_text(folder: Path, notebook: str, tasks: Sequence[Task], settings: SlurmSettings) -> str:
    """Return the script that sbatch gets: one array, one task a set of parameters."""
    needed = max(task.params.gpus_needed for task in tasks)
    text = (Path(__file__).parent / "job.sh").read_text(encoding="utf-8")
    template = Template(text, keep_trailing_newline=True, undefined=StrictUndefined)
    script: str = template.render(
        notebook=notebook,
        count=len(tasks),
        settings=settings,
        gpus=needed if settings.gpus is None else settings.gpus,
        project=shlex.quote(str(project_root())),
        python=shlex.quote(sys.executable),
        folder=shlex.quote(str(folder)),
    )
    return script


def find(array: str | None, root: str) -> Submission:
    """Return a submission by its name, job id or folder; without any, the newest.

    Raises:
        ParameterError: There is none such.
    """
    if array and (Path(array) / "submission.json").is_file():
        return Submission(Path(array).resolve())
    parent = resolve_path(root) / "slurm"
    dated = {}
    for submission in (Submission(path.parent) for path in parent.glob("*/submission.json")):
        try:
            dated[submission] = submission.info["submitted_at"]
        except ParameterError as error:  # no reason not to show the others
            if array == submission.folder.name:
                raise
            warnings.warn(str(error), stacklevel=2)
    found = sorted(dated, key=lambda submission: dated[submission])
    if not found:
        raise ParameterError(f"no array was submitted under {parent}; name its outputs by --root")
    for submission in reversed(found):
        if array in (None, submission.folder.name, submission.info["job_id"]):
            return submission
    names = [submission.folder.name for submission in found]
    raise ParameterError(
        f"no array {array!r} under {parent}{nearest(str(array), names)} The newest are "
        f"{', '.join(names[-5:])}"
    )


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
        said = (done.stderr or done.stdout).strip() or "it says nothing"
        raise ParameterError(f"{command[0]} ended with status {done.returncode}: {said}")
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
    name: str | None, notebook: str, tasks: Sequence[Task], settings: SlurmSettings, dry_run: bool
) -> list[str]:
    """Write a submission's folder and hand its array to sbatch, or show its script on a dry run.

    Returns:
        What is to be said of it, in lines.

    Raises:
        ParameterError: The name is taken, sbatch is missing or refuses, or it prints no job id;
            no folder is left.
        OSError: The folder cannot be written, as on a full disk; no folder and no job is left.
    """
    name = name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{notebook}"
    if dry_run:
        return [
            script_text(place(name, tasks), notebook, tasks, settings),
            *(f"task {index}: {described(task.changes)}" for index, task in enumerate(tasks)),
            f"{len(tasks)} tasks are in order; nothing was submitted",
        ]
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


def status_lines(submission: Submission) -> list[str]:
    """Return how an array stands, in lines for a terminal.

    A row a task: what tells it from the others, state, restarts, progress, headline so far, and
    the reason of a failure; below the table what has to be said of it.
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
    told = "array {job_id} of {notebook}, submitted {submitted_at:.16} UTC"
    head = f"{submission.folder.name}: {told.format(**info)}"
    return [head, table.to_string(), *notes, *sorted(sources)]


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
