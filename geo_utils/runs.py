"""A run: one execution of a notebook, in a folder of its own with a manifest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import yaml

from geo_utils.files import project_root, resolve_path, write_atomic
from geo_utils.notebook_params import NotebookParams
from geo_utils.params import RunParams
from geo_utils.provenance import elsewhere, provenance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Status = Literal["started", "finished", "failed", "interrupted"]
_PACKAGES = """geo-utils numpy pandas pyarrow scipy statsmodels nupunkt PyStemmer regex pydantic
seaborn matplotlib papermill nbconvert torch transformers trl peft accelerate datasets vllm
google-genai openai""".split()  # noqa: SIM905
# Parameters that change where, how fast or how far a run goes, but not what it finds.
_NO_IDENTITY = {"output_root", "cache_root", "servers", "calls"}
# Parameters that name files or folders; their content is part of the identity.
_NAMES_CONTENT: dict[str, Any] = {
    "corpus_path": True, "prompts": True, "methods": True, "baseline_methods": True,
    "method": True, "models": True, "studies": True, "recorded": True, "policy_model": True,
    "engine_model": True, "evaluation": True, "model_name_or_path": True,
    "grpo_options": {"resume_from_checkpoint"},
}  # fmt: skip
_READ_UP_TO = 256 * 2**20  # bytes
_HELD: dict[Path, IO[str]] = {}  # the locks of this process, by run folder
EXPECTED = "GEO_UTILS_RUN_FOLDER"  # of a kernel: the run that the command line has found
_HOOK: list[Callable[[Any], None]] = []
_SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
          "SLURM_JOB_PARTITION", "SLURMD_NODENAME")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run folder, `outputs/<notebook>/<variant>/<run_id>/`.

    Attributes:
        folder: Absolute path.
    """

    folder: Path

    def __str__(self) -> str:
        """Return the folder, from the project's root where it lies inside."""
        root = project_root()
        return str(
            self.folder.relative_to(root) if self.folder.is_relative_to(root) else self.folder
        )

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands on disk; empty if there is none or it cannot be read."""
        try:
            return self._read()
        except OSError:
            return {}

    def _read(self) -> dict[str, Any]:
        """Return the manifest; empty if there is none or it is torn."""
        try:
            read = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return read if isinstance(read, dict) else {}

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest, atomically.

        Raises:
            OSError: It cannot be written; or it is there and cannot be read, and would be lost.
        """
        manifest = self._read() | entries
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False, default=str)
        write_atomic(self.folder / "manifest.json", text + "\n")

    def end(self, status: Status, reason: str | None = None) -> None:
        """Record how the run ended; one that has finished, now or before, stays finished."""
        manifest = self.manifest
        try:
            if manifest.get("headline") is None:
                self.update(status=status, ended_at=_now(), reason=reason)
            elif manifest.get("rerun"):  # else a cell that was run by hand after the last one
                self.update(status="finished", ended_at=_now(), rerun=f"{status}: {reason}")
        finally:  # not before: whoever holds it next has begun a manifest of its own
            _release(self.folder)

    def finish(self, headline: Mapping[str, Any], usage: Mapping[str, Any] | None = None) -> None:
        """Record the headline numbers and usage, and that the run has finished.

        Raises:
            NothingScored: Not one sample of the run, or of a method of it, has a score.
        """
        self._check_scores()
        self.update(
            status="finished", ended_at=_now(), reason=None, headline=headline,
            usage=usage or {}, rerun=None,
        )  # fmt: skip
        _release(self.folder)

    def _check_scores(self) -> None:
        import pandas as pd

        path = self.folder / "samples.parquet"
        if not path.is_file():
            return
        columns = ["method", "supported", "abstention"]
        samples = pd.read_parquet(path, columns=columns)
        scored = samples.groupby("method", sort=False)["supported"].count()
        empty = [str(method) for method in scored.index[scored == 0]]
        if empty:
            lost = samples[samples["method"].isin(empty)]
            reasons = lost["abstention"].dropna().value_counts()
            told = f"{reasons.index[0]} ({reasons.iloc[0]} times)" if len(reasons) else "no reason"
            raise NothingScored(
                f"of {', '.join(empty)} nothing could be scored, {len(lost)} samples: {told}"
            )

    def save_samples(self, samples: pd.DataFrame) -> pd.DataFrame:
        """Write samples.parquet and return it as read back, so that what is shown is stored."""
        return self.save_table(samples, "samples")

    def save_table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write <name>.parquet, unless the table is empty, and return it as read back."""
        import io

        import pandas as pd

        if table.empty:
            return table
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_atomic(self.folder / f"{name}.parquet", buffer.getvalue())
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def save_figure(self, figure: Figure | None, name: str) -> Figure | None:
        """Write figures/<name>.png and .svg, and return the figure for the notebook to show.

        Without a figure, as of an analysis that is switched off, nothing is written.
        """
        import io

        if figure is None:
            return None
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, bbox_inches="tight", dpi=150)
            write_atomic(self.folder / "figures" / f"{name}.{kind}", buffer.getvalue())
        figure.set_dpi(120)  # sharp when a slide shows it as wide as it is
        return figure


class RunHeld(OSError):
    """Another process, whoever started it, has the run of these parameters under way."""


class RunChanged(RuntimeError):
    """What makes a run another one was edited while it was being started."""


class NothingScored(RuntimeError):
    """A run, or a method of it, without one score: no result, whatever its tables show."""


class RunInterrupted(RuntimeError):
    """Ends a run that can be resumed: a budget is spent, a service is down, a rehearsal is over."""


def start_run(notebook: str, params: NotebookParams) -> Run:
    """Open the run of these parameters and write its manifest as `started`.

    The same parameters resume the same run: the newest one of theirs that has not finished, or
    has, with this very code, so that its result would be the same; it stays `finished`, and how
    far the rerun is stands under `rerun`. In a notebook kernel a cell that raises marks the run
    `failed`.

    Args:
        notebook: The notebook's name without ending.
        params: Its checked parameters.

    Returns:
        The run, its folder made.

    Raises:
        RunHeld: Another process has the run under way.
        RunChanged: The command line, which started this kernel, had found another run.
    """
    run = locate_run(notebook, params)
    if os.environ.pop(EXPECTED, str(run.folder)) != str(run.folder):
        raise RunChanged(
            "a file that the parameters name, or the code, was edited while the run was being "
            "started; run it again"
        )
    _hold(run)
    before = run.manifest
    finished, attempts = before.get("headline") is not None, before.get("attempts")
    resolved = params.model_dump()
    write_atomic(
        run.folder / "params.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
    )
    attempt = {"started_at": _now(), "pid": os.getpid(), "host": platform.node(),
               "process": process_mark(os.getpid())}  # fmt: skip
    run.update(
        run_id=run.folder.name,
        notebook=notebook,
        variant=params.variant,
        status="finished" if finished else "started",
        rerun="started" if finished else None,
        reason=None,
        started_at=before.get("started_at") or attempt["started_at"],
        ended_at=None,
        attempts=[*(attempts if isinstance(attempts, list) else ()), attempt],
        parameters={"passed": params.passed, "resolved": resolved},
        parameters_hash=_parameters_hash(params),
        code_hash=code_hash(),
        notebook_hash=_file_hash(project_root() / "notebooks" / f"{notebook}.ipynb"),
        git=_git_state(),
        **params.in_manifest,
        # Figures kept from before keep the label they were made under.
        provenance=(finished and before.get("provenance")) or provenance(params),
        inputs={},
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages=package_versions(),
        gpus=_gpus(),
        slurm={name: os.environ[name] for name in _SLURM if name in os.environ},
        restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        headline=before.get("headline"),
        usage=before.get("usage"),
    )
    _fail_on_cell_error(run)
    return run


def locate_run(notebook: str, params: NotebookParams) -> Run:
    """Return the run that these parameters start or resume; nothing is written."""
    parent = resolve_path(params.output_root) / notebook / params.variant
    digest = _parameters_hash(params)
    for folder in sorted(parent.glob(f"*-{digest[:8]}"), reverse=True):
        # Not the first alone: one of a clock that ran ahead stands before all that came after it.
        manifest = Run(folder).manifest
        if manifest.get("status") != "finished" or manifest.get("code_hash") == code_hash():
            return Run(folder)
    now = datetime.now(UTC)
    return Run(parent / f"{now:%Y%m%d-%H%M%S}{now.microsecond // 1000:03d}-{digest[:8]}")


def lock_path(run: Run, kind: str) -> Path:
    """Return the lock file of a run's identity, which all starts of it share.

    Args:
        run: Its folder's name ends with the hash of its parameters and what they name.
        kind: `start`, held by the command line and Papermill, or `work`, by the process that does
            the work.
    """
    variant, notebook = run.folder.parent, run.folder.parent.parent
    digest = run.folder.name.rpartition("-")[2]
    return notebook.parent / ".locks" / f"{notebook.name}-{variant.name}-{digest}.{kind}"


def hold(path: Path, wait_s: float = 0.0) -> IO[str]:
    """Hold a lock file for as long as the returned file is open, here or in a child.

    Raises:
        RunHeld: Another process holds it.
        OSError: It cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, until = path.open("a"), time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > until:
                lock.close()
                raise RunHeld(
                    "another process is running it; wait for that, or change variant"
                ) from None
            time.sleep(0.1)
        except OSError as error:  # such as of a parallel file system that is mounted without them
            lock.close()
            told = (
                f"no file can be locked here ({error.strerror}); set output_root to where one can"
            )
            raise OSError(error.errno, told, str(path)) from None


