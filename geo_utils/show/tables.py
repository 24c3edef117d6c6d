"""Tables and findings in words, computed from a summary; every number with n and interval."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas.api.types import is_number, is_scalar
from pandas.io.formats.style import Styler

from geo_utils.certificate import FEWEST, Correction
from geo_utils.corpus import Corpus
from geo_utils.roles.methods import INVENTING, PREVIOUS, is_pooled, label, published_method
from geo_utils.statistics import with_interval
from geo_utils.text import capitalised, singular

DASH = "–"  # noqa: RUF001
_NO_NUMBER = {"nan", "+nan", "nan%", "+nan%"}
_STYLE: list[Any] = [
    {"selector": "", "props": "table-layout: auto"},  # JupyterLab makes all columns alike
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: .6em"},
    {"selector": "th", "props": "text-align: left"},
    {"selector": "thead th", "props": "text-align: right"},
    {"selector": "th.index_name", "props": "text-align: left"},
    {"selector": "td", "props": "text-align: right; font-variant-numeric: tabular-nums"},
]


def count_range(counts: pd.Series) -> str:
    """Write the count that all methods share, or the range of them."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def abstentions(found: pd.DataFrame) -> int:
    """Return how many there are in all; those of pooled methods are counted with the methods."""
    return int(found.loc[[not is_pooled(name) for name in found.index], "abstentions"].sum())


