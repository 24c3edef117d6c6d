"""Tables and findings in words, computed from a summary; every number with n and interval."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.corpus import Corpus, Example, KeyPoint
from geo_utils.methods import NO_SOURCES, REMOVED, is_policy, shuffled_method
from geo_utils.statistics import PairedDifference

_STYLE: list[Any] = [
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: .6em"},
    {"selector": "th", "props": "text-align: left"},
    {"selector": "td", "props": "text-align: right; font-variant-numeric: tabular-nums"},
]


_LABELS = {
    "key_point": "key-point rewrite",
    "policy/before": "policy before training",
    "policy/after": "trained policy",
    REMOVED: "target page removed",
    NO_SOURCES: "no sources at all",
}


def label(method: str) -> str:
    """Return a method's name as figures and tables write it."""
    if method in _LABELS:
        return _LABELS[method]
    if shuffled := shuffled_method(method):
        return f"placebo: {label(shuffled)}, shuffled"
    if is_policy(method):
        return f"policy {'/'.join(method.split('/')[-2:])}"
    return method.replace("_", " ")


def with_interval(
    mean: float, low: float, high: float, signed: bool = False, digits: int = 3
) -> str:
    """Write a number with its 95 % interval; a dash where there is none."""
    if pd.isna(mean):
        return "–"  # noqa: RUF001
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    if pd.isna(low):
        return form.format(mean)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def count_range(counts: pd.Series) -> str:
    """Write the count that all methods share, or the range of them."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def method_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out a summary, one row a method, best probability marked.

    Args:
        summary: As `evaluate.summarise` returns it.
        caption: What the figures rest on, as `Roles.caption` says it.
    """
    table = pd.DataFrame(
        {
            "key-point probability": interval_column(summary, "key_point_probability", "ci"),
            "difference to original": interval_column(
                summary, "difference", "difference", signed=True
            ),
            "p (Holm)": summary["p_holm"].map(lambda p: "–" if pd.isna(p) else f"{p:.4f}"),  # noqa: RUF001
            "n queries": summary["n_examples"],
            "n samples": summary["n_samples"],
            "abstentions": summary["abstentions"],
            "words in page": summary["page_words"].map("{:.0f}".format),
        }
    ).rename(index=label)
    best = summary["key_point_probability"].max()
    marked = [label(str(m)) for m in summary.index[summary["key_point_probability"] == best]]
    return over_queries(table.rename_axis(None), marked, caption)


def visibility_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out the target page's visibility by method, with intervals."""
    table = pd.DataFrame(
        {
            name: interval_column(summary, column, column)
            for name, column in (("word", "word"), ("position", "position"), ("PAWC", "pawc"))
        }
    )
    table["n answers"] = summary["n_answers"]
    marked = [label(str(summary["pawc"].idxmax()))] if summary["pawc"].notna().any() else []
    return over_queries(table.rename(index=label).rename_axis(None), marked, caption)


def page_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out length and lexical fidelity of the rewritten pages by method."""
    table = pd.DataFrame(
        {
            "words in page": summary["page_words"].map("{:.0f}".format),
            "of the original kept": interval_column(summary, "kept", "kept"),
            "of the page grounded in it": interval_column(summary, "grounded", "grounded"),
            "n samples": summary["n_samples"],
        }
    )
    return over_queries(table.rename(index=label).rename_axis(None), [], caption)


def verdict_table(samples: pd.DataFrame, caption: str) -> Styler:
    """Count the verdicts, abstentions and answers without citations by method."""
    verdicts = samples["verdict"].fillna("abstained")
    counts = pd.crosstab(samples["method"], verdicts).reindex(
        index=list(dict.fromkeys(samples["method"])),
        columns=["supported", "omitted", "contradicted", "no page", "abstained"],
        fill_value=0,
    )
    counts["uncited answers"] = samples["uncited"].eq(True).groupby(samples["method"]).sum()
    for name in ("citations_out_of_range", "citations_unparsed"):
        counts[name.replace("_", " ")] = samples.groupby("method")[name].sum().astype(int)
    counts["n samples"] = samples.groupby("method").size()
    return over_queries(
        counts.rename(index=label).rename_axis(index=None, columns=None), [], caption
    )


def abstention_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Count the reasons of abstentions by method."""
    lost = samples.dropna(subset="abstention")
    if lost.empty:
        return pd.DataFrame({"abstentions": ["none"]}, index=[""])
    return lost.groupby(["method", "abstention"]).size().rename("samples").reset_index()


def corpus_table(corpus: Corpus, chosen: int) -> pd.DataFrame:
    """Describe what was loaded and what was left out of it."""
    pages = [page for example in corpus for page in example.sources]
    points = sum(len(example.key_points) for example in corpus)
    rows: list[tuple[str, str]] = [
        ("queries", f"{len(corpus):,}"),
        ("pages", f"{len(pages):,}"),
        ("words a page, median", f"{pd.Series([len(p.split()) for p in pages]).median():,.0f}"),
        ("key points of the target pages", f"{points:,}"),
        ("queries without key points (skipped)", f"{sum(not e.key_points for e in corpus):,}"),
        ("key points under study", f"{chosen:,}"),
        *((what, f"{count:,}") for what, count in corpus.notes),
    ]
    if corpus.join_rate is not None:
        rows.append(("queries whose key points were joined", f"{corpus.join_rate:.1%}"))
    return pd.DataFrame(rows, columns=["corpus", corpus.name]).set_index("corpus")


