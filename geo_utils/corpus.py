"""Examples, their key points, and every way to load them."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from geo_utils.lexical import SUPPORT_THRESHOLD, coverage
from geo_utils.parameters import nearest
from geo_utils.text import clean_text, plain_line_breaks, sentences

Row = Mapping[str, Any]
# Dataset ids on the Hugging Face Hub; the configuration is the split's own where named here.
HUB_IDS = {
    "researchy-geo": "cx-cmu/Researchy-GEO",
    "e-commerce": "cx-cmu/E-commerce",
    "geo-bench": "GEO-Optim/geo-bench",
}


KeyPointChoice = Literal["one", "all", "exclusive"]
MAX_PAGE_CHARS = 500_000
_POINTS_EXAMPLE = '"ori_keypoint_dict": {"points": [{"point_content": "A claim."}]}'
NAMES = ("sample", "jsonl", *HUB_IDS)


class CorpusError(ValueError):
    """A corpus that cannot be read; the message names the place and the way out."""


@dataclass(frozen=True)
class KeyPoint:
    """One claim of the target page.

    Attributes:
        number: Its number on the page, from 1.
        content: The claim, in words that need no context.
        spans: Quotes of the page that carry it; empty if the corpus brings none.
    """

    number: int
    content: str
    spans: tuple[str, ...] = ()


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

    @cached_property
    def sha256(self) -> str:
        """Hash of the content, so that a manifest can say which data a run read."""
        text = json.dumps([asdict(e) for e in self.examples], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
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
            `geo-bench` (Hugging Face Hub). The last two bring no key points: a model reads them
            off the target pages. The sample's stay close to the wording of their pages.
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
    at = Path(path) if path and name != "sample" else None
    if name == "jsonl" and at is None:
        raise CorpusError("corpus='jsonl' needs path: a JSONL file or a saved dataset folder")
    if name in HUB_IDS or (at and at.is_dir()):
        rows = _dataset_rows(name, split, at)
    else:
        rows = _jsonl_rows(at or Path(str(files("geo_utils") / "data" / "sample.jsonl")))
    notes: Counter[str] = Counter()
    examples = [_example(row, place, notes) for place, row in rows]
    if not examples:
        raise CorpusError(f"{path or name}: holds no rows")
    seen: dict[str, int] = {}
    for number, example in enumerate(examples, 1):
        if (first := seen.setdefault(example.query_id, number)) != number:
            raise CorpusError(
                f"query_id {example.query_id!r} stands in rows {first} and {number}; "
                "make the ids unique or remove one row"
            )
    examples = _drawn(examples, limit, f"{seed}|")
    join_rate = None
    if name in HUB_IDS and at:
        found = [points_of_pages(e.query_id, e.sources, at) for e in examples]
        examples = [
            replace(e, key_points=points[e.target_id] or e.key_points, source_key_points=points)
            for e, points in zip(examples, found, strict=True)
        ]
        join_rate = sum(bool(e.key_points) for e in examples) / len(examples)
    return Corpus(name, tuple(examples), tuple(notes.items()), join_rate)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for each line of a JSONL file; the place names file and line.

    Raises:
        CorpusError: The file is missing, empty, not UTF-8, or has a line that is no JSON object.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise CorpusError(f"corpus file {path}: {reason}") from None
    if not raw.strip():
        raise CorpusError(f"corpus file {path} is empty")
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{place}: byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
            ) from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{place}: not a JSON object ({error}); is the line torn?") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{place}: {type(row).__name__} instead of a JSON object")
        yield place, row


def _dataset_rows(name: str, split: str, folder: Path | None) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a split of one of `HUB_IDS`, or of a dataset that was saved to disk.

    Raises:
        CorpusError: The Hub cannot be reached or has no such split; the folder holds no dataset,
            or several splits.
    """
    from datasets import Dataset, load_dataset, load_from_disk  # takes seconds: only where needed

    if name in HUB_IDS:
        # grpo_eval is a configuration with one split; GEO-bench's configurations: train (with its
        # split val) and test.
        configuration, part = {"grpo_eval": ("grpo_eval", "train")}.get(split, ("main", split))
        if name == "geo-bench":
            configuration = "test" if split == "test" else "train"
        try:
            dataset = load_dataset(HUB_IDS[name], configuration, split=part)
        except Exception as error:  # the library raises many kinds; all mean the same to the user
            raise CorpusError(
                f"corpus={name!r}, split={split!r} could not be loaded from {HUB_IDS[name]}: "
                f"{error}. Without a network, save it to disk elsewhere and use corpus='jsonl' "
                "with its folder"
            ) from error
    else:
        try:
            dataset = load_from_disk(str(folder))
        except (FileNotFoundError, ValueError) as error:
            raise CorpusError(f"{folder} is no dataset saved to disk: {error}") from None
        if not isinstance(dataset, Dataset):
            raise CorpusError(f"{folder} holds the splits {', '.join(map(str, dataset))}; name one")
    where = f"{HUB_IDS[name]} {split}" if name in HUB_IDS else folder
    for number, row in enumerate(dataset):
        yield f"{where}, row {number}", row


