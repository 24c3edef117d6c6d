"""Parameters of notebook 01: settings to measure, and what they are measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from geo_utils.files import resolve_path
from geo_utils.grpo.params import engine_problems, field_problems
from geo_utils.parameters import Name, NotebookParams, Options, nearest

Place = Literal["trainer", "second_trainer", "policy", "engine"]
Shape = Literal["small", "Qwen3-1.7B", "Qwen2.5-7B"]


class Setting(Options):
    """One placement of policy and reward.

    Attributes:
        group: Settings that are compared with each other.
        policy: How the policy generates; see `GrpoParams.generation`.
        reward: What answers: nothing, Gemini (or its look-alike), or the engine model on a vLLM
            server, by vLLM in the trainer's process, or by Transformers there.
        schedule: When rewards are worked out; see `RewardOptions.schedule`.
        shared_prefix: How a group's prompt goes through the policy; see
            `RewardOptions.shared_prefix`.
        direct_sync: Whether weights are written into colocated vLLM; see
            `RewardOptions.direct_sync`.
        target_place: Where the target stands among an engine's sources; see
            `RewardOptions.target_place`.
        parallel: Whether Gemini is asked for a whole batch at once, or one by one.
        gpus: The GPU that each role holds, by index; on one GPU, they share it. With a
            `second_trainer`, two processes train, on half of the batch each.
        recipe: Fields of `GrpoParams.grpo` over the run's.
        completions: Completions a step, where not the run's.
        new_tokens: Tokens of each, likewise.
        reward_latency_s: Seconds of engine and judge together, likewise.
        warmup_steps: Steps that do not count, likewise.
        steps: Steps that do, likewise.
    """

    group: Annotated[str, Field(min_length=1)]
    policy: Literal["transformers", "colocate", "server"]
    reward: Literal["negative_length", "gemini", "qwen_server", "qwen_vllm", "qwen_transformers"]
    schedule: Literal["stock", "fused", "early", "ahead"] = "stock"
    shared_prefix: Literal["auto", "flex", "dense", "each"] = "each"
    direct_sync: bool = False
    target_place: Literal["drawn", "last"] = "drawn"
    parallel: bool = True
    gpus: dict[Place, Annotated[int, Field(ge=0)]] = {"trainer": 0}
    recipe: dict[str, Any] = {}
    completions: Annotated[int, Field(ge=2)] | None = None
    new_tokens: Annotated[int, Field(ge=1)] | None = None
    reward_latency_s: Annotated[float, Field(ge=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    steps: Annotated[int, Field(ge=2)] | None = None

    @property
    def gpus_wanted(self) -> int:
        """How many GPUs the setting holds."""
        return len(set(self.gpus.values()))

    @property
    def engine_in_process(self) -> bool:
        """Whether the trainer's process holds the engine."""
        return self.reward in ("qwen_vllm", "qwen_transformers")

    @property
    def trainers(self) -> int:
        """How many processes train, each on its share of the batch."""
        return 1 + ("second_trainer" in self.gpus)

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        needed: list[Place] = ["trainer"]
        needed += ["second_trainer"] * (self.trainers - 1)
        needed += ["policy"] if self.policy == "server" else []
        needed += ["engine"] if self.reward.startswith("qwen") else []
        if sorted(self.gpus) != sorted(needed):
            raise ValueError(
                f"gpus={dict(self.gpus)!r}: policy={self.policy!r} with reward={self.reward!r} "
                f"places {', '.join(needed)}; give each a GPU"
            )
        if self.trainers > 1 and (self.schedule in ("early", "ahead") or self.engine_in_process):
            raise ValueError(
                f"gpus={dict(self.gpus)!r}: schedule={self.schedule!r} with reward="
                f"{self.reward!r} is for one trainer; with a second one choose schedule=fused, and "
                "no engine in the trainer's process"
            )
        return self


class CapacityOptions(Options):
    """What there is to run experiments on; see `capacity.plan`.

    Attributes:
        gpus: GPUs of one user.
        gpu_memory_gib: Of one GPU; a setting whose measured peak is above it is not recommended.
        requests_per_minute: The API's limit, for all experiments together; None for none.
        tokens_per_minute: Likewise.
        steps: Steps of one experiment.
        experiments: Of the sweep.
    """

    gpus: Annotated[int, Field(ge=1)] = 24
    gpu_memory_gib: Annotated[float, Field(gt=0)] = 80.0
    requests_per_minute: Annotated[float, Field(gt=0)] | None = 4_000.0
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = 4_000_000.0
    steps: Annotated[int, Field(ge=1)] = 500
    experiments: Annotated[int, Field(ge=1)] = 24


