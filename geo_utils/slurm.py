"""Command line: a notebook over a grid as one SLURM array, and what became of it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geo_utils.cluster.folder import Submission, create, find, place, script_text
from geo_utils.cluster.state import collect_table, collected_text, status_table
from geo_utils.cluster.task import run_task
from geo_utils.cluster.tasks import (
    MULTI_NODE,
    SlurmSettings,
    Task,
    default_settings,
    described,
    make_tasks,
    parse_grid,
)
from geo_utils.files import write_atomic
from geo_utils.parameter_errors import ParameterError

_JOB_ID = re.compile(r"(\d+)(;\S+)?")  # as --parsable prints it, with the cluster's name or not
_FLAGS = ("partition", "account", "time", "concurrency", "gpus", "cpus")


def main(argv: Sequence[str] | None = None) -> int:
    """Submit a notebook over a grid as one SLURM array; see, cancel and collect it.

    Args:
        argv: Command line; default, the process's own.

    Returns:
        0, or 2 with a message for what cannot be used or what SLURM refuses. `task`, which the
        array's script calls: as `cluster.task.run_task`.
    """
    args = _parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "submit": _submit, "status": _status, "cancel": _cancel, "collect": _collect,
        "task": lambda args: run_task(Submission(Path(args.folder)), args.index),
    }  # fmt: skip
    try:
        return commands[args.command](args)
    except (ParameterError, OSError) as error:  # the latter such as of a full disk
        sys.stderr.write(f"{error}\n")
        return 2


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
        answer = _slurm("sbatch", "--parsable", str(submission.folder / "job.sh"))
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
            _slurm("scancel", job_id)  # an array that nothing knows of
            raise
    except BaseException:
        shutil.rmtree(submission.folder)
        raise
    return submission, job_id


def _submit(args: argparse.Namespace) -> int:
    if args.nodes != 1:
        raise ParameterError(f"--nodes {args.nodes}: {MULTI_NODE}")
    flags = {name: getattr(args, name) for name in _FLAGS if getattr(args, name) is not None}
    settings = SlurmSettings.read(Path(args.settings), flags)
    grid = parse_grid(args.grid)
    notebook, tasks = make_tasks(args.notebook, args.params, grid, args.overrides)
    name = args.name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{notebook}"
    if args.dry_run:
        _say(script_text(place(name, tasks), notebook, tasks, settings))
        for index, task in enumerate(tasks):
            _say(f"task {index}: {described(task.changes)}")
        _say(f"{len(tasks)} tasks are in order; nothing was submitted")
        return 0
    submission, job_id = submit(name, notebook, tasks, settings)
    _say(f"array {job_id}: {len(tasks)} runs of {notebook}, {submission.folder}/job.sh")
    _say(f"see how it stands: python -m geo_utils.slurm status {name}")
    return 0


def _status(args: argparse.Namespace) -> int:
    submission = find(args.array, args.root)
    table, notes = status_table(submission)
    info = submission.info
    _say(f"{submission.folder.name}: array {info['job_id']} of {info['notebook']}, "
         f"submitted {info['submitted_at'][:16]} UTC")  # fmt: skip
    _say("\n".join([table.to_string(), *notes]))
    return 0


def _cancel(args: argparse.Namespace) -> int:
    submission = find(args.array, args.root)
    job_id = submission.info["job_id"]
    if job_id is None:
        raise ParameterError(
            f"{submission.folder.name}: sbatch took no job, there is nothing to cancel; delete "
            f"{submission.folder}"
        )
    _slurm("scancel", str(job_id))
    submission.update(cancelled_at=datetime.now(UTC).isoformat(timespec="seconds"))
    _say(f"cancelled array {job_id}; what its runs have saved is kept, and the "
         "same submit goes on from it")  # fmt: skip
    return 0


def _collect(args: argparse.Namespace) -> int:
    submission = find(args.array, args.root)
    table, notes = collect_table(submission)
    if table.empty:
        raise ParameterError(
            f"{submission.folder.name}: no task has finished yet, or its notebook compares no "
            "methods; `report compare` shows any runs side by side"
        )
    path = submission.folder / "headlines.csv"
    write_atomic(path, table.to_csv(index=False))
    changes = [name for name in submission.info["changes"][0] if name in table]
    sources = [f"Source: {source}." for source in sorted(set(table["provenance"]))]
    intervals = "95 % intervals over queries."
    _say("\n".join([collected_text(table, changes), intervals, *sources, *notes, str(path)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m geo_utils.slurm", description=(main.__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("submit", help="submit an array", description=f"Note: {MULTI_NODE}.")
    one.add_argument("notebook")
    one.add_argument(
        "--params", nargs="+", default=["default"], metavar="FILE",
        help="names of files in params/<notebook>/, or paths; every one meets the whole grid",
    )  # fmt: skip
    one.add_argument("--grid", nargs="+", default=[], metavar="NAME=VALUE,VALUE")
    one.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides",
        help="set one parameter of all tasks; the value is read as YAML",
    )  # fmt: skip
    one.add_argument("--name", help="of the folder in outputs/slurm; default, time and notebook")
    one.add_argument("--dry-run", action="store_true", help="show the script; submit nothing")
    one.add_argument("--partition")
    one.add_argument("--account")
    one.add_argument("--time", help="limit of a task; one that runs out of it goes on, requeued")
    one.add_argument("--concurrency", type=int, metavar="K", help="tasks that run at once")
    one.add_argument("--gpus", type=int, metavar="N", help="of a task; default, by its recipe")
    one.add_argument("--cpus", type=int, metavar="N", help="of a task")
    one.add_argument("--nodes", type=int, default=1, help=f"1; {MULTI_NODE}")
    one.add_argument("--settings", default=str(default_settings()), metavar="FILE")
    for name, text in (
        ("status", "how the tasks of an array stand"),
        ("cancel", "end an array; its runs can be resumed"),
        ("collect", "the headlines of the finished runs, as a table and headlines.csv"),
    ):
        command = commands.add_parser(name, help=text)
        optional: dict[str, Any] = {} if name == "cancel" else {"nargs": "?"}
        command.add_argument(
            "array", help="its name, job id or folder; default, newest", **optional
        )
        command.add_argument("--root", default="outputs", help="the runs' output_root")
    task = commands.add_parser("task", help="run one task; the array's script calls it")
    task.add_argument("folder")
    task.add_argument("index", type=int)
    return parser


def _slurm(*command: str) -> str:
    """Return what a SLURM command prints.

    Raises:
        ParameterError: It is missing or fails.
    """
    # What a job's own environment says about it would be taken for options of the new one.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_JOB"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=clean)
    except OSError as error:
        raise ParameterError(
            f"{command[0]} cannot be started ({error.strerror}); submit from a machine of the "
            "cluster, or see the script with --dry-run"
        ) from None
    if done.returncode:
        raise ParameterError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
