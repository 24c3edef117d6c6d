"""What happens when other pages do the same: none to all sources rewritten, each for its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Progress, draw_source_order, samples_of
from geo_utils.key_point_prompt.study import Setting
from geo_utils.models.base import ModelError
from geo_utils.models.caller import Planner
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import Completes, extract_key_points
from geo_utils.roles.make import Roles
from geo_utils.roles.rewriters import NO_PROSE, Rewrite
from geo_utils.runs import Run
from geo_utils.show.plots import BLUE, canvas, colour, finished
from geo_utils.show.tables import count_range, intervals, over_queries
from geo_utils.statistics import with_interval
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


async def source_points(
    example: Example,
    chosen: KeyPoint,
    caller: Completes | None,
    prompts: Path | None = None,
    seed: int = 0,
    counting: bool = False,
) -> list[SourcePoint]:
    """Find one key point for each source.

    Args:
        example: The query with its sources.
        chosen: The target's key point.
        caller: A model that reads claims off pages for which the corpus brings none; None to draw
            a sentence of the page.
        prompts: Folder of the user's own templates.
        seed: Seed of the draw among a page's claims.
        counting: Take a stand-in where the model finds none, one a source, to count calls with.

    Returns:
        In the order of the sources; those for which nothing could be had are missing.
    """

    async def one(source: int) -> SourcePoint | None:
        if source == example.target_id:
            return SourcePoint(source, chosen, "target")
        held = example.source_key_points[source] if example.source_key_points else ()
        if held:
            return SourcePoint(source, _drawn(held, example, source, seed), "corpus")
        if caller is None:
            claims = page_claims(example.sources[source])
            origin = "sentence"
        else:
            bare = replace(example, target_id=source, key_points=())
            try:
                claims = (await extract_key_points(bare, caller, prompts)).key_points
            except ModelError:
                return None
            stand_in = f"{_STAND_IN} ({source})"
            claims, origin = claims or ((KeyPoint(1, stand_in),) if counting else ()), "model"
        if not claims:
            return None
        return SourcePoint(source, _drawn(claims, example, source, seed), origin)

    found = await gather_all(one(source) for source in range(len(example.sources)))
    return [point for point in found if point is not None]


def page_claims(page: str) -> tuple[KeyPoint, ...]:
    """Return the sentences of prose that could stand for a claim of the page, as key points."""
    prose = "\n".join(line for line in page.splitlines() if not NO_PROSE.match(line))
    fit = [s for s in sentences(prose) if len(words(s)) in _WORDS and content_words(s)]
    return tuple(KeyPoint(i, sentence, (sentence,)) for i, sentence in enumerate(fit, 1))


def _drawn(points: Sequence[KeyPoint], example: Example, source: int, seed: int) -> KeyPoint:
    return random.Random(f"{seed}|key point|{example.query_id}|{source}").choice(points)


@dataclass(frozen=True)
class AdoptionCase:
    """One query whose sources each have a key point.

    Attributes:
        example: The query.
        chosen: The target's key point.
        points: One a source that has any.
    """

    example: Example
    chosen: KeyPoint
    points: tuple[SourcePoint, ...]


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
    caller, counting = roles.extractor, isinstance(roles.extractor, Planner)

    async def case(example: Example, chosen: KeyPoint) -> AdoptionCase:
        points = await source_points(example, chosen, caller, roles.prompts, params.seed, counting)
        return AdoptionCase(example, chosen, tuple(points))

    cases = run_sync(gather_all(case(example, point) for example, point in setting.pairs))
    usable = [case for case in cases if len(case.points) > 1]
    if not usable:
        raise ValueError(
            "studies.adoption: no query has two sources with a key point; adoption by one source "
            "is the comparison itself"
        )

    async def page(case: AdoptionCase, own: SourcePoint) -> Rewrite:
        """Return a source as it is when it adopts the method for its own key point."""
        target = own.source == case.example.target_id
        points = case.example.key_points if target else (own.point,)
        as_target = replace(case.example, target_id=own.source, key_points=points)
        return await roles.rewriter.rewrite(params.method, as_target, own.point)

    async def one(case: AdoptionCase) -> list[dict[str, Any]]:
        pages = await gather_all(page(case, own) for own in case.points)
        by_source = {own.source: page for own, page in zip(case.points, pages, strict=True)}
        order = adoption_order(case, params.seed)

        async def answered(adopters: int, repeat: int) -> list[dict[str, Any]]:
            adopted = {source: by_source[source] for source in order[:adopters]}
            return await _answer(case, adopted, roles, params.seed, repeat)

        levels = range(len(order) + 1)
        found = await gather_all(answered(n, r) for n in levels for r in range(repeats))
        return [row for rows in found for row in rows]

    show = progress or roles.counter("queries of adoption")
    return samples_of([one(case) for case in usable], show)


def adoption_order(case: AdoptionCase, seed: int = 0) -> list[int]:
    """Return the sources in the order in which they adopt; the first so many, at each number."""
    sources = [own.source for own in case.points]
    place = f"{seed}|adoption|{case.example.query_id}|{case.chosen.number}"
    return random.Random(place).sample(sources, len(sources))


async def _answer(
    case: AdoptionCase,
    adopted: dict[int, Rewrite],
    roles: Roles,
    seed: int,
    repeat: int,
) -> list[dict[str, Any]]:
    """Return the rows of one answer, one a source with a key point."""
    example = case.example
    failed = {source for source, rewrite in adopted.items() if rewrite.own_failure}
    lost = [r.abstention for r in adopted.values() if r.abstention and not r.own_failure]
    reason, text = None, ""
    if lost:
        reason = f"rewriter: {lost[0]}"
    else:
        pages = [
            adopted[i].text if i in adopted and i not in failed else page
            for i, page in enumerate(example.sources)
        ]
        changed = replace(example, sources=tuple(pages))
        sources = draw_source_order(example, seed).sources(changed, changed.target)
        answer = await roles.engine.answer(example.query, sources, sample_index=repeat)
        text = answer.text
        reason = answer.abstention and f"engine: {answer.abstention}"

    async def verdict(own: SourcePoint) -> dict[str, Any]:
        row: dict[str, Any] = {
            "query_id": example.query_id,
            "key_point_number": case.chosen.number,
            "adopters": len(adopted),
            "n_sources": len(case.points),
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

    return await gather_all(verdict(own) for own in case.points)


def _gain(samples: pd.DataFrame) -> pd.Series:
    """Return what each adopter gained over itself with no adopter at all; NaN for the others."""
    keys = [*_ANSWER, "source"]
    base = samples[samples["adopters"] == 0].set_index(keys)["supported"]
    before = base.reindex(pd.MultiIndex.from_frame(samples[keys])).to_numpy(float)
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


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Adoption:
    """Keep the samples of `ask` as `adoption.parquet`, and read off them what adoption does."""
    kept = run.save_table(asked, "adoption")
    sources = kept.drop_duplicates(["query_id", "key_point_number", "source"])
    origins = {str(name): int(n) for name, n in sources["origin"].value_counts().items()}
    return Adoption(kept, adoption_table(kept), adoption_change(kept), origins)


@dataclass(frozen=True)
class Adoption:
    """Whether all sources land their key points when all adopt.

    Attributes:
        samples: As `ask`.
        table: As `adoption_table`.
        change: As `adoption_change`.
        origins: How many sources have their key point from where.
    """

    samples: pd.DataFrame
    table: pd.DataFrame
    change: dict[str, float]
    origins: dict[str, int]

    @property
    def _change(self) -> str:
        """The change of the gain, with its interval."""
        ends = self.change["difference"], self.change["low"], self.change["high"]
        return with_interval(*ends, signed=True)

    @property
    def _origins(self) -> str:
        """Where the sources' key points come from."""
        return "; ".join(f"{n:,} {_ORIGINS[name]}" for name, n in self.origins.items())

    def figure(self, source: str) -> Figure:
        """Draw the probability of a source's own key point against the number of adopters."""
        table, last = self.table, self.table.index[-1]
        alone, whole = table["adopter"].loc[1], table["adopter"].loc[last]
        title = (
            f"With all {last} sources adopting, each lands its key point in {whole:.0%} "
            f"of answers; alone it was {alone:.0%}"
        )
        if pd.isna(alone) or pd.isna(whole):
            title = "Too few answers could be scored to say what adoption by all does"
        figure, axes = canvas(7)
        shown = {
            "adopter": ("adopters", colour("key_point")),
            "all_land": ("all adopters at once", BLUE),
            "other": ("the others", colour("original")),
        }
        for name, (text, shade) in shown.items():
            rows = table.dropna(subset=name)
            if rows.empty:
                continue
            levels, low = rows.index.to_numpy(float), rows[f"{name}_low"]
            axes.fill_between(levels, low, rows[f"{name}_high"], color=shade, alpha=0.15)
            axes.plot(levels, rows[name], "o-", color=shade, linewidth=3, markersize=9)
            place, beside = (levels[-1], rows[name].iloc[-1]), "center"
            if name == "other":  # whose line ends where another crosses it
                place, beside = (levels[0], low.iloc[0]), "top"
            axes.annotate(
                f"  {text}", place, color=shade, fontsize=16, va=beside, annotation_clip=False
            )
        axes.set(ylim=(0, 1), xlim=(-0.1, last + 1.1), xticks=list(table.index))
        axes.set(xlabel="sources that adopt the rewrite", ylabel="probability of its own key point")
        note = (
            f"Gain over nobody adopting, with all minus alone: {self._change}. Key points: "
            f"{self._origins}. n = {count_range(table['n_queries'])} queries, "
            f"{count_range(table['n_samples'])} verdicts a number of adopters, "
            f"{table['abstentions'].sum()} abstentions in all; 95 % intervals. {source}"
        )
        return finished(figure, title, note)

    def findings(self, source: str) -> str:
        """Say in Markdown whether all sources land their key points when all adopt."""
        own, gain = intervals(self.table, "adopter"), intervals(self.table, "gain", signed=True)
        last, change = self.table.index[-1], self.change
        verb = "shrinks" if change["difference"] < 0 else "grows"
        clear = change["high"] < 0 or change["low"] > 0
        moved = f"clearly {verb}" if clear else "does not clearly change"
        lines = [
            f"- One adopter lands its own key point in {own[1]} of answers, {gain[1]} over nobody "
            "adopting.",
            f"- With all {last} adopting, each lands it in {own[last]}, {gain[last]}; the gain "
            f"**{moved}**: {self._change} ({change['n_examples']} queries, paired).",
            f"- All of them land at once in {intervals(self.table, 'all_land')[last]} of answers.",
            "",
            f"Key points: {self._origins}. n = {count_range(self.table['n_queries'])} queries, "
            f"{self.table['abstentions'].sum()} abstentions in all. Source: {source}.",
        ]
        return "\n".join(lines)

    def views(self, caption: str) -> list[Styler]:
        """Lay out the adoption by number of adopters."""
        table = pd.DataFrame(
            {
                "own point, adopters": intervals(self.table, "adopter"),
                "own point, others": intervals(self.table, "other"),
                "adopters' gain": intervals(self.table, "gain", signed=True),
                "all adopters land": intervals(self.table, "all_land"),
                "n queries": self.table["n_queries"],
                "n verdicts": self.table["n_samples"],
                "abstentions": self.table["abstentions"],
            }
        )
        told = f"{self.samples['repeat'].nunique()} answers a number of adopters."
        return [over_queries(table, [], f"{told} Key points: {self._origins}. {caption}")]

    def headline(self) -> dict[str, Any]:
        """Return the numbers that the manifest records."""
        return {"adoption": plain_numbers(self.table)}
