"""Do judges agree with each other, and with a person, on the same answers?"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas.io.formats.style import Styler
from statsmodels.stats.inter_rater import cohens_kappa

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress
from geo_utils.files import resolve_path, write_atomic
from geo_utils.key_point_prompt.params import JudgeCheckOptions, has_logprobs
from geo_utils.key_point_prompt.study import Setting
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import ModelJudge
from geo_utils.roles.judges import Judge, LexicalJudge, Verdict
from geo_utils.runs import Run
from geo_utils.show.plots import interval_figure
from geo_utils.show.tables import count_range, intervals, over_queries
from geo_utils.statistics import (
    Estimate,
    PairedDifference,
    interval_reach,
    jackknife,
    paired_difference,
    with_interval,
)
from geo_utils.summary import PAIR, estimates, plain_numbers

LABELS = ("supported", "omitted", "contradicted")
HUMAN = "person"
_SHEET = ["answer_id", "query", "key_point", "answer", "label"]
_FIGURES = ["precision", "recall", "specificity"]


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
        found = jackknife(partial(_kappa, said), table.loc[kept, "query_id"].tolist())
        low, high = np.clip([found.low, found.high], -1.0, 1.0).tolist()
        same = pd.Series(said[:, 0] == said[:, 1], index=table.index[kept], dtype=float)
        pair = table[["query_id"]].assign(agreement=same, judges=f"{first} – {second}")  # noqa: RUF001
        row = estimates(pair, "judges", ["agreement"], ["agreement"])
        rows.append(
            row.assign(kappa=found.mean, low=low, high=high, abstentions=int((~kept).sum()))
        )
    names = {"n_agreement": "n_answers", "queries_agreement": "n_queries"}
    return pd.concat(rows).rename(columns=names) if rows else pd.DataFrame()


def _kappa(said: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    """Return Cohen's kappa of two columns of verdicts; NaN where they agree by chance alone."""
    counts = np.bincount(2 * said[kept, 0] + said[kept, 1], minlength=4).reshape(2, 2)
    agreed_by_chance = (counts.sum(0) * counts.sum(1)).sum() >= counts.sum() ** 2
    if not counts.sum() or agreed_by_chance:
        return float("nan")
    return float(cohens_kappa(counts, return_results=False))


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
    labelled = table.dropna(subset=f"verdict: {HUMAN}")
    true = labelled[f"verdict: {HUMAN}"] == "supported"
    parts = []
    for name in names:
        given = labelled[f"verdict: {name}"]
        kept, said = given.notna(), given == "supported"
        part = labelled[["query_id"]].assign(judge=name, kept=kept.astype(int))
        part["precision"] = true.astype(float).where(kept & said)
        part["recall"] = said.astype(float).where(kept & true)
        part["specificity"] = (~said).astype(float).where(kept & ~true)
        parts.append(part)
    every = pd.concat(parts)
    answers = every.groupby("judge")["kept"]
    return estimates(every, "judge", _FIGURES, _FIGURES).assign(
        n_answers=answers.sum(), abstentions=answers.size() - answers.sum()
    )


@dataclass(frozen=True)
class Correction:
    """A lift as an unerring judge would have seen it.

    Attributes:
        observed: The lift in the judge's verdicts.
        shrinkage: Recall + specificity - 1: a true lift d is seen as d times this. For a judge
            that errs both ways at rate e, it is 1 - 2e.
        corrected: Observed over shrinkage; its interval holds the uncertainty of both.
    """

    observed: Estimate
    shrinkage: Estimate
    corrected: Estimate


