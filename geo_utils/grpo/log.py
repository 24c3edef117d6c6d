"""What a training leaves behind as it goes: figures and time of each step, rollouts to read."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib.figure import Figure

from geo_utils.corpus import Example
from geo_utils.evaluate import Progress
from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.grpo.checkpoints import Interrupts, random_state
from geo_utils.grpo.rewards import Rollout
from geo_utils.roles.policies import PolicyCard
from geo_utils.show.example import marked_changes
from geo_utils.show.jinja import filled, in_words
from geo_utils.show.plots import BLUE, beside, canvas, finished, name_rows
from geo_utils.text import content_words

with warnings.catch_warnings():  # it looks for widgets that a report could not show
    warnings.filterwarnings("ignore", message="IProgress not found")
    from transformers import PrinterCallback, TrainerCallback

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
_INSIDE = ("loss forward", "old log-probabilities")  # the loss's own forward pass is the loss's
_WARM_UP = 2  # steps that still load and compile what stays for good


def hush(trainer: Any = None) -> None:
    """Stop progress bars, and a trainer's line per step: a report would hold thousands of them."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_told_elsewhere)
    if trainer is not None:
        trainer.remove_callback(PrinterCallback)


def _told_elsewhere(record: logging.LogRecord) -> bool:
    """Leave out TRL's warning of a completion without score, with its whole prompt, a batch."""
    return "All reward functions returned None" not in str(record.msg)


def moment() -> Any:
    """Return this moment: the GPU's, when it has done what it was asked so far, else the clock's.

    Nothing waits for the GPU, which would else be idle while its next work is prepared.
    """
    import torch

    if not torch.cuda.is_available():
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begin: Any, end: Any) -> float:
    """Return the seconds between two moments, once the later one is over."""
    if isinstance(begin, float):
        return float(end - begin)
    begin.synchronize()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


class PhaseClock:
    """Exclusive seconds by phase: a phase inside another is taken out of it.

    Attributes:
        phases: Of the main thread; they add up to the step. On a GPU, by its own clock.
        background: Of all other threads; they run beside it.
        left: When the main thread last left its outermost phase.
    """

    def __init__(self) -> None:
        """Start with no phase measured."""
        self.background: defaultdict[str, float] = defaultdict(float)
        self.left: Any = None
        self._spans: list[tuple[str, Any, Any, int]] = []  # of the main thread; -1 takes one out
        self._open = threading.local()

    @property
    def phases(self) -> dict[str, float]:
        """Return the seconds so far, when the GPU has done what they measure."""
        found: defaultdict[str, float] = defaultdict(float)
        for name, begin, end, sign in self._spans:
            found[name] += sign * seconds_between(begin, end)
        return found

    def add(self, name: str, begin: Any, end: Any, sign: int = 1) -> None:
        """Count what lies between two moments of the main thread, or with -1 take it out."""
        self._spans.append((name, begin, end, sign))

    def enter(self, name: str) -> None:
        """Begin a phase, inside those that are open in this thread."""
        main = threading.current_thread() is threading.main_thread()
        stack: list[tuple[str, Any]] = self._open.__dict__.setdefault("stack", [])
        if stack and (stack[-1][0], name) == _INSIDE:
            name = _INSIDE[0]
        stack.append((name, moment() if main else time.monotonic()))

    def leave(self) -> None:
        """End the innermost open phase."""
        main = threading.current_thread() is threading.main_thread()
        name, began = self._open.stack.pop()
        now = moment() if main else time.monotonic()
        around = [outer for outer, _ in self._open.stack[-1:]]
        if main:
            self.add(name, began, now)
            for outer in around:
                self.add(outer, began, now, -1)
            if not around:
                self.left = now
            return
        self.background[name] += now - began
        for outer in around:
            self.background[outer] -= now - began

    def clear(self) -> None:
        """Forget what was measured."""
        self._spans.clear()
        self.background.clear()


@contextmanager
def timed(clock: PhaseClock) -> Iterator[None]:
    """Let TRL's own timers drive a clock.

    Args:
        clock: Gets the seconds by the names of `PHASES`.
    """
    from trl.extras.profiling import ProfilingContext

    own_enter, own_leave = ProfilingContext.__enter__, ProfilingContext.__exit__

    def phase(context: Any) -> str | None:
        return PHASES.get(context.name.rpartition(".")[2])  # without the class's name

    def enter(self: Any) -> Any:
        if name := phase(self):
            clock.enter(name)
        return own_enter(self)

    def leave(self: Any, *error: Any) -> Any:
        if phase(self):
            clock.leave()
        return own_leave(self, *error)

    # puts TRL's own back afterwards
    with patch.multiple(ProfilingContext, __enter__=enter, __exit__=leave):
        yield