def _example(row: Mapping[str, Any], place: str, notes: Counter[str]) -> Example:
    if "sources" in row:  # GEO-bench
        texts: Any = [s.get("cleaned_text") or s.get("raw_text") for s in row["sources"] or []]
        query_id, target = row.get("query_id", place.rpartition(" ")[2]), row.get("sugg_idx")
    else:
        texts, query_id, target = row.get("text_list"), row.get("query_id"), row.get("target_id")
    query = row.get("query")
    if "key_points" in row:
        raise CorpusError(f"{place}: key_points is no field of a row; write {_POINTS_EXAMPLE}")
    if not isinstance(query, str) or not clean_text(query).strip():
        raise CorpusError(f"{place}: query={query!r} must be a text")
    if query_id is None or not clean_text(str(query_id)).strip():
        raise CorpusError(f"{place}: query_id is missing")
    if not isinstance(texts, list | tuple) or not texts:
        raise CorpusError(
            f"{place}: no sources; text_list must hold at least one page, such as "
            '"text_list": ["A page.", "Another."], "target_id": 1'
        )
    if type(target) is not int or not 0 <= target < len(texts):
        raise CorpusError(f"{place}: target_id={target!r}; allowed are 0 to {len(texts) - 1}")
    pages = tuple(_clean_page(t, f"{place}, page {i}", notes) for i, t in enumerate(texts))
    if not pages[target].strip():
        raise CorpusError(f"{place}: the target page {target} is empty")
    listed = row.get("ori_keypoint_dict") or {}
    if not isinstance(listed, Mapping):
        raise CorpusError(f"{place}: ori_keypoint_dict must hold points, not {listed!r:.80}")
    points = _key_points(listed.get("points") or (), place)
    others = row.get("source_key_points") or ()
    if not isinstance(others, list | tuple) or len(others) not in (0, len(pages)):
        raise CorpusError(f"{place}: source_key_points must be one list a page, {len(pages)} here")
    return Example(
        clean_text(str(query_id)).strip(),
        clean_text(query).strip(),
        pages,
        target,
        points,
        tuple(_key_points(listed or (), place) for listed in others),
    )


def own_example(page: str, key_point: str, query: str = "", others: Sequence[str] = ()) -> Example:
    """Return the example that a page of one's own makes, the page being its first source.

    Args:
        page: The page's text.
        key_point: What it wants said.
        query: The question; empty for the page's title or, without one, its first line.
        others: The pages that the engine sees beside it.

    Raises:
        CorpusError: A text is missing or cannot be used.
    """
    if not page.strip():
        raise CorpusError("the page is empty; give its whole text, at least a sentence")
    if not key_point.strip():
        raise CorpusError("the key point is empty; give one claim of the page, in a sentence")
    title = page.strip().splitlines()[0].lstrip("# ")
    points = {"points": [{"point_content": key_point}]}
    row = {"query": query.strip() or title, "text_list": [page, *others], "target_id": 0}
    return _example(
        row | {"query_id": "own page", "ori_keypoint_dict": points}, "own page", Counter()
    )


