"""From a batch of completions to rewards, by the evaluation's own scorer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from statistics import fmean
from time import monotonic
from typing import Any

from geo_utils.corpus import Example, KeyPoint
from geo_utils.engines import Engine
from geo_utils.evaluate import score_page
from geo_utils.judges import Judge
from geo_utils.loops import gather_all, run_sync
from geo_utils.model_rewriters import RewriteTask
from geo_utils.runs import RunInterrupted
from geo_utils.text import words
from geo_utils.training.call_clock import Clock, walls
from geo_utils.training.free_rewards import free_rewards
from geo_utils.training.options import RewardOptions
from geo_utils.training.rollouts import Rollout, shuffled
from geo_utils.visibility import FIGURES

log = logging.getLogger(__name__)
_ANSWERED = {"key_point", "visibility"}  # components that need an engine
Values = list[float | None]


class Rewards:
    """The components of a reward, made for one corpus, task, engine and judge.

    Attributes:
        functions: One TRL reward function a component, in the order of `options.funcs`.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        task: RewriteTask,
        engine: Engine,
        judge: Judge,
        options: RewardOptions,
        seed: int = 0,
        on_scored: Callable[[int, list[Rollout]], None] | None = None,
    ) -> None:
        """Make the components.

        Args:
            examples: All that completions may be for.
            task: How a completion becomes a page.
            engine: Answers.
            judge: Gives verdicts.
            options: Components and settings.
            seed: Seed of the target's place.
            on_scored: Told the step being made, from 1, and the batch after each batch.
        """
        self.examples = {example.query_id: example for example in examples}
        self.task, self.engine, self.judge = task, engine, judge
        self.options, self.seed, self.on_scored = options, seed, on_scored
        self.functions = [self._function(name) for name in options.funcs]
        self._originals: dict[tuple[str, int], asyncio.Task[dict[str, Any]]] = {}
        self._failed: set[tuple[str, int]] = set()  # of the originals
        self._batch: tuple[Any, asyncio.Task[list[Rollout]]] | None = None
        self._calls: set[asyncio.Task[dict[str, Any]]] = set()
        self._begun: dict[tuple[Any, ...], list[tuple[asyncio.Task[dict[str, Any]], Clock]]] = {}
        self._lost = 0

    def by_hand(self, reply: str, query_id: str, number: int | None = None) -> Rollout:
        """Score one completion, from a script or a notebook cell.

        Args:
            reply: What a policy would write.
            query_id: The example's.
            number: The key point's number; default, the first.
        """
        example = self.examples[query_id]
        points = [p for p in example.key_points if number in (None, p.number)]
        found = Rollout(example, points[0], reply, len(words(reply)))
        self._read(found, None)
        run_sync(
            self._score(found, found, monotonic() + self.options.deadline_s, defaultdict(list))
        )
        self._forget_failed()
        return found

    async def score(self, step: int = 0, *, completions: Sequence[Any], query_id: Sequence[str],
                    key_point_number: Sequence[int], shown: Sequence[int],
                    completion_ids: Sequence[Sequence[int]] | None = None,
                    log_metric: Callable[[str, float], None] | None = None,
                    **_: Any) -> list[Rollout]:  # fmt: skip
        """Score a batch: all engine and judge calls at once, within the deadline.

        Args:
            step: The one being made, for the log.
            completions: Texts, or conversations of one message each.
            query_id: The example of each completion.
            key_point_number: Its key point.
            shown: How many units of the page the prompt held; -1 for all.
            completion_ids: Tokens of each completion.
            log_metric: TRL's hook for figures of the step.

        Raises:
            RunInterrupted: No score could be had in too many batches in a row.
        """
        started = monotonic()
        batch = []
        for i, completion in enumerate(completions):
            reply = completion if isinstance(completion, str) else completion[0]["content"]
            example = self.examples[query_id[i]]
            point = next(p for p in example.key_points if p.number == key_point_number[i])
            tokens = len(completion_ids[i]) if completion_ids is not None else len(words(reply))
            batch.append(Rollout(example, point, reply, tokens))
            self._read(batch[-1], None if shown[i] < 0 else shown[i])
        donors = shuffled(batch) if self.options.placebo else batch
        clock: Clock = defaultdict(list)
        until = started + self.options.deadline_s
        await gather_all(
            self._score(rollout, donor, until, clock)
            for rollout, donor in zip(batch, donors, strict=True)
        )
        self._forget_failed()
        lost = Counter(r.abstention for r in batch if r.abstention)
        if log_metric:
            log_metric("reward/seconds", monotonic() - started)
            log_metric("reward/abstained", lost.total() / max(len(batch), 1))
            for name, seconds in walls(clock, started).items():
                log_metric(f"reward/{name}", seconds)
        if self.on_scored:
            self.on_scored(step, batch)
        self._watch(lost, len(batch))
        return batch

    async def begin(self, row: Mapping[str, Any], reply: str) -> None:
        """Ask for what the score of one completion will need; `score` finds it asked.

        Args:
            row: The completion's columns.
            reply: What the policy wrote.
        """
        example = self.examples[row["query_id"]]
        point = next(p for p in example.key_points if p.number == row["key_point_number"])
        rollout = Rollout(example, point, reply, 0)
        self._read(rollout, None if row["shown"] < 0 else row["shown"])
        paid = _ANSWERED & set(self.options.funcs) and not self.options.placebo
        if rollout.page is None or not paid:
            return
        for repeat in range(self.options.repeats):
            key = (example.query_id, point.number, rollout.page, repeat)
            clock: Clock = defaultdict(list)
            call = self._ask(example, point, rollout.page, repeat, clock)
            self._begun.setdefault(key, []).append((call, clock))

    def _read(self, rollout: Rollout, shown: int | None) -> None:
        rollout.shown = shown
        rewrite = self.task.page(rollout.reply, rollout.example, rollout.key_point, shown)
        rollout.problem = rewrite.abstention
        rollout.page = None if rewrite.abstention else rewrite.text

    async def _score(self, rollout: Rollout, donor: Rollout, until: float, clock: Clock) -> None:
        """Fill in a rollout's rewards, or why there are none, by what the donor wrote: itself."""
        page, values = donor.page, free_rewards(rollout, donor, self.options, self.task.method)
        wanted = _ANSWERED & set(self.options.funcs)
        if "visibility" in wanted:  # asked for beside the rewrite, not after it
            for repeat in range(self.options.repeats):
                self._original(rollout, repeat, clock)
        if wanted and page is None and "visibility" in wanted:
            rows = [_NO_PAGE] * self.options.repeats
        elif wanted and page is not None:
            rows = await gather_all(
                self._row(rollout.example, rollout.key_point, page, repeat, until, clock)
                for repeat in range(self.options.repeats)
            )
        else:
            rows = [_NO_PAGE]
        if "key_point" in wanted:
            found = [s for row in rows if not math.isnan(s := self._support(row))]
            values["key_point"] = fmean(found) if found else None
        if "visibility" in wanted:
            values["visibility"] = await self._gain(rollout, rows, clock)
        told = next((row for row in rows if row.get("answer")), {})
        rollout.answer, rollout.verdict = told.get("answer"), told.get("verdict")
        if any(value is None for value in values.values()):
            reasons = [row["abstention"] for row in rows if row.get("abstention")]
            rollout.abstention = reasons[0] if reasons else "the original page has no answer"
        else:
            rollout.rewards = {name: float(values[name] or 0.0) for name in self.options.funcs}

    async def _row(self, example: Example, point: KeyPoint, page: str, repeat: int,
                   until: float, clock: Clock, judged: bool = True) -> dict[str, Any]:  # fmt: skip
        """Return the evaluation's row on one answer, or an abstention at the deadline.

        The deadline ends the wait and not the call, whose answer is paid for: it comes into the
        budget and the cache when it comes.
        """
        key = (example.query_id, point.number, page, repeat)
        own: Clock = defaultdict(list)
        waiting = self._begun.pop(key, []) if judged else []
        asked = waiting.pop(0) if waiting else None
        if waiting:  # of completions that are the same
            self._begun[key] = waiting
        call, seen = asked or (self._ask(example, point, page, repeat, own, judged), own)
        try:
            async with asyncio.timeout(max(until - monotonic(), 0.0)):
                return await asyncio.shield(call)
        except TimeoutError:
            return {"abstention": f"deadline: no answer within {self.options.deadline_s:g} s"}
        finally:
            for role, calls in seen.items():
                clock[role] += calls

    def _ask(self, example: Example, point: KeyPoint, page: str, repeat: int, clock: Clock,
             judged: bool = True) -> asyncio.Task[dict[str, Any]]:  # fmt: skip
        """Send a page to engine and judge."""
        judge = self.judge if judged and "key_point" in self.options.funcs else None

        def took(role: str, seconds: float) -> None:
            ended = monotonic()
            clock[role].append((ended - seconds, ended))

        call = asyncio.ensure_future(
            score_page(example, point, page, self.engine, judge, self.seed, repeat, took)
        )
        self._calls.add(call)
        call.add_done_callback(self._over)
        return call

    def _over(self, call: asyncio.Task[dict[str, Any]]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # one that nobody waits for any more is no news

    def _support(self, row: Mapping[str, Any]) -> float:
        supported = float(row.get("supported", math.nan))
        score = float(row.get("score", math.nan))
        return supported if math.isnan(score) or not self.options.soft else score

    def _original(self, rollout: Rollout, repeat: int, clock: Clock) -> asyncio.Task[Any]:
        """Return the answer to the original page, asked for once a query and repeat."""
        example, key = rollout.example, (rollout.example.query_id, repeat)
        if key not in self._originals:
            until = monotonic() + self.options.deadline_s
            self._originals[key] = asyncio.ensure_future(
                self._row(example, rollout.key_point, example.target, repeat, until, clock,
                          judged=False)
            )  # fmt: skip
        return self._originals[key]

    def _forget_failed(self) -> None:
        """Let the next batch ask again for the originals that could not be had."""
        while self._failed:
            self._originals.pop(self._failed.pop(), None)

    async def _gain(
        self, rollout: Rollout, rows: Sequence[Mapping[str, Any]], clock: Clock
    ) -> float | None:
        """Return the mean gain in visibility over the original's answers of the same repeats."""
        gains = []
        for repeat, row in enumerate(rows):
            before = await asyncio.shield(self._original(rollout, repeat, clock))
            if before.get("pawc") is None:
                self._failed.add((rollout.example.query_id, repeat))
            elif row.get("pawc") is not None:
                gains.append(self._figure(row) - self._figure(before))
        return fmean(gains) if gains else None

    def _figure(self, row: Mapping[str, Any]) -> float:
        names = FIGURES if self.options.figure == "mean" else (self.options.figure,)
        return fmean(float(row[name]) for name in names)

    def _watch(self, lost: Counter[str], size: int) -> None:
        """End a training that only waits: no score in `most_lost` batches in a row."""
        self._lost = self._lost + 1 if size and lost.total() == size else 0
        if lost:
            log.warning("%d of %d completions have no score: %s", lost.total(), size,
                        lost.most_common(1)[0][0])  # fmt: skip
        if self._lost >= self.options.most_lost:
            raise RunInterrupted(
                f"no completion of {self._lost} batches in a row could be scored, the last ones "
                f"for: {lost.most_common(1)[0][0]}. Run again to go on"
            )

    def _function(self, name: str) -> Callable[..., Awaitable[Values]]:
        async def component(completions: Sequence[Any], **columns: Any) -> Values:
            if self._batch is None or self._batch[0] is not completions:
                done = getattr(columns.get("trainer_state"), "global_step", -1)
                step = columns.pop("step", [done + 1])[0]  # of a batch that is generated ahead
                task = asyncio.ensure_future(self.score(step, completions=completions, **columns))
                self._batch = completions, task
            return [rollout.rewards.get(name) for rollout in await self._batch[1]]

        component.__name__ = name
        return component


_NO_PAGE: dict[str, Any] = {"supported": 0.0, **dict.fromkeys(FIGURES, 0.0)}
