"""A run: its identity, its folder, its manifest, and where its figures come from.

`outputs/<notebook>/<variant>/<run_id>/` holds

- `manifest.json`: status (`started`, `finished`, `failed`, `interrupted`) with its reason,
  parameters passed and resolved, commit, seeds, versions, hash of the input, provenance, and the
  `headline` numbers;
- `notebook.ipynb`, `params.yaml`: what was executed, with what;
- `report.html`, `slides.html`: one file each, opened without a network; of 05 also `slides.pdf`;
- `figures/`: every figure as PNG and SVG;
- `samples.parquet`: a row per example, key point, method and repeat: rewritten page, order of the
  sources, answer, verdict, visibility, or the reason of an abstention; `points.parquet` of 02, a
  verdict per sample and other point; `headroom.parquet` and the like of 03, a study's samples;
- `rows.jsonl` of 01: a line per measurement;
- `metrics.jsonl`, `rollouts.jsonl`, `checkpoints/` of 04: a line per step with its phases, rollouts
  to read, adapters, of which `final` is the trained one;
- `usage.jsonl`: a line per call of a model, over all starts of the run: what a budget counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Literal

import psutil

from geo_utils.files import from_root, project_root, resolve_path, write_atomic
from geo_utils.models.base import redacted
from geo_utils.models.record import open_record
from geo_utils.parameters import NotebookParams, to_yaml
from geo_utils.roles.params import RunParams

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


Status = Literal["started", "finished", "failed", "interrupted", "planned"]
EXPECTED = "GEO_UTILS_RUN_FOLDER"  # of a kernel: the run that the command line has found
_PACKAGES = """geo-utils numpy pandas pyarrow scipy statsmodels nupunkt PyStemmer regex pydantic
seaborn matplotlib papermill nbconvert torch transformers trl peft accelerate datasets vllm
google-genai openai""".split()  # noqa: SIM905
# Parameters that change where, how fast or how far a run goes, but not what it finds.
_NO_IDENTITY: Any = {"paths": {"output", "cache"}, "servers": True, "calls": True}
# Parameters that name files or folders; their content is part of the identity.
_NAMES_CONTENT: dict[str, Any] = dict.fromkeys(
    """methods baseline_methods engine judge rewriter studies record recorded labels models
    evaluation policy""".split(),  # noqa: SIM905
    True,
) | {"corpus": {"path"}, "paths": {"prompts"}}
_READ_UP_TO, _PART = 256 * 2**20, 2**20  # bytes
_SLURM = """SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT
SLURM_JOB_PARTITION SLURMD_NODENAME""".split()  # noqa: SIM905
_HELD: dict[Path, IO[str]] = {}  # the locks of this process, by run folder
_HOOK: list[Callable[[Any], None]] = []


@dataclass(frozen=True)
class Run:
    """A run folder, `outputs/<notebook>/<variant>/<run_id>/`.

    Attributes:
        folder: Absolute path.
    """

    folder: Path

    def __str__(self) -> str:
        """Return the folder, from the project's root where it lies inside."""
        return str(from_root(self.folder))

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
        reason = reason and redacted(reason, 2000)  # it may be another program's last words
        try:
            if manifest.get("headline") is None:
                self.update(status=status, ended_at=_now(), reason=reason)
            elif manifest.get("rerun"):  # else a cell that was run by hand after the last one
                self.update(status="finished", ended_at=_now(), rerun=f"{status}: {reason}")
        finally:  # not before: whoever holds it next has begun a manifest of its own
            self._release()

    def finish(self, headline: Mapping[str, Any], usage: Mapping[str, Any] | None = None) -> None:
        """Record the headline numbers and usage, and that the run has finished.

        Raises:
            NothingScored: Not one sample of the run, or of a method of it, has a score.
        """
        self._check_scores()
        ended: dict[str, Any] = {"status": "finished", "ended_at": _now(), "reason": None}
        self.update(**ended, headline=headline, usage=usage or {}, rerun=None)
        self._release()

    def _release(self) -> None:
        if lock := _HELD.pop(self.folder, None):
            lock.close()

    def _check_scores(self) -> None:
        import pandas as pd

        if not (path := self.folder / "samples.parquet").is_file():
            return
        samples = pd.read_parquet(path, columns=["method", "supported", "abstention"])
        scored = samples.groupby("method", sort=False)["supported"].count()
        empty = scored.index[scored == 0]
        if len(empty):
            lost = samples[samples["method"].isin(empty)]
            reasons = lost["abstention"].value_counts()
            told = f"{reasons.index[0]} ({reasons.iloc[0]} times)" if len(reasons) else "no reason"
            raise NothingScored(
                f"of {', '.join(empty)} nothing could be scored, {len(lost)} samples: {told}"
            )

    def save_samples(self, samples: pd.DataFrame) -> pd.DataFrame:
        """Write samples.parquet and return it as read back, so that what is shown is stored."""
        return self.save_table(samples, "samples")

    def save_table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write <name>.parquet, unless the table is empty, and return it as read back."""
        import pandas as pd

        if table.empty:
            return table
        path = self.folder / f"{name}.parquet"
        write_atomic(path, table.to_parquet(index=False))
        return pd.read_parquet(path)

    def save_figure(self, figure: Figure | None, name: str) -> Figure | None:
        """Write figures/<name>.png and .svg, and return the figure for the notebook to show.

        Without a figure, as of an analysis that is switched off, nothing is written.
        """
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
    """Ends a run that can be resumed: a budget is spent, or a service is down."""


class Planned(RunInterrupted):
    """Ends a dry run, as it should."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in place of a traceback."""
        return str(self).splitlines()


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
    if run.folder not in _HELD:  # a kernel whose start was killed takes a moment to end
        _HELD[run.folder] = hold(run, "work", wait_s=10.0)
    before = run.manifest
    finished, attempts = before.get("headline") is not None, before.get("attempts")
    resolved, root = params.model_dump(), str(project_root())
    git = partial(told_by, "git", "-C", root)
    status = git("status", "--porcelain")
    gpus = told_by(
        "nvidia-smi", "--format=csv,noheader", "--query-gpu=name,memory.total,driver_version"
    )
    write_atomic(run.folder / "params.yaml", to_yaml(resolved))
    attempt: dict[str, Any] = {"started_at": _now(), "host": platform.node()}
    attempt |= {"pid": os.getpid(), "process": process_mark(os.getpid())}
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
        notebook_hash=_file_hash(Path(root, "notebooks", f"{notebook}.ipynb")),
        git={"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)},
        **params.in_manifest,
        # Figures kept from before keep the label they were made under.
        provenance=(finished and before.get("provenance")) or provenance(params),
        inputs={},
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages=package_versions(),
        gpus=gpus.splitlines() if gpus else [],
        slurm={name: os.environ[name] for name in _SLURM if name in os.environ},
        restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        headline=before.get("headline"),
        usage=before.get("usage"),
    )
    _fail_on_cell_error(run)
    return run


