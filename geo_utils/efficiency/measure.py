"""One measurement of a training's speed, in a process of its own: a recipe in, a result out."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import pandas as pd

from geo_utils.corpus import Example, KeyPoint, load_corpus
from geo_utils.efficiency.recipes import failure
from geo_utils.files import read_jsonl, write_atomic
from geo_utils.grpo.checkpoints import Interrupts
from geo_utils.grpo.data import Split, base_model, policy_card, prompt_rows
from geo_utils.grpo.log import TrainingLog, hush, timed
from geo_utils.grpo.params import GrpoParams, check_machine
from geo_utils.grpo.rewards import Rewards
from geo_utils.grpo.train import make_trainer
from geo_utils.models.base import Completion, Request
from geo_utils.roles.by_model import Completes, ModelEngine, ModelJudge, RewriteTask
from geo_utils.roles.engines import Engine
from geo_utils.roles.judges import Judge
from geo_utils.roles.make import Roles, make_roles
from geo_utils.roles.policies import fitter, load_tokenizer, prompt_counter
from geo_utils.roles.rewriters import Rewrite

log = logging.getLogger(__name__)
Reward = Callable[..., Awaitable[list[float | None]]]
_APART = 0.001
_FILLER = " and"  # one token in most vocabularies


def measure(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train for the steps of a specification and return what they took.

    Args:
        spec: `recipe`, the values of notebook 04's parameters; `warmup_steps`; `answer_tokens`;
            `page_tokens`, of each page in an engine's prompt, the rewritten one among them;
            `same_length`, whether all policy prompts have as many tokens, so that nothing is
            padded.
        folder: Gets a file `phase` that says how far it is.

    Returns:
        The row's fields that only the training knows; the steps' begin and end as `window`.
    """
    hush()
    params = GrpoParams.check(spec["recipe"])
    check_machine(params)
    roles = make_roles(params)
    engine, judge = _asked_once(roles, spec["answer_tokens"])
    base = base_model(params)
    resize = partial(resized, load_tokenizer(base), spec["page_tokens"])
    examples = work_examples(load_corpus(**params.corpus_options), resize)
    rows, prompt_tokens = prompts(params, examples, base, spec["same_length"])
    _note(folder, "making the trainer")
    with tempfile.TemporaryDirectory() as scratch:
        noted = _NotedLog(Path(scratch), policy_card(params), Interrupts())
        noted.noted = folder
        task = _AnyReply(params.policy.method, resize=resize)
        rewards = Rewards(examples, task, engine, judge, params.reward, params.seed)
        rewards.functions = [_unequal(function) for function in rewards.functions]
        with timed(noted.clock):
            trainer = make_trainer(params, base, rows, rewards, Path(scratch), noted)
            trainer.train()
        steps = read_jsonl(Path(scratch) / "metrics.jsonl")
    whole_s = sum(row["phases"]["step"] for row in steps)
    spent = _spent(roles, params, len(steps))
    if params.reward.schedule == "ahead":
        steps.pop()  # the last step has no batch to write beside it, though calls of its own
    found = _result(steps, spec["warmup_steps"]) | spent
    found |= {"shared_prefix": trainer.prompts, "prompts_apart": trainer.prompts_apart}
    found |= {"direct_sync": trainer.synced == "direct", "weight_sync": trainer.synced}
    if params.reward.schedule == "ahead":
        found["step_s"] = fmean(found["step_s_all"])  # long and short ones take turns
    return found | {"prompt_tokens": prompt_tokens, "all_steps_s": round(whole_s, 2)}


class _NotedLog(TrainingLog):
    """Notes which step is under way; the first ones are those that compile."""

    noted: Path

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_step_begin(args, state, control, **more)
        _note(self.noted, f"step {state.global_step + 1} of {state.max_steps}")


def _note(folder: Path, phase: str) -> None:
    log.info("%s", phase)
    write_atomic(folder / "phase", phase)


