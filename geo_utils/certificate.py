"""The judge's certificate: hand labels, its errors by arm, and probabilities corrected for them.

`geo labels export` draws answers of a run for two readers who see neither method nor verdict,
`geo labels import` joins what they wrote to a labels file; see `export_labels`, `import_labels`.

A correction takes the labels to be drawn at random and right; where the two readers disagree, each
counts half. The record's labels (`data/record/labels.jsonl`) are of notebook 03's answers, on one
key point per query; 02 on the record, which asks for all, is corrected with the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from geo_utils.files import resolve_path
from geo_utils.roles.methods import PREVIOUS, is_pooled
from geo_utils.statistics import Estimate, cluster_mean, interval_reach, kappa, wilson_interval
from geo_utils.summary import PAIR, estimates, plain_numbers, with_pooled

LABELS = ("supported", "omitted", "contradicted")
READERS = ("reader_a", "reader_b")
PREVIOUS_ARM = "previous methods"
LABELLED_ARMS = (
    *("original", PREVIOUS_ARM, "key_point", "paste_key_point"),
    *("policy/before", "policy/after"),
)
FEWEST = 20  # labels of an arm that a correction needs
_SAMPLE = [*PAIR, "method"]
_KEY = [*_SAMPLE, "answer_sha", "key_point"]
_HOW = (
    "Give every row one label: supported (the answer says the key point, in whatever words), "
    "omitted (it does not, or only a part), contradicted (it says the opposite, or another number "
    "or name). Read the answer and nothing else; rows are shuffled. Under `reader` say who reads: "
    "a person, or which language model."
)


def answer_sha(query_id: str, key_point: str, answer: str) -> str:
    """Return an id that an answer keeps from run to run, so that a label stays with it."""
    text = "\0".join((query_id, key_point, answer))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def arm_of(method: str) -> str:
    """Return the arm that a method's labels are drawn for: its own, or that of previous methods."""
    return PREVIOUS_ARM if method in PREVIOUS else method


@dataclass(frozen=True)
class Labels:
    """Hand labels of answers, as a labels file holds them.

    Attributes:
        about: The file's first line: `readers` (what each of the two is), the `run` whose answers
            they are, its `source` and the date of the import.
        table: A row an answer: `query_id`, `key_point_number`, `repeat`, `method`, `answer_sha`,
            `key_point`, and the label of `reader_a` and of `reader_b`.
    """

    about: Mapping[str, Any]
    table: pd.DataFrame

    def half(self, which: Literal["tune", "correct"]) -> Labels:
        """Return the labels of one half of the queries, by a hash of the query's id.

        A judge that was tuned on one half is corrected with the other.
        """
        hashed = self.table["query_id"].map(lambda q: hashlib.sha256(q.encode()).digest()[0] % 2)
        return replace(self, table=self.table[hashed == (which == "correct")])


def export_labels(
    samples: pd.DataFrame, about: Mapping[str, Any], each: int, seed: int
) -> tuple[str, str]:
    """Draw answers for two readers.

    Args:
        samples: As `evaluate.evaluate` returns them.
        about: What the labels file is to say of the run.
        each: Answers of each of `LABELLED_ARMS` that the samples have; those of previous methods
            are drawn at random among them.
        seed: Seed of the draw.

    Returns:
        The sheet, JSON lines that a reader fills a copy of, and its key, which says what each row
        is and which no reader sees.

    Raises:
        ValueError: No such arm is there, or one has fewer answers.
    """
    had = samples.dropna(subset=["answer", "supported"]).copy()
    had["answer_sha"] = _shas(had)
    named = had[_SAMPLE].astype(str).agg("|".join, axis=1)
    had["id"] = [hashlib.sha256(f"{seed}|{n}".encode()).hexdigest()[:12] for n in named]
    had = had.sort_values("id")  # a shuffle that nothing but the seed decides
    arms = had["method"].map(arm_of)
    drawn = had[arms.isin(LABELLED_ARMS) & (had.groupby(arms).cumcount() < each)]
    if drawn.empty:
        raise ValueError(f"no answers of {', '.join(LABELLED_ARMS)} to label")
    for arm, count in arms[drawn.index].value_counts().items():
        if count < each:
            raise ValueError(f"{arm!r} has {count} answers that were judged; --each {each} is more")
    sheet = drawn[["id", "query", "key_point", "answer"]].assign(label="")
    head = {"reader": "", "how": _HOW}
    return _lines(head, sheet), _lines({"key": dict(about)}, drawn[["id", *_KEY]])