class WorkOptions(Options):
    """What every setting does, where it names no sizes of its own.

    Attributes:
        completions: A step.
        new_tokens: Of each completion.
        natural_lengths: Let completions end where they end, up to `new_tokens`.
        prompt_tokens: Of the policy's prompt, and of each page in an engine's.
        answer_tokens: Longest answer of the engine; with random weights, every answer's length.
    """

    model_config = ConfigDict(strict=True)

    completions: Annotated[int, Field(ge=2)] = 16
    new_tokens: Annotated[int, Field(ge=1)] = 512
    natural_lengths: bool = False
    prompt_tokens: Annotated[int, Field(ge=16)] = 1300
    answer_tokens: Annotated[int, Field(ge=1)] = 400


class TimingOptions(Options):
    """How often it is done, and for how long at most.

    Attributes:
        repeats: Measurements of each setting, interleaved.
        warmup_steps: Steps at the start that do not count.
        steps: Steps that do.
        timeout_s: Longest time for one measurement, start included.
    """

    repeats: Annotated[int, Field(ge=1, strict=True)] = 2
    warmup_steps: Annotated[int, Field(ge=0, strict=True)] = 2
    steps: Annotated[int, Field(ge=2, strict=True)] = 6
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0


class GeminiOptions(Options):
    """What stands for Gemini.

    Attributes:
        service: `auto` asks the real service where a key is set; `simulated` never.
        latency_s: Seconds of engine and judge together, of the simulated one.
    """

    service: Literal["auto", "simulated"] = "auto"
    latency_s: Annotated[float, Field(ge=0)] = 2.0


class ModelOptions(Options):
    """Which models.

    Attributes:
        policy: Folder or Hub id; `small` for one made on the spot.
        engine: Folder or Hub id.
        random_weights: Models to make with random weights of their true shape.
    """

    policy: Annotated[str, Field(min_length=1)] = "Qwen/Qwen3-1.7B"
    engine: Annotated[str, Field(min_length=1)] = "Qwen/Qwen2.5-7B-Instruct"
    random_weights: list[Shape] = []


class EfficiencyParams(NotebookParams):
    """Parameters of notebook 01.

    Attributes:
        seed: Seed of weights and prompts.
        recorded: Folders of rows measured before, which are shown beside this run's.
        settings: What to measure, by name.
        only: Names of the settings to measure now; none for all.
        reference: Name of the setting that every sitting measures first and last; empty for none.
        work: What every setting does.
        timing: How often, and for how long at most.
        gemini: What stands for Gemini.
        models: Which models.
        recipe: Fields of `GrpoParams.grpo` for all settings.
        capacity: What the planner counts with.
    """

    notebook: ClassVar[str] = "01_efficiency"
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    recorded: list[str]
    settings: Annotated[dict[Name, Setting], Field(strict=False)]
    only: list[str]
    reference: str
    work: Annotated[WorkOptions, Field(strict=False)]
    timing: Annotated[TimingOptions, Field(strict=False)]
    gemini: Annotated[GeminiOptions, Field(strict=False)]
    models: Annotated[ModelOptions, Field(strict=False)]
    recipe: dict[str, Any]
    capacity: Annotated[CapacityOptions, Field(strict=False)]

    @property
    def chosen(self) -> dict[str, Setting]:
        """The settings to measure now, with the run's sizes where they name none of their own."""
        sizes = dict(self.work) | dict(self.timing) | {"reward_latency_s": self.gemini.latency_s}
        return {
            name: setting.model_copy(update={k: sizes[k] for k, own in setting if own is None})
            for name, setting in self.settings.items()
            if not self.only or name in (*self.only, self.reference)
        }

    @property
    def gpus_needed(self) -> int:
        """As many as the largest setting wants; it starts its servers itself."""
        if self.recipe.get("use_cpu"):
            return 0
        return max((setting.gpus_wanted for setting in self.chosen.values()), default=0)

    def saved_work(self, folder: Path) -> list[int]:
        """Return the size of what was measured."""
        return [path.stat().st_size for path in folder.glob("rows.jsonl")]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Refuse names of settings and folders that there are not."""
        for folder in self.recorded:  # which is read once all is measured
            if not resolve_path(folder).is_dir():
                raise ValueError(
                    f"recorded={folder!r}: no such folder; name one that holds the rows.jsonl of "
                    "measurements, or leave it out"
                )
        for name, given in (("only", self.only), ("reference", [self.reference])):
            for value in given:
                if value and value not in self.settings:
                    raise ValueError(
                        f"{name}: {value!r} is unknown{nearest(value, self.settings)} Choose from "
                        f"{', '.join(self.settings)}"
                    )
        return self

    @model_validator(mode="after")
    def _check_engines(self) -> Self:
        """Refuse fields of a recipe, and of vLLM's engine, that no training could have."""
        for name, setting in self.settings.items():
            tokens = {"max_completion_length": setting.new_tokens or self.work.new_tokens}
            grpo = self.recipe | setting.recipe | tokens
            for problem in (
                *field_problems("grpo", grpo),
                *engine_problems(grpo, setting.policy, self.work.prompt_tokens),
            ):
                raise ValueError(f"settings.{name}: {problem}")
        return self


PARAMS = EfficiencyParams
