"""From a setting of notebook 01 to the recipe of notebook 04 that it measures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from geo_utils.cluster.servers import free_port
from geo_utils.efficiency.params import EfficiencyParams, Place, Setting, Shape
from geo_utils.files import project_root
from geo_utils.models.known import DEFAULT_MODEL
from geo_utils.parameters import ParameterError, default_parameters

_GROUP = 8  # completions of one prompt, and of one micro-batch, where the recipe names none
_PATIENCE_S = 900.0  # a slow engine is measured, not cut off
# What vLLM and CUDA say when a setting does not fit.
_NO_MEMORY = ("out of memory", "no available memory", "less than desired gpu memory")


@dataclass(frozen=True)
class Placement:
    """Where the roles of a setting run on this machine.

    Attributes:
        of: GPU by role; none on a CPU, and where the setting is refused.
        visible: What the trainer's process may see: its own GPU first, then a second trainer's,
            or that of an engine in the same process.
        on_cpu: Whether no GPU is used.
        refused: Why the setting cannot be measured here.
    """

    of: dict[Place, int]
    visible: str = ""
    on_cpu: bool = False
    refused: str | None = None


def place(setting: Setting, params: EfficiencyParams, present: Sequence[int]) -> Placement:
    """Place a setting's roles on the GPUs of this machine.

    Args:
        setting: Names a GPU for each role.
        params: Say whether a GPU is used at all.
        present: Indices of the GPUs that may be used.
    """
    wanted = setting.gpus_wanted
    if (params.recipe | setting.recipe).get("use_cpu"):
        if setting.policy != "transformers" or setting.reward.startswith("qwen"):
            return Placement({}, on_cpu=True, refused="not run: needs a GPU")
        return Placement({}, on_cpu=True)
    if len(present) < wanted:
        needs = f"not run: needs {wanted} GPU{'s' if wanted > 1 else ''}, {len(present)} here"
        return Placement({}, refused=needs)
    given = dict(zip(sorted(set(setting.gpus.values())), present, strict=False))
    of = {role: given[gpu] for role, gpu in setting.gpus.items()}
    seen: list[Place] = ["trainer", "second_trainer"]
    seen += ["engine"] if setting.engine_in_process else []
    return Placement(of, ",".join(dict.fromkeys(str(of[role]) for role in seen if role in of)))


def recipe(
    setting: Setting,
    params: EfficiencyParams,
    placement: Placement,
    models: dict[str, str],
    urls: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Return the values of notebook 04's parameters that a setting stands for.

    Args:
        setting: What is measured, its sizes filled in.
        params: Lengths and seed.
        placement: Where it runs.
        models: Policy and engine, as folder or Hub id.
        urls: Addresses of the servers that were started.
        folder: For the cache, which no other measurement shares.

    Raises:
        ParameterError: The batch does not divide.
    """
    free = setting.reward == "negative_length"
    return default_parameters(project_root() / "notebooks" / "04_grpo.ipynb") | {
        "variant": "measured",
        "seed": params.seed,
        "corpus": {"name": "sample"},
        "paths": {"cache": str(folder / "cache")},
        "policy": {"base": models["policy"], "method": "key_point"},
        "calls": {
            "max_concurrency": 1024 if setting.parallel else 1,
            "timeout_s": _PATIENCE_S,
            "deadline_s": _PATIENCE_S,
        },
        "reward": {
            "funcs": ["negative_length" if free else "key_point"],
            "schedule": setting.schedule,
            "shared_prefix": setting.shared_prefix,
            "direct_sync": setting.direct_sync,
            "target_place": setting.target_place,
            "deadline_s": _PATIENCE_S,
        },
        "data": {"max_prompt_tokens": params.work.prompt_tokens},
        "evaluation": {"judge": "offline", "methods": ["original", "key_point"]},
        "grpo": _grpo(setting, params, urls),
        **_roles(setting, placement, models, urls),
    }


def simulated(setting: Setting, params: EfficiencyParams) -> list[str]:
    """Say what in a setting is not the real thing."""
    made = map(made_shape, asked_models(setting, params).values(), repeat(params))
    found = [f"random weights of {shape}'s shape" for shape in made if shape]
    if setting.reward == "gemini" and not real_gemini(params):
        found.append(f"Gemini: {call_latency(setting, params)} s a call")
    return found


