"""Parameters of notebook 04: a recipe whose TRL settings keep TRL's names."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geo_utils.parameters import LocalServer, ParameterError, nearest
from geo_utils.roles.methods import METHODS, MODEL_METHODS, check_methods, known_method
from geo_utils.roles.params import Backend, Role, RunParams

REWARDS = (
    *("key_point", "visibility"),  # which ask an engine
    *("fidelity", "length_budget", "no_instructions", "format", "negative_length"),
)
KeyPoints = Literal["one", "all", "exclusive"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RewardOptions(_Options):
    """What is rewarded; the components are those of `geo_utils.grpo.rewards`.

    Attributes:
        funcs: Names of the components.
        weights: Their weights, 1 each if not given; a group is normalised after weighting.
        repeats: Sampled answers per completion.
        soft: Take the judge's strength of support instead of supported or not.
        figure: Which visibility, or the mean of the three.
        length_slack: Share of words that a rewrite may add before `length_budget` falls.
        deadline_s: Longest wait for the answers of a batch.
        most_lost: So many batches in a row without any score end the run.
        placebo: Score every completion with another query's rewrite; nothing can be learned.
        schedule: When rewards are worked out, and what runs beside what; see
            `grpo.trainer`: `stock`, `fused`, `early`, or one step `ahead`.
    """

    funcs: Annotated[list[str], Field(min_length=1)] = ["key_point"]
    weights: list[float] | None = None
    repeats: Annotated[int, Field(ge=1)] = 1
    soft: bool = False
    figure: Literal["word", "position", "pawc", "mean"] = "pawc"
    length_slack: Annotated[float, Field(ge=0)] = 0.3
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    most_lost: Annotated[int, Field(ge=1)] = 5
    placebo: bool = False
    schedule: Literal["stock", "fused", "early", "ahead"] = "early"

    @field_validator("funcs")
    @classmethod
    def _known(cls, funcs: list[str]) -> list[str]:
        names = [name.removeprefix("geo_utils.grpo.rewards.") for name in funcs]
        for name in names:
            if name not in REWARDS:
                raise ValueError(
                    f"unknown reward {name!r}{nearest(name, REWARDS)} Choose from "
                    f"{', '.join(REWARDS)}"
                )
        return names


class Prefilter(_Options):
    """Keep the prompts whose success over a few trial rewrites is neither low nor high."""

    trials: Annotated[int, Field(ge=2)] = 4
    low: Annotated[float, Field(ge=0, le=1)] = 0.2
    high: Annotated[float, Field(ge=0, le=1)] = 0.8


class DataOptions(_Options):
    """Which prompts the policy is trained and tested on.

    Attributes:
        held_out: Share of the queries that training never sees.
        key_points: Those of a page to train on.
        max_prompt_tokens: Longest prompt; the page is cut to it, never the instructions.
        prefilter: Keep prompts of middling success only.
        dataset_name: Folder where `python -m geo_utils.grpo.train prepare` writes the prompts.
    """

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3
    key_points: KeyPoints = "all"
    max_prompt_tokens: Annotated[int, Field(ge=32)] = 4096
    prefilter: Prefilter | None = None
    dataset_name: str | None = None


class FinalEvaluation(_Options):
    """How the policy is compared on held-out queries.

    Attributes:
        judge: Judge of the comparison, another than the training's; `offline_strict` wants the
            point's words in one sentence.
        judge_mode: As `judge_mode`.
        models: Model ids by role, where they differ from the run's.
        servers: Addresses by role, likewise.
        rewriter: What carries out the method's prompt for comparison.
        methods: Methods to compare with, `original` first.
        repeats: Sampled answers per page.
        key_points: Those of a held-out page.
    """

    judge: Literal["offline_strict", "offline", "gemini", "openai", "vllm", "transformers"]
    judge_mode: Literal["verdict", "soft"] = "verdict"
    models: dict[Role, str] = {}
    servers: dict[Role, list[str]] = {}
    rewriter: Backend = "offline"
    methods: list[str] = ["original", "key_point"]
    repeats: Annotated[int, Field(ge=1)] = 3
    key_points: KeyPoints = "all"


class SmallModel(_Options):
    """A Qwen3 of random weights, made on the spot with a tokenizer of the corpus's words."""

    hidden_size: Annotated[int, Field(ge=16)] = 64
    layers: Annotated[int, Field(ge=1)] = 2
    vocabulary: Annotated[int, Field(ge=300)] = 1024


