"""Which groups a step trains on: those whose completions differ in the reward that asks an engine.

A group whose completions all land their key point, or all miss it, teaches nothing of it. Prompts
that are likely to have such groups are left out before the training, others as it goes.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from geo_utils.files import append_jsonl, read_jsonl, write_atomic
from geo_utils.grpo.params import Dynamic, Prefilter
from geo_utils.grpo.rewards import Rewards, differ
from geo_utils.models.loops import run_sync

log = logging.getLogger(__name__)
Row = Mapping[str, Any]


def prompt_of(row: Row) -> tuple[str, int]:
    """Return what tells a prompt from the others."""
    return row["query_id"], row["key_point_number"]


def prefiltered(
    trainer: Any, rows: Sequence[Row], rewards: Rewards, options: Prefilter, seed: int, folder: Path
) -> list[Row]:
    """Return the prompts that the policy, before its training, lands sometimes.

    Args:
        trainer: Writes the trials, by the weights it starts with.
        rows: The prompts.
        rewards: Bring engine and judge.
        options: The band, and the number of trials.
        seed: Seed of the draw of prompts, and of the trials.
        folder: Gets `prefilter.jsonl`, a line a prompt that was tried; a run that goes on takes it
            as it is.

    Raises:
        ValueError: No prompt is left.
    """
    path, band = folder / "prefilter.jsonl", f"{options.low:.0%} to {options.high:.0%}"
    if not path.is_file():
        tried = list(rows)
        if options.pairs is not None and options.pairs < len(rows):
            tried = random.Random(f"{seed}|prefilter").sample(tried, options.pairs)
        many = [row for row in tried for _ in range(options.trials)]
        each = run_sync(rewards.landed(many, trainer.write_now(many, seed)))
        lines = []
        for i, row in enumerate(tried):
            known = [v for v in each[i * options.trials :][: options.trials] if not math.isnan(v)]
            prompt = dict(zip(("query_id", "key_point_number"), prompt_of(row), strict=True))
            lines.append(json.dumps(prompt | {"success": fmean(known) if known else None}))
        write_atomic(path, "".join(f"{line}\n" for line in lines))
    found = {prompt_of(line): line["success"] for line in read_jsonl(path)}
    shares = ((row, found.get(prompt_of(row))) for row in rows)
    kept = [r for r, share in shares if share is not None and options.low <= share <= options.high]
    if not kept:
        problem = f"no prompt succeeds in {band} of {options.trials} trials"
        raise ValueError(f"data.prefilter: {problem}; widen the band or use more trials")
    log.info("%d of %d prompts are kept: success in %s of trials", len(kept), len(found), band)
    return kept


@dataclass
class Groups:
    """Draws other prompts for groups that teach nothing (`reward.dynamic`).

    Attributes:
        rows: All prompts to train on.
        size: Completions a group.
        main: Column of the reward that has to differ.
        options: How often others are drawn, and how long a prompt rests.
        seed: Seed of the draw.
        log: A line a step: how many groups were replaced, and the prompts of those that taught
            nothing. A resumed training goes on with what it holds.
    """

    rows: Sequence[Row]
    size: int
    main: int
    options: Dynamic
    seed: int
    log: Path
    _silent: dict[tuple[str, int], int] = field(default_factory=dict)  # the last step it was
    _now: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remember the steps before."""
        for row in read_jsonl(self.log):
            self._silent |= {(name, number): row["step"] for name, number in row["silent"]}

    def silent(self, rewards: torch.Tensor) -> list[int]:
        """Return the numbers of the groups that teach nothing.

        Args:
            rewards: A row a completion, (B, F), NaN where there is none.
        """
        each = enumerate(rewards[:, self.main].split(self.size))
        return [number for number, group in each if not differ(group.tolist())]

    def rested(self, rows: Sequence[Row], step: int) -> list[Row]:
        """Return a step's rows with others in place of prompts that rest."""
        resting = [i for i, row in enumerate(rows[:: self.size]) if self._rests(row, step)]
        return self.replaced(rows, resting, self.draw(rows, len(resting), step, 0))

    def draw(self, rows: Sequence[Row], n: int, step: int, time: int) -> list[Row]:
        """Return up to n prompts that are not among the step's and do not rest.

        Args:
            rows: Of the step.
            n: How many are wanted.
            step: The one that will train on them.
            time: The how manieth draw of the step.
        """
        taken = {prompt_of(row) for row in rows} | set(self._now)
        free = [r for r in self.rows if prompt_of(r) not in taken and not self._rests(r, step)]
        draw = random.Random(f"{self.seed}|groups|{step}|{time}")
        return draw.sample(free, min(n, len(free)))

    def replaced(self, old: Sequence[Any], places: Sequence[int], new: Sequence[Row]) -> list[Any]:
        """Return rows with the groups at some places replaced, the first first."""
        rows = list(old)
        for place, row in zip(places, new, strict=False):
            rows[place * self.size : (place + 1) * self.size] = [row] * self.size
        return rows

    def note(self, rows: Sequence[Row], silent: Sequence[int], step: int) -> None:
        """Remember the prompts of a step's groups that taught nothing."""
        found = [prompt_of(rows[number * self.size]) for number in silent]
        self._now += [prompt for prompt in found if prompt not in self._now]
        self._silent |= dict.fromkeys(found, step)

    def close(self, step: int, replaced: int) -> None:
        """End a step: write its line.

        Args:
            step: Its number.
            replaced: Groups that were replaced by others.
        """
        append_jsonl(self.log, [{"step": step, "replaced": replaced, "silent": self._now}])
        self._now = []

    def _rests(self, row: Row, step: int) -> bool:
        last = self._silent.get(prompt_of(row))
        return last is not None and step <= last + self.options.rest
