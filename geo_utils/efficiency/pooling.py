"""Repeats of one measurement put together, and which results can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from geo_utils.efficiency.measurements import Condition, Measurement, Work
from geo_utils.efficiency.params import Setting

ABLATION = "ablation"  # group of settings that change one thing at a time


def pooled(rows: Sequence[Measurement]) -> list[Measurement]:
    """Put the repeats of each condition together, in order of first appearance.

    The step time is the median over the steps of all repeats, with their quartiles, and so are
    the phases; other figures are means over repeats. Repeats that did not end well are counted
    in `lost`, and shown only where a condition has no other. Rows of sittings that `placed` puts
    on one bench are put together; for contrasts, which hold within a sitting, pass rows that
    were not placed.
    """
    repeats: dict[Condition, list[Measurement]] = {}
    for row in rows:
        measured = row if row.measured else next((r for r in rows if _measured_as(row, r)), None)
        if measured is None or row.status != "not run":
            repeats.setdefault((measured or row).condition, []).append(row)
    results = [_together(group) for group in repeats.values()]
    known = {result.setting for result in results if result.measured}
    return [r for r in results if r.measured or r.status != "not run" or r.setting not in known]


def unmeasured(results: Sequence[Measurement], planned: Mapping[str, Setting]) -> list[Measurement]:
    """Return what has no figure, in the plan's order: measured in vain, or never recorded.

    Args:
        results: Put together by `pooled`.
        planned: Settings that were to be measured.
    """
    known = {r.setting for r in results}
    lost = [r for r in results if not r.measured]
    lost += [_absent(name, setting) for name, setting in planned.items() if name not in known]
    order = {name: place for place, name in enumerate(planned)}
    return sorted(lost, key=lambda r: order.get(r.setting, len(order)))


def _absent(name: str, setting: Setting) -> Measurement:
    return Measurement(
        setting=name, group=setting.group, status="not run", reason="no row was recorded",
        policy=setting.policy, reward=setting.reward, schedule=setting.schedule,
        on_policy=setting.on_policy, gpus_wanted=setting.gpus_wanted, repeats=0,
    )  # fmt: skip


def _measured_as(lost: Measurement, row: Measurement) -> bool:
    """Return whether a row is what a lost one would have been; that one may lack figures."""
    return (
        row.measured
        and (row.setting, row.device) == (lost.setting, lost.device)
        and lost.completions in (None, row.completions)
        and (lost.natural_lengths or lost.new_tokens in (None, round(row.new_tokens or 0)))
        and lost.recipe in ({}, row.recipe)
        and lost.natural_lengths == row.natural_lengths
        and (lost.reward != "gemini" or lost.reward_latency_s in (None, row.reward_latency_s))
    )


def _together(group: Sequence[Measurement]) -> Measurement:
    good = [row for row in group if row.measured]
    if not good:
        return group[-1].model_copy(update={"repeats": 0, "lost": len(group)})
    steps = [s for row in good for s in (row.step_s_all or (row.seconds,))]
    low, high = np.percentile(steps, (25, 75))
    figures = ("engine_s", "judge_s", "abstained", "gpu_seconds_per_sample", "samples_per_s",
               "tokens_per_s", "energy_j_per_sample", "calls_per_1000", "cost_per_1000",
               "new_tokens", "tokens_per_1000", "logp_difference", "startup_s")  # fmt: skip
    together: dict[str, Any] = {name: _mean([getattr(r, name) for r in good]) for name in figures}
    together |= {
        "repeats": len(good),
        "lost": len(group) - len(good),
        "steps": len(steps),
        "step_s": float(np.median(steps)),
        "step_s_all": tuple(steps),
        "step_s_spread": (float(low), float(high)),
        **_phases(good),
        "background": _mean_mapping([row.background or {} for row in good]) or None,
    }
    for name in ("peak_memory_gib", "gpu_utilisation"):
        lists = [getattr(row, name) for row in good if getattr(row, name)]
        if lists and len({len(values) for values in lists}) == 1:
            together[name] = tuple(float(v) for v in np.max(lists, axis=0))
    return good[-1].model_copy(update=together)


def _phases(good: Sequence[Measurement]) -> dict[str, Any]:
    """Return medians over the steps of all repeats; means where one knows only its own."""
    each = [row.phases_all for row in good if row.phases_all]
    if len(each) < len(good):
        return {"phases": _mean_mapping([row.phases or {} for row in good]), "phases_all": None}
    names = dict.fromkeys(name for phases in each for name in phases)
    steps = [len(row.step_s_all or ()) for row in good]
    every = {
        name: tuple(s for phases, n in zip(each, steps, strict=True)
                    for s in phases.get(name, (0.0,) * n))
        for name in names
    }  # fmt: skip
    medians = {name: float(np.median(values)) for name, values in every.items()}
    return {"phases": medians, "phases_all": every}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_mapping(mappings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    return {name: float(np.mean([m.get(name, 0.0) for m in mappings])) for name in names}


def works(results: Sequence[Measurement], most: int = 2) -> list[Work]:
    """Return what can be compared, that with most measured settings first."""
    counts: dict[Work, int] = {}
    for result in results:
        if result.measured:
            counts[result.work] = counts.get(result.work, 0) + 1
    return sorted(counts, key=lambda work: -counts[work])[:most]


def of_work(results: Iterable[Measurement], work: Work | None) -> list[Measurement]:
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
