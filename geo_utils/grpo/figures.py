"""What a training left behind, drawn: reward, health and time by step, and rollouts to read.

Nothing here needs a trainer: a training that was recorded is shown without loading PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib.figure import Figure

from geo_utils.corpus import Example
from geo_utils.show.example import marked_changes
from geo_utils.show.jinja import filled, in_words
from geo_utils.show.plots import BLUE, QUANTITIES, beside, canvas, finished, name_rows
from geo_utils.show.tables import intervals
from geo_utils.text import content_words

Metrics = Sequence[dict[str, Any]]
# TRL's timers and the trainer's own, as the figures name them.
PHASES = {
    "sync_weights": "weight sync",
    "generate": "generation",
    "_get_per_token_logps_and_entropies": "old log-probabilities",
    "_calculate_rewards": "reward",
    "_prepare_inputs": "batch preparation",
    "compute_loss": "loss forward",
    "training_step": "backward",
    "validate": "validation",
}
EFFECTIVE = "effective_sample_size"
_HEALTH_GAP = "sampling/sampling_logp_difference/mean"
_UNCHANGED = "reward/unchanged"
_HEALTH = {  # panels, and what each shows
    "nats a token": {"entropy": "entropy", "kl": "KL to the base"},
    "tokens": {"completions/mean_length": "mean length", "completions/max_length": "longest"},
    "shares": {"completions/clipped_ratio": "cut off", EFFECTIVE: "effective sample"},
    "shares of replies": {_UNCHANGED: "page unchanged", "reward/pasted": "key point pasted"},
    "gap to vLLM": {_HEALTH_GAP: "nats a token"},
}
LOOP = ("optimizer", "between steps")  # measured between the trainer's callbacks
WARM_UP = 2  # steps that still load and compile what stays for good


def reward_figure(metrics: Metrics, source: str) -> Figure:
    """Draw the reward and its components by step, and what of the groups teaches nothing.

    A line is a mean over the completions that a step drew first, the band about it the middle half
    of its groups' means; both are smoothed over a tenth of the steps.

    Args:
        metrics: Rows of metrics.jsonl.
        source: Where the figures come from.
    """
    rows = pd.DataFrame(metrics).set_index("step")
    # The negative length is in tokens and would press all others flat.
    names = [str(name) for name in rows]
    parts = [n for n in names if re.fullmatch("drawn/[^/]+", n) and n != "drawn/negative_length"]
    whole = "drawn/reward" if parts else "reward"
    lines = [whole, *(part for part in parts if part != whole and len(parts) > 2)]
    span = max(len(rows) // 10, 1)
    title = _told(rows[whole].astype(float), span)
    figure, axes = canvas(8)
    axes.remove()
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot(rows[whole].astype(float), ".", color="#9db4d6", markersize=7)
    shown = [n for n in names if n.removesuffix("/low").removesuffix("/high") in lines]
    smooth = rows[shown].astype(float).rolling(span, min_periods=1, center=True).mean()
    for name, shade in zip(lines, [BLUE, *sns.color_palette("dark")[1:]], strict=False):
        label = "reward, weighted" if name == whole else name.partition("/")[2]
        top.plot(smooth[name], color=shade, linewidth=3.0 if name == whole else 1.5, label=label)
        if f"{name}/low" in smooth:
            ends = smooth[f"{name}/low"], smooth[f"{name}/high"]
            top.fill_between(smooth.index, *ends, color=shade, alpha=0.12, linewidth=0)
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    top.legend(fontsize=14, **beside)
    top.set_ylabel("reward")
    for column, name, shade in (
        ("frac_reward_zero_std", "groups without variance", "#b4540a"),
        ("reward/abstained", "completions without score", "#c1272d"),
    ):
        if column in rows:
            bottom.plot(rows[column].astype(float), color=shade, label=name)
    bottom.set(ylim=(-0.02, 1.02), xlabel="step", ylabel="share")
    if bottom.lines:
        bottom.legend(fontsize=14, **beside)
    completions = f"{len(rows)} logged steps; a dot is the mean over one step's completions"
    return finished(
        figure, title, f"{completions}; bands: middle half of its groups. Source: {source}"
    )


def validation_figure(
    rows: Sequence[dict[str, Any]], source: str, aim: str = "supported"
) -> Figure | None:
    """Draw what the reward aims at on validation queries by step.

    Args:
        rows: Of validation.jsonl.
        source: Where the figures come from.
        aim: As `RewardOptions.aim` tells it.

    Returns:
        The figure; None if nothing was validated.
    """
    found = pd.DataFrame([row for row in rows if row["mean"] is not None])
    if found.empty:
        return None
    found = found.set_index("step").astype({"low": float, "high": float})
    best: Any = found["mean"].idxmax()
    first, last = found.index[0], found.index[-1]
    told = intervals(found)

    title = f"On validation queries the {QUANTITIES[aim]} went from {told[first]} to {told[last]}"
    if first == last:
        title = f"On validation queries the {QUANTITIES[aim]} is {told[first]}, judged once"
    if found["mean"][best] > found["mean"][last]:
        title += f"; it was best at step {best}, {told[best]}, and that checkpoint is kept"
    elif best != last:
        title += f"; none was above that of step {best}, whose checkpoint is kept"
    figure, axes = canvas(5)
    axes.fill_between(found.index, found["low"], found["high"], color=BLUE, alpha=0.15)
    axes.plot(found["mean"], "o-", color=BLUE, linewidth=3, markersize=8)
    axes.plot(best, found["mean"][best], "*", color="#b4540a", markersize=20)
    axes.set(ylim=(0, 1), xlabel="step", ylabel=QUANTITIES[aim])
    n = f"n = {found['n_queries'].max()} queries, {found['n_samples'].max()} samples each time"
    note = f"{n}, {found['abstentions'].sum()} abstentions in all; 95 % intervals over queries"
    return finished(figure, title, f"{note}. Judged as in training. Source: {source}")


def health_figure(metrics: Metrics, source: str) -> Figure:
    """Draw what tells a training that goes wrong: entropy, KL, lengths, and vLLM's distance.

    Args:
        metrics: Rows of metrics.jsonl.
        source: Where the figures come from.
    """
    rows = pd.DataFrame(metrics).set_index("step")
    named = {k: {n: label for n, label in each.items() if n in rows} for k, each in _HEALTH.items()}
    panels = {title: each for title, each in named.items() if each}
    figure, axes = canvas(5)
    axes.remove()
    for axes, (title, each) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        for name, label in each.items():
            axes.plot(rows[name].astype(float), linewidth=2, label=label)
        axes.set(title=title, xlabel="step")
        axes.legend(frameon=False, fontsize=14, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    entropy = rows["entropy"].dropna().astype(float)
    cut = rows["completions/clipped_ratio"].astype(float).max()
    told = ["No step has an entropy that is a number"]
    if len(entropy):
        told = [f"Entropy went from {entropy.iloc[0]:.2f} to {entropy.iloc[-1]:.2f} nats a token"]
    if 0 < len(entropy) < len(rows):
        told += [f"it is no number in {len(rows) - len(entropy)} of {len(rows)} steps"]
    if pd.notna(cut):
        told += [f"at most {cut:.0%} of a step's completions were cut off"]
    if _UNCHANGED in rows and len(kept := rows[_UNCHANGED].dropna().astype(float)):
        part = max(len(kept) // 4, 1)
        first, last = kept.iloc[:part].mean(), kept.iloc[-part:].mean()
        since = f" (counted since step {kept.index[0]})" * (len(kept) < len(rows))
        told += [f"unchanged pages went from {first:.0%} to {last:.0%} of replies{since}"]
    if (gap := _HEALTH_GAP) in rows and rows[[gap, EFFECTIVE]].notna().any().all():
        least, apart = rows[EFFECTIVE].astype(float).min(), rows[gap].astype(float).mean()
        told += [
            f"trainer and vLLM differ by {apart:.3f} nats a token, and at least "
            f"{least:.0%} of the tokens count after the correction for it"
        ]
    return finished(figure, "; ".join(told), f"{len(rows)} logged steps. Source: {source}")


def live_figure(source: Callable[[], str]) -> Callable[[Metrics], None]:
    """Return a function that shows the reward so far, in one place of the notebook.

    Of no steps it shows nothing: the whole training has a figure of its own.

    Args:
        source: Says what the figures come from; a stand-in is known once it has answered.
    """
    handle: Any = display(display_id=True)
    return lambda rows: handle.update(reward_figure(rows, source()) if rows else in_words(""))


def _told(reward: pd.Series, span: int) -> str:
    """Say what a reward did from its first steps to its last, as far as its spread bears it out."""
    runs: Any = reward.rolling(span)
    means, errors = runs.mean(), runs.std() / np.sqrt(span)
    first, last = reward.index[span - 1], reward.index[-1]
    if not means[[first, last]].notna().all():
        return "The training reward is missing where no completion could be scored"
    top = means.idxmax()

    def clear(one: Any, other: Any, spreads: float = 2) -> bool:
        spread = np.hypot(errors[one], errors[other])
        return bool(abs(means[one] - means[other]) > spreads * spread)

    verb = "did not clearly change" if not clear(first, last) else "fell"
    verb = "rose" if clear(first, last) and means[last] > means[first] else verb
    if clear(top, last, 4) and clear(top, first, 4):  # the highest of many
        verb = f"rose to {means[top]:z.2f} about step {top} and fell again"
    ends = f"{means[first]:z.2f} (first {span} steps), {means[last]:z.2f} (last)"
    return f"The training reward {verb}: {ends}"


def phase_figure(metrics: Metrics, source: str) -> Figure:
    """Draw where a step's time goes, as medians over the steps after the first two.

    What no timer covers is the rest.
    """
    steps = pd.DataFrame([row["phases"] for row in metrics]).fillna(0.0)
    steps = steps[WARM_UP:] if len(steps) > WARM_UP else steps
    parts = steps[[name for name in (*PHASES.values(), *LOOP) if name in steps]]
    rest = (steps["step"] - parts.sum(axis=1)).clip(lower=0.0)
    seconds = parts.assign(rest=rest).median().loc[lambda median: median > 0]
    if seconds.empty:
        seconds = pd.Series({"rest": 0.0})
    whole = steps["step"].median()
    share = seconds.max() / (whole or 1.0)
    part = "most of it" if share > 0.5 else "the largest part"
    title = f"A step takes {whole:.2f} s, {part} {seconds.idxmax()} ({share:.0%})"
    figure, axes = canvas(len(seconds))
    axes.barh(range(len(seconds)), seconds, color=BLUE)
    for y, value in enumerate(seconds):
        beside(axes, y, f"{value:.3f} s")
    name_rows(axes, list(seconds.index))
    axes.set(xlabel="seconds a step, median")
    n = max(len(metrics) - WARM_UP, 1)
    return finished(figure, title, f"n = {n} steps, after {WARM_UP} of warm-up. Source: {source}")


def rollout_page(rollouts: Metrics, examples: Iterable[Example], *kinds: str) -> HTML:
    """Show chosen rollouts: the reply, the page it makes with its changes, answer and rewards.

    Args:
        rollouts: Rows of rollouts.jsonl.
        examples: The corpus.
        kinds: `best` and `worst`, of the whole training and by the weighted reward; `abstained`,
            the last without a score. Two fit a slide.
    """
    ranked = sorted((row for row in rollouts if row["rewards"]), key=lambda row: -row["reward"])
    lost = [row for row in rollouts if row["kind"] == "abstained"]
    found = {"best": ranked[:1], "worst": ranked[::-1][:1], "abstained": lost[-1:]}
    by_id = {example.query_id: example for example in examples}
    shown = []
    for kind, row in [(name, row) for name in kinds for row in found[name]]:
        example = by_id[row["query_id"]]
        point = next(p for p in example.key_points if p.number == row["key_point_number"]).content
        _, page = marked_changes(example.target, row["page"] or "", set(content_words(point)))
        tokens = row["tokens"]  # not counted where a record's page is read
        length = f", {tokens} token{'s' * (tokens != 1)}" if tokens else ""
        boxes = [
            (f"Reply{length}", row["reply"][:4000]),
            ("Page", page if row["page"] else f"no page: {row['problem']}"),
            (f"Answer, {row['verdict'] or 'no verdict'}", (row["answer"] or "")[:4000]),
        ]
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row["rewards"].items())
        told = scores and f"reward {row['reward']:.3f}: {scores}"
        told = told or f"no score: {row['abstention']}"
        shown.append(
            (f"{kind.capitalize()}: step {row['step']}", told, example.query, point, [boxes])
        )
    return HTML(filled("rollouts.html", shown=shown, kinds=kinds))
