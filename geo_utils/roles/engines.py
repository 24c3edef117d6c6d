"""The generative engine: from a query and its sources to an answer with citations.

The offline engine is for tests and rehearsals. Its response to emphasis is assumed, and keyword
stuffing raises visibility there, which it does not on real engines.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geo_utils.citations import strip_citations
from geo_utils.lexical import bm25
from geo_utils.text import content_words, sentences, words

_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s+")
_MARKS = re.compile(r"\*\*|__|`")
_MAX_SENTENCE_WORDS = 80
_MIN_SENTENCE_WORDS = 4
_DUPLICATE = 0.8


@dataclass(frozen=True)
class Answer:
    """What an engine answered.

    Attributes:
        text: The answer; sources are cited by number from 1. Empty on an abstention.
        abstention: Reason for a missing answer.
        prompt_copied: 1.0 if it copies a piece of the engine's own prompt, such as the example
            there, else 0.0; None where no model answered.
    """

    text: str
    abstention: str | None = None
    prompt_copied: float | None = None


class Engine(Protocol):
    """Anything that answers a query from numbered sources."""

    async def answer(self, query: str, sources: Sequence[str], sample_index: int = 0) -> Answer:
        """Return one sampled answer; `sample_index` tells repeats of the same input apart."""


@dataclass(frozen=True)
class Emphasis:
    """How much the offline engine is drawn by a page's emphasis: an assumption, not a finding.

    Each weight is added to a sentence's relevance (BM25, scaled to 0..1 within one query) times
    the feature, so that bold = 0.15 makes a bold sentence as attractive as one that is 0.15 more
    relevant. Change the weights to ask how a result depends on the assumption; all 0 gives an
    engine that reads words only.

    Attributes:
        bold: Feature is the share of the sentence's words in bold.
        heading: Feature is 1 for a sentence that is a heading. Titles that are no sentence, such as
            `# Tides`, are never quoted.
        lead: Feature falls from 1 at the top of the page to 0 at its end.
        repetition: Feature is 1 - 1/k for a sentence that the page says k times.
    """

    bold: float = 0.15
    heading: float = 0.10
    lead: float = 0.20
    repetition: float = 0.15


@dataclass(frozen=True)
class ExtractiveEngine:
    """Offline engine: picks sentences by relevance and emphasis, each with its citation.

    Sentences of all sources are scored by BM25 against the query, plus `Emphasis`, plus Gumbel
    noise seeded by the sentence's words and `sample_index`: the same sentence gets the same noise
    under every method and wherever it stands, so that a paired comparison sees the rewrite and
    not the draw. The best are taken one by one, each penalised by its overlap with those taken,
    until the word budget is spent.

    Attributes:
        word_budget: Longest answer in words.
        redundancy: Penalty for complete overlap with a sentence already taken.
        temperature: Scale of the noise, in units of relevance; 0 makes repeats equal.
        emphasis: Response to the page's emphasis.
        seed: Seed of the noise.
    """

    word_budget: int = 300
    redundancy: float = 0.8
    temperature: float = 0.10
    emphasis: Emphasis = field(default_factory=Emphasis)
    seed: int = 0

    async def answer(self, query: str, sources: Sequence[str], sample_index: int = 0) -> Answer:
        """Return an extractive answer; an abstention if no source holds a usable sentence."""
        pool = _pool(query, tuple(sources))
        if not pool.texts:
            return Answer("", "no source holds a usable sentence")
        score = pool.relevance + pool.features @ np.array(astuple(self.emphasis))
        noise = np.array([_gumbel(key, self.seed, sample_index) for key in pool.keys])
        score = score + self.temperature * noise
        taken: list[int] = []
        left, overlap = self.word_budget, np.zeros(len(score))
        open_ = np.ones(len(score), dtype=bool)
        while True:
            candidates = open_ & (pool.lengths <= left)
            if not candidates.any():
                break
            best = int(np.argmax(np.where(candidates, score - self.redundancy * overlap, -np.inf)))
            taken.append(best)
            left -= int(pool.lengths[best])
            overlap = np.maximum(overlap, pool.overlap_with(best))
            open_ &= overlap < _DUPLICATE
            open_[best] = False
        cited = [_cite(pool.texts[i], pool.source[i] + 1) for i in taken]
        if not cited:
            return Answer("", f"no sentence fits the word budget of {self.word_budget}")
        return Answer("\n\n".join(" ".join(cited[i : i + 3]) for i in range(0, len(cited), 3)))


@dataclass(frozen=True, eq=False)
class _Pool:
    """The candidate sentences of one prompt; arrays have one row a sentence."""

    texts: Sequence[str]
    keys: Sequence[str]
    source: Sequence[int]
    lengths: NDArray[np.int64]
    relevance: NDArray[np.float64]
    features: NDArray[np.float64]
    contents: Sequence[frozenset[str]]
    sizes: NDArray[np.int64]
    holders: dict[str, list[int]]

    def overlap_with(self, row: int) -> NDArray[np.float64]:
        """Shared content words over the smaller sentence's, shape (n_sentences,)."""
        rows = [i for word in self.contents[row] for i in self.holders[word]]
        shared = np.bincount(np.array(rows, dtype=np.int64), minlength=len(self.texts))
        return np.asarray(shared / np.maximum(np.minimum(self.sizes, self.sizes[row]), 1))


