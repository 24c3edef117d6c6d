"""Rewards for GRPO: the evaluation's own scorer on completions.

- `key_point`: support of the key point in the engine's answer, 0 to 1. With `reward.soft` the
  judge's strength of support, else 1 for `supported` and 0 for `omitted` or `contradicted`; the
  mean over `reward.repeats` answers.
- `visibility`: the target's visibility in the answer minus the original page's, -1 to 1.
  `reward.figure` is GEO's word, position or position-adjusted word count, or their mean.
- `fidelity`: fidelity of the page to the original, 0 to 1, by the judge if that is a model that
  gives reasons, else by words; see `fidelity.page_fidelity`.
- `length_budget`: 1 up to (1 + `reward.length_slack`) times the original's words, 0 from twice
  that slack.
- `no_instructions`: 1 if the page tells the reader's AI nothing that the original does not, else 0.
- `format`: 1 for a completion that is the page and nothing else, 0.5 for one with more, 0 for
  none. For an arrangement: 1 if every mark does something.
- `negative_length`: minus the completion's tokens: free, the floor of all timings.

All of a recipe share one pass of engine and judge per batch, on the page as evaluation takes it out
of the completion: without what it repeats of its prompt or says of the rewriting. What a page
pastes of the key point earns what the attack `paste_key_point` earns; see `paid_page`. A completion
whose answers could not be had is None under every component, so that TRL leaves it out of its
group; a completion that holds no page is the policy's own failure and earns the least.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from statistics import fmean
from time import monotonic
from typing import Any

import numpy as np

from geo_utils.corpus import Example, KeyPoint
from geo_utils.evaluate import Row, Scorer, is_unchanged, last_source_order
from geo_utils.fidelity import page_fidelity
from geo_utils.grpo.params import ASKING, RewardOptions
from geo_utils.lint import new_instructions
from geo_utils.models.loops import gather_all
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.engines import Engine
from geo_utils.roles.judges import Judge
from geo_utils.roles.rewriters import Unit, is_tidy, page_units, paste_key_point
from geo_utils.runs import RunInterrupted
from geo_utils.text import content_words, sentences, words
from geo_utils.visibility import FIGURES

log = logging.getLogger(__name__)
Values = list[float | None]
Call = asyncio.Task[Row]
Question = tuple[Example, KeyPoint, str, int]  # which page is asked about, and which repeat
Spans = defaultdict[str, list[tuple[float, float]]]  # begin and end of each call, by role
_COLUMNS = ("query_id", "key_point_number", "shown")  # of a prompt
_NO_PAGE: Row = {"supported": 0.0, **dict.fromkeys(FIGURES, 0.0)}


@dataclass
class Rollout:
    """One completion and all that is known of it.

    Attributes:
        example: What it was written for.
        key_point: The point under study.
        reply: What the policy wrote.
        tokens: Its length.
        shown: How many units of the page the prompt held; None for all.
        page: The page that it stands for; None if it holds none, and `problem` says why.
        problem: Reason for a missing page.
        paid: The page that engine and judge are asked about; see `paid_page`.
        echoes: How many pieces of the prompt it repeats, which are left out of the page.
        rewards: Value by component; empty on an abstention.
        reward: Their weighted sum.
        abstention: Reason why it could not be scored.
        answer: The first answer that was had.
        verdict: The judge's word on it.
    """

    example: Example
    key_point: KeyPoint
    reply: str
    tokens: int
    shown: int | None
    page: str | None
    problem: str | None
    paid: str | None = None
    echoes: int | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    abstention: str | None = None
    answer: str | None = None
    verdict: str | None = None

    def rewarded(self, scores: dict[str, float], options: RewardOptions) -> None:
        """Take the value of each component."""
        weights = options.weights or [1.0] * len(scores)
        self.rewards = scores
        self.reward = math.fsum(w * s for w, s in zip(weights, scores.values(), strict=True))

    def row(self) -> Row:
        """Return it as a row of rollouts.jsonl."""
        known = {"query_id": self.example.query_id, "key_point_number": self.key_point.number}
        left_out = ("example", "key_point", "shown", "paid")
        told = {k: value for k, value in vars(self).items() if k not in left_out}
        return known | told | {"pasted": self.pasted, "unchanged": self.unchanged}

    @property
    def pasted(self) -> bool:
        """Whether the page pastes the key point."""
        return self.paid != self.page

    @property
    def unchanged(self) -> bool:
        """Whether the page is the original."""
        return self.page is not None and is_unchanged(self.page, self.example)


def paid_page(page: str, example: Example, point: KeyPoint) -> str:
    """Return what is asked about in place of a page that pastes its key point.

    To paste is to say a sentence of the key point nearly word for word more often than the original
    page does. A page that pastes all of them is taken with the key point on top, once and plain, in
    place of the pasted sentences, so that neither place nor repetition nor bold earns more than the
    attack `paste_key_point`. One that is the original but for them is that attack, to the letter.
    """
    bare, before, rest = page, example.target, page
    for claim in sentences(point.content):
        old, new, left = (_copies(claim, text) for text in (before, bare, rest))
        if (more := len(new) - len(old)) <= 0:
            return page
        own = {content_words(unit.text) for unit in old}
        pasted = sorted(left, key=lambda unit: content_words(unit.text) in own)[:more]
        bare, before, rest = _without(bare, new), _without(before, old), _without(rest, pasted)
    if words(bare) != words(before):
        sources = [rest if i == example.target_id else s for i, s in enumerate(example.sources)]
        example = replace(example, sources=tuple(sources))
    return paste_key_point(example, point)


def _copies(claim: str, page: str) -> list[Unit]:
    """Return the sentences of a page, its title too, that are a claim nearly word for word."""
    wanted, found = content_words(claim), []
    start = len(page) - len(page.lstrip("# \n"))
    for unit in page_units(page[start:]):
        said = content_words(unit.text)
        if 0.8 * len(wanted) <= len(said) <= 1.5 * len(wanted) and wanted:
            blocks = SequenceMatcher(None, wanted, said, autojunk=False).get_matching_blocks()
            if sum(block.size for block in blocks) >= 0.8 * len(wanted):
                found.append(replace(unit, start=start + unit.start, end=start + unit.end))
    return found


def _without(page: str, units: Iterable[Unit]) -> str:
    for unit in sorted(units, key=lambda unit: -unit.start):
        page = page[: unit.start] + page[unit.end :]
    return page.strip()


def shuffled(batch: Sequence[Rollout]) -> list[Rollout]:
    """Return for each rollout one of another query, the placebo's donor.

    The k-th rollout of a query gets the k-th of the next query, so that a group's rewards still
    vary, but by what other completions say.

    Raises:
        ValueError: The batch is for one query only.
    """
    by_query = defaultdict(list)
    for rollout in batch:
        by_query[rollout.example.query_id].append(rollout)
    if len(by_query) < 2:
        raise ValueError("placebo: a batch needs completions for at least two queries")
    first, *others = map(itertools.cycle, by_query.values())
    donors = dict(zip(by_query, [*others, first], strict=True))
    return [next(donors[rollout.example.query_id]) for rollout in batch]


def walls(spans: Spans, started: float) -> dict[str, float]:
    """Return the mean seconds of a call by role, and how the batch's wall time divides.

    `engine_wall` is the time in which an engine call was under way, `judge_wall` that in which
    only judge calls were; calls that began before the batch count from its start.
    """
    found = {f"{role}_seconds": fmean(e - b for b, e in calls) for role, calls in spans.items()}
    found |= {"engine_wall": 0.0, "judge_wall": 0.0}
    times = itertools.chain.from_iterable(itertools.chain.from_iterable(spans.values()))
    for begin, end in itertools.pairwise(sorted({started, *(max(t, started) for t in times)})):
        middle = (begin + end) / 2
        for role in ("engine", "judge"):
            if any(b <= middle <= e for b, e in spans.get(role, ())):
                found[f"{role}_wall"] += end - begin
                break
    return found


def drawn(batch: Iterable[Rollout]) -> dict[str, float]:
    """Return the mean of the reward and its components, and quartiles of its groups' means."""
    groups: defaultdict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for rollout in batch:
        if rollout.reward is not None:
            scores = rollout.rewards | {"reward": rollout.reward}
            groups[rollout.example.query_id, rollout.key_point.number].append(scores)
    found = {}
    for name in next(iter(groups.values()), [{}])[0]:
        each = [[scores[name] for scores in group] for group in groups.values()]
        found[f"drawn/{name}"] = fmean(itertools.chain(*each))
        ends = np.quantile([fmean(group) for group in each], (0.25, 0.75))
        found |= {f"drawn/{name}/low": float(ends[0]), f"drawn/{name}/high": float(ends[1])}
    return found


