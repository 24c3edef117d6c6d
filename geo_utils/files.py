"""Where the project's files are, and how to write one so that it is never torn."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def project_root() -> Path:
    """Return the project's folder: the nearest one upward that holds its notebooks."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks" / "02_baseline_rewrites.ipynb").is_file():
            return folder
    return here


def resolve_path(path: str | Path) -> Path:
    """Return an absolute path; a relative one is taken from the project's root."""
    return (project_root() / Path(path).expanduser()).resolve()


def from_root(path: Path) -> Path:
    """Return a path as seen from the project's root, where it lies inside."""
    root = project_root()
    return path.relative_to(root) if path.is_relative_to(root) else path


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old one or the new one.

    Raises:
        OSError: It cannot be written, as on a full disk; it is named, and nothing is left of it.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:  # an interrupt leaves half a file as a full disk does
        with contextlib.suppress(OSError):  # as on a disk that cannot be written at all
            partial.unlink()
        if isinstance(error, OSError):  # writing names no file, opening the partial one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a log; a line before them that is torn stays a line of its own.

    Raises:
        OSError: They cannot be written, as on a full disk; the log is named.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else f"\n{lines}"
            file.write(lines.encode("utf-8"))
    except OSError as error:  # writing names no file
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; a torn line, or one that is no row, is left out."""
    if not path.is_file():
        return []
    rows = []
    # a full disk cuts a line anywhere; a text's own line separators do not end one
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
