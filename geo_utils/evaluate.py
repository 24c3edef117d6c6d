"""Examples, methods and repeats to samples: the one scorer of evaluation and training."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.citations import parse_answer
from geo_utils.corpus import Example, KeyPoint, KeyPointChoice, choose_key_points
from geo_utils.fidelity import COLUMNS, page_fidelity
from geo_utils.files import write_atomic
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.notebooks import LOGGED_S, PROGRESS
from geo_utils.roles.engines import Engine
from geo_utils.roles.judges import Judge
from geo_utils.roles.rewriters import EditRewriter, Rewrite, Rewriter
from geo_utils.text import words
from geo_utils.visibility import FIGURES, visibility_from_parsed

Progress = Callable[[int, int], None]
Row = dict[str, Any]  # of a samples table
Timer = Callable[[str, float], None]


class Counter:
    """Progress as one line that counts: how many, how fast, what it cost, how long it will take.

    It is updated in place in a notebook or terminal, and a line a minute in a log that is neither.
    A kernel that the command line has started tells that instead, which shows it.
    """

    def __init__(self, what: str, spent: Callable[[], float] | None = None) -> None:
        """Count `what`, with at most one update per second.

        Args:
            what: Is counted.
            spent: Returns the US dollars that were spent so far.
        """
        self.what, self.spent = what, spent
        self.started = self.shown = self.logged = time.monotonic()
        self.begun: int | None = None  # how many were done before: a training goes on
        self.handle: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if self.begun is None:
            self.begun, self.started = done, now
        if self.begun < done < total and now - self.shown < 1.0:
            return
        self.shown = now
        line = self.line(done, total, now - self.started)
        if told := os.environ.get(PROGRESS):
            with contextlib.suppress(OSError):  # a full disk has its own way to be told
                write_atomic(Path(told), line)
        if "ipykernel" in sys.modules:
            from IPython.display import display

            if self.handle is None:
                self.handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self.handle.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{line:60}" + "\n" * (done == total))
        elif done == total or now - self.logged >= LOGGED_S:
            self.logged = now
            sys.stderr.write(f"{line}\n")

    def line(self, done: int, total: int, seconds: float) -> str:
        """Return what is said after so many seconds."""
        parts = [f"{done:,} of {total:,} {self.what}", f"{seconds:.0f} s"]
        made = done - (self.begun or 0)
        if made and seconds >= 1:
            rate = made / seconds
            parts.append(f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each")
        if self.spent and (dollars := self.spent()):
            parts.append(f"{dollars:.4f} US dollars")
        if made and done < total:
            parts.append(f"about {seconds * (total - done) / made:.0f} s left")
        return ", ".join(parts)


@dataclass(frozen=True)
class SourceOrder:
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


def draw_source_order(example: Example, seed: int = 0) -> SourceOrder:
    """Draw the target's place, uniformly and from the example's own seed; others keep their order.

    The same for all methods and repeats, so that no method gains by a better place.
    """
    place = random.Random(f"{seed}|place|{example.query_id}").randrange(len(example.sources))
    others = [i for i in range(len(example.sources)) if i != example.target_id]
    return SourceOrder((*others[:place], example.target_id, *others[place:]), place)


def last_source_order(example: Example) -> SourceOrder:
    """Return the order with the target behind all others.

    An engine then computes what stands before it once for all rewrites of a page. That changes
    what is asked, so that only a training may do so, and says it.
    """
    others = (i for i in range(len(example.sources)) if i != example.target_id)
    return SourceOrder((*others, example.target_id), len(example.sources) - 1)


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
        order, page and its hashes, how many `echoes` of the prompt a model's reply had, which are
        left out, whether it is `unchanged`, the page's fidelity (`fidelity.COLUMNS`; NaN where the
        judge could not compare it), answer, verdict with `score` and explanation, the target's
        visibility (`word`, `position`, `pawc`), whether the answer has the engine's
        `prompt_copied`, lengths in words, and the reason of an abstention.
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
    scorer, rewrite_by = Scorer(engine, judge, seed), rewriter or EditRewriter()

    async def one(example: Example, point: KeyPoint, method: str) -> list[Row]:
        rewrite = await rewrite_by.rewrite(method, example, point)
        numbers = range(repeats)
        scored = (scorer.rewrite(example, point, method, rewrite, i) for i in numbers)
        rows = await gather_all(scored)
        if rewrite.abstention:
            return rows
        found = await page_fidelity(example.target, rewrite.text, [point.content], judge)
        return [row | (found.row() if found else {}) for row in rows]

    tasks = [one(example, point, method) for example, point in pairs for method in methods]
    return samples_of(tasks, progress or Counter("samples"), repeats)


def samples_of(
    tasks: Sequence[Coroutine[Any, Any, list[Row]]], progress: Progress, each: int = 1
) -> pd.DataFrame:
    """Return the rows of all tasks as one table, and show how far they are.

    Args:
        tasks: Each gives some rows.
        progress: Called with (done, in all).
        each: How many of what is counted a task stands for.
    """
    done, total = count(each, each), each * len(tasks)

    async def one(task: Coroutine[Any, Any, list[Row]]) -> list[Row]:
        rows = await task
        progress(next(done), total)
        return rows

    progress(0, total)
    found = run_sync(gather_all(map(one, tasks)))
    return pd.DataFrame([row for rows in found for row in rows])


@dataclass(frozen=True)
class Scorer:
    """From a page to a row of the samples table: the one scorer of evaluation and rewards.

    Attributes:
        engine: Answers.
        judge: Gives verdicts; None leaves them out, where only visibility is wanted.
        seed: Seed of the target's place.
    """

    engine: Engine
    judge: Judge | None
    seed: int = 0

    async def rewrite(
        self, example: Example, point: KeyPoint, method: str, rewrite: Rewrite, repeat: int
    ) -> Row:
        """Return the whole row of one sampled answer to a rewrite, failed ones included."""
        placement = draw_source_order(example, self.seed)
        page = None if rewrite.abstention else rewrite.text
        row = empty_row(example, point, placement, placement.sources(example, page or "")) | {
            "method": method,
            "repeat": repeat,
            "page": page,
            "abstention": rewrite.abstention and f"rewriter: {rewrite.abstention}",
            "echoes": np.nan if rewrite.echoes is None else float(rewrite.echoes),
        }
        if page is not None:
            row["page_words"] = float(_length(page))
            row["unchanged"] = float(is_unchanged(page, example))
            return row | await self.page(example, point, page, repeat)
        if rewrite.own_failure:
            reason = {"verdict": "no page", "explanation": rewrite.abstention, "abstention": None}
            row |= reason | {"supported": 0.0} | dict.fromkeys(FIGURES, 0.0)
        return row

    async def page(
        self,
        example: Example,
        point: KeyPoint,
        page: str,
        repeat: int,
        timer: Timer | None = None,
        placement: SourceOrder | None = None,
    ) -> Row:
        """Score one page in the target's place.

        Args:
            example: Brings query and other sources.
            point: The key point under study.
            page: What stands in the target's place.
            repeat: Which sampled answer.
            timer: Told `engine` or `judge` and the seconds it took.
            placement: The order of the sources, where it is not the drawn one.

        Returns:
            As `sources`.
        """
        placement = placement or draw_source_order(example, self.seed)
        sources = placement.sources(example, page)
        return await self.sources(example.query, sources, placement.place, point, repeat, timer)

    async def sources(
        self,
        query: str,
        sources: Sequence[str],
        place: int | None,
        point: KeyPoint,
        repeat: int,
        timer: Timer | None = None,
    ) -> Row:
        """Score one set of sources, from which the target may be missing.

        Args:
            query: The question.
            sources: What the engine sees, in order; may be empty.
            place: 0-based place of the target; None if it is not there, and has no visibility.
            point: The key point under study.
            repeat: Which sampled answer.
            timer: Told `engine` or `judge` and the seconds it took.

        Returns:
            `answer`, its lengths and citations, the target's visibility, `verdict`, `supported`,
            `score` (strength of support, NaN where the judge has none) and `explanation`; or
            `abstention` with its reason and what was had before it.
        """
        started = time.monotonic()
        answer = await self.engine.answer(query, sources, sample_index=repeat)
        if timer:
            timer("engine", time.monotonic() - started)
        if answer.abstention:
            return {"abstention": f"engine: {answer.abstention}"}
        row = {"answer": answer.text, **_answer_figures(answer.text, len(sources), place)}
        row["prompt_copied"] = np.nan if answer.prompt_copied is None else answer.prompt_copied
        if self.judge is None:
            return row
        started = time.monotonic()
        verdict = await self.judge.judge(point.content, answer.text)
        if timer:
            timer("judge", time.monotonic() - started)
        if verdict.label is None:
            return row | {"abstention": f"judge: {verdict.abstention or 'gave no verdict'}"}
        return row | {
            "verdict": verdict.label,
            "supported": float(verdict.label == "supported"),
            "score": np.nan if verdict.score is None else verdict.score,
            "explanation": verdict.explanation,
        }


def is_unchanged(page: str, example: Example) -> bool:
    """Tell whether a page is the original, white space aside."""
    return page.split() == example.target.split()


@lru_cache(maxsize=1024)
def _length(page: str) -> int:
    return len(words(page))


@lru_cache(maxsize=8192)
def _answer_figures(answer: str, n_sources: int, place: int | None) -> Row:
    """Return the figures of an answer, which all key points that it is judged on share."""
    parsed = parse_answer(answer, n_sources)
    row: Row = {
        "answer_words": float(len(words(answer))),
        "citations_out_of_range": float(len(parsed.out_of_range)),
        "citations_unparsed": float(len(parsed.unparsed)),
    }
    if n_sources:
        seen = visibility_from_parsed(parsed, n_sources)
        row["uncited"] = seen.uncited
        if place is not None:
            row |= {name: float(getattr(seen, name)[place]) for name in FIGURES}
    return row


def empty_row(
    example: Example, point: KeyPoint, placement: SourceOrder, sources: Sequence[str]
) -> Row:
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
        **dict.fromkeys(("citations_out_of_range", "citations_unparsed", "prompt_copied"), np.nan),
        "original_words": _length(example.target),
        **dict.fromkeys(("echoes", "page_words", "unchanged", *COLUMNS, "answer_words"), np.nan),
        "abstention": None,
    }
