"""Answers of a real model that ship with the project, and stand in for it.

A record is a folder: `record.json` says which model on which machine answered, and which calls
failed; `*.answers.jsonl.xz` hold a cache's lines. Nothing is asked where a record stands in: what
it does not hold stops the run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import lzma
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from geo_utils.files import read_jsonl, write_atomic
from geo_utils.models.base import Completion, FatalError, Request, Takes, UnusableError
from geo_utils.models.cache import AnswerCache, held_answer

ABOUT = "record.json"
_ENDING = ".answers.jsonl.xz"
_PART = 2_500_000  # characters a file; less than 1 MB compressed


class Record:
    """A record in the place of a cache; nothing is added to it.

    Attributes:
        folder: Where it lies.
        about: What `record.json` says.
    """

    def __init__(self, folder: Path) -> None:
        """Read a record.

        Raises:
            ValueError: The folder holds none, or a file of it is torn.
        """
        self.folder = folder = folder.resolve()
        try:
            self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            texts = [lzma.decompress(p.read_bytes()) for p in sorted(folder.glob(f"*{_ENDING}"))]
        except (OSError, ValueError, lzma.LZMAError) as error:
            raise ValueError(f"record={str(folder)!r} holds no record ({error})") from None
        lines = (line for text in texts for line in text.splitlines())
        self._answers = {line[:64].decode(): line[65:] for line in lines}

    def get(self, key: str) -> Completion | None:
        """Return the answer of a key, or None.

        Raises:
            UnusableError: The call failed when the record was made.
        """
        if kind := self.about.get("failed", {}).get(key):
            raise UnusableError("as when the record was made", kind)
        line = self._answers.get(key)
        return held_answer(json.loads(line)) if line else None

    def refresh(self) -> None:
        """Do nothing: nobody adds to a record."""

    def put(self, key: str, model: str, request: Request, completion: Completion) -> None:
        """Refuse an answer, which could only be one that nobody recorded.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"{self.folder} is a record; nothing is added to it")

    @contextlib.asynccontextmanager
    async def in_flight(self, key: str) -> AsyncIterator[None]:
        """Hold nothing: nothing is asked."""
        yield


@lru_cache(maxsize=4)
def open_record(folder: Path) -> Record:
    """Return a record, read once a process.

    Raises:
        ValueError: As `Record`.
    """
    return Record(folder)


class Recorded:
    """A model of which only a record is left.

    Attributes:
        model: Its id.
        cache_id: Likewise.
        takes: What was sent is in the record's keys.
    """

    takes = Takes(thinking=("off", "minimal", "low", "medium", "high"))

    def __init__(self, model: str, record: Record) -> None:
        """Name the model and its record."""
        self.model = self.cache_id = model
        self._record = record

    async def complete(self, request: Request) -> Completion:
        """Say what is missing.

        Raises:
            FatalError: Always.
        """
        about = self._record.about
        templates: Mapping[str, str] = about.get("templates", {})
        if self.model not in about.get("models", []):
            why = f"it holds answers of {', '.join(about.get('models', []))}"
        elif request.template not in templates.values():
            why = "its prompt template was changed since, or was not used then"
        else:
            why = "its query, pages, sampling or repeat were not recorded"
        raise FatalError(
            f"record={str(self._record.folder)!r} holds no answer of {self.model} to this "
            f"{request.role}'s request: {why}. Run the recorded parameters, or set record to null "
            "and name a server, and the model is asked"
        )

    async def probe(self) -> None:
        """Nothing is to be checked."""

    async def close(self) -> None:
        """Nothing is open."""


def write_record(
    cache: Path, folder: Path, about: Mapping[str, Any], ledgers: Sequence[Path] = ()
) -> list[Path]:
    """Make a record of all answers of a cache folder.

    Args:
        cache: Holds nothing else than what is to be recorded.
        folder: Is made; a record that lies there is replaced.
        about: What `record.json` is to say beside models, number of answers and failed calls.
        ledgers: `usage.jsonl` of the runs, which know the calls that failed.

    Returns:
        The files, each smaller than 1 MB.

    Raises:
        OSError: The cache or the folder cannot be used.
    """
    entries = sorted(
        AnswerCache(cache).entries(),
        key=lambda pair: (pair[1]["role"], pair[1]["prompt_sha256"], pair[1]["sample_index"]),
    )
    kept = ("completion", "checksum")
    lines = [f"{key} {json.dumps({n: entry[n] for n in kept})}\n" for key, entry in entries]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"*{_ENDING}"):
        old.unlink()
    ends = itertools.accumulate(map(len, lines))
    parts = itertools.groupby(zip(ends, lines, strict=True), key=lambda pair: pair[0] // _PART)
    paths = []
    for number, (_, part) in enumerate(parts, 1):
        paths.append(folder / f"{number:02}{_ENDING}")
        text = "".join(line for _, line in part)
        write_atomic(paths[-1], lzma.compress(text.encode(), preset=9))
    models = sorted({entry["model"] for _, entry in entries})
    tried = [row for path in ledgers for row in read_jsonl(path) if row.get("failure")]
    held = {key for key, _ in entries}
    failed = {row["key"]: row["failure"] for row in tried if row["key"] not in held}
    said = dict(about) | {"models": models, "answers": len(entries), "failed": failed}
    write_atomic(folder / ABOUT, json.dumps(said, indent=2) + "\n")
    return [folder / ABOUT, *paths]
