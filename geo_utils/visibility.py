"""GEO's objective visibility: word count, position and position-adjusted word count.

For source k of n, over the S sentences i = 0..S-1 of an answer (Aggarwal et al., "GEO:
Generative Engine Optimization", KDD 2024; their published code, and AutoGEO's):

    word(k)     = sum of words(i) / citations(i)                       over sentences citing k
    position(k) = sum of exp(-i / (S - 1)) / citations(i)              (factor 1 if S = 1)
    PAWC(k)     = sum of words(i) * exp(-i / (S - 1)) / citations(i)

each divided by its sum over the n sources. The words of a sentence are its tokens longer than
two characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from geo_utils.citations import CitedAnswer, parse_answer
from geo_utils.text import is_unspaced, sentences, words

Convention = Literal["corrected", "geo", "autogeo"]
FIGURES = ("word", "position", "pawc")
Sentence = tuple[Sequence[str], str, Sequence[int]]
# A number with the whole run of marks before it, and the run after it.
_MARKED = re.compile(r"(?<![^\w\s])([^\w\s]+)(\d+)(?=([^\w\s]*))")
_UPSTREAM_TOKEN = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Visibility:
    """Visibility of every source in one answer.

    Attributes:
        word: Share of cited words, shape (n_sources,).
        position: Share of position weight, shape (n_sources,).
        pawc: Share of position-adjusted words, shape (n_sources,).
        uncited: Whether the answer cites no source in range. Under `corrected` all shares are
            then 0; the upstream conventions give every source 1/n.
    """

    word: NDArray[np.float64]
    position: NDArray[np.float64]
    pawc: NDArray[np.float64]
    uncited: bool

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        """Yield word, position and PAWC, so that they can be unpacked."""
        return iter((self.word, self.position, self.pawc))


def visibility(answer: str, n_sources: int, convention: Convention = "corrected") -> Visibility:
    """Compute the visibility of every source in an answer.

    Args:
        answer: The engine's text with citations.
        n_sources: How many sources the engine saw.
        convention: `corrected` reads citations with `citations.parse_answer`; `geo` (from 1)
            and `autogeo` (from 0) find them as the upstream codes do. Sentences are split by
            this package in all three; to compare with NLTK's, give its sentences to
            `visibility_from_sentences`.

    Returns:
        Word, position and PAWC, each of shape (n_sources,).

    Raises:
        ValueError: Unknown convention, or n_sources below 1.
    """
    if convention != "corrected":
        return visibility_from_sentences(upstream_sentences(answer), n_sources, convention)
    return visibility_from_parsed(parse_answer(answer, n_sources), n_sources)


def upstream_sentences(answer: str) -> list[list[Sentence]]:
    """Return an answer's paragraphs of sentences, with tokens and citations as upstream has them.

    The sentences are this package's. To score one answer under both upstream conventions, split
    it once and give the result to `visibility_from_sentences` twice.
    """
    return [
        [(_UPSTREAM_TOKEN.findall(s), s, upstream_citations(s)) for s in sentences(block)]
        for block in answer.split("\n\n")
    ]


def visibility_from_parsed(answer: CitedAnswer, n_sources: int) -> Visibility:
    """Compute the `corrected` visibility of an answer that is already parsed."""
    flat = [  # only the words of what cites count
        (words(s.text) if s.citations else [], s.text, [c + 1 for c in s.citations])
        for s in answer.sentences
    ]
    return visibility_from_sentences([flat], n_sources)


def upstream_citations(sentence: str) -> list[int]:
    r"""Return the numbers cited in a sentence as both upstream codes find them.

    What they find is r"\[[^\w\s]*(\d+)[^\w\s]*\]", which takes quadratic time on brackets alone.
    """
    found: list[int] = []
    used = -1  # where the run after the last citation begins; it takes that up to its last bracket
    for marked in _MARKED.finditer(sentence):
        before, number, after = marked.groups()
        free = before.rpartition("]")[2] if marked.start() == used else before
        if "[" in free and "]" in after:
            found.append(int(number))
            used = marked.end()
    return found


def visibility_from_sentences(
    paragraphs: Sequence[Sequence[Sentence]], n_sources: int, convention: Convention = "corrected"
) -> Visibility:
    """Compute visibility from sentences that were split and tokenised elsewhere.

    Args:
        paragraphs: The upstream nesting: a list of paragraphs, each a list of
            (tokens, sentence, citations) with citations as the answer writes them.
        n_sources: How many sources the engine saw.
        convention: `geo` counts from 1, so that `[0]` falls on the last source; `autogeo`
            counts from 0; both give every source 1/n where a sum is 0 and are equal to the
            published code to the last bit. `corrected` counts from 1, counts a source once a
            sentence, ignores numbers out of range, gives 0 where nothing is cited, and counts
            each character of a script without spaces as a word.

    Returns:
        Word, position and PAWC, each of shape (n_sources,).

    Raises:
        ValueError: Unknown convention, or n_sources below 1.
    """
    if convention not in ("corrected", "geo", "autogeo"):
        raise ValueError(
            f"convention={convention!r} is unknown; choose from corrected, geo, autogeo"
        )
    if n_sources < 1:
        raise ValueError(f"n_sources={n_sources}: an answer needs at least one source")
    corrected = convention == "corrected"
    base = 0 if convention == "autogeo" else 1
    lowest = 0 if corrected else -1  # upstream, index -1 is Python's last source
    word, position, pawc = ([0.0] * n_sources for _ in range(3))
    uncited = True
    flat = [sentence for paragraph in paragraphs for sentence in paragraph]
    for i, (tokens, _, citations) in enumerate(flat):
        cited = [number - base for number in citations]
        if corrected:
            cited = [k for k in dict.fromkeys(cited) if 0 <= k < n_sources]
        if not cited:
            continue
        count = sum(len(t) > 2 or (corrected and is_unspaced(t)) for t in tokens)
        weight = math.exp(-1 * i / (len(flat) - 1)) if len(flat) > 1 else 1
        for k in cited:
            if lowest <= k < n_sources:
                uncited = False
                word[k] += count / len(cited)
                position[k] += weight / len(cited)
                pawc[k] += count * weight / len(cited)
    fallback = 0.0 if corrected else 1 / n_sources
    shares = [_shares(scores, fallback) for scores in (word, position, pawc)]
    return Visibility(shares[0], shares[1], shares[2], uncited)


def _shares(scores: list[float], fallback: float) -> NDArray[np.float64]:
    # Built-in sum and division, not numpy's: pairwise summation would differ in the last bit.
    total = sum(scores)
    return np.array([score / total if total else fallback for score in scores])
