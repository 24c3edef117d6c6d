"""What a rewrite does to the rest: the page's other key points, the other sources' points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Counter, Progress, samples_of
from geo_utils.fidelity import plain_sentences
from geo_utils.lexical import SUPPORT_THRESHOLD, bm25, coverage
from geo_utils.models.loops import gather_all
from geo_utils.roles.by_model import ModelJudge
from geo_utils.roles.judges import Judge, Verdict
from geo_utils.roles.methods import is_arm
from geo_utils.summary import PAIR, adjusted, contrasts
from geo_utils.text import content_words, sentences, words

OWN, OTHERS = "own", "other sources"
# Figures of the rest of the answer, with the names that figures and tables give them.
FIGURES = {
    "own_points": "the page's other key points",
    "other_points": "the other sources' points",
    "pawc": "visibility (PAWC)",
    "answer_words": "words in the answer",
}


def other_points(example: Example, per_page: int = 2) -> list[KeyPoint]:
    """Return points of the other sources: the sentences that are closest to the query.

    A corpus brings key points of the target alone. These stand in for the others': by BM25 the
    `per_page` sentences of each page, of 8 to 40 words, that the target page does not carry.
    """
    target = sentences(example.target)
    points: list[KeyPoint] = []
    for i, page in enumerate(example.sources):
        if i == example.target_id:
            continue
        split = [s for s in plain_sentences(page) if 8 <= len(words(s)) <= 40]
        scores = bm25(content_words(example.query), [content_words(s) for s in split])
        ranked = [split[j] for j in np.argsort(-scores, kind="stable")]
        own = (s for s in ranked if coverage(s, target).support() < SUPPORT_THRESHOLD)
        kept = [s for s, _ in zip(own, range(per_page), strict=False)]
        points += [KeyPoint(len(points) + j, s) for j, s in enumerate(kept, 1)]
    return points


def judge_points(
    samples: pd.DataFrame,
    examples: Iterable[Example],
    judge: Judge,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Ask the judge for every other point that an answer could carry.

    Args:
        samples: As `evaluate.evaluate` returns it; arms and samples without an answer are left
            out.
        examples: The corpus.
        judge: Gives the verdicts; a model that judges by verdicts gives all of an answer's in
            one call.
        progress: Called with (answers done, answers in all).

    Returns:
        One row per sample x point: the sample's pair and method, `kind` (the page's `own` or
        `other sources`), `number` and `point`, `verdict` and `supported` (NaN: an abstention,
        with its reason).
    """
    corpus = {example.query_id: example for example in examples}
    others = {query: other_points(example) for query, example in corpus.items()}
    each: Iterable[Any] = samples.itertuples(index=False)
    asked = [row for row in each if isinstance(row.answer, str) and not is_arm(row.method)]

    async def one(row: Any) -> list[dict[str, Any]]:
        known = {name: getattr(row, name) for name in (*PAIR, "method")}
        query, number = known["query_id"], known["key_point_number"]
        points = [(OWN, p) for p in corpus[query].key_points if p.number != number]
        points += [(OTHERS, p) for p in others[query]]
        listed = [point for _, point in points]
        verdicts = await _verdicts(judge, listed, row.answer) if points else []
        return [
            known
            | {"kind": kind, "number": point.number, "point": point.content}
            | {"verdict": v.label, "abstention": v.abstention}
            | {"supported": np.nan if v.label is None else float(v.label == "supported")}
            for (kind, point), v in zip(points, verdicts, strict=True)
        ]

    columns = [*PAIR, "method", "kind", "number", "point", "verdict", "abstention", "supported"]
    show = progress or Counter("answers judged on other points")
    return samples_of([one(row) for row in asked], show).reindex(columns=columns)


async def _verdicts(judge: Judge, points: Sequence[KeyPoint], answer: str) -> list[Verdict]:
    if isinstance(judge, ModelJudge) and not judge.soft:
        return await judge.judge_all(points, answer)
    return await gather_all(judge.judge(point.content, answer) for point in points)


def point_shares(samples: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Return the share of the other points that each sample's answer supports.

    Args:
        samples: As `evaluate.evaluate` returns it.
        points: As `judge_points` returns it.

    Returns:
        A row a sample: `own_points` and `other_points`, over the points with a verdict; NaN
        where there are none.
    """
    keys = [*PAIR, "method"]
    wide = points.pivot_table(index=keys, columns="kind", values="supported", aggfunc="mean")
    wide = wide.reindex(columns=[OWN, OTHERS]).set_axis(["own_points", "other_points"], axis=1)
    return samples[keys].join(wide, on=keys)[["own_points", "other_points"]]


def collateral(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare the rest of the answer between each method and the original page.

    Args:
        samples: With the columns of `point_shares`.
        seed: Seed of the resampling.

    Returns:
        Indexed by figure (a key of `FIGURES`) and method: as `summary.contrasts`, except that
        Holm's family is every method and figure of this table.
    """
    own = samples[~samples["method"].map(is_arm)]
    held = [figure for figure in FIGURES if own[figure].notna().any()]
    parts = {figure: contrasts(own, figure, "original", seed=seed) for figure in held}
    return adjusted(pd.concat(parts, names=["figure"]))
