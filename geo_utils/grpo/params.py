"""Parameters of notebook 04: a recipe whose `grpo:` and `lora:` sections are TRL's and PEFT's."""

from __future__ import annotations

import ast
import http.client
import json
import math
import os
import re
import shlex
import urllib.request
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from geo_utils.cluster.servers import POLICY_OPTIONS
from geo_utils.files import resolve_path
from geo_utils.grpo.engine import FIELD, serve_options
from geo_utils.parameters import LocalServer, Options, ParameterError, nearest
from geo_utils.roles.methods import MODEL_METHODS, check_methods, known_method
from geo_utils.roles.params import CorpusOptions, KeyPointChoice, Model, Role, RunParams

ASKING = ("key_point", "visibility")  # rewards that ask an engine
REWARDS = (*ASKING, "fidelity", "length_budget", "no_instructions", "format", "negative_length")
PROMPTS = ("key_point", *MODEL_METHODS)  # what a policy can learn


class RewardOptions(Options):
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
        shared_prefix: How a group's prompt goes through the policy when its completions are
            trained on: once (`flex` or `dense`; see `grpo.shared_prefix`), or with `each`
            completion. `auto` is once, wherever that leaves the mathematics as they are.
        direct_sync: Write weights into colocated vLLM's own parameters, where its layout is known;
            see `grpo.weight_sync`.
        target_place: Where the target stands among the sources when the reward asks: `drawn`, as
            in every evaluation; or `last`, so that the engine reads the other sources once for all
            completions of a group. Captions of the training say so; the comparison is drawn.
        refills: Most times in a step that other prompts are drawn in place of those whose
            completions all earn the same by the first component that asks an engine; each time
            costs as much as the step without it at most. What is left of them moves nothing.
            0 trains on all groups.
    """

    funcs: Annotated[list[Literal[REWARDS]], Field(min_length=1)] = ["key_point"]  # type: ignore[valid-type]
    weights: list[float] | None = None
    repeats: Annotated[int, Field(ge=1)] = 1
    soft: bool = False
    figure: Literal["word", "position", "pawc", "mean"] = "pawc"
    length_slack: Annotated[float, Field(ge=0)] = 0.3
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    most_lost: Annotated[int, Field(ge=1)] = 5
    placebo: bool = False
    schedule: Literal["stock", "fused", "early", "ahead"] = "early"
    shared_prefix: Literal["auto", "flex", "dense", "each"] = "auto"
    direct_sync: bool = True
    target_place: Literal["drawn", "last"] = "drawn"
    refills: Annotated[int, Field(ge=0)] = 0

    @property
    def main(self) -> str | None:
        """The first component that asks an engine: the one that groups have to differ in."""
        return next((name for name in self.funcs if name in ASKING), None)

    @property
    def aim(self) -> str:
        """What the training is to raise, as a column of the samples: `supported`, or a visibility.

        A training that asks no engine is compared by the key point, as all methods are; the mean of
        the three visibilities by `pawc`.
        """
        figure = "pawc" if self.figure == "mean" else self.figure
        return figure if self.main == "visibility" else "supported"

    @model_validator(mode="after")
    def _as_many_weights(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.funcs):
            n = len(self.funcs)
            raise ValueError(f"weights={self.weights}: {n} rewards need as many weights")
        if len(set(self.funcs)) < len(self.funcs):
            raise ValueError(f"funcs={self.funcs}: one is named more than once; give it a weight")
        return self


class Prefilter(Options):
    """Keep the prompts whose success over a few trial rewrites is neither low nor high.

    Attributes:
        trials: Rewrites a prompt, by the policy as it starts.
        low: Least share of them that carry the key point.
        high: Largest.
        pairs: How many prompts are tried, drawn from the seed; the others are left out. None: all.
    """

    trials: Annotated[int, Field(ge=2)] = 4
    low: Annotated[float, Field(ge=0, le=1)] = 0.2
    high: Annotated[float, Field(ge=0, le=1)] = 0.8
    pairs: Annotated[int, Field(ge=1)] | None = None


class Validation(Options):
    """Queries of the training's part that are kept out of it, to judge the policy as it goes.

    Attributes:
        queries: How many.
        every: Steps from one judging to the next.
        patience: So many judgings in a row that are not the best so far end the training.
    """

    queries: Annotated[int, Field(ge=1)] = 20
    every: Annotated[int, Field(ge=1)] = 20
    patience: Annotated[int, Field(ge=1)] | None = None


class DataOptions(Options):
    """Which prompts the policy is trained and tested on.

    Attributes:
        held_out: Share of the queries that training never sees; 0 where `evaluation.corpus` names
            the held-out ones.
        key_points: Those of a page to train on, and to validate by.
        max_prompt_tokens: Longest prompt; the page is cut to it, never the instructions. None: as
            the corpus's longest page needs, in the policy's tokens.
        prefilter: Keep prompts of middling success only.
        validation: Judge the policy as its training goes, by what its reward aims at, and keep the
            best checkpoint.
    """

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.3
    key_points: KeyPointChoice = "all"
    max_prompt_tokens: Annotated[int, Field(ge=32)] | None = None
    prefilter: Prefilter | None = None
    validation: Validation | None = None


class FinalEvaluation(Options):
    """How the policy is compared on held-out queries.

    Attributes:
        corpus: The held-out queries, where they are no share of the corpus (`data.held_out: 0`).
        judge: Judge of the comparison, another than the training's.
        judge_mode: As `sampling.judge_mode`.
        rewriter: What carries out the method's prompt for comparison.
        methods: Methods to compare with, `original` first; `paste_key_point` is one of them in any
            case.
        repeats: Sampled answers per page.
        key_points: Those of a held-out page.
        best_of: Compare also with the best by the reward of so many completions a page, by the
            policy before its training, and with a policy that is taught such completions for as
            many engine calls and steps as GRPO had; see `grpo.rivals`.
    """

    corpus: Annotated[CorpusOptions, Field(strict=False)] | None = None
    judge: Model
    judge_mode: Literal["verdict", "soft"] = "verdict"
    rewriter: Model = "offline"
    methods: list[str] = ["original", "key_point"]
    repeats: Annotated[int, Field(ge=1)] = 3
    key_points: KeyPointChoice = "all"
    best_of: Annotated[int, Field(ge=2)] | None = None


class SmallModel(Options):
    """A Qwen3 of random weights, made on the spot with a tokenizer of the corpus's words.

    Attributes:
        hidden_size: Width; heads are 16 wide.
        layers: Depth.
        vocabulary: Tokens of its byte-level BPE.
    """

    hidden_size: Annotated[int, Field(ge=16)] = 64
    layers: Annotated[int, Field(ge=1)] = 2
    vocabulary: Annotated[int, Field(ge=300)] = 1024


class ColdStart(Options):
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


class PolicyOptions(Options):
    """What is trained.

    Attributes:
        base: The policy before training, a Hub id or folder.
        method: What it is asked to do: `key_point` (write the page anew), `arrange_key_point` (put
            its sentences in order), or any other prompt.
        cold_start: Supervised fine-tuning before.
    """

    base: Annotated[str, Field(min_length=1)] = "Qwen/Qwen3-1.7B"
    method: Literal[PROMPTS] = "key_point"  # type: ignore[valid-type]
    cold_start: ColdStart = ColdStart()


# The classes that bring a section's fields, and the installed sources that hold them.
_CLASSES = {
    "grpo": {
        "GRPOConfig": "trl/trainer/grpo_config.py",
        "_BaseConfig": "trl/trainer/base_config.py",
        "TrainingArguments": "transformers/training_args.py",
    },
    "lora": dict.fromkeys(("PeftConfig", "PeftConfigMixin"), "peft/config.py")
    | {"LoraConfig": "peft/tuners/lora/config.py"},
    FIELD: {"EngineArgs": "vllm/engine/arg_utils.py"},
}


@lru_cache(maxsize=3)
def field_types(section: str) -> dict[str, str]:
    """Return the types of a section's fields: `GRPOConfig`'s, `LoraConfig`'s or `EngineArgs`'.

    Importing them takes many seconds, and a wrong parameter has to be refused at once, so the
    installed sources are parsed instead.

    Args:
        section: `grpo`, `lora` or `vllm_engine`, which has none where vLLM is not installed.
    """
    types: dict[str, str] = {}
    for kind, file in _CLASSES[section].items():
        try:
            path = Path(str(distribution(file.partition("/")[0]).locate_file(file)))
        except PackageNotFoundError:  # a folder of that name is importable, and is not vLLM
            return {}
        nodes = ast.parse(path.read_text("utf-8")).body
        (own,) = (n for n in nodes if isinstance(n, ast.ClassDef) and n.name == kind)
        lines = (line for line in own.body if isinstance(line, ast.AnnAssign))
        types = {ast.unparse(line.target): ast.unparse(line.annotation) for line in lines} | types
    return {name: kind for name, kind in types.items() if not name.startswith("_")}


def field_problems(section: str, given: Mapping[str, Any]) -> Iterator[str]:
    """Say which fields a section has not, or not with such a value.

    Args:
        section: `grpo` or `lora`.
        given: Values by field.
    """
    known = field_types(section) | ({FIELD: ""} if section == "grpo" else {})
    for name, value in given.items():
        allowed, why = _ONLY.get(name, ((value,), ""))
        kind, own = known.get(name, ""), type(value).__name__
        plain = set(re.findall(r"\w+", kind.replace("Optional", "None"))) & _PLAIN
        fits = {own.replace("NoneType", "None"), "float" if own == "int" else own}
        unset = value is None and GRPO_DEFAULTS.get(name, 1) is None
        count = section == "grpo" and name in _COUNTS and not unset
        if name not in known:
            yield f"{section}.{name}: no such field{nearest(name, known)}"
        elif count and (type(value) is not int or value < 1):
            yield f"{section}.{name}={value!r}: a whole number of at least 1 is needed"
        elif name in _ONLY and value not in allowed:
            yield f"{section}.{name}={value!r}: {why}"
        elif isinstance(value, str) and _NUMBER.fullmatch(value):
            yield f"{section}.{name}={value!r}: a number is needed: write 1.0e-5, unquoted"
        elif plain and not plain & fits:
            yield f"{section}.{name}={value!r}: {kind} is needed"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{section}.{name}={value!r}: a finite number is needed"


# What TRL gives its colocated engine, and what a run gives the policy's server.
_TRLS = (
    *("model", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "max_num_seqs"),
    *("enable_sleep_mode", "model_impl", "distributed_executor_backend", "seed", "quantization"),
    *("max_num_batched_tokens", "logprobs_mode", "trust_remote_code"),
)
_SERVERS = ("model", "port", "weight_transfer_config", "logprobs_mode", "max_logprobs")
_DRAFTS = ("ngram", "ngram_gpu", "suffix", "page")  # that need no second model


def engine_problems(grpo: Mapping[str, Any], generation: str, prompt: int | None) -> Iterator[str]:
    """Say which arguments of the policy's engine cannot be had, or not together.

    Args:
        grpo: As `GrpoParams.grpo`.
        generation: As `GrpoParams.generation`.
        prompt: Tokens of the longest prompt, where they are known.
    """
    given, field, known = grpo.get(FIELD), f"grpo.{FIELD}", field_types(FIELD)
    if given is None:
        return
    if not isinstance(given, dict):
        yield f"{field}={given!r}: arguments of vLLM's engine by name are needed"
        return
    if generation == "transformers":
        yield f"{field}={given!r} needs use_vllm: true"
    for name in given:
        if name in (_TRLS if generation == "colocate" else _SERVERS):
            yield f"{field}.{name}={given[name]!r}: it is set for the training; leave it out"
        if known and name not in known:
            yield f"{field}.{name}: vLLM has no such argument{nearest(name, known)}"
    if "speculative_config" in given:
        yield from _draft_problems(grpo, given["speculative_config"], prompt)


def _draft_problems(grpo: Mapping[str, Any], drafts: Any, prompt: int | None) -> Iterator[str]:
    field = f"grpo.{FIELD}.speculative_config"
    if not isinstance(drafts, dict) or drafts.get("method") not in _DRAFTS:
        yield f"{field}={drafts!r}: name a method; choose from {', '.join(_DRAFTS)}"
        return
    size = drafts.get("num_speculative_tokens")
    if type(size) is not int or size < 1:
        yield f"{field}.num_speculative_tokens={size!r}: a whole number of at least 1 is needed"
        return
    if drafts.get("rejection_sample_method") == "synthetic":
        yield f"{field}.rejection_sample_method='synthetic' changes what is written; drop it"
    for name in ("min_p", "logit_bias"):
        if value := (grpo.get("generation_kwargs") or {}).get(name):
            yield f"grpo.generation_kwargs.{name}={value!r}: vLLM refuses it with drafts; drop one"
    room, completion = grpo.get("vllm_max_model_length"), grpo["max_completion_length"]
    needed = (prompt or 0) + (completion or 0) + size
    if isinstance(room, int) and room < needed:
        yield (
            f"grpo.vllm_max_model_length={room}: near it, drafts stop for the whole batch; set it "
            f"to at least {needed}, the longest prompt, completion and draft"
        )


GRPO_DEFAULTS: dict[str, Any] = {
    "max_steps": 200, "num_generations": 8, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "max_completion_length": None,
    "save_steps": 25, "save_total_limit": 2, "logging_steps": 1, "report_to": "none",
    "scale_rewards": "none",
}  # fmt: skip
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
_COUNTS = (
    *("max_steps", "num_generations", "per_device_train_batch_size", "num_iterations"),
    *("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"),
    "max_completion_length",
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
_PLAIN = {"bool", "int", "float", "str", "dict", "list", "None"}
_ACROSS = "rewards are normalised within the group of one prompt, or not at all"
REPORTERS = ("tensorboard", "trackio", "wandb")  # where figures of the steps can go as well
# What this training can have of a field of TRL's, and why no more.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(
        ("top_k", "min_p", "repetition_penalty"),
        ((False,), "the comparison samples without it; leave it out"),
    ),
    "resume_from_checkpoint": ((), "a run goes on from its own checkpoints; leave it out"),
    "save_only_model": ((False,), "a training could not go on from its checkpoints; leave it out"),
    "output_dir": ((), "checkpoints lie in the run folder; leave it out"),
    "seed": ((), "the run's seed counts; set it at the top"),
    "scale_rewards": ((True, False, "group", "none"), _ACROSS),
    "logging_steps": ((1,), "a line of metrics.jsonl is a step; leave it out"),
}


class GrpoParams(RunParams):
    """Parameters of notebook 04.

    Attributes:
        policy: What is trained.
        reward: What is rewarded.
        data: Prompts and their split.
        evaluation: The comparison at the end.
        grpo: Fields of TRL's GRPOConfig, any of them, over `GRPO_DEFAULTS`; `temperature` there is
            the policy's. `max_completion_length` and `vllm_max_model_length` follow the corpus
            where they are none (`data.with_lengths`). `scale_rewards: none`, the default, puts the
            key point first: its reward spreads most, and a group that agrees in it moves little.
            `multi_objective_aggregation: normalize_then_sum` gives each reward the same spread
            before its weight; `scale_rewards: group` is TRL's own. `save_steps` is rounded up to a
            moment at which a training can go on; for `torch_compile`, see `train.compile_layers`.
            One more field, `vllm_engine`, holds arguments of vLLM's engine, such as drafts; see
            `grpo.engine`.
        lora: Fields of PEFT's LoraConfig, over `LORA_DEFAULTS`.
    """

    notebook: ClassVar[str] = "04_grpo"
    policy: Annotated[PolicyOptions, Field(strict=False)]
    reward: Annotated[RewardOptions, Field(strict=False)]
    data: Annotated[DataOptions, Field(strict=False)]
    evaluation: Annotated[FinalEvaluation, Field(strict=False)]
    grpo: Annotated[dict[str, Any], AfterValidator(lambda given: GRPO_DEFAULTS | given)]
    lora: Annotated[dict[str, Any], AfterValidator(lambda given: LORA_DEFAULTS | given)]

    @property
    def roles(self) -> dict[Role, str]:
        """The model of each role; the comparison's rewriter."""
        return super().roles | {"rewriter": self.evaluation.rewriter}

    @property
    def methods(self) -> list[str]:
        """The methods that the policy is compared with."""
        return list(dict.fromkeys([*self.evaluation.methods, "paste_key_point"]))

    @property
    def repeats(self) -> int:
        """Sampled answers per page in the comparison."""
        return self.evaluation.repeats

    @property
    def key_points(self) -> KeyPointChoice:
        """Which key points of a held-out page the comparison is about."""
        return self.evaluation.key_points

    def for_evaluation(self) -> Self:
        """Return the parameters with the comparison's judge, and the target's place as drawn."""
        sampling = self.sampling.model_copy(update={"judge_mode": self.evaluation.judge_mode})
        reward = self.reward.model_copy(update={"target_place": "drawn"})
        judged = {"judge": self.evaluation.judge, "sampling": sampling, "reward": reward}
        return self.model_copy(update=judged)

    @property
    def policy_source(self) -> str:
        """What the policy is, for captions."""
        small, asked = self.policy.cold_start.small_model, ""
        if self.reward.target_place == "last" and set(ASKING) & set(self.reward.funcs):
            asked = "; the reward asked with the target as LAST source"
        if small is None:
            return f"policy {self.policy.base}{asked}"
        made = f"a Qwen3 of hidden size {small.hidden_size} made on the spot from random weights"
        return f"policy: {made}, no language model{asked}"

    @property
    def machine_settings(self) -> dict[str, Any]:
        """The fields of TrainingArguments that depend on machine and seed."""
        on_cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        return {"seed": self.seed, **(on_cpu if self.grpo.get("use_cpu") else {})}

    @property
    def reporters(self) -> list[str]:
        """Where figures of the steps go beside the run folder."""
        given = self.grpo["report_to"]
        listed = given if isinstance(given, list) else [given]
        return [str(name) for name in listed if name not in (None, "none")]

    @property
    def generation_size(self) -> int:
        """Completions that are generated together."""
        grpo = self.grpo
        steps = grpo.get("steps_per_generation") or grpo["gradient_accumulation_steps"]
        named = grpo.get("generation_batch_size")
        return int(named or grpo["per_device_train_batch_size"] * steps)

    @property
    def steps_a_generation(self) -> int:
        """Optimizer steps that share one generation of completions."""
        return int(max(self._uses // self.grpo["gradient_accumulation_steps"], 1))

    @property
    def rollouts(self) -> int:
        """How many completions the whole training draws."""
        micro_batches = self.grpo["max_steps"] * self.grpo["gradient_accumulation_steps"]
        return int(math.ceil(micro_batches / self._uses) * self.generation_size)

    @property
    def prompts_apart(self) -> str | None:
        """What in the recipe forbids that completions share their prompt; None for nothing.

        Micro-batches of whole groups are others than TRL's, whose rows are shuffled: no loss may
        depend on which completions are in one.
        """
        grpo, dropout = self.grpo, self.lora.get("lora_dropout")
        micro, group = grpo["per_device_train_batch_size"], grpo["num_generations"]
        whole = "weighs a completion by the others of its micro-batch"
        if self.reward.schedule == "stock":
            return "reward.schedule='stock' is TRL's own"
        if grpo.get("loss_type") == "bnpo":
            return f"grpo.loss_type='bnpo' {whole}"
        for name, neutral in (("top_entropy_quantile", 1.0), ("entropy_coef", 0.0)):
            if grpo.get(name, neutral) != neutral:
                return f"grpo.{name}={grpo[name]!r} {whole}"
        if grpo.get("use_adaptive_entropy"):
            return f"grpo.use_adaptive_entropy=True {whole}"
        if micro % group:
            return f"grpo.per_device_train_batch_size={micro} splits groups of {group}"
        if self.generation_size > micro * grpo["gradient_accumulation_steps"]:
            return "a generation lasts for several optimizer steps, which would split its groups"
        if dropout:
            return f"lora.lora_dropout={dropout!r} would be drawn once a group"
        return None

    @property
    def _uses(self) -> int:
        """Micro-batches that one generation of completions is used for."""
        size = self.generation_size // self.grpo["per_device_train_batch_size"]
        return int(size * (self.grpo.get("num_iterations") or 1))

    @property
    def generation(self) -> str:
        """How the policy generates: `transformers`, `colocate` or `server`."""
        mode = self.grpo.get("vllm_mode", "colocate")
        return str(mode) if self.grpo.get("use_vllm") else "transformers"

    @property
    def policy_server(self) -> str:
        """The address of the vLLM server that generates for the policy."""
        host = self.grpo.get("vllm_server_host", "0.0.0.0")
        address = f"http://{host}:{self.grpo.get('vllm_server_port', 8000)}"
        return str(self.grpo.get("vllm_server_base_url") or address).rstrip("/")

    @property
    def servers_here(self) -> list[LocalServer]:
        """The policy's server, and those of training and comparison, each once."""
        options = serve_options(self.grpo)
        own = LocalServer.at(self.policy_server, self.policy.base, policy=True, options=options)
        found = own if self.generation == "server" else []
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

        step = checkpoint_step(newest_complete(folder / "checkpoints")) or 0
        whole = sum((folder / made / CARD).is_file() for made in ("policy", "checkpoints/final"))
        return [step, whole, *super().saved_work(folder)]

    @model_validator(mode="after")
    def _check_recipe(self) -> Self:
        """Refuse what cannot be trained, the first problem by name."""
        for problem in self._problems():  # what comes later relies on what comes first
            raise ValueError(problem)
        return self

    def _trl_problems(self) -> Iterator[str]:
        """Say which fields of TRL and PEFT cannot be had, or not together."""
        yield from field_problems("grpo", self.grpo)
        yield from field_problems("lora", self.lora)
        yield from engine_problems(self.grpo, self.generation, self.data.max_prompt_tokens)
        if unknown := set(self.reporters) - set(REPORTERS):
            which = ", ".join(REPORTERS)
            yield f"grpo.report_to={self.grpo['report_to']!r}: {min(unknown)!r} is none of {which}"
        if self.grpo.get("torch_compile") and self.generation == "transformers":
            yield "grpo.torch_compile=True needs use_vllm: true, else each token would be compiled"
        grpo, size = self.grpo, self.generation_size
        group, batch = grpo["num_generations"], grpo["per_device_train_batch_size"]
        if grpo.get("steps_per_generation") and grpo.get("generation_batch_size"):
            yield "grpo: steps_per_generation and generation_batch_size say the same: name one"
        if group < 2:
            yield f"grpo.num_generations={group}: a group needs at least 2 completions to compare"
        if size % (unit := math.lcm(batch, group)):
            parts = f"per_device_train_batch_size={batch} and num_generations={group}"
            yield f"grpo: {size} completions do not divide by {parts}; choose a multiple of {unit}"
        asked = self.reward.shared_prefix
        if asked in ("flex", "dense") and (problem := self.prompts_apart):
            yield f"reward.shared_prefix={asked!r}: {problem}; choose auto or each"
        if asked == "flex" and grpo.get("use_cpu"):
            yield "reward.shared_prefix='flex' has no backward pass on a CPU; choose auto or dense"
        if self.reward.refills and (
            self.reward.schedule in ("stock", "fused") or self.reward.main is None
        ):
            needed = f"schedule 'early' or 'ahead' and a reward of {' or '.join(ASKING)}"
            yield f"reward.refills={self.reward.refills} needs {needed}; set 0"
        if self.reward.schedule != "ahead":
            return
        if self._uses != grpo["gradient_accumulation_steps"]:
            shared = "num_iterations, steps_per_generation and generation_batch_size"
            yield f"reward.schedule='ahead' generates anew for every step; leave {shared} out"
        if grpo.get("vllm_importance_sampling_correction") is False:
            needed = "vllm_importance_sampling_correction"
            yield f"reward.schedule='ahead' trains on completions of older weights; set {needed}"

    def _problems(self) -> Iterator[str]:
        """Say what cannot be trained, that of TRL first."""
        yield from self._trl_problems()
        cold, final = self.policy.cold_start, self.evaluation
        rewrites = cold.steps and cold.pairs == "rewrites"
        if rewrites and self.policy.method == "arrange_key_point":
            yield "policy.cold_start.pairs='rewrites' are no arrangements; choose pairs: edits"
        if cold.small_model and not cold.steps:
            yield "policy.cold_start.steps=0: a small_model of random weights must learn to write"
        lengths = self.data.max_prompt_tokens, self.grpo["max_completion_length"]
        if self.policy.method == "arrange_key_point" and None in lengths:
            names = "data.max_prompt_tokens and grpo.max_completion_length"
            yield f"{names} are {lengths}: an arrangement's do not follow its page; give numbers"
        same = (self.judge, self.sampling.judge_mode) == (final.judge, final.judge_mode)
        if same and "key_point" in self.reward.funcs:
            judge = f"evaluation.judge={final.judge!r} is the judge that trained the policy"
            yield f"{judge}: name another, or another judge_mode"
        if self.data.prefilter and self.reward.aim != "supported":
            funcs = f"reward.funcs={self.reward.funcs}"
            yield f"data.prefilter tries how often a key point lands, no aim of {funcs}; set null"
        if (final.corpus is None) == (self.data.held_out == 0):
            given = f"data.held_out={self.data.held_out} and evaluation.corpus={final.corpus}"
            yield f"{given}: held-out queries are a share of the corpus, or a corpus of their own"
        if "original" not in final.methods:
            yield f"evaluation.methods={final.methods!r}: 'original' must be among them"
        try:
            check_methods([known_method(name) for name in final.methods], final.rewriter)
            self.for_evaluation()._check_models()  # type: ignore[operator]
        except ValueError as error:
            yield f"evaluation: {error}"


PARAMS = GrpoParams


def check_machine(params: GrpoParams) -> None:
    """Refuse a recipe that this machine cannot run, before a model is loaded.

    Raises:
        ParameterError: vLLM or a GPU is missing, or the policy's folder or server is not there or
            serves another model.
    """
    if params.dry_run or params.recorded:  # which train nothing, on whatever machine
        return
    grpo, name, small = params.grpo, params.policy.base, params.policy.cold_start.small_model
    if grpo.get("use_vllm") and not field_types(FIELD):
        way = "pip install -e '.[gpu]', or set use_vllm: false"
        raise ParameterError(f"grpo.use_vllm=True: vllm is not installed; {way}")
    for reporter in params.reporters:
        if find_spec(reporter) is None:
            way = "pip install -e '.[log]', or leave it out"
            raise ParameterError(f"grpo.report_to={reporter!r}: it is not installed; {way}")
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    if "wandb" in params.reporters and not (offline or os.environ.get("WANDB_API_KEY")):
        way = "set WANDB_API_KEY, or WANDB_MODE=offline"
        raise ParameterError(f"grpo.report_to='wandb': it would ask for a key; {way}")
    import torch

    if small:
        torch.set_num_threads(1)  # its matrices are too small to share: threads would only wait
    if not grpo.get("use_cpu") and not torch.cuda.is_available():
        raise ParameterError(
            "grpo.use_cpu=False: this recipe needs a GPU and this machine shows none; run it on "
            "one, or set use_cpu: true with a small model (params/04_grpo/smoke.yaml)"
        )
    folder = resolve_path(name)
    here = folder.exists() or name.startswith(("/", "."))
    if not small and here and not (folder / "config.json").is_file():
        problem = f"{folder} holds no model (config.json is missing)"
        raise ParameterError(f"policy.base={name!r}: {problem}")
    if params.generation == "server":
        check_server(params)


def check_server(params: GrpoParams) -> None:
    """Refuse a policy server that is not up or serves another model.

    Raises:
        ParameterError: What is wrong and how to start it.
    """
    name, url = params.policy.base, params.policy_server
    port = urlsplit(url).netloc.rpartition(":")[2]
    options = [*POLICY_OPTIONS, "--enable-scale-out", *serve_options(params.grpo)]
    start = f"VLLM_SERVER_DEV_MODE=1 vllm serve {name} --port {port if port.isdecimal() else 8000}"
    start += f" {shlex.join(options)}"
    where = f"grpo.vllm_mode='server': {url}"
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            served = [row["id"] for row in json.load(answer)["data"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        problem = f"no vLLM server answers there ({error}); start it on a GPU of its own"
        raise ParameterError(f"{where}: {problem}:\n  {start}") from None
    if Path(name).name not in [Path(served_name).name for served_name in served]:
        problem = f"serves {', '.join(served)}, not policy.base={name!r}; start one that does"
        raise ParameterError(f"{where} {problem}:\n  {start}")
