"""How figures, tables and sentences write a measured step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from geo_utils.efficiency.measurements import Measurement
from geo_utils.efficiency.params import CapacityOptions

NONE = "–"  # noqa: RUF001


def named(setting: str) -> str:
    """Return a setting's name as figures and tables write it."""
    return setting.replace("_", " ")


def capital(setting: str) -> str:
    """Return a setting's name as it begins a sentence."""
    return named(setting)[:1].upper() + named(setting)[1:]


def work_name(result: Measurement) -> str:
    """Say how much work a step is, such as `16 × 512 tokens`."""  # noqa: RUF002
    tokens = f"{result.new_tokens:.0f}" if result.new_tokens else "?"
    natural = ", natural lengths" if result.natural_lengths else ""
    return f"{result.completions or '?'} × {tokens} tokens{natural}"  # noqa: RUF001


def seconds(result: Measurement) -> str:
    """Write a step time with its quartiles; a dash where it was not measured."""
    if not result.measured:
        return NONE
    spread = result.step_s_spread
    ends = "" if spread is None else f" [{spread[0]:.2f}, {spread[1]:.2f}]"
    return f"{result.seconds:.2f}{ends}"


def count(result: Measurement) -> str:
    """Write a result's n: steps x repeats, and how many repeats were lost."""
    lost = f", {result.lost} lost" if result.lost else ""
    each = result.steps // max(result.repeats, 1)
    return f"{each} x {result.repeats}{lost}"


def source(results: Iterable[Measurement]) -> str:
    """Say what results were measured on, and what was simulated."""
    measured = [result for result in results if result.measured]
    hardware = sorted({r.hardware for r in measured}) or ["nothing measured"]
    stood_in = sorted({what for r in measured for what in (r.simulated or ())})
    simulated = f"; SIMULATED: {', '.join(stood_in)}" if stood_in else ""
    return f"measured on {', '.join(hardware)}{simulated}"


def plan_basis(results: Sequence[Measurement], options: CapacityOptions) -> str:
    """Say what a plan rests on."""
    work = next((work_name(r) for r in results if r.measured), "no measured work")
    limits = [
        f"{limit:,.0f} {name} a minute"
        for limit, name in (
            (options.requests_per_minute, "requests"), (options.tokens_per_minute, "tokens"),
        )
        if limit
    ]  # fmt: skip
    sent = [(r.calls_per_1000, r.tokens_per_1000) for r in results if r.reward == "gemini"]
    known = sorted({f"{c / 1000:.3g} calls and {t / 1000:,.0f} tokens" for c, t in sent if c and t})
    asks = f"{' or '.join(known[:2]) or 'calls and tokens not recorded'} per rollout"
    return (
        f"{options.gpus} GPUs of {options.gpu_memory_gib:g} GiB, "
        f"{' and '.join(limits) or 'no API limit'} for all experiments together ({asks}), "
        f"{options.steps} steps an experiment of {work}; no preemption and no start-up counted; "
        f"steps {source(results)}"
    )


def latency(result: Measurement) -> str:
    """Write the stated latency of a result's reward; a dash where there is none."""
    if result.reward != "gemini" or result.reward_latency_s is None:
        return NONE
    return f"{result.reward_latency_s:g} s{'' if result.parallel else ' each'}"


def sentence(results: Iterable[Measurement]) -> str:
    """Say the same as `source`, as a sentence."""
    text = source(results)
    return f"{text[0].upper()}{text[1:]}."