def method_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out a summary, one row a method, the one that leads marked.

    Args:
        summary: As `summary.summarise` returns it.
        caption: What the figures rest on, as `Roles.caption` says it.
    """
    table = pd.DataFrame(
        {
            "key-point probability": intervals(summary, "key_point_probability", "ci"),
            "difference to original": intervals(summary, "difference", signed=True),
            "p (Holm)": p_values(summary["p_holm"]),
            "n queries": summary["n_examples"],
            "n samples": summary["n_samples"],
            "abstentions": summary["abstentions"],
            "answers that cite nothing": intervals(summary, "uncited"),
            "words in page": summary["page_words"].map("{:.0f}".format),
        }
    ).rename(index=label)
    marked, bold = marked_leader(summary["leads"])
    told = " ".join([bold, *_about_methods(summary.index), caption])
    return over_queries(table.rename_axis(None), marked, told)


def marked_leader(leads: pd.Series) -> tuple[list[str], str]:
    """Return the row to print bold, and what a caption says of it; see `summary.leading`."""
    marked = [label(str(method)) for method in leads.index[leads]]
    told = "No row is bold: no method is clearly above the runner-up."
    if marked:
        told = "Bold: above the runner-up, the interval of the difference excludes 0."
    return marked, told


def query_table(found: pd.DataFrame, caption: str) -> Styler:
    """Lay out what is behind each method's mean: queries won, tied and lost, and the worst.

    Args:
        found: As `summary.by_query` returns it.
        caption: What the figures rest on.
    """
    shown = {name: found[name] for name in ("wins", "ties", "losses")}
    shown["wins minus losses"] = intervals(found, "net", signed=True)
    shown["lowest query"] = found["lowest_query"].fillna(DASH)
    for name, text in (("lowest", "its difference"), ("worst", "worst, other answers")):
        shown[text] = found[name].map("{:+z.3f}".format).replace("+nan", DASH)
    shown["n queries"] = found["n_queries"]
    if found["n_pages"].any():
        for name, text in (("page_mean", "mean of a page"), ("page_worst", "worst of a page")):
            shown[text] = intervals(found, name, signed=True)
        shown["n pages"] = found["n_pages"]
    told = (
        "Against the original page. The lowest difference is low by bad luck as well; worst, other "
        "answers: the lowest on some answers is chosen, its difference taken from the others"
    )
    table = pd.DataFrame(shown).rename(index=label).rename_axis(None)
    return over_queries(table, [], f"{told}. {caption}")


def query_text(found: pd.DataFrame, method: str) -> str:
    """Say on how many queries a method wins, and how it does on the worst; see `query_table`."""
    row: dict[Any, Any] = found.loc[method].to_dict()
    net, worst = (
        with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], signed=True)
        for name in ("net", "page_worst")
    )
    text = (
        f"- Query by query, {label(method)} does better than the original page on {row['wins']} of "
        f"{row['n_queries']} queries, the same on {row['ties']} and worse on {row['losses']}; wins "
        f"minus losses are {net} of the queries."
    )
    if row["losses"] and pd.notna(row["worst"]):
        text += (
            f" The lowest, {row['lowest_query']}, changes by {row['lowest']:+z.3f}, part of it bad "
            "luck: what is lowest on some answers changes on the others by "
            f"{row['worst']:+z.3f}."
        )
    if row["n_pages"] and pd.notna(row["page_worst"]):
        text += f" The worst query of a page changes by {worst}, {row['n_pages']} pages."
    return text


def correction_tables(found: Correction | None, caption: str) -> list[Styler]:
    """Lay out what is as judged and corrected by hand labels, and the judge's certificate.

    Args:
        found: As `certificate.correct` returns it; without labels there is no table.
        caption: What the figures rest on.
    """
    if found is None or found.judge.empty:
        return []
    own, judge = found.probabilities, found.judge
    shown = {"as judged": intervals(own, "raw"), "corrected": intervals(own, "corrected")}
    for name, kind in (("lift as judged", "raw"), ("lift corrected", "corrected")):
        lifts = intervals(found.lifts, kind, signed=True)
        shown[name] = lifts.reindex(own.index, fill_value=DASH)
    shown |= {"n samples": own["n_samples"], "n labels": own["n_labels"]}
    held = {
        "readers' kappa": intervals(judge, "readers"),
        "judge's kappa": intervals(judge, "kappa"),
        "recall": intervals(judge, "recall"),
        "n supported": judge["n_recall"].astype(int),
        "specificity": intervals(judge, "specificity"),
        "n other": judge["n_specificity"].astype(int),
        "readers disagree": judge["disagreements"],
        "n queries": judge["n_queries"],
    }
    fit = f"{found.fit} of {len(found.labels.table)} hand labels are of answers of this run."
    few = f"fewer than {FEWEST} labels correct nothing"
    parts = [
        (shown, f"Key-point probability, and lift over {_base(found)}, paired; {few}."),
        (held, "The judge against the readers where they agree, on supported or not."),
    ]
    return [
        over_queries(
            pd.DataFrame(rows).rename(index=label).rename_axis(None), [], f"{told} {fit} {caption}"
        )
        for rows, told in parts
    ]


def _base(found: Correction) -> str:
    return "the original page" if found.reference == "original" else label(found.reference)


def correction_findings(found: Correction | None) -> str:
    """Say in Markdown how far the judge is right, and what is left of the lifts corrected for it.

    Args:
        found: As `certificate.correct` returns it.
    """
    if found is None:
        return (
            "No hand labels: every probability stays as the judge saw it, with its errors. `geo "
            "labels export` draws answers of this run for two readers, `geo labels import` joins "
            "what they write to a file, and the parameter `labels` names it."
        )
    total, about = len(found.labels.table), found.labels.about
    if found.judge.empty:
        run = about.get("run", "another run")
        return f"None of the {total} hand labels, of {run}, is of an answer of this run."
    lifts = found.lifts[found.lifts["note"] == ""]
    own = found.probabilities.loc[lifts.index]
    rows = zip(
        map(label, own.index),
        *(intervals(own, kind) for kind in ("raw", "corrected")),
        *(intervals(lifts, kind, signed=True) for kind in ("raw", "corrected")),
        own["n_labels"],
        strict=True,
    )
    lines = [
        f"- **{capitalised(name)}**: {raw} as judged, {corrected} corrected; over {_base(found)} "
        f"{lift} as judged, **{left} corrected** (n = {n} labels)."
        for name, raw, corrected, lift, left, n in rows
    ]
    every = found.judge.tail(1)  # all arms, or the one that there is
    recall, specificity, kappa, readers = (
        intervals(every, name).item() for name in ("recall", "specificity", "kappa", "readers")
    )
    told = (
        f"{found.fit} of {total} hand labels are of answers of this run. Of what both readers call "
        f"supported the judge finds {recall}, n = {every['n_recall'].item():.0f}; of the rest it "
        f"refuses {specificity}, n = {every['n_specificity'].item():.0f}. Its kappa with them is "
        f"{kappa}, theirs {readers}. Who read: {'; '.join(about.get('readers', {}).values())}. "
        f"A method with fewer than {FEWEST} labels stays as judged."
    )
    return "\n".join([*lines, "", told])


def visibility_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out the target page's visibility by method, with intervals."""
    names = {"word": "word", "position": "position", "pawc": "PAWC"}
    table = pd.DataFrame({name: intervals(summary, column) for column, name in names.items()})
    table["n answers"] = summary["n_answers"]
    marked, bold = marked_leader(summary["pawc_leads"])
    return over_queries(table.rename(index=label).rename_axis(None), marked, f"{bold} {caption}")


