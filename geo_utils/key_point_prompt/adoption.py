"""What happens when other pages do the same: none to all sources rewritten, each for its own."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress, Row, draw_source_order, samples_of
from geo_utils.key_point_prompt.study import Found, Setting, change_text, draw_curve, laid_out
from geo_utils.models.base import ModelError
from geo_utils.models.caller import Planner
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import Completes, extract_key_points
from geo_utils.roles.make import Roles
from geo_utils.roles.rewriters import NO_PROSE, Rewrite
from geo_utils.runs import Run
from geo_utils.show.plots import BLUE, canvas, colour, finished
from geo_utils.show.tables import count_range, intervals
from geo_utils.summary import estimates, paired, plain_numbers
from geo_utils.text import content_words, sentences, words

_STAND_IN = "A claim that a model has yet to read off the page, in one sentence."
_WORDS = range(8, 41)  # of a sentence that can stand for a claim
_ANSWER = ["query_id", "key_point_number", "repeat"]
_ORIGINS = {
    "target": "of the target, under study",
    "corpus": "from the corpus",
    "model": "read off the page by a model",
    "sentence": "a sentence of the page, word for word",
}


@dataclass(frozen=True)
class SourcePoint:
    """The key point that a source wants said.

    Attributes:
        source: 0-based index of the source in the example.
        point: The claim.
        origin: `target` (the one under study), `corpus`, `model`, or `sentence`: one that was
            drawn from the page, word for word, so that it is easier to land than a claim in
            words of its own.
    """

    source: int
    point: KeyPoint
    origin: str


Case = tuple[Example, KeyPoint, list[SourcePoint]]  # a query, the target's point, each source's


async def source_points(
    example: Example,
    chosen: KeyPoint,
    caller: Completes | None,
    prompts: Path | None = None,
    seed: int = 0,
) -> list[SourcePoint]:
    """Find one key point for each source.

    Args:
        example: The query with its sources.
        chosen: The target's key point.
        caller: A model that reads claims off pages for which the corpus brings none; None to draw
            a sentence of the page. Where a planner finds none, a stand-in is there to count with.
        prompts: Folder of the user's own templates.
        seed: Seed of the draw among a page's claims.

    Returns:
        In the order of the sources; those for which nothing could be had are missing.
    """

    async def one(source: int) -> SourcePoint | None:
        if source == example.target_id:
            return SourcePoint(source, chosen, "target")
        claims = example.source_key_points[source] if example.source_key_points else ()
        origin = "corpus"
        if not claims and caller is None:
            claims, origin = page_claims(example.sources[source]), "sentence"
        elif not claims and caller is not None:
            bare, origin = replace(example, target_id=source, key_points=()), "model"
            try:
                claims = (await extract_key_points(bare, caller, prompts)).key_points
            except ModelError:
                return None
            if not claims and isinstance(caller, Planner):
                claims = (KeyPoint(1, f"{_STAND_IN} ({source})"),)
        if not claims:
            return None
        draw = random.Random(f"{seed}|key point|{example.query_id}|{source}")
        return SourcePoint(source, draw.choice(claims), origin)

    found = await gather_all(one(source) for source in range(len(example.sources)))
    return [point for point in found if point is not None]


def page_claims(page: str) -> tuple[KeyPoint, ...]:
    """Return the sentences of prose that could stand for a claim of the page, as key points."""
    prose = "\n".join(line for line in page.splitlines() if not NO_PROSE.match(line))
    fit = [s for s in sentences(prose) if len(words(s)) in _WORDS and content_words(s)]
    return tuple(KeyPoint(i, sentence, (sentence,)) for i, sentence in enumerate(fit, 1))


def adoption_order(case: Case, seed: int = 0) -> list[int]:
    """Return the sources in the order in which they adopt; the first so many, at each number."""
    example, chosen, points = case
    place = f"{seed}|adoption|{example.query_id}|{chosen.number}"
    return random.Random(place).sample([own.source for own in points], len(points))


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Let 0, 1, ... all sources adopt the method, in an order drawn for each query.

    One key point is found for each source, and every adopter rewrites for its own. Cases with fewer
    than two sources that have one are left out. One answer is asked for each number of adopters
    and repeat, and judged on every source's key point.

    Args:
        setting: As `study.Setting`.
        progress: Called with (queries done, queries in all).

    Returns:
        One row per query x number of adopters x repeat x source with a key point: `adopters`,
        `n_sources` (that can adopt), `source`, `adopted`, `origin` of the key point, `verdict`,
        `supported` (NaN where it could not be had) and `abstention`.

    Raises:
        ValueError: No query has two sources with a key point.
    """
    params, roles, repeats = setting.params, setting.roles[0], setting.options.repeats
    seed, caller = params.seed, roles.extractor

    async def one(case: Case) -> list[Row]:
        example, _, points = case

        async def page(own: SourcePoint) -> Rewrite:
            """Return a source as it is when it adopts the method for its own key point."""
            claims = example.key_points if own.origin == "target" else (own.point,)
            as_target = replace(example, target_id=own.source, key_points=claims)
            return await roles.rewriter.rewrite(params.method, as_target, own.point)

        pages = await gather_all(map(page, points))
        by_source = {own.source: page for own, page in zip(points, pages, strict=True)}
        order = adoption_order(case, seed)
        adopted = [{i: by_source[i] for i in order[:n]} for n in range(len(order) + 1)]
        found = await gather_all(
            _answer(case, pages, roles, repeat) for pages in adopted for repeat in range(repeats)
        )
        return [row for rows in found for row in rows]

    pairs = setting.pairs
    points = run_sync(gather_all(source_points(*p, caller, roles.prompts, seed) for p in pairs))
    tasks = [one((*pair, own)) for pair, own in zip(pairs, points, strict=True) if len(own) > 1]
    if not tasks:
        raise ValueError(
            "studies.adoption: no query has two sources with a key point; adoption by one source "
            "is the comparison itself"
        )
    return samples_of(tasks, progress or roles.counter("queries of adoption"))