def corrected_lift(found: PairedDifference, table: pd.DataFrame, judge: str) -> Correction | str:
    """Correct a lift for a judge's errors, as hand labels show them (Rogan and Gladen, 1978).

    What is taken for granted: the judge errs at the same rates on answers to the original and to
    the rewritten page, and on answers that were not labelled. The interval is by the delta
    method, lift and error rates taken for independent. A judge without an error on these labels,
    or with the same rates whichever query is left out, has error rates without an interval: they
    are taken as they are.

    Args:
        found: The lift in the judge's verdicts.
        table: With a person's labels, as `with_labels` returns it.
        judge: The judge's name in the table.

    Returns:
        The correction, or why there is none.
    """
    person, given = table.get(f"verdict: {HUMAN}"), table.get(f"verdict: {judge}")
    if person is None:
        return (
            "there are no hand labels; fill `label_sheet.csv` of this run folder and pass it as "
            "`studies.judges.labels`, which gives precision and recall as well"
        )
    if given is None:
        return f"the run's own judge, `{judge}`, is not among `studies.judges.judges`"
    kept = (person.notna() & given.notna()).to_numpy()
    true = (person == "supported").to_numpy()[kept]
    said = (given == "supported").to_numpy()[kept]
    queries = table["query_id"].to_numpy()[kept]
    shrinkage = _youden(true, said, queries)
    if why := _no_correction(shrinkage, true, queries, judge):
        return why
    observed, n = found.estimate, found.estimate.n_clusters
    mean = observed.mean / shrinkage.mean
    error_lift = (observed.high - observed.low) / 2 / interval_reach(n)
    error_judge = 0.0
    if not np.isnan(shrinkage.low):
        error_judge = (shrinkage.high - shrinkage.low) / 2 / interval_reach(shrinkage.n_clusters)
    error = float(np.hypot(error_lift, mean * error_judge)) / shrinkage.mean
    half = interval_reach(min(n, shrinkage.n_clusters)) * error
    return Correction(
        observed, shrinkage, Estimate(mean, mean - half, mean + half, n, observed.n_samples)
    )


def _no_correction(
    shrinkage: Estimate, true: NDArray[np.bool_], queries: NDArray[Any], judge: str
) -> str | None:
    """Say why a judge's errors on these labels cannot correct a lift; None if they can."""
    if np.isnan(shrinkage.mean):
        return (
            f"of the {true.size} labelled answers that `{judge}` judged, "
            f"{int(true.sum())} are supported; it takes some that are and some that are not"
        )
    if shrinkage.mean <= 0 or shrinkage.low <= 0:
        known = not np.isnan(shrinkage.low)
        ends = f" [{shrinkage.low:.3f}, {shrinkage.high:.3f}]" if known else ""
        return (
            f"`{judge}` is not clearly better than chance on these labels (recall + specificity "
            f"- 1 is {shrinkage.mean:.3f}{ends}, {true.size} labels)"
        )
    fewest = min(len(set(queries[kind])) for kind in (true, ~true))
    if np.isnan(shrinkage.low) and shrinkage.mean < 1 and fewest < 2:
        return (
            f"the labels that are supported, or those that are not, are of one query alone, which "
            f"does not tell how sure the errors of `{judge}` are"
        )
    return None