def made_shape(model: str, params: EfficiencyParams) -> Shape | None:
    """Return the shape that a model is made in with random weights; None for one that is there."""
    made = params.models.random_weights
    return next((shape for shape in made if Path(model).name.startswith(shape)), None)


def asked_models(setting: Setting, params: EfficiencyParams) -> dict[str, str]:
    """Return the models that a setting needs on this machine, by role."""
    engine = {"engine": params.models.engine} if setting.reward.startswith("qwen") else {}
    return {"policy": params.models.policy} | engine


def real_gemini(params: EfficiencyParams) -> bool:
    """Tell whether Gemini's own service is asked."""
    return params.gemini.service == "auto" and bool(os.environ.get("GEMINI_API_KEY"))


def latency_s(setting: Setting, params: EfficiencyParams) -> float | None:
    """Return the seconds of a simulated engine and judge together; None for any other reward."""
    if setting.reward == "negative_length":
        return 0.0
    known = setting.reward == "gemini" and not real_gemini(params)
    return setting.reward_latency_s if known else None


def call_latency(setting: Setting, params: EfficiencyParams) -> str:
    """Return the look-alike's latency of one call."""
    return f"constant:{(latency_s(setting, params) or 0.0) / 2:g}"


def _roles(
    setting: Setting, placement: Placement, models: dict[str, str], urls: dict[str, str]
) -> dict[str, Any]:
    """Return who answers and judges."""
    servers, mode = {}, "verdict"
    name = "offline"
    if setting.reward == "gemini":
        name = f"gemini/{DEFAULT_MODEL}"
        servers = {name: urls["gemini"]} if "gemini" in urls else {}
    elif setting.reward == "qwen_server":
        name, mode = f"openai/{models['engine']}", "soft"
        servers = {name: f"{urls['engine']}/v1"}
    elif setting.reward != "negative_length":
        # In the trainer's process, on the second GPU that it sees, if there is one.
        alone = placement.of["engine"] != placement.of["trainer"]
        backend = setting.reward.removeprefix("qwen_")
        name, mode = f"{backend}/{models['engine']}@cuda:{int(alone)}", "soft"
    sampling = {"judge_mode": mode}
    return {"engine": name, "judge": name, "servers": servers, "sampling": sampling}


def _grpo(setting: Setting, params: EfficiencyParams, urls: dict[str, str]) -> dict[str, Any]:
    """Return the fields of GRPOConfig: a fixed amount of work, nothing saved."""
    given = params.recipe | setting.recipe
    size, tokens, steps = setting.completions or 1, setting.new_tokens or 1, setting.steps or 1
    micro = given.get("per_device_train_batch_size", min(_GROUP, size // setting.trainers))
    if size % (micro * setting.trainers):
        each = "" if setting.trainers == 1 else f" for each of {setting.trainers} trainers"
        raise ParameterError(
            f"completions={size} are no multiple of per_device_train_batch_size={micro}{each}; "
            f"choose a multiple of {micro * setting.trainers}"
        )
    vllm = setting.policy != "transformers"
    drained = int(setting.schedule == "ahead")  # a step that does not count
    settings: dict[str, Any] = {
        "max_steps": (setting.warmup_steps or 0) + steps + drained,
        "num_generations": min(_GROUP, size),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": size // micro // setting.trainers,
        "max_completion_length": tokens,
        "learning_rate": 1e-6,
        "save_strategy": "no",
    }
    if not params.work.natural_lengths:
        fixed = {"ignore_eos": True} if vllm else {"min_new_tokens": tokens}
        settings["generation_kwargs"] = fixed
    if vllm:
        settings |= {"use_vllm": True, "vllm_mode": setting.policy}
    if setting.policy == "server":
        settings |= {"vllm_server_base_url": urls["policy"], "vllm_group_port": free_port()}
    if setting.policy == "colocate":
        room = params.work.prompt_tokens + tokens + 64
        settings |= {"vllm_gpu_memory_utilization": 0.3, "vllm_max_model_length": room}
    return settings | given


def failure(reason: str) -> dict[str, Any]:
    """Return the row's fields of a measurement that failed for a reason, such as memory."""
    memory = any(sign in reason.lower() for sign in _NO_MEMORY)
    return {"status": "out of memory" if memory else "failed", "reason": reason}
