"""Measured steps: rows as the harness of notebook 01 wrote them, and repeats put together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from geo_utils.efficiency_params import Setting
from geo_utils.files import project_root, resolve_path
from geo_utils.parameter_errors import ParameterError, read_yaml

log = logging.getLogger(__name__)

Status = Literal["measured", "not run", "out of memory", "failed", "timed out"]
Condition = tuple[Any, ...]
# In the order of a step. "train" parts need no new completion and no reward to begin with.
TRAIN_PHASES = ("old log-probabilities", "loss forward", "backward", "optimizer",
                "batch preparation", "between steps")  # fmt: skip
ABLATION = "ablation"  # group of settings that vary one setting
PHASES = ("weight sync", "generation", "reward", *TRAIN_PHASES)


class Measurement(BaseModel):
    """One setting measured once, or several times put together by `pooled`.

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
        phases: Seconds of each phase of the main thread a step, mean; they exclude each other.
        background: Seconds of each phase that ran beside the main thread.
        engine_s: Seconds of a step in which the engine was asked.
        judge_s: Seconds in which only the judge was.
        gpu_seconds_per_sample: Over all GPUs held.
        samples_per_s: Completions a second.
        tokens_per_s: New tokens a second.
        peak_memory_gib: By GPU.
        gpu_utilisation: Percent, by GPU.
        energy_j_per_sample: Of all GPUs held.
        calls_per_1000: Calls of a paid service for 1,000 rollouts.
        cost_per_1000: Their US dollars.
        simulated: What was no real service and no trained model.
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
    background: dict[str, float] | None = None
    engine_s: float | None = None
    judge_s: float | None = None
    gpu_seconds_per_sample: float | None = None
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    peak_memory_gib: tuple[float, ...] | None = None
    gpu_utilisation: tuple[float, ...] | None = None
    energy_j_per_sample: float | None = None
    calls_per_1000: float | None = None
    cost_per_1000: float | None = None
    simulated: tuple[str, ...] | None = None
    versions: dict[str, str | None] | None = None
    measured_at: str | None = None

    @property
    def device(self) -> str:
        """The kind of hardware, without how many of it there were."""
        return self.hardware.rpartition(" x ")[0] or self.hardware

    @property
    def measured(self) -> bool:
        """Whether there is a step time."""
        return self.status == "measured" and bool(self.step_s) and bool(self.phases)

    @property
    def seconds(self) -> float:
        """Seconds a step; NaN where it was not measured."""
        return float("nan") if self.step_s is None else self.step_s

    @property
    def work(self) -> tuple[str, int, int, bool]:
        """Device, completions, tokens and natural lengths: what makes two rows comparable.

        Lengths that end where they end differ from repeat to repeat and are no part of it.
        """
        tokens = 0 if self.natural_lengths else round(self.new_tokens or 0)
        return self.device, self.completions or 0, tokens, self.natural_lengths

    @property
    def condition(self) -> Condition:
        """What repeats of one measurement have in common."""
        latency = self.reward_latency_s if self.reward == "gemini" else None
        return (self.setting, *self.work, latency, self.shared, self.gpus)

    def part(self, phase: str) -> float:
        """Return the seconds that a phase takes a step, wherever it runs.

        Of a phase in the background, what the main thread shows is only the wait for it.
        """
        background = self.background or {}
        return background.get(phase, (self.phases or {}).get(phase, 0.0))


def read_rows(folders: Iterable[str | Path]) -> list[Measurement]:
    """Read every `*.jsonl` of some folders; the same measurement counts once.

    A line that is torn or holds no measurement is left out with a warning. A figure that is not
    known here is ignored, one that is missing is None.

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


def pooled(rows: Sequence[Measurement]) -> list[Measurement]:
    """Put the repeats of each condition together, in order of first appearance.

    The step time is the median over the steps of all repeats, with their quartiles; phases and
    other figures are means over repeats. Repeats that did not end well are counted in `lost`,
    and shown only where a condition has no other.
    """
    repeats: dict[Condition, list[Measurement]] = {}
    for row in rows:
        repeats.setdefault(row.condition, []).append(row)
    results = [_together(group) for group in repeats.values()]
    known = {result.setting for result in results if result.measured}
    return [r for r in results if r.measured or r.status != "not run" or r.setting not in known]


def _together(group: Sequence[Measurement]) -> Measurement:
    good = [row for row in group if row.measured]
    if not good:
        return group[-1].model_copy(update={"repeats": 0, "lost": len(group)})
    steps = [s for row in good for s in (row.step_s_all or (row.seconds,))]
    low, high = np.percentile(steps, (25, 75))
    figures = ("engine_s", "judge_s", "gpu_seconds_per_sample", "samples_per_s", "tokens_per_s",
               "energy_j_per_sample", "calls_per_1000", "cost_per_1000", "new_tokens")  # fmt: skip
    together: dict[str, Any] = {name: _mean([getattr(r, name) for r in good]) for name in figures}
    together |= {
        "repeats": len(good),
        "lost": len(group) - len(good),
        "steps": len(steps),
        "step_s": float(np.median(steps)),
        "step_s_all": tuple(steps),
        "step_s_spread": (float(low), float(high)),
        "phases": _mean_mapping([row.phases or {} for row in good]),
        "background": _mean_mapping([row.background or {} for row in good]) or None,
    }
    for name in ("peak_memory_gib", "gpu_utilisation"):
        lists = [getattr(row, name) for row in good if getattr(row, name)]
        if lists and len({len(values) for values in lists}) == 1:
            together[name] = tuple(float(v) for v in np.max(lists, axis=0))
    return good[-1].model_copy(update=together)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_mapping(mappings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    return {name: float(np.mean([m.get(name, 0.0) for m in mappings])) for name in names}


def works(results: Sequence[Measurement], most: int = 2) -> list[tuple[str, int, int, bool]]:
    """Return what can be compared, that with most measured settings first."""
    counts: dict[tuple[str, int, int, bool], int] = {}
    for result in results:
        if result.measured:
            counts[result.work] = counts.get(result.work, 0) + 1
    return sorted(counts, key=lambda work: -counts[work])[:most]


def of_work(
    results: Iterable[Measurement], work: tuple[str, int, int, bool] | None
) -> list[Measurement]:
    """Return what was measured with the same work on the same kind of hardware."""
    return [result for result in results if result.measured and result.work == work]


def compared(rows: Iterable[Measurement], most: int) -> list[Measurement]:
    """Return the fastest rows, and the slowest, in order of their step time.

    Of an ablation, whose rows differ little, only the fastest on and off policy are among them.
    """
    ordered = sorted((row for row in rows if row.measured), key=lambda row: row.seconds)
    seen: set[bool] = set()
    kept = []
    for row in ordered:
        if row.group != ABLATION or row.on_policy not in seen:
            kept.append(row)
        if row.group == ABLATION:
            seen.add(row.on_policy)
    return kept if len(kept) <= most else [*kept[: most - 1], kept[-1]]
