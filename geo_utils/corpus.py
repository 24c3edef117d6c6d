"""Queries, their web pages and the target page's key points, from files and the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, overload

from geo_utils.key_points import KeyPoint as KeyPoint
from geo_utils.key_points import parse_key_points, points_of_pages
from geo_utils.lexical import SUPPORT_THRESHOLD, coverage
from geo_utils.parameter_errors import nearest
from geo_utils.rows import HUB_IDS, CorpusError, disk_rows, hub_rows, jsonl_rows
from geo_utils.text import clean_text, plain_line_breaks, sentences

KeyPointChoice = Literal["one", "all", "exclusive"]
MAX_PAGE_CHARS = 500_000
NAMES = ("sample", "jsonl", *HUB_IDS)


@dataclass(frozen=True)
class Example:
    """One query with its sources.

    Attributes:
        query_id: Unique in its corpus.
        query: The question.
        sources: The text of each web page.
        target_id: 0-based index of the page being optimised.
        key_points: The target page's claims; empty if the corpus brings none.
        source_key_points: The claims of each source, in their order, where the corpus brings
            them; empty if it does not.
    """

    query_id: str
    query: str
    sources: tuple[str, ...]
    target_id: int
    key_points: tuple[KeyPoint, ...] = ()
    source_key_points: tuple[tuple[KeyPoint, ...], ...] = ()

    @property
    def target(self) -> str:
        """The page being optimised."""
        return self.sources[self.target_id]


@dataclass(frozen=True)
class Corpus(Sequence[Example]):
    """Examples with what loading them found.

    Attributes:
        name: The name it was loaded by.
        examples: In file order.
        notes: What was repaired or left out, as (what, count).
        join_rate: Share of queries whose separate key points were found on the target page;
            None where nothing was joined.
    """

    name: str
    examples: tuple[Example, ...]
    notes: tuple[tuple[str, int], ...] = ()
    join_rate: float | None = None
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Hash the content, so that a manifest can say which data a run read."""
        text = json.dumps([asdict(e) for e in self.examples], ensure_ascii=False)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        object.__setattr__(self, "sha256", digest)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        """Return one example, or a tuple of them."""
        return self.examples[index]

    def __str__(self) -> str:
        """Say in one line what is here and what is missing."""
        points = sum(len(e.key_points) for e in self.examples)
        without = sum(not e.key_points for e in self.examples)
        parts = [f"{self.name}: {len(self)} examples, {points} key points"]
        if without:
            parts.append(f"{without} examples without key points (skipped)")
        if self.join_rate is not None:
            parts.append(f"key points joined for {self.join_rate:.1%} of queries")
        parts += [f"{what}: {count}" for what, count in self.notes]
        return "; ".join(parts)


