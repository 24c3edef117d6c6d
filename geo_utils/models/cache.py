"""A folder of answers: same key, same answer, no second call, over processes and preemptions."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from geo_utils.files import write_atomic
from geo_utils.models.base import Completion, Request
from geo_utils.models.replies import writable

_POLL_S = (0.02, 0.25)  # the first pause and the longest
_ENDING = ".answers.jsonl"
# Locks by key; a byte is added for each answer that is put, so that its length tells of new ones.
_FLIGHTS = ".in-flight"
_MOST_SEGMENTS = 16  # that nobody writes to
# One descriptor a lock file for the life of the process: closing any descriptor of a file drops
# all of the process's POSIX locks on it.
_LOCK_FILES: dict[Path, int] = {}
_LOCK_FILES_GUARD = threading.Lock()


def request_key(model: str, request: Request) -> str:
    """Return the cache key of a request: a hash over all that an answer depends on."""
    identity = {"model": model} | _plain(request) | {"attempt": 0}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _plain(request: Request) -> dict[str, Any]:
    # Not dataclasses.asdict, which copies deeply and costs as much as the rest of a call.
    return vars(request) | {"sampling": vars(request.sampling)}


class AnswerCache:
    """Answers by key, in append-only segments: one file a writing process, one line an answer.

    Many processes may share one folder of one file system: each appends to a segment of its own
    and reads all. A process that is killed leaves at most one torn line, at the end of its own
    segment; a torn line is a miss, and so is a segment that is gone or may not be read.

    Attributes:
        folder: Where the segments lie.
    """

    def __init__(self, folder: Path) -> None:
        """Open a cache folder, made if it is missing, and index what it holds.

        Raises:
            OSError: The folder cannot be written, or its file system has no locks; answers would
                be paid for and lost, or twice.
        """
        self.folder = folder = folder.resolve()
        self._index: dict[str, tuple[Path, int, int]] = {}
        self._read_up_to: dict[Path, int] = {}
        self._inodes: dict[Path, int] = {}
        self._anew: dict[Path, tuple[int, int]] = {}
        self._segment: tuple[int, Path] | None = None
        self._torn, self._owner = False, os.getpid()
        # How long the list of changes was when all of it had been read, without this one's own.
        self._known: int | None = None
        self._own = 0
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Beyond every key's own place.
            fcntl.lockf(_lock_file(folder / _FLIGHTS), fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 16**15)
        except OSError as error:
            raise OSError(
                f"cache folder {folder} cannot be written ({error.strerror}); answers that cost "
                "money would be lost. Set paths.cache to a folder that can"
            ) from error
        self._merge()
        self.refresh()

    def refresh(self) -> None:
        """Index what other processes have added, if they have."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            changes = self._changes() - self._own
            if changes == self._known:
                return
            with os.scandir(self.folder) as listing:
                self._known = changes
                for entry in listing:
                    with contextlib.suppress(OSError):  # gone meanwhile, or another user's own
                        if entry.name.endswith(_ENDING) and entry.is_file():
                            self._refresh(self.folder / entry.name, entry.stat())

    def _refresh(self, path: Path, status: os.stat_result) -> None:
        """Index what was added to a segment."""
        done = self._read_up_to.get(path, 0)
        if self._inodes.get(path, status.st_ino) != status.st_ino or status.st_size < done:
            # Pruned meanwhile, or emptied: the lines stand elsewhere, or nowhere.
            self._index = {k: p for k, p in self._index.items() if p[0] != path}
            done = self._read_up_to[path] = 0
        self._inodes[path] = status.st_ino
        if status.st_size > done:
            self._read_up_to[path] = done + self._index_lines(path, done)

    def get(self, key: str) -> Completion | None:
        """Return the answer of a key, or None."""
        with self._lock:
            place = self._index.get(key)
            entry = _read_entry(key, *place) if place else None
            if place and entry is None and self._moved(place[0]):
                place = self._index.get(key)
                entry = _read_entry(key, *place) if place else None
            return held_answer(entry) if entry else None

    def _moved(self, path: Path) -> bool:
        """Index anew a segment that is not as it was: pruned, emptied, or put into another."""
        with contextlib.suppress(OSError):
            status = path.stat()
            state = (status.st_ino, status.st_size)
            if self._anew.get(path) == state:
                return False  # what is torn in it stays torn
            self._anew[path] = state
        self._index = {k: p for k, p in self._index.items() if p[0] != path}
        self._read_up_to.pop(path, None)
        self._known = None
        self.refresh()
        return True

    def put(self, key: str, model: str, request: Request, completion: Completion) -> None:
        """Keep an answer.

        Raises:
            OSError: It cannot be written, as on a full disk.
        """
        entry = {
            "role": request.role,
            "model": model,
            "template": request.template,
            "sample_index": request.sample_index,
            "created": time.time(),
            "prompt_sha256": _sha256(request.prompt),
            "completion": vars(completion),
            "checksum": _checksum(vars(completion)),
        }
        line = f"{key} {json.dumps(entry)}\n".encode()
        with self._lock:
            status = os.fstat(self._segment[0]) if self._segment else None
            if self._segment and status and not status.st_nlink:  # somebody deleted it
                os.close(self._segment[0])
                self._segment = None
            if self._segment is None or self._owner != os.getpid():  # also after a fork
                self._segment, self._owner, self._torn = self._open_segment(), os.getpid(), False
                status = None
            descriptor, path = self._segment
            end = status.st_size if status else 0
            line = b"\n" + line if self._torn else line
            self._torn = True  # until the whole line is there
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, "only a part of the answer could be written")
            self._torn = False
            self._note_change()
            self._read_up_to[path] = end + len(line)
            self._index[key] = (path, end + line.startswith(b"\n"), len(line.lstrip()))

    @contextlib.asynccontextmanager
    async def in_flight(self, key: str) -> AsyncIterator[None]:
        """Hold a key against the host's other processes while it is being asked.

        The operating system frees the key when its process dies, however it dies.
        """
        descriptor = _lock_file(self.folder / _FLIGHTS)
        offset, pause = int(key[:15], 16), _POLL_S[0]
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
                break
            except (BlockingIOError, PermissionError):
                await asyncio.sleep(pause)
                pause = min(1.5 * pause, _POLL_S[1])
        try:
            yield
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (key, entry) of all answers, without their torn lines."""
        for key, place in sorted(self._index.items()):
            entry = _read_entry(key, *place)
            if entry is not None:
                yield key, entry

    def prune(self, keys: set[str]) -> tuple[int, int]:
        """Delete answers.

        Returns:
            Number of answers deleted, and of segments left alone because a process writes to
            them.
        """
        deleted = busy = 0
        for path in sorted(self._read_up_to):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    busy += 1
                    continue
                lines = file.read().splitlines(keepends=True)
                kept = [line for line in lines if line[:64].decode("ascii", "replace") not in keys]
                deleted += len(lines) - len(kept)
                if len(kept) < len(lines):
                    write_atomic(path, b"".join(kept))
                    self._note_change()
        return deleted, busy

    def _changes(self) -> int:
        status = os.fstat(_lock_file(self.folder / _FLIGHTS))
        if not status.st_nlink:  # somebody deleted it
            status = os.fstat(_lock_file(self.folder / _FLIGHTS, anew=True))
        return status.st_size

    def _note_change(self) -> None:
        self._own += os.write(_lock_file(self.folder / _FLIGHTS), b".")

    def _merge(self) -> None:
        """Put the segments that nobody writes to into one, where there are many.

        A process that is killed meanwhile leaves answers twice; one that reads the old segments
        finds them gone, and the answers in the new one.
        """
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_files:
            paths = sorted(self.folder.glob(f"*{_ENDING}"))
            if len(paths) <= _MOST_SEGMENTS:
                return
            lock = open_files.enter_context((self.folder / ".merging").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            idle, lines = [], []
            for path in paths:
                with contextlib.suppress(OSError):
                    file = open_files.enter_context(path.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    lines += [part for part in file if len(part) > 66 and part.endswith(b"\n")]
                    idle.append(path)
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-merged-{secrets.token_hex(4)}{_ENDING}"
            write_atomic(self.folder / name, b"".join(lines))
            self._note_change()
            for path in idle:
                path.unlink()

    def _open_segment(self) -> tuple[int, Path]:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(4)}{_ENDING}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)  # should somebody have deleted it
        descriptor = os.open(path, flags, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # tells prune that it is being written to
        self._inodes[path] = os.fstat(descriptor).st_ino
        return descriptor, path

    def _index_lines(self, path: Path, start: int) -> int:
        """Index the whole lines from `start` on and return how many bytes they are."""
        offset = start
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if len(line) > 66:
                    self._index[line[:64].decode("ascii", "replace")] = (path, offset, len(line))
                offset += len(line)
        return offset - start


def _read_entry(key: str, path: Path, offset: int, length: int) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            line = file.read(length)
        if line[:65] != f"{key} ".encode():
            return None  # the file was pruned and has other lines there
        entry = json.loads(line[65:])
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None


def held_answer(entry: dict[str, Any]) -> Completion | None:
    """Return the answer of an entry; None if it is not what was written, or of a later version.

    Entries of an earlier version carry no checksum.
    """
    kept = entry.get("completion")
    if not isinstance(kept, dict) or not kept.keys() <= Completion.__dataclass_fields__.keys():
        return None
    if "checksum" in entry and entry["checksum"] != _checksum(kept):
        return None
    try:
        completion = Completion(**writable(kept))
    except TypeError:  # a field that is missing
        return None
    counts = (completion.tokens_in, completion.tokens_out, completion.tokens_cached)
    texts = (completion.text, completion.finish_reason, completion.served_by)
    known = all(isinstance(t, str) for t in texts) and all(isinstance(n, int) for n in counts)
    return completion if known else None


def _checksum(completion: dict[str, Any]) -> str:
    return _sha256(json.dumps(completion, sort_keys=True))[:16]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _lock_file(path: Path, anew: bool = False) -> int:
    with _LOCK_FILES_GUARD:
        if anew or path not in _LOCK_FILES:
            path.parent.mkdir(parents=True, exist_ok=True)
            _LOCK_FILES[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        return _LOCK_FILES[path]


def chosen_answers(
    cache: AnswerCache, role: str | None, model: str | None, older_than_days: float | None
) -> Iterator[dict[str, Any]]:
    """Yield key, role, model and tokens of some answers of a cache.

    Args:
        cache: Holds them.
        role: Only those of this role.
        model: Only those of this model; a stand-in's also by the model that it stands in for.
        older_than_days: Only those that are older.
    """
    for key, entry in cache.entries():
        answer, created = held_answer(entry), entry.get("created")
        own = by = str(entry.get("model"))
        if answer and answer.served_by.startswith("simulated"):
            by = answer.served_by
        if role not in (None, str(entry.get("role"))) or model not in (None, own, by):
            continue
        age_s = time.time() - (created if isinstance(created, int | float) else 0)
        if older_than_days is None or age_s >= older_than_days * 86_400:
            tokens = answer.tokens_in + answer.tokens_out if answer else 0
            yield {"key": key, "role": str(entry.get("role")), "model": by, "tokens": tokens}