def _hold(run: Run) -> None:
    """Hold the run for this process; a kernel whose start was killed takes a moment to end."""
    if run.folder not in _HELD:
        _HELD[run.folder] = hold(lock_path(run, "work"), wait_s=10.0)


def _release(folder: Path) -> None:
    lock = _HELD.pop(folder, None)
    if lock is not None:
        lock.close()


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return a hash of the package's files and the notebooks: the code a result depends on."""
    package = Path(__file__).resolve().parent
    paths = [p for p in package.rglob("*") if p.suffix in {".py", ".md", ".jsonl", ".j2"}]
    paths += (project_root() / "notebooks").glob("*.ipynb")
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _parameters_hash(params: NotebookParams) -> str:
    values = params.model_dump(exclude=_NO_IDENTITY)
    named = params.model_dump(include=_NAMES_CONTENT)
    if values.get("cold_start", {}).get("small_model"):
        named.pop("model_name_or_path")  # which is where that is made, not where it is read
    values["content"] = _content(named)
    if isinstance(params, RunParams) and elsewhere(params):
        values["gemini"] = "at another address"  # never taken for a run of the real service
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> dict[str, str]:
    """Return the hash of each file and folder that a value names, edited ones being others."""
    if isinstance(value, Mapping):
        return {name: found for part in value.values() for name, found in _content(part).items()}
    if isinstance(value, list | tuple):
        return {name: found for part in value for name, found in _content(part).items()}
    if not isinstance(value, str) or not value:
        return {}
    path = resolve_path(value.partition("@cuda:")[0])  # a model's GPU is no part of its folder
    if path.is_file():
        return {value: str(_file_hash(path))}
    if not path.is_dir():
        return {}
    digest = hashlib.sha256()
    for file in sorted(_files(path, (path,))):
        digest.update(os.fsencode(file.relative_to(path)) + f"\0{_file_hash(file)}\0".encode())
    return {value: digest.hexdigest()}


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder, also through links to folders that do not lead back up."""
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and (real := path.resolve()) not in above:
            yield from _files(path, (*above, real))


def process_mark(pid: int) -> str | None:
    """Return what tells a process from all others that have or had its number; None if it ended.

    Also None where the system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = told.rpartition(")")[2].split()
    return None if state in "ZX" else f"{boot} {fields[18]}"  # when it began, since the boot


def _fail_on_cell_error(run: Run) -> None:
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return

    if _HOOK:  # only the run that was started last
        shell.events.unregister("post_run_cell", _HOOK.pop())

    def record(result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            interrupted = isinstance(error, KeyboardInterrupt | RunInterrupted)
            status: Status = "interrupted" if interrupted else "failed"
            reason = str(error) or type(error).__name__
            run.end(status, reason if interrupted else f"{type(error).__name__}: {reason}")

    shell.events.register("post_run_cell", record)
    _HOOK.append(record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _file_hash(path: Path) -> str | None:
    """Return the hash of a file's content; of one that takes long to read, of size and time."""
    if not path.is_file():
        return None
    status = path.stat()
    if status.st_size > _READ_UP_TO:
        return f"{status.st_size} bytes at {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_state() -> dict[str, Any]:
    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(project_root()), *command],
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        query = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader",
        ]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()
