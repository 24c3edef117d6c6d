"""Supervised fine-tuning before the reinforcement: pairs of prompt and rewrite, and their use."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from geo_utils.arrangement import page_units
from geo_utils.corpus import Corpus, Example, KeyPoint, load_corpus
from geo_utils.evaluate import score_page
from geo_utils.files import write_atomic
from geo_utils.loops import gather_all, run_sync
from geo_utils.model_rewriters import ModelRewriter, RewriteTask
from geo_utils.models.base import FatalError
from geo_utils.notebooks import read_parameters
from geo_utils.parameter_errors import ParameterError
from geo_utils.policies import fitter, load_tokenizer
from geo_utils.rewriters import EDITS
from geo_utils.roles import Roles, make_roles
from geo_utils.training.checkpoints import checkpoint_step, newest_complete
from geo_utils.training.data import base_model, policy_card, split_queries
from geo_utils.training.log import hush
from geo_utils.training.options import ColdStart
from geo_utils.training.params import GrpoParams
from geo_utils.training.preflight import machine_settings
from geo_utils.training.small_policy import make_small_policy

Pairs = Sequence[tuple[Example, KeyPoint]]
Fit = Callable[[Example, KeyPoint], int | None]
LONGEST = 32768  # tokens; LLaMA-Factory cuts what is longer


@dataclass(frozen=True)
class Demonstration:
    """A prompt with the reply that the policy should learn to give.

    Attributes:
        prompt: The user's message.
        reply: The assistant's.
    """

    prompt: str
    reply: str

    def messages(self) -> dict[str, list[dict[str, str]]]:
        """Return TRL's conversational prompt and completion."""
        return {
            "prompt": [{"role": "user", "content": self.prompt}],
            "completion": [{"role": "assistant", "content": self.reply}],
        }


def demonstrations(
    pairs: Pairs, task: RewriteTask, fit: Fit, options: ColdStart, roles: Roles, seed: int
) -> list[Demonstration]:
    """Return what the policy is shown before it is rewarded.

    Args:
        pairs: Examples and key points of the training queries.
        task: What the policy is asked.
        fit: How much of a page its prompt holds.
        options: `edits` gives as many random edits as training looks at; `rewrites` the best of
            some rewrites for each pair.
        roles: Rewriter, engine and judge for `rewrites`.
        seed: Seed of the draw.

    Raises:
        ValueError: Not one demonstration could be had.
    """
    fitting = [(e, p) for e, p in pairs if page_units(e.target)[: fit(e, p)]]
    found: list[Demonstration | None] = []
    if options.pairs == "rewrites":
        asked = (_best_rewrite(e, p, task, fit, options.best_of, roles) for e, p in fitting)
        found = run_sync(gather_all(asked))
    elif fitting:
        draw = random.Random(f"{seed}|cold start")
        count = options.steps * options.batch_size
        found = [_edit(*draw.choice(fitting), task, fit, draw) for _ in range(count)]
    kept = [shown for shown in found if shown is not None]
    if not kept:
        raise ValueError(
            "cold_start: no page fits the prompt (data.max_prompt_tokens), or no rewrite of any "
            "carries its key point; use pairs: edits, or a larger best_of"
        )
    return kept


def _edit(
    example: Example, key_point: KeyPoint, task: RewriteTask, fit: Fit, draw: random.Random
) -> Demonstration:
    """Return a random edit: valid, but no better than chance at carrying the key point."""
    shown = fit(example, key_point)
    units = page_units(example.target)[:shown]
    prompt = task.prompt(example, key_point, shown)
    if task.method != "arrange_key_point":
        edit = draw.choice(("original", "key_point", "paste_key_point", "repeat_key_point"))
        head = example.target[: units[-1].end] if shown else example.target
        sources = tuple(
            head if i == example.target_id else page for i, page in enumerate(example.sources)
        )
        cut = Example(
            example.query_id, example.query, sources, example.target_id, example.key_points
        )
        return Demonstration(prompt, EDITS[edit](cut, key_point))
    marks = [f"[{i}]" for i in range(1, len(units) + 1)]
    marks = [f"**{mark}**" if draw.random() < 0.15 else mark for mark in marks]
    for _ in range(draw.choices((0, 1, 2), (0.55, 0.35, 0.1))[0]):
        mark = "**[K]**" if draw.random() < 0.3 else "[K]"
        marks.insert(draw.randrange(len(marks) + 1), mark)
    return Demonstration(prompt, "".join(marks))


