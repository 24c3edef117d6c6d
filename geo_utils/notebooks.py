"""The notebooks: the parameters that each takes, and a headless run of one by Papermill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from geo_utils.files import project_root, write_atomic
from geo_utils.parameters import (
    NotebookParams,
    ParameterError,
    default_parameters,
    nearest,
    overridden,
    read_yaml,
    to_yaml,
)
from geo_utils.runs import EXPECTED, Run, Status, hold, locate_run, signals_handled

NOTEBOOKS = ("01_efficiency", "02_baseline_rewrites", "03_key_point_prompt", "04_grpo", "05_weekly")
GRACE_S = 20.0
LOGGED_S = 60.0  # between two lines in a log that is no terminal
PROGRESS = "GEO_UTILS_PROGRESS"  # of a kernel: the file in which `evaluate.Counter` tells it
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_RESERVE = 1 << 18  # bytes kept free for the manifest's last word, and the log's, on a full disk
# A cluster's preemption signals every process of a job at once. Papermill has to outlive that, as
# the kernel ends with it, and has to wait while the kernel saves: its own patience is 5 s. It is
# interrupted when its starter is killed, so that nothing goes on that nobody watches.
# The kernel is spoken to over Unix sockets: a TCP port, which Jupyter chooses before the kernel
# binds it, may be taken in between, and then the kernel dies.
_PR_SET_PDEATHSIG = 1  # of prctl(2)
# The package is imported for what it keeps jsonschema from.
_PAPERMILL = f"""
import ctypes, functools, os, signal, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGINT, 0, 0, 0)
if os.getppid() != {{parent}}: raise SystemExit(1)
import geo_utils
from jupyter_client.manager import KernelManager
from papermill.cli import papermill
signal.signal(signal.SIGTERM, lambda *_: None)
KernelManager.__init__ = functools.partialmethod(
    KernelManager.__init__, shutdown_wait_time={GRACE_S - 5},
    transport="ipc", connection_file="{{sockets}}/kernel.json",
)
papermill()
"""


def params_class(notebook: str) -> type[NotebookParams]:
    """Return the class of a notebook's parameters: `PARAMS` in the chapter of the same name.

    Args:
        notebook: One of `NOTEBOOKS`.
    """
    chapter = notebook.partition("_")[2]
    found: type[NotebookParams] = import_module(f"geo_utils.{chapter}.params").PARAMS
    return found


def notebook_name(given: str) -> str:
    """Return a notebook's name, given by that, with folder and ending or not, or by its number.

    Raises:
        ParameterError: There is none such.
    """
    name = given.removeprefix("notebooks/").removesuffix(".ipynb")
    by_number = {known[:2]: known for known in NOTEBOOKS}
    name = by_number.get(name.zfill(2), name)
    if name not in NOTEBOOKS:
        raise ParameterError(
            f"unknown notebook {given!r}{nearest(name, NOTEBOOKS)} Choose from "
            f"{', '.join(NOTEBOOKS)}"
        )
    return name


def read_parameters(
    notebook: str, file: str, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[str, dict[str, Any], NotebookParams]:
    """Read a notebook's parameters from a file, over the notebook's own defaults.

    Args:
        notebook: As `notebook_name` takes it.
        file: A name in `params/<notebook>/`, or a path to a YAML file.
        overrides: (name, value as YAML) pairs over the file's; `name.entry` sets one entry of a
            mapping, to any depth.

    Returns:
        The notebook's name, the values to pass to it, and the checked parameters.

    Raises:
        ParameterError: Anything that cannot be used.
    """
    name = notebook_name(notebook)
    path = Path(file)
    if path.suffix not in (".yaml", ".yml"):
        path = project_root() / "params" / name / f"{file}.yaml"
    defaults = default_parameters(project_root() / "notebooks" / f"{name}.ipynb")
    passed = overridden(read_yaml(path), overrides, defaults)
    params = params_class(name).check(defaults | passed, passed)
    return name, passed | params.settled, params


def execute(
    notebook: str,
    values: dict[str, Any],
    params: NotebookParams,
    rendered: Callable[[Path], None] | None = None,
) -> int:
    """Execute a notebook with checked parameters in its run folder.

    Papermill runs in a process group of its own, so that a signal to this process can save what
    there is: the kernel is interrupted first and killed only after `GRACE_S` seconds.

    Args:
        notebook: Its name without ending.
        values: The parameters to inject.
        params: The same, checked.
        rendered: Told the executed notebook, or the run folder where there is none to show;
            not after a signal, as whoever sent it does not wait for long.

    Returns:
        0 finished, 1 failed, 2 wrong parameters, 128 and its number interrupted by a signal.
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
            write_atomic(injected, to_yaml(values))
            write_atomic(reserve, os.urandom(_RESERVE))
            begun = {"rerun" if again else "status": "started", "notebook": notebook}
            try:
                run.update(run_id=run.folder.name, variant=params.variant, **begun)
            except OSError:
                reserve.unlink(missing_ok=True)
                raise
        except OSError as error:
            sys.stderr.write(f"run folder {run.folder}: {error}\n")
            return 2
        tell(f"{notebook}: running in {run}")
        started = time.monotonic()
        if rendered:  # what that needs takes seconds to import
            threading.Thread(target=import_module, args=("geo_utils.show.report",)).start()
        # A rerun that fails must not take the place of what had finished.
        executed = run.folder / ("notebook.rerun.ipynb" if again else "notebook.ipynb")
        try:
            returncode = _papermill(notebook, executed, injected, received, lock)
        except OSError as error:  # such as its log, that cannot be opened
            tell(f"  {error}")
            returncode = 1
        status, reason = _settle(run, executed, returncode, received, reserve)
        if status == "planned":
            _without_error(executed)
        if again and status == "finished":
            executed = executed.replace(run.folder / "notebook.ipynb")
        tell(f"{notebook}: {status} after {time.monotonic() - started:.0f} s")
        tell(_headline_text(run) if status == "finished" else f"  {reason}")
        if rendered and not received:
            shown = executed.name == "notebook.ipynb" and executed.is_file()
            rendered(executed if shown else run.folder)
        lock.close()
    if received:
        return 128 + received[0]
    return 0 if status in ("finished", "planned") else 1


