"""Examples, methods and repeats to samples: the one scorer of evaluation and training."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.citations import parse_answer
from geo_utils.corpus import Example, KeyPoint, KeyPointChoice, choose_key_points
from geo_utils.fidelity import fidelity
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.engines import Engine
from geo_utils.roles.judges import Judge
from geo_utils.roles.rewriters import EditRewriter, Rewrite, Rewriter
from geo_utils.text import words
from geo_utils.visibility import FIGURES, visibility_from_parsed

Progress = Callable[[int, int], None]
Clock = Callable[[str, float], None]
_LOGGED_S = 60.0  # between two lines in a log that is no terminal


class Counter:
    """Progress as one line that counts: updated in place in a notebook or terminal.

    In a log that is neither, it is a line a minute.
    """

    def __init__(self, what: str) -> None:
        """Count `what`, with at most one update per second."""
        self.what = what
        self.started = self.shown = self.logged = time.monotonic()
        self.handle: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if 0 < done < total and now - self.shown < 1.0:
            return
        self.shown = now
        spent = now - self.started
        line = f"{done:,} of {total:,} {self.what}, {spent:.0f} s"
        if 0 < done < total:
            line += f", about {spent * (total - done) / done:.0f} s left"
        if "ipykernel" in sys.modules:
            from IPython.display import display

            if self.handle is None:
                self.handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self.handle.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{line:60}" + "\n" * (done == total))
        elif done == total or now - self.logged >= _LOGGED_S:
            self.logged = now
            sys.stderr.write(f"{line}\n")


@dataclass(frozen=True)
class Placement:
    """The order in which an engine sees an example's sources.

    Attributes:
        order: For each place, the 0-based index of the source in the example.
        place: 0-based place of the target.
    """

    order: tuple[int, ...]
    place: int

    def sources(self, example: Example, page: str) -> list[str]:
        """Return the sources in order, with `page` in the target's place."""
        return [page if i == example.target_id else example.sources[i] for i in self.order]


def draw_placement(example: Example, seed: int = 0) -> Placement:
    """Draw the target's place, uniformly and from the example's own seed; others keep their order.

    The same for all methods and repeats, so that no method gains by a better place.
    """
    place = random.Random(f"{seed}|place|{example.query_id}").randrange(len(example.sources))
    others = [i for i in range(len(example.sources)) if i != example.target_id]
    return Placement((*others[:place], example.target_id, *others[place:]), place)


