"""Do judges agree with each other, and with a person, on the same answers?"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress
from geo_utils.files import resolve_path, write_atomic
from geo_utils.key_point_prompt.params import JudgeCheckOptions, has_logprobs
from geo_utils.key_point_prompt.study import Found, Setting, laid_out
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import ModelJudge
from geo_utils.roles.entailment import EntailmentJudge
from geo_utils.roles.judges import STRICT, Judge, LexicalJudge, Verdict
from geo_utils.runs import Run
from geo_utils.show.plots import interval_figure
from geo_utils.show.tables import count_range, intervals
from geo_utils.statistics import (
    Estimate,
    cluster_mean,
    interval_reach,
    jackknife,
    kappa,
    with_interval,
)
from geo_utils.summary import PAIR, estimates, plain_numbers

LABELS = ("supported", "omitted", "contradicted")
HUMAN = "person"
_SHEET = ["answer_id", "query", "key_point", "answer", "label"]
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
    had = had.drop_duplicates("answer_id").reset_index(drop=True)
    draw = had["answer_id"].map(lambda name: hashlib.sha256(f"{seed}|{name}".encode()).hexdigest())
    had = had.loc[draw.sort_values().index[:answers]].sort_index()
    by_id, rows = {example.query_id: example for example in examples}, list(had.itertuples())

    async def one(judge: JudgesOne, row: Any) -> str | None:
        example = by_id[row.query_id]
        point = next(p for p in example.key_points if p.number == row.key_point_number)
        return (await judge(example, point, row.answer)).label

    async def labels(judge: JudgesOne) -> list[str | None]:
        return await gather_all(one(judge, row) for row in rows)

    found = run_sync(gather_all(labels(judge) for judge in judges.values()))
    table = had[["answer_id", "query_id", "query", "key_point", "answer"]].reset_index(drop=True)
    for name, given in zip(judges, found, strict=True):
        table[f"verdict: {name}"] = pd.Series(given, dtype=object)
    return table


def answer_id(query_id: str, key_point: str, answer: str) -> str:
    """Return an id that an answer keeps from run to run, so that a hand label stays with it."""
    text = "\0".join((query_id, key_point, answer))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


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
        table: As `judge_again` returns it, with or without a column `verdict: person`.

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


def label_sheet(table: pd.DataFrame, earlier: Path) -> str:
    """Return the CSV that a person labels: answers in the order of their ids, methods unseen.

    Args:
        table: As `judge_again` returns it.
        earlier: Where a sheet may lie that a person has begun to fill; its labels, as they were
            written, stay with the answers of the same id.

    Raises:
        ValueError: The file there is no such sheet, so that its labels would be lost.
    """
    labels = pd.Series("", index=table.index)
    if earlier.exists():
        given = _read_sheet(earlier)
        given = given[given["label"].str.strip() != ""].drop_duplicates("answer_id")
        labels = table["answer_id"].map(given.set_index("answer_id")["label"]).fillna("")
    sheet = table.assign(label=labels).sort_values("answer_id")[_SHEET]
    return str(sheet.to_csv(index=False))


def with_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add a person's labels as one more judge, `verdict: person`.

    Args:
        table: As `judge_again` returns it.
        path: A filled `label_sheet`; an empty label is no label.

    Raises:
        ValueError: The file is no such sheet, names a label that there is not, contradicts
            itself, or labels none of these answers.
    """
    sheet = _read_sheet(path)
    given = sheet.assign(label=sheet["label"].str.strip().str.lower())
    given = given[given["label"] != ""].drop_duplicates(["answer_id", "label"])
    for number, label in given["label"].items():
        if label not in LABELS:
            raise ValueError(
                f"labels {path}, line {int(str(number)) + 2}: label={label!r}; choose from "
                f"{', '.join(LABELS)}, or leave it empty"
            )
    twice = given[given["answer_id"].duplicated()]["answer_id"]
    if len(twice):
        raise ValueError(f"labels {path}: answer {twice.iloc[0]} has two different labels")
    labels = table["answer_id"].map(given.set_index("answer_id")["label"])
    if labels.isna().all():
        raise ValueError(f"labels {path}: none of its {len(given)} labels is for these answers")
    return table.assign(**{f"verdict: {HUMAN}": labels.where(labels.notna(), None)})