def load_corpus(
    name: str = "sample",
    *,
    path: str | Path | None = None,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Load a corpus by name.

    Args:
        name: `sample` (shipped with the package), `jsonl` (rows as Researchy-GEO writes them,
            or a folder written by `datasets.save_to_disk`), `researchy-geo`, `e-commerce` or
            `geo-bench` (Hugging Face Hub).
        path: For `jsonl` the file or folder. For `researchy-geo` and `e-commerce` AutoGEO's
            `key_point` folder, whose points are joined to the target page by their spans.
        split: Split of a Hub dataset. Researchy-GEO's `grpo_eval` brings key points itself.
        limit: Keep this many queries, drawn from the seed; a smaller draw is part of a larger.
        seed: Seed of the draw.

    Returns:
        The corpus, in file order.

    Raises:
        CorpusError: Anything that cannot be read, with file and line.
    """
    if name not in NAMES:
        raise CorpusError(
            f"corpus={name!r} is unknown{nearest(name, NAMES)} Choose from {', '.join(NAMES)}"
        )
    if limit is not None and limit < 1:
        raise CorpusError(f"limit={limit}: must be at least 1, or none for all examples")
    key_point_folder = None
    if name == "jsonl":
        if path is None:
            raise CorpusError("corpus='jsonl' needs path: a JSONL file or a saved dataset folder")
        rows = disk_rows(Path(path)) if os.path.isdir(path) else jsonl_rows(Path(path))
    elif name == "sample":
        rows = jsonl_rows(Path(str(files("geo_utils") / "data" / "sample.jsonl")))
    else:
        rows = hub_rows(name, split)
        key_point_folder = Path(path) if path else None
    notes: dict[str, int] = {}
    examples = _unique(_example(row, place, notes) for place, row in rows)
    if not examples:
        raise CorpusError(f"{path or name}: holds no rows")
    if limit is not None:
        drawn = sorted(examples, key=lambda e: random.Random(f"{seed}|{e.query_id}").random())
        kept = {e.query_id for e in drawn[:limit]}
        examples = [e for e in examples if e.query_id in kept]
    join_rate = None
    if key_point_folder is not None:
        examples = [_join_key_points(e, key_point_folder) for e in examples]
        join_rate = sum(bool(e.key_points) for e in examples) / len(examples)
    return Corpus(name, tuple(examples), tuple(notes.items()), join_rate)


def draw_queries(examples: Sequence[Example], queries: int | None, seed: int) -> list[Example]:
    """Return so many of the queries that have key points, in their order.

    They are drawn from the seed; a smaller draw is part of a larger.
    """
    usable = [example for example in examples if example.key_points]
    if queries is None:
        return usable
    drawn = sorted(usable, key=lambda e: random.Random(f"{seed}|study|{e.query_id}").random())
    kept = {example.query_id for example in drawn[:queries]}
    return [example for example in usable if example.query_id in kept]


def choose_key_points(
    examples: Iterable[Example], which: KeyPointChoice = "one", seed: int = 0
) -> list[tuple[Example, KeyPoint]]:
    """Choose the key points that an experiment is about.

    Args:
        examples: Those without key points are left out.
        which: `one` draws one a page; `all` takes every one; `exclusive` draws one among those
            that no other source carries (lexically), and leaves out pages that have none.
        seed: Seed of the draw. Each example has its own, so that one changed page or a shorter
            corpus changes no other example's draw.

    Returns:
        (example, key point) pairs in order.
    """
    pairs = []
    for example in examples:
        points = example.key_points
        if which == "exclusive":
            others = [s for i, s in enumerate(example.sources) if i != example.target_id]
            pages = [sentences(page) for page in others]
            points = tuple(
                p
                for p in points
                if all(coverage(p.content, page).score < SUPPORT_THRESHOLD for page in pages)
            )
        if points and which != "all":
            points = (random.Random(f"{seed}|key point|{example.query_id}").choice(points),)
        pairs += [(example, point) for point in points]
    return pairs


def _example(row: Mapping[str, Any], place: str, notes: dict[str, int]) -> Example:
    if "sources" in row:  # GEO-bench
        texts: Any = [s.get("cleaned_text") or s.get("raw_text") for s in row["sources"] or []]
        query_id, target = row.get("query_id", place.rpartition(" ")[2]), row.get("sugg_idx")
    else:
        texts, query_id, target = row.get("text_list"), row.get("query_id"), row.get("target_id")
    query = row.get("query")
    if not isinstance(query, str) or not clean_text(query).strip():
        raise CorpusError(f"{place}: query={query!r} must be a text")
    if query_id is None or not clean_text(str(query_id)).strip():
        raise CorpusError(f"{place}: query_id is missing")
    if not isinstance(texts, list | tuple) or not texts:
        raise CorpusError(f"{place}: no sources; text_list must hold at least one page")
    if type(target) is not int or not 0 <= target < len(texts):
        raise CorpusError(f"{place}: target_id={target!r}; allowed are 0 to {len(texts) - 1}")
    pages = tuple(_clean_page(t, f"{place}, page {i}", notes) for i, t in enumerate(texts))
    if not pages[target].strip():
        raise CorpusError(f"{place}: the target page {target} is empty")
    listed = row.get("ori_keypoint_dict") or {}
    if not isinstance(listed, Mapping):
        raise CorpusError(f"{place}: ori_keypoint_dict must hold points, not {listed!r:.80}")
    points = parse_key_points(listed.get("points") or (), place)
    others = row.get("source_key_points") or ()
    if not isinstance(others, list | tuple) or len(others) not in (0, len(pages)):
        raise CorpusError(f"{place}: source_key_points must be one list a page, {len(pages)} here")
    return Example(
        clean_text(str(query_id)).strip(),
        clean_text(query).strip(),
        pages,
        target,
        points,
        tuple(parse_key_points(listed or (), place) for listed in others),
    )


def _clean_page(text: Any, place: str, notes: dict[str, int]) -> str:
    if not isinstance(text, str):
        raise CorpusError(f"{place}: {type(text).__name__} instead of a text")
    if len(text) > MAX_PAGE_CHARS:
        raise CorpusError(
            f"{place}: {len(text):,} characters; at most {MAX_PAGE_CHARS:,} are allowed. "
            "Cut the page to what an engine would read"
        )
    cleaned = clean_text(text)
    if cleaned != plain_line_breaks(text):
        what = "pages with control characters (removed)"
        notes[what] = notes.get(what, 0) + 1
    return cleaned


def _unique(examples: Iterable[Example]) -> list[Example]:
    seen: dict[str, int] = {}
    kept = []
    for number, example in enumerate(examples, 1):
        if example.query_id in seen:
            first = seen[example.query_id]
            raise CorpusError(
                f"query_id {example.query_id!r} stands in rows {first} and {number}; "
                "make the ids unique or remove one row"
            )
        seen[example.query_id] = number
        kept.append(example)
    return kept


def _join_key_points(example: Example, folder: Path) -> Example:
    """Return the example with the key points that a folder holds for its pages."""
    found = points_of_pages(example.query_id, example.sources, folder)
    points = found[example.target_id] or example.key_points
    return replace(example, key_points=points, source_key_points=found)
