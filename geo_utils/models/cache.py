"""A folder of answers: same key, same answer, no second call, over processes and preemptions."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from geo_utils.files import resolve_path, write_atomic
from geo_utils.models.base import Completion, Request

_POLL_S = 0.02
# One descriptor a lock file for the life of the process: closing any descriptor of a file drops
# all of the process's POSIX locks on it.
_LOCK_FILES: dict[Path, int] = {}
_LOCK_FILES_GUARD = threading.Lock()


def request_key(model: str, request: Request) -> str:
    """Return the cache key of a request: a hash over all that an answer depends on."""
    identity = {"model": model} | asdict(request)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by key, one file each, written atomically.

    Several processes may share one folder on one file system. An entry that is torn or of another
    key is a miss. A folder that cannot be written raises at once, before money is spent.

    Attributes:
        folder: Where the answers lie.
    """

    def __init__(self, folder: Path) -> None:
        """Open a cache folder, made if it is missing.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder = folder
        try:
            write_atomic(folder / ".writable", "")
        except OSError as error:
            raise OSError(
                f"cache folder {folder} cannot be written ({error.strerror}); answers that cost "
                "money would be lost. Set cache_root to a folder that can"
            ) from error

    def path(self, key: str) -> Path:
        """Return where an answer lies."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Completion | None:
        """Return the answer of a key, or None."""
        entry = _read(self.path(key))
        if entry is None or entry.get("key") != key:
            return None
        try:
            return Completion(**entry["completion"])
        except (KeyError, TypeError):
            return None

    def put(self, key: str, model: str, request: Request, completion: Completion) -> None:
        """Keep an answer.

        Raises:
            OSError: It cannot be written, as on a full disk.
        """
        entry = {
            "key": key,
            "role": request.role,
            "model": model,
            "template": request.template,
            "created": time.time(),
            "request": asdict(request),
            "completion": asdict(completion),
        }
        write_atomic(self.path(key), json.dumps(entry, ensure_ascii=False))

    @contextlib.asynccontextmanager
    async def in_flight(self, key: str) -> AsyncIterator[None]:
        """Hold a key against the host's other processes while it is being asked.

        The operating system frees the key when its process dies, however it dies.
        """
        descriptor = _lock_file(self.folder / ".in-flight")
        offset = int(key[:15], 16)
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
                break
            except (BlockingIOError, PermissionError):
                await asyncio.sleep(_POLL_S)
        try:
            yield
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)

    def entries(self) -> Iterator[tuple[Path, dict[str, Any] | None]]:
        """Yield (path, entry) of all answers; the entry is None if it is torn."""
        for path in self.folder.glob("??/*.json"):
            yield path, _read(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None


def _lock_file(path: Path) -> int:
    with _LOCK_FILES_GUARD:
        if path not in _LOCK_FILES:
            _LOCK_FILES[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        return _LOCK_FILES[path]


def main() -> None:
    """Inspect or prune a cache folder."""
    parser = argparse.ArgumentParser(prog="python -m geo_utils.models.cache", description=__doc__)
    parser.add_argument("action", choices=("show", "prune"))
    parser.add_argument("--root", default="outputs/cache", help="the cache folder")
    parser.add_argument("--role", help="only answers of this role")
    parser.add_argument("--model", help="only answers of this model")
    parser.add_argument("--older-than-days", type=float, help="only answers older than this")
    parser.add_argument("--yes", action="store_true", help="really delete, instead of counting")
    args = parser.parse_args()
    folder = resolve_path(args.root)
    if not folder.is_dir():
        sys.exit(f"{folder}: no such cache folder")
    counts: Counter[tuple[str, str]] = Counter()
    tokens: Counter[tuple[str, str]] = Counter()
    for path, entry in AnswerCache(folder).entries():
        group = ("torn", "") if entry is None else (str(entry["role"]), str(entry["model"]))
        if args.role not in (None, group[0]) or args.model not in (None, group[1]):
            continue
        age_s = time.time() - path.stat().st_mtime
        if args.older_than_days is not None and age_s < args.older_than_days * 86_400:
            continue
        counts[group] += 1
        used = (entry or {}).get("completion", {})
        tokens[group] += used.get("tokens_in", 0) + used.get("tokens_out", 0)
        if args.action == "prune" and args.yes:
            path.unlink(missing_ok=True)
    verb = {"show": "held", "prune": "deleted" if args.yes else "to delete (repeat with --yes)"}
    for group, count in sorted(counts.items()):
        line = f"{group[0]:10} {group[1]:32} {count:8,} answers {tokens[group]:12,} tokens"
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"{sum(counts.values()):,} answers {verb[args.action]} in {folder}\n")


if __name__ == "__main__":
    main()
