"""Measured steps: rows as the harness of notebook 01 wrote them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from geo_utils.efficiency.params import Setting
from geo_utils.files import project_root, resolve_path
from geo_utils.parameter_errors import ParameterError, read_yaml

log = logging.getLogger(__name__)

Status = Literal["measured", "not run", "out of memory", "failed", "timed out"]
Condition = tuple[Any, ...]
Work = tuple[str, str, int, int, bool, int]
# In the order of a step. "train" parts need no new completion and no reward to begin with.
TRAIN_PHASES = ("old log-probabilities", "loss forward", "backward", "optimizer",
                "batch preparation", "between steps")  # fmt: skip
PHASES = ("weight sync", "generation", "reward", *TRAIN_PHASES)


class Measurement(BaseModel):
    """One setting measured once, or several times put together by `pooling.pooled`.

    Figures are None where the setting was not measured, and where nothing could measure them.

    Attributes:
        setting: Its name.
        group: Settings that are compared with each other.
        status: How the measurement ended.
        reason: Why it did not end well, or was not begun.
        policy: How the policy generates.
        reward: What rewards it.
        schedule: When rewards are worked out.
        parallel: Whether an API is asked for a whole batch at once.
        apart: Whether a service was asked from a process of its own; None where none was asked.
        micro_batch: Completions of one pass of the training.
        checkpointing: Whether layers were computed again for the backward pass.
        compiled: Whether layers were compiled.
        sitting: What was measured in one go: one machine, one process tree.
        bench: Sittings that are shown together, as `sittings.placed` finds them.
        reference: `first` or `last`, where it is its sitting's reference.
        repeat: Number of the repeat.
        repeats: How many repeats stand behind the figures.
        lost: How many more did not end well.
        hardware: Such as `NVIDIA H200 x 1`.
        gpus: GPUs that the setting held.
        gpus_wanted: GPUs that it asks for.
        shared: Whether roles shared a GPU.
        completions: A step.
        new_tokens: Of a completion, mean.
        prompt_tokens: Of a prompt.
        natural_lengths: Whether completions ended where they end.
        reward_latency_s: Of engine and judge together, where they were simulated.
        on_policy: Whether the weights that generated are those that are trained.
        warmup_steps: Steps that were dropped.
        steps: Steps that count.
        step_s: Seconds a step, median.
        step_s_all: Seconds of each step.
        step_s_spread: Quartiles of them.
        phases: Seconds of each phase of the main thread a step; they exclude each other. Medians;
            means where `phases_all` is missing.
        phases_all: Seconds of each phase in each step.
        background: Seconds of each phase that ran beside the main thread.
        engine_s: Seconds of a step in which the engine was asked.
        judge_s: Seconds in which only the judge was.
        abstained: Share of completions without a score.
        gpu_seconds_per_sample: Over all GPUs held.
        samples_per_s: Completions a second.
        tokens_per_s: New tokens a second.
        peak_memory_gib: By GPU.
        gpu_utilisation: Percent, by GPU.
        energy_j_per_sample: Of all GPUs held.
        logp_difference: Mean difference of a token's log-probability between trainer and vLLM.
        calls_per_1000: Calls for 1,000 rollouts.
        tokens_per_1000: Tokens of these calls, in and out.
        tokens_a_call: By role, tokens in and out of a call, mean.
        cost_per_1000: Their US dollars.
        startup_s: Seconds of the measurement beside its steps.
        phase: How far one that did not end well had come.
        log_tail: The end of what it wrote then.
        simulated: What was no real service and no trained model.
        recipe: Fields of GRPOConfig that the setting named.
        models: Policy, engine, and the tokens of an answer.
        versions: Of the packages.
        measured_at: When.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    setting: str
    status: Status
    group: str = ""
    reason: str | None = None
    policy: str = ""
    reward: str = ""
    schedule: str = "stock"
    parallel: bool = True
    apart: bool | None = None
    micro_batch: int | None = None
    checkpointing: bool | None = None
    compiled: bool | None = None
    sitting: str = ""
    bench: str = ""
    reference: Literal["first", "last"] | None = None
    repeat: int = 0
    repeats: int = 1
    lost: int = 0
    hardware: str = "unknown hardware"
    gpus: int = 1
    gpus_wanted: int = 1
    shared: bool = False
    completions: int | None = None
    new_tokens: float | None = None
    prompt_tokens: float | None = None
    natural_lengths: bool = False
    reward_latency_s: float | None = None
    on_policy: bool = True
    warmup_steps: int = 0
    steps: int = 0
    step_s: float | None = None
    step_s_all: tuple[float, ...] | None = None
    step_s_spread: tuple[float, float] | None = None
    phases: dict[str, float] | None = None
    phases_all: dict[str, tuple[float, ...]] | None = None
    background: dict[str, float] | None = None
    engine_s: float | None = None
    judge_s: float | None = None
    abstained: float | None = None
    gpu_seconds_per_sample: float | None = None
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    peak_memory_gib: tuple[float, ...] | None = None
    gpu_utilisation: tuple[float, ...] | None = None
    energy_j_per_sample: float | None = None
    logp_difference: float | None = None
    calls_per_1000: float | None = None
    tokens_per_1000: float | None = None
    tokens_a_call: dict[str, tuple[float, float]] | None = None
    cost_per_1000: float | None = None
    startup_s: float | None = None
    phase: str | None = None
    log_tail: str | None = None
    simulated: tuple[str, ...] | None = None
    recipe: dict[str, Any] = {}
    models: dict[str, Any] = {}
    versions: dict[str, Any] | None = None
    measured_at: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = {name: value for name, value in values.items() if value is not None}
        return _held_equal(known) | known

    @property
    def device(self) -> str:
        """The kind of hardware, without how many of it there were."""
        return self.hardware.rpartition(" x ")[0] or self.hardware

    @property
    def measured(self) -> bool:
        """Whether there is a step time."""
        return self.status == "measured" and bool(self.step_s) and bool(self.phases)

    @property
    def unasked(self) -> bool:
        """Whether the engine was asked for less than half of its stated latency.

        Completions that hold no page are rewarded without a call, and a step that waits for none
        says nothing about one that does.
        """
        if not self.measured or self.reward != "gemini" or self.engine_s is None:
            return False
        return self.engine_s + (self.judge_s or 0.0) < 0.5 * (self.reward_latency_s or 0.0)

    @property
    def seconds(self) -> float:
        """Seconds a step; NaN where it was not measured."""
        return float("nan") if self.step_s is None else self.step_s

    @property
    def typical_s(self) -> float:
        """Seconds per step as the phases are given: median, or mean with an earlier harness."""
        if self.phases_all is None and self.step_s_all:
            return sum(self.step_s_all) / len(self.step_s_all)
        return self.seconds

    @property
    def needed_gib(self) -> float | None:
        """The most memory of one GPU that the setting needs.

        A vLLM server that has a GPU to itself takes the share of it that it is told to, whatever
        the GPU's size, and does not count.
        """
        peaks = self.peak_memory_gib
        if not peaks:
            return None
        return max(peaks) if self.reward == "qwen_transformers" else peaks[0]

    @property
    def work(self) -> Work:
        """Bench, device, completions, tokens, natural lengths, tokens of a prompt: what compares.

        Lengths that end where they end differ from repeat to repeat and are no part of it.
        """
        tokens = 0 if self.natural_lengths else round(self.new_tokens or 0)
        prompt = round(self.prompt_tokens or 0, -1)  # a fixed length is met within a word
        return (self.bench or self.sitting, self.device, self.completions or 0, tokens,
                self.natural_lengths, int(prompt))  # fmt: skip

    @property
    def condition(self) -> Condition:
        """What repeats of one measurement have in common."""
        latency = self.reward_latency_s if self.reward == "gemini" else None
        same = [self.recipe, self.models, self.simulated, self.apart]
        return (self.setting, *self.work, latency, self.shared, self.gpus,
                json.dumps(same, sort_keys=True))  # fmt: skip

    def part(self, phase: str) -> float:
        """Return the seconds that a phase takes a step, wherever it runs.

        Of a phase in the background, what the main thread shows is only the wait for it.
        """
        background = self.background or {}
        return background.get(phase, (self.phases or {}).get(phase, 0.0))


