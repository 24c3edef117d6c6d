"""The judge: does an answer support a key point, omit it, or contradict it?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from geo_utils.citations import strip_citations
from geo_utils.lexical import SPREAD, SUPPORT_THRESHOLD, WINDOW, coverage
from geo_utils.text import content_words, negated_words, numbers, sentences

_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
Label = Literal["supported", "omitted", "contradicted"]


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one key point in one answer.

    Attributes:
        label: None if no verdict could be had; then `abstention` says why.
        explanation: A short reason.
        score: Strength of support, 0 to 1, where the judge has one.
        abstention: Reason for a missing verdict.
    """

    label: Label | None
    explanation: str = ""
    score: float | None = None
    abstention: str | None = None


class Judge(Protocol):
    """Anything that gives a verdict on a key point and an answer; it never sees the page."""

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict on one key point's content in one answer's text."""


@lru_cache(maxsize=8192)
def answer_sentences(answer: str) -> tuple[str, ...]:
    """Return an answer's sentences without citation marks, split once for all its key points."""
    return tuple(sentences(strip_citations(answer)))


@dataclass(frozen=True)
class LexicalJudge:
    """Offline judge: IDF-weighted recall of the key point's content words.

    The answer supports the point if it holds at least `threshold` of the point's weight: the mean
    of the share in one place, at most `window` consecutive sentences, and the share in the whole
    answer. It contradicts the point if that place gives other numbers, or negates a word that the
    point does not (or the reverse).

    Held to the hand labels that its form and threshold were chosen on (`python
    tests/measure_judge.py --labels FILE`: 100 answers of a 1.5B model to 71 Researchy-GEO queries,
    two readers who agree on 99): kappa 0.81 [0.64, 0.97]; on pages made for the point recall 14 of
    16 and specificity 29 of 30, on others 6 of 9 and 44 of 45. Nothing else that was tried did
    clearly better there on labels held out: windows, IDF from more pages, rarer words within the
    answer weighing more, word pairs, common beginnings of words, thresholds by length.

    Held to labels that it was not tuned on (`--record`: 398 recorded answers of the same model to
    the shipped sample's 30 queries): kappa 0.87 [0.72, 1.00]; on pages made for the point recall 55
    of 60 and specificity 137 of 138, on others 37 of 50 and 149 of 150. What it misses says the
    point in words of its own: 11 of the 18 misses are one key point. The share in one place alone,
    from 0.50 on, is better there (kappa 0.92; 59 of 60 and 136 of 138, 46 of 50 and 144 of 150)
    and worse on the other labels (kappa 0.67, specificity 25 of 30 on pages made for the point,
    which share its words without saying it). That is about how far words go.

    Held to whole pages (`--corpus jsonl --path ROWS`: 853 key points of 120 Researchy-GEO
    queries, written by a model from the pages; 3,412 pairs with the other pages of the query,
    which may truly carry the point, 4,265 with another query's): supported by 87.6 % of own
    pages, 6.2 % of the same query's others, 0.02 % of another query's; ROC AUC 0.969 against the
    same query's, 1.000 against another's; 2.0 % of own pages are wrongly called contradicted.
    The shipped sample's key points were worded close to their pages, so its figures (AUC 1.000)
    are no evidence for the judge.

    Attributes:
        threshold: Share of the weight that counts as support.
        window: Longest place in sentences.
        spread: Weight of the words that the answer holds anywhere, beside those in one place.
    """

    threshold: float = SUPPORT_THRESHOLD
    window: int = WINDOW
    spread: float = SPREAD

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict; an abstention only on a point without content words."""
        return self.verdict(key_point, answer_sentences(answer))

    def verdict(self, key_point: str, answer_sentences: Sequence[str]) -> Verdict:
        """Return the verdict on an answer that is already split into sentences."""
        if not content_words(key_point):
            return Verdict(None, abstention="the key point has no content words to look for")
        found = coverage(key_point, answer_sentences, self.window)
        score = found.support(self.spread)
        reason = f"{found.score:.0%} of the point's weight in one place"
        if self.spread:
            reason += f", {found.anywhere:.0%} in the whole answer: {score:.0%}"
        reason += f" (needed {self.threshold:.0%})"
        if found.missing:
            reason += f"; missing there: {', '.join(found.missing[:6])}"
        if score < self.threshold:
            return Verdict("omitted", reason, score)
        conflict = _conflict(key_point, answer_sentences[found.start : found.end])
        if conflict:
            return Verdict("contradicted", f"{conflict}; {reason}", 0.0)
        return Verdict("supported", reason, score)


# Asks for nearly all of the point's words in one sentence.
STRICT = LexicalJudge(0.7, 1, 0.0)


def _conflict(key_point: str, window: Sequence[str]) -> str | None:
    """Say what in the window disagrees with the key point, if anything does."""
    wanted, given = numbers(key_point), frozenset().union(*map(numbers, window))
    quantities = [{n for n in found if not _YEAR.fullmatch(n)} for found in (wanted, given)]
    if all(quantities):  # the year that two claims share does not make their figures agree
        wanted, given = map(frozenset, quantities)
    if wanted and given and not wanted & given:
        return f"numbers {', '.join(sorted(given))} instead of {', '.join(sorted(wanted))}"
    # Negation is read in the one sentence that says most of the point; where both sides negate
    # something, words alone cannot tell whether they disagree.
    closest = max(window, key=lambda sentence: coverage(key_point, [sentence]).score)
    ours, theirs = negated_words(key_point), negated_words(closest)
    if bool(ours) == bool(theirs):
        return None
    flipped = (ours | theirs) & set(content_words(key_point)) & set(content_words(closest))
    return f"negation differs at {', '.join(sorted(flipped))}" if flipped else None