def import_labels(key: Path, sheets: Sequence[Path], date: str) -> str:
    """Join the sheets of two readers to a labels file.

    Args:
        key: As `export_labels` made it.
        sheets: Copies of its sheet, filled by two readers.
        date: Of today.

    Returns:
        The labels file's JSON lines.

    Raises:
        ValueError: A file is no such sheet, or a row of it has no label, an unknown one, or stands
            twice; which line, and the way out.
    """
    if len(sheets) != len(READERS):
        raise ValueError(f"{len(sheets)} sheets: two readers are needed, each with a copy")
    head, rows = _read(key, "key")
    known = {row["id"]: row for _, row in rows}
    readers = {}
    for name, path in zip(READERS, sheets, strict=True):
        about, filled = _read(path, "reader")
        if not str(about["reader"]).strip():
            raise ValueError(
                f"{path}, line 1: reader={about['reader']!r}; say who read: a person, or which "
                "language model"
            )
        readers[name] = str(about["reader"]).strip()
        seen: dict[str, int] = {}
        for line, row in filled:
            place, item, label = f"{path}, line {line}", str(row.get("id")), row.get("label")
            if item not in known:
                raise ValueError(f"{place}: id={item!r} is not in {key}; fill a copy of its sheet")
            if item in seen:
                raise ValueError(f"{place}: id={item!r} stood in line {seen[item]}; keep one")
            seen[item] = line
            known[item][name] = _label(label, place)
        if lost := [item for item in known if item not in seen]:
            raise ValueError(
                f"{path}: {len(lost)} of {len(known)} rows are missing, first id={lost[0]!r}; "
                "a label that is left out cannot be corrected for"
            )
    about = {"readers": readers, **head["key"], "date": date}
    table = pd.DataFrame(known.values()).sort_values(_SAMPLE)
    return _lines({"labels": about}, table[[*_KEY, *READERS]])


def read_labels(path: Path) -> Labels:
    """Read a labels file.

    Raises:
        ValueError: It is none, or a row of it cannot be used; it says which line.
    """
    head, rows = _read(path, "labels")
    for line, row in rows:
        place = f"{path}, line {line}"
        if missing := [name for name in (*_KEY, *READERS) if row.get(name) is None]:
            raise ValueError(f"{place}: no {', '.join(missing)}; make it by `geo labels import`")
        for name in READERS:
            _label(row[name], f"{place}, {name}")
    table = pd.DataFrame([row for _, row in rows], columns=[*_KEY, *READERS])
    twice = table.duplicated(_SAMPLE)
    if twice.any():
        line = rows[int(np.flatnonzero(twice)[0])][0]
        raise ValueError(f"{path}, line {line}: this sample has a row already; keep one")
    return Labels(head["labels"], table)


def load_labels(file: str) -> Labels | None:
    """Return the hand labels that the parameter `labels` names; None for an empty one.

    Raises:
        ValueError: As `read_labels`.
    """
    return read_labels(resolve_path(file)) if file else None


def _label(label: Any, place: str) -> str:
    found = str(label or "").strip().lower()
    if found not in LABELS:
        why = f"label={label!r}; choose from {', '.join(LABELS)}" if found else "it has no label"
        raise ValueError(f"{place}: {why}")
    return found


def _lines(head: Mapping[str, Any], rows: pd.DataFrame) -> str:
    written = [head, *rows.to_dict("records")]
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in written)


