"""The policy's vLLM engine: arguments that TRL has no field for, and what drafts save.

`grpo.vllm_engine` holds arguments of vLLM's own engine, by name: a colocated engine is made with
them, and a server that a run brings along is started with them. Two values are not vLLM's:
`speculative_config: {method: page}`, the drafts of `grpo.drafts`, and `logprobs_kernel: torch`.
"""

from __future__ import annotations

import inspect
import json
import re
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from geo_utils.parameters import ParameterError

FIELD = "vllm_engine"
PROPOSER = "geo_utils.grpo.drafts.PageProposer"
KERNEL = "logprobs_kernel"
_COUNTS = {  # by vLLM's name
    "vllm:inter_token_latency_seconds": "steps",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
}


def engine_arguments(grpo: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's own arguments that a recipe stands for."""
    given = {name: value for name, value in (grpo.get(FIELD) or {}).items() if name != KERNEL}
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
    """Let TRL make its colocated engine with a recipe's arguments, in a `with` block.

    Raises:
        ParameterError: This vLLM computes log-probabilities in another way than `logprobs_kernel`
            takes the place of.
    """
    arguments = engine_arguments(grpo)
    if "speculative_config" in arguments:  # what is accepted is counted with the other figures
        arguments["disable_log_stats"] = False
    with ExitStack() as stack:
        if arguments:
            from trl.generation import vllm_generation

            module: Any = vllm_generation
            stack.enter_context(patch.object(module, "LLM", partial(module.LLM, **arguments)))
        if KERNEL in (grpo.get(FIELD) or {}):
            _spread_logprobs()
        yield


def _spread_logprobs() -> None:
    """Let PyTorch compute the sampled tokens' log-probabilities in vLLM's V2 model runner.

    vLLM 0.24 reads the 152,000 scores of a sequence with one block of a GPU, twice and 1,024 at a
    time; PyTorch's reductions spread a row over many.
    """
    import torch
    from vllm import __version__
    from vllm.v1.worker.gpu.sample import logprob

    name = "compute_token_logprobs"
    replaced = getattr(logprob, name, None)
    if replaced is None or list(inspect.signature(replaced).parameters) != ["logits", "token_ids"]:
        raise ParameterError(
            f"grpo.{FIELD}.{KERNEL}='torch': vLLM {__version__} has no {name}(logits, token_ids) "
            "that it could take the place of; leave it out"
        )

    def compute_token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        return logits.gather(1, token_ids.long()) - logits.logsumexp(dim=1, keepdim=True)

    setattr(logprob, name, compute_token_logprobs)


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
