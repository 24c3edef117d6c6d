"""Which groups a step trains on: those whose completions differ in the reward that asks an engine.

A group whose completions all land their key point, or all miss it, teaches nothing of it. Prompts
that are likely to have such groups are left out before the training, others are replaced within a
step (`reward.refills`).
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from geo_utils.files import read_jsonl, write_atomic
from geo_utils.grpo.params import Prefilter
from geo_utils.grpo.rewards import Rewards
from geo_utils.models.loops import run_sync

if TYPE_CHECKING:
    import torch

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
        lines = ""
        for i, row in enumerate(tried):
            known = [v for v in each[i * options.trials :][: options.trials] if not math.isnan(v)]
            line = {name: row[name] for name in ("query_id", "key_point_number")}
            lines += json.dumps(line | {"success": fmean(known) if known else None}) + "\n"
        write_atomic(path, lines)
    found = {prompt_of(line): line["success"] for line in read_jsonl(path)}
    shares = ((row, found.get(prompt_of(row))) for row in rows)
    kept = [r for r, share in shares if share is not None and options.low <= share <= options.high]
    if not kept:
        problem = f"no prompt succeeds in {band} of {options.trials} trials"
        raise ValueError(f"data.prefilter: {problem}; widen the band or use more trials")
    log.info("%d of %d prompts are kept: success in %s of trials", len(kept), len(found), band)
    return kept


def silent(rewards: torch.Tensor, size: int) -> list[int]:
    """Return the numbers of the groups that teach nothing: no two scores differ.

    Args:
        rewards: Of the completions, one component, NaN where there is none, (B,).
        size: Completions a group.
    """
    groups = enumerate(rewards.split(size))
    spreads = ((number, group[~group.isnan()]) for number, group in groups)
    return [n for n, known in spreads if len(known) < 2 or known.max() - known.min() <= 1e-3]


def others(rows: Any, tried: Set[tuple[str, int]], n: int, seed: str) -> list[Row]:
    """Draw up to n prompts that were not tried.

    Args:
        rows: All prompts; a list, or a dataset.
        tried: Those that are left out.
        n: How many are wanted.
        seed: Of the draw.
    """
    drawn = random.Random(seed).sample(range(len(rows)), min(n + len(tried), len(rows)))
    return [row for row in (rows[i] for i in drawn) if prompt_of(row) not in tried][:n]