def _read(path: Path, kind: str) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    """Return the first row of JSON lines, which has an entry `kind`, and the others by line."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: no object of names and values")
        rows.append((number, row))
    if not rows or kind not in rows[0][1]:
        made = "import" if kind == "labels" else "export"
        raise ValueError(f"{path}, line 1: no entry {kind!r}; give a file of `geo labels {made}`")
    return rows[0][1], rows[1:]


def _shas(samples: pd.DataFrame) -> list[str]:
    if "answer_sha" in samples:  # of answers that may not be shown
        return list(samples["answer_sha"])
    texts = zip(samples["query_id"], samples["key_point"], samples["answer"], strict=True)
    return [answer_sha(*each) for each in texts]


def with_labels(samples: pd.DataFrame, labels: Labels | None) -> pd.DataFrame:
    """Add what the readers say of each sample's answer.

    Args:
        samples: As `evaluate.evaluate` returns them.
        labels: Of some of these samples; one whose answer is another now labels nothing.

    Returns:
        The samples with `reader_a`, `reader_b` (None where nobody read) and `truth`: the share of
        the readers who call the point supported; NaN where nobody read or the judge abstained.
    """
    found = samples.assign(**dict.fromkeys(READERS), truth=np.nan)
    if labels is None or labels.table.empty:
        return found
    answered = samples["answer"].notna()
    sha = pd.Series(_shas(samples[answered]), index=samples.index[answered], dtype=object)
    keyed = samples[_SAMPLE].assign(answer_sha=sha)
    given = keyed.merge(labels.table, "left", [*_SAMPLE, "answer_sha"])[list(READERS)]
    found[list(READERS)] = (
        given.set_axis(samples.index).astype(object).where(given.notna().to_numpy(), None)
    )
    truth = (found[list(READERS)] == "supported").mean(axis=1)
    found["truth"] = truth.where(found["reader_a"].notna() & samples["supported"].notna())
    return found


def certificate(samples: pd.DataFrame) -> pd.DataFrame:
    """Hold the judge to the labels, arm by arm.

    Args:
        samples: As `with_labels` returns them.

    Returns:
        Indexed by arm, as `arm_of` names it, and `all arms`: `recall` and `specificity` (over
        labels on which the readers agree) each with `_low`, `_high`, its `n_` labels and
        `queries_`; `kappa` of judge and agreed label, and `readers`, that of the two readers, on
        supported or not, with `_low` and `_high`; `n_labels`, `n_queries` and `disagreements` of
        the readers. Empty without labels.
    """
    read = samples[samples["truth"].notna()]
    parts = {str(arm): part for arm, part in read.groupby(read["method"].map(arm_of), sort=False)}
    if len(parts) > 1:
        parts["all arms"] = read
    rows = {}
    for arm, part in parts.items():
        agreed = part[part["truth"].isin([0.0, 1.0])]
        true, said = agreed["truth"] == 1, agreed["supported"]
        rates = agreed.assign(arm=arm, recall=said.where(true), specificity=1 - said.where(~true))
        both = (part[list(READERS)] == "supported").to_numpy()
        judged = np.column_stack([true, said == 1])
        names = ["recall", "specificity"]
        row = estimates(rates, "arm", names, names).loc[arm].to_dict()
        for name, seen, of in (("kappa", judged, agreed), ("readers", both, part)):
            found = kappa(seen, of["query_id"].tolist())
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        row |= {"n_labels": len(part), "n_queries": part["query_id"].nunique()}
        rows[arm] = row | {"disagreements": len(part) - len(agreed)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def corrected_probabilities(samples: pd.DataFrame) -> pd.DataFrame:
    """Estimate each method's key-point probability, as judged and corrected with its own labels.

    The correction is prediction-powered inference (Angelopoulos and others, 2023): the mean of the
    verdicts on all samples, plus the mean of label minus verdict on the labelled ones. It takes
    the labels to be drawn at random among the arm's samples, and nothing of the judge: a useless
    one widens the interval. The interval is Wilson's at the sample size that the jackknife's error
    over queries implies, Student's t over the labelled queries; where all agree, or the corrected
    mean leaves 0 to 1, the labels alone are the estimate.

    Args:
        samples: As `with_labels` returns them.

    Returns:
        Indexed by method, and the previous ones as one (see `summary.with_pooled`): `raw` and
        `corrected`, each with `_low` and `_high`; `n_samples` (scored), `n_labels`,
        `label_queries`, and `note`: why there is no correction, else empty.
    """
    rows = {}
    for arm, part in _arms(samples).items():
        raw, found = cluster_mean(*_values(part, "supported"), bounded=True), _NONE
        if not (note := _problem(part)):
            mean, moves = _influence(part, corrected=True)
            error = _jackknife_error(moves)
            alone, wrote = cluster_mean(*_values(part, "truth"), bounded=True), part["asked"].mean()
            found = replace(
                alone, mean=wrote * alone.mean, low=wrote * alone.low, high=wrote * alone.high
            )
            if 0 < mean < 1 and error > 0:
                ends = wilson_interval(mean, error, interval_reach(found.n_clusters), len(part))
                found = Estimate(mean, *ends, found.n_clusters, found.n_samples)
        rows[arm] = _row(raw=raw, corrected=found) | _counts(part) | {"note": note}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def corrected_lifts(samples: pd.DataFrame, reference: str = "original") -> pd.DataFrame:
    """Estimate each method's lift over a reference, as judged and corrected.

    Each side is corrected with its own labels, as `corrected_probabilities` does; both sides hold
    the same queries, key points and repeats, and a query's share of the two errors is taken
    together, so that the interval is paired.

    Measured by `python tests/measure_certificate.py` on 1,000 seeds fixed beforehand, where recall
    is 0.6 on one side and 0.95 on the other, specificity 0.95 and 0.8, a true lift of 0.2, 60
    queries with 3 samples each and 80 labels an arm: the corrected lift's 95 % interval held the
    truth in 95.6 % (width 0.25), the raw one's in 2.0 %; the corrected probabilities' in 96.0 % and
    95.6 %. With no lift, 30 or 120 queries, labels of half of the queries, 20 labels, equal or few
    errors, or an original at 0.1 the lift's held it in 93.6 % to 96.4 %. To weigh the verdicts by
    the factor that is best on the labels (PPI++) makes intervals 6 % narrower, which then hold the
    truth in 92.5 % to 95.3 %: it is left out. Where three of ten replies of a
    policy hold no page, the lift's held it in 94.6 %, its probability's in 96.2 %.

    Args:
        samples: As `with_labels` returns them.
        reference: The method that differences are taken to.

    Returns:
        As `corrected_probabilities`, without the reference; `n_samples` are those whose pair the
        reference has as well.

    Raises:
        ValueError: The samples have no such reference.
    """
    arms, rows = _arms(samples), {}
    if reference not in arms:
        raise ValueError(f"reference={reference!r}: choose from {', '.join(arms)}")
    base = arms.pop(reference)
    for arm, part in arms.items():
        own, other = _with_pairs_of(part, base), _with_pairs_of(base, part)
        note = _problem(own) or ((why := _problem(other)) and f"{reference}: {why}") or ""
        found = _NONE if note else _lift(own, other, corrected=True)
        row = _row(raw=_lift(own, other, corrected=False), corrected=found)
        rows[arm] = row | _counts(own) | {"note": note}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


_NONE = Estimate(np.nan, np.nan, np.nan, 0, 0)


def _arms(samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the scored samples by method, and by pair those of the previous ones as one.

    Each has the `error` of its verdict, where it is known, and counts its `labels`. The `weight` of
    an error is that label's; where a policy wrote no page there is no answer to label and no error:
    such samples stand among the labelled ones as often as among all.
    """
    known = samples["truth"].notna()
    error = samples["truth"] - samples["supported"]
    found = with_pooled(samples.assign(error=error, labels=known.astype(float)))
    several = samples["method"][samples["method"].isin(PREVIOUS)].nunique()
    found.loc[found["method"].map(is_pooled), "labels"] *= several  # the mean of a pair's methods
    found["asked"] = found["verdict"].ne("no page")
    arms = {}
    for method, rows in found.groupby("method", sort=False):
        part = rows.dropna(subset="supported")
        rate = part["labels"].sum() / (part["asked"].sum() or 1)
        arms[str(method)] = part.assign(weight=part["labels"].where(part["asked"], rate))
    return arms