def _read_sheet(path: Path) -> pd.DataFrame:
    try:
        sheet = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"labels {path}: cannot be read ({error})") from None
    if missing := [name for name in ("answer_id", "label") if name not in sheet]:
        raise ValueError(f"labels {path}: no column {', '.join(missing)}; fill the run's sheet")
    return sheet


def accuracy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return precision, recall and specificity of each judge against a person, on `supported`.

    Args:
        table: With the column `verdict: person`, as `with_labels` returns it.

    Returns:
        Indexed by judge: each figure with `_low` and `_high` and the `n_` answers under it (those
        the judge calls supported, those the person does, those the person does not);
        `n_answers` and `abstentions`. Without labels there is no row.
    """
    names = [name for name in judges_in(table) if name != HUMAN]
    if f"verdict: {HUMAN}" not in table or not names:
        return pd.DataFrame()
    person = f"verdict: {HUMAN}"
    every = table.dropna(subset=person).melt(
        ["query_id", person], [f"verdict: {name}" for name in names], "judge", "given"
    )
    every["judge"] = every["judge"].str.removeprefix("verdict: ")
    true, said = every[person] == "supported", every["given"] == "supported"
    kept = every["given"].notna()
    every["precision"] = true.astype(float).where(kept & said)
    every["recall"] = said.astype(float).where(kept & true)
    every["specificity"] = (~said).astype(float).where(kept & ~true)
    answers = kept.groupby(every["judge"])
    return estimates(every, "judge", _FIGURES, _FIGURES).assign(
        n_answers=answers.sum(), abstentions=answers.size() - answers.sum()
    )


def corrected_lift(
    observed: Estimate, table: pd.DataFrame, judge: str
) -> tuple[Estimate, Estimate] | str:
    """Correct a lift for a judge's errors, as hand labels show them (Rogan and Gladen, 1978).

    What is taken for granted: the judge errs at the same rates on answers to the original and to
    the rewritten page, and on answers that were not labelled. The interval is by the delta
    method, lift and error rates taken for independent. A judge without an error on these labels,
    or with the same rates whichever query is left out, has error rates without an interval: they
    are taken as they are.

    Args:
        observed: The lift in the judge's verdicts.
        table: With a person's labels, as `with_labels` returns it.
        judge: The judge's name in the table.

    Returns:
        The shrinkage and the corrected lift, or why there is no correction. The shrinkage is
        recall + specificity - 1: a true lift d is seen as d times this. For a judge that errs both
        ways at rate e, it is 1 - 2e.
    """
    person, given = table.get(f"verdict: {HUMAN}"), table.get(f"verdict: {judge}")
    if person is None:
        return (
            "there are no hand labels; fill `label_sheet.csv` of this run folder and pass it as "
            "`studies.judges.labels`, which gives precision and recall as well"
        )
    if given is None:
        return f"the run's own judge, `{judge}`, is not among `studies.judges.judges`"
    judged = table[person.notna() & given.notna()]
    true = (judged[f"verdict: {HUMAN}"] == "supported").to_numpy()
    said = (judged[f"verdict: {judge}"] == "supported").to_numpy()
    shrinkage = jackknife(partial(_youden, true, said), judged["query_id"].tolist())
    known = not np.isnan(shrinkage.low)
    if np.isnan(shrinkage.mean):
        return (
            f"of the {true.size} labelled answers that `{judge}` judged, "
            f"{int(true.sum())} are supported; it takes some that are and some that are not"
        )
    if shrinkage.mean <= 0 or shrinkage.low <= 0:
        return (
            f"`{judge}` is not clearly better than chance on these labels (recall + specificity "
            f"- 1 is {_written(shrinkage)}, {true.size} labels)"
        )
    if not known and shrinkage.mean < 1 and judged.groupby(true)["query_id"].nunique().min() < 2:
        return (
            f"the labels that are supported, or those that are not, are of one query alone, which "
            f"does not tell how sure the errors of `{judge}` are"
        )
    mean, n = observed.mean / shrinkage.mean, observed.n_clusters
    error_lift = _standard_error(observed)
    error_judge = _standard_error(shrinkage) if known else 0.0
    error = float(np.hypot(error_lift, mean * error_judge)) / shrinkage.mean
    half = interval_reach(min(n, shrinkage.n_clusters)) * error
    return shrinkage, Estimate(mean, mean - half, mean + half, n, observed.n_samples)


def _youden(true: NDArray[np.bool_], said: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    """Return recall + specificity - 1 of a judge; NaN where a person says one thing only."""
    yes, no = kept & true, kept & ~true
    if not yes.any() or not no.any():
        return float("nan")
    return float(said[yes].mean() - said[no].mean())


def _standard_error(found: Estimate) -> float:
    return (found.high - found.low) / 2 / interval_reach(found.n_clusters)


def _written(found: Estimate, signed: bool = False) -> str:
    return with_interval(found.mean, found.low, found.high, signed)


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Let every judge that can be had judge answers of the comparison; see `judge_again`."""
    params, options = setting.params, setting.options
    judges = judges_of(setting.roles[0].judge, options, has_logprobs(params.judge))
    return judge_again(setting.samples, setting.examples, judges, options.answers, params.seed)


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Found | None:
    """Write the sheet to label, add the labels there are, and read off how far judges agree.

    `label_sheet.csv` and `judges.parquet` are written to the run folder. The lift of the method
    under study is corrected for the errors of the run's own judge. None where there are not two
    judges.
    """
    params, labels, sheet = setting.params, setting.options.labels, run.folder / "label_sheet.csv"
    write_atomic(sheet, label_sheet(asked, sheet))
    if labels is not None:
        asked = with_labels(asked, resolve_path(labels))
    kept, source = run.save_table(asked, "judges"), setting.roles[0].source()
    agreed, accuracy = kappa_table(kept), accuracy_table(kept)
    if agreed.empty:
        return None
    wide = setting.samples.pivot(index=PAIR, columns="method", values="supported")
    lift = wide[params.method] - wide["original"]
    queries = lift.index.get_level_values("query_id").tolist()
    own = "soft" if params.sampling.judge_mode == "soft" else "verdict"
    names = {"offline": "lexical", "offline/strict": "lexical strict"}
    own = "entailment" if params.judge.startswith("entailment/") else names.get(params.judge, own)
    said = correction_text(cluster_mean(lift.to_numpy(float), queries), kept, own)
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
    findings = f"{said}\n\nSource: {source}."
    return Found(findings, figures, views, tables, {"kappa": plain_numbers(numbers)})


