"""One measurement of a training's speed, in a process of its own: a recipe in, a result out."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from geo_utils.corpus import Example, KeyPoint, load_corpus
from geo_utils.engines import Engine
from geo_utils.files import read_jsonl, write_atomic
from geo_utils.judges import Judge
from geo_utils.model_rewriters import RewriteTask
from geo_utils.model_roles import Completes, ModelEngine, ModelJudge
from geo_utils.models.base import Completion, Request
from geo_utils.policies import fitter, load_tokenizer, prompt_counter
from geo_utils.rewriters import Rewrite
from geo_utils.roles import Roles, make_roles
from geo_utils.training.data import Split, base_model, policy_card, prompt_rows
from geo_utils.training.grpo import make_trainer
from geo_utils.training.log import Interrupts, TrainingLog, hush
from geo_utils.training.params import GrpoParams
from geo_utils.training.phases import timed
from geo_utils.training.preflight import check_machine
from geo_utils.training.scoring import Rewards

Reward = Callable[..., Awaitable[list[float | None]]]
_APART = 0.001
_FILLER = " and"  # one token in most vocabularies
# What vLLM and CUDA say when a setting does not fit.
NO_MEMORY = ("out of memory", "no available memory", "less than desired gpu memory")


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Train for the steps of a specification and return what they took.

    Args:
        spec: `recipe`, the values of notebook 04's parameters; `warmup_steps`; `answer_tokens`;
            `same_length`, whether all prompts have as many tokens, so that nothing is padded.

    Returns:
        The row's fields that only the training knows; the steps' begin and end as `window`.
    """
    hush()
    params = GrpoParams.check(spec["recipe"])
    check_machine(params)
    examples = load_corpus(**params.corpus_options)
    roles = make_roles(params)
    engine, judge = _asked_once(roles, spec["answer_tokens"])
    base = base_model(params)
    rows, prompt_tokens = prompts(params, examples, base, spec["same_length"])
    with tempfile.TemporaryDirectory() as folder:
        log = TrainingLog(Path(folder), policy_card(params), Interrupts())
        task = _AnyReply(params.method)
        rewards = Rewards(examples, task, engine, judge, params.reward, params.seed)
        rewards.functions = [_unequal(function) for function in rewards.functions]
        with timed(log.clock):
            trainer = make_trainer(params, base, rows, rewards, Path(folder), log)
            trainer.train()
        steps = read_jsonl(Path(folder) / "metrics.jsonl")
    spent = _spent(roles, params, len(steps))
    if params.reward.schedule == "ahead":
        steps.pop()  # the last step has no batch to write beside it, though calls of its own
    return _result(steps, spec["warmup_steps"]) | spent | {"prompt_tokens": prompt_tokens}


class _AnyReply(RewriteTask):
    """Takes every reply for a page: whatever it holds, it costs its calls."""

    def page(
        self, reply: str, example: Example, key_point: KeyPoint, shown: int | None = None
    ) -> Rewrite:
        return Rewrite(reply.strip() or example.target)


@dataclass(frozen=True)
class _AsItComes:
    """Takes a model's first answer, whatever it is.

    An answer as long as it may be counts as cut off, and a training would ask for it anew, time
    and again; a judge of random weights may say neither yes nor no.
    """

    caller: Completes

    async def complete(self, request: Request) -> Completion:
        found = await self.caller.complete(replace(request, as_is=True))
        return replace(found, logprobs=found.logprobs or dict.fromkeys(request.choices, -1.0))


def _asked_once(roles: Roles, answer_tokens: int) -> tuple[Engine, Judge]:
    """Return engine and judge that cost the calls of answers which are all of use."""
    engine, judge = roles.engine, roles.judge
    if isinstance(engine, ModelEngine):
        shorter = replace(engine.sampling, max_tokens=answer_tokens)
        engine = replace(engine, caller=_AsItComes(engine.caller), sampling=shorter)
    if isinstance(judge, ModelJudge) and judge.soft:  # any other must be read
        judge = replace(judge, caller=_AsItComes(judge.caller))
    return engine, judge


