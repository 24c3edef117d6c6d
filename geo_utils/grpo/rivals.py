"""What the calls of a GRPO training buy without it: the best of n, and a policy taught by those.

Both draw from the policy as it was before the training and choose by the training's own reward, on
answers of their own, so that the winner's luck is not part of its score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
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
from geo_utils.roles.rewriters import Rewrite
from geo_utils.runs import Run

FILE = "best_of.jsonl"
_FRESH = 1000  # the first answer that neither training nor comparison asks for


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
        run: Gets the file.
        train: Prompts to train on.
        held_out: Prompts of the comparison.
    """
    path, steps = run.folder / FILE, read_jsonl(run.folder / "metrics.jsonl")
    calls = sum(row.get("reward/engine_calls", 0) for row in steps)
    each = max(round(calls / params.reward.repeats / len(train)), 2)
    own = replace(rewards, on_scored=None, first=_FRESH)
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
            groups = [batch[i * n : (i + 1) * n] for i in range(len(lot))]
            winners = [max(group, key=_earned) for group in groups]
            spent = {"n": n, "seconds": round((time.monotonic() - began) / len(lot), 3)}
            append_jsonl(path, [{"part": part, **best.row(), **spent} for best in winners])


def _earned(rollout: Rollout) -> float:
    return -math.inf if rollout.reward is None else rollout.reward


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
        if row["part"] == "train" and row["rewards"].get(main, 0) > 0:
            shown.append((prompts[prompt_of(row)], row["reply"]))
    if not shown:
        return None
    began, folder = time.monotonic(), run.folder / "distilled"
    made = taught(params, base, shown, folder)
    if "distilled" not in run.manifest:
        seconds = round(time.monotonic() - began, 1)
        run.update(distilled={"demonstrations": len(shown), "seconds": seconds})
    return made


class BestOf:
    """Rewriter that returns the best completions as they were kept."""

    def __init__(self, folder: Path):
        """Read a run's `best_of.jsonl`."""
        kept = (row for row in read_jsonl(folder / FILE) if row["part"] == "held_out")
        self._kept = {prompt_of(row): row for row in kept}

    async def rewrite(
        self, method: str, example: Example, key_point: KeyPoint, sample_index: int = 0
    ) -> Rewrite:
        """Return the page that the best completion stands for."""
        line = self._kept.get((example.query_id, key_point.number))
        if line is None or line["reward"] is None:
            return Rewrite("", "short: no completion for this page has a score")
        if line["page"] is None:
            return Rewrite("", line["problem"], own_failure=True)
        return Rewrite(line["page"], echoes=line["echoes"])