def _held_equal(row: dict[str, Any]) -> dict[str, Any]:
    """Return what rows of an earlier harness do not say of their training, by its defaults."""
    recipe = row.get("recipe") or {}
    asked = row.get("reward") in ("gemini", "qwen_server")
    found: dict[str, Any] = {"apart": row.get("schedule") in ("early", "ahead")} if asked else {}
    if recipe:
        found |= {
            "micro_batch": recipe.get("per_device_train_batch_size"),
            "checkpointing": recipe.get("gradient_checkpointing", True),
            "compiled": recipe.get("torch_compile", False),
        }
    return {name: value for name, value in found.items() if value is not None}


def read_rows(folders: Iterable[str | Path]) -> list[Measurement]:
    """Read every `*.jsonl` of some folders; the same measurement counts once.

    Rows that name no sitting are those of an earlier harness: each file is one sitting. A line
    that is torn or holds no measurement is left out with a warning. A figure that is not known
    here is ignored, one that is missing is None.

    Raises:
        ParameterError: A folder does not exist.
    """
    found: dict[tuple[Any, ...], Measurement] = {}
    for folder in folders:
        path = resolve_path(folder)
        if not path.is_dir():
            raise ParameterError(
                f"recorded={str(folder)!r}: no such folder; name one that holds the rows.jsonl of "
                "measurements, or leave it out"
            )
        for file in sorted(path.glob("*.jsonl")):
            for row in _rows(file):
                row = row if row.sitting else row.model_copy(update={"sitting": file.stem})
                found[(*row.condition, row.status, row.repeat, row.measured_at)] = row
    return list(found.values())


def _rows(file: Path) -> Iterable[Measurement]:
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield Measurement.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            log.warning("%s, line %d left out: %s %s", file.name, number, where, first["msg"])


def recorded_settings(*variants: str) -> dict[str, Setting]:
    """Return the settings of parameter files of notebook 01, in their order.

    Args:
        variants: Names of files in `params/01_efficiency/`.
    """
    settings: dict[str, Setting] = {}
    for variant in variants:
        values = read_yaml(project_root() / "params" / "01_efficiency" / f"{variant}.yaml")
        named: Mapping[str, Any] = values.get("settings", {})
        settings |= {name: Setting(**fields) for name, fields in named.items()}
    return settings
