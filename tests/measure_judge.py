"""What the lexical judge can tell apart: `python tests/measure_judge.py --corpus sample`."""

import argparse

import numpy as np
from scipy.stats import mannwhitneyu

from geo_utils.corpus import load_corpus
from geo_utils.lexical import coverage
from geo_utils.roles.judges import LexicalJudge
from geo_utils.text import sentences


def support_scores(examples):
    """Return the lexical judge's coverage of every key point on three kinds of page.

    Args:
        examples: Examples with key points.

    Returns:
        `own`: on the point's own page; `same query`: on the other pages of its query, which may
        truly carry it; `other query`: on the next query's pages, which do not. One score each.
    """
    pages = [[sentences(page) for page in example.sources] for example in examples]
    scores = {"own": [], "same query": [], "other query": []}
    for i, example in enumerate(examples):
        for point in example.key_points:
            for j, page in enumerate(pages[i]):
                kind = "own" if j == example.target_id else "same query"
                scores[kind].append(coverage(point.content, page).score)
            for page in pages[(i + 1) % len(pages)]:
                scores["other query"].append(coverage(point.content, page).score)
    return {kind: np.array(values) for kind, values in scores.items()}


def roc_auc(positive, negative):
    """Return the share of (positive, negative) pairs in the right order, ties counting half."""
    statistic = mannwhitneyu(positive, negative).statistic
    return float(statistic / (len(positive) * len(negative)))


def main():
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