def example_table(example: Example, chosen: KeyPoint) -> Styler:
    """List the key points of one example's target page, the one under study marked."""
    frame = pd.DataFrame(
        {"key point": [point.content for point in example.key_points]},
        index=[point.number for point in example.key_points],
    )
    return (
        frame.style.format(escape="html")
        .apply(lambda row: ["font-weight: bold" if row.name == chosen.number else ""], axis=1)
        .set_caption(f"Target page of: {html.escape(example.query)} The point under study is bold.")
        .set_table_styles([*_STYLE[:2], {"selector": "td", "props": "text-align: left"}])
    )


def findings(summary: pd.DataFrame, source: str) -> str:
    """Say in Markdown, a line a method, what it did to the key-point probability."""
    lines = [_finding(summary, str(method)) for method in summary.index]
    counted = (
        f"n = {count_range(summary['n_examples'])} queries, "
        f"{count_range(summary['n_samples'])} samples a method, "
        f"{int(summary['abstentions'].sum())} abstentions in all. Differences are paired; p by "
        f"permutation over queries, Holm over methods. Source: {source}."
    )
    return "\n".join([*lines, "", counted])


def training_findings(summary: pd.DataFrame, gain: PairedDifference, source: str) -> str:
    """Say in Markdown what training gained on held-out queries, and what it is worth.

    Args:
        summary: As `summary.summarise` returns it, the policies among its methods.
        gain: As `comparison.gain` returns it for the key point.
        source: Where the figures come from.
    """
    found = gain.estimate
    change = with_interval(found.mean, found.low, found.high, signed=True)
    clear = gain.p_value < 0.05 and not pd.isna(found.low)
    verb = "raised" if found.mean > 0 else "lowered"
    claim = f"**clearly {verb}**" if clear else "did **not clearly** change"
    after, prompt = summary.loc["policy/after"], summary.drop(index=["policy/before"])
    others = prompt["key_point_probability"].drop(index="policy/after")
    best, strongest = str(others.idxmax()), float(others.max())
    return "\n".join(
        [
            f"- Training {claim} the key-point probability on held-out queries: {change}, "
            f"p = {gain.p_value:.4f}, {found.n_clusters} queries, {found.n_samples} pairs, "
            f"{gain.n_dropped} pairs dropped for abstentions.",
            f"- The trained policy stands at {after['key_point_probability']:.3f}, "
            f"{after['key_point_probability'] - strongest:+.3f} beside the best other method "
            f"({label(best)}, {strongest:.3f}; not tested here).",
            f"- Its pages have {after['page_words']:.0f} words (original "
            f"{summary['page_words']['original']:.0f}) and keep {after['kept']:.1%} of the "
            f"original; {after['grounded']:.1%} of them is grounded in it or is the key point.",
            "",
            f"Source: {source}.",
        ]
    )


def _finding(summary: pd.DataFrame, method: str) -> str:
    row = summary.loc[method]
    name = label(method).capitalize()
    if pd.isna(row["key_point_probability"]):
        return f"- **{name}**: no sample could be scored."
    interval = "" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:.1%}, {row['ci_high']:.1%}]"
    found = f"- **{name}**: key point in {row['key_point_probability']:.1%} of answers{interval}"
    if method == "original" or pd.isna(row["difference"]):
        return found + "."
    low, high = row["difference_low"], row["difference_high"]
    direction = "raises" if row["difference"] > 0 else "lowers"
    change = f"clearly {direction}" if row["clear"] else "does not clearly change"
    dropped = f", {int(row['pairs_dropped'])} pairs dropped" if row["pairs_dropped"] else ""
    difference = with_interval(row["difference"], low, high, signed=True)
    return f"{found}; it **{change}** it: {difference}, p = {row['p_holm']:.4f}{dropped}."


def interval_column(summary: pd.DataFrame, mean: str, ends: str, signed: bool = False) -> pd.Series:
    """Write a column of estimates with its intervals, `<ends>_low` and `<ends>_high`."""
    rows = zip(summary[mean], summary[f"{ends}_low"], summary[f"{ends}_high"], strict=True)
    return pd.Series([with_interval(*row, signed) for row in rows], index=summary.index)


def styled(table: pd.DataFrame, marked: Sequence[object], caption: str) -> Styler:
    """Lay out a table, some rows bold, with what it rests on under it."""

    def bold(row: pd.Series) -> list[str]:
        return ["font-weight: bold" if row.name in marked else ""] * len(row)

    return table.style.apply(bold, axis=1).set_caption(caption).set_table_styles(_STYLE)


def over_queries(table: pd.DataFrame, marked: Sequence[object], caption: str) -> Styler:
    """Lay out a table whose intervals are over queries."""
    return styled(table, marked, f"95 % intervals over queries. {caption}")