def resized(tokenizer: Any, tokens: int, page: str) -> str:
    """Return a page cut, or filled up with one word, to so many tokens, within one or two."""
    found = tokenizer(page, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in found["offset_mapping"]]
    if len(ends) >= tokens:
        return page[: ends[tokens - 1]]
    one = len(tokenizer(_FILLER, add_special_tokens=False)["input_ids"])
    return page + _FILLER * ((tokens - len(ends)) // one)


def work_examples(corpus: Iterable[Example], resize: Callable[[str], str]) -> list[Example]:
    """Return an example a key point, whose pages all have the size of the study's.

    A page of the sample is short: the query's others follow it. Each page begins with a line that
    no other example has, so that a server's prefix cache holds nothing but what completions of
    one prompt share, as in a training on a corpus that is large.
    """
    made = []
    for example in corpus:
        for point in example.key_points:
            name = f"{example.query_id}-{point.number}"
            pages = []
            for place, page in enumerate(example.sources):
                rest = [other for other in example.sources if other != page]
                pages.append(resize("\n\n".join([f"# {name}, page {place + 1}", page, *rest])))
            made.append(replace(example, query_id=name, sources=tuple(pages), key_points=(point,)))
    return made


@dataclass(frozen=True)
class _AnyReply(RewriteTask):
    """Takes every reply for a page of the study's size: whatever it holds, it costs its calls."""

    resize: Callable[[str], str] = str

    def page(
        self, reply: str, example: Example, key_point: KeyPoint, shown: int | None = None
    ) -> Rewrite:
        return Rewrite(self.resize(reply.strip() or example.target))


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

    A page is cut where the prompt is full. For the same length, a word fills up what is left.
    """
    card, tokenizer = policy_card(params), load_tokenizer(base)
    pairs = [(example, point) for example in examples for point in example.key_points]
    fit = fitter(replace(card, max_completion_length=2**20), tokenizer)
    rows = prompt_rows(Split(pairs, ()), card.task, fit)
    count = prompt_counter(tokenizer)
    if same_length:
        for message in (row["prompt"][0] for row in rows):
            text = message["content"]
            length = count(text)
            missing = card.max_prompt_tokens - length
            message["content"] = text + _FILLER * (missing // (count(text + _FILLER) - length))
    return rows, round(fmean(count(row["prompt"][0]["content"]) for row in rows), 1)


def _result(steps: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Return the row's fields on time, from the steps after the warm-up."""
    counted = steps[warmup:]
    seconds = [row["phases"]["step"] for row in counted]
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    phases, background = (
        pd.DataFrame([row.get(part, {}) for row in counted]).fillna(0.0)
        for part in ("phases", "background")
    )
    phases = phases.drop(columns="step")

    def mean(name: str) -> float | None:
        found = [row[name] for row in counted if row.get(name) is not None]
        return round(fmean(found), 4) if found else None

    return {
        "steps": len(counted), "step_s": middle, "step_s_spread": [low, high],
        "step_s_all": seconds, "phases": phases.median().round(4).to_dict(),
        "phases_all": phases.to_dict("list"), "background": background.median().round(4).to_dict(),
        "engine_s": mean("reward/engine_wall"), "judge_s": mean("reward/judge_wall"),
        "abstained": mean("reward/abstained"), "new_tokens": mean("completions/mean_length"),
        "logp_difference": mean("sampling/sampling_logp_difference/mean"),
        "tokens_a_step": mean("drafts/tokens_a_step"),
        "window": [steps[warmup - 1]["at"] if warmup else counted[0]["at"] - seconds[0],
                   counted[-1]["at"]],
    }  # fmt: skip


def _spent(roles: Roles, params: GrpoParams, steps: int) -> dict[str, Any]:
    """Return what was sent for 1,000 rollouts."""
    spent, rollouts = roles.usage.report(), steps * params.generation_size
    costs = [row["cost_usd"] for row in spent.values()]
    cost = None if not costs or None in costs else sum(costs)

    def per_1000(*counts: str) -> float:
        total = sum(int(row[count]) for row in spent.values() for count in counts)
        return round(1000 * total / rollouts, 1)

    return {
        "calls_per_1000": per_1000("calls"),
        "tokens_per_1000": per_1000("tokens_in", "tokens_out"),
        "cost_per_1000": None if cost is None else round(1000 * cost / rollouts, 4),
        "tokens_a_call": {
            role: [round(row[count] / max(row["answered"], 1), 1)
                   for count in ("tokens_in", "tokens_out")]
            for role, row in spent.items()
        },
        "served_by": sorted(roles.usage.served_by),
    }  # fmt: skip


def main(place: str) -> int:
    """Measure the specification in a folder, once it is there, and write `result.json` beside it.

    What takes time and needs no GPU is imported before: the process may be started while another
    setting is still measured. Of several trainers the first writes, and whichever fails.
    """
    logging.basicConfig(format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    folder = Path(place)
    _note(folder, "importing libraries")
    import geo_utils.grpo.trainer  # noqa: F401

    if find_spec("vllm"):
        import vllm  # noqa: F401
    _note(folder, "waiting for its specification")
    while not (folder / "spec.json").is_file():
        time.sleep(0.02)
    _note(folder, "making roles and prompts")
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    try:
        result = {"status": "measured", **measure(spec, folder)}
    except BaseException as error:
        traceback.print_exc()
        result = failure(f"{type(error).__name__}: {error}".strip()[:600])
    measured = result["status"] == "measured"
    if not measured or os.environ.get("RANK", "0") == "0":
        write_atomic(folder / "result.json", json.dumps(result))
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
