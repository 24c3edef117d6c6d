"""Command line: run a notebook headless into its run folder, and render what it says."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

import nbformat
import yaml

from geo_utils.files import project_root, resolve_path, write_atomic
from geo_utils.notebook_params import NotebookParams
from geo_utils.notebooks import PARAMS, read_parameters
from geo_utils.parameter_errors import ParameterError
from geo_utils.runs import EXPECTED, Run, Status, hold, locate_run, lock_path

GRACE_S = 20.0
_RESERVE = 1 << 18  # bytes kept free for the manifest's last word, and the log's, on a full disk
# A cluster's preemption signals every process of a job at once. Papermill has to outlive that, as
# the kernel ends with it, and has to wait while the kernel saves: its own patience is 5 s.
_PAPERMILL = f"""
import signal
from jupyter_client.manager import KernelManager
from papermill.cli import papermill
signal.signal(signal.SIGTERM, lambda *_: None)
KernelManager.shutdown_wait_time.default_value = {GRACE_S - 5}
papermill()
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check the parameters, execute the notebook through Papermill, write report and slides.

    Args:
        argv: Command line; default, the process's own.

    Returns:
        0 finished, 1 failed, 2 wrong parameters, 128 and its number interrupted by a signal.
    """
    parser = argparse.ArgumentParser(
        prog="python -m geo_utils.run", description=(main.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("notebook", help=f"one of {', '.join(PARAMS)}")
    parser.add_argument("params", help="name of a file in params/<notebook>/, or a path to one")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides",
        help="set one parameter, or NAME.ENTRY of a mapping; the value is read as YAML",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        notebook, values, params = read_parameters(args.notebook, args.params, args.overrides)
    except ParameterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return execute(notebook, values, params)


def execute(notebook: str, values: dict[str, Any], params: NotebookParams) -> int:
    """Execute a notebook with checked parameters in its run folder.

    Papermill runs in a process group of its own, so that a signal to this process can save what
    there is: the kernel is interrupted first and killed only after `GRACE_S` seconds.

    Args:
        notebook: Its name without ending.
        values: The parameters to inject.
        params: The same, checked.

    Returns:
        As `main`.
    """
    try:
        run = locate_run(notebook, params)
    except OSError as error:  # such as of a corpus that may not be read
        sys.stderr.write(f"{notebook}: {error}\n")
        return 2
    with _signals_remembered() as received:
        try:
            lock = hold(lock_path(run, "start"))
            hold(lock_path(run, "work")).close()  # a kernel that somebody else has started
            again = run.manifest.get("headline") is not None
            run.folder.mkdir(parents=True, exist_ok=True)
            injected, reserve = run.folder / "params.yaml", run.folder / ".reserve"
            write_atomic(injected, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
            write_atomic(reserve, os.urandom(_RESERVE))
            try:
                run.update(run_id=run.folder.name, notebook=notebook, variant=params.variant,
                           **{"rerun" if again else "status": "started"})  # fmt: skip
            except OSError:
                reserve.unlink(missing_ok=True)
                raise
        except OSError as error:
            sys.stderr.write(f"run folder {run.folder}: {error}\n")
            return 2
        sys.stderr.write(f"{notebook}: running in {run}\n")
        started = time.monotonic()
        # A rerun that fails must not take the place of what had finished.
        executed = run.folder / ("notebook.rerun.ipynb" if again else "notebook.ipynb")
        try:
            returncode = _papermill(notebook, executed, injected, received, lock)
        except OSError as error:  # such as its log, that cannot be opened
            sys.stderr.write(f"  {error}\n")
            returncode = 1
        status, reason = _settle(run, executed, returncode, received, reserve)
        if again and status == "finished":
            executed = executed.replace(run.folder / "notebook.ipynb")
        sys.stderr.write(f"{notebook}: {status} after {time.monotonic() - started:.0f} s\n")
        if status == "finished":
            sys.stderr.write(_headline_text(run))
        else:
            sys.stderr.write(f"  {reason}\n")
        if not received and executed.name == "notebook.ipynb":
            _render(run)  # whoever sent a signal does not wait for long
        _index(params)
        lock.close()
    if received:
        return 128 + received[0]
    rehearsed = str(run.manifest.get("reason")).startswith("dry run")
    return 0 if status == "finished" or rehearsed else 1


@contextlib.contextmanager
def _signals_remembered() -> Iterator[list[signal.Signals]]:
    """Collect SIGINT, SIGTERM, SIGHUP and SIGUSR1 instead of dying of them.

    The handlers are there before anything starts: a shell's `&` starts this process with SIGINT
    ignored, and Papermill would inherit that.
    """
    received: list[signal.Signals] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, remember) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _papermill(
    notebook: str, executed: Path, injected: Path, received: list[signal.Signals], lock: IO[str]
) -> int:
    """Execute the notebook in a process group of its own; on a signal end it, gently at first.

    It holds the run's lock as well: killed alone, this process would leave it training.
    """
    command = [
        sys.executable, "-c", _PAPERMILL, f"{project_root()}/notebooks/{notebook}.ipynb",
        str(executed), "-f", str(injected), "--no-log-output",
        "--progress-bar" if sys.stderr.isatty() else "--no-progress-bar",
    ]  # fmt: skip
    log = executed.with_name("papermill.log")
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=project_root(), start_new_session=True,
            stderr=None if sys.stderr.isatty() else errors, pass_fds=[lock.fileno()],
            env={**os.environ, EXPECTED: str(executed.parent)},
        )  # fmt: skip
        deadline = None
        while process.poll() is None:
            time.sleep(0.05)
            if received and deadline is None:
                deadline = time.monotonic() + GRACE_S
                os.killpg(process.pid, signal.SIGINT)
            if deadline and time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode == 0:
        log.unlink(missing_ok=True)
    return process.returncode


def _settle(
    run: Run, executed: Path, returncode: int, received: list[signal.Signals], reserve: Path
) -> tuple[str, str]:
    """Record how the run ended, from the manifest alone, and return that and the reason.

    What was held in reserve is given up, so that a full disk takes the manifest's last word.
    """
    if not run.folder.is_dir():
        return "failed", f"{run.folder} was deleted while it ran; run it again"
    free = shutil.disk_usage(run.folder).free
    with contextlib.suppress(OSError):  # of a disk that cannot be written any more
        reserve.unlink(missing_ok=True)
    manifest = run.manifest
    status, reason = str(manifest.get("status")), manifest.get("reason") or manifest.get("rerun")
    ended: Status = "interrupted" if received else "failed"
    if received:
        reason = f"signal {received[0].name}"
    elif status not in ("failed", "interrupted") and (returncode or status != "finished"):
        reason = _failure(executed, returncode, full=free < _RESERVE)
    else:
        return status, str(reason)
    try:
        run.end(ended, reason)
    except OSError as error:
        sys.stderr.write(f"  how it ended cannot be recorded: {error}; put that right, run again\n")
    return ended, reason


def _failure(executed: Path, returncode: int, full: bool) -> str:
    """Return the reason of a failure: the notebook's error, else papermill's own, else a guess."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except Exception:  # a torn or missing notebook
        cells = []
    for cell in reversed(cells):
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                return f"{output['ename']}: {output['evalue']}"
    with contextlib.suppress(OSError):
        log = executed.with_name("papermill.log")
        said = log.read_text("utf-8", "replace").strip().splitlines()
        if said and said[-1].startswith("OSError: "):  # of the one file that it writes
            return f"{executed}: {said[-1].removeprefix('OSError: ')}"
    if full:
        return f"{executed}: no space left on its disk; make room, and run again to go on"
    return f"the kernel died or never started (papermill's exit code {returncode}); out of memory?"