async def _best_rewrite(
    example: Example, key_point: KeyPoint, task: RewriteTask, fit: Fit, best_of: int, roles: Roles
) -> Demonstration | None:
    """Return the rewrite whose answers carry the key point most often, if any do.

    The rewriter asks through the cache of notebook 03: what that has asked costs nothing.
    """
    shown, params = fit(example, key_point), roles.params
    if shown is not None:  # a rewrite of the whole page would not fit the prompt's part of it
        return None
    if isinstance(roles.rewriter, ModelRewriter):
        asked = [
            roles.rewriter.rewrite(task.method, example, key_point, sample_index=i)
            for i in range(best_of)
        ]
    else:
        asked = [roles.rewriter.rewrite("key_point", example, key_point)]
    best: tuple[float, str] | None = None
    for rewrite in await gather_all(asked):
        if rewrite.abstention:
            continue
        rows = await gather_all(
            score_page(example, key_point, rewrite.text, roles.engine, roles.judge, params.seed, i)
            for i in range(params.repeats)
        )
        support = [row["supported"] for row in rows if "supported" in row]
        if support and fmean(support) > (best[0] if best else 0.0):
            best = fmean(support), rewrite.text
    return Demonstration(task.prompt(example, key_point), best[1]) if best else None


def train_cold(
    base: str, shown: Sequence[Demonstration], options: ColdStart, folder: Path,
    lora: dict[str, Any], settings: dict[str, Any],
) -> Path:  # fmt: skip
    """Fine-tune the policy on demonstrations and write the whole model.

    Args:
        base: The policy before.
        shown: Demonstrations.
        options: Steps, batch and learning rate; a small model is trained in full.
        folder: Gets the model; its checkpoints lie under `sft/` and are gone on from.
        lora: Fields of LoraConfig.
        settings: Fields of SFTConfig that depend on machine and seed.

    Returns:
        The folder; a model is there that training can start from, without an adapter.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config = SFTConfig(
        output_dir=str(folder / "sft"), max_steps=options.steps, save_steps=50, save_total_limit=2,
        per_device_train_batch_size=options.batch_size, learning_rate=options.learning_rate,
        lr_scheduler_type="cosine", warmup_steps=max(options.steps // 10, 1), logging_steps=20,
        completion_only_loss=True, report_to="none", disable_tqdm=True, max_length=None,
        **settings,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=base,
        args=config,
        train_dataset=Dataset.from_list([demo.messages() for demo in shown]),
        peft_config=None if options.small_model else LoraConfig(**lora, task_type="CAUSAL_LM"),
    )
    hush(trainer)
    checkpoint = newest_complete(folder / "sft")
    if checkpoint is not None and (checkpoint_step(checkpoint) or 0) >= options.steps:
        trainer._load_from_checkpoint(str(checkpoint))  # `train` would take one step too many
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = model if options.small_model else model.merge_and_unload()
    whole.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def base_and_demonstrations(
    params: GrpoParams, roles: Roles, examples: Corpus, folder: Path
) -> tuple[str, list[Demonstration]]:
    """Return the model that a recipe's cold start trains, and what it is shown.

    Args:
        params: The recipe.
        roles: For demonstrations that are rewrites.
        examples: The corpus; demonstrations come from its training queries.
        folder: Gets the small model, under `random/`, where the recipe asks for one.
    """
    cold, base = params.cold_start, base_model(params)
    train, card = split_queries(examples, params).train, policy_card(params)
    if cold.small_model:
        texts = [page for example, _ in train for page in example.sources]
        texts += [card.task.prompt(example, point) for example, point in train]
        base = str(make_small_policy(folder / "random", texts, cold.small_model, params.seed))
    fit = fitter(card, load_tokenizer(base))
    return base, demonstrations(train, card.task, fit, cold, roles, params.seed)


def export_llamafactory(
    shown: Iterable[Demonstration], folder: Path, base: str, options: ColdStart,
    lora: dict[str, Any], settings: dict[str, Any],
) -> Path:  # fmt: skip
    """Write the demonstrations as a LLaMA-Factory dataset with a recipe to train on it.

    Args:
        shown: Demonstrations.
        folder: Gets `dataset_info.json`, `demonstrations.json` and `sft.yaml`.
        base: Model id or folder, of the Qwen3 family; for another, change the recipe's template.
        options: Steps, batch and learning rate.
        lora: Fields of LoraConfig.
        settings: Fields of TrainingArguments that depend on machine and seed.

    Returns:
        The recipe's path.
    """
    rows = [
        {"conversations": [{"from": "human", "value": d.prompt}, {"from": "gpt", "value": d.reply}]}
        for d in shown
    ]
    write_atomic(folder / "demonstrations.json", json.dumps(rows, ensure_ascii=False, indent=1))
    info = {
        "key_points": {
            "file_name": "demonstrations.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"},
        }
    }
    write_atomic(folder / "dataset_info.json", json.dumps(info, indent=1))
    targets = lora["target_modules"]
    names = targets if isinstance(targets, str) else ",".join(targets)
    # A model that can think has to be trained after the empty thought that its prompts end with.
    thinks = "enable_thinking" in str(load_tokenizer(base).chat_template)
    recipe: dict[str, Any] = {
        "model_name_or_path": base, "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_target": "all" if names == "all-linear" else names, "lora_rank": lora["r"],
        "lora_alpha": lora["lora_alpha"],
        **{name: lora[name] for name in ("lora_dropout", "use_rslora", "use_dora") if name in lora},
        "template": "qwen3" if thinks else "qwen3_nothink", "enable_thinking": False,
        "dataset_dir": str(folder.resolve()), "dataset": "key_points", "cutoff_len": LONGEST,
        "output_dir": str(folder.resolve() / "adapter"), "overwrite_output_dir": True,
        "max_steps": options.steps, "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate, "lr_scheduler_type": "cosine",
        "warmup_steps": max(options.steps // 10, 1), "report_to": "none", "logging_steps": 1,
        "bf16": True, **settings,
    }  # fmt: skip
    write_atomic(folder / "sft.yaml", yaml.safe_dump(recipe, sort_keys=False))
    return folder / "sft.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Export a recipe's cold start for LLaMA-Factory."""
    parser = argparse.ArgumentParser(prog="python -m geo_utils.training.cold_start")
    parser.add_argument("command", choices=["export"])
    parser.add_argument("recipe", help="name of a file in params/04_grpo/, or a path to one")
    parser.add_argument("folder", type=Path, help="gets the data set, the recipe and the adapter")
    args = parser.parse_args(argv)
    try:
        _, _, params = read_parameters(GrpoParams.notebook, args.recipe)
        assert isinstance(params, GrpoParams)
        if not params.cold_start.steps:
            raise ParameterError("cold_start.steps=0: the recipe has no cold start to export")
        folder, roles = args.folder.resolve(), make_roles(params)
        examples = load_corpus(**params.corpus_options)
        base, shown = base_and_demonstrations(params, roles, examples, folder)
        recipe = export_llamafactory(
            shown, folder, base, params.cold_start, params.lora, machine_settings(params)
        )
        policy_card(params).write(folder / "adapter")  # so that it is asked as it was trained
    except (ParameterError, ValueError, FatalError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(f"{len(shown)} demonstrations: {recipe}\nllamafactory-cli train {recipe}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
