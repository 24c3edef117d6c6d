"""From a setting of notebook 01 to the recipe of notebook 04 that it measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_utils.cells import default_parameters
from geo_utils.efficiency.params import EfficiencyParams, Place, Setting
from geo_utils.files import project_root
from geo_utils.parameter_errors import ParameterError

_GROUP = 8  # completions of one prompt, and of one micro-batch, where the recipe names none


@dataclass(frozen=True)
class Placement:
    """Where the roles of a setting run on this machine.

    Attributes:
        of: GPU by role.
        gpus: How many are held.
        shared: Whether roles share one that the setting would keep apart.
        on_cpu: Whether no GPU is used.
        refused: Why the setting cannot be measured here.
    """

    of: dict[Place, int]
    gpus: int
    shared: bool = False
    on_cpu: bool = False
    refused: str | None = None

    @property
    def visible(self) -> str:
        """What the trainer's process may see: its own GPU first, then one that it is lent."""
        return "" if self.on_cpu else ",".join(map(str, dict.fromkeys(self._trainers)))

    @property
    def _trainers(self) -> list[int]:
        return [self.of["trainer"], *([self.of["engine"]] if "engine" in self.of else [])]


def place(setting: Setting, params: EfficiencyParams, present: Sequence[int]) -> Placement:
    """Place a setting's roles on the GPUs of this machine.

    Args:
        setting: Names a GPU for each role.
        params: Say whether roles may share one.
        present: Indices of the GPUs that may be used.
    """
    wanted = setting.gpus_wanted
    if (params.recipe | setting.recipe).get("use_cpu"):
        if setting.policy != "transformers" or setting.reward.startswith("qwen"):
            return Placement({}, 0, on_cpu=True, refused="not run: needs a GPU")
        return Placement({}, 0, on_cpu=True)
    order = {gpu: index for index, gpu in enumerate(sorted(set(setting.gpus.values())))}
    last = len(present) - 1  # which the engine shares with the role before it
    of: dict[Place, int] = {
        role: present[min(order[gpu], last)] for role, gpu in setting.gpus.items() if present
    }
    if len(present) >= wanted:
        return Placement(of, wanted)
    needs = f"not run: needs {wanted} GPU{'s' if wanted > 1 else ''}, {len(present)} here"
    if not present or not params.share_gpus:
        return Placement({}, wanted, refused=needs)
    if of.get("policy") == of["trainer"]:
        why = "weights cannot be sent to a policy server on the trainer's own GPU"
        return Placement({}, wanted, refused=f"{needs}: {why}")
    return Placement(of, len(set(of.values())), shared=True)


def recipe(
    setting: Setting, params: EfficiencyParams, placement: Placement, models: dict[str, str],
    urls: dict[str, str], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Return the values of notebook 04's parameters that a setting stands for.

    Args:
        setting: What is measured.
        params: Sizes and lengths.
        placement: Where it runs.
        models: Policy and engine, as folder or Hub id.
        urls: Addresses of the servers that were started.
        folder: For the cache, which no other measurement shares.

    Raises:
        ParameterError: The batch does not divide.
    """
    values = default_parameters(project_root() / "notebooks" / "04_grpo.ipynb")
    reward = "negative_length" if setting.reward == "negative_length" else "key_point"
    values |= {
        "variant": "measured", "seed": params.seed, "corpus": "sample",
        "cache_root": str(folder / "cache"), "method": "key_point",
        "model_name_or_path": models["policy"],
        "calls": {"max_concurrency": 1024 if setting.parallel else 1,
                  "apart": setting.schedule in ("early", "ahead")},
        "reward": {"funcs": [reward], "schedule": setting.schedule},
        "data": {"max_prompt_tokens": params.prompt_tokens},
        "grpo_options": _grpo(setting, params, urls),
        **_roles(setting, placement, models, urls),
    }  # fmt: skip
    return values


def _roles(
    setting: Setting, placement: Placement, models: dict[str, str], urls: dict[str, str]
) -> dict[str, Any]:
    """Return who answers and judges."""
    final = {"judge": "offline", "methods": ["original", "key_point"]}
    if setting.reward == "negative_length":
        return {"engine": "offline", "judge": "offline", "evaluation": final}
    if setting.reward == "gemini":
        servers = [urls["gemini"]] if "gemini" in urls else []
        return {"engine": "gemini", "judge": "gemini", "evaluation": final,
                "servers": {"engine": servers, "judge": servers} if servers else {}}  # fmt: skip
    backend = {"qwen_server": "openai", "qwen_vllm": "vllm", "qwen_transformers": "transformers"}
    name = models["engine"]
    places: dict[str, list[str]] = {}
    if setting.reward == "qwen_server":
        places = {role: [f"{urls['engine']}/v1"] for role in ("engine", "judge")}
    else:  # in the trainer's process, on the second GPU that it sees, if there is one
        apart = placement.of["engine"] != placement.of["trainer"]
        name += "@cuda:1" if apart else "@cuda:0"
    return {
        "engine": backend[setting.reward], "judge": backend[setting.reward],
        "judge_mode": "soft", "models": {"engine": name, "judge": name}, "servers": places,
        "evaluation": final,
    }  # fmt: skip


def _grpo(setting: Setting, params: EfficiencyParams, urls: dict[str, str]) -> dict[str, Any]:
    """Return the fields of GRPOConfig: a fixed amount of work, nothing saved."""
    given = params.recipe | setting.recipe
    size = setting.completions or params.completions
    tokens = setting.new_tokens or params.new_tokens
    micro = given.get("per_device_train_batch_size", min(_GROUP, size))
    if size % micro:
        raise ParameterError(
            f"completions={size} are no multiple of per_device_train_batch_size={micro}"
        )
    vllm = setting.policy != "transformers"
    drained = int(setting.schedule == "ahead")  # a step that does not count
    settings: dict[str, Any] = {
        "max_steps": params.warmup_steps + params.steps + drained,
        "num_generations": min(_GROUP, size), "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": size // micro, "max_completion_length": tokens,
        "learning_rate": 1e-6, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    if not params.natural_lengths:
        fixed = {"ignore_eos": True} if vllm else {"min_new_tokens": tokens}
        settings["generation_kwargs"] = fixed
    if vllm:
        settings |= {"use_vllm": True, "vllm_mode": setting.policy}
    if setting.policy == "server":
        settings["vllm_server_base_url"] = urls["policy"]
    if setting.policy == "colocate":
        room = params.prompt_tokens + tokens + 64
        settings |= {"vllm_gpu_memory_utilization": 0.3, "vllm_max_model_length": room}
    return settings | given
