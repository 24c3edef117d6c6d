"""What the calls of a GRPO training buy without it: the best of n, and a policy taught by those.

Both draw from the policy as it was before the training and choose by the training's own reward, on
answers of their own, so that the winner's luck is not part of its score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_utils.corpus import Example, KeyPoint
from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.grpo.cold_start import Demonstration, taught
from geo_utils.grpo.data import Split, rows_of
from geo_utils.grpo.groups import Row, prompt_of
from geo_utils.grpo.params import GrpoParams
from geo_utils.grpo.rewards import Rewards, Rollout
from geo_utils.models.loops import run_sync
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.engines import Answer, Engine
from geo_utils.roles.rewriters import Rewrite
from geo_utils.runs import Run

FILE = "best_of.jsonl"
_FRESH = 1000  # the first answer that neither training nor comparison asks for


@dataclass(frozen=True)
class FreshAnswers:
    """An engine whose answers are others than those that its number would give.

    Attributes:
        engine: Answers.
    """

    engine: Engine

    async def answer(self, query: str, sources: Sequence[str], sample_index: int = 0) -> Answer:
        """Return one sampled answer."""
        return await self.engine.answer(query, sources, sample_index + _FRESH)


def draw_rivals(
    trainer: Any,
    rewards: Rewards,
    params: GrpoParams,
    run: Run,
    train: Sequence[Row],
    held_out: Sequence[Row],
) -> None:
    """Let the policy before its training write, and keep the best completion of each prompt.

    Prompts to train on get together as many answers as the training asked for, held-out ones
    `best_of` completions each. Lines of `best_of.jsonl` that are there are not made again.

    Args:
        trainer: Writes.
        rewards: The training's.
        params: Bring `evaluation.best_of`.
        run: Gets the file, and in its manifest what it cost.
        train: Prompts to train on.
        held_out: Prompts of the comparison.
    """
    path, steps = run.folder / FILE, read_jsonl(run.folder / "metrics.jsonl")
    calls = sum(row.get("reward/engine_calls", 0) for row in steps)
    each = max(round(calls / params.reward.repeats / len(train)), 2)
    made = FreshAnswers(rewards.engine), rewards.judge, rewards.options, rewards.seed
    own = Rewards(rewards.examples, rewards.task, *made)
    done = {(row["part"], *prompt_of(row)) for row in read_jsonl(path)}
    drawn = ("train", train, each), ("held_out", held_out, params.evaluation.best_of or 1)
    for part, rows, n in drawn:
        left = [row for row in rows if (part, *prompt_of(row)) not in done]
        size = max(params.generation_size // n, 1)  # as much within the deadline as in training
        for start in range(0, len(left), size):
            began, lot = time.monotonic(), left[start : start + size]
            many = [row for row in lot for _ in range(n)]
            replies = trainer.write_now(many, params.seed + start, before=True)
            columns: dict[str, Any] = {name: [row[name] for row in many] for name in many[0]}
            batch = run_sync(own.score(completions=replies, **columns))
            seconds = (time.monotonic() - began) / len(lot)
            groups = (batch[i * n : (i + 1) * n] for i in range(len(lot)))
            append_jsonl(path, [_line(part, group, seconds) for group in groups])


def _line(part: str, group: Sequence[Rollout], seconds: float) -> dict[str, Any]:
    """Return the best of a group, and what it cost; without a reply where none has a score."""
    scored = [rollout for rollout in group if rollout.reward is not None]
    best = max(scored, key=lambda rollout: rollout.reward or 0.0, default=None)
    first = group[0]
    return {
        "part": part,
        "query_id": first.example.query_id,
        "key_point_number": first.key_point.number,
        "reply": best and best.reply,
        "shown": first.shown,
        "rewards": best and best.rewards,
        "n": len(group),
        "seconds": round(seconds, 3),
    }


def distilled(params: GrpoParams, split: Split, base: str, run: Run) -> Path | None:
    """Teach the policy the best completions of the prompts to train on, those that landed.

    Returns:
        The folder of the adapter; None if nothing landed.
    """
    main = params.reward.main
    rows = rows_of(params, split.train, base)
    prompts = {prompt_of(row): row["prompt"][0]["content"] for row in rows}
    shown: list[Demonstration] = []
    for row in read_jsonl(run.folder / FILE):
        if row["part"] == "train" and row["reply"] and row["rewards"].get(main, 1) > 0:
            shown.append((prompts[prompt_of(row)], row["reply"]))
    if not shown:
        return None
    began, folder = time.monotonic(), run.folder / "distilled"
    made = taught(params, base, shown, folder)
    if "distilled" not in run.manifest:
        seconds = round(time.monotonic() - began, 1)
        run.update(distilled={"demonstrations": len(shown), "seconds": seconds})
    return made


@dataclass(frozen=True)
class BestOf:
    """Rewriter that returns the best completions as they were kept.

    Attributes:
        task: Makes pages of completions.
        kept: Lines of `best_of.jsonl` for the held-out prompts, by prompt.
    """

    task: RewriteTask
    kept: dict[tuple[str, int], Row]

    async def rewrite(
        self, method: str, example: Example, key_point: KeyPoint, sample_index: int = 0
    ) -> Rewrite:
        """Return the page that the best completion stands for."""
        line = self.kept.get((example.query_id, key_point.number))
        if line is None or line["reply"] is None:
            return Rewrite("", "short: no completion for this page has a score")
        made = self.task.page(line["reply"], example, key_point, line["shown"])
        return made if not made.abstention else Rewrite("", made.abstention, own_failure=True)


def best_of(task: RewriteTask, folder: Path) -> BestOf:
    """Return the rewriter that a run's `best_of.jsonl` stands for."""
    kept = [row for row in read_jsonl(folder / FILE) if row["part"] == "held_out"]
    return BestOf(task, {prompt_of(row): row for row in kept})
