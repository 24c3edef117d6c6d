"""The folder of a submission: its script, one parameter file a task, and how each task stands."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from geo_utils.cluster.resources import gpus_needed
from geo_utils.cluster.tasks import SlurmSettings, Task, described
from geo_utils.files import project_root, resolve_path, write_atomic
from geo_utils.parameter_errors import ParameterError, nearest

_SCRIPT = """\
#!/bin/bash
# {count} of notebook {notebook}; what each one runs is in {folder}/tasks/.
# Written by python -m geo_utils.slurm submit.
{directives}

# SLURM signals this shell {signal_s} s before the time limit, and every process on preemption. The
# task saves either way; it is put back into the queue unless SLURM does that itself.
told= task=
trap 'told=1; kill -USR1 $task 2>/dev/null' USR1
trap 'told=1' TERM

cd {project}
{setup}{python} -m geo_utils.slurm task {folder} "$SLURM_ARRAY_TASK_ID" &
task=$!
[ -z "$told" ] || kill -USR1 "$task"
wait "$task"; code=$?
while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done
wait "$task"; code=$?

# 0 finished, 1 and 2 failed; above 128 a signal ended it.
if [ -n "$told" ] && [ "$code" -gt 128 ]; then
  # Not by SLURM_JOB_ID: one task's is the array's own, which means every task.
  self="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
  state=$(squeue -h -j "$self" -o %T)
  [ "$state" = RUNNING ] && scontrol requeue "$self"
fi
exit "$code"
"""

UNREADABLE = "unreadable"


@dataclass
class TaskRecord:
    """How a task stands, kept by the task itself.

    Attributes:
        outcome: `finished` or `failed` once it has ended; it is never started again. `unreadable`
            if the record is torn.
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
            found = dict(json.loads(path.read_text(encoding="utf-8")))
            checked: dict[str, Any] = {name: found[name] for name in ("notebook", "settings")}
            job_id = found["job_id"]
            checked |= {"job_id": job_id if job_id is None else str(job_id)}
            checked |= {"changes": [dict(changes) for changes in found["changes"]]}
            return found | checked | {"submitted_at": str(found["submitted_at"])}
        except (OSError, ValueError, TypeError, KeyError):
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

        A record that is torn says so itself: the other tasks' are still worth reading.
        """
        path = self.folder / "state" / f"{index}.json"
        try:
            return TypeAdapter(TaskRecord).validate_json(path.read_bytes())
        except FileNotFoundError:
            return TaskRecord()
        except (OSError, ValueError):
            return TaskRecord(UNREADABLE, f"state/{path.name} is torn; the task's run is not")

    def save(self, index: int, record: TaskRecord) -> None:
        """Keep how a task stands."""
        text = json.dumps(asdict(record), indent=2, ensure_ascii=False)
        write_atomic(self.folder / "state" / f"{index}.json", text + "\n")


def create(name: str, notebook: str, tasks: Sequence[Task], settings: SlurmSettings) -> Submission:
    """Write a submission's folder, beside the runs of its tasks.

    Raises:
        ParameterError: The name is taken.
        OSError: The folder cannot be written, as on a full disk; none is left.
    """
    submission = Submission(place(name, tasks))
    if submission.folder.exists():
        raise ParameterError(f"--name {name!r}: {submission.folder} is there; choose another")
    try:
        _write(submission, notebook, tasks, settings)
    except OSError:
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return submission


def _write(
    submission: Submission, notebook: str, tasks: Sequence[Task], settings: SlurmSettings
) -> None:
    script = script_text(submission.folder, notebook, tasks, settings)
    for index, task in enumerate(tasks):
        text = yaml.safe_dump(task.values, sort_keys=False, allow_unicode=True)
        header = f"# {notebook}, task {index}: {described(task.changes)}\n"
        write_atomic(submission.task_file(index), header + text)
    (submission.folder / "logs").mkdir()
    write_atomic(submission.folder / "job.sh", script)
    submission.update(
        notebook=notebook,
        job_id=None,
        submitted_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        settings=settings.model_dump(),
        changes=[task.changes for task in tasks],
    )


def place(name: str, tasks: Sequence[Task]) -> Path:
    """Return the folder of a submission, beside the runs of its tasks."""
    return resolve_path(tasks[0].params.output_root) / "slurm" / name


def script_text(folder: Path, notebook: str, tasks: Sequence[Task], settings: SlurmSettings) -> str:
    """Return the script that sbatch gets: one array, one task a set of parameters."""
    limit = f"%{settings.concurrency}" if settings.concurrency else ""
    gpus = settings.gpus
    if gpus is None:
        gpus = max(gpus_needed(task.params) for task in tasks)
    lines = [
        f"--job-name={notebook}",
        f"--array=0-{len(tasks) - 1}{limit}",
        f"--output={shlex.quote(str(folder))}/logs/%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{settings.signal_s}",
        f"--time={settings.time}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={settings.cpus}",
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        *([f"--partition={settings.partition}"] if settings.partition else []),
        *([f"--account={settings.account}"] if settings.account else []),
        *settings.sbatch,
    ]
    return _SCRIPT.format(
        count=f"{len(tasks)} run{'s' if len(tasks) > 1 else ''}",
        notebook=notebook,
        directives="\n".join(f"#SBATCH {line}" for line in lines),
        folder=shlex.quote(str(folder)),
        project=shlex.quote(str(project_root())),
        python=shlex.quote(sys.executable),
        signal_s=settings.signal_s,
        setup="".join(f"{line}\n" for line in settings.setup),
    )


def find(array: str | None, root: str) -> Submission:
    """Return a submission by its name, job id or folder; without any, the newest.

    Raises:
        ParameterError: There is none such.
    """
    if array and (Path(array) / "submission.json").is_file():
        return Submission(Path(array).resolve())
    parent = resolve_path(root) / "slurm"
    dated = []
    for submission in (Submission(path.parent) for path in parent.glob("*/submission.json")):
        try:
            dated.append((submission.info["submitted_at"], submission))
        except ParameterError as error:  # no reason not to show the others
            if array == submission.folder.name:
                raise
            warnings.warn(str(error), stacklevel=2)
    found = [submission for _, submission in sorted(dated, key=lambda pair: pair[0])]
    if not found:
        raise ParameterError(f"no array was submitted under {parent}; name its outputs by --root")
    if array is None:
        return found[-1]
    for submission in reversed(found):
        if array in (submission.folder.name, submission.info["job_id"]):
            return submission
    names = [submission.folder.name for submission in found]
    raise ParameterError(
        f"no array {array!r} under {parent}{nearest(array, names)} The newest are "
        f"{', '.join(names[-5:])}"
    )
