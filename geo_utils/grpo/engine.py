"""The policy's vLLM engine: arguments that TRL has no field for, and what drafts save.

`grpo.vllm_engine` holds arguments of vLLM's own engine, by name: a colocated engine is made with
them, and a server that a run brings along is started with them. One value is not vLLM's:
`speculative_config: {method: page}`, the drafts of `grpo.drafts`.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from geo_utils.cluster.servers import free_port

FIELD = "vllm_engine"
PROPOSER = "geo_utils.grpo.drafts.PageProposer"
_COUNTS = {  # by vLLM's name
    "vllm:inter_token_latency_seconds": "steps",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
}


def engine_arguments(grpo: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's own arguments that a recipe stands for."""
    given = dict(grpo.get(FIELD) or {})
    drafts = given.get("speculative_config")
    if drafts and drafts.get("method") == "page":
        ours = {"method": "custom_class", "model": PROPOSER}
        given["speculative_config"] = drafts | ours
    return given


def serve_options(grpo: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of `vllm serve` that a recipe stands for."""
    options: list[str] = []
    for name, value in engine_arguments(grpo).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return tuple(options)


@contextmanager
def colocated(grpo: Mapping[str, Any]) -> Iterator[None]:
    """Let TRL make its colocated engine with a recipe's arguments, in a `with` block."""
    # TRL's own choice is the first of four ports that is free: two trainings that start together
    # on one machine would take the same.
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    arguments = engine_arguments(grpo)
    if "speculative_config" in arguments:  # what is accepted is counted with the other figures
        arguments["disable_log_stats"] = False
    with ExitStack() as stack:
        if arguments:
            from trl.generation import vllm_generation

            module: Any = vllm_generation
            stack.enter_context(patch.object(module, "LLM", partial(module.LLM, **arguments)))
        yield


def draft_counts(generation: Any) -> dict[str, float]:
    """Return what vLLM has counted so far.

    Args:
        generation: TRL's `VLLMGeneration`.

    Returns:
        `steps`, in which a sequence got one or more tokens after its first, be there a draft or
        not; tokens `drafted`; and those of them that were `accepted`. What it does not count is
        missing.
    """
    if generation.mode == "server":
        with urllib.request.urlopen(f"{generation.vllm_client.base_url}/metrics", timeout=60) as at:
            lines = at.read().decode()
        told = re.findall(r"^([\w:]+)_(?:total|count)(?:\{.*\})? (\S+)$", lines, re.MULTILINE)
    else:
        metrics = generation.llm.get_metrics()
        told = [(one.name, getattr(one, "value", getattr(one, "count", 0))) for one in metrics]
    counts: dict[str, float] = {}
    for name, value in told:
        if of := _COUNTS.get(name):  # one an engine, where there are several
            counts[of] = counts.get(of, 0.0) + float(value)
    return counts


def log_drafts(trainer: Any) -> None:
    """Let a trainer log, for each batch that it trains on, what drafts saved.

    `drafts/tokens_a_step` is how many tokens a sequence gained in one step of the engine, and
    `drafts/accepted` the share of drafted tokens that were kept.

    Args:
        trainer: With vLLM; changed in place.
    """
    generation, turn = trainer.vllm_generation, trainer._generate_single_turn
    generate, waiting = generation.generate, deque[dict[str, float]]()

    def generate_and_count(*args: Any, **kwargs: Any) -> Any:
        before = draft_counts(generation)
        found = generate(*args, **kwargs)
        after = draft_counts(generation)
        waiting.append({name: count - before.get(name, 0.0) for name, count in after.items()})
        return found

    def turn_and_log(*args: Any, **kwargs: Any) -> Any:
        found = turn(*args, **kwargs)  # a batch may have been written while another was trained on
        counts = waiting.popleft()
        if counts.get("drafted"):
            written = sum(len(ids) - 1 for ids in found[0])
            trainer._log_metric("drafts/tokens_a_step", written / counts["steps"])
            trainer._log_metric("drafts/accepted", counts["accepted"] / counts["drafted"])
        return found

    generation.generate, trainer._generate_single_turn = generate_and_count, turn_and_log