def telling_rollouts(step: int, batch: Sequence[Rollout]) -> list[Row]:
    """Return a step's first scored, worst, best and first abstained rollout, as rows."""
    scored = [r for r in batch if r.rewards]
    ranked = sorted(scored, key=lambda r: r.reward or 0.0)
    chosen = {"first": scored[:1], "worst": ranked[:1], "best": ranked[-1:]}
    chosen["abstained"] = [r for r in batch if not r.rewards][:1]
    return [{"step": step, "kind": k, **r.row()} for k, found in chosen.items() for r in found]


def free_reward(
    name: str, rollout: Rollout, donor: Rollout, options: RewardOptions, method: str
) -> float:
    """Return a component that needs neither engine nor judge.

    Args:
        name: Of the component.
        rollout: What is rewarded.
        donor: Whose reply it is rewarded for: itself, but for the placebo.
        options: Bring the slack.
        method: What the policy was asked to do.
    """
    original, page = rollout.example.target, donor.page
    if name == "negative_length":
        return -float(donor.tokens)
    if page is None:
        return 0.0
    if name == "no_instructions":
        return float(not new_instructions(original, page))
    if name == "format":
        plain = page.startswith(donor.reply.strip())
        if method == "arrange_key_point":
            known = len(page_units(donor.example.target)) if donor.shown is None else donor.shown
            plain = is_tidy(donor.reply, known)
        return 1.0 if plain else 0.5
    slack = options.length_slack
    over = len(words(page)) / max(len(words(original)), 1) - 1 - slack
    return min(max(1 - over / max(slack, 0.1), 0.0), 1.0)