@dataclass(eq=False)
class StepCounter(TrainerCallback):
    """Shows how far a training is.

    Attributes:
        progress: Told the steps that are done and all that there are.
    """

    progress: Progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step; a training begins at the one that it goes on from."""
        self.progress(state.global_step, state.max_steps)

    on_train_begin = on_step_end


class SettledHeap(TrainerCallback):
    """Takes what the first steps of this process leave behind out of later collections.

    vLLM makes objects for each token, so that a step of 64 completions may set off a full
    collection; with PyTorch, Transformers and TRL loaded, one takes 0.3 s (on a CPU).
    """

    _left = _WARM_UP  # of this process, also where a training is resumed

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the heap at the end of each of the first steps."""
        if self._left:
            self._left -= 1
            gc.collect()
            gc.freeze()


@dataclass(eq=False)
class TrainingLog(TrainerCallback):
    """Writes metrics.jsonl and rollouts.jsonl, keeps the step's random state, draws the figure.

    Attributes:
        folder: The run's.
        card: Put into every checkpoint.
        interrupts: Told when the weights are half changed.
        draw: Shows the rows so far, in a notebook.
        block: Steps that share one generation; a training stops after the last of them.
        clock: The seconds of each phase.
    """

    folder: Path
    card: PolicyCard
    interrupts: Interrupts
    draw: Callable[[Metrics], None] | None = None
    block: int = 1
    clock: PhaseClock = field(default_factory=PhaseClock)

    def __post_init__(self) -> None:
        """Go on with the rows that the folder holds."""
        self.changing, self.tokens_seen = False, 0
        self.random_state: tuple[Any, ...] | None = None
        self._drawn, self._step_s = time.monotonic(), 0.0
        self._ended: Any = None
        self._rows = read_jsonl(self.folder / "metrics.jsonl")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.clock.clear()
        self._ended = self.clock.left = moment()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let signals through, now that the step before is logged."""
        if state.global_step % self.block == 0:
            self.interrupts.release()
        self.clock.add("between steps", self._ended, moment())

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count what the loop does after a micro-batch."""
        self.clock.add("between steps", self.clock.left, moment())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let signals wait while the weights change."""
        self.interrupts.hold()
        self.changing = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the state that belongs to the weights; stop if a signal came."""
        now = moment()
        self.clock.add("optimizer", self.clock.left, now)
        self._step_s, self._ended = seconds_between(self._ended, now), now
        self.random_state, self.changing = random_state(), False
        self.tokens_seen = state.num_input_tokens_seen
        if self.interrupts.received is not None and state.global_step % self.block == 0:
            control.should_log = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the figures of the step."""
        if not logs or "reward" not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step, "at": round(time.time(), 3)}
        for name, value in logs.items():
            if value is None or isinstance(value, int | float):
                row[name] = None if value is None or np.isnan(value) else float(value)
        phases = self.clock.phases | {"step": self._step_s}
        for name, spent in (("phases", phases), ("background", self.clock.background)):
            if spent:
                row[name] = {phase: round(seconds, 4) for phase, seconds in spent.items()}
        append_jsonl(self.folder / "metrics.jsonl", [row])
        self._rows.append(row)
        self.clock.clear()
        if self.draw and (time.monotonic() - self._drawn > 5 or state.global_step <= 1):
            self._drawn = time.monotonic()
            self.draw(self._rows)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the card beside the adapter, so that the checkpoint is usable as a method."""
        self.card.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_scored(self, step: int, batch: Sequence[Rollout]) -> None:
        """Keep the step's first scored, worst, best and first abstained rollout."""
        scored = [r for r in batch if r.rewards]
        ranked = sorted(scored, key=lambda r: r.reward or 0.0)
        chosen = {"first": scored[:1], "worst": ranked[:1], "best": ranked[-1:]}
        chosen["abstained"] = [r for r in batch if not r.rewards][:1]
        rows = [{"step": step, "kind": k, **r.row()} for k, found in chosen.items() for r in found]
        append_jsonl(self.folder / "rollouts.jsonl", rows)


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
    steps = steps[_WARM_UP:] if len(steps) > _WARM_UP else steps
    parts = steps[[name for name in (*PHASES.values(), *LOOP) if name in steps]]
    rest = (steps["step"] - parts.sum(axis=1)).clip(lower=0.0)
    seconds = parts.assign(rest=rest).median().loc[lambda median: median > 0]
    if seconds.empty:
        seconds = pd.Series({"rest": 0.0})
    share = seconds.max() / (seconds.sum() or 1.0)
    part = "most of it" if share > 0.5 else "the largest part"
    title = f"A step takes {seconds.sum():.2f} s, {part} {seconds.idxmax()} ({share:.0%})"
    figure, axes = canvas(len(seconds))
    axes.barh(range(len(seconds)), seconds, color=BLUE)
    for y, value in enumerate(seconds):
        beside(axes, y, f"{value:.3f} s")
    name_rows(axes, list(seconds.index))
    axes.set(xlabel="seconds a step, median")
    n = max(len(metrics) - _WARM_UP, 1)
    return finished(figure, title, f"n = {n} steps, after {_WARM_UP} of warm-up. Source: {source}")


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