class ColdStart(_Options):
    """Supervised fine-tuning before the reinforcement.

    Attributes:
        steps: Optimizer steps; 0 leaves it out.
        pairs: `edits`: random offline edits; `rewrites`: the best of `best_of` rewrites by the
            comparison's rewriter, from the cache of notebook 03 as far as that has them.
        best_of: Rewrites a pair is chosen from.
        batch_size: Pairs per step.
        learning_rate: Highest; a cosine follows.
        small_model: Train this small model in full instead of an adapter.
    """

    steps: Annotated[int, Field(ge=0)] = 0
    pairs: Literal["edits", "rewrites"] = "rewrites"
    best_of: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    small_model: SmallModel | None = None


# Fields of TRL's other dataclasses that a recipe may hold, and where they belong here.
_ELSEWHERE = {
    "lora_r": ("lora_options", "r"),
    "lora_target_modules": ("lora_options", "target_modules"),
    **{
        name: ("lora_options", name)
        for name in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    },
    "reward_funcs": ("reward", "funcs"),
    "reward_weights": ("reward", "weights"),
    "dataset_name": ("data", "dataset_name"),
}
_LOADING = ("dtype", "attn_implementation")
_CLASSES = {  # those that bring the fields, by the file of their package
    "grpo": {
        "trl/trainer/grpo_config.py": ["GRPOConfig"],
        "trl/trainer/base_config.py": ["_BaseConfig"],
        "transformers/training_args.py": ["TrainingArguments"],
    },
    "lora": {
        "peft/tuners/lora/config.py": ["LoraConfig"],
        "peft/config.py": ["PeftConfig", "PeftConfigMixin"],
    },
}


