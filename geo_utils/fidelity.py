"""Words against words: is a rewritten page still the original, and nothing but the original?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_utils.corpus import Example, KeyPointChoice, choose_key_points
from geo_utils.lexical import SUPPORT_THRESHOLD, coverage, idf
from geo_utils.lint import new_instructions
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.judges import Judge, Verdict
from geo_utils.roles.methods import is_arm
from geo_utils.text import content_words, numbers, sentences

# Share of a sentence's weight that supports it, and the sentences it may be gathered from; three,
# as a rewrite joins and splits sentences. `fidelity` quotes what they were chosen on.
THRESHOLD = 0.65
WINDOW = 3

# Dress, not content. Bullets and list numbers go too, since a rewrite may turn prose into a list.
_LINE_MARK = re.compile(r"(?m)^[ \t]*(?:(?:#+|[-+*>•]|\d{1,3}[.)])[ \t]+)+")
_EMPHASIS = re.compile(r"\*+|~~+|`+|(?<!\w)_+|(?<!_)_+(?!\w)")
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
    return Fidelity(_share(before, kept), _share(after, _grounded(page, original, also)))


def new_claims(original: str, page: str, also: Sequence[str] = ()) -> list[str]:
    """Return the sentences of a rewritten page that nothing it may draw on supports.

    Args:
        original: The page before the rewrite.
        page: The page after it.
        also: Further texts, as in `fidelity`.
    """
    grounded = _grounded(page, original, also)
    return [s for s, held in zip(plain_sentences(page), grounded, strict=True) if not held]


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
    said = [content_words(sentence) for sentence in split]
    held, figures = tuple(map(frozenset, said)), tuple(map(numbers, split))
    sizes = np.array([len(found) for found in said], dtype=np.int64)
    return _Text(held, figures, sizes, _unions(held), _unions(figures))


def _unions(sets: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """Join each run of WINDOW sets; shorter runs add nothing, as a run holds all its parts."""
    starts = range(max(len(sets) - WINDOW + 1, min(len(sets), 1)))
    return tuple(frozenset().union(*sets[start : start + WINDOW]) for start in starts)


def _supported(claims: _Text, text: _Text) -> NDArray[np.bool_]:
    """Tell for each claim whether one window has enough of its words and all of its numbers.

    Such a window holds one of the claim's words that are rarest in the text, as the others weigh
    too little together: only the windows of those are looked at, each different one once.
    """
    windows = list(dict.fromkeys(zip(text.window_words, text.window_numbers, strict=True)))
    holding: defaultdict[str, list[int]] = defaultdict(list)
    for place, (held, _) in enumerate(windows):
        for word in held:
            holding[word].append(place)

    @cache
    def supported(claim: frozenset[str], figures: frozenset[str]) -> bool:
        weights = {word: idf(word) for word in sorted(claim)}
        # The margin keeps a share of exactly the threshold on its side of the rounding error.
        left = sum(weights.values())
        needed = THRESHOLD * left - 1e-9
        seen: set[int] = set()
        for word in sorted(weights, key=lambda word: len(holding[word])):
            if left < needed:
                break
            left -= weights[word]
            for place in holding[word]:
                if place not in seen:
                    seen.add(place)
                    held, given = windows[place]
                    share = sum(w for part, w in weights.items() if part in held)
                    if share >= needed and figures <= given:
                        return True
        return False

    each = zip(claims.words, claims.numbers, strict=True)
    return np.array([supported(*claim) for claim in each], dtype=bool)


def _grounded(page: str, original: str, also: Sequence[str]) -> NDArray[np.bool_]:
    """Tell for each sentence of a page whether one of the texts it may draw on supports it."""
    held = [_supported(_parse(page), _parse(text)) for text in (original, *also)]
    return np.asarray(np.any(held, axis=0), dtype=bool)


def _share(text: _Text, supported: NDArray[np.bool_]) -> float:
    total = int(text.sizes.sum())
    return int(text.sizes[supported].sum()) / total if total else 1.0


CHECKS = ("fidelity", "new_claims", "instructions", "plants", "faithful")


def original_support(
    examples: Iterable[Example], judge: Judge, key_points: KeyPointChoice = "one", seed: int = 0
) -> dict[tuple[str, int], float]:
    """Ask the judge whether each original page supports its own key point.

    Returns:
        1.0, 0.0, or NaN for an abstention, by query and number of the key point.
    """
    pairs = choose_key_points(examples, key_points, seed)

    async def everything() -> list[Verdict]:
        return await gather_all(judge.judge(p.content, e.target) for e, p in pairs)

    verdicts = run_sync(everything())
    return {
        (e.query_id, p.number): np.nan if v.label is None else float(v.label == "supported")
        for (e, p), v in zip(pairs, verdicts, strict=True)
    }


def check_pages(samples: pd.DataFrame, examples: Iterable[Example], gate: float) -> pd.DataFrame:
    """Check each rewritten page against its original.

    Args:
        samples: As `evaluate.evaluate` returns it, with `original_supports` (NaN where nobody
            asked: the point then counts as the page's own).
        examples: The corpus.
        gate: Least fidelity.

    Returns:
        A row a sample: `fidelity` (the worse of kept and grounded, the key point being grounded
        unless the original page does not support it), `new_claims` (sentences that neither
        carries), `instructions` (new ones, by the lint), `plants` (1.0 if the page says more of
        the key point than its original, which does not support it), `faithful` (1.0 if fidelity
        is at least the gate, and it neither instructs nor plants) and `strict` (supported by an
        answer to a faithful page). NaN where there is no page.
    """
    corpus = {example.query_id: example for example in examples}

    def said(key_point: str, page: str) -> float:
        return coverage(key_point, sentences(page)).support()

    @cache
    def checked(query_id: str, key_point: str, page: str, own: bool) -> tuple[float, ...]:
        original, also = corpus[query_id].target, [key_point] if own else []
        score = fidelity(original, page, also).score
        orders = len(new_instructions(original, page))
        known = max(said(key_point, original), SUPPORT_THRESHOLD - 1e-9)
        plants = not own and said(key_point, page) > known
        faithful = score >= gate - 1e-9 and not orders and not plants
        claims = len(new_claims(original, page, also))
        return score, float(claims), float(orders), float(plants), float(faithful)

    each: Iterable[Any] = samples.itertuples(index=False)
    rows = [
        checked(row.query_id, row.key_point, row.page, bool(row.original_supports != 0))
        if isinstance(row.page, str) and not is_arm(row.method)
        else (np.nan,) * len(CHECKS)
        for row in each
    ]
    found = pd.DataFrame(rows, columns=list(CHECKS), index=samples.index)
    # A policy that wrote no page has failed, whatever the page would have been.
    found.loc[samples["verdict"].eq("no page"), "faithful"] = 0.0
    found["strict"] = samples["supported"] * found["faithful"]
    return found
