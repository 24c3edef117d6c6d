"""Figures of a training: its reward, its time, and what it was worth on held-out queries."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from geo_utils.statistics import Estimate
from geo_utils.tables import with_interval

_REST = "rest"
PHASE_ORDER = ("weight sync", "generation", "old log-probabilities", "reward", "batch preparation",
               "loss forward", "backward", "optimizer", "between steps", _REST)  # fmt: skip


def reward_figure(metrics: Sequence[dict[str, Any]], source: str) -> Figure:
    """Draw reward by step, its components, and the share of groups that taught nothing.

    Args:
        metrics: Rows of metrics.jsonl.
        source: Where the figures come from.
    """
    rows = pd.DataFrame(metrics).set_index("step")
    rows["reward"] = rows["reward"].astype(float)
    span = max(len(rows) // 10, 1)
    first, last = rows["reward"].iloc[:span].mean(), rows["reward"].iloc[-span:].mean()
    verb = "rose" if last > first else "fell"
    title = f"The training reward {verb} from {first:.2f} (first {span} steps) to {last:.2f} (last)"
    if np.isnan(first) or np.isnan(last):
        title = "The training reward is missing where no completion could be scored"
    sns.set_theme(style="white", font_scale=1.45)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(12, 6.4), sharex=True, layout="constrained", height_ratios=(3, 1)
    )
    plt.close(figure)
    smooth = rows["reward"].rolling(span, min_periods=1, center=True).mean()
    top.plot(rows.index, rows["reward"], ".", color="#9db4d6", markersize=7)
    top.plot(smooth.index, smooth, color="#1f4e9c", linewidth=3, label="reward, weighted")
    # The negative length is in tokens and would press all others flat.
    names = [str(column) for column in rows if column != "rewards/negative_length/mean"]
    parts = [c for c in names if c.startswith("rewards/") and c.endswith("/mean")]
    for column, shade in zip(parts if len(parts) > 1 else [], sns.color_palette("dark"),
                             strict=False):  # fmt: skip
        line = rows[column].astype(float).rolling(span, min_periods=1, center=True).mean()
        top.plot(line.index, line, color=shade, linewidth=1.5, label=column.split("/")[1])
    if len(parts) > 1:
        top.legend(frameon=False, fontsize=14)
    top.set_ylabel("reward")
    for column, name, shade in (
        ("frac_reward_zero_std", "groups without variance", "#b4540a"),
        ("reward/abstained", "completions without score", "#c1272d"),
    ):
        if column in rows:
            bottom.plot(rows.index, rows[column].astype(float), color=shade, label=name)
    bottom.set(ylim=(-0.02, 1.02), xlabel="step", ylabel="share")
    bottom.legend(frameon=False, fontsize=14, loc="upper right")
    completions = f"{len(rows)} logged steps; a dot is the mean over one step's completions"
    return finished(figure, title, f"{completions}. {source}")


def phase_figure(metrics: Sequence[dict[str, Any]], source: str) -> Figure:
    """Draw where a step's time goes, as medians over the steps after the first two."""
    rows = phase_table(metrics)
    title = (
        f"A step takes {rows['seconds'].sum():.2f} s, most of it {rows['seconds'].idxmax()} "
        f"({rows['seconds'].max() / rows['seconds'].sum():.0%})"
    )
    sns.set_theme(style="white", font_scale=1.45)
    figure, axes = plt.subplots(figsize=(12, 4.4), layout="constrained")
    plt.close(figure)
    axes.barh(rows.index, rows["seconds"], color="#1f4e9c")
    for y, (_, row) in enumerate(rows.iterrows()):
        axes.annotate(f" {row['seconds']:.3f} s", (row["seconds"], y), va="center", fontsize=14)
    axes.invert_yaxis()
    axes.set(xlabel="seconds a step, median")
    axes.margins(x=0.15)
    n = max(len(metrics) - 2, 1)
    return finished(figure, title, f"n = {n} steps, after 2 of warm-up. {source}")


def phase_table(metrics: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the median seconds of each phase of a step, `seconds` by phase.

    What no timer covers is the rest.
    """
    steps = pd.DataFrame([row["phases"] for row in metrics]).fillna(0.0)
    steps = steps.iloc[2:] if len(steps) > 2 else steps
    parts = [name for name in PHASE_ORDER if name in steps]
    steps[_REST] = (steps["step"] - steps[parts].sum(axis=1)).clip(lower=0.0)
    median = steps[[*parts, _REST]].median()
    return median[median > 0].rename("seconds").to_frame()


def gain_figure(gains: dict[str, Estimate], source: str) -> Figure:
    """Draw what training changed on held-out queries, each figure with its interval.

    Args:
        gains: Paired difference, after minus before, by the figure's name.
        source: Where the figures come from.
    """
    name, main = next(iter(gains.items()))
    clear = main.low > 0 or main.high < 0
    verb = "raised" if main.mean > 0 else "lowered"
    title = (
        f"Training {verb} the {name} on held-out queries by {abs(main.mean):.2f}"
        if clear
        else f"Training did not clearly change the {name} on held-out queries"
    )
    sns.set_theme(style="white", font_scale=1.45)
    figure, axes = plt.subplots(figsize=(12, 2.2 + 0.6 * len(gains)), layout="constrained")
    plt.close(figure)
    for y, estimate in enumerate(gains.values()):
        shade = "#1f4e9c" if y == 0 else "#777777"
        axes.plot((estimate.low, estimate.high), (y, y), color=shade, linewidth=4, alpha=0.45)
        axes.plot(estimate.mean, y, "o", color=shade, markersize=11)
        axes.annotate(
            with_interval(estimate.mean, estimate.low, estimate.high, signed=True),
            (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=14,
        )  # fmt: skip
    axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.set(xlabel="after training minus before, paired")
    n = f"n = {main.n_clusters} held-out queries, {main.n_samples} pairs"
    return finished(figure, title, f"{n}; 95 % intervals over queries. {source}")


def live_figure(source: Callable[[], str]) -> Callable[[Sequence[dict[str, Any]]], None]:
    """Return a function that shows the reward so far, in one place of the notebook.

    Args:
        source: Says what the figures come from; a stand-in is known once it has answered.
    """
    from IPython.display import display

    handle = display(display_id=True)

    def draw(metrics: Sequence[dict[str, Any]]) -> None:
        if handle is not None:
            handle.update(reward_figure(metrics, source()))

    return draw


def finished(figure: Figure, title: str, note: str) -> Figure:
    """Write a figure's claim above it, and under it what it rests on."""
    sns.despine(figure, left=True)
    for axes in figure.axes:
        axes.grid(axis="x", alpha=0.3)
    claim = "\n".join(textwrap.wrap(title, 88))
    figure.suptitle(claim, x=0.01, ha="left", fontweight="bold", fontsize=17)
    figure.supxlabel("\n".join(textwrap.wrap(note, 120)), x=0.01, ha="left", fontsize=14)
    return figure
