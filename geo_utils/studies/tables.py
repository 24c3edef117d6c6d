"""What the studies found, in tables; every number with n and interval."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.studies.results import StudyTables
from geo_utils.tables import interval_column, label, over_queries, with_interval


def study_views(found: StudyTables, source: str) -> list[Styler]:
    """Return the tables of all studies that were run.

    Args:
        found: What they found.
        source: Where the figures come from, as `Roles.source` says it.
    """
    caption = f"Source: {source}."
    views = (
        headroom_view(found, caption), adoption_view(found, caption),
        transfer_view(found, caption), judges_view(found, caption),
        accuracy_view(found, caption), *power_views(found.power, caption),
    )  # fmt: skip
    return [view for view in views if view is not None]


def headroom_view(found: StudyTables, caption: str) -> Styler | None:
    """Lay out the headroom; None where it was not studied."""
    if found.headroom is None:
        return None
    rows = found.headroom
    table = pd.DataFrame({"estimate": _ends(rows), "n queries": rows["n_queries"]})
    table["n key points"], table["how"] = rows["n_units"], rows["how"]
    notes = found.notes["headroom"]
    chosen = found.samples["headroom"].query("stage == 'choose'")
    k, m = chosen["rewrite"].nunique(), chosen["repeat"].nunique()
    lost = f"{k} rewrites x {m} answers; {abstentions_text(found, 'headroom')}"
    return over_queries(table.rename_axis(None), [], f"{lost}; {notes}. {caption}")


def adoption_view(found: StudyTables, caption: str) -> Styler | None:
    """Lay out the adoption by number of adopters; None where it was not studied."""
    if found.adoption is None:
        return None
    rows = found.adoption
    table = pd.DataFrame(
        {
            "own point, adopters": interval_column(rows, "adopter", "adopter"),
            "own point, others": interval_column(rows, "other", "other"),
            "adopters' gain": interval_column(rows, "gain", "gain", signed=True),
            "all adopters land": interval_column(rows, "all_land", "all_land"),
            "n queries": rows["n_queries"],
            "n verdicts": rows["n_samples"],
            "abstentions": rows["abstentions"],
        }
    )
    repeats = found.samples["adoption"]["repeat"].nunique()
    return over_queries(
        table, [], f"{repeats} answers a number of adopters. Key points: {origins_text(found)}. "
        f"{caption}",
    )  # fmt: skip


def transfer_view(found: StudyTables, caption: str) -> Styler | None:
    """Lay out the lift under each engine; None where it was not studied."""
    if found.transfer is None:
        return None
    rows = found.transfer
    table = pd.DataFrame(
        {
            "rewriter": rows["rewriter"],
            "method": rows["method"].map(label),
            "engine": rows["engine"],
            "original": rows["original"].map(_share),
            "rewritten": rows["probability"].map(_share),
            "lift": _ends(rows, "lift", signed=True),
            "p (Holm)": rows["p_holm"].map(lambda p: "–" if pd.isna(p) else f"{p:.4f}"),  # noqa: RUF001
            "n queries": rows["n_queries"],
            "n pairs": rows["n_pairs"],
            "pairs dropped": rows["pairs_dropped"],
        }
    )
    repeats = found.samples["transfer"]["repeat"].nunique()
    note = f"{repeats} answers a page. {found.notes['transfer']}. {caption}"
    return over_queries(table, [], note).hide(axis="index")


def judges_view(found: StudyTables, caption: str) -> Styler | None:
    """Lay out how far judges agree; None where there are not two judges."""
    if found.kappa is None or found.kappa.empty:
        return None
    rows = found.kappa
    table = pd.DataFrame(
        {
            "Cohen's kappa": _ends(rows, "kappa", signed=True),
            "equal verdicts": interval_column(rows, "agreement", "agreement"),
            "n answers": rows["n_answers"],
            "n queries": rows["n_queries"],
            "abstentions": rows["abstentions"],
        }
    )
    return over_queries(table.rename_axis(None), [], caption)


def accuracy_view(found: StudyTables, caption: str) -> Styler | None:
    """Lay out precision and recall against a person; None without labels."""
    if found.accuracy is None or found.accuracy.empty:
        return None
    rows = found.accuracy
    table = pd.DataFrame(
        {name: interval_column(rows, name, name) for name in ("precision", "recall", "specificity")}
    )
    for name in ("precision", "recall", "specificity"):
        table[f"n {name}"] = rows[f"n_{name}"].astype(int)
    table["abstentions"] = rows["abstentions"].astype(int)
    return over_queries(table.rename_axis(None), [], f"Against hand labels. {caption}")


def power_views(table: pd.DataFrame | None, caption: str = "") -> list[Styler]:
    """Lay out how many queries each lift needs; nothing where it was not asked for."""
    if table is None:
        return []
    shown = pd.DataFrame(
        {
            "lift": table["lift"].map("{:.2f}".format),
            "repeats": table["repeats"],
            "queries": _counts(table),
            "answers a method": table["answers"].map("{:,.0f}".format),
        }
    )
    if table["calls"].notna().any():
        shown["calls"] = table["calls"].map("{:,.0f}".format)
        shown["US dollars"] = table["cost_usd"].map(
            lambda cost: "unknown" if pd.isna(cost) else f"{cost:,.2f}"
        )
    note = f"Paired t-test over queries, two-sided 5 %. Variance: {table['variance'].iloc[0]}."
    view = over_queries(shown, [], f"{note} {caption}".strip())
    return [view.hide(axis="index")]


def origins_text(found: StudyTables) -> str:
    """Say where the sources' key points come from."""
    names = {
        "target": "of the target, under study",
        "corpus": "from the corpus",
        "model": "read off the page by a model",
        "sentence": "a sentence of the page, word for word",
    }
    return "; ".join(f"{n:,} {names[name]}" for name, n in (found.origins or {}).items())


def abstentions_text(found: StudyTables, study: str) -> str:
    """Count the abstentions of a study."""
    samples = found.samples[study]
    return f"{int(samples['supported'].isna().sum())} abstentions of {len(samples):,} samples"


def _share(probability: float) -> str:
    return "–" if pd.isna(probability) else f"{probability:.3f}"  # noqa: RUF001


def _ends(rows: pd.DataFrame, mean: str = "mean", signed: bool = False) -> pd.Series:
    columns = zip(rows[mean], rows["low"], rows["high"], strict=True)
    return pd.Series([with_interval(*row, signed) for row in columns], index=rows.index)


def _counts(table: pd.DataFrame) -> list[str]:
    return [
        f"{n:,.0f}" if pd.isna(low) else f"{n:,.0f} [{low:,.0f}, {high:,.0f}]"
        for n, low, high in zip(table["queries"], table["low"], table["high"], strict=True)
    ]
