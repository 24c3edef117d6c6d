"""What a policy is trained and tested on: a split by query, and prompts that fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from geo_utils.corpus import Corpus, Example, KeyPoint, choose_key_points
from geo_utils.evaluate import score_page
from geo_utils.files import resolve_path
from geo_utils.loops import gather_all, run_sync
from geo_utils.model_rewriters import PolicyRewriter, RewriteTask
from geo_utils.policies import PolicyCard
from geo_utils.roles import Roles, prompts_folder
from geo_utils.training.params import GrpoParams

Pairs = list[tuple[Example, KeyPoint]]
Fit = Callable[[Example, KeyPoint], int | None]


@dataclass(frozen=True)
class Split:
    """The queries of a corpus, and what is trained on.

    Attributes:
        train: (example, key point) pairs of the training queries.
        held_out: Examples that training never sees.
        left_out: Pairs of the training queries not trained on, as (why, count).
    """

    train: Pairs
    held_out: tuple[Example, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        """Say what is trained and what is tested on."""
        queries = len({example.query_id for example, _ in self.train})
        parts = [f"{len(self.train)} prompts of {queries} queries to train on"]
        parts += [f"{count} left out: {why}" for why, count in self.left_out]
        return "; ".join([*parts, f"{len(self.held_out)} queries held out"])


def base_model(params: GrpoParams) -> str:
    """Return the folder or Hub id of the model that the recipe names."""
    local = resolve_path(params.model_name_or_path)
    return str(local) if (local / "config.json").is_file() else params.model_name_or_path


def policy_card(params: GrpoParams) -> PolicyCard:
    """Return the card of the policy that these parameters train."""
    folder = prompts_folder(params)
    return PolicyCard(
        method=params.method,
        prompts=None if folder is None else str(folder),
        template=RewriteTask(params.method, folder).template.hash,
        max_prompt_tokens=params.data.max_prompt_tokens,
        max_completion_length=params.grpo["max_completion_length"],
        temperature=params.grpo.get("temperature", 1.0),
        top_p=params.grpo.get("top_p", 1.0),
    )


def split_queries(examples: Corpus, params: GrpoParams) -> Split:
    """Split a corpus by query, so that no page of a held-out query is trained on.

    Raises:
        ValueError: The corpus brings no key points, or too few queries to split.
    """
    with_points = sorted((e for e in examples if e.key_points), key=lambda e: e.query_id)
    if not with_points:
        raise ValueError(
            f"corpus={params.corpus!r} brings no key points; use one that does, or a model as "
            "engine or judge, which reads them off the pages"
        )
    random.Random(f"{params.seed}|held out").shuffle(with_points)
    n = round(params.data.held_out * len(with_points))
    if not 0 < n < len(with_points):
        raise ValueError(
            f"data.held_out={params.data.held_out}: {len(with_points)} queries with key points "
            f"would leave {n} to test and {len(with_points) - n} to train on; both need at least 1"
        )
    train = choose_key_points(with_points[n:], params.data.key_points, params.seed)
    return Split(train, tuple(with_points[:n]))


def prompt_rows(split: Split, task: RewriteTask, fit: Callable[..., int | None],
                recipe: str = "") -> list[dict[str, Any]]:  # fmt: skip
    """Return TRL's dataset: one row a pair, with the columns that the rewards read.

    Args:
        split: Brings the pairs.
        task: What the policy is asked.
        fit: How much of a page its prompt holds.
        recipe: Path of the recipe, for rewards that TRL's command line looks up by name.

    Raises:
        ValueError: No page fits the prompt.
    """
    rows = []
    for example, key_point in split.train:
        shown = fit(example, key_point)
        if shown == 0:
            continue
        row = {
            "prompt": [{"role": "user", "content": task.prompt(example, key_point, shown)}],
            "query_id": example.query_id,
            "key_point_number": key_point.number,
            "shown": -1 if shown is None else shown,
        }
        rows.append(row | ({"recipe": recipe} if recipe else {}))
    if not rows:
        raise ValueError(
            "data.max_prompt_tokens: not one sentence of any page fits beside the instructions; "
            "raise it"
        )
    return rows


def prefiltered(split: Split, policy: PolicyRewriter, roles: Roles, params: GrpoParams) -> Split:
    """Keep the pairs that the policy, before training, neither always nor never lands.

    A group of completions that all succeed or all fail teaches nothing. The trial rewrites and
    their answers are cached, so that a resumed run asks for nothing again.

    Args:
        split: Brings the pairs.
        policy: Writes the trial rewrites.
        roles: Engine and judge.
        params: Bring the band and the number of trials.

    Raises:
        ValueError: No pair is left.
    """
    band = params.data.prefilter
    if band is None:
        return split

    async def success(example: Example, key_point: KeyPoint) -> float | None:
        asked = [
            policy.rewrite(params.method, example, key_point, sample_index=i)
            for i in range(band.trials)
        ]
        rewrites = await gather_all(asked)
        rows = await gather_all(
            score_page(example, key_point, r.text, roles.engine, roles.judge, params.seed, 0)
            for r in rewrites
            if not r.abstention
        )
        unusable = [0.0] * sum(bool(r.abstention) for r in rewrites)
        found = unusable + [row["supported"] for row in rows if "supported" in row]
        return fmean(found) if found else None

    shares = run_sync(gather_all(success(e, p) for e, p in split.train))
    kept = [
        pair
        for pair, share in zip(split.train, shares, strict=True)
        if share is not None and band.low <= share <= band.high
    ]
    if not kept:
        raise ValueError(
            f"data.prefilter: no prompt succeeds in {band.low:.0%} to {band.high:.0%} of "
            f"{band.trials} trials; widen the band or use more trials"
        )
    why = f"success over {band.trials} trials outside {band.low:.0%} to {band.high:.0%}"
    return replace(split, train=kept, left_out=((why, len(split.train) - len(kept)),))
