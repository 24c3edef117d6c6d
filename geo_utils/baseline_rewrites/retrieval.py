"""Would the page still be found? Its rank among all pages of the corpus, before and after."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas.io.formats.style import Styler

from geo_utils.baseline_rewrites.frontier import panel_figure
from geo_utils.corpus import Example
from geo_utils.lexical import bm25_scores
from geo_utils.models.base import EMBEDDER, GUESSED, ModelError, Request, Sampling
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import Completes
from geo_utils.roles.methods import is_arm, label
from geo_utils.show.plots import basis, listed, method_rows
from geo_utils.show.tables import intervals, styled
from geo_utils.statistics import with_interval
from geo_utils.summary import contrasts, estimates
from geo_utils.text import capitalised, content_words

RETRIEVERS = {"bm25": "BM25", "dense": "dense"}
Vector = NDArray[np.float64]
# From a query, the place of the target among the pages and what stands there, to its rank.
Rank = Callable[[str, int, str], float]


def ranks(
    samples: pd.DataFrame,
    examples: Iterable[Example],
    first: int,
    embedder: Completes | None = None,
) -> pd.DataFrame:
    """Rank each sample's page for its query among all pages of the corpus.

    The page stands in the target's place; all other pages are as they were. What another page's
    score equals, it ranks behind.

    Args:
        samples: As `evaluate.evaluate` returns it.
        examples: The corpus; each different page counts once.
        first: How many pages an engine would be given.
        embedder: Gives the vectors of dense retrieval, whose scores are cosines.

    Returns:
        A row a sample, for `bm25` and, with an embedder, `dense`: `rank_bm25` (1 is best),
        `found_bm25` (1.0 if it is among the first) and `end_to_end_bm25` (found, and the answer
        supports the key point). NaN where there is no page, or no vector; a policy that wrote no
        page is not found.
    """
    corpus = {example.query_id: example for example in examples}
    pages = list(dict.fromkeys(page for e in corpus.values() for page in e.sources))
    places = {page: i for i, page in enumerate(pages)}
    each: list[Any] = list(samples.itertuples(index=False))
    wanted = [isinstance(row.page, str) and not is_arm(row.method) for row in each]
    retrievers: dict[str, Rank] = {"bm25": _by_words(pages)}
    if embedder is not None:
        written = [row.page for row, has in zip(each, wanted, strict=True) if has]
        texts = [*pages, *(example.query for example in corpus.values()), *written]
        retrievers["dense"] = _by_vectors(pages, _vectors(texts, embedder))
    found = pd.DataFrame(index=samples.index)
    for name, rank in retrievers.items():
        ranked = cache(rank)
        found[f"rank_{name}"] = [
            ranked(corpus[row.query_id].query, places[corpus[row.query_id].target], row.page)
            if has
            else np.nan
            for row, has in zip(each, wanted, strict=True)
        ]
        held = found[f"rank_{name}"].le(first).astype(float).where(found[f"rank_{name}"].notna())
        found[f"found_{name}"] = held.mask(samples["verdict"].eq("no page"), 0.0)
        found[f"end_to_end_{name}"] = samples["supported"] * found[f"found_{name}"]
    return found


def _by_words(pages: Sequence[str]) -> Rank:
    counts = [Counter(content_words(page)) for page in pages]
    lengths = np.array([count.total() for count in counts], dtype=float)

    @cache
    def frequencies(query: str) -> NDArray[np.float64]:
        asked = dict.fromkeys(content_words(query))
        return np.array([[count[word] for count in counts] for word in asked], dtype=float)

    def rank(query: str, place: int, page: str) -> float:
        own, sizes, table = Counter(content_words(page)), lengths.copy(), frequencies(query).copy()
        sizes[place] = own.total()
        for row, word in zip(table, dict.fromkeys(content_words(query)), strict=True):
            row[place] = own[word]
        return _rank(bm25_scores(table, sizes), place)

    return rank


def _by_vectors(pages: Sequence[str], vectors: Mapping[str, Vector | None]) -> Rank:
    def score(query: Vector, text: str) -> float:
        vector = vectors[text]
        return -np.inf if vector is None else float(query @ vector)

    @cache
    def scores(query: str) -> NDArray[np.float64]:
        asked = vectors[query]
        return np.array([np.nan if asked is None else score(asked, page) for page in pages])

    def rank(query: str, place: int, page: str) -> float:
        asked, own = vectors[query], vectors[page]
        if asked is None or own is None:
            return np.nan
        found = scores(query).copy()
        found[place] = float(asked @ own)
        return _rank(found, place)

    return rank


def _rank(scores: NDArray[np.float64], place: int) -> float:
    return float(np.count_nonzero(scores >= scores[place]))  # itself among them


def _vectors(texts: Iterable[str], embedder: Completes) -> dict[str, Vector | None]:
    """Return each text's vector of length 1; None where it could not be had."""

    async def one(text: str) -> Vector | None:
        try:
            found = await embedder.complete(Request(EMBEDDER, text, sampling=Sampling(None)))
        except ModelError:
            return None
        vector = np.array([1.0] if found.finish_reason == GUESSED else json.loads(found.text))
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    asked = list(dict.fromkeys(texts))
    return dict(zip(asked, run_sync(gather_all(map(one, asked))), strict=True))


