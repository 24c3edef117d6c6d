"""The judge: does an answer support a key point, omit it, or contradict it?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from geo_utils.citations import strip_citations
from geo_utils.lexical import SUPPORT_THRESHOLD, WINDOW, coverage
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
        ...


@dataclass(frozen=True)
class LexicalJudge:
    """Offline judge: IDF-weighted recall of the key point's content words.

    The answer supports the point if a window of at most `window` consecutive sentences holds at
    least `threshold` of the point's weight. It contradicts the point if that window holds it but
    gives other numbers, or negates a word that the point does not (or the reverse).

    Measured by `python tests/measure_judge.py --corpus jsonl --path ROWS`, which asks for each
    key point on its own page and on others, over 120 Researchy-GEO queries (853 key points written
    by a model from the pages; 3,412 pairs with the other pages of the query, 4,265 with another
    query's). ROC AUC of own against other pages of the same query, which may truly carry the
    point, 0.961; against another query's pages 0.999. The threshold 0.50 has the largest Youden
    index: held by 88.2 % of own pages, 8.7 % of the same query's others, 0.02 % of another
    query's; 2.5 % of own pages are wrongly called contradicted. The shipped sample's key points
    were worded close to their pages, so its figures (AUC 1.000) are no evidence for the judge.

    Attributes:
        threshold: Share of the weight that counts as support.
        window: Longest window in sentences.
    """

    threshold: float = SUPPORT_THRESHOLD
    window: int = WINDOW

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict; an abstention only on a point without content words."""
        return self.verdict(key_point, sentences(strip_citations(answer)))

    def verdict(self, key_point: str, answer_sentences: Sequence[str]) -> Verdict:
        """Return the verdict on an answer that is already split into sentences."""
        if not content_words(key_point):
            return Verdict(None, abstention="the key point has no content words to look for")
        found = coverage(key_point, answer_sentences, self.window)
        reason = (
            f"{found.score:.0%} of the point's weight in one place (needed {self.threshold:.0%})"
        )
        if found.missing:
            reason += f"; missing: {', '.join(found.missing[:6])}"
        if found.score < self.threshold:
            return Verdict("omitted", reason, found.score)
        conflict = _conflict(key_point, answer_sentences[found.start : found.end])
        if conflict:
            return Verdict("contradicted", f"{conflict}; {reason}", 0.0)
        return Verdict("supported", reason, found.score)


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
