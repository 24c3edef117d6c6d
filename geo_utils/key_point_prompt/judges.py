"""Do judges agree with each other, and with readers, on the same answers?"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from geo_utils.certificate import Labels, answer_sha, load_labels
from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress
from geo_utils.key_point_prompt.params import JudgeCheckOptions, has_logprobs
from geo_utils.key_point_prompt.study import Found, Setting, laid_out
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import EntailmentJudge, ModelJudge
from geo_utils.roles.judges import STRICT, Judge, LexicalJudge, Verdict
from geo_utils.runs import Run
from geo_utils.show.plots import interval_figure
from geo_utils.show.tables import count_range, intervals
from geo_utils.statistics import kappa
from geo_utils.summary import estimates, plain_numbers
from geo_utils.text import capitalised

_READERS = {"reader_a": "reader a", "reader_b": "reader b"}
_FIGURES = ["precision", "recall", "specificity"]


# A judge as this module asks it: with the example, for those that judge all of a page's points.
JudgesOne = Callable[[Example, KeyPoint, str], Awaitable[Verdict]]


def judges_of(judge: Judge, options: JudgeCheckOptions, gives_soft: bool) -> dict[str, JudgesOne]:
    """Return the judges that can be had, by name.

    Args:
        judge: The run's own; a `ModelJudge` can also judge in a batch, and softly.
        options: Name the judges that are wanted, if not all.
        gives_soft: Whether its server gives log-probabilities.
    """
    found: dict[str, JudgesOne] = {
        "lexical": partial(_by_one, LexicalJudge()),
        "lexical strict": partial(_by_one, STRICT),
    }
    if isinstance(judge, ModelJudge):
        found["verdict"] = partial(_by_one, ModelJudge(judge.caller, False, judge.prompts))
        found["batch"] = partial(_in_batch, judge)
        if gives_soft:
            found["soft"] = partial(_by_one, ModelJudge(judge.caller, True, judge.prompts))
    if isinstance(judge, EntailmentJudge):
        found["entailment"] = partial(_by_one, judge)
    wanted = set(options.judges or found)
    return {name: one for name, one in found.items() if name in wanted}


def judge_again(
    samples: pd.DataFrame,
    examples: Sequence[Example],
    judges: Mapping[str, JudgesOne],
    answers: int | None = None,
    seed: int = 0,
    first: Collection[str] = (),
) -> pd.DataFrame:
    """Let several judges judge the same answers.

    Args:
        samples: As `evaluate` returns them; those without an answer are left out, and an answer
            that several samples share is judged once.
        examples: The corpus.
        judges: As `judges_of` returns them.
        answers: How many answers, drawn from the seed; None for all.
        seed: Seed of the draw.
        first: Answers, by their `answer_sha`, that are drawn before others.

    Returns:
        One row an answer: `answer_sha`, `query_id`, `query`, `key_point`, `answer`, and a column
        `verdict: NAME` for each judge; None where it gave none.
    """
    had = samples.dropna(subset="answer").copy()
    named = zip(had["query_id"], had["key_point"], had["answer"], strict=True)
    had["answer_sha"] = [answer_sha(*texts) for texts in named]
    had = had.drop_duplicates("answer_sha").reset_index(drop=True)
    draw = had["answer_sha"].map(
        lambda name: (name not in first, hashlib.sha256(f"{seed}|{name}".encode()).hexdigest())
    )
    had = had.loc[draw.sort_values().index[:answers]].sort_index()
    by_id, rows = {example.query_id: example for example in examples}, list(had.itertuples())

    async def one(judge: JudgesOne, row: Any) -> str | None:
        example = by_id[row.query_id]
        point = next(p for p in example.key_points if p.number == row.key_point_number)
        return (await judge(example, point, row.answer)).label

    async def labels(judge: JudgesOne) -> list[str | None]:
        return await gather_all(one(judge, row) for row in rows)

    found = run_sync(gather_all(labels(judge) for judge in judges.values()))
    table = had[["answer_sha", "query_id", "query", "key_point", "answer"]].reset_index(drop=True)
    for name, given in zip(judges, found, strict=True):
        table[f"verdict: {name}"] = pd.Series(given, dtype=object)
    return table


def judges_in(table: pd.DataFrame) -> list[str]:
    """Return the judges of which a table has a verdict: no verdict at all is no judge."""
    given = table.filter(regex="^verdict: ").dropna(axis=1, how="all")
    return [str(name).removeprefix("verdict: ") for name in given]


async def _by_one(judge: Judge, example: Example, point: KeyPoint, answer: str) -> Verdict:
    return await judge.judge(point.content, answer)


async def _in_batch(judge: ModelJudge, example: Example, point: KeyPoint, answer: str) -> Verdict:
    """Return the verdict on one point out of one call on all points of its page."""
    verdicts = await judge.judge_all(example.key_points, answer)
    return verdicts[[p.number for p in example.key_points].index(point.number)]


def kappa_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far each two judges agree on `supported` or not.

    Args:
        table: As `judge_again` returns it, with or without readers.

    Returns:
        Indexed by pair: `kappa` (Cohen's) with `low` and `high` (jackknife over queries, Student's
        t), `agreement` (share of equal verdicts) with `_low` and `_high`, `n_answers` that both
        judged, `n_queries`, and `abstentions`: answers that only one or neither judged. Where
        both say one and the same throughout there is no kappa.
    """
    rows = []
    for first, second in itertools.combinations(judges_in(table), 2):
        both = table[[f"verdict: {first}", f"verdict: {second}"]]
        kept = both.notna().all(axis=1)
        said = (both[kept] == "supported").to_numpy()
        found = kappa(said, table.loc[kept, "query_id"].tolist())
        same = pd.Series(said[:, 0] == said[:, 1], index=table.index[kept], dtype=float)
        pair = table[["query_id"]].assign(agreement=same, judges=f"{first} – {second}")  # noqa: RUF001
        row = estimates(pair, "judges", ["agreement"], ["agreement"])
        ends = {"kappa": found.mean, "low": found.low, "high": found.high}
        rows.append(row.assign(**ends, abstentions=int((~kept).sum())))
    names = {"n_agreement": "n_answers", "queries_agreement": "n_queries"}
    return pd.concat(rows).rename(columns=names) if rows else pd.DataFrame()