async def _answer(case: Case, adopted: dict[int, Rewrite], roles: Roles, repeat: int) -> list[Row]:
    """Return the rows of one answer, one a source with a key point."""
    example, chosen, points = case
    failed = {source for source, rewrite in adopted.items() if rewrite.own_failure}
    written = {source: rewrite for source, rewrite in adopted.items() if source not in failed}
    lost = [rewrite.abstention for rewrite in written.values() if rewrite.abstention]
    text, reason = "", f"rewriter: {lost[0]}" if lost else None
    if not lost:
        pages = [written[i].text if i in written else p for i, p in enumerate(example.sources)]
        sources = [pages[i] for i in draw_source_order(example, roles.scorer.seed).order]
        answer = await roles.engine.answer(example.query, sources, sample_index=repeat)
        text, reason = answer.text, answer.abstention and f"engine: {answer.abstention}"

    async def verdict(own: SourcePoint) -> Row:
        row: Row = {
            "query_id": example.query_id,
            "key_point_number": chosen.number,
            "adopters": len(adopted),
            "n_sources": len(points),
            "repeat": repeat,
            "source": own.source,
            "adopted": own.source in adopted,
            "origin": own.origin,
            "key_point": own.point.content,
            "answer": text or None,
            "verdict": None,
            "supported": np.nan,
            "abstention": reason,
        }
        if reason:
            return row
        if own.source in failed:  # as in `evaluate`: the page stays, and the policy has failed
            return row | {"verdict": "no page", "supported": 0.0}
        found = await roles.judge.judge(own.point.content, text)
        if found.label is None:
            return row | {"abstention": f"judge: {found.abstention or 'gave no verdict'}"}
        return row | {"verdict": found.label, "supported": float(found.label == "supported")}

    return await gather_all(map(verdict, points))


def _gain(samples: pd.DataFrame) -> pd.Series:
    """Return what each adopter gained over itself with no adopter at all; NaN for the others."""
    alone = samples.assign(before=samples["supported"].where(samples["adopters"] == 0))
    before = alone.groupby([*_ANSWER, "source"])["before"].transform("first")
    gain: pd.Series = (samples["supported"] - before).where(samples["adopted"])
    return gain


