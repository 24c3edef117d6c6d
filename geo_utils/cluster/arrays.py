"""What is submitted to SLURM: settings, and one checked set of parameters a task."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from jinja2 import StrictUndefined, Template
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
)

from geo_utils.files import project_root, resolve_path, write_atomic
from geo_utils.models.base import redacted
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import (
    NotebookParams,
    ParameterError,
    checked,
    from_yaml,
    nearest,
    read_yaml,
)

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_OURS = """--array --chdir --error --export-file --job-name --no-requeue --nodes --ntasks
--open-mode --output --requeue --signal --time --wrap""".split()  # noqa: SIM905
_NAME = re.compile(r"\w[\w.-]*")
_Listed = Annotated[str, Field(pattern=r"^[\w.,@+-]+$")]  # partitions, accounts
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


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
    def read(cls, path: Path, flags: Mapping[str, Any]) -> Self:
        """Read the settings' file, flags over it.

        Raises:
            ParameterError: Every problem at once.
        """
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
            if _CONTROL.search(line):
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
        ParameterError: The first task that the notebook would refuse.
    """
    name, tasks = notebook, []
    for number, (file, *values) in enumerate(itertools.product(files, *grid.values())):
        changes = dict(zip(grid, values, strict=True))
        text = [(key, json.dumps(value, default=str)) for key, value in changes.items()]
        if len(files) > 1:
            changes = {"params": Path(file).stem} | changes
        try:
            name, passed, params = read_parameters(notebook, file, [*overrides, *text])
        except ParameterError as error:
            raise ParameterError(f"task {number} ({described(changes)}): {error}") from None
        tasks.append(Task(changes, passed, params))
    return name, tasks


def described(changes: Mapping[str, Any]) -> str:
    """Return what tells a task from the others, in one line."""
    each = (f"{name}={value}" for name, value in changes.items())
    return ", ".join(_CONTROL.sub(" ", text) for text in each) or "no changes"


def default_settings() -> Path:
    """Return the file of the settings."""
    return project_root() / "params" / "slurm.yaml"


@dataclass
class TaskRecord:
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
    starts: list[dict[str, Any]] = field(default_factory=list)


_TASK_RECORD = TypeAdapter(TaskRecord)


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

    def log(self, index: int) -> Path:
        """Return the log of a task, all starts one after the other."""
        return self.folder / "logs" / f"{index}.log"

    def record(self, index: int) -> TaskRecord:
        """Return how a task stands; one that never started has an empty record.

        One that is torn is as good as none, with a warning: the task's run tells the rest.
        """
        path = self.folder / "state" / f"{index}.json"
        try:
            return _TASK_RECORD.validate_json(path.read_bytes())
        except FileNotFoundError:
            return TaskRecord()
        except (OSError, ValueError):
            warnings.warn(f"{path} is torn; the task's run is not", stacklevel=2)
            return TaskRecord()

    def save(self, index: int, record: TaskRecord) -> None:
        """Keep how a task stands."""
        text = _TASK_RECORD.dump_json(record, indent=2)
        write_atomic(self.folder / "state" / f"{index}.json", text + b"\n")


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
            text = yaml.safe_dump(task.values, sort_keys=False, allow_unicode=True)
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
        raise ParameterError(f"--name {name!r}: letters, digits, _ . and - alone")
    if _CONTROL.search(str(folder)):
        raise ParameterError(f"paths.output={str(folder)!r}: no line breaks in a path")
    return folder


def script_text(folder: Path, notebook: str, tasks: Sequence[Task], settings: SlurmSettings) -> str:
    """Return the script that sbatch gets: one array, one task a set of parameters."""
    needed = max(task.params.gpus_needed for task in tasks)
    text = (Path(__file__).parent / "job.sh").read_text(encoding="utf-8")
    return Template(text, keep_trailing_newline=True, undefined=StrictUndefined).render(
        notebook=notebook,
        count=len(tasks),
        settings=settings,
        gpus=needed if settings.gpus is None else settings.gpus,
        project=shlex.quote(str(project_root())),
        python=shlex.quote(sys.executable),
        folder=shlex.quote(str(folder)),
    )


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
