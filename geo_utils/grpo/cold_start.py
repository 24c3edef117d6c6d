"""Supervised fine-tuning before the reinforcement: demonstrations, and their use.

Where the recipe asks for it, the model is a small Qwen3 of random weights, made on the spot with a
tokenizer of the corpus's words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from geo_utils.corpus import Corpus, Example, KeyPoint, load_corpus
from geo_utils.files import write_atomic
from geo_utils.grpo.checkpoints import go_on, newest_complete
from geo_utils.grpo.data import Fit, base_model, policy_card, split_queries, with_lengths
from geo_utils.grpo.params import ColdStart, GrpoParams, SmallModel
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.parameters import ParameterError
from geo_utils.roles.by_model import ModelRewriter, RewriteTask
from geo_utils.roles.make import Roles, make_roles
from geo_utils.roles.policies import fitter, load_tokenizer, same_card
from geo_utils.roles.rewriters import EDITS, Rewrite, page_units

Demonstration = tuple[str, str]  # a prompt, and the reply that the policy should learn to give
LONGEST = 32768  # tokens; LLaMA-Factory cuts what is longer
# The format of Qwen's own template, for one user message and its answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer of the `tokenizers` package, trained on texts."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocabulary, 0, show_progress=False, special_tokens=marks)
    return Tokenizer.from_str(made.to_str())


def with_chat(tokenizer: Any) -> Any:
    """Return a tokenizer as Transformers wants it, with the chat template and its end marks."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def make_small_policy(
    folder: Path, texts: Iterable[str], options: SmallModel, seed: int = 0
) -> Path:
    """Make a model that stands in for Qwen3-1.7B where there is neither GPU nor weights.

    It knows nothing: what it can do, it learns in the cold start.

    Args:
        folder: Where model and tokenizer are written.
        texts: What the tokenizer's byte-level BPE is trained on.
        options: Its size.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_level_tokenizer(texts, options.vocabulary)
    # An arrangement's marks are one token each: two layers cannot learn to spell as well.
    tokenizer.add_tokens([mark for n in ("K", *range(1, 33)) for mark in (f"[{n}]", f"**[{n}]**")])
    wrapped = with_chat(tokenizer)
    heads = max(options.hidden_size // 16, 2)
    config = Qwen3Config(
        vocab_size=len(wrapped),
        hidden_size=options.hidden_size,
        intermediate_size=2 * options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=16,
        tie_word_embeddings=True,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def demonstrations(
    pairs: Sequence[tuple[Example, KeyPoint]],
    task: RewriteTask,
    fit: Fit,
    options: ColdStart,
    roles: Roles,
    seed: int,
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
    fitting = [(e, p, shown) for e, p in pairs if page_units(e.target)[: (shown := fit(e, p))]]
    found: list[tuple[Example, KeyPoint, int | None, str | None]] = []
    if options.pairs == "rewrites":
        # A rewrite of the whole page would not fit the prompt's part of it.
        whole = [pair for pair in fitting if pair[2] is None]
        asked = (_best_rewrite(e, p, task.method, options.best_of, roles) for e, p, _ in whole)
        replies = run_sync(gather_all(asked))
        found = [(*pair, reply) for pair, reply in zip(whole, replies, strict=True)]
    elif fitting:
        draw = random.Random(f"{seed}|cold start")
        for _ in range(options.steps * options.batch_size):
            pair = draw.choice(fitting)
            found.append((*pair, _edit(*pair, task.method, draw)))
    kept = [(task.prompt(e, p, shown), r) for e, p, shown, r in found if r is not None]
    if not kept:
        problem = "no page fits the prompt (data.max_prompt_tokens), or no rewrite lands its point"
        raise ValueError(f"cold_start: {problem}; use pairs: edits, or a larger best_of")
    return kept


def _edit(
    example: Example, key_point: KeyPoint, shown: int | None, method: str, draw: random.Random
) -> str:
    """Return a random edit: valid, but no better than chance at carrying the key point."""
    units = page_units(example.target)[:shown]
    if method != "arrange_key_point":
        edit = draw.choice(("original", "key_point", "paste_key_point", "repeat_key_point"))
        sources = list(example.sources)
        if shown:
            sources[example.target_id] = example.target[: units[-1].end]
        return EDITS[edit](replace(example, sources=tuple(sources)), key_point)
    marks = [f"[{i}]" for i in range(1, len(units) + 1)]
    marks = [f"**{mark}**" if draw.random() < 0.15 else mark for mark in marks]
    for _ in range(draw.choices((0, 1, 2), (0.55, 0.35, 0.1))[0]):
        mark = "**[K]**" if draw.random() < 0.3 else "[K]"
        marks.insert(draw.randrange(len(marks) + 1), mark)
    return "".join(marks)


async def _best_rewrite(
    example: Example, key_point: KeyPoint, method: str, best_of: int, roles: Roles
) -> str | None:
    """Return the rewrite whose answers carry the key point most often, if any do.

    The rewriter asks through the cache of notebook 03: what that has asked costs nothing.
    """
    if not isinstance(roles.rewriter, ModelRewriter):
        method, best_of = "key_point", 1
    rewrites = await gather_all(
        roles.rewriter.rewrite(method, example, key_point, sample_index=i) for i in range(best_of)
    )

    async def share(rewrite: Rewrite) -> float:
        rows = await gather_all(
            roles.scorer.page(example, key_point, rewrite.text, repeat)
            for repeat in range(0 if rewrite.abstention else roles.params.repeats)
        )
        known = [row["supported"] for row in rows if "supported" in row]
        return fmean(known) if known else 0.0

    shares = await gather_all(map(share, rewrites))
    best = shares.index(max(shares))
    return rewrites[best].text if shares[best] > 0 else None


def prepare_policy(params: GrpoParams, roles: Roles, examples: Corpus, folder: Path) -> str:
    """Return the policy that the reinforcement starts from, made where the recipe asks for it.

    Args:
        params: Name the model, or a small one to make, and the cold start.
        roles: For demonstrations that are rewrites.
        examples: The corpus; demonstrations come from its training queries.
        folder: Gets the model that a cold start leaves; one that is complete is used again.

    Returns:
        Folder or Hub id; of a recorded training, that of the model which the recipe names.
    """
    if params.recorded:
        return base_model(params)
    from geo_utils.grpo.log import StepCounter, hush

    hush()
    if not params.policy.cold_start.steps:
        return base_model(params)
    if not same_card(folder, policy_card(params)):
        base, shown = base_and_demonstrations(params, roles, examples, folder)
        counter = StepCounter(roles.counter("steps on demonstrations"))
        trainer = _supervised(params, base, shown, folder, counter)
        model = trainer.accelerator.unwrap_model(trainer.model)
        whole = model if params.policy.cold_start.small_model else model.merge_and_unload()
        whole.save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)
        policy_card(params).write(folder)  # last: a folder with its card is complete
    return str(folder)


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
    cold, base = params.policy.cold_start, base_model(params)
    train, card = split_queries(examples, params).train, policy_card(params)
    if cold.small_model:
        texts = [page for example, _ in train for page in example.sources]
        texts += [card.task.prompt(example, point) for example, point in train]
        base = str(make_small_policy(folder / "random", texts, cold.small_model, params.seed))
    fit = fitter(card, load_tokenizer(base))
    return base, demonstrations(train, card.task, fit, cold, roles, params.seed)


def schedule(options: ColdStart) -> dict[str, Any]:
    """Return the fields of TrainingArguments that a cold start sets."""
    return {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(options.steps // 10, 1),
        "report_to": "none",
    }


def _supervised(
    params: GrpoParams, base: str, shown: list[Demonstration], folder: Path, *callbacks: Any
) -> Any:
    """Train on demonstrations, and return the trainer; its checkpoints lie under `sft/`."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from geo_utils.grpo.log import hush

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    config = SFTConfig(
        output_dir=str(folder / "sft"),
        save_steps=50,
        save_total_limit=2,
        logging_steps=20,
        completion_only_loss=True,
        disable_tqdm=True,
        max_length=None,
        **schedule(params.policy.cold_start),
        **params.machine_settings,
    )
    in_full = params.policy.cold_start.small_model
    lora = None if in_full else LoraConfig(**params.lora, task_type="CAUSAL_LM")
    rows = [{"prompt": said("user", p), "completion": said("assistant", r)} for p, r in shown]
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(model=base, args=config, train_dataset=data, peft_config=lora)
    hush(trainer)
    for callback in callbacks:
        trainer.add_callback(callback)
    go_on(trainer, newest_complete(folder / "sft"))
    return trainer


