"""The speed of a GRPO step under every setting: each measured in a fresh process, one row each."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from geo_utils.efficiency.bench import Bench, Server, Turn, servers_of, visible_gpus
from geo_utils.efficiency.params import EfficiencyParams
from geo_utils.efficiency.recipes import asked_models, latency_s, place, simulated
from geo_utils.evaluate import Counter
from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.runs import Run, package_versions

log = logging.getLogger(__name__)


def sweep(params: EfficiencyParams, run: Run) -> list[dict[str, Any]]:
    """Measure the chosen settings and append a row each to `rows.jsonl`.

    All that one call measures is one sitting: one machine, one process tree. The reference is
    measured first and last in it. A sweep that was cut short goes on at the next setting, as a
    new sitting. What fails is a row with its reason.

    Args:
        params: Settings and what they are measured with.
        run: The run.

    Returns:
        All rows of the run.
    """
    path = run.folder / "rows.jsonl"
    rows = read_jsonl(path)
    present = visible_gpus()
    made = {(row["setting"], row["repeat"]) for row in rows}
    todo = turns(params, made, list(present))
    show = Counter("settings")
    sitting = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    with Bench(params, run.folder / "work") as bench:
        for place_, turn in enumerate(todo):
            show(place_, len(todo))
            row = _labels(turn, params, list(present.values())) | {"sitting": sitting}
            if turn.placement.refused:
                row |= {"status": "not run", "reason": turn.placement.refused}
            else:
                row |= bench.measure(turn, next(iter(todo[place_ + 1 :]), None))
            row |= {"measured_at": datetime.now(UTC).isoformat(timespec="seconds")}
            log.info("%s: %s %s", turn.name, row["status"], row.get("step_s") or row.get("reason"))
            append_jsonl(path, [row])
            rows.append(row)
        show(len(todo), len(todo))
    return rows


def turns(
    params: EfficiencyParams, made: Collection[tuple[str, int]], present: Sequence[int]
) -> list[Turn]:
    """Return what is left to measure, in the order in which servers are started least often.

    Settings that need the same servers follow each other, their repeats interleaved; the
    reference is first and last. Settings that cannot be measured here come before all.

    Args:
        params: Settings and repeats.
        made: Settings and repeats that have a row.
        present: Indices of the GPUs that may be used.
    """
    every = [
        Turn(name, setting, place(setting, params, present), repeat)
        for name, setting in params.chosen.items()
        for repeat in range(params.timing.repeats)
    ]
    left = [turn for turn in every if (turn.name, turn.repeat) not in made]
    refused = [turn for turn in left if turn.placement.refused and turn.repeat == 0]
    good = [turn for turn in left if not turn.placement.refused]
    todo = [turn for turn in good if turn.name != params.reference]
    vllm = list(dict.fromkeys(_vllm_servers(turn, params) for turn in todo))
    other = list(dict.fromkeys(servers_of(turn, params) for turn in todo))
    todo.sort(key=lambda turn: (vllm.index(_vllm_servers(turn, params)),
                                other.index(servers_of(turn, params)), turn.repeat))  # fmt: skip
    ends = [
        replace(turn, repeat=repeat, reference=end)
        for turn in every
        if turn.name == params.reference and turn.repeat == 0 and not turn.placement.refused
        for repeat, end in enumerate(("first", "last"))
        if todo or turn in left
    ]
    return [*refused, *ends[:1], *todo, *ends[1:]]


def _vllm_servers(turn: Turn, params: EfficiencyParams) -> tuple[Server, ...]:
    return tuple(server for server in servers_of(turn, params) if server.gpu is not None)


def _labels(turn: Turn, params: EfficiencyParams, present: list[str]) -> dict[str, Any]:
    """Return what a row says of its setting, whatever becomes of it."""
    setting, placement = turn.setting, turn.placement
    on_cpu = placement.on_cpu or not present
    gpus = f"{' and '.join(sorted(set(present)))} x {len(present)}"
    return {
        **setting.model_dump(),
        "setting": turn.name, "repeat": turn.repeat, "reference": turn.reference,
        "hardware": f"CPU, {os.cpu_count()} cores" if on_cpu else gpus,
        "gpus": len(set(placement.of.values())),
        "gpus_wanted": 0 if placement.on_cpu else setting.gpus_wanted,
        "prompt_tokens": params.work.prompt_tokens, "natural_lengths": params.work.natural_lengths,
        "reward_latency_s": latency_s(setting, params),
        "recipe": params.recipe | setting.recipe, "simulated": simulated(setting, params),
        "models": asked_models(setting, params)
        | {"answer_tokens": params.work.answer_tokens, "page_tokens": params.work.prompt_tokens},
        "versions": package_versions(),
    }  # fmt: skip
