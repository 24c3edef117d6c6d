"""The judge: does an answer support a key point, omit it, or contradict it?"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from geo_utils.citations import strip_citations
from geo_utils.corpus import Example, load_corpus
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

    Measured by `python -m geo_utils.judges --corpus jsonl --path ROWS`, which asks for each key
    point on its own page and on others, over 120 Researchy-GEO queries (853 key points written by
    a model from the pages; 3,412 pairs with the other pages of the query, 4,265 with another
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


def support_scores(examples: Sequence[Example]) -> dict[str, NDArray[np.float64]]:
    """Return the lexical judge's coverage of every key point on three kinds of page.

    Args:
        examples: Examples with key points.

    Returns:
        `own`: on the point's own page; `same query`: on the other pages of its query, which may
        truly carry it; `other query`: on the next query's pages, which do not. One score each.
    """
    pages = [[sentences(page) for page in example.sources] for example in examples]
    scores: dict[str, list[float]] = {"own": [], "same query": [], "other query": []}
    for i, example in enumerate(examples):
        for point in example.key_points:
            for j, page in enumerate(pages[i]):
                kind = "own" if j == example.target_id else "same query"
                scores[kind].append(coverage(point.content, page).score)
            for page in pages[(i + 1) % len(pages)]:
                scores["other query"].append(coverage(point.content, page).score)
    return {kind: np.array(values) for kind, values in scores.items()}


def roc_auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the share of (positive, negative) pairs in the right order, ties counting half."""
    from scipy.stats import mannwhitneyu

    statistic = mannwhitneyu(positive, negative).statistic
    return float(statistic / (len(positive) * len(negative)))


def main() -> None:
    """Measure the lexical judge on a corpus and print its ROC AUC and rates."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", default="sample")
    parser.add_argument("--path")
    args = parser.parse_args()
    corpus = load_corpus(args.corpus, path=args.path)
    scores = support_scores(corpus.examples)
    lines = [str(corpus)]
    for kind in ("same query", "other query"):
        lines.append(f"ROC AUC own page against {kind}: {roc_auc(scores['own'], scores[kind]):.3f}")
    best = max(
        np.arange(0.30, 0.91, 0.05),
        key=lambda t: (scores["own"] >= t).mean() - (scores["same query"] >= t).mean(),
    )
    lines.append(f"threshold with the largest Youden index against the same query: {best:.2f}")
    lines += [f"pairs, {kind}: {len(found)}" for kind, found in scores.items()]
    for t in np.arange(0.40, 0.81, 0.05):
        rates = "  ".join(f"{kind} {(s >= t - 1e-9).mean():.4f}" for kind, s in scores.items())
        lines.append(f"held at {t:.2f}: {rates}")
    judge = LexicalJudge()
    labels = [
        judge.verdict(p.content, sentences(e.target)).label for e in corpus for p in e.key_points
    ]
    lines.append(f"own page called contradicted: {labels.count('contradicted') / len(labels):.3f}")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
