"""What is submitted to SLURM: settings, and one checked set of parameters a task."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geo_utils.files import project_root
from geo_utils.notebook_params import NotebookParams
from geo_utils.notebooks import read_parameters
from geo_utils.parameter_errors import ParameterError, problem_line, read_yaml
from geo_utils.runs import locate_run

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_OURS = re.compile(r"--(array|requeue|no-requeue|open-mode|signal|output|error|job-name)\b")
_MANY_NODES = re.compile(r"(-N|--nodes)")
MULTI_NODE = "a task runs on one node: training over several is out of this project's scope"


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

    partition: str | None = None
    account: str | None = None
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
        try:
            return cls(**{**read_yaml(path), **flags})
        except ValidationError as error:
            lines = [problem_line(cls.model_fields, dict(detail)) for detail in error.errors()]
            raise ParameterError(f"{path.name}: " + "\n".join(lines)) from None

    @property
    def seconds(self) -> int:
        """The time limit in seconds."""
        days, dash, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        hours_first = dash or len(parts) == 3  # else minutes[:seconds]
        units = (3600, 60, 1) if hours_first else (60, 1, 0)
        seconds = sum(n * unit for n, unit in zip(parts, units, strict=False))
        return int(days or 0) * 86400 + seconds

    @field_validator("time", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise ValueError(
                f'{value!r} is no time limit; write "04:00:00" or "1-00:00:00", in quotes'
            )
        return value

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, lines: list[str]) -> list[str]:
        for line in lines:
            if _MANY_NODES.match(line):
                raise ValueError(f"{line!r}: {MULTI_NODE}")
            if found := _OURS.match(line):
                raise ValueError(f"{line!r}: {found.group()} is set here; leave it out")
        return lines

    @model_validator(mode="after")
    def _time_to_save(self) -> Self:
        if self.seconds <= self.signal_s:
            raise ValueError(
                f"time={self.time!r} is not longer than signal_s={self.signal_s}: a task would "
                "be told to save before it has begun"
            )
        return self


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
        entries: Each `name=value,value`; a value is read as YAML, `1e-6` as a number.

    Raises:
        ParameterError: An entry that is none, or a name given twice.
    """
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        try:
            values = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            values = None
        if not name or not equals or not values:
            raise ParameterError(f"--grid {entry!r}: write name=value,value")
        if name in grid:
            raise ParameterError(f"--grid {entry!r}: {name} is given twice")
        grid[name] = [_number(value) for value in values]
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
        ParameterError: Every task that the notebook would refuse, or that is another's twin.
    """
    name, tasks = notebook, []
    problems: dict[str, list[str]] = {}
    points = list(itertools.product(files, *grid.values()))
    for number, (file, *values) in enumerate(points):
        changes = dict(zip(grid, values, strict=True))
        text = [(key, yaml.safe_dump(value, allow_unicode=True)) for key, value in changes.items()]
        if len(files) > 1:
            changes = {"params": Path(file).stem} | changes
        try:
            name, passed, params = read_parameters(notebook, file, [*overrides, *text])
        except ParameterError as error:
            problems.setdefault(str(error), []).append(f"{number} ({described(changes)})")
            continue
        tasks.append(Task(changes, passed, params))
    if problems:
        lines = [f"{error}\n  in {_listed(found)}" for error, found in problems.items()]
        lost = sum(len(found) for found in problems.values())
        raise ParameterError(f"{lost} of {len(points)} tasks cannot run:\n" + "\n".join(lines))
    _refuse_twins(name, tasks)
    return name, tasks


def described(changes: Mapping[str, Any]) -> str:
    """Return what tells a task from the others, in one line."""
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "no changes"


def _number(value: Any) -> Any:
    """Return the number that YAML 1.1 reads as text: `1e-6`."""
    try:
        number = float(value) if isinstance(value, str) and "e" in value.lower() else math.nan
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _listed(found: Sequence[str]) -> str:
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"task{'s' if len(found) > 1 else ''} {'; '.join(found[:4])}{more}"


def _refuse_twins(notebook: str, tasks: Sequence[Task]) -> None:
    seen: dict[tuple[Path, str], int] = {}  # by where the run is, and the hash of its parameters
    for number, task in enumerate(tasks):
        run = locate_run(notebook, task.params).folder
        twin = seen.setdefault((run.parent, run.name.rpartition("-")[2]), number)
        if twin != number:
            raise ParameterError(
                f"tasks {twin} ({described(tasks[twin].changes)}) and {number} "
                f"({described(task.changes)}) are the same run: they differ in nothing that a "
                "result depends on"
            )


def default_settings() -> Path:
    """Return the file of the settings."""
    return project_root() / "params" / "slurm.yaml"