@dataclass(eq=False)
class Rewards:
    """The components of a reward, made for one corpus, task, engine and judge.

    Attributes:
        examples: All that completions may be for.
        task: How a completion becomes a page.
        engine: Answers.
        judge: Gives verdicts.
        options: Components and settings.
        seed: Seed of the target's place, where it is drawn.
        first: Number of the first answer that is asked for to a page.
        on_scored: Told the step being made, from 1, and the batch after each batch.
        functions: One TRL reward function per component, in the order of `options.funcs`.
    """

    examples: Iterable[Example]
    task: RewriteTask
    engine: Engine
    judge: Judge
    options: RewardOptions
    seed: int = 0
    on_scored: Callable[[int, list[Rollout]], None] | None = None
    first: int = 0

    def __post_init__(self) -> None:
        """Make the components."""
        self.functions = [self._function(name) for name in self.options.funcs]
        self._by_id = {example.query_id: example for example in self.examples}
        self._repeats = range(self.first, self.first + self.options.repeats)
        self._wanted = set(ASKING) & set(self.options.funcs)
        self._originals: dict[tuple[str, int], Call] = {}
        self._batch: tuple[Any, asyncio.Task[list[Rollout]]] | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._begun: defaultdict[Question, list[tuple[Call, Spans]]] = defaultdict(list)
        self._lost = 0

    async def score(
        self,
        step: int = 0,
        *,
        completions: Sequence[Any],
        query_id: Sequence[str],
        key_point_number: Sequence[int],
        shown: Sequence[int],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[Rollout]:
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
        started, spans = monotonic(), Spans(list)
        replies = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        columns = query_id, key_point_number, shown
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
        tokens = completion_ids or [()] * len(replies)
        batch = [self.read(*each) for each in zip(replies, rows, tokens, strict=True)]
        donors = shuffled(batch) if self.options.placebo else batch
        until = started + self.options.deadline_s
        pairs = zip(batch, donors, strict=True)
        await gather_all(self._score(*pair, until, spans) for pair in pairs)
        for key, call in list(self._originals.items()):
            if call.done() and call.result().get("pawc") is None:
                del self._originals[key]  # the next batch asks again for what could not be had
        lost = Counter(r.abstention for r in batch if r.abstention)
        if log_metric:
            told = {"seconds": monotonic() - started, "abstained": lost.total() / len(batch)}
            told["echoed"] = fmean(bool(rollout.echoes) for rollout in batch)  # a share of them
            told["pasted"] = fmean(rollout.pasted for rollout in batch)
            told["unchanged"] = fmean(rollout.unchanged for rollout in batch)
            pages = {(r.example.query_id, d.paid) for r, d in zip(batch, donors, strict=True)}
            asked = sum(page is not None for _, page in pages) if self._wanted else 0
            told["engine_calls"] = asked * self.options.repeats  # equal pages share theirs
            told = {f"reward/{name}": value for name, value in told.items()} | drawn(batch)
            told |= {f"reward/{name}": value for name, value in walls(spans, started).items()}
            for name, value in told.items():
                log_metric(name, value)
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
        found = self.read(reply, row)
        if found.paid is None or not self._wanted or self.options.placebo:
            return
        for repeat in self._repeats:
            question = found.example, found.key_point, found.paid, repeat
            self._begun[question].append(self._ask(question))

    async def landed(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[str]
    ) -> list[float]:
        """Return what the reward aims at in an answer to each completion's page, NaN where none.

        Whether the key point is in it, 1 or 0, or the page's visibility. A page is taken as
        evaluation takes it, also one that pastes; a completion without one is the policy's own
        failure.
        """
        aim = self.options.aim
        scorer = Scorer(self.engine, self.judge if aim == "supported" else None, self.seed)

        async def one(row: Mapping[str, Any], reply: str) -> float:
            made = self.read(reply, row)
            if made.page is None:
                return 0.0
            found = await scorer.page(made.example, made.key_point, made.page, 0)
            value = found.get(aim)
            return math.nan if value is None else float(value)

        return await gather_all(map(one, rows, replies))

    def read(self, reply: str, row: Mapping[str, Any], tokens: Sequence[int] = ()) -> Rollout:
        """Return what a completion for a row of prompts is: a page, or why it is none."""
        example = self._by_id[row["query_id"]]
        point = next(p for p in example.key_points if p.number == row["key_point_number"])
        units = None if row["shown"] < 0 else row["shown"]
        rewrite = self.task.page(reply, example, point, units)
        page = paid = None if rewrite.abstention else rewrite.text
        if page is not None and self.task.method != "arrange_key_point":  # which can only paste
            paid = paid_page(page, example, point)
        known = page, rewrite.abstention, paid, rewrite.echoes
        return Rollout(example, point, reply, len(tokens), units, *known)

    async def _score(self, rollout: Rollout, donor: Rollout, until: float, spans: Spans) -> None:
        """Fill in a rollout's rewards, or why there are none, by what the donor wrote: itself."""
        if "visibility" in self._wanted:  # asked for beside the rewrite, not after it
            for repeat in self._repeats:
                self._original(rollout, repeat, spans)
        rows = [_NO_PAGE for _ in self._repeats]
        if self._wanted and donor.paid is not None:
            page = rollout.example, rollout.key_point, donor.paid
            rows = await gather_all(self._row((*page, i), until, spans) for i in self._repeats)
        values: dict[str, float | None] = {}
        for name in self.options.funcs:
            if name == "key_point":
                found = [s for row in rows if not math.isnan(s := self._support(row))]
                values[name] = fmean(found) if found else None
            elif name == "visibility":
                values[name] = await self._gain(rollout, rows, spans)
            elif name == "fidelity":
                values[name] = await self._fidelity(rollout, donor.page, until)
            else:
                values[name] = free_reward(name, rollout, donor, self.options, self.task.method)
        told = next((row for row in rows if row.get("answer")), {})
        rollout.answer, rollout.verdict = told.get("answer"), told.get("verdict")
        scores = {name: float(value) for name, value in values.items() if value is not None}
        if len(scores) == len(values):
            rollout.rewarded(scores, self.options)
        else:
            reasons = [row["abstention"] for row in rows if row.get("abstention")]
            missing = next(name for name, value in values.items() if value is None)
            without = {"fidelity": "judge: the page could not be compared with its original"}
            known = without.get(missing, "the original page has no answer")
            rollout.abstention = reasons[0] if reasons else known

    async def _fidelity(self, rollout: Rollout, page: str | None, until: float) -> float | None:
        """Return the score of the page's fidelity; None if the judge gave none by the deadline."""
        if page is None:
            return 0.0
        known = [rollout.key_point.content]
        call = asyncio.ensure_future(page_fidelity(rollout.example.target, page, known, self.judge))
        self._calls.add(call)
        call.add_done_callback(self._over)
        try:
            async with asyncio.timeout(max(until - monotonic(), 0.0)):
                found = await asyncio.shield(call)
        except TimeoutError:
            return None
        return found.score if found else None

    async def _row(
        self, question: Question, until: float, spans: Spans, judged: bool = True
    ) -> Row:
        """Return the evaluation's row on one answer, or an abstention at the deadline.

        The deadline ends the wait and not the call, whose answer is paid for: it comes into the
        budget and the cache when it comes.
        """
        begun = self._begun.pop(question, []) if judged else []
        call, seen = begun.pop(0) if begun else self._ask(question, judged)
        if begun:  # of completions that are the same
            self._begun[question] = begun
        try:
            async with asyncio.timeout(max(until - monotonic(), 0.0)):
                return await asyncio.shield(call)
        except TimeoutError:
            return {"abstention": f"deadline: no answer within {self.options.deadline_s:g} s"}
        finally:
            for role, calls in seen.items():
                spans[role] += calls

    def _ask(self, question: Question, judged: bool = True) -> tuple[Call, Spans]:
        """Send a page to engine and judge; the spans are filled as its calls end."""
        judge = self.judge if judged and "key_point" in self.options.funcs else None
        (example, point, page, repeat), spans = question, Spans(list)

        def took(role: str, seconds: float) -> None:
            ended = monotonic()
            spans[role].append((ended - seconds, ended))

        place = last_source_order(example) if self.options.target_place == "last" else None
        call = asyncio.ensure_future(
            Scorer(self.engine, judge, self.seed).page(example, point, page, repeat, took, place)
        )
        self._calls.add(call)
        call.add_done_callback(self._over)
        return call, spans

    def _over(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # one that nobody waits for any more is no news

    def _support(self, row: Row) -> float:
        supported, score = float(row.get("supported", math.nan)), float(row.get("score", math.nan))
        return supported if math.isnan(score) or not self.options.soft else score

    def _original(self, rollout: Rollout, repeat: int, spans: Spans) -> Call:
        """Return the answer to the original page, asked for once per query and repeat."""
        example, key = rollout.example, (rollout.example.query_id, repeat)
        if key not in self._originals:
            question = example, rollout.key_point, example.target, repeat
            until = monotonic() + self.options.deadline_s
            row = self._row(question, until, spans, judged=False)
            self._originals[key] = asyncio.ensure_future(row)
        return self._originals[key]

    async def _gain(self, rollout: Rollout, rows: Sequence[Row], spans: Spans) -> float | None:
        """Return the mean gain in visibility over the original's answers of the same repeats."""
        names = FIGURES if self.options.figure == "mean" else (self.options.figure,)
        gains = []
        for repeat, row in zip(self._repeats, rows, strict=True):
            before = await asyncio.shield(self._original(rollout, repeat, spans))
            if before.get("pawc") is not None and row.get("pawc") is not None:
                now, then = (fmean(float(r[name]) for name in names) for r in (row, before))
                gains.append(now - then)
        return fmean(gains) if gains else None

    def _watch(self, lost: Counter[str], size: int) -> None:
        """End a training that only waits: no score in `most_lost` batches in a row."""
        self._lost = self._lost + 1 if lost.total() == size else 0
        if not lost:
            return
        reason = lost.most_common(1)[0][0]
        log.warning("%d of %d completions have no score: %s", lost.total(), size, reason)
        if self._lost >= self.options.most_lost:
            problem = f"no completion of {self._lost} batches in a row could be scored"
            raise RunInterrupted(f"{problem}, the last ones for: {reason}. Run again to go on")

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
