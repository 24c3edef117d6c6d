"""Words against words: relevance of a sentence to a query, and of a text to a claim."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from geo_utils.text import content_words

# From which `Coverage.support` on a text supports a claim. Chosen on data, as window and spread:
# `python tests/measure_judge.py` measures it, and judges.LexicalJudge quotes the result.
SUPPORT_THRESHOLD = 0.62
WINDOW = 2
SPREAD = 0.5


def bm25(
    query: Sequence[str], documents: Sequence[Sequence[str]], k1: float = 1.2, b: float = 0.75
) -> NDArray[np.float64]:
    """Score documents against a query by BM25 (Robertson and Zaragoza, 2009).

    Args:
        query: Words of the query.
        documents: Words of each document; document frequencies are counted over them.
        k1: Saturation of a word's frequency.
        b: Strength of the length normalisation.

    Returns:
        Scores, shape (len(documents),), at least 0.
    """
    counts = [Counter(document) for document in documents]
    lengths = np.array([len(document) for document in documents], dtype=float)
    found = ([count[word] for count in counts] for word in dict.fromkeys(query))
    return bm25_scores((np.array(row, dtype=float) for row in found), lengths, k1, b)


def bm25_scores(
    frequencies: Iterable[NDArray[np.float64]],
    lengths: NDArray[np.float64],
    k1: float = 1.2,
    b: float = 0.75,
) -> NDArray[np.float64]:
    """Score documents by BM25 from counts.

    Args:
        frequencies: For each word of the query, how often it is in each document, shape (n,).
        lengths: Words of each document, shape (n,).
        k1: As `bm25`.
        b: As `bm25`.

    Returns:
        Scores, shape (n,).
    """
    scores = np.zeros(len(lengths))
    norm = k1 * (1 - b + b * lengths / max(lengths.mean() if len(lengths) else 1.0, 1.0))
    for frequency in frequencies:
        n = np.count_nonzero(frequency)
        idf = math.log(1 + (len(lengths) - n + 0.5) / (n + 0.5))
        scores += idf * frequency * (k1 + 1) / (frequency + norm)
    return scores


@dataclass(frozen=True)
class Coverage:
    """How much of a claim a text covers.

    Attributes:
        score: Covered share of the claim's IDF weight in the best window, 0 to 1.
        start: Index of the window's first sentence.
        end: One past its last.
        missing: Stems of the claim that the window lacks.
        anywhere: Covered share of the weight in the whole text.
    """

    score: float
    start: int = 0
    end: int = 0
    missing: tuple[str, ...] = ()
    anywhere: float = 0.0

    def support(self, spread: float = SPREAD) -> float:
        """Return how far the text supports the claim, 0 to 1.

        A claim is said in one place, but its subject may have been named before, and a part of it
        may come later: `spread` is the weight of what is said anywhere.
        """
        return (1 - spread) * self.score + spread * self.anywhere


def coverage(claim: str, sentences: Sequence[str], window: int = WINDOW) -> Coverage:
    """Find the window of consecutive sentences that covers most of a claim's content words.

    Args:
        claim: The claim, such as a key point's content.
        sentences: The sentences of the text, in order.
        window: Longest window, in sentences; a shorter one wins a tie.

    Returns:
        The best window; score 0 if the claim has no content words or the text no sentences.
    """
    wanted = frozenset(content_words(claim))
    weights = {word: idf(word) for word in wanted}
    total = sum(weights[word] for word in sorted(wanted))
    if not total:
        return Coverage(0.0)
    held = [wanted.intersection(content_words(sentence)) for sentence in sentences]
    anywhere = sum(weights[word] for word in sorted(frozenset().union(*held))) / total
    best, best_key = Coverage(0.0, missing=tuple(sorted(wanted))), (0.0, 0)
    for start in range(len(held)):
        inside: frozenset[str] = frozenset()
        for size in range(1, min(window, len(held) - start) + 1):
            if not (more := held[start + size - 1]) - inside:
                continue  # a shorter window holds as much
            inside = inside | more
            score = sum(weights[word] for word in sorted(inside)) / total
            if (score, -size) > best_key:
                best_key = (score, -size)
                missing = tuple(sorted(wanted - inside))
                best = Coverage(score, start, start + size, missing, anywhere)
    return best


@lru_cache(maxsize=100_000)
def idf(word: str) -> float:
    """Return a stem's inverse document frequency among the pages of the shipped sample.

    A fixed background, so that a verdict depends on key point and answer alone and no change to
    a corpus moves the verdicts on its other queries. A word it lacks weighs as much as its
    rarest.
    """
    frequencies, n_pages = _background()
    return math.log(1 + n_pages / (1 + frequencies.get(word, 0)))


@lru_cache(maxsize=1)
def _background() -> tuple[dict[str, int], int]:
    rows = (files("geo_utils") / "data" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    pages = [page for row in rows for page in json.loads(row)["text_list"]]
    return Counter(word for page in pages for word in set(content_words(page))), len(pages)