def _unequal(reward: Reward) -> Reward:
    """Set the rewards of a group a little apart.

    All equal, they would leave the group a gradient of zeros, which a GPU multiplies faster.
    """

    @wraps(reward)
    async def apart(*args: Any, **columns: Any) -> list[float | None]:
        values = await reward(*args, **columns)
        return [None if v is None else v + _APART * place for place, v in enumerate(values)]

    return apart


def prompts(
    params: GrpoParams, examples: Iterable[Example], base: str, same_length: bool
) -> tuple[list[dict[str, Any]], float]:
    """Return prompts that all have about the longest length, and their mean length in tokens.

    Each page is followed by the query's others, and cut where the prompt is full. For the same
    length, a word fills up what is left.
    """
    card, tokenizer = policy_card(params), load_tokenizer(base)
    pairs = []
    for example in examples:
        pages = [example.target, *(p for p in example.sources if p != example.target)]
        sources = list(example.sources)
        sources[example.target_id] = "\n\n".join(pages)
        longer = replace(example, sources=tuple(sources))
        pairs += [(longer, point) for point in example.key_points]
    fit = fitter(replace(card, max_completion_length=2**20), tokenizer)
    rows = prompt_rows(Split(pairs, ()), card.task, fit)
    count = prompt_counter(tokenizer)
    if same_length:
        for message in (row["prompt"][0] for row in rows):
            text = message["content"]
            length = count(text)
            missing = params.data.max_prompt_tokens - length
            message["content"] = text + _FILLER * (missing // (count(text + _FILLER) - length))
    return rows, round(fmean(count(row["prompt"][0]["content"]) for row in rows), 1)


def _result(steps: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Return the row's fields on time, from the steps after the warm-up."""
    counted = steps[warmup:]
    seconds = [row["phases"]["step"] for row in counted]
    low, middle, high = quantiles(seconds, n=4, method="inclusive")

    def means(part: str) -> dict[str, float]:
        names = dict.fromkeys(name for row in counted for name in row.get(part, ()))
        return {
            name: round(fmean(row.get(part, {}).get(name, 0.0) for row in counted), 4)
            for name in names
            if name != "step"
        }

    def mean(name: str) -> float | None:
        found = [row[name] for row in counted if row.get(name) is not None]
        return round(fmean(found), 4) if found else None

    return {
        "steps": len(counted), "step_s": middle, "step_s_spread": [low, high],
        "step_s_all": seconds, "phases": means("phases"), "background": means("background"),
        "reward_s": mean("reward/seconds"), "engine_s": mean("reward/engine_wall"),
        "judge_s": mean("reward/judge_wall"), "abstained": mean("reward/abstained"),
        "new_tokens": mean("completions/mean_length"),
        "logp_difference": mean("sampling/sampling_logp_difference/mean"),
        "window": [steps[warmup - 1]["at"] if warmup else counted[0]["at"] - seconds[0],
                   counted[-1]["at"]],
    }  # fmt: skip


def _spent(roles: Roles, params: GrpoParams, steps: int) -> dict[str, Any]:
    """Return calls and cost of 1,000 rollouts, and the trainer's own peak memory."""
    import torch

    spent, rollouts = list(roles.usage.report().values()), steps * params.generation_size
    calls, costs = sum(row["calls"] for row in spent), [row["cost_usd"] for row in spent]
    cost = None if not costs or None in costs else sum(costs)
    on_gpu = torch.cuda.is_available()
    return {
        "calls_per_1000": round(1000 * calls / rollouts, 1),
        "cost_per_1000": None if cost is None else round(1000 * cost / rollouts, 4),
        "trainer_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
        "served_by": sorted(roles.usage.served_by),
    }


def main(path: str) -> int:
    """Measure a specification file and write `result.json` beside it."""
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        result = {"status": "measured", **measure(spec)}
    except BaseException as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".strip()[:600]
        memory = any(sign in reason.lower() for sign in NO_MEMORY)
        result = {"status": "out of memory" if memory else "failed", "reason": reason}
    write_atomic(Path(path).with_name("result.json"), json.dumps(result))
    return 0 if result["status"] == "measured" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
