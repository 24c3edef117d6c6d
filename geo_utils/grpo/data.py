"""What a policy is trained and tested on: a split by query, and prompts that fit."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from geo_utils.corpus import Corpus, Example, KeyPoint, choose_key_points, load_corpus
from geo_utils.files import resolve_path
from geo_utils.grpo.params import GrpoParams
from geo_utils.models.base import LanguageModel
from geo_utils.models.caller import Caller
from geo_utils.models.loops import run_sync
from geo_utils.models.record import open_record
from geo_utils.parameters import ParameterError
from geo_utils.roles.by_model import REPLY_ROOM, PolicyRewriter, RewriteTask
from geo_utils.roles.make import Roles, make_caller
from geo_utils.roles.policies import (
    PolicyCard,
    fitter,
    load_tokenizer,
    policy_rewriter,
    prompt_counter,
)
from geo_utils.runs import Run

Pairs = list[tuple[Example, KeyPoint]]
Fit = Callable[[Example, KeyPoint], int | None]
MOST_TOKENS = 8192  # of a prompt or completion whose length follows the corpus


@dataclass(frozen=True)
class Split:
    """The queries of a corpus, and what is trained on.

    Attributes:
        train: (example, key point) pairs of the training queries.
        held_out: Examples that training never sees.
        validation: Pairs that judge the policy as its training goes, of still other queries.
    """

    train: Pairs
    held_out: tuple[Example, ...]
    validation: Pairs = field(default_factory=list)

    def __str__(self) -> str:
        """Say what is trained and what is tested on."""
        queries = len({example.query_id for example, _ in self.train})
        trained = f"{len(self.train)} prompts of {queries} queries to train on"
        queries = len({example.query_id for example, _ in self.validation})
        watched = f"{len(self.validation)} of {queries} to judge it as it goes" if queries else ""
        held_out = f"{len(self.held_out)} queries held out"
        return "; ".join(filter(None, [trained, watched, held_out]))


def base_model(params: GrpoParams) -> str:
    """Return the folder or Hub id of the model that the recipe names."""
    local = resolve_path(params.policy.base)
    return str(local) if (local / "config.json").is_file() else params.policy.base


def policy_card(params: GrpoParams) -> PolicyCard:
    """Return the card of the policy that these parameters train, with lengths in place of none."""
    folder, method = params.paths.templates, params.policy.method
    longest = params.data.max_prompt_tokens
    assert longest is not None, "with_lengths was not called"
    return PolicyCard(
        method=method,
        prompts=None if folder is None else str(folder),
        template=RewriteTask(method, folder).template.hash,
        max_prompt_tokens=longest,
        max_completion_length=params.grpo["max_completion_length"],
        temperature=params.grpo.get("temperature", 1.0),
        top_p=params.grpo.get("top_p", 1.0),
    )


def with_lengths(params: GrpoParams, corpus: Corpus) -> GrpoParams:
    """Return the parameters with lengths in place of none, so that pages are whole.

    Prompts are as long as the longest needs, completions as the longest page and a quarter more, in
    the policy's tokens, both at most `MOST_TOKENS`; vLLM's model length is their sum, and a draft.

    Raises:
        ParameterError: vLLM's model length is given and too short for both.
    """
    longest, length = params.data.max_prompt_tokens, params.grpo["max_completion_length"]
    if longest is None or length is None:
        task = RewriteTask(params.policy.method, params.paths.templates)
        examples = [*corpus, *split_queries(corpus, params).held_out]
        count = prompt_counter(load_tokenizer(base_model(params)))
        pairs = [(example, point) for example in examples for point in example.key_points]
        if longest is None:
            longest = min(max(count(task.prompt(*pair)) for pair in pairs), MOST_TOKENS)
        if length is None:
            page = max(count(example.target) for example in examples)
            length = min(64 * math.ceil(REPLY_ROOM * page / 64), MOST_TOKENS)
    grpo = params.grpo | {"max_completion_length": length}
    if params.generation == "colocate":
        drafts = (grpo.get("vllm_engine") or {}).get("speculative_config") or {}
        room = longest + length + drafts.get("num_speculative_tokens", 0)
        given = grpo.setdefault("vllm_max_model_length", room)
        if given is not None and given < longest + length:
            both = f"prompts of {longest} and completions of {length} tokens"
            raise ParameterError(f"grpo.vllm_max_model_length={given} is too short for {both}")
    data = params.data.model_copy(update={"max_prompt_tokens": longest})
    return params.model_copy(update={"data": data, "grpo": grpo})


def tell_lengths(params: GrpoParams, split: Split, base: str, run: Run) -> str:
    """Tell what is trained and tested on, and count the pages that a policy is not shown whole.

    Args:
        params: As `with_lengths` returns them.
        split: The pairs to train on, and the held-out examples.
        base: The policy.
        run: Gets `lengths`.
    """
    if params.recorded:
        run.update(lengths=open_record(params.recorded).about["lengths"])
        return str(run.manifest["lengths"]["words"])
    fit = fitter(policy_card(params), load_tokenizer(base))
    held_out = choose_key_points(split.held_out, params.key_points, params.seed)
    longest, length = params.data.max_prompt_tokens, params.grpo["max_completion_length"]
    told: dict[str, Any] = {"max_prompt_tokens": longest, "max_completion_length": length}
    words = [f"{split}. Prompts have at most {longest:,} tokens, completions {length:,}"]
    for name, pairs in (("to train on", split.train), ("held out", held_out)):
        shown = [fit(*pair) for pair in pairs]
        cut, lost = sum(bool(units) for units in shown), shown.count(0)
        told[name] = {"pairs": len(pairs), "cut": cut, "left_out": lost}
        said = f"of {len(pairs):,} pages {name} {cut:,} are cut to fit"
        words.append(said + (f" and {lost:,} left out, as no sentence fits" if lost else ""))
    run.update(lengths=told | {"words": "; ".join(words) + "."})
    return str(run.manifest["lengths"]["words"])


def split_queries(examples: Corpus, params: GrpoParams) -> Split:
    """Split a corpus by query, so that no page of a held-out query is trained on.

    Raises:
        ValueError: The corpus brings no key points, or too few queries to split, or shares some
            with the held-out one.
    """
    with_points = sorted((e for e in examples if e.key_points), key=lambda e: e.query_id)
    if not with_points:
        way = "use one that does, or a model as engine or judge, which reads them off the pages"
        raise ValueError(f"corpus {params.corpus.name!r} brings no key points; {way}")
    random.Random(f"{params.seed}|held out").shuffle(with_points)
    n = round(params.data.held_out * len(with_points))
    held_out, rest, validation = tuple(with_points[:n]), with_points[n:], []
    if apart := params.evaluation.corpus:
        options = params.model_copy(update={"corpus": apart}).corpus_options
        held_out = tuple(e for e in load_corpus(**options) if e.key_points)
    if not held_out or not rest:
        left = f"{len(held_out)} queries to test and {len(rest)} to train on; both need at least 1"
        raise ValueError(f"data.held_out={params.data.held_out}: it would leave {left}")
    if shared := {e.query_id for e in held_out} & {e.query_id for e in rest}:
        which = f"{len(shared)} of its queries are trained on, such as {min(shared)!r}"
        raise ValueError(f"evaluation.corpus: {which}; leave them out of one of the two")
    if params.data.validation:
        if (n := params.data.validation.queries) >= len(rest):
            left = f"it would leave none of {len(rest)} queries to train on"
            raise ValueError(f"data.validation.queries={n}: {left}")
        own, rest = rest[:n], rest[n:]
        validation = choose_key_points(own, params.data.key_points, params.seed)
    train = choose_key_points(rest, params.data.key_points, params.seed)
    return Split(train, held_out, validation)


def prompt_rows(split: Split, task: RewriteTask, fit: Fit) -> list[dict[str, Any]]:
    """Return TRL's dataset: one row per pair, with the columns that the rewards read.

    Args:
        split: Brings the pairs.
        task: What the policy is asked.
        fit: How much of a page its prompt holds.

    Raises:
        ValueError: No page fits the prompt.
    """
    rows = []
    for example, key_point in split.train:
        if (shown := fit(example, key_point)) != 0:
            prompt = task.prompt(example, key_point, shown)
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "query_id": example.query_id,
                "key_point_number": key_point.number,
                "shown": -1 if shown is None else shown,
            }
            rows.append(row)
    if not rows:
        raise ValueError("data.max_prompt_tokens: no sentence fits the prompt; raise it")
    return rows


def rows_of(params: GrpoParams, pairs: Pairs, base: str) -> list[dict[str, Any]]:
    """Return the prompts of some pairs for a policy, as `prompt_rows` makes them."""
    card = policy_card(params)
    return prompt_rows(Split(pairs, ()), card.task, fitter(card, load_tokenizer(base)))


@contextmanager
def policies(params: GrpoParams, roles: Roles) -> Iterator[Callable[[str], PolicyRewriter]]:
    """Give what makes a rewriter of a policy, whose weights are gone from memory afterwards.

    Args:
        params: How models are called.
        roles: Their usage is counted with these.
    """
    loaded: list[LanguageModel] = []

    def calls(model: LanguageModel) -> Caller:
        loaded.append(model)
        return make_caller(model, params, roles.usage)

    try:
        yield lambda name: policy_rewriter(name, calls, policy_card(params))
    finally:
        for model in loaded:
            run_sync(model.close())
        free_memory()


def free_memory() -> None:
    """Give the memory of what is no longer used back to the GPU."""
    import torch

    gc.unfreeze()  # what `SettledHeap` took out
    gc.collect()
    torch.cuda.empty_cache()
