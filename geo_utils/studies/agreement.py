"""Do judges agree with each other, and with a person, on the same answers?"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.inter_rater import cohens_kappa

from geo_utils.corpus import Example, KeyPoint
from geo_utils.judges import Judge, LexicalJudge, Verdict
from geo_utils.loops import gather_all, run_sync
from geo_utils.model_roles import ModelJudge
from geo_utils.statistics import cluster_mean, jackknife
from geo_utils.studies.options import JudgeCheckOptions


class JudgesOne(Protocol):
    """A judge as this module asks it: with the example, for those that judge a page's points."""

    async def __call__(self, example: Example, point: KeyPoint, answer: str) -> Verdict:
        """Return the verdict on one key point in one answer."""
        ...


def judges_of(judge: Judge, options: JudgeCheckOptions, gives_soft: bool) -> dict[str, JudgesOne]:
    """Return the judges that can be had, by name.

    Args:
        judge: The run's own; a `ModelJudge` can also judge in a batch, and softly.
        options: Name the judges that are wanted, if not all.
        gives_soft: Whether its server gives log-probabilities.
    """
    found: dict[str, JudgesOne] = {
        "lexical": partial(_by_one, LexicalJudge()),
        "lexical strict": partial(_by_one, LexicalJudge(0.7, 1)),
    }
    if isinstance(judge, ModelJudge):
        found["verdict"] = partial(_by_one, ModelJudge(judge.caller, False, judge.prompts))
        found["batch"] = partial(_in_batch, judge)
        if gives_soft:
            found["soft"] = partial(_by_one, ModelJudge(judge.caller, True, judge.prompts))
    wanted = set(options.judges or found)
    return {name: one for name, one in found.items() if name in wanted}


def judge_again(
    samples: pd.DataFrame,
    examples: Sequence[Example],
    judges: Mapping[str, JudgesOne],
    answers: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Let several judges judge the same answers.

    Args:
        samples: As `evaluate` returns them; those without an answer are left out, and an answer
            that several samples share is judged once.
        examples: The corpus.
        judges: As `judges_of` returns them.
        answers: How many answers, drawn from the seed; None for all.
        seed: Seed of the draw.

    Returns:
        One row an answer: `answer_id`, `query_id`, `query`, `key_point`, `answer`, and a column
        `verdict: NAME` for each judge; None where it gave none.
    """
    had = samples.dropna(subset="answer").copy()
    named = zip(had["query_id"], had["key_point"], had["answer"], strict=True)
    had["answer_id"] = [answer_id(*texts) for texts in named]
    had = had.drop_duplicates("answer_id")
    if answers is not None and answers < len(had):
        rank = [hashlib.sha256(f"{seed}|{name}".encode()).digest() for name in had["answer_id"]]
        had = had.iloc[np.sort(pd.Series(rank).argsort()[:answers])]
    by_id = {example.query_id: example for example in examples}

    rows = list(had.itertuples())

    async def labels(judge: JudgesOne) -> list[str | None]:
        async def one(row: Any) -> str | None:
            example = by_id[row.query_id]
            point = next(p for p in example.key_points if p.number == row.key_point_number)
            return (await judge(example, point, row.answer)).label

        return await gather_all(one(row) for row in rows)

    found = run_sync(gather_all(labels(judge) for judge in judges.values()))
    table = had[["answer_id", "query_id", "query", "key_point", "answer"]].reset_index(drop=True)
    for name, given in zip(judges, found, strict=True):
        table[f"verdict: {name}"] = pd.Series(given, dtype=object)
    return table


def answer_id(query_id: str, key_point: str, answer: str) -> str:
    """Return an id that an answer keeps from run to run, so that a hand label stays with it."""
    text = "\0".join((query_id, key_point, answer))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def kappa_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far each two judges agree on `supported` or not.

    Args:
        table: As `judge_again` returns it, with or without a column `verdict: person`.

    Returns:
        Indexed by pair: `kappa` (Cohen's) with `low` and `high` (jackknife over queries, Student's
        t), `agreement` (share of equal verdicts) with `_low` and `_high`, `n_answers` that both
        judged, `n_queries`, and `abstentions`: answers that only one or neither judged. Where
        both say one and the same throughout there is no kappa.
    """
    rows = {}
    for first, second in itertools.combinations(judges_in(table), 2):
        both = table[[f"verdict: {first}", f"verdict: {second}"]]
        kept = both.notna().all(axis=1)
        said = (both[kept] == "supported").to_numpy()
        queries = table.loc[kept, "query_id"].to_numpy()
        kappa, low, high = _kappa(said, queries)
        same = np.asarray(said[:, 0] == said[:, 1], float)
        equal = cluster_mean(same, queries.tolist(), bounded=True)
        rows[f"{first} – {second}"] = {  # noqa: RUF001
            "kappa": kappa, "low": low, "high": high,
            "agreement": equal.mean, "agreement_low": equal.low, "agreement_high": equal.high,
            "n_answers": equal.n_samples, "n_queries": equal.n_clusters,
            "abstentions": int((~kept).sum()),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("judges")


def _kappa(said: NDArray[np.bool_], queries: NDArray[Any]) -> tuple[float, float, float]:
    def statistic(kept: NDArray[np.bool_]) -> float:
        counts = np.bincount(2 * said[kept, 0] + said[kept, 1], minlength=4).reshape(2, 2)
        agreed_by_chance = (counts.sum(0) * counts.sum(1)).sum() >= counts.sum() ** 2
        if not counts.sum() or agreed_by_chance:
            return float("nan")
        return float(cohens_kappa(counts, return_results=False))

    found = jackknife(statistic, queries.tolist())
    low, high = np.clip([found.low, found.high], -1.0, 1.0).tolist()
    return found.mean, low, high


def judges_in(table: pd.DataFrame) -> list[str]:
    """Return the judges of which a table has a verdict: no verdict at all is no judge."""
    return [
        str(name).removeprefix("verdict: ")
        for name in table
        if str(name).startswith("verdict: ") and table[name].notna().any()
    ]


async def _by_one(judge: Judge, example: Example, point: KeyPoint, answer: str) -> Verdict:
    return await judge.judge(point.content, answer)


async def _in_batch(judge: ModelJudge, example: Example, point: KeyPoint, answer: str) -> Verdict:
    """Return the verdict on one point out of one call on all points of its page."""
    verdicts = await judge.judge_all(example.key_points, answer)
    return verdicts[[p.number for p in example.key_points].index(point.number)]
