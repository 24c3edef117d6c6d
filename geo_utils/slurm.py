"""Command line: a notebook over a grid as one SLURM array, and what became of it."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geo_utils.cluster.arrays import (
    MULTI_NODE,
    SlurmSettings,
    Submission,
    Task,
    create,
    default_settings,
    described,
    find,
    make_tasks,
    parse_grid,
    place,
    script_text,
)
from geo_utils.cluster.state import ask_slurm, collect_table, collected_text, status_table
from geo_utils.cluster.task import run_task
from geo_utils.files import write_atomic
from geo_utils.parameters import ParameterError
from geo_utils.run import execute

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
    try:
        if args.command == "task":
            return run_task(Submission(Path(args.folder)), args.index, execute)
        if args.command == "submit":
            said = _submit(args)
        else:
            commands = {"status": _status, "cancel": _cancel, "collect": _collect}
            said = commands[args.command](find(args.array, args.root))
    except (ParameterError, OSError) as error:  # the latter such as of a full disk
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join([*said, ""]))
    return 0


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


def _submit(args: argparse.Namespace) -> list[str]:
    if args.nodes != 1:
        raise ParameterError(f"--nodes {args.nodes}: {MULTI_NODE}")
    flags = {name: getattr(args, name) for name in _FLAGS if getattr(args, name) is not None}
    settings = SlurmSettings.read(Path(args.settings), flags)
    notebook, tasks = make_tasks(args.notebook, args.params, parse_grid(args.grid), args.overrides)
    name = args.name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{notebook}"
    if args.dry_run:
        return [
            script_text(place(name, tasks), notebook, tasks, settings),
            *(f"task {index}: {described(task.changes)}" for index, task in enumerate(tasks)),
            f"{len(tasks)} tasks are in order; nothing was submitted",
        ]
    submission, job_id = submit(name, notebook, tasks, settings)
    return [
        f"array {job_id}: {len(tasks)} runs of {notebook}, {submission.folder}/job.sh",
        f"see how it stands: python -m geo_utils.slurm status {name}",
    ]


def _status(submission: Submission) -> list[str]:
    table, notes = status_table(submission)
    told = "array {job_id} of {notebook}, submitted {submitted_at:.16} UTC"
    head = f"{submission.folder.name}: {told.format(**submission.info)}"
    return [head, table.to_string(), *notes]


def _cancel(submission: Submission) -> list[str]:
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


def _collect(submission: Submission) -> list[str]:
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
    shown = collected_text(table, changes)
    return [shown, "95 % intervals over queries.", *sources, *notes, str(path)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m geo_utils.slurm", description=(main.__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("submit", help="submit an array", description=f"Note: {MULTI_NODE}.")
    one.add_argument("notebook")
    files = "names of files in params/<notebook>/, or paths; every one meets the whole grid"
    one.add_argument("--params", nargs="+", default=["default"], metavar="FILE", help=files)
    one.add_argument("--grid", nargs="+", default=[], metavar="NAME=VALUE,VALUE")
    pairs: Any = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    text = "set one parameter of all tasks; the value is read as YAML"
    one.add_argument("-p", dest="overrides", help=text, **pairs)
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
        nargs, which = None if name == "cancel" else "?", "its name, job id or folder"
        command.add_argument("array", nargs=nargs, help=f"{which}; default, newest")
        command.add_argument("--root", default="outputs", help="the runs' output_root")
    task = commands.add_parser("task", help="run one task; the array's script calls it")
    task.add_argument("folder")
    task.add_argument("index", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