def _problem(part: pd.DataFrame) -> str:
    """Say why an arm's labels cannot correct it, or nothing."""
    count = _counts(part)["n_labels"]
    if count < FEWEST:
        return f"{count or 'no'} labels; a correction needs {FEWEST}"
    return "the labels are of one query" if _queries(part, True) < 2 else ""


def _influence(part: pd.DataFrame, corrected: bool) -> tuple[float, pd.Series]:
    """Return an arm's mean, and by query how far it moves when that query is left out."""
    weights = {"supported": pd.Series(1.0, part.index)}
    if corrected:
        weights["error"] = part["weight"]
    total, moves = 0.0, []
    for name, weight in weights.items():
        values = part[name].fillna(0.0)
        n = weight.sum() or np.nan
        mean = (weight * values).sum() / n
        rows = pd.DataFrame({"moved": weight * (values - mean), "weight": weight})
        each = rows.groupby(part["query_id"]).sum()
        moves.append(-each["moved"] / (n - each["weight"]))
        total += float(mean)
    return total, sum(moves[1:], start=moves[0])


def _lift(own: pd.DataFrame, other: pd.DataFrame, corrected: bool) -> Estimate:
    (mean, moves), (less, others) = (_influence(part, corrected) for part in (own, other))
    difference, error = mean - less, _jackknife_error(moves.sub(others, fill_value=0.0))
    told = min(_queries(part, corrected) for part in (own, other))
    half = interval_reach(told) * error if error > 0 else np.nan
    return Estimate(difference, difference - half, difference + half, told, len(own))


