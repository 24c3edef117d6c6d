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
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import nbformat
import yaml

from geo_utils.files import project_root, resolve_path, write_atomic
from geo_utils.notebooks import NOTEBOOKS, read_parameters
from geo_utils.parameters import NotebookParams, ParameterError
from geo_utils.runs import EXPECTED, Run, Status, hold, locate_run, signals_handled

GRACE_S = 20.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
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
    parser.add_argument("notebook", help=f"one of {', '.join(NOTEBOOKS)}")
    parser.add_argument("params", help="name of a file in params/<notebook>/, or a path to one")
    pairs: Any = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    text = "set one parameter, or NAME.ENTRY of a mapping; the value is read as YAML"
    parser.add_argument("-p", dest="overrides", help=text, **pairs)
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
    received: list[signal.Signals] = []
    # The handlers are there before anything starts: a shell's `&` starts this process with SIGINT
    # ignored, and Papermill would inherit that.
    with signals_handled(lambda number, _: received.append(signal.Signals(number)), *_SIGNALS):
        try:
            lock = hold(run, "start")
            hold(run, "work").close()  # a kernel that somebody else has started
            again = run.manifest.get("headline") is not None
            injected, reserve = run.folder / "params.yaml", run.folder / ".reserve"
            write_atomic(injected, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
            write_atomic(reserve, os.urandom(_RESERVE))
            try:
                begun = {"rerun" if again else "status": "started"}
                run.update(
                    run_id=run.folder.name, notebook=notebook, variant=params.variant, **begun
                )
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
        sys.stderr.write(_headline_text(run) if status == "finished" else f"  {reason}\n")
        # Whoever sent a signal does not wait for long.
        if not received and executed.name == "notebook.ipynb" and executed.is_file():
            _render(executed, run.manifest)
        try:
            from geo_utils.show.pages import write_index

            write_index(resolve_path(params.output_root))
        except Exception as error:  # a page that can be written at any time by `make index`
            sys.stderr.write(f"  the index of runs could not be written: {error}\n")
        lock.close()
    if received:
        return 128 + received[0]
    rehearsed = str(run.manifest.get("reason")).startswith("dry run")
    return 0 if status == "finished" or rehearsed else 1


def _papermill(
    notebook: str, executed: Path, injected: Path, received: list[signal.Signals], lock: IO[str]
) -> int:
    """Execute the notebook in a process group of its own; on a signal end it, gently at first.

    It holds the run's lock as well: killed alone, this process would leave it training.
    """
    seen = sys.stderr.isatty()
    options = ["-f", str(injected), "--no-log-output", f"--{'' if seen else 'no-'}progress-bar"]
    source = f"{project_root()}/notebooks/{notebook}.ipynb"
    log = executed.with_name("papermill.log")
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _PAPERMILL, source, str(executed), *options],
            cwd=project_root(),
            env={**os.environ, EXPECTED: str(executed.parent)},
            pass_fds=[lock.fileno()],
            start_new_session=True,
            stderr=None if seen else errors,
        )
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
    from geo_utils.records import PROBABILITY, Record, results

    record = Record(run.folder)
    found = results(record)
    told = [r for r in found if r.quantity in (PROBABILITY, "gain")]
    what, found = (PROBABILITY, told) if told else ("headline", found)
    lines = [f"  {what} ({record.provenance}):"]
    lines += [f"  {r.method or r.quantity:20} {r.text:22} {r.counts}" for r in found]
    return "\n".join([*lines, ""])


def _render(executed: Path, manifest: dict[str, Any]) -> None:
    from geo_utils.show.report import render_report

    try:
        written = render_report(executed, manifest)
    except Exception as error:  # the run's results stand whether or not they could be rendered
        sys.stderr.write(f"  report and slides could not be rendered: {error}\n")
        return
    for name, path in written.items():
        print(f"{name}: {path}".replace(f"{project_root()}/", ""))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
