"""What the lexical judge can tell apart: `python tests/measure_judge.py --corpus sample`.

With `--labels FILE` it is held to hand labels: JSON lines with `query_id`, `method`, `key_point`,
`answer`, `reader_a` and `reader_b`; with `--record` to those of the record.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu

from geo_utils.certificate import load_labels, with_labels
from geo_utils.citations import strip_citations
from geo_utils.corpus import load_corpus
from geo_utils.lexical import SUPPORT_THRESHOLD, coverage
from geo_utils.notebooks import read_parameters
from geo_utils.roles.judges import LexicalJudge
from geo_utils.roles.make import make_roles
from geo_utils.statistics import kappa
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
                scores[kind].append(coverage(point.content, page).support())
            for page in pages[(i + 1) % len(pages)]:
                scores["other query"].append(coverage(point.content, page).support())
    return {kind: np.array(values) for kind, values in scores.items()}


def roc_auc(positive, negative):
    """Return the share of (positive, negative) pairs in the right order, ties counting half."""
    statistic = mannwhitneyu(positive, negative).statistic
    return float(statistic / (len(positive) * len(negative)))


def fitted_threshold(scores, supported):
    """Return the score at which a logistic regression of the labels gives one half."""

    def loss(line):
        logit = line[0] + line[1] * scores
        return np.logaddexp(0, np.where(supported, -logit, logit)).sum() + 0.01 * line[1] ** 2

    intercept, slope = minimize(loss, [-5.0, 10.0]).x
    return -intercept / slope


def recorded_rows():
    """Return the labelled answers of notebook 03 on the record, where the readers agree."""
    params = read_parameters("03", "recorded")[2]
    samples = make_roles(params).evaluate(load_corpus(**params.corpus_options), params.methods)
    read = with_labels(samples, load_labels(params.labels))
    return read[read["truth"].isin([0.0, 1.0])].to_dict("records")


def on_labels(rows):
    """Return lines that hold the judge to hand labels, as it is and with other thresholds.

    Half of the queries choose a threshold, the other half measure it, and the reverse: 200 draws.

    Args:
        rows: With `query_id`, `method`, `key_point`, `answer` and `reader_a`.
    """
    split = [sentences(strip_citations(row["answer"])) for row in rows]
    scores = np.array(
        [coverage(r["key_point"], s).support() for r, s in zip(rows, split, strict=True)]
    )
    true = np.array([row["reader_a"] == "supported" for row in rows])
    made = np.array(["key_point" in row["method"] for row in rows])
    queries = np.array([row["query_id"] for row in rows])
    judge = LexicalJudge()
    verdicts = [judge.verdict(r["key_point"], s).label for r, s in zip(rows, split, strict=True)]
    said = np.array([verdict == "supported" for verdict in verdicts])
    found = kappa(np.column_stack([true, said]), queries.tolist())
    lines = [f"{len(rows)} labels of {len(set(queries))} queries, {true.sum()} supported"]
    lines.append(f"kappa {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] at {judge.threshold}")
    for name, group in (("made for the point", made), ("not made for it", ~made)):
        yes, no = group & true, group & ~true
        lines.append(
            f"{name}: recall {said[yes].sum()} of {yes.sum()}, specificity "
            f"{(~said[no]).sum()} of {no.sum()}, AUC {roc_auc(scores[yes], scores[no]):.3f}"
        )
    lines.append(f"AUC {roc_auc(scores[true], scores[~true]):.3f}")
    names, rng, kappas = np.unique(queries), np.random.default_rng(0), []
    for _ in range(200):
        half = np.isin(queries, rng.choice(names, len(names) // 2, replace=False))
        held = np.empty(len(rows), dtype=bool)
        for chosen in (half, ~half):
            held[~chosen] = scores[~chosen] >= fitted_threshold(scores[chosen], true[chosen])
        kappas.append(kappa(np.column_stack([true, held]), queries.tolist()).mean)
    low, high = np.quantile(kappas, [0.05, 0.95])
    lines.append(
        f"threshold from the other half: mean kappa {np.mean(kappas):.3f}, 90 % of draws "
        f"{low:.3f} to {high:.3f}"
    )
    return lines


def main():
    """Measure the lexical judge on a corpus and print its ROC AUC and rates."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", default="sample")
    parser.add_argument("--path")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    rows = recorded_rows() if args.record else []
    if args.labels:
        rows = [json.loads(line) for line in args.labels.read_text("utf-8").splitlines()]
    if rows:
        print("\n".join(on_labels(rows)))  # noqa: T201
        return
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
    for t in (*np.arange(0.40, 0.81, 0.05), SUPPORT_THRESHOLD):
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
