"""GRPO: trains a policy to rewrite pages for their key points; one recipe is one run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from geo_utils.corpus import Corpus, load_corpus
from geo_utils.files import resolve_path, write_atomic
from geo_utils.loops import run_sync
from geo_utils.models.base import FatalError, LanguageModel
from geo_utils.models.caller import Caller
from geo_utils.notebooks import read_parameters
from geo_utils.parameter_errors import ParameterError
from geo_utils.policies import fitter, load_tokenizer, policy_rewriter, same_card
from geo_utils.roles import Roles, make_caller, make_roles
from geo_utils.runs import Run
from geo_utils.training.checkpoints import (
    base_checksum,
    checkpoint_step,
    copy_policy,
    free_memory,
    keep_base_exact,
    keep_prompt_order,
    newest_complete,
)
from geo_utils.training.cold_start import base_and_demonstrations, train_cold
from geo_utils.training.compilation import compile_layers
from geo_utils.training.data import (
    Split,
    base_model,
    policy_card,
    prefiltered,
    prompt_rows,
    split_queries,
)
from geo_utils.training.log import (
    Draw,
    Interrupts,
    TrainingLog,
    hush,
    rewind,
    save_now,
)
from geo_utils.training.params import GrpoParams
from geo_utils.training.phases import timed
from geo_utils.training.preflight import check_machine, machine_settings
from geo_utils.training.scoring import Rewards


def prepare_policy(params: GrpoParams, roles: Roles, examples: Corpus, folder: Path) -> str:
    """Return the policy that the reinforcement starts from, made where the recipe asks for it.

    Args:
        params: Name the model, or a small one to make, and the cold start.
        roles: For demonstrations that are rewrites.
        examples: The corpus; demonstrations come from its training queries.
        folder: Gets the model that a cold start leaves; one that is complete is used again.

    Returns:
        Folder or Hub id.
    """
    hush()
    if not params.cold_start.steps:
        return base_model(params)
    if same_card(folder, policy_card(params)):
        return str(folder)
    base, shown = base_and_demonstrations(params, roles, examples, folder)
    train_cold(base, shown, params.cold_start, folder, params.lora, machine_settings(params))
    policy_card(params).write(folder)  # last: a folder with its card is complete
    return str(folder)


def train(
    params: GrpoParams, run: Run, roles: Roles, examples: Corpus, base: str,
    draw: Draw | None = None,
) -> Path:  # fmt: skip
    """Train the policy, going on from the run's newest complete checkpoint.

    One of the last step becomes the result as it is.

    Metrics and rollouts are appended to the run folder as they come. SIGINT, SIGTERM and SIGUSR1
    save a checkpoint and end the run as interrupted; so do a budget that is spent and a service
    that is down.

    Args:
        params: The recipe.
        run: Its run.
        roles: Engine and judge of the reward.
        examples: The corpus.
        base: The policy to start from, as `prepare_policy` returns it.
        draw: Shows the metrics so far, in a notebook.

    Returns:
        The folder of the trained adapter, usable as a method in notebooks 02 and 03.

    Raises:
        RunInterrupted: Stopped early, saved; run again to go on.
    """
    folder = run.folder / "checkpoints"
    final = folder / "final"
    card = policy_card(params)
    if same_card(final, card):
        return final
    asked = params.grpo.get("resume_from_checkpoint")
    resumed = newest_complete(folder) or (resolve_path(str(asked)) if asked else None)
    step = (checkpoint_step(resumed) or 0) if resumed else 0
    if resumed is not None:
        same_card(resumed, card)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        rewind(run.folder / name, step)
    if resumed is not None and step >= params.grpo["max_steps"]:
        # Ended between its last step and `final`; the trainer would take one step too many.
        copy_policy(resumed, final)
        card.write(final)  # last: a folder with its card is complete
        return final
    rows = training_rows(params, roles, examples, base)
    interrupts = Interrupts()
    log = TrainingLog(run.folder, card, interrupts, draw, params.steps_a_generation)
    rewards = Rewards(examples, card.task, roles.engine, roles.judge, params.reward, params.seed,
                      log.on_scored)  # fmt: skip
    with interrupts.listening(), timed(log.clock):
        trainer = make_trainer(params, base, rows, rewards, folder, log, resumed)
        before = base_checksum(trainer.model)
        run.update(base_checksum={"before": before, "after": None})  # should this start be cut off
        try:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
            interrupts.release()
        except BaseException:
            rewards.on_scored = None  # what is still under way belongs to no log
            save_now(trainer, log)
            raise
    after = base_checksum(trainer.model)
    run.update(base_checksum={"before": before, "after": after})
    if before != after:
        raise RuntimeError("the frozen base changed in training: the adapter fits no base")
    trainer.save_model(str(final))
    card.write(final)  # last: a folder with its card is complete
    del trainer
    free_memory()
    return final


def training_rows(
    params: GrpoParams, roles: Roles, examples: Corpus, base: str, recipe: str = ""
) -> list[dict[str, Any]]:
    """Return the prompts to train on, as `training.data.prompt_rows` makes them.

    Raises:
        ParameterError: They are fewer than one batch, and TRL would train nothing.
    """
    card = policy_card(params)
    split = training_split(params, roles, examples, base)
    rows = prompt_rows(split, card.task, fitter(card, load_tokenizer(base)), recipe)
    needed = params.prompts_a_generation
    if len(rows) < needed:
        raise ParameterError(
            f"{len(rows)} prompts are fewer than the {needed} of one batch: nothing would be "
            "trained; lower per_device_train_batch_size or gradient_accumulation_steps, or use "
            "more queries or a wider prefilter"
        )
    return rows


def training_split(params: GrpoParams, roles: Roles, examples: Corpus, base: str) -> Split:
    """Return the split, its training pairs filtered by trial rewrites where the recipe asks."""
    split = split_queries(examples, params)
    if params.data.prefilter is None:
        return split
    loaded = []

    def calls(model: LanguageModel) -> Caller:
        loaded.append(model)
        return make_caller(model, params, roles.usage)

    trial = policy_rewriter(base, calls, policy_card(params))
    try:
        return prefiltered(split, trial, roles, params)
    finally:  # training needs its place on the GPU
        for model in loaded:
            run_sync(model.close())
        free_memory()


def make_trainer(
    params: GrpoParams, base: str, rows: list[dict[str, Any]], rewards: Rewards, folder: Path,
    log: TrainingLog, resumed: Path | None = None,
) -> Any:  # fmt: skip
    """Return the trainer for a recipe, to start or to go on from a checkpoint."""
    from datasets import Dataset
    from peft import LoraConfig

    from geo_utils.training.heap import SettledHeap
    from geo_utils.training.overlapped_trainer import OverlappedTrainer

    class Trainer(OverlappedTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return keep_prompt_order(super()._get_train_sampler(*args, **kwargs), resumed)

    trainer = Trainer(
        schedule=params.reward.schedule,
        begin=rewards.begin,
        saving=log.interrupts.hold,
        model=base,
        reward_funcs=rewards.functions,
        args=grpo_config(params, folder),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(**params.lora, task_type="CAUSAL_LM"),
        callbacks=[log, SettledHeap()],
    )
    hush(trainer)
    keep_base_exact(trainer)
    if params.grpo.get("torch_compile"):
        compile_layers(trainer.model)
    return trainer


def grpo_config(params: GrpoParams, folder: Path) -> Any:
    """Return TRL's GRPOConfig: the recipe's fields over what machine and run decide.

    Raises:
        ParameterError: TRL refuses a value.
    """
    from trl.trainer.grpo_config import GRPOConfig

    on_cpu = bool(params.grpo.get("use_cpu"))
    loading: dict[str, Any] = {"dtype": "float32" if on_cpu else "bfloat16"}
    if not on_cpu:  # TRL's default spreads the policy over every GPU it sees, an engine's as well
        loading["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    settings: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": False},
        "reward_weights": params.reward.weights,
        "disable_tqdm": True,
        "log_completions": False,
        **machine_settings(params),
        **params.grpo,
        "model_init_kwargs": loading | (params.grpo.get("model_init_kwargs") or {}),
        "output_dir": str(folder),
        "seed": params.seed,
    }
    block = params.steps_a_generation  # only after the last of them can a training go on
    settings["save_steps"] = -(-settings["save_steps"] // block) * block
    for name in ("resume_from_checkpoint", "torch_compile"):  # see `train` and `make_trainer`
        settings.pop(name, None)
    if params.generation == "colocate":  # TRL decodes the tokens itself
        extra = settings.get("generation_kwargs") or {}
        settings["generation_kwargs"] = {"detokenize": False} | extra
    try:
        config = GRPOConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"grpo_options: {error}") from None
    # A further GPU is an engine's: Transformers would spread the batch over all that it sees.
    config._n_gpu = min(config.n_gpu, 1)
    return config


def prepare(recipe: str) -> tuple[Path, str]:
    """Write what `trl grpo --config RECIPE` needs: prompts, and a policy where one is made.

    Args:
        recipe: Name in `params/04_grpo/`, or path.

    Returns:
        The folder of the prompts (`data.dataset_name`) and the policy.

    Raises:
        ParameterError: The recipe names no `dataset_name`.
    """
    _, values, params = read_parameters(GrpoParams.notebook, recipe)
    assert isinstance(params, GrpoParams)
    if params.data.dataset_name is None:
        raise ParameterError("data.dataset_name: name a folder for the prompts")
    check_machine(params)
    roles, examples = make_roles(params), load_corpus(**params.corpus_options)
    folder = resolve_path(params.data.dataset_name)
    base = prepare_policy(params, roles, examples, resolve_path(params.model_name_or_path))
    resolved = folder / "recipe.yaml"
    write_atomic(resolved, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    rows = training_rows(params, roles, examples, base, str(resolved))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / "train.jsonl", lines)
    return folder, base


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a recipe for TRL's own command line."""
    parser = argparse.ArgumentParser(prog="python -m geo_utils.training.grpo")
    parser.add_argument("command", choices=["prepare"])
    parser.add_argument("recipe", help="name of a file in params/04_grpo/, or a path to one")
    args = parser.parse_args(argv)
    try:
        folder, base = prepare(args.recipe)
    except (ParameterError, ValueError, FatalError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(f"prompts: {folder}/train.jsonl\npolicy: {base}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