def page_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Lay out length and fidelity of the rewritten pages by method, and how many are unchanged."""
    table = pd.DataFrame(
        {
            "words in page": summary["page_words"].map("{:.0f}".format),
            "of the original kept": intervals(summary, "kept"),
            "of the page grounded in it": intervals(summary, "grounded"),
            "pages left unchanged": summary["unchanged"].map("{:.0%}".format),
            "n samples": summary["n_samples"],
        }
    )
    return over_queries(table.rename(index=label).rename_axis(None), [], caption)


def verdict_table(samples: pd.DataFrame, caption: str) -> Styler:
    """Count verdicts, abstentions and answers without citations by method, and what copies prompts.

    Pieces of its prompt that a rewriter's reply repeats are taken out of the page. An answer that
    copies the engine's prompt is one that small models give; it stays, as a reader would get it.
    """
    verdicts = samples["verdict"].fillna("abstained")
    counts = pd.crosstab(samples["method"], verdicts).reindex(
        index=list(dict.fromkeys(samples["method"])),
        columns=["supported", "omitted", "contradicted", "no page", "abstained"],
        fill_value=0,
    )
    counts["uncited answers"] = samples["uncited"].eq(True).groupby(samples["method"]).sum()
    for name in ("citations_out_of_range", "citations_unparsed"):
        counts[name.replace("_", " ")] = samples.groupby("method")[name].sum().astype(int)
    echoed = samples["echoes"].gt(0).astype(float).where(samples["echoes"].notna())
    for name, each in (
        ("answers that copy the prompt", samples["prompt_copied"].astype(float)),
        ("replies with echoes removed", echoed),
    ):
        shares = each.groupby(samples["method"]).mean()
        counts[name] = shares.map("{:.0%}".format, na_action="ignore")
    counts["n samples"] = samples.groupby("method").size()
    return styled(
        counts.fillna(DASH).rename(index=label).rename_axis(index=None, columns=None), [], caption
    )


def abstention_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Count the abstentions of a kind by method, with an example of what was said."""
    lost = samples.dropna(subset="abstention")
    if lost.empty:
        return pd.DataFrame({"abstentions": ["none"]}, index=[""])
    reasons = lost["abstention"].str.split().str.join(" ")
    parts = reasons.str.extract(r"^(?P<abstention>(?:\w+: )?[^:]+)(?:: )?(?P<example>.*)$")
    found = parts.assign(method=lost["method"]).groupby(["method", "abstention"], sort=False)
    table = found.agg(samples=("example", "size"), example=("example", "first"))
    table = table.assign(example=table["example"].str.slice(0, 100)).reset_index("abstention")
    return table.rename(index=label).rename_axis(None)


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
    return pd.DataFrame({f"corpus {corpus.name}": dict(rows)})


def answer_text(
    summary: pd.DataFrame,
    about: str,
    rows: Sequence[str],
    corrected: Correction | None,
    source: str,
) -> str:
    """Answer in one Markdown paragraph whether a method puts the key point into more answers.

    Args:
        summary: As `summary.summarise` returns it.
        about: The method that is asked about.
        rows: Further methods to name beside it.
        corrected: As `certificate.correct` returns it.
        source: Where the figures come from.
    """
    shares = intervals(summary, "key_point_probability", "ci")
    lifts = intervals(summary, "difference", signed=True)
    told = []
    for method in dict.fromkeys([about, *rows]):
        row, name = summary.loc[method], label(method)
        if method == "original":
            continue
        if pd.isna(row["difference"]):
            told.append(f"With {name} no pair could be scored.")
            continue
        short, verdict = "is not shown to help", "not clearly different"
        if row["clear"]:
            short, verdict = ("helps", "more") if row["difference"] > 0 else ("harms", "fewer")
            verdict = f"clearly {verdict}"
        change = f"{verdict}: {lifts[method]}, p = {row['p_holm']:.4f}"
        if method == about:
            told.append(
                f"**{capitalised(name)} {short}.** With it the key point is in "
                f"**{shares[method]}** of the answers, with the original page in "
                f"{shares['original']}; on the pairs that both have, **{change}**."
            )
        else:
            told.append(f"With {name} it is in {shares[method]}, {change}.")
    if corrected is not None and len(corrected.lifts):
        own = intervals(corrected.lifts, "corrected", signed=True)[corrected.lifts["note"] == ""]
        named = [f"{label(str(name))} {own[name]}" for name in own.index if name in (about, *rows)]
        if named:
            readers = " and ".join(corrected.labels.about["readers"].values())
            told.append(
                f"Corrected for the judge's errors by labels ({readers}), the "
                f"lifts are: {', '.join(named)}; these intervals stand alone, without Holm."
            )
    told += _silent(summary)
    told.append(
        f"n = {count_range(summary['n_examples'])} queries, {count_range(summary['n_samples'])} "
        f"answers a method, {abstentions(summary)} abstentions in all; differences to the original "
        "page are paired, with 95 % intervals over queries, p by permutation over queries, Holm "
        f"over all methods; clearly is p below 0.05. Source: {source}."
    )
    return " ".join(told)


