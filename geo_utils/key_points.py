"""Claims of pages: the value, and its two forms on disk, in a row and in AutoGEO's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from geo_utils.rows import CorpusError
from geo_utils.text import clean_text


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


def parse_key_points(rows: Any, place: str) -> tuple[KeyPoint, ...]:
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
    listed = [parse_key_points(rows or (), str(path)) for rows in documents]

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
