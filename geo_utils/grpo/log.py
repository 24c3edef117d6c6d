"""What a training leaves behind as it goes: figures and time of each step, rollouts to read."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import PrinterCallback, TrainerCallback

from geo_utils.evaluate import Progress
from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.grpo.checkpoints import Interrupts, random_state
from geo_utils.grpo.figures import PHASES, WARM_UP, Metrics
from geo_utils.grpo.rewards import Rollout, telling_rollouts
from geo_utils.roles.policies import PolicyCard

_INSIDE = ("loss forward", "old log-probabilities")  # the loss's own forward pass is the loss's


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

    _left = WARM_UP  # of this process, also where a training is resumed

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
        """Keep the step's telling rollouts."""
        append_jsonl(self.folder / "rollouts.jsonl", telling_rollouts(step, batch))