def _clean_page(text: Any, place: str, notes: Counter[str]) -> str:
    if not isinstance(text, str):
        raise CorpusError(f"{place}: {type(text).__name__} instead of a text")
    if len(text) > MAX_PAGE_CHARS:
        raise CorpusError(
            f"{place}: {len(text):,} characters; at most {MAX_PAGE_CHARS:,} are allowed. "
            "Cut the page to what an engine would read"
        )
    cleaned = clean_text(text)
    if cleaned != plain_line_breaks(text):
        notes["pages with control characters (removed)"] += 1
    return cleaned


def _key_points(rows: Any, place: str) -> tuple[KeyPoint, ...]:
    """Read key points from rows of `point_number`, `point_content` and `spans`.

    Args:
        rows: A list of them.
        place: Where they stand, for errors.

    Raises:
        CorpusError: They cannot be read.
    """
    points: list[KeyPoint] = []
    if not isinstance(rows, list | tuple):
        raise CorpusError(f"{place}: key points must be a list, not {rows!r:.80}")
    for row in rows:
        content = row.get("point_content") if isinstance(row, Mapping) else None
        if not isinstance(content, str) or not clean_text(content).strip():
            raise CorpusError(f"{place}: a key point without point_content: {row!r:.200}")
        number, spans = row.get("point_number", len(points) + 1), row.get("spans") or []
        if type(number) is not int:
            raise CorpusError(f"{place}: point_number={number!r} must be a whole number")
        if not isinstance(spans, list | tuple):
            raise CorpusError(f"{place}: spans of point {number} must be a list, not {spans!r:.80}")
        kept = tuple(clean_text(s) for s in spans if isinstance(s, str) and s.strip())
        points.append(KeyPoint(number, clean_text(content).strip(), kept))
    if len({point.number for point in points}) < len(points):
        points = [replace(point, number=i) for i, point in enumerate(points, 1)]
    return tuple(points)


def points_of_pages(
    query_id: str, pages: Sequence[str], folder: Path
) -> tuple[tuple[KeyPoint, ...], ...]:
    """Find the key points of each page among the documents of a query's key-point file.

    A document belongs to the page that its spans quote: the one with the largest share, if more
    than half of them stand in the page.

    Returns:
        The points of each page, in their order; none for a page without a document.

    Raises:
        CorpusError: There is no such folder, or the file cannot be read.
    """
    path = folder / f"{query_id}.json"
    if not folder.is_dir():
        raise CorpusError(f"key point folder {folder}: no such folder")
    if not path.exists():
        return ((),) * len(pages)
    try:
        documents = json.loads(path.read_text(encoding="utf-8"))["key_points"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: not a key-point file ({error!r})") from None
    listed = [_key_points(rows or (), str(path)) for rows in documents]

    def quoted(points: tuple[KeyPoint, ...], page: str) -> tuple[float, int]:
        """Return share and number of the spans that stand in the page."""
        spans = [" ".join(s.split()) for p in points for s in p.spans]
        found = sum(s in page for s in spans)
        return (found / len(spans) if spans else 0.0), found

    found = []
    for page in (" ".join(page.split()) for page in pages):
        best = max(listed, key=partial(quoted, page=page), default=())
        found.append(best if quoted(best, page)[0] > 0.5 else ())
    return tuple(found)


def _drawn(examples: Sequence[Example], limit: int | None, seed: str) -> list[Example]:
    """Return so many of the examples, in their order; a smaller draw is part of a larger."""
    order = sorted(examples, key=lambda e: random.Random(f"{seed}{e.query_id}").random())
    kept = {example.query_id for example in order[:limit]}
    return [example for example in examples if example.query_id in kept]


def draw_queries(examples: Sequence[Example], queries: int | None, seed: int) -> list[Example]:
    """Return so many of the queries that have key points, in their order.

    They are drawn from the seed; a smaller draw is part of a larger.
    """
    usable = [example for example in examples if example.key_points]
    return _drawn(usable, queries, f"{seed}|study|")


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
                if all(coverage(p.content, page).support() < SUPPORT_THRESHOLD for page in pages)
            )
        if points and which != "all":
            points = (random.Random(f"{seed}|key point|{example.query_id}").choice(points),)
        pairs += [(example, point) for point in points]
    return pairs