def taught(params: GrpoParams, base: str, shown: list[Demonstration], folder: Path) -> Path:
    """Return the folder of an adapter that is taught some demonstrations; made once.

    Args:
        params: The recipe: GRPO's steps and adapter, the cold start's batch and learning rate.
        base: The model that is taught.
        shown: The demonstrations.
        folder: Gets the adapter.
    """
    card = policy_card(params)
    if not same_card(folder, card):
        own = {"steps": params.grpo["max_steps"], "small_model": None}
        cold = params.policy.cold_start.model_copy(update=own)
        policy = params.policy.model_copy(update={"cold_start": cold})
        changed = params.model_copy(update={"policy": policy})
        _supervised(changed, base, shown, folder).save_model(str(folder))
        card.write(folder)  # last: a folder with its card is complete
    return folder


def export(params: GrpoParams, folder: Path) -> tuple[Path, int]:
    """Export a recipe's cold start for LLaMA-Factory: demonstrations and a recipe to train on them.

    Args:
        params: The recipe; for a base that is not of the Qwen3 family, change the template of what
            is written.
        folder: Gets `dataset_info.json`, `demonstrations.json`, `sft.yaml` and, from that, the
            adapter.

    Returns:
        The path of LLaMA-Factory's recipe, and how many demonstrations there are.

    Raises:
        ParameterError: The recipe has no cold start.
    """
    if not params.policy.cold_start.steps:
        raise ParameterError("policy.cold_start.steps=0: the recipe has no cold start to export")
    examples, lora = load_corpus(**params.corpus_options), params.lora
    params = with_lengths(params, examples)
    base, shown = base_and_demonstrations(params, make_roles(params), examples, folder)
    rows = [
        {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": reply}]}
        for prompt, reply in shown
    ]
    write_atomic(folder / "demonstrations.json", json.dumps(rows, ensure_ascii=False, indent=1))
    columns = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
    info = {"key_points": {"file_name": "demonstrations.json", **columns}}
    write_atomic(folder / "dataset_info.json", json.dumps(info, indent=1))
    targets = lora["target_modules"]
    listed = targets if isinstance(targets, str) else ",".join(targets)
    # A model that can think has to be trained after the empty thought that its prompts end with.
    thinks = "enable_thinking" in str(load_tokenizer(base).chat_template)
    recipe: dict[str, Any] = {
        "model_name_or_path": base,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all" if listed == "all-linear" else listed,
        "lora_rank": lora["r"],
        "lora_alpha": lora["lora_alpha"],
        **{name: lora[name] for name in ("lora_dropout", "use_rslora", "use_dora") if name in lora},
        "template": "qwen3" if thinks else "qwen3_nothink",
        "enable_thinking": False,
        "dataset_dir": str(folder.resolve()),
        "dataset": "key_points",
        "cutoff_len": LONGEST,
        "output_dir": str(folder.resolve() / "adapter"),
        "overwrite_output_dir": True,
        **schedule(params.policy.cold_start),
        "logging_steps": 1,
        "bf16": True,
        **params.machine_settings,
    }
    write_atomic(folder / "sft.yaml", yaml.safe_dump(recipe, sort_keys=False))
    policy_card(params).write(folder / "adapter")  # so that it is asked as it was trained
    return folder / "sft.yaml", len(shown)