def _youden(true: NDArray[np.bool_], said: NDArray[np.bool_], queries: NDArray[Any]) -> Estimate:
    """Estimate recall + specificity - 1 with a jackknife over queries."""

    def statistic(kept: NDArray[np.bool_]) -> float:
        yes, no = kept & true, kept & ~true
        if not yes.any() or not no.any():
            return float("nan")
        return float(said[yes].mean() - said[no].mean())

    return jackknife(statistic, queries.tolist())


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Let every judge that can be had judge answers of the comparison; see `study.Study`."""
    params, options = setting.params, setting.options
    judges = judges_of(setting.roles[0].judge, options, has_logprobs(params.judge))
    return judge_again(setting.samples, setting.examples, judges, options.answers, params.seed)


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Judges | None:
    """Write the sheet to label, add the labels there are, and read off how far judges agree.

    `label_sheet.csv` and `judges.parquet` are written to the run folder. The lift of the method
    under study is corrected for the errors of the run's own judge. None where there are not two
    judges.
    """
    params, labels, sheet = setting.params, setting.options.labels, run.folder / "label_sheet.csv"
    write_atomic(sheet, label_sheet(asked, sheet))
    if labels is not None:
        asked = with_labels(asked, resolve_path(labels))
    kept = run.save_table(asked, "judges")
    own = "soft" if params.sampling.judge_mode == "soft" else "verdict"
    wide = setting.samples.pivot(index=PAIR, columns="method", values="supported")
    lift = paired_difference(
        wide[params.method].to_numpy(float),
        wide["original"].to_numpy(float),
        wide.index.get_level_values("query_id").tolist(),
        params.seed,
    )
    correction = corrected_lift(
        lift, kept, "lexical" if params.judge.startswith("offline") else own
    )
    kappa = kappa_table(kept)
    return None if kappa.empty else Judges(kept, kappa, accuracy_table(kept), correction)


@dataclass(frozen=True)
class Judges:
    """How far judges agree, and what that does to the lift.

    Attributes:
        samples: As `judge_again`, with a person's labels where there are any.
        kappa: As `kappa_table`.
        accuracy: As `accuracy_table`.
        correction: As `corrected_lift`, of the method under study: or why there is none.
    """

    samples: pd.DataFrame
    kappa: pd.DataFrame
    accuracy: pd.DataFrame
    correction: Correction | str

    def figure(self, source: str) -> Figure | None:
        """Draw Cohen's kappa of each two judges; None where none can be had."""
        if self.kappa["kappa"].isna().all():
            return None
        table = self.kappa.dropna(subset="kappa")
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
        quantity = "Cohen's kappa on supported or not"
        return interval_figure(rows, title, quantity, note, limits=limits)

    def findings(self, source: str) -> str:
        """Say in Markdown how far judges agree, and what that does to the lift."""
        rows = self.kappa[["n_answers", "abstentions"]].assign(
            kappa=intervals(self.kappa, "kappa"), equal=intervals(self.kappa, "agreement")
        )
        lines = [
            f"- {name}: kappa {row['kappa']}, equal verdicts {row['equal']}, "
            f"n = {row['n_answers']} answers, {row['abstentions']} abstentions."
            for name, row in rows.iterrows()
        ]
        if isinstance(self.correction, str):
            lines.append(f"- No corrected lift: {self.correction}.")
        else:
            seen, true, shrink = (
                with_interval(e.mean, e.low, e.high, signed)
                for e, signed in (
                    (self.correction.observed, True),
                    (self.correction.corrected, True),
                    (self.correction.shrinkage, False),
                )
            )
            lines.append(
                f"- The judge sees {shrink} of a lift (recall + specificity - 1, "
                f"{self.correction.shrinkage.n_samples} labels): {seen} observed, {true} "
                "corrected for that."
            )
        return "\n".join([*lines, "", f"Source: {source}."])

    def views(self, caption: str) -> list[Styler]:
        """Lay out how far judges agree, and precision and recall against a person."""
        rows = self.kappa
        table = pd.DataFrame(
            {
                "Cohen's kappa": intervals(rows, "kappa", signed=True),
                "equal verdicts": intervals(rows, "agreement"),
                "n answers": rows["n_answers"],
                "n queries": rows["n_queries"],
                "abstentions": rows["abstentions"],
            }
        )
        views = [over_queries(table.rename_axis(None), [], caption)]
        if not self.accuracy.empty:
            table = pd.DataFrame({name: intervals(self.accuracy, name) for name in _FIGURES})
            for name in _FIGURES:
                table[f"n {name}"] = self.accuracy[f"n_{name}"]
            table["abstentions"] = self.accuracy["abstentions"]
            told = f"Against hand labels. {caption}"
            views.append(over_queries(table.rename_axis(None), [], told))
        return views

    def headline(self) -> dict[str, Any]:
        """Return the numbers that the manifest records."""
        table = self.kappa.rename(columns={"kappa": "mean"})
        return {"kappa": plain_numbers(table[["mean", "low", "high", "n_queries"]])}