def evaluate(
    examples: Iterable[Example],
    methods: Sequence[str],
    engine: Engine,
    judge: Judge,
    repeats: int = 1,
    *,
    rewriter: Rewriter | None = None,
    key_points: KeyPointChoice = "one",
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run an experiment; works in a script, a notebook cell and under a running event loop.

    Args:
        examples: Those without key points are left out.
        methods: Names of rewriting methods.
        engine: Answers.
        judge: Gives verdicts.
        repeats: Sampled answers a page.
        rewriter: Rewrites the target page; default, the offline edits.
        key_points: Which key points, as `corpus.choose_key_points`.
        seed: Seed of key points and places.
        progress: Called with (samples done, samples in all); default, a line that counts.

    Returns:
        One row per example x key point x method x repeat, in that order: ids, key point, source
        order, page and its hashes, its lexical fidelity (`kept`, `grounded`), answer, verdict with
        `score` and explanation, the target's visibility (`word`, `position`, `pawc`), lengths in
        words, and the reason of an abstention.
        `supported` is 1.0, 0.0 or NaN; a sample that could not be scored is never 0. A policy
        that wrote no page has failed, as in its training: verdict `no page`, all figures 0.

    Raises:
        ValueError: No example has a key point, or repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    pairs = choose_key_points(examples, key_points, seed)
    if not pairs:
        raise ValueError(
            f"no example has a key point to choose (key_points={key_points!r}); use a corpus "
            "that brings key points"
        )
    show, rewrite_by = progress or Counter("samples"), rewriter or EditRewriter()
    total, done = len(pairs) * len(methods) * repeats, 0

    async def one(example: Example, point: KeyPoint, method: str) -> list[dict[str, Any]]:
        nonlocal done
        rewrite = await rewrite_by.rewrite(method, example, point)
        sample = partial(score_rewrite, example, point, method, rewrite, engine, judge, seed)
        rows = await gather_all(sample(repeat) for repeat in range(repeats))
        done += repeats
        show(done, total)
        return rows

    show(0, total)
    tasks = gather_all(one(e, p, m) for e, p in pairs for m in methods)
    return pd.DataFrame([row for rows in run_sync(tasks) for row in rows])


async def score_rewrite(
    example: Example,
    point: KeyPoint,
    method: str,
    rewrite: Rewrite,
    engine: Engine,
    judge: Judge,
    seed: int,
    repeat: int,
) -> dict[str, Any]:
    """Return one row of the samples table: `score_page` for a rewrite, failed ones included.

    Args:
        example: Brings query and other sources.
        point: The key point under study.
        method: Named in the row.
        rewrite: What stands in the target's place.
        engine: Answers.
        judge: Gives the verdict.
        seed: Seed of the target's place.
        repeat: Which sampled answer.
    """
    placement = draw_placement(example, seed)
    page = None if rewrite.abstention else rewrite.text
    row = empty_row(example, point, placement, placement.sources(example, page or "")) | {
        "method": method,
        "repeat": repeat,
        "page": page,
        "abstention": rewrite.abstention and f"rewriter: {rewrite.abstention}",
    }
    if page is not None:
        true = fidelity(example.target, page, [point.content])
        row |= {"page_words": float(len(words(page)))}
        row |= {"kept": true.kept, "grounded": true.grounded}
        return row | await score_page(example, point, page, engine, judge, seed, repeat)
    if rewrite.own_failure:
        reason = {"verdict": "no page", "explanation": rewrite.abstention, "abstention": None}
        row |= reason | {"supported": 0.0} | dict.fromkeys(FIGURES, 0.0)
    return row


async def score_page(
    example: Example,
    point: KeyPoint,
    page: str,
    engine: Engine,
    judge: Judge | None,
    seed: int,
    repeat: int,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Score one page in the target's place: the one scorer of evaluation and rewards.

    Args:
        example: Brings query and other sources.
        point: The key point under study.
        page: What stands in the target's place.
        engine: Answers.
        judge: Gives the verdict; None leaves it out, where only visibility is wanted.
        seed: Seed of the target's place.
        repeat: Which sampled answer.
        clock: Told `engine` or `judge` and the seconds it took.

    Returns:
        `answer`, its lengths and citations, the target's visibility, `verdict`, `supported`,
        `score` (strength of support, NaN where the judge has none) and `explanation`; or
        `abstention` with its reason and what was had before it.
    """
    placement = draw_placement(example, seed)
    sources = placement.sources(example, page)
    return await score_sources(
        example.query, sources, placement.place, point, engine, judge, repeat, clock
    )


async def score_sources(
    query: str,
    sources: Sequence[str],
    place: int | None,
    point: KeyPoint,
    engine: Engine,
    judge: Judge | None,
    repeat: int,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Score one set of sources, from which the target may be missing; the rest as `score_page`.

    Args:
        query: The question.
        sources: What the engine sees, in order; may be empty.
        place: 0-based place of the target; None if it is not there, and has no visibility.
        point: The key point under study.
        engine: Answers.
        judge: Gives the verdict, or None.
        repeat: Which sampled answer.
        clock: Told `engine` or `judge` and the seconds it took.
    """
    started = time.monotonic()
    answer = await engine.answer(query, sources, sample_index=repeat)
    if clock:
        clock("engine", time.monotonic() - started)
    if answer.abstention:
        return {"abstention": f"engine: {answer.abstention}"}
    parsed = parse_answer(answer.text, len(sources))
    row: dict[str, Any] = {
        "answer": answer.text,
        "answer_words": float(len(words(answer.text))),
        "citations_out_of_range": float(len(parsed.out_of_range)),
        "citations_unparsed": float(len(parsed.unparsed)),
    }
    if sources:
        seen = visibility_from_parsed(parsed, len(sources))
        row["uncited"] = seen.uncited
        if place is not None:
            row |= {name: float(getattr(seen, name)[place]) for name in FIGURES}
    if judge is None:
        return row
    started = time.monotonic()
    verdict = await judge.judge(point.content, answer.text)
    if clock:
        clock("judge", time.monotonic() - started)
    if verdict.label is None:
        return row | {"abstention": f"judge: {verdict.abstention or 'gave no verdict'}"}
    return row | {
        "verdict": verdict.label,
        "supported": float(verdict.label == "supported"),
        "score": np.nan if verdict.score is None else verdict.score,
        "explanation": verdict.explanation,
    }


def empty_row(
    example: Example, point: KeyPoint, placement: Placement, sources: Sequence[str]
) -> dict[str, Any]:
    """Return a sample's row before anything is known of its rewrite, answer and verdict."""
    return {
        "query_id": example.query_id,
        "query": example.query,
        "method": None,
        "repeat": None,
        "key_point_number": point.number,
        "key_point": point.content,
        "target_id": example.target_id,
        "target_place": placement.place,
        "source_order": list(placement.order),
        "page_hashes": [hashlib.sha256(text.encode()).hexdigest()[:12] for text in sources],
        **dict.fromkeys(("page", "answer", "verdict")),
        **dict.fromkeys(("supported", "score"), np.nan),
        "explanation": "",
        **dict.fromkeys(FIGURES, np.nan),
        "uncited": None,
        **dict.fromkeys(("citations_out_of_range", "citations_unparsed"), np.nan),
        "original_words": len(words(example.target)),
        **dict.fromkeys(("page_words", "kept", "grounded", "answer_words"), np.nan),
        "abstention": None,
    }