def _headline_text(run: Run) -> str:
    from geo_utils.meeting.headlines import PROBABILITY, results
    from geo_utils.meeting.records import Record

    record = Record(run.folder)
    found = results(record)
    told = [r for r in found if r.quantity in (PROBABILITY, "gain")]
    what, found = (PROBABILITY, told) if told else ("headline", found)
    lines = [f"  {what} ({record.provenance}):"]
    for result in found:
        lines.append(f"  {result.method or result.quantity:20} {result.text:22} {result.counts}")
    return "\n".join(lines) + "\n"


def _render(run: Run) -> None:
    executed = run.folder / "notebook.ipynb"
    if not executed.is_file():
        return
    from geo_utils.report import render_pdf, render_report

    try:
        paths = render_report(executed, run.manifest)
        pdf = render_pdf(paths[1], run.manifest)
    except Exception as error:  # the run's results stand whether or not they could be rendered
        sys.stderr.write(f"  report and slides could not be rendered: {error}\n")
        return
    root = project_root()
    for name, path in zip(("report", "slides"), paths, strict=True):
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        print(f"{name}: {shown}")  # noqa: T201
    if pdf:
        print(pdf.replace(f"{root}/", ""))  # noqa: T201


def _index(params: NotebookParams) -> None:
    """Write the page of all runs anew."""
    from geo_utils.meeting.index_page import write_index

    try:
        write_index(resolve_path(params.output_root))
    except Exception as error:  # a page that can be written at any time by `make index`
        sys.stderr.write(f"  the index of runs could not be written: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
