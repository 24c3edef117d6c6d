"""Hand labels: a sheet out, a sheet in, and what they say of judges and of a lift."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_utils.statistics import (
    Estimate,
    PairedDifference,
    cluster_mean,
    interval_reach,
    jackknife,
)
from geo_utils.studies.agreement import judges_in

LABELS = ("supported", "omitted", "contradicted")
HUMAN = "person"
_SHEET = ["answer_id", "query", "key_point", "answer", "label"]


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
    rows: dict[str, dict[str, float]] = {}
    if f"verdict: {HUMAN}" in table:
        labelled = table.dropna(subset=f"verdict: {HUMAN}")
        true = labelled[f"verdict: {HUMAN}"] == "supported"
        for name in (judge for judge in judges_in(table) if judge != HUMAN):
            given = labelled[f"verdict: {name}"]
            kept, said = given.notna(), given == "supported"
            parts = {
                "precision": (kept & said, true),
                "recall": (kept & true, said),
                "specificity": (kept & ~true, ~said),
            }
            row: dict[str, float] = {}
            for figure, (among, right) in parts.items():
                queries = labelled.loc[among, "query_id"].tolist()
                found = cluster_mean(np.asarray(right[among], float), queries, bounded=True)
                row |= {figure: found.mean, f"{figure}_low": found.low}
                row |= {f"{figure}_high": found.high, f"n_{figure}": found.n_samples}
            rows[name] = row | {"n_answers": int(kept.sum()), "abstentions": int((~kept).sum())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("judge")


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
