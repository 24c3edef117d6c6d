"""Words against words: is a rewritten page still the original, and nothing but the original?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geo_utils.lexical import idf
from geo_utils.text import content_words, numbers, sentences

# Share of a sentence's weight that supports it, and the sentences it may be gathered from; three,
# as a rewrite joins and splits sentences. `fidelity` quotes what they were chosen on.
THRESHOLD = 0.65
WINDOW = 3

# Dress, not content. Bullets and list numbers go too, since a rewrite may turn prose into a list.
_LINE_MARK = re.compile(r"(?m)^[ \t]*(?:(?:#+|[-+*>•]|\d{1,3}[.)])[ \t]+)+")
_EMPHASIS = re.compile(r"\*+|~~+|`+|(?<!\w)_+|_+(?!\w)")
# A reference mark is no figure: a page that loses its footnotes has changed no claim.
_REFERENCE = re.compile(r"\[\d{1,3}(?:\s*[,-]\s*\d{1,3})*\]")


@dataclass(frozen=True)
class Fidelity:
    """How far a rewritten page says what its original says, both as shares of content words.

    Attributes:
        kept: Share of the original that the page still carries, 0 to 1.
        grounded: Share of the page that the original supports, 0 to 1.
    """

    kept: float
    grounded: float

    @property
    def score(self) -> float:
        """The worse of the two, so that neither deleting nor inventing pays."""
        return min(self.kept, self.grounded)


def fidelity(original: str, page: str, also: Sequence[str] = ()) -> Fidelity:
    """Compare a rewritten page with its original, sentence by sentence, in both directions.

    A sentence is supported if one window of at most WINDOW consecutive sentences on the other
    side holds at least THRESHOLD of its IDF weight (`lexical.coverage`) and all of its numbers: a
    changed figure is a new claim. A sentence counts as many times as it has content words.

    Measured on the shipped sample (195 key points), mean kept / grounded, the key point in
    `also`: identical text 1.000 / 1.000, offline easy_to_understand 0.999 / 1.000 (lowest score
    0.98), key_point and paste_key_point 1.000 / 1.000, keyword_stuffing 1.000 / 0.918; another
    query's page 0.000 / 0.000 (highest 0.01), another page of the same query 0.008 / 0.007. These
    figures hardly move from 0.60 to 0.75, except keyword_stuffing's (0.936 to 0.804), as edits
    and foreign pages lie far from any threshold. One page paraphrased by hand settled it: worded
    closely it scores 1.00 / 1.00 up to 0.70 and 0.92 / 0.95 at 0.75 (in windows of one sentence
    0.92 / 0.81 at 0.65).

    Limits: freely worded, the same page gets 0.24 / 0.21, so this asks for the words, not the
    sense; a third of a supported sentence may be new words, and a "not" costs nothing.

    Args:
        original: The page before the rewrite. Markdown marks do not matter.
        page: The page after it.
        also: Further texts that the page may draw on, such as the key point the rewrite is made
            for. Each supports a sentence alone; none of them has to be kept.

    Returns:
        Shares of content words in supported sentences. An original without content words is
        kept (1.0), as nothing could be lost; a page without any is grounded (1.0), as it claims
        nothing, and scores 0 all the same because it keeps nothing.
    """
    before, after = _parse(original), _parse(page)
    kept = _supported(before, after)
    grounded = _supported(after, before)
    for text in also:
        grounded = grounded | _supported(after, _parse(text))
    return Fidelity(_share(before, kept), _share(after, grounded))


def new_claims(original: str, page: str, also: Sequence[str] = ()) -> list[str]:
    """Return the sentences of a rewritten page that nothing it may draw on supports.

    Args:
        original: The page before the rewrite.
        page: The page after it.
        also: Further texts, as in `fidelity`.
    """
    after = _parse(page)
    supported = _supported(after, _parse(original))
    for text in also:
        supported = supported | _supported(after, _parse(text))
    return [s for s, held in zip(plain_sentences(page), supported, strict=True) if not held]


@dataclass(frozen=True)
class _Text:
    """What one page brings to a comparison, so that a page is read once however often compared.

    Attributes:
        words: Distinct content stems of each sentence that has any.
        numbers: The numbers of each of these sentences.
        sizes: Content words of each, repeats counted, shape (sentences,).
        window_words: Union of `words` over each run of WINDOW sentences.
        window_numbers: Union of `numbers` over the same runs.
    """

    words: tuple[frozenset[str], ...]
    numbers: tuple[frozenset[str], ...]
    sizes: NDArray[np.int64]
    window_words: tuple[frozenset[str], ...]
    window_numbers: tuple[frozenset[str], ...]


def plain_sentences(page: str) -> list[str]:
    """Return a page's sentences that have content words, without Markdown and reference marks."""
    plain = _REFERENCE.sub("", _EMPHASIS.sub("", _LINE_MARK.sub("", page)))
    return [sentence for sentence in sentences(plain) if content_words(sentence)]


@lru_cache(maxsize=2048)
def _parse(page: str) -> _Text:
    split = plain_sentences(page)
    held = tuple(frozenset(content_words(sentence)) for sentence in split)
    figures = tuple(map(numbers, split))
    return _Text(
        held,
        figures,
        np.array([len(content_words(sentence)) for sentence in split], dtype=np.int64),
        _unions(held),
        _unions(figures),
    )


def _unions(sets: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """Join each run of WINDOW sets; shorter runs add nothing, as a run holds all its parts."""
    starts = range(max(len(sets) - WINDOW + 1, min(len(sets), 1)))
    return tuple(frozenset().union(*sets[start : start + WINDOW]) for start in starts)


def coverages(claims: _Text, text: _Text) -> NDArray[np.float64]:
    """Return the covered share of each claim's IDF weight, shape (claims, windows of the text).

    The largest value of a row is `lexical.coverage(claim, sentences, WINDOW).score`, got for all
    sentences of a page at once.
    """
    vocabulary = {word: i for i, word in enumerate(sorted(frozenset().union(*claims.words)))}
    weights = np.zeros((len(claims.words), len(vocabulary)))
    for row, held in zip(weights, claims.words, strict=True):
        for word in held:
            row[vocabulary[word]] = idf(word)
    inside = np.zeros((len(vocabulary), len(text.window_words)))
    for column, held in enumerate(text.window_words):
        inside[[vocabulary[word] for word in held if word in vocabulary], column] = 1.0
    shares: NDArray[np.float64] = (weights @ inside) / weights.sum(axis=1, keepdims=True)
    return shares


def _supported(claims: _Text, text: _Text) -> NDArray[np.bool_]:
    """Tell for each claim whether one window has enough of its words and all of its numbers."""
    found = np.zeros(len(claims.words), dtype=bool)
    if not claims.words or not text.words:
        return found
    # The margin keeps a share of exactly the threshold on its side of the rounding error.
    for claim, window in np.argwhere(coverages(claims, text) >= THRESHOLD - 1e-9):
        if claims.numbers[claim] <= text.window_numbers[window]:
            found[claim] = True
    return found


def _share(text: _Text, supported: NDArray[np.bool_]) -> float:
    total = int(text.sizes.sum())
    return int(text.sizes[supported].sum()) / total if total else 1.0