def _papermill(
    notebook: str, executed: Path, injected: Path, received: list[signal.Signals], lock: IO[str]
) -> int:
    """Execute the notebook in a process group of its own; on a signal end it, gently at first.

    It holds the run's lock as well: where this process is killed alone, Papermill is interrupted
    and the kernel may save, and until that is done nobody else starts the run.
    """
    log, progress = executed.with_name("papermill.log"), executed.with_name(".progress")
    with (
        log.open("wb") as errors,
        # for the sockets; a local disk, and a short name, as theirs may have 107 characters
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as sockets,
    ):
        papermill = _PAPERMILL.format(parent=os.getpid(), sockets=sockets)
        command = [sys.executable, "-c", papermill]
        command += [f"{project_root()}/notebooks/{notebook}.ipynb", str(executed)]
        command += ["-f", str(injected), "--no-log-output", "--no-progress-bar"]
        process = subprocess.Popen(
            command,
            cwd=project_root(),
            env={**os.environ, EXPECTED: str(executed.parent), PROGRESS: str(progress)},
            pass_fds=[lock.fileno()],
            start_new_session=True,
            stderr=errors,
        )
        deadline, show = None, _Shown(notebook, progress)
        while process.poll() is None:
            time.sleep(0.05)
            show()
            if received and deadline is None:
                deadline = time.monotonic() + GRACE_S
                os.killpg(process.pid, signal.SIGINT)
            if deadline and time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    progress.unlink(missing_ok=True)
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
    elif status not in ("failed", "interrupted", "planned") and (
        returncode or status != "finished"
    ):
        reason = _failure(executed, returncode, full=free < _RESERVE)
    else:
        return status, str(reason)
    try:
        run.end(ended, reason)
    except OSError as error:
        tell(f"  how it ended cannot be recorded: {error}; put that right, run again")
    return ended, reason


def _without_error(executed: Path) -> None:
    """Take out of a dry run's notebook what Papermill and the kernel make of its end."""
    node = json.loads(executed.read_text(encoding="utf-8"))
    tagged = "papermill-error-cell-tag"
    node["cells"] = [c for c in node["cells"] if tagged not in c["metadata"].get("tags", ())]
    for cell in node["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if o["output_type"] != "error"]
    write_atomic(executed, json.dumps(node, indent=1, ensure_ascii=False) + "\n")


def _failure(executed: Path, returncode: int, full: bool) -> str:
    """Return the reason of a failure: the notebook's error, else papermill's own, else a guess."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):  # a torn or missing notebook
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
    return (
        f"the kernel died or never started (papermill's exit code {returncode}); out of memory? "
        f"What was said last is in {executed.with_name('papermill.log')}"
    )


def _headline_text(run: Run) -> str:
    from geo_utils.records import PROBABILITY, Record, results

    record = Record(run.folder)
    found = results(record)
    told = [
        r
        for r in found
        if r.quantity.startswith((PROBABILITY, "gain")) or "corrected lift" in r.quantity
    ]
    what, found = (PROBABILITY, told) if told else ("headline", found)
    lines = [f"  {what} ({record.provenance}):"]
    lines += [f"  {r.method or r.quantity:20} {r.text:22} {r.counts}" for r in found]
    return "\n".join(lines)


def tell(text: str, stream: IO[str] | None = None) -> None:
    """Write a line; in a terminal in the place of progress, which may be another run's.

    Args:
        text: The line.
        stream: Where to; default, standard error.
    """
    stream = stream or sys.stderr
    stream.write(f"\r\033[K{text}\n" if stream.isatty() else f"{text}\n")


class _Shown:
    """Shows the kernel's progress: in place in a terminal, a line a minute in a log."""

    def __init__(self, notebook: str, path: Path) -> None:
        self.notebook, self.path, self.line = notebook, path, ""
        self.read = self.logged = time.monotonic()

    def __call__(self) -> None:
        """Show what is new, read twice a second."""
        now = time.monotonic()
        if now - self.read < 0.5 or not self.path.is_file():
            return
        self.read, line = now, self.path.read_text(encoding="utf-8")
        text = f"  {self.notebook[:2]}: {line}"
        if sys.stderr.isatty() and line != self.line:
            done, _, total = line.partition(" of ")
            end = "\n" * total.startswith(f"{done} ")
            sys.stderr.write(f"\r\033[K{text}{end}")
        elif line != self.line and now - self.logged >= LOGGED_S:
            self.logged = now
            sys.stderr.write(f"{text}\n")
        self.line = line