def adoption_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Summarise by the number of adopters.

    Args:
        samples: As `ask` returns them.

    Returns:
        Indexed by `adopters`: the probability of its own key point for `adopter` and `other`
        sources, the adopters' `gain` over themselves with no adopter at all (paired), the share
        `all_land` of answers that carry every adopter's key point, each with `_low` and `_high`;
        `n_queries`, `n_samples`, `abstentions`.
    """
    own, supported = samples["adopted"], samples["supported"]
    columns = {"adopter": supported.where(own), "other": supported.where(~own)}
    frame = samples.assign(**columns, gain=_gain(samples))
    # Once an answer, at its first adopter; not known where one of the adopters' verdicts is not.
    answers = samples[own].groupby(["adopters", *_ANSWER])["supported"]
    whole = answers.transform("min").where(answers.transform("count") == answers.transform("size"))
    frame["all_land"] = whole[~samples[own].duplicated(["adopters", *_ANSWER])]
    names = ["adopter", "other", "gain", "all_land"]
    found = estimates(frame, "adopters", names, ["adopter", "other", "all_land"]).sort_index()
    groups = samples.groupby("adopters")
    table = found[[f"{name}{end}" for name in names for end in ("", "_low", "_high")]]
    return table.assign(
        n_queries=groups["query_id"].nunique(),
        n_samples=groups["supported"].count(),
        abstentions=groups.size() - groups["supported"].count(),
    )


def adoption_change(samples: pd.DataFrame) -> dict[str, float]:
    """Compare the gain of adopting alone with that of adopting with all others.

    Returns:
        As `summary.paired`: the gain with all minus the gain of the first adopter alone, over
        queries. Each query's gains are means over its adopters and repeats.
    """
    frame = samples.assign(gain=_gain(samples))[samples["adopted"]]
    alone, whole = frame["adopters"] == 1, frame["adopters"] == frame["n_sources"]
    first, last = (frame[part].groupby("query_id")["gain"].mean() for part in (alone, whole))
    return paired(last, first)


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Found:
    """Keep the samples of `ask` as `adoption.parquet`, and read off them what adoption does."""
    kept, source = run.save_table(asked, "adoption"), setting.roles[0].source()
    table, change = adoption_table(kept), adoption_change(kept)
    sources = kept.drop_duplicates(["query_id", "key_point_number", "source"])
    origins = sources["origin"].value_counts().items()
    note = (
        f"Key points: {'; '.join(f'{n:,} {_ORIGINS[str(name)]}' for name, n in origins)}. "
        f"n = {count_range(table['n_queries'])} queries, {count_range(table['n_samples'])} "
        f"verdicts a number of adopters, {table['abstentions'].sum()} abstentions in all"
    )
    shown = {
        "own point, adopters": intervals(table, "adopter"),
        "own point, others": intervals(table, "other"),
        "adopters' gain": intervals(table, "gain", signed=True),
        "all adopters land": intervals(table, "all_land"),
    }
    moved = change_text(change, "shrinks", "grows", "does not clearly change")
    last, gain = table.index[-1], shown["adopters' gain"]
    findings = (
        f"- With all {last} adopting, each lands its own key point in "
        f"{shown['own point, adopters'][last]} of answers, {gain[last]} over "
        f"nobody adopting; all of them land at once in {shown['all adopters land'][last]}. Against "
        f"adopting alone the gain {moved} ({change['n_examples']} queries, paired).\n\n"
        f"{note}. Source: {source}."
    )
    told = f"{setting.options.repeats} answers a number of adopters. {note}. Source: {source}."
    view = laid_out(shown, table, ["n_queries", "n_samples", "abstentions"], told)
    figures = {"adoption": adoption_figure(table, f"{note}; 95 % intervals. Source: {source}")}
    tables = {"samples": kept, "adoption": table}
    return Found(findings, figures, [view], tables, {"adoption": plain_numbers(table)})


def adoption_figure(table: pd.DataFrame, note: str) -> Figure:
    """Draw the probability of a source's own key point against the number of adopters."""
    last = table.index[-1]
    alone, whole = table["adopter"].loc[1], table["adopter"].loc[last]
    title = (
        f"With all {last} sources adopting, each lands its key point in {whole:.0%} "
        f"of answers, one that adopts alone in {alone:.0%}"
    )
    if pd.isna(alone) or pd.isna(whole):
        title = "Too few answers could be scored to say what adoption by all does"
    figure, axes = canvas(7)
    curves = [
        ("adopter", colour("key_point"), "adopters"),
        ("all_land", BLUE, "all adopters at once"),
        ("other", colour("original"), "the others"),  # ends where another line crosses it
    ]
    for name, shade, text in curves:
        rows = table[[name, f"{name}_low", f"{name}_high"]].dropna(subset=name)
        if len(rows):
            draw_curve(axes, rows, shade, text, at_end=name != "other")
    axes.set(ylim=(-0.04, 1), xlim=(-0.1, last + 1.1), xticks=list(table.index))
    axes.set(xlabel="sources that adopt the rewrite", ylabel="probability of its own key point")
    return finished(figure, title, note)
