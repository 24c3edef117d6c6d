"""Settings beside each other that differ in one thing, measured in one sitting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from geo_utils.efficiency.measurements import Condition, Measurement


@dataclass(frozen=True)
class Contrast:
    """Two results of the same work and the same sitting.

    Attributes:
        result: The one.
        against: The other.
        ratio: Its step time over the other's.
        low: The same with its lower and the other's upper quartile.
        high: The same with its upper and the other's lower quartile.
    """

    result: Measurement
    against: Measurement
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """One thing that differs between two results.

    Attributes:
        name: As a figure says it: what is there instead of what.
        field: Of `Measurement`.
        before: Its value in the result that is divided by.
        after: Its value in the other.
    """

    name: str
    field: str
    before: Any
    after: Any


PARALLEL = Change("asked in parallel, not one by one", "parallel", False, True)
CHANGES = (
    Change("policy: vLLM server, not Transformers", "policy", "transformers", "server"),
    Change("policy: vLLM colocated, not Transformers", "policy", "transformers", "colocate"),
    Change("engine: vLLM, not Transformers", "reward", "qwen_transformers", "qwen_vllm"),
    PARALLEL,
    Change("policy: server, not colocated", "policy", "colocate", "server"),
    Change("engine: server, not in process", "reward", "qwen_vllm", "qwen_server"),
    Change("one step ahead, not TRL's order", "schedule", "stock", "ahead"),
    Change("one step ahead, not on policy early", "schedule", "early", "ahead"),
    Change("client apart, not in the process", "apart", False, True),
    Change("layers compiled, not eager", "compiled", False, True),
)


@dataclass(frozen=True)
class Agreement:
    """Repeats of one condition.

    Attributes:
        result: One of them.
        steps_s: Median seconds per step of each.
        apart: Largest over smallest, less 1.
        covered: Sum of the phases over the step, by repeat: medians, or means where a row has
            nothing else.
    """

    result: Measurement
    steps_s: tuple[float, ...]
    apart: float
    covered: tuple[float, ...]


def contrast(result: Measurement, against: Measurement) -> Contrast:
    """Divide one result's step time by another's."""
    ours = result.step_s_spread or (result.seconds, result.seconds)
    theirs = against.step_s_spread or (against.seconds, against.seconds)
    return Contrast(
        result, against, result.seconds / against.seconds,
        ours[0] / theirs[1], ours[1] / theirs[0],
    )  # fmt: skip


def changed(results: Sequence[Measurement], change: Change) -> list[Contrast]:
    """Divide each result by the one that differs in one thing alone.

    Args:
        results: Put together by `pooling.pooled` within each sitting.
        change: The thing.
    """
    found = []
    for result in results:
        if _tells(result) and getattr(result, change.field) == change.after:
            others = [
                r for r in results
                if getattr(r, change.field) == change.before and _alike(result, r, change.field)
            ]  # fmt: skip
            base = _closest(result, others)
            found += [contrast(result, base)] if base else []
    return found


def study_contrasts(results: Sequence[Measurement]) -> list[tuple[str, Contrast]]:
    """Return what the study asks: each of `CHANGES`, wherever two settings differ in it alone."""
    return [(change.name, c) for change in CHANGES for c in changed(results, change)]


def one_by_one(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide each result that asks one by one by the same that asks in parallel."""
    return changed(results, Change("", PARALLEL.field, PARALLEL.after, PARALLEL.before))


def against_no_latency(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide each result with a stated latency by the same with a reward that asks nothing.

    Where the latter has nothing to begin early, `fused` stands for `early`.
    """
    found = []
    for result in results:
        if _tells(result) and result.reward == "gemini" and result.reward_latency_s:
            free = [
                r for r in results
                if r.reward == "negative_length"
                and _alike(result, r, "reward", "schedule", "parallel")
            ]  # fmt: skip
            alike = [r for r in free if r.schedule == result.schedule]
            if not alike and result.schedule == "early":
                alike = [r for r in free if r.schedule == "fused"]
            base = _closest(result, alike)
            found += [contrast(result, base)] if base else []
    return found


def against_stock(results: Sequence[Measurement]) -> list[Contrast]:
    """Divide each result of another schedule by the stock one with the same reward."""
    return [
        c
        for schedule in ("fused", "early", "ahead")
        for c in changed(results, Change("", "schedule", "stock", schedule))
    ]


def ablation(results: Sequence[Measurement], settings: Iterable[str]) -> list[Contrast]:
    """Divide the results of an ablation by the first of them, work by work and sitting by sitting.

    Args:
        results: Put together by `pooling.pooled` within each sitting.
        settings: In the order of the file: the first of a work is what the others change. A
            sitting without it is compared with nothing.
    """
    names = list(settings)
    measured = {(r.setting, r.sitting, r.work): r for r in results
                if r.measured and r.setting in names}  # fmt: skip
    first: dict[int, str] = {}
    for name in names:
        sizes = {r.completions or 0 for r in measured.values() if r.setting == name}
        for size in sizes:
            first.setdefault(size, name)
    found = []
    for sitting, work in dict.fromkeys((sitting, work) for _, sitting, work in measured):
        here = {n: measured[n, sitting, work] for n in names if (n, sitting, work) in measured}
        base = here.get(first.get(next(iter(here.values())).completions or 0, ""))
        found += [contrast(result, base) for result in here.values()] if base else []
    return found


def agreement(rows: Sequence[Measurement]) -> list[Agreement]:
    """Compare the repeats of each condition that was measured."""
    repeats: dict[Condition, list[Measurement]] = {}
    for row in rows:
        if row.measured:
            repeats.setdefault((row.sitting, *row.condition), []).append(row)
    found = []
    for group in repeats.values():
        seconds = tuple(row.seconds for row in group)
        covered = tuple(sum((row.phases or {}).values()) / row.typical_s for row in group)
        found.append(Agreement(group[0], seconds, max(seconds) / min(seconds) - 1, covered))
    return found


def _tells(result: Measurement) -> bool:
    return result.measured and not result.unasked


def _alike(one: Measurement, other: Measurement, *but: str) -> bool:
    """Return whether two results of one sitting are the same but for some fields.

    Where neither knows whether its client was apart, or one asks no service, that is no
    difference. Compilation is a field of its own and one of the recipe.
    """
    compared = ["work", "policy", "reward", "schedule", "parallel", "shared", "micro_batch",
                "checkpointing", "compiled", "apart"]  # fmt: skip
    if None in (one.apart, other.apart):
        compared.remove("apart")

    def recipe(row: Measurement) -> dict[str, Any]:
        left_out = {"torch_compile"} if "compiled" in but else set()
        return {name: value for name, value in row.recipe.items() if name not in left_out}

    def latency(row: Measurement) -> float | None:
        return row.reward_latency_s if row.reward == "gemini" and "reward" not in but else None

    return (
        _tells(other)
        and one.sitting == other.sitting
        and recipe(one) == recipe(other)
        and latency(one) == latency(other)
        and one.models.get("page_tokens") == other.models.get("page_tokens")
        and all(getattr(one, n) == getattr(other, n) for n in compared if n not in but)
    )


def _closest(result: Measurement, others: Sequence[Measurement]) -> Measurement | None:
    """Return the partner: of the same group where there is one, and the fastest of several."""
    near = [r for r in others if r.group == result.group] or list(others)
    return min(near, key=lambda r: r.seconds, default=None)