@lru_cache(maxsize=2)
def field_names(kind: str) -> frozenset[str]:
    """Return the names of `GRPOConfig`'s (`grpo`) or `LoraConfig`'s (`lora`) fields.

    Importing them takes many seconds, and a wrong parameter has to be refused at once, so the
    installed sources are parsed instead.

    Args:
        kind: `grpo` or `lora`.
    """
    fields = []
    for file, classes in _CLASSES[kind].items():
        spec = find_spec(file.partition("/")[0])
        assert spec and spec.origin  # it is pinned
        path = Path(spec.origin).parent.parent / file
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in classes:
                fields += [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
    names = [field.id for field in fields if isinstance(field, ast.Name)]
    return frozenset(name for name in names if not name.startswith("_"))


def places() -> dict[str, tuple[str, str]]:
    """Return TRL's names, each with the group and the entry that it stands for."""
    return {name: ("grpo_options", name) for name in field_names("grpo")} | _ELSEWHERE


def folded(
    given: Mapping[str, Any], passed: Collection[str], fields: Collection[str]
) -> dict[str, Any]:
    """Put TRL's names where they belong, and this project's own out of a TRL recipe's `env`.

    Args:
        given: Values by name.
        passed: Names that the user set, which win over those under `env`.
        fields: The names of this project's parameters.

    Raises:
        ParameterError: One setting is given twice, or cannot be had.
    """
    values = dict(given)
    env = values.pop("env", None)
    own = (env.get("GEO_UTILS") if isinstance(env, dict) else None) or {}
    if not isinstance(own, dict):
        raise ParameterError(f"env: GEO_UTILS={own!r} must map this project's parameters")
    values |= {name: value for name, value in own.items() if name not in passed}
    names = ("grpo_options", "lora_options", "reward", "data")
    if not all(isinstance(values.get(name), dict) for name in names):  # which is refused by name
        return {name: value for name, value in values.items() if name in fields}
    groups = {name: dict(values[name]) for name in names}
    if values.pop("use_peft", True) is not True:
        raise ParameterError("use_peft: only true; the policy is trained as an adapter")
    known = places()
    for name in [name for name in values if name not in fields and name in known]:
        (group, entry), value = known[name], values.pop(name)
        other = groups[group].get(entry)
        if other not in (None, value, ["key_point"]):  # the last: reward.funcs' default
            raise ParameterError(
                f"{name}={value!r} and {group}.{entry}={other!r} are one setting, given "
                f"twice; name only {name}"
            )
        groups[group][entry] = value
    loading = {name: values.pop(name) for name in _LOADING if name in values}
    if loading:
        given_there = groups["grpo_options"].get("model_init_kwargs") or {}
        groups["grpo_options"]["model_init_kwargs"] = given_there | loading
    return values | groups


_COUNTS = (
    *("max_steps", "num_generations", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"),
    "num_iterations",
)
_EXPONENT = re.compile(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+")  # what YAML 1.1 may read as text
GRPO_DEFAULTS: dict[str, Any] = {
    "max_steps": 200,
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-5,
    "max_completion_length": 1024,
    "save_steps": 25,
    "save_total_limit": 2,
    "logging_steps": 1,
    "report_to": "none",
}
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
        """Sampled answers per page in the comparison."""
        return self.evaluation.repeats

    @property
    def key_points(self) -> KeyPoints:
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
    def machine_settings(self) -> dict[str, Any]:
        """The fields of TrainingArguments that depend on machine and seed."""
        on_cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        return {"seed": self.seed, **(on_cpu if self.grpo.get("use_cpu") else {})}

    @property
    def generation_size(self) -> int:
        """Completions that are generated together."""
        grpo = self.grpo
        steps = grpo.get("steps_per_generation") or grpo["gradient_accumulation_steps"]
        size = grpo.get("generation_batch_size") or grpo["per_device_train_batch_size"] * steps
        return int(size)

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

    @property
    def policy_server(self) -> str:
        """The address of the vLLM server that generates for the policy."""
        host = self.grpo.get("vllm_server_host", "0.0.0.0")
        address = f"http://{host}:{self.grpo.get('vllm_server_port', 8000)}"
        return str(self.grpo.get("vllm_server_base_url") or address).rstrip("/")

    @property
    def servers_here(self) -> list[LocalServer]:
        """The policy's server, and those of training and comparison, each once."""
        found: list[LocalServer] = []
        if self.generation == "server":
            found += LocalServer.at(self.policy_server, self.model_name_or_path, policy=True)
        found += super().servers_here + super(GrpoParams, self.for_evaluation()).servers_here
        return list({server.address: server for server in reversed(found)}.values())[::-1]

    @property
    def gpus_needed(self) -> int:
        """The training's own, and one a local server."""
        return int(not self.grpo.get("use_cpu")) + len(self.servers_here)

    @property
    def steps_to_train(self) -> int | None:
        """The last step of the training."""
        return int(self.grpo["max_steps"])

    def saved_work(self, folder: Path) -> list[int]:
        """Return the newest complete checkpoint, the number of whole policies, the cache's size."""
        from geo_utils.grpo.checkpoints import checkpoint_step, newest_complete
        from geo_utils.roles.policies import CARD

        checkpoints = folder / "checkpoints"
        newest = newest_complete(checkpoints)
        policies = [folder / "policy", checkpoints / "final"]
        return [
            (checkpoint_step(newest) or 0) if newest else 0,
            sum((policy / CARD).is_file() for policy in policies),
            *super().saved_work(folder),
        ]

    @classmethod
    def check(cls, values: Mapping[str, Any], passed: Iterable[str] = ()) -> Self:
        """Make parameters from plain values; see `RunParams.check` and the class."""
        passed = list(passed)
        params = super().check(folded(values, passed, cls.model_fields))
        params._passed = {name: values[name] for name in passed}
        return params

    @classmethod
    def _aliases(cls) -> Iterable[str]:
        return (*places(), *_LOADING, "use_peft")

    @model_validator(mode="after")
    def _check_recipe(self) -> Self:
        """Refuse what cannot be trained, the first problem by name."""
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """Say what is wrong; what stands further down relies on what stands above."""
        grpo, cold, final = self.grpo, self.cold_start, self.evaluation
        prompts = [name for name in METHODS if name in MODEL_METHODS or name == "key_point"]
        if self.method not in prompts:
            yield (
                f"method: {self.method!r} is no prompt that a policy can learn"
                f"{nearest(self.method, prompts)} Choose from {', '.join(prompts)}"
            )
        reward = self.reward
        if reward.weights is not None and len(reward.weights) != len(reward.funcs):
            yield (
                f"reward: weights={reward.weights}: {len(reward.funcs)} rewards need as many "
                "weights"
            )
        for kind, config, options in (
            ("grpo", "GRPOConfig", self.grpo_options),
            ("lora", "LoraConfig", self.lora_options),
        ):
            for name, value in options.items():
                if name not in (known := field_names(kind)):
                    yield f"{kind}_options: {name!r} is no field of {config}{nearest(name, known)}"
                if name in ("top_k", "min_p", "repetition_penalty"):
                    yield f"{name}: the comparison samples without it; leave it out"
                if value in ("batch", "normalize_then_sum"):
                    yield (
                        f"{name}={value!r} compares completions of different prompts; "
                        "rewards are normalised within a group, or not at all"
                    )
                if isinstance(value, str) and _EXPONENT.fullmatch(value):
                    yield (
                        f"{name}={value!r}: a number is needed, and YAML reads "
                        f"{value} as text: write 1.0e-5"
                    )
        for name in _COUNTS:
            value = grpo.get(name)
            unset = value is None and name not in GRPO_DEFAULTS
            if not unset and (type(value) is not int or value < 1):
                yield f"{name}={value!r}: a whole number of at least 1 is needed"
        if grpo.get("steps_per_generation") and grpo.get("generation_batch_size"):
            yield "steps_per_generation and generation_batch_size say the same: name one of them"
        group, batch = grpo["num_generations"], grpo["per_device_train_batch_size"]
        size, block = self.generation_size, self.steps_a_generation
        if group < 2:
            yield f"num_generations={group}: a group needs at least 2 completions to compare"
        if size % batch:
            yield (
                f"generation_batch_size={size} must be a multiple of "
                f"per_device_train_batch_size={batch}"
            )
        if size % group:
            yield (
                f"per_device_train_batch_size={batch} x {size // batch} steps = {size} "
                f"completions do not divide into groups of num_generations={group}; choose a "
                f"multiple, such as {-(-size // group) * group}"
            )
        if self.grpo_options.get("save_steps", block) % block:
            yield (
                f"save_steps={grpo['save_steps']}: {block} steps share a generation, and only "
                f"after the last of them can a training go on; choose a multiple of {block}"
            )
        ahead = self.reward.schedule == "ahead"
        if grpo["logging_steps"] != 1:
            yield (
                f"logging_steps={grpo['logging_steps']}: a line of metrics.jsonl is a step; "
                "leave it out"
            )
        if grpo.get("save_only_model"):
            yield (
                "save_only_model=True: a training could not go on from its checkpoints; leave "
                "it out"
            )
        if grpo.get("torch_compile") and self.generation == "transformers":
            yield (
                "torch_compile=True: Transformers would compile anew for each token that it "
                "generates; set use_vllm: true, or leave torch_compile out"
            )
        if ahead and self._uses != grpo["gradient_accumulation_steps"]:
            yield (
                "reward.schedule='ahead' generates anew for every step; leave num_iterations, "
                "steps_per_generation and generation_batch_size out"
            )
        if ahead and grpo.get("vllm_importance_sampling_correction") is False:
            yield (
                "reward.schedule='ahead' trains on completions of older weights; leave "
                "vllm_importance_sampling_correction on"
            )
        if cold.steps and cold.pairs == "rewrites" and self.method == "arrange_key_point":
            yield (
                "cold_start.pairs='rewrites' are whole pages, which method='arrange_key_point' "
                "does not write; choose pairs: edits"
            )
        if cold.small_model and not cold.steps:
            yield "cold_start.steps=0: a small_model of random weights has to learn to write first"
        ours = (self.judge, self.judge_mode, self.models.get("judge"))
        theirs = (final.judge, final.judge_mode, final.models.get("judge", ours[2]))
        if ours == theirs and "key_point" in self.reward.funcs:
            yield (
                f"evaluation.judge={final.judge!r} is the judge that trained the policy: name "
                "another, or another judge_mode or models.judge"
            )
        try:
            for name in final.methods:
                known_method(name)
        except ValueError as error:
            yield f"evaluation.methods: {error}"
        if "original" not in final.methods:
            yield f"evaluation.methods={final.methods!r}: 'original' must be among them"
        try:
            check_methods(final.methods, final.rewriter)
            self.for_evaluation()._check_models()  # type: ignore[operator]
        except ValueError as error:
            yield f"evaluation: {error}"


PARAMS = GrpoParams