def correction_text(observed: Estimate, table: pd.DataFrame, judge: str) -> str:
    """Say what a lift is once the judge's errors are corrected, or why that cannot be said."""
    found = corrected_lift(observed, table, judge)
    if isinstance(found, str):
        return f"- No corrected lift: {found}."
    shrinkage, corrected = found
    return (
        f"- The judge sees {_written(shrinkage)} of a lift (recall + specificity - 1, "
        f"{shrinkage.n_samples} labels): {_written(observed, True)} observed, "
        f"{_written(corrected, True)} corrected for that."
    )


def kappa_figure(kappa: pd.DataFrame, source: str) -> Figure:
    """Draw Cohen's kappa of each two judges."""
    table = kappa.dropna(subset="kappa")
    worst = str(table["kappa"].idxmin())
    least, equal = table["kappa"][worst], f"{table['agreement'][worst]:.0%} equal verdicts"
    title = f"{worst.capitalize()}: kappa {least:.2f}, {equal}"
    if len(table) > 1:
        title = f"Judges agree least at kappa {least:.2f} ({worst}: {equal})"
    note = (
        f"n = {count_range(table['n_answers'])} answers of {count_range(table['n_queries'])} "
        f"queries, {table['abstentions'].sum()} abstentions in all; 95 % intervals by "
        f"jackknife over queries. {source}"
    )
    rows = table[["kappa", "low", "high"]].rename(columns={"kappa": "mean"})
    limits = (min(0.0, float(table["low"].min())), 1.0)
    return interval_figure(rows, title, "Cohen's kappa on supported or not", note, limits=limits)