@lru_cache(maxsize=32)
def _pool(query: str, sources: tuple[str, ...]) -> _Pool:
    rows = [(i, *row) for i, page in enumerate(sources) for row in _page_sentences(page)]
    source, texts, lengths, shown = zip(*rows, strict=True) if rows else ((), (), (), ())
    words_of = [content_words(text) for text in texts]
    keys, contents = [" ".join(found) for found in words_of], [frozenset(w) for w in words_of]
    holders: dict[str, list[int]] = {}
    for i, content in enumerate(contents):
        for word in content:
            holders.setdefault(word, []).append(i)
    relevance = bm25(content_words(query), words_of)
    said = list(zip(source, keys, strict=True))
    times = Counter(said)
    repeated = [1 - 1 / times[place] for place in said]
    return _Pool(
        texts=texts,
        keys=keys,
        source=source,
        lengths=np.array(lengths, dtype=np.int64),
        relevance=relevance / max(float(relevance.max(initial=0.0)), 1e-9),
        features=np.column_stack([np.reshape(shown, (-1, 3)), repeated]),
        contents=contents,
        sizes=np.array([len(content) for content in contents], dtype=np.int64),
        holders=holders,
    )


@lru_cache(maxsize=4096)
def _page_sentences(page: str) -> tuple[tuple[str, int, tuple[float, float, float]], ...]:
    """Return (text, words, (bold, heading, lead)) for each sentence an answer could quote."""
    found: list[tuple[str, float, float]] = []
    for line in page.splitlines():
        heading = bool(_HEADING.match(line))
        if heading and not line.rstrip().endswith((".", "!", "。")):
            continue  # a title names a subject; only a heading that is a sentence can be quoted
        text = strip_citations(_BULLET.sub("", _HEADING.sub("", line, count=1), count=1))
        is_bold = False
        for sentence in sentences(text):
            bold = total = 0
            for i, part in enumerate(sentence.split("**")):
                is_bold ^= i > 0
                n = len(words(part))
                total += n
                bold += n * is_bold
            found.append((_MARKS.sub("", sentence).strip(), bold / max(total, 1), float(heading)))
    last = max(len(found) - 1, 1)
    return tuple(
        (text, len(words(text)), (bold, heading, 1 - i / last))
        for i, (text, bold, heading) in enumerate(found)
        if _MIN_SENTENCE_WORDS <= len(words(text)) <= _MAX_SENTENCE_WORDS
    )


@lru_cache(maxsize=200_000)
def _gumbel(key: str, seed: int, sample_index: int) -> float:
    digest = hashlib.blake2b(f"{seed}|{sample_index}|{key}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -math.log(-math.log(uniform))


def _cite(sentence: str, number: int) -> str:
    body = sentence.rstrip()
    stop = body[-1] if body and body[-1] in ".!?。！？؟۔" else ""  # noqa: RUF001
    return f"{body[: len(body) - len(stop)].rstrip()} [{number}]{stop or '.'}"
