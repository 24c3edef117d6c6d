"""A training: the policy it starts from, its trainer, and how it goes on after an interruption."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_utils.corpus import Corpus, choose_key_points
from geo_utils.grpo import checkpoints, recorded, rivals
from geo_utils.grpo.data import free_memory, policy_card, rows_of, split_queries
from geo_utils.grpo.engine import FIELD, colocated, engine_arguments, log_drafts
from geo_utils.grpo.figures import Metrics
from geo_utils.grpo.params import GrpoParams
from geo_utils.grpo.rewards import Rewards
from geo_utils.parameters import ParameterError
from geo_utils.roles.make import Roles
from geo_utils.roles.policies import same_card
from geo_utils.runs import Run

if TYPE_CHECKING:
    from geo_utils.grpo.log import TrainingLog


def compile_layers(policy: Any) -> None:
    """Compile the decoder's layers in place, so that weights keep their names.

    One graph serves all layers at the length it was first met with, and a second one all lengths.
    On an H200, with Qwen3-1.7B's shape, LoRA and 16 completions of 512 tokens in two micro-batches,
    a step's loss forward takes 0.22 s instead of 0.41 s, and its backward pass 0.33 s instead of
    0.61 s (`server_gemini_parallel` and the same not compiled; a test compares these figures with
    the rows).

    Args:
        policy: A model of Transformers with an adapter of PEFT.
    """
    import torch._inductor.config as inductor

    # vLLM allows the process one thread, with which compiling takes minutes.
    inductor.compile_threads = len(os.sched_getaffinity(0))
    # Else the first layer's input needs no gradient, and the layer a graph of its own.
    policy.enable_input_require_grads()
    for layer in policy.get_base_model().model.layers:
        layer.compile()


def train(
    params: GrpoParams,
    run: Run,
    roles: Roles,
    examples: Corpus,
    base: str,
    draw: Callable[[Metrics], None] | None = None,
) -> Path:
    """Train the policy, going on from the run's newest complete checkpoint.

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
        The folder of the trained adapter, usable as a method in notebooks 02 and 03: the best by
        validation, where the recipe has one, else the last, which lies beside it as `final`. Of a
        recorded training, the record.

    Raises:
        RunInterrupted: Stopped early, saved; run again to go on.
    """
    if params.recorded:
        recorded.replay(params.recorded, run)
        return params.recorded
    from geo_utils.grpo import validation
    from geo_utils.grpo.log import StepCounter, TrainingLog, timed
    from geo_utils.grpo.weight_sync import base_checksum

    folder = run.folder / "checkpoints"
    final, card = folder / "final", policy_card(params)
    if same_card(final, card):
        return validation.best_checkpoint(folder) or final
    resumed = checkpoints.newest_complete(folder)
    if resumed is not None:
        same_card(resumed, card)
    step = checkpoints.checkpoint_step(resumed) or 0
    for name in ("metrics.jsonl", "rollouts.jsonl", validation.FILE):
        checkpoints.rewind(run.folder / name, step)
    split = split_queries(examples, params)
    rows = rows_of(params, split.train, base)
    interrupts = checkpoints.Interrupts()
    log = TrainingLog(run.folder, card, interrupts, draw, params.steps_a_generation)
    made = roles.engine, roles.judge, params.reward, params.seed, log.on_scored
    rewards = Rewards([*examples, *split.held_out], card.task, *made)
    with interrupts.listening(), timed(log.clock):
        trainer = make_trainer(params, base, rows, rewards, folder, log, resumed)
        trainer.add_callback(StepCounter(roles.counter("steps")))
        validator = None
        if options := params.data.validation:
            own = rows_of(params, split.validation, base)
            validator = validation.Validator(trainer, own, rewards, options, run.folder, card)
            trainer.add_callback(validator)
        before = base_checksum(trainer.model)
        run.update(prompts={"pass": trainer.prompts, "why": trainer.prompts_apart})
        run.update(base_checksum={"before": before, "after": None})  # should this start be cut off
        try:
            rows = choose_prompts(trainer, rows, rewards, params, run)
            checkpoints.go_on(trainer, resumed)
            interrupts.release()
            if validator:
                validator.judge(trainer.state.global_step)
            if params.evaluation.best_of:
                pairs = choose_key_points(split.held_out, params.key_points, params.seed)
                held_out = rows_of(params, pairs, base)
                rivals.draw_rivals(trainer, rewards, params, run, rows, held_out)
        except BaseException:
            rewards.on_scored = None  # what is still under way belongs to no log
            checkpoints.save_now(trainer, log)
            raise
    after = base_checksum(trainer.model)
    run.update(base_checksum={"before": before, "after": after}, weight_sync=trainer.synced)
    if before != after:
        raise RuntimeError("the frozen base changed in training: the adapter fits no base")
    trainer.save_model(str(final))
    card.write(final)  # last: a folder with its card is complete
    del trainer, validator
    free_memory()
    return validation.best_checkpoint(folder) or final


def choose_prompts(
    trainer: Any, rows: list[dict[str, Any]], rewards: Rewards, params: GrpoParams, run: Run
) -> list[Any]:
    """Let a trainer train on the prompts that the prefilter keeps, if there is one; return them.

    Raises:
        ParameterError: They are fewer than one batch, and TRL would train nothing.
    """
    from datasets import Dataset

    from geo_utils.grpo.groups import prefiltered

    kept: list[Any] = rows
    if params.data.prefilter:
        kept = prefiltered(trainer, rows, rewards, params.data.prefilter, params.seed, run.folder)
        trainer.train_dataset = Dataset.from_list(kept)
        run.update(prefilter={"of": len(rows), "kept": len(kept)})
    needed = params.generation_size // int(params.grpo["num_generations"])
    if len(kept) < needed:
        problem = f"{len(kept)} prompts are fewer than the {needed} of one batch"
        way = "lower grpo.per_device_train_batch_size, or use more queries or a wider prefilter"
        raise ParameterError(f"{problem}: nothing would be trained; {way}")
    return kept


def make_trainer(
    params: GrpoParams,
    base: str,
    rows: list[dict[str, Any]],
    rewards: Rewards,
    folder: Path,
    log: TrainingLog,
    resumed: Path | None = None,
) -> Any:
    """Return the trainer for a recipe, to start or to go on from a checkpoint."""
    from datasets import Dataset
    from peft import LoraConfig

    from geo_utils.grpo.log import SettledHeap, hush
    from geo_utils.grpo.trainer import OverlappedTrainer
    from geo_utils.grpo.weight_sync import keep_base_exact

    shared, problem = params.reward.shared_prefix, params.prompts_apart
    with colocated(params.grpo):
        trainer = OverlappedTrainer(
            refills=params.reward.refills,
            main=params.reward.funcs.index(params.reward.main or params.reward.funcs[0]),
            resumed=resumed,
            prompts="each" if problem else shared,
            prompts_apart=problem,
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
    if "speculative_config" in engine_arguments(params.grpo):
        log_drafts(trainer)
    hush(trainer)
    keep_base_exact(trainer, params.reward.direct_sync)
    if params.grpo.get("torch_compile"):
        compile_layers(trainer.model)
    return trainer


def grpo_config(params: GrpoParams, folder: Path) -> Any:
    """Return TRL's GRPOConfig: the recipe's fields over what machine and run decide.

    Raises:
        ParameterError: TRL refuses a value.
    """
    from trl.trainer.grpo_config import GRPOConfig

    loading: dict[str, Any] = {"dtype": "float32"}
    if not params.grpo.get("use_cpu"):
        # TRL's default spreads the policy over every GPU it sees, an engine's as well.
        own = {"": int(os.environ.get("LOCAL_RANK", "0"))}
        loading = {"dtype": "bfloat16", "device_map": own}
    settings: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": False},
        "reward_weights": params.reward.weights,
        "disable_tqdm": True,
        **params.machine_settings,
        **params.grpo,
        "model_init_kwargs": loading | (params.grpo.get("model_init_kwargs") or {}),
        "output_dir": str(folder),
        "seed": params.seed,
    }
    block = params.steps_a_generation  # only after the last of them can a training go on
    settings["save_steps"] = math.ceil(settings["save_steps"] / block) * block
    for ours in ("torch_compile", FIELD):  # see `make_trainer`
        settings.pop(ours, None)
    if params.generation == "colocate":  # TRL decodes the tokens itself
        extra = settings.get("generation_kwargs") or {}
        settings["generation_kwargs"] = {"detokenize": False} | extra
    try:
        config = GRPOConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"grpo: {error}") from None
    # A further GPU is an engine's: Transformers would spread the batch over all that it sees.
    config._n_gpu = min(config.n_gpu, 1)
    return config
