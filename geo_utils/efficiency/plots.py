"""Figures of measured steps: where the time goes, what latency costs, what to choose."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from geo_utils.efficiency.bounds import bounds, predicted_step, reward_floor
from geo_utils.efficiency.capacity import changes, over_latency, over_limits, planned_work
from geo_utils.efficiency.contrasts import against_no_latency, study_contrasts
from geo_utils.efficiency.measurements import PHASES, Measurement
from geo_utils.efficiency.params import CapacityOptions
from geo_utils.efficiency.pooling import compared, of_work, works
from geo_utils.efficiency.tables import SLIDE_ROWS, main_rows
from geo_utils.efficiency.text import count, named, plan_basis, seconds, source, work_name
from geo_utils.efficiency.words import vllm_gains
from geo_utils.training.plots import finished

LATENCIES = tuple(float(s) for s in np.linspace(0, 20, 81))
FACTORS = tuple(float(f) for f in np.geomspace(1 / 16, 16, 65))
CUT = 8  # bars that are so many times the shortest are cut
_PHASE_COLOURS = dict(zip(PHASES, (
    "#7a5195", "#1f4e9c", "#c1272d", "#e0a030", "#3b8f6e", "#63b38f", "#a8d5ba", "#bbbbbb",
    "#dddddd",
), strict=True))  # fmt: skip
_LINES = ("-", "--", "-.", ":")


def step_figure(results: Sequence[Measurement], place: int = 0) -> Figure:
    """Stack the phases of a step for each setting, the bound of its schedule marked.

    A bar that is much longer than the others is cut.

    Args:
        results: Put together by `pooling.pooled`.
        place: 0 for the work that most settings were measured at, 1 for the next.
    """
    found = works(results)[place : place + 1]
    if not found:
        return _nothing("No second amount of work was measured" if place else "Nothing measured")
    every = of_work(results, found[0])
    rows = compared(every, SLIDE_ROWS)
    best, slow = rows[0], rows[-1]
    title = f"{work_name(best)}: {named(best.setting)} is fastest, {best.seconds:.1f} s per step"
    if slow is not best:
        title += f"; {named(slow.setting)} takes {slow.seconds / best.seconds:.1f} times as long"
    figure, (axes,) = _canvas(0.42 * len(rows) + 3.0, 1)
    _stacked(axes, rows)
    axes.set_xlabel(
        "seconds per step of the main thread, by phase; line: the least by its own parts"
    )
    handles = [Rectangle((0, 0), 1, 1, color=_PHASE_COLOURS[phase]) for phase in PHASES]
    figure.legend(handles, PHASES, frameon=False, fontsize=14, loc="outside right center")
    shown = f"{len(rows)} of {len(every)} settings: the fastest and the slowest. "
    return finished(figure, title, shown * (len(rows) < len(every)) + _basis(rows, results))


def contrast_figure(results: Sequence[Measurement], most: int = 14) -> Figure:
    """Draw what each of the study's changes gains: how many times as fast a step is.

    Args:
        results: Put together by `pooling.pooled` within each sitting.
        most: Rows at most; those whose interval is furthest from 1 go first.
    """
    every = study_contrasts(results)
    kept = sorted(every, key=lambda found: -abs(np.log(found[1].ratio)))[:most]
    if not kept:
        return _nothing("No two settings of one sitting differ in one thing alone")
    kept.sort(key=lambda found: found[1].ratio)
    name, best = kept[0]
    title = f"{name[:1].upper()}{name[1:]}: a step is {1 / best.ratio:.1f} times as fast"
    slow = [found for found in kept if found[1].low > 1]
    if slow:
        title += f"; {slow[-1][0]}: {slow[-1][1].ratio:.2f} times as long"
    figure, (axes,) = _canvas(0.62 * len(kept) + 2.6, 1)
    for y, (_, c) in enumerate(kept):
        axes.plot((1 / c.high, 1 / c.low), (y, y), color="#1f4e9c", linewidth=4, alpha=0.5)
        axes.plot(1 / c.ratio, y, "o", color="#1f4e9c", markersize=10)
        text = f"  {1 / c.ratio:.2f} [{1 / c.high:.2f}, {1 / c.low:.2f}]"
        axes.annotate(text, (1 / c.low, y), va="center", fontsize=14)
    axes.axvline(1.0, color="black", linewidth=1)
    names = [f"{name}\n{named(c.result.setting)}" for name, c in kept]
    axes.set_yticks(range(len(kept)), names, fontsize=14)
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(right=axes.get_xlim()[1] * 2.2)
    axes.set_xlabel("times as fast as without the change, one thing changed in one sitting")
    both = [row for _, c in kept for row in (c.result, c.against)]
    cut = f"{len(kept)} of {len(every)} pairs. " * (len(kept) < len(every))
    return finished(figure, title, f"{cut}Bars: from the quartiles of both. {_basis(both, both)}")


def vllm_gain_figure(results: Sequence[Measurement]) -> Figure:
    """Draw how much faster vLLM makes a step with Gemini, over the latency of its answers.

    Args:
        results: Put together by `pooling.pooled` within each sitting.
    """
    pairs = vllm_gains(results)
    if not pairs:
        return _nothing("No pair with Gemini differs in vLLM alone")
    c = pairs[0]
    at = c.result.reward_latency_s or 0.0
    title = (
        f"With Gemini in parallel at {at:g} s, vLLM makes a step {1 / c.ratio:.1f} times as fast; "
        "the longer Gemini takes, the less it gains"
    )
    figure, (axes,) = _canvas(6.0, 1)
    grid = np.geomspace(0.1, 60, 120)
    for parallel, name, shade in (
        (True, "in parallel", "#1f4e9c"),
        (False, "one by one", "#c1272d"),
    ):
        gain = [predicted_step(c.against, s, parallel) / predicted_step(c.result, s, parallel)
                for s in grid]  # fmt: skip
        axes.plot(grid, gain, color=shade, linewidth=3)
        axes.annotate(f" asked {name}", (grid[-1], gain[-1]), va="center", color=shade, fontsize=14)
    axes.plot((at, at), (1 / c.high, 1 / c.low), color="#1f4e9c", linewidth=5, alpha=0.5)
    axes.plot(at, 1 / c.ratio, "o", color="#1f4e9c", markersize=11)
    axes.axhline(2.0, color="black", linewidth=1, linestyle="--")
    axes.annotate("double", (grid[0], 2.0), va="bottom", fontsize=14)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="seconds that engine and judge take for a completion",
             ylabel="times as fast", ylim=(0, None), xlim=(0.1, 200))  # fmt: skip
    rows = [c.result, c.against]
    note = f"Point: measured, bar: from the quartiles of both; lines: predicted. " \
           f"{work_name(c.result)}. {_basis(rows, rows)}"  # fmt: skip
    return finished(figure, title, note)


def latency_figure(results: Sequence[Measurement]) -> Figure:
    """Draw the step over the reward's latency: measured points, predicted lines."""
    main = next(iter(works(_with_latency(results), 1)), None)
    rows = _with_latency(of_work(results, main))
    if not rows:
        return _nothing("No setting with a stated latency of the reward was measured")
    slopes = {r.setting: predicted_step(r, 20.0) - predicted_step(r, 0.0) for r in rows}
    flat, steep = min(slopes, key=slopes.__getitem__), max(slopes, key=slopes.__getitem__)
    title = (
        f"With 20 s of latency instead of none, a step of {named(steep)} is predicted to take "
        f"{slopes[steep]:.0f} s more, of {named(flat)} {slopes[flat]:.0f} s"
    )
    figure, (axes,) = _canvas(7.2, 1)
    free = {c.result.setting: c.against for c in against_no_latency(of_work(results, main))}
    ends: list[tuple[float, str, object]] = []
    for number, group in enumerate(_by_setting(rows).values()):
        shade = sns.color_palette("colorblind")[number % 10]
        last = max(group, key=lambda r: r.reward_latency_s or 0.0)
        line = [predicted_step(last, at) for at in LATENCIES]
        style = _LINES[(number // 10) % len(_LINES)]
        axes.plot(LATENCIES, line, style, color=shade, linewidth=2)
        for row in group:
            low, high = row.step_s_spread or (row.seconds, row.seconds)
            at = row.reward_latency_s or 0.0
            axes.plot((at, at), (low, high), color=shade, linewidth=4, alpha=0.45)
            axes.plot(at, row.seconds, "o", color=shade, markersize=10)
        if last.setting in free:
            axes.plot(0, free[last.setting].seconds, "o", color=shade, fillstyle="none",
                      markersize=10, clip_on=False)  # fmt: skip
        ends.append((line[-1], named(last.setting), shade))
    axes.set(xlim=(0, 20), xlabel="seconds that engine and judge take for a completion",
             ylabel="seconds per step")  # fmt: skip
    if max(end for end, _, _ in ends) > 20 * max(min(end for end, _, _ in ends), 1e-9):
        _log_scale(axes)
    axes.set_ylim(*axes.get_ylim())
    _label_ends(axes, ends)
    note = f"Points: measured (open: without an engine), bars: quartiles; lines: predicted. " \
           f"{work_name(rows[0])}. {_basis(rows, results)}"  # fmt: skip
    return finished(figure, title, note)


def gpu_figure(results: Sequence[Measurement]) -> Figure:
    """Draw the GPU-seconds that a sample costs, over all GPUs held."""
    rows = [r for r in main_rows(results) if r.gpu_seconds_per_sample]
    rows = sorted(rows, key=lambda r: r.gpu_seconds_per_sample or 0.0)
    if not rows:
        return _nothing("No measured setting held a GPU")
    costs = [float(r.gpu_seconds_per_sample or 0.0) for r in rows]
    fastest = min(rows, key=lambda r: r.seconds)
    title = (
        f"{named(rows[0].setting).capitalize()} takes least of the GPUs: {costs[0]:.2f} s a sample"
    )
    if fastest is not rows[0]:
        title += f"; the fastest, {named(fastest.setting)}, " \
                 f"{fastest.gpu_seconds_per_sample:.2f} s"  # fmt: skip
    figure, (axes,) = _canvas(0.5 * len(rows) + 2.6, 1)
    axes.barh(
        range(len(rows)), costs, color=["#c1272d" if r is fastest else "#1f4e9c" for r in rows]
    )
    for y, (row, cost) in enumerate(zip(rows, costs, strict=True)):
        spread = [s * cost / row.seconds for s in row.step_s_spread or ()]
        ends = f" [{spread[0]:.2f}, {spread[1]:.2f}]" if spread else ""
        held = f"{row.gpus} GPU{'s' * (row.gpus != 1)}"
        axes.annotate(f" {cost:.2f}{ends}, {held}", (cost, y), va="center", fontsize=14)
    _name_rows(axes, rows)
    axes.margins(x=0.3)
    axes.set_xlabel("GPU-seconds a sample, all GPUs held")
    note = f"{work_name(rows[0])}; red: the fastest. Brackets: quartiles of the step. "
    return finished(figure, title, note + _basis(rows, results))


def sensitivity_figure(results: Sequence[Measurement], options: CapacityOptions) -> Figure:
    """Draw the sweep's time over the reward's latency and over the API's limits, winners bold."""
    rows = planned_work(results)
    if not rows:
        return _nothing("No setting with an engine was measured: nothing to plan")
    frames = (over_latency(rows, options, LATENCIES), over_limits(rows, options, FACTORS))
    moved = [changes(frame, "sweep") for frame in frames]
    title = f"For {options.experiments} experiments: {_changes_text(moved[0], ' s of latency')}"
    figure, panels = _canvas(7.4, 2)
    named_first = dict.fromkeys(setting for found in moved for _, setting in found)
    shades = dict(zip(named_first, sns.color_palette("colorblind"), strict=False))
    for axes, frame in zip(panels, frames, strict=True):
        for setting, line in frame.groupby("setting", sort=False):
            won = line["sweep_hours"].where(line["sweep"])
            axes.plot(line["at"], line["sweep_hours"], color="#bbbbbb", linewidth=1.2, zorder=1)
            axes.plot(line["at"], won, color=shades.get(str(setting), "#333333"), linewidth=6)
        finite = frame["sweep_hours"].replace(np.inf, np.nan)
        if finite.max() > 8 * finite.min():
            _log_scale(axes)
    panels[0].set(xlabel="latency of engine and judge, s (predicted)",
                  ylabel=f"hours for {options.experiments} experiments")  # fmt: skip
    panels[1].set_xscale("log", base=2)
    panels[1].set_xlabel("API limits, times those given")
    ticks = (1 / 16, 1 / 4, 1, 4, 16)
    panels[1].set_xticks(ticks, [f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks])
    handles = [Line2D([], [], color=shade, linewidth=6) for shade in shades.values()]
    handles.append(Line2D([], [], color="#bbbbbb", linewidth=1.2))
    figure.legend(handles, [*map(named, shades), f"the other {len(rows) - len(shades)}"],
                  frameon=False, fontsize=14, loc="outside right center")  # fmt: skip
    limits = _changes_text(moved[1], " times the limits")
    note = f"Thick: the setting that wins. Over the limits: {limits}. " \
           f"For {plan_basis(rows, options)}."  # fmt: skip
    return finished(figure, title, note)


def _stacked(axes: Axes, rows: Sequence[Measurement]) -> None:
    least = min(r.seconds for r in rows)
    widest = max(r.seconds for r in rows if r.seconds <= CUT * least)
    for y, row in enumerate(rows):
        left, cut = 0.0, row.seconds > widest
        for phase in PHASES:
            width = min((row.phases or {}).get(phase, 0.0), 1.05 * widest - left)
            axes.barh(y, width, left=left, color=_PHASE_COLOURS[phase], height=0.72)
            left += width
        shown = bounds(row)  # a bound that is the sum of the phases says nothing
        own = 0.0 if shown.ratio is None else min(shown.own, 1.05 * widest)
        if not cut and own:
            axes.plot((own, own), (y - 0.45, y + 0.45), color="black", linewidth=2.5)
        text = f" {'… ' if cut else ''}{seconds(row)}"
        axes.annotate(text, (max(left, own), y), va="center", fontsize=14)
    _name_rows(axes, rows)
    axes.set_xlim(0, 1.4 * widest)


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_rows(axes: Axes, rows: Sequence[Measurement]) -> None:
    names = [named(r.setting) + ("" if r.on_policy else " *") for r in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=14)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, object]]) -> None:
    """Write each line's name at its right end, pushed apart where lines end together."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((20.0, end))[1]) for end, _, _ in ends]
    floor = -1.0
    for height, (_, name, shade) in sorted(zip(heights, ends, strict=True), key=lambda p: p[0]):
        floor = max(height, floor + 0.055)
        axes.annotate(name, (1.01, floor), xycoords="axes fraction", va="center", color=shade,
                      fontsize=14)  # fmt: skip


def _changes_text(found: Sequence[tuple[float, str]], unit: str) -> str:
    if not found:
        return "nothing fits"
    words = [f"{named(found[0][1])} wins" + (" throughout" if len(found) == 1 else "")]
    words += [f"{named(setting)} from {at:.2g}{unit}" for at, setting in found[1:4]]
    words += [f"{len(found) - 4} more changes"] if len(found) > 4 else []
    return ", ".join(words)


def _with_latency(results: Sequence[Measurement]) -> list[Measurement]:
    return [r for r in results if r.measured and reward_floor(r) is not None]


def _by_setting(rows: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for row in rows:
        found.setdefault(row.setting, []).append(row)
    return found


def _basis(rows: Sequence[Measurement], results: Sequence[Measurement]) -> str:
    counts = ", ".join(sorted({count(r) for r in rows}))
    lost = len({r.setting for r in results if not r.measured})
    missing = f"; {lost} settings without a figure" if lost else ""
    text = f"n = {counts} (steps x repeats); * one step off policy{missing}; {source(rows)}"
    return f"{text}."


def _canvas(height: float, columns: int) -> tuple[Figure, list[Axes]]:
    sns.set_theme(style="white", font_scale=1.45)
    figure, panels = plt.subplots(
        1, columns, figsize=(14, height), layout="constrained", squeeze=False
    )
    plt.close(figure)  # shown once, by the cell that returns it
    return figure, list(panels[0])


def _nothing(title: str = "Nothing was measured") -> Figure:
    figure, (axes,) = _canvas(2.4, 1)
    axes.set_axis_off()
    return finished(figure, title, "See the table of settings for the reasons.")