def rival_findings(found: pd.DataFrame, method: str) -> str:
    """Say in Markdown, a line a rival, whether a method beats what it has to beat.

    Args:
        found: As `summary.against` returns it.
        method: The method.
    """
    lines = []
    for rival, row in found.iterrows():
        names = f"- **{capitalised(label(method))} against {label(str(rival))}**"
        verdict = "no clear difference"
        if not row["n_samples"]:
            lines.append(f"{names}: no pair could be scored.")
            continue
        if row["clear"]:
            verdict = "clearly better" if row["difference"] > 0 else "clearly worse"
        difference = with_interval(row["difference"], row["low"], row["high"], signed=True)
        dropped = f", {int(row['abstentions'])} pairs dropped" if row["abstentions"] else ""
        lines.append(
            f"{names}: **{verdict}**, "
            f"{row['mean']:.1%} and {row['reference']:.1%} of answers, difference {difference}, "
            f"p = {row['p_holm']:.4f} (Holm over {len(found)}), "
            f"n = {row['n_examples']:.0f} queries{dropped}."
        )
    return "\n".join(lines)


def _silent(summary: pd.DataFrame) -> list[str]:
    """Say that the engine cites nothing in most answers, where it does."""
    own = summary.loc[[not is_pooled(method) for method in summary.index]]
    answers = int(own["n_uncited"].sum())
    share = (own["uncited"] * own["n_uncited"]).sum() / answers if answers else 0.0
    if share <= 0.5:
        return []
    return [
        f"**The engine cites no source in {share:.1%} of {answers:,} answers**; there, the "
        "target's visibility is 0, and figures of visibility and credit rest on the rest."
    ]


def _about_methods(names: pd.Index) -> list[str]:
    """Say what the rows of a table that stand for several methods, or for a variant, are."""
    methods, told = [str(name) for name in names], []
    truthful = any(published_method(method) != method for method in methods)
    if any(map(is_pooled, methods)):
        pooled = ", ".join(label(m) for m in methods if m in PREVIOUS)
        without = "; without the truthful variants" if truthful else ""
        told.append(f"Pooled, each pair by its mean: {pooled}{without}.")
    if truthful or set(methods) & set(INVENTING):
        told.append(
            "As published: the prompt lets the rewriter invent what it adds; truthful: it forbids "
            "that."
        )
    return told


def intervals(
    found: pd.DataFrame, column: str = "mean", ends: str | None = None, signed: bool = False
) -> pd.Series:
    """Write a column of estimates with their intervals.

    Args:
        found: The table.
        column: The estimate.
        ends: Its ends are `<ends>_low` and `<ends>_high`; by default `<column>_low` and
            `<column>_high` where there are such columns, else `low` and `high`.
        signed: With a sign.
    """
    prefix = f"{ends or column}_"
    low, high = (f"{prefix}low", f"{prefix}high") if f"{prefix}low" in found else ("low", "high")
    rows = zip(found[column], found[low], found[high], strict=True)
    return pd.Series([with_interval(*row, signed) for row in rows], index=found.index)


def p_values(found: pd.Series) -> pd.Series:
    """Write a column of p-values; a dash where there is none."""
    return found.map(lambda p: DASH if pd.isna(p) else f"{p:.4f}")


def styled(table: pd.DataFrame, marked: Sequence[object], caption: str) -> Styler:
    """Lay out a table, some rows bold, with what it rests on under it."""

    def bold(row: pd.Series) -> list[str]:
        return ["font-weight: bold" if row.name in marked else ""] * len(row)

    def escaped(name: Any) -> Any:
        return html.escape(name) if isinstance(name, str) else name

    def written(value: Any) -> Any:  # pandas escapes texts alone, and no object's text
        if is_number(value) or (is_scalar(value) and pd.isna(value)):
            return value
        return DASH if (text := str(value)) in _NO_NUMBER else text

    named = table.rename_axis(index=escaped, columns=escaped)  # nor an axis's name
    plain = named.map(written).rename(index=written, columns=written)
    shown = plain.style.apply(bold, axis=1).format(escape="html", na_rep=DASH)
    for axis in (0, 1):
        shown = shown.format_index(escape="html", axis=axis)
    shown = shown.set_caption(html.escape(singular(caption))).set_table_styles(_STYLE)
    return shown.set_table_attributes('class="geo-numbers mathjax_ignore"')


def over_queries(table: pd.DataFrame, marked: Sequence[object], caption: str) -> Styler:
    """Lay out a table whose intervals are over queries."""
    return styled(table, marked, f"95 % intervals over queries. {caption}")