def locate_run(notebook: str, params: NotebookParams) -> Run:
    """Return the run that these parameters start or resume; nothing is written."""
    parent = resolve_path(params.paths.output) / notebook / params.variant
    digest = _parameters_hash(params)
    for folder in sorted(parent.glob(f"*-{digest[:8]}"), reverse=True):
        # Not the first alone: one of a clock that ran ahead stands before all that came after it.
        manifest = Run(folder).manifest
        if manifest.get("status") != "finished" or manifest.get("code_hash") == code_hash():
            return Run(folder)
    now = datetime.now(UTC)
    return Run(parent / f"{now:%Y%m%d-%H%M%S}{now.microsecond // 1000:03d}-{digest[:8]}")


def hold(run: Run, kind: str, wait_s: float = 0.0) -> IO[str]:
    """Hold a lock of a run's identity for as long as the returned file is open, here or in a child.

    Args:
        run: Its folder's name ends with the hash of its parameters and what they name, which all
            starts of it share.
        kind: `start`, held by the command line and Papermill, or `work`, by the process that does
            the work.
        wait_s: How long to wait for another process that holds it.

    Raises:
        RunHeld: Another process holds it.
        OSError: It cannot be made, or its file system has no locks.
    """
    root, (notebook, variant, run_id) = run.folder.parents[2], run.folder.parts[-3:]
    path = root / ".locks" / f"{notebook}-{variant}-{run_id.rpartition('-')[2]}.{kind}"
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
                f"no file can be locked here ({error.strerror}); set paths.output to where one can"
            )
            raise OSError(error.errno, told, str(path)) from None


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return a hash of the package's files and the notebooks: the code a result depends on."""
    package = Path(__file__).resolve().parent
    paths = [p for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    paths += (project_root() / "notebooks").glob("*.ipynb")
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _parameters_hash(params: NotebookParams) -> str:
    values = params.model_dump(exclude=_NO_IDENTITY)
    named = params.model_dump(include=_NAMES_CONTENT)
    if (named.get("policy", {}).get("cold_start") or {}).get("small_model"):
        named.pop("policy")  # whose base is made and not read
    values["content"] = _content(named)
    if isinstance(params, RunParams) and _not_at_google(params):
        values["gemini"] = "at another address"  # never taken for a run of the real service
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> dict[str, str]:
    """Return the hash of each file and folder that a value names, edited ones being others."""
    value = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple):
        return {name: found for part in value for name, found in _content(part).items()}
    if not isinstance(value, str) or not value:
        return {}
    name = value.partition("@cuda:")[0]  # a model's GPU is no part of its folder
    path = resolve_path(re.sub("^(vllm|transformers|entailment)/", "", name))
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


