"""Parameters of notebook 04: a recipe whose TRL settings keep TRL's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from geo_utils.methods import METHODS, MODEL_METHODS, check_methods
from geo_utils.parameter_errors import nearest
from geo_utils.params import Role, RunParams
from geo_utils.training.options import ColdStart, DataOptions, FinalEvaluation, RewardOptions
from geo_utils.training.trl_fields import field_names, folded, places

_COUNTS = ("max_steps", "num_generations", "per_device_train_batch_size",
           "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
           "num_iterations")  # fmt: skip
_EXPONENT = re.compile(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+")  # what YAML 1.1 may read as text
GRPO_DEFAULTS: dict[str, Any] = {
    "max_steps": 200, "num_generations": 8, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "max_completion_length": 1024,
    "save_steps": 25, "save_total_limit": 2, "logging_steps": 1, "report_to": "none",
}  # fmt: skip
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


class GrpoParams(RunParams):
    """Parameters of notebook 04.

    Any field of TRL's GRPOConfig may also be given at the top level under its own name, LoRA's
    as `lora_r` and so on; they are folded into `grpo_options` and `lora_options`. In a file for
    `trl grpo --config` this project's own parameters stand under `env: GEO_UTILS:`. `temperature`
    is the engine's; the policy's is `grpo_options: {temperature: ...}`.

    Attributes:
        method: What the policy is asked to do: `key_point` (write the page anew) or
            `arrange_key_point` (put its sentences in order), or any other prompt.
        model_name_or_path: The policy before training.
        reward: What is rewarded.
        data: Prompts and their split.
        evaluation: The comparison at the end.
        cold_start: Supervised fine-tuning before.
        grpo_options: Fields of GRPOConfig; for `torch_compile`, see `compile_layers`.
        lora_options: Fields of LoraConfig.
    """

    notebook: ClassVar[str] = "04_grpo"
    method: str
    model_name_or_path: Annotated[str, Field(min_length=1)]
    reward: Annotated[RewardOptions, Field(strict=False)]
    data: Annotated[DataOptions, Field(strict=False)]
    evaluation: Annotated[FinalEvaluation, Field(strict=False)]
    cold_start: Annotated[ColdStart, Field(strict=False)]
    grpo_options: dict[str, Any]
    lora_options: dict[str, Any]

    @property
    def backends(self) -> dict[Role, str]:
        """The backend of each role in the comparison's terms."""
        return {"engine": self.engine, "judge": self.judge, "rewriter": self.evaluation.rewriter}

    @property
    def methods(self) -> list[str]:
        """The methods that the policy is compared with."""
        return self.evaluation.methods

    @property
    def repeats(self) -> int:
        """Sampled answers a page in the comparison."""
        return self.evaluation.repeats

    @property
    def key_points(self) -> Literal["one", "all", "exclusive"]:
        """Which key points of a held-out page the comparison is about."""
        return self.evaluation.key_points

    def for_evaluation(self) -> Self:
        """Return the parameters with the comparison's judge, models and servers."""
        final = self.evaluation
        changed = {
            "judge": final.judge,
            "judge_mode": final.judge_mode,
            "models": self.models | final.models,
            "servers": self.servers | final.servers,
        }
        return self.model_copy(update=changed)

    @property
    def policy_source(self) -> str:
        """What the policy is, for captions."""
        small = self.cold_start.small_model
        if small is None:
            return f"policy {self.model_name_or_path}"
        return (
            f"policy: a Qwen3 of hidden size {small.hidden_size} made on the spot from random "
            "weights, no language model"
        )

    @property
    def grpo(self) -> dict[str, Any]:
        """The fields of GRPOConfig that are set."""
        return GRPO_DEFAULTS | self.grpo_options

    @property
    def generation_size(self) -> int:
        """Completions that are generated together."""
        grpo = self.grpo
        steps = grpo.get("steps_per_generation") or grpo["gradient_accumulation_steps"]
        size = grpo.get("generation_batch_size") or grpo["per_device_train_batch_size"] * steps
        return int(size)

    @property
    def prompts_a_generation(self) -> int:
        """Prompts that are generated for together; training needs at least as many."""
        return self.generation_size // int(self.grpo["num_generations"])

    @property
    def steps_a_generation(self) -> int:
        """Optimizer steps that share one generation of completions."""
        return int(max(self._uses // self.grpo["gradient_accumulation_steps"], 1))

    @property
    def rollouts(self) -> int:
        """How many completions the whole training draws."""
        grpo = self.grpo
        micro_batches = grpo["max_steps"] * grpo["gradient_accumulation_steps"]
        return int(-(-micro_batches // self._uses) * self.generation_size)

    @property
    def _uses(self) -> int:
        """Micro-batches that one generation of completions is used for."""
        size = self.generation_size // self.grpo["per_device_train_batch_size"]
        return int(size * (self.grpo.get("num_iterations") or 1))

    @property
    def lora(self) -> dict[str, Any]:
        """The fields of LoraConfig that are set."""
        return LORA_DEFAULTS | self.lora_options

    @property
    def generation(self) -> str:
        """How the policy generates: `transformers`, `colocate` or `server`."""
        vllm = self.grpo.get("use_vllm")
        return str(self.grpo.get("vllm_mode", "colocate")) if vllm else "transformers"

    @classmethod
    def check(cls, values: Mapping[str, Any], passed: Iterable[str] = ()) -> Self:
        """Make parameters from plain values; see `RunParams.check` and the class."""
        passed = list(passed)
        params = super().check(folded(values, passed, cls.model_fields))
        params._passed = {name: values[name] for name in passed}
        return params

    @classmethod
    def _aliases(cls) -> Iterable[str]:
        return (*places(), "dtype", "attn_implementation", "use_peft")

    @field_validator("method")
    @classmethod
    def _a_prompt(cls, method: str) -> str:
        prompts = [name for name in METHODS if name in MODEL_METHODS or name == "key_point"]
        if method not in prompts:
            raise ValueError(
                f"{method!r} is no prompt that a policy can learn"
                f"{nearest(method, prompts)} Choose from {', '.join(prompts)}"
            )
        return method

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        for kind, options in (("grpo", self.grpo_options), ("lora", self.lora_options)):
            known = field_names(kind)
            for name in options:
                if known and name not in known:
                    config = "GRPOConfig" if kind == "grpo" else "LoraConfig"
                    raise ValueError(
                        f"{kind}_options: {name!r} is no field of {config}{nearest(name, known)}"
                    )
                if name in ("top_k", "min_p", "repetition_penalty"):
                    raise ValueError(f"{name}: the comparison samples without it; leave it out")
                if options[name] in ("batch", "normalize_then_sum"):
                    raise ValueError(
                        f"{name}={options[name]!r} compares completions of different prompts; "
                        "rewards are normalised within a group, or not at all"
                    )
                if isinstance(options[name], str) and _EXPONENT.fullmatch(options[name]):
                    raise ValueError(
                        f"{name}={options[name]!r}: a number is needed, and YAML reads "
                        f"{options[name]} as text: write 1.0e-5"
                    )
        return self

    @model_validator(mode="after")
    def _check_group(self) -> Self:
        grpo = self.grpo
        for name in _COUNTS:
            value = grpo.get(name)
            unset = value is None and name not in GRPO_DEFAULTS
            if not unset and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r}: a whole number of at least 1 is needed")
        if grpo.get("steps_per_generation") and grpo.get("generation_batch_size"):
            raise ValueError(
                "steps_per_generation and generation_batch_size say the same: name one of them"
            )
        group, batch = grpo["num_generations"], grpo["per_device_train_batch_size"]
        size = self.generation_size
        if group < 2:
            raise ValueError(
                f"num_generations={group}: a group needs at least 2 completions to compare"
            )
        if size % batch:
            raise ValueError(
                f"generation_batch_size={size} must be a multiple of "
                f"per_device_train_batch_size={batch}"
            )
        if size % group:
            raise ValueError(
                f"per_device_train_batch_size={batch} x {size // batch} steps = {size} "
                f"completions do not divide into groups of num_generations={group}; choose a "
                f"multiple, such as {-(-size // group) * group}"
            )
        block = self.steps_a_generation
        if self.grpo_options.get("save_steps", block) % block:
            raise ValueError(
                f"save_steps={grpo['save_steps']}: {block} steps share a generation, and only "
                f"after the last of them can a training go on; choose a multiple of {block}"
            )
        return self

    @model_validator(mode="after")
    def _check_logging(self) -> Self:
        if self.grpo["logging_steps"] != 1:
            raise ValueError(
                f"logging_steps={self.grpo['logging_steps']}: a line of metrics.jsonl is a step; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_compilation(self) -> Self:
        if self.grpo.get("torch_compile") and self.generation == "transformers":
            raise ValueError(
                "torch_compile=True: Transformers would compile anew for each token that it "
                "generates; set use_vllm: true, or leave torch_compile out"
            )
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.reward.schedule != "ahead":
            return self
        if self._uses != self.grpo["gradient_accumulation_steps"]:
            raise ValueError(
                "reward.schedule='ahead' generates anew for every step; leave num_iterations, "
                "steps_per_generation and generation_batch_size out"
            )
        if self.grpo.get("vllm_importance_sampling_correction") is False:
            raise ValueError(
                "reward.schedule='ahead' trains on completions of older weights; leave "
                "vllm_importance_sampling_correction on"
            )
        return self

    @model_validator(mode="after")
    def _check_cold_start(self) -> Self:
        cold = self.cold_start
        if cold.steps and cold.pairs == "rewrites" and self.method == "arrange_key_point":
            raise ValueError(
                "cold_start.pairs='rewrites' are whole pages, which method='arrange_key_point' "
                "does not write; choose pairs: edits"
            )
        if cold.small_model and not cold.steps:
            raise ValueError(
                "cold_start.steps=0: a small_model of random weights has to learn to write first"
            )
        return self

    @model_validator(mode="after")
    def _check_judges(self) -> Self:
        final = self.evaluation
        ours = (self.judge, self.judge_mode, self.models.get("judge"))
        theirs = (final.judge, final.judge_mode, final.models.get("judge", ours[2]))
        if ours == theirs and "key_point" in self.reward.funcs:
            raise ValueError(
                f"evaluation.judge={final.judge!r} is the judge that trained the policy: name "
                "another, or another judge_mode or models.judge"
            )
        if "original" not in final.methods:
            raise ValueError(f"evaluation.methods={final.methods!r}: 'original' must be among them")
        try:
            check_methods(final.methods, final.rewriter)
            self.for_evaluation()._check_models()  # type: ignore[operator]
        except ValueError as error:
            raise ValueError(f"evaluation: {error}") from None
        return self
