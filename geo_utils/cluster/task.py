"""One task of an array, inside its job: start, resume, or end at once."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from geo_utils.cluster.arrays import Submission, TaskRecord
from geo_utils.cluster.servers import serve_here
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import LocalServer, NotebookParams, ParameterError
from geo_utils.runs import Run, locate_run, signals_handled

# Runs a notebook and returns its exit code.
Execute = Callable[[str, dict[str, Any], NotebookParams], int]
# Starts a server on a GPU, is entered once it answers, takes it down at the end; writes to a log.
Serve = Callable[[LocalServer, str, Path], AbstractContextManager[object]]


class _Failed(Exception):
    """Ends a task for good, with the reason: it is never started again."""


def run_task(
    submission: Submission, index: int, execute: Execute, serve: Serve = serve_here
) -> int:
    """Run a task's notebook in its run folder, unless it has ended before.

    A task that has finished or failed ends at once, whoever requeued it. Only one that a signal
    ended is worth another start: the array's script sees to that by the exit code.

    Args:
        submission: Of the array.
        index: The task's number.
        execute: Runs a notebook with the values to pass and the same, checked: `run.execute`.
        serve: Starts a server that the parameters expect on this host.

    Returns:
        0 finished, 1 failed, above 128 ended by that signal.
    """
    record = submission.record(index)
    record.restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    _log(f"task {index}, start {record.restarts + 1} on {platform.node()}")
    try:
        code = _started(submission, index, record, execute, serve)
    except _Failed as error:
        record.outcome, record.reason, code = "failed", str(error), 1
        _log(f"it has failed, and will not be started again: {error}")
    if code == 0:
        record.outcome = "finished"
    submission.save(index, record)
    run = Run(Path(record.run or os.devnull))
    # Not one that another array had finished, and none that is gone.
    if code == 0 and record.starts and run.manifest:
        run.update(restarts=record.restarts)
    return code


def _started(
    submission: Submission, index: int, record: TaskRecord, execute: Execute, serve: Serve
) -> int:
    """Start or resume a task, note that in its record, and return how that ended.

    Raises:
        _Failed: By its own fault, now or before.
    """
    if record.outcome == "failed":
        raise _Failed(record.reason)
    if record.outcome == "finished":
        _log("it has finished before; nothing to do")
        return 0
    info = submission.info
    try:
        name, values, params = read_parameters(info["notebook"], str(submission.task_file(index)))
    except ParameterError as error:
        raise _Failed(error) from None
    run = locate_run(name, params)
    record.run, saved = str(run.folder), params.saved_work(run.folder)
    if problem := _hopeless(record, saved, info["settings"]):
        raise _Failed(problem)
    if run.manifest.get("status") == "finished":
        _log(f"{run} has finished before; nothing to do")
        return 0
    run.folder.mkdir(parents=True, exist_ok=True)  # found again as it is, whatever comes
    start = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S+00:00}", "host": platform.node()}
    record.starts.append(start | {"restart": record.restarts, "progress": saved, "end": None})
    submission.save(index, record)

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)  # unwinds what is open: no server outlives its task

    try:
        with (
            signals_handled(leave, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP),
            servers_up(params, submission.folder / "logs", index, serve),
        ):
            code = execute(name, values, params)
    except SystemExit as stopped:  # while its servers came up
        code = int(stopped.code or 0)
    except Exception as error:  # such as a server that does not come up
        raise _Failed(f"{type(error).__name__}: {error}") from None
    manifest = run.manifest
    if manifest.get("status") == "finished" or code == 0:
        return 0
    if code <= 128:
        raise _Failed((code == 1 and manifest.get("reason")) or "see the task's log")
    record.starts[-1]["end"] = signal.Signals(code - 128).name
    return code


@contextlib.contextmanager
def servers_up(params: NotebookParams, logs: Path, index: int, serve: Serve) -> Iterator[None]:
    """Hold up the servers that parameters expect on this host, and take them down at the end.

    The job's first GPU is the run's own, if it needs one, and the only one that it sees.

    Args:
        params: The task's.
        logs: Folder for the servers' logs.
        index: The task's number.
        serve: Starts one server.
    """
    servers, given = params.servers_here, os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [gpu for gpu in (given or "").split(",") if gpu]
    own = params.gpus_needed - len(servers)
    with contextlib.ExitStack() as stack:
        for number, server in enumerate(servers):
            gpu = gpus[own + number] if own + number < len(gpus) else ""
            stack.enter_context(serve(server, gpu, logs / f"{index}-server-{number}.log"))
        if servers and gpus:  # what is left of them would split the run's model over all
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[:own])
        try:
            yield
        finally:
            if given is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = given


def _hopeless(record: TaskRecord, saved: list[int], settings: dict[str, int]) -> str | None:
    """Say why a task should not be started once more, or return None.

    A start that was preempted is no fault of the task's; one that ran out of time, or that ended
    without a word, and left nothing saved, is.
    """
    most = settings["max_restarts"]
    if record.restarts > most:
        return f"restarted {record.restarts} times, max_restarts={most}; submit again to go on"
    stalled = 0
    for start in reversed(record.starts):
        if start.get("progress") != saved:
            break
        stalled += start.get("end") != "SIGTERM"
    if stalled >= settings["max_stalled"]:
        return (
            f"{stalled} starts in a row saved nothing (max_stalled={settings['max_stalled']}); "
            "is the time limit too short, or save_steps too large?"
        )
    return None


def _log(text: str) -> None:
    now = datetime.now(UTC)
    sys.stderr.write(f"[{now:%Y-%m-%d %H:%M:%S} UTC] {text}\n")