def _jackknife_error(moves: pd.Series) -> float:
    n = len(moves)
    return float(np.sqrt((n - 1) / n * ((moves - moves.mean()) ** 2).sum())) if n > 1 else 0.0


def _with_pairs_of(part: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    return part[pd.MultiIndex.from_frame(part[PAIR]).isin(pd.MultiIndex.from_frame(other[PAIR]))]


def _queries(part: pd.DataFrame, labelled: bool) -> int:
    kept = part["error" if labelled else "supported"].notna()
    return int(part.loc[kept, "query_id"].nunique())


def _values(part: pd.DataFrame, column: str) -> tuple[Any, list[Any]]:
    return part[column].to_numpy(float), part["query_id"].tolist()


def _row(**found: Estimate) -> dict[str, Any]:
    return {
        f"{name}{end}": value
        for name, one in found.items()
        for end, value in (("", one.mean), ("_low", one.low), ("_high", one.high))
    }


def _counts(part: pd.DataFrame) -> dict[str, int]:
    labels = round(part["labels"].sum())
    return {"n_samples": len(part), "n_labels": labels, "label_queries": _queries(part, True)}


@dataclass(frozen=True)
class Correction:
    """What hand labels say of a comparison.

    Attributes:
        labels: The labels.
        fit: How many of them are of answers of this comparison.
        probabilities: As `corrected_probabilities` returns them.
        lifts: Over the reference, as `corrected_lifts` returns them.
        judge: As `certificate` returns it.
        reference: The method that lifts are taken to.
    """

    labels: Labels
    fit: int
    probabilities: pd.DataFrame
    lifts: pd.DataFrame
    judge: pd.DataFrame
    reference: str


def correct(
    samples: pd.DataFrame, labels: Labels | None, reference: str = "original"
) -> Correction | None:
    """Hold a comparison to hand labels; None where there are none.

    Args:
        samples: As `evaluate.evaluate` returns them.
        labels: The labels.
        reference: The method that lifts are taken to.
    """
    if labels is None:
        return None
    read = with_labels(samples, labels)
    lifts = corrected_lifts(read, reference)
    tables = corrected_probabilities(read), lifts, certificate(read), reference
    return Correction(labels, int(read["reader_a"].notna().sum()), *tables)


def correction_headline(
    found: Correction | None,
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the corrected lifts that a manifest records, the raw ones beside them."""
    if found is None:
        return {}
    kept = found.lifts[found.lifts["note"] == ""].drop(columns=["note", "label_queries"])
    names = {"corrected": "mean", "corrected_low": "low", "corrected_high": "high"}
    return {f"corrected lift over {found.reference}": plain_numbers(kept.rename(columns=names))}