def process_mark(pid: int) -> float | None:
    """Return when a process began, in seconds since 1970; None if it has ended.

    This tells it from all others that have or had its number.
    """
    try:
        process = psutil.Process(pid)
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if ended else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _fail_on_cell_error(run: Run) -> None:
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    if (shell := get_ipython()) is None:
        return
    if _HOOK:  # only the run that was started last
        shell.events.unregister("post_run_cell", _HOOK.pop())

    def record(result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        kind, reason = type(error).__name__, str(error) or type(error).__name__
        if isinstance(error, Planned):
            run.end("planned", reason)
        elif isinstance(error, KeyboardInterrupt | RunInterrupted):
            run.end("interrupted", reason)
        elif error is not None:
            run.end("failed", f"{kind}: {reason}")

    shell.events.register("post_run_cell", record)
    _HOOK.append(record)


@contextlib.contextmanager
def signals_handled(
    handle: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals within a block; after it they are handled as before."""
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _file_hash(path: Path) -> str | None:
    """Return the hash of a file's content; of one that takes long to read, of even parts of it.

    Weights that were copied to another machine are the same ones there, whatever their time says.
    """
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _READ_UP_TO:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, parts = hashlib.sha256(f"{size} bytes".encode()), _READ_UP_TO // _PART
        for number in range(parts):
            file.seek(number * (size - _PART) // (parts - 1))
            digest.update(file.read(_PART))
    return digest.hexdigest()


def told_by(*command: str) -> str | None:
    """Return what a program prints; None if there is none or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def provenance(params: NotebookParams, served_by: Iterable[str] = ()) -> str:
    """Say what the figures of a run come from, for captions and the manifest.

    Args:
        params: The run's parameters.
        served_by: What the models called themselves; a stand-in's name starts with `simulated`.
    """
    if not isinstance(params, RunParams):
        return "each figure names its own source"
    names = sorted(name for name in served_by if not Path(name).is_absolute())  # of services
    stand_ins = [name for name in names if name.startswith("simulated")]
    label = f"SIMULATED by a stand-in ({', '.join(stand_ins)}): " if stand_ins else ""
    policy = f"; {params.policy_source}" if params.policy_source else ""
    if all(text.startswith("offline") for text in params.roles.values()):
        strict = " (strict)" if params.judge == "offline/strict" else ""
        asked = f"further models asked: {', '.join(names)}" if names else "no model"
        rewriters = "edits" if policy else f"edit-based rewriters; {asked}"
        return (
            f"{label}offline roles: extractive engine, lexical judge{strict}, {rewriters}{policy}"
        )
    if params.recorded:
        about = open_record(params.recorded).about
        on = f" on {about['gpu']}" if about.get("gpu") else ""
        label = f"recorded {about.get('date', 'some day')}{on}, nothing was called: {label}"
    away, parts = _not_at_google(params), []
    for role, text in params.roles.items():
        address = " at another address than Google's" if role in away else ""
        parts.append(f"{role} {text}{address}")
    ids = {text.partition("/")[2] for text in params.roles.values()}
    versions = [name for name in names if name not in ids and name not in stand_ins]
    answered = f", answered as {', '.join(versions)}" if versions else ""
    return label + ", ".join(parts) + answered + policy


def _not_at_google(params: RunParams) -> list[str]:
    """Return the roles that ask Gemini at another address than Google's, as a rehearsal does."""
    everywhere = os.environ.get("GOOGLE_GEMINI_BASE_URL")
    gemini = [role for role, text in params.roles.items() if text.startswith("gemini/")]
    return [role for role in gemini if everywhere or params.addresses(role)]