def retrieval(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Estimate how often each method's page is found, and found and said.

    Planted truths (`python tests/measure_retrieval.py`, seeds 0 to 999): the 95 % intervals of 30
    queries held them in 94.3 to 97.2 % for 14 of the 15 estimates and differences, and in 93.0 %
    for the difference in being found and said where it is real (95.8 % on 4,000 further seeds);
    those of 120 queries in 94.0 to 96.1 %. Of the differences called clear 95.0 % were right.

    Args:
        samples: With the columns of `ranks`.
        seed: Seed of the resampling.

    Returns:
        Indexed by retriever (a key of `RETRIEVERS`) and method: `rank` (the median), `supported`,
        `found` and `end_to_end`, each a mean over samples with `_low` and `_high`; `n_examples`,
        `n_samples` and `abstentions` of the last; for each of the three the paired difference to
        the original page `<name>_difference` with `_low`, `_high` and `<name>_clear` (Holm over
        the methods).
    """
    own = samples[~samples["method"].map(is_arm)]
    columns = ["supported", "found", "end_to_end"]
    parts = {}
    for name in (n for n in RETRIEVERS if f"rank_{n}" in own):
        ranked = own.rename(columns={f"{n}_{name}": n for n in ("rank", "found", "end_to_end")})
        table = estimates(ranked, "method", columns, columns)
        counts = {"queries_end_to_end": "n_examples", "n_end_to_end": "n_samples"}
        table = table.rename(columns=counts)
        table["abstentions"] = ranked.groupby("method").size() - table["n_samples"]
        table["rank"] = ranked.groupby("method")["rank"].median()
        for what in columns:
            change = contrasts(ranked, what, "original", seed=seed)
            table[f"{what}_clear"] = change["clear"]
            for column, end in (("difference", ""), ("low", "_low"), ("high", "_high")):
                table[f"{what}_difference{end}"] = change[column]
        parts[name] = table
    return pd.concat(parts, names=["retriever"])


def _shifted(found: pd.DataFrame, what: str, sign: int) -> pd.Index:
    """Return the methods whose difference to the original page is clear and of a sign."""
    clear = found[f"{what}_clear"].eq(True) & (sign * found[f"{what}_difference"]).gt(0)
    return found.index[clear]


def retrieval_figure(found: pd.DataFrame, source: str, first: int) -> Figure:
    """Draw how often a page is found, its point is said, and both; a panel each.

    Args:
        found: As `retrieval` returns it.
        source: Where the figures come from.
        first: How many pages an engine would be given.
    """
    names = list(found.index.get_level_values("retriever").unique())
    tables = {name: pd.DataFrame(found.loc[name]) for name in names}
    main = tables[names[0]]
    panels, lines = {}, {}
    shown = [(name, "found", f"found in the first {first}, {RETRIEVERS[name]}") for name in names]
    shown += [(names[0], "supported", "key point in the answer")]
    shown += [(name, "end_to_end", f"found and said, {RETRIEVERS[name]}") for name in names]
    for name, what, quantity in shown:
        table = tables[name]
        panels[quantity] = method_rows(table, what, what).assign(
            hollow=~table[f"{what}_clear"].eq(True).to_numpy(),
            text=table[what].map("{:.2f}".format).to_numpy(),
        )
        lines[quantity] = float(table[what]["original"])
    base, lost = main["end_to_end"]["original"], _shifted(main, "found", -1)
    gained = _shifted(main, "end_to_end", 1)
    title = f"No method's page is clearly more often found and said than the original ({base:.0%})"
    if len(gained) == 1:
        title = (
            f"{capitalised(label(str(gained[0])))} is found and said in "
            f"{main['end_to_end'][gained[0]]:.0%}, the original in {base:.0%}"
        )
    elif len(gained):
        who = listed(gained) if len(gained) < 3 else f"{len(gained)} methods"
        title = f"{capitalised(who)} are clearly more often found and said than the original"
        title += f" ({base:.0%})"
    if len(lost):
        title += f"; clearly found less often: {listed(lost)}"
    marks = "Filled: clearly apart from the original page (the line), Holm; hollow: not."
    return panel_figure(panels, title, basis(main, source, marks), lines)


def retrieval_table(found: pd.DataFrame, first: int, n_pages: int, caption: str) -> Styler:
    """Lay out ranks, how often a page is found, and found and said.

    Args:
        found: As `retrieval` returns it.
        first: How many pages an engine would be given.
        n_pages: How many different pages the corpus has.
        caption: What the figures rest on.
    """
    table = pd.DataFrame(
        {
            f"median rank of {n_pages}": found["rank"].map("{:g}".format),
            f"found in the first {first}": intervals(found, "found"),
            "difference to original": intervals(found, "found_difference", signed=True),
            "key point in the answer": intervals(found, "supported"),
            "found and said": intervals(found, "end_to_end"),
            "its difference": intervals(found, "end_to_end_difference", signed=True),
            "n queries": found["n_examples"],
            "n samples": found["n_samples"],
            "abstentions": found["abstentions"],
        }
    )
    table = table.rename(index=RETRIEVERS, level=0).rename(index=label, level=1)
    told = "95 % intervals over queries; a page ranks among all pages of the corpus for its query"
    return styled(table.rename_axis(index=["", ""]), [], f"{told}. {caption}")


def retrieval_findings(found: pd.DataFrame, first: int, n_pages: int) -> str:
    """Say in Markdown, a sentence a finding, what rewriting does to being found.

    Args:
        found: As `retrieval` returns it.
        first: How many pages an engine would be given.
        n_pages: How many different pages the corpus has.
    """
    lines = []
    for name in found.index.get_level_values("retriever").unique():
        table = pd.DataFrame(found.loc[name])
        original: Any = table.loc["original"]
        n = f"n = {original['n_examples']:.0f} queries, {original['n_samples']:.0f} samples"
        lines.append(
            f"By {RETRIEVERS[name]}, the original page is among the first {first} of {n_pages} "
            f"pages for {_share(original, 'found')} of the queries; it is found, and its key point "
            f"said, in {_share(original, 'end_to_end')} of the samples ({n})."
        )
        for method in _shifted(table, "found", -1):
            row: Any = table.loc[method]
            wins = method in _shifted(table, "supported", 1)
            what = "wins the answer and loses the retrieval" if wins else "is found less often"
            lines.append(
                f"**{capitalised(label(str(method)))} {what}**: its share among the first {first} "
                f"differs from the original page's by {_share(row, 'found_difference', True)}, "
                f"that of being found and said by {_share(row, 'end_to_end_difference', True)} "
                f"(n = {row['n_examples']:.0f} queries)."
            )
        if not len(_shifted(table, "found", -1)):
            lines.append("No method's page is clearly found less often than the original page.")
    return "\n".join(f"- {line}" for line in lines)


def _share(row: Any, what: str, signed: bool = False) -> str:
    return with_interval(row[what], row[f"{what}_low"], row[f"{what}_high"], signed)
