"""None to all sources rewritten, each for its own key point: do they all land theirs?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.corpus import Example, KeyPoint
from geo_utils.engines import Engine
from geo_utils.evaluate import draw_placement
from geo_utils.judges import Judge
from geo_utils.loops import gather_all, run_sync
from geo_utils.progress import Counter, Progress
from geo_utils.rewriters import Rewrite, Rewriter
from geo_utils.statistics import cluster_mean
from geo_utils.studies.source_points import SourcePoint

_SAMPLE = ["query_id", "key_point_number", "repeat", "source"]


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


def adoption_samples(
    cases: Sequence[AdoptionCase],
    method: str,
    engine: Engine,
    judge: Judge,
    rewriter: Rewriter,
    repeats: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Let 0, 1, ... all sources adopt the method, in an order drawn for each query.

    Args:
        cases: Those with fewer than two sources that have a key point are left out.
        method: What every adopter uses, for its own key point.
        engine: Answers, once for each number of adopters and repeat.
        judge: Gives a verdict on every source's key point in every answer.
        rewriter: Rewrites.
        repeats: Sampled answers a number of adopters.
        seed: Seed of places and of the order of adoption.
        progress: Called with (answers done, answers in all).

    Returns:
        One row per query x number of adopters x repeat x source with a key point: `adopters`,
        `n_sources` (that can adopt), `source`, `adopted`, `origin` of the key point, `verdict`,
        `supported` (NaN where it could not be had) and `abstention`.

    Raises:
        ValueError: No query has two sources with a key point.
    """
    usable = [case for case in cases if len(case.points) > 1]
    if not usable:
        raise ValueError(
            "studies.adoption: no query has two sources with a key point; adoption by one source "
            "is the comparison itself"
        )
    show, done = progress or Counter("answers of adoption"), 0
    total = sum(len(case.points) + 1 for case in usable) * repeats

    async def one(case: AdoptionCase) -> list[dict[str, Any]]:
        nonlocal done
        pages = await gather_all(_page(case.example, own, method, rewriter) for own in case.points)
        by_source = {own.source: page for own, page in zip(case.points, pages, strict=True)}
        order = adoption_order(case, seed)

        async def answered(adopters: int, repeat: int) -> list[dict[str, Any]]:
            nonlocal done
            adopted = {source: by_source[source] for source in order[:adopters]}
            rows = await _answer(case, adopted, engine, judge, seed, repeat)
            done += 1
            show(done, total)
            return rows

        levels = range(len(order) + 1)
        found = await gather_all(answered(n, r) for n in levels for r in range(repeats))
        return [row for rows in found for row in rows]

    show(0, total)
    tasks = gather_all(one(case) for case in usable)
    return pd.DataFrame([row for rows in run_sync(tasks) for row in rows])


def adoption_order(case: AdoptionCase, seed: int = 0) -> list[int]:
    """Return the sources in the order in which they adopt; the first so many, at each number."""
    sources = [own.source for own in case.points]
    place = f"{seed}|adoption|{case.example.query_id}|{case.chosen.number}"
    return random.Random(place).sample(sources, len(sources))


def adoption_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Summarise by the number of adopters.

    Args:
        samples: As `adoption_samples` returns them.

    Returns:
        Indexed by `adopters`: the probability of its own key point for `adopter` and `other`
        sources, the adopters' `gain` over themselves with no adopter at all (paired), the share
        `all_land` of answers that carry every adopter's key point, each with `_low` and `_high`;
        `n_queries`, `n_samples`, `abstentions`.
    """
    wide = samples.set_index([*_SAMPLE, "adopters"])["supported"]
    base = wide.xs(0, level="adopters")
    rows = {}
    for adopters, part in samples.groupby("adopters"):
        own, others = part[part["adopted"]], part[~part["adopted"]]
        before = base.reindex(pd.MultiIndex.from_frame(own[_SAMPLE])).to_numpy(float)
        gain = own["supported"].to_numpy(float) - before
        whole = own.groupby(_SAMPLE[:3])["supported"].agg(lambda s: s.min(skipna=False))
        found = {
            "adopter": cluster_mean(
                own["supported"].to_numpy(float), own["query_id"].tolist(), bounded=True
            ),
            "other": cluster_mean(
                others["supported"].to_numpy(float), others["query_id"].tolist(), bounded=True
            ),
            "gain": cluster_mean(gain, own["query_id"].tolist()),
            "all_land": cluster_mean(
                whole.to_numpy(float),
                whole.index.get_level_values("query_id").tolist() if len(whole) else [],
                bounded=True,
            ),
        }
        row: dict[str, float] = {}
        for name, estimate in found.items():
            row |= {name: estimate.mean, f"{name}_low": estimate.low}
            row |= {f"{name}_high": estimate.high}
        row |= {
            "n_queries": int(part["query_id"].nunique()),
            "n_samples": int(part["supported"].notna().sum()),
            "abstentions": int(part["supported"].isna().sum()),
        }
        rows[adopters] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("adopters")


def adoption_change(samples: pd.DataFrame) -> dict[str, float]:
    """Compare the gain of adopting alone with that of adopting with all others.

    Returns:
        `mean`, `low`, `high` of the gain with all minus the gain of the first adopter alone, over
        queries, and `n_queries`. Each query's gains are means over its adopters and repeats.
    """
    base = samples[samples["adopters"] == 0].set_index(_SAMPLE)["supported"]
    own = samples[samples["adopted"]]
    before = base.reindex(pd.MultiIndex.from_frame(own[_SAMPLE])).to_numpy(float)
    gain = own.assign(gain=own["supported"].to_numpy(float) - before)
    means = gain.groupby(["query_id", "adopters", "n_sources"])["gain"].mean().reset_index()
    alone = means[means["adopters"] == 1].set_index("query_id")["gain"]
    whole = means[means["adopters"] == means["n_sources"]].set_index("query_id")["gain"]
    difference = (whole - alone).dropna()
    found = cluster_mean(difference.to_numpy(float), difference.index.tolist())
    return {
        "mean": found.mean, "low": found.low, "high": found.high, "n_queries": found.n_clusters
    }  # fmt: skip


async def _page(example: Example, own: SourcePoint, method: str, rewriter: Rewriter) -> Rewrite:
    """Return a source as it is when it adopts the method for its own key point."""
    points = example.key_points if own.source == example.target_id else (own.point,)
    as_target = replace(example, target_id=own.source, key_points=points)
    return await rewriter.rewrite(method, as_target, own.point)


async def _answer(
    case: AdoptionCase,
    adopted: dict[int, Rewrite],
    engine: Engine,
    judge: Judge,
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
        sources = draw_placement(example, seed).sources(changed, changed.target)
        answer = await engine.answer(example.query, sources, sample_index=repeat)
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
        found = await judge.judge(own.point.content, text)
        if found.label is None:
            return row | {"abstention": f"judge: {found.abstention or 'gave no verdict'}"}
        return row | {"verdict": found.label, "supported": float(found.label == "supported")}

    return await gather_all(verdict(own) for own in case.points)