def with_readers(table: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Add the two readers of hand labels as judges, `verdict: reader a` and `verdict: reader b`.

    Args:
        table: As `judge_again` returns it.
        labels: Of some of these answers.
    """
    read = labels.table.drop_duplicates("answer_sha").set_index("answer_sha")
    given = {f"verdict: {name}": table["answer_sha"].map(read[n]) for n, name in _READERS.items()}
    return table.assign(
        **{n: one.astype(object).where(one.notna(), None) for n, one in given.items()}
    )


def accuracy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return precision, recall and specificity of each judge against readers, on `supported`.

    Args:
        table: As `with_readers` returns it; answers on which the readers disagree do not count.

    Returns:
        Indexed by judge: each figure with `_low` and `_high` and the `n_` answers under it (those
        the judge calls supported, those the readers do, those the readers do not);
        `n_answers` and `abstentions`. Without labels there is no row.
    """
    readers = [f"verdict: {name}" for name in _READERS.values()]
    judges = [f"verdict: {name}" for name in judges_in(table) if name not in _READERS.values()]
    if not set(readers) <= set(table):
        return pd.DataFrame()
    said = table[readers] == "supported"
    agreed = table[table[readers].notna().all(axis=1) & (said.nunique(axis=1) == 1)]
    if agreed.empty or not judges:
        return pd.DataFrame()
    every = agreed.melt(["query_id", readers[0]], judges, "judge", "given")
    every["judge"] = every["judge"].str.removeprefix("verdict: ")
    true, called = every[readers[0]] == "supported", every["given"] == "supported"
    kept = every["given"].notna()
    every["precision"] = true.astype(float).where(kept & called)
    every["recall"] = called.astype(float).where(kept & true)
    every["specificity"] = (~called).astype(float).where(kept & ~true)
    answers = kept.groupby(every["judge"])
    return estimates(every, "judge", _FIGURES, _FIGURES).assign(
        n_answers=answers.sum(), abstentions=answers.size() - answers.sum()
    )


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Let every judge that can be had judge answers of the comparison; see `judge_again`."""
    params, options = setting.params, setting.options
    judges = judges_of(setting.roles[0].judge, options, has_logprobs(params.judge))
    labels = load_labels(params.labels)
    first = set(labels.table["answer_sha"]) if labels else ()
    given = options.answers, params.seed, first
    return judge_again(setting.samples, setting.examples, judges, *given)


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Found | None:
    """Add the readers of hand labels, and read off how far judges and readers agree.

    `judges.parquet` is written to the run folder. None where there are not two judges.
    """
    if labels := load_labels(setting.params.labels):
        asked = with_readers(asked, labels)
    kept, source = run.save_table(asked, "judges"), setting.roles[0].source()
    agreed, accuracy = kappa_table(kept), accuracy_table(kept)
    if agreed.empty:
        return None
    counts = ["n_answers", "n_queries", "abstentions"]
    shown = {
        "Cohen's kappa": intervals(agreed, "kappa", signed=True),
        "equal verdicts": intervals(agreed, "agreement"),
    }
    views = [laid_out(shown, agreed, counts, f"Source: {source}.")]
    if not accuracy.empty:
        shown = {name: intervals(accuracy, name) for name in _FIGURES}
        counts = [*(f"n_{name}" for name in _FIGURES), "abstentions"]
        views.append(laid_out(shown, accuracy, counts, f"Against hand labels. Source: {source}."))
    figures = {} if agreed["kappa"].isna().all() else {"agreement": kappa_figure(agreed, source)}
    numbers = agreed.rename(columns={"kappa": "mean"})[["mean", "low", "high", "n_queries"]]
    tables = {"samples": kept, "kappa": agreed, "accuracy": accuracy}
    n = f"{count_range(agreed['n_answers'])} answers of {count_range(agreed['n_queries'])} queries"
    findings = f"- {agreement_text(agreed)}; n = {n}.\n\nSource: {source}."
    return Found(findings, figures, views, tables, {"kappa": plain_numbers(numbers)})


def agreement_text(found: pd.DataFrame) -> str:
    """Say in one line how far judges agree.

    Args:
        found: As `kappa_table` returns it, with a row.
    """
    table = found.dropna(subset="kappa")
    if table.empty:
        return "The judges say one and the same throughout, which is no agreement beyond chance"
    worst = str(table["kappa"].idxmin())
    least, equal = table["kappa"][worst], f"{table['agreement'][worst]:.0%} equal verdicts"
    if len(table) > 1:
        return f"Judges agree least at kappa {least:z.2f} ({worst}: {equal})"
    return f"{capitalised(worst)}: kappa {least:z.2f}, {equal}"


def kappa_figure(kappa: pd.DataFrame, source: str) -> Figure:
    """Draw Cohen's kappa of each two judges."""
    table = kappa.dropna(subset="kappa")
    note = (
        f"n = {count_range(table['n_answers'])} answers of {count_range(table['n_queries'])} "
        f"queries, {table['abstentions'].sum()} abstentions in all; 95 % intervals by "
        f"jackknife over queries. Source: {source}"
    )
    rows = table[["kappa", "low", "high"]].rename(columns={"kappa": "mean"})
    limits = (min(0.0, float(table["low"].min())), 1.0)
    quantity = "Cohen's kappa on supported or not"
    return interval_figure(rows, agreement_text(kappa), quantity, note, limits=limits)
