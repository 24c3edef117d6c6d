"""What a training leaves behind as it goes: figures, phases, rollouts, and a way to stop it."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from geo_utils.files import read_jsonl, write_atomic
from geo_utils.policies import PolicyCard
from geo_utils.rollouts import Rollout
from geo_utils.runs import RunInterrupted

with warnings.catch_warnings():  # it looks for widgets that a report could not show
    warnings.filterwarnings("ignore", message="IProgress not found")
    from transformers import TrainerCallback

# TRL's timers, as the figures name them.
PHASES = {
    "sync_weights": "weight sync",
    "generate": "generation",
    "_get_per_token_logps_and_entropies": "log-probabilities",
    "_calculate_rewards": "reward",
    "compute_loss": "loss forward",
}
Draw = Callable[[list[dict[str, Any]]], Any]


def hush(trainer: Any = None) -> None:
    """Stop progress bars, and a trainer's line a step: a report would hold thousands of them."""
    import datasets
    from transformers import PrinterCallback
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    if trainer is not None:
        trainer.remove_callback(PrinterCallback)


def rewind(path: Path, step: int) -> None:
    """Drop the rows of a log after a step, which a resumed training will write again."""
    kept = [row for row in read_jsonl(path) if row["step"] <= step]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


class Interrupts:
    """Turns a signal into `RunInterrupted` at a moment when the training's state is whole.

    Between the first change of the weights and the end of the step, and while a checkpoint is
    written, a signal waits; elsewhere it takes effect at once.
    """

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        """Start with no signal received."""
        self._held = False
        self.received: signal.Signals | None = None

    def hold(self) -> None:
        """Let signals wait."""
        self._held = True

    def release(self) -> None:
        """Let signals through again.

        Raises:
            RunInterrupted: One came in between.
        """
        self._held = False
        if self.received is not None:
            raise RunInterrupted(f"signal {self.received.name}: saved; run again to go on")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.received is None:  # a second signal must not cut short the saving
                self.received = signal.Signals(number)
                if not self._held:
                    self.release()

        before = {number: signal.signal(number, handle) for number in self.wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class TrainingLog(TrainerCallback):
    """Writes metrics.jsonl and rollouts.jsonl, keeps the step's random state, draws the figure."""

    def __init__(
        self,
        folder: Path,
        card: PolicyCard,
        interrupts: Interrupts,
        draw: Draw | None = None,
        block: int = 1,
    ) -> None:
        """Log into a run folder.

        Args:
            folder: The run's.
            card: Put into every checkpoint.
            interrupts: Told when the weights are half changed.
            draw: Shows the rows so far, in a notebook.
            block: Steps that share one generation; a training stops after the last of them.
        """
        self.block, self.changing = block, False
        self.folder, self.card, self.interrupts, self.draw = folder, card, interrupts, draw
        self.phases: defaultdict[str, float] = defaultdict(float)
        self.random_state: tuple[Any, ...] | None = None
        self.tokens_seen = 0
        self._started = self._optimizing = self._drawn = time.monotonic()
        self._rows = read_jsonl(self.folder / "metrics.jsonl")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let signals through, now that the step before is logged, and start the clock."""
        if state.global_step % self.block == 0:
            self.interrupts.release()
        self._started = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let signals wait while the weights change."""
        self.interrupts.hold()
        self.changing = True
        self._optimizing = time.monotonic()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the optimizer's time."""
        self.phases["optimizer"] += time.monotonic() - self._optimizing

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the state that belongs to the weights; stop if a signal came."""
        self.phases["step"] += time.monotonic() - self._started
        self.random_state, self.changing = random_state(), False
        self.tokens_seen = state.num_input_tokens_seen
        if self.interrupts.received is not None and state.global_step % self.block == 0:
            control.should_log = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the figures of the steps since the last log."""
        if not logs or "reward" not in logs:
            return
        numbers = {k: v for k, v in logs.items() if v is None or isinstance(v, int | float)}
        clean = {k: None if v is None or np.isnan(v) else float(v) for k, v in numbers.items()}
        phases = {name: round(seconds, 4) for name, seconds in self.phases.items()}
        row = {"step": state.global_step, **clean, "phases": phases}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)
        self.phases.clear()
        if self.draw and (time.monotonic() - self._drawn > 5 or state.global_step <= 1):
            self._drawn = time.monotonic()
            self.draw(self._rows)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the card beside the adapter, so that the checkpoint is usable as a method."""
        self.card.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_scored(self, step: int, batch: Sequence[Rollout]) -> None:
        """Keep the step's best, worst and first abstained rollout, and its first one."""
        scored = [r for r in batch if r.rewards]
        chosen: dict[str, Rollout] = {}
        if scored:
            ranked = sorted(scored, key=lambda r: r.rewards[next(iter(r.rewards))])
            chosen = {"first": scored[0], "worst": ranked[0], "best": ranked[-1]}
        lost = next((r for r in batch if not r.rewards), None)
        chosen |= {"abstained": lost} if lost else {}
        with (self.folder / "rollouts.jsonl").open("a", encoding="utf-8") as file:
            for kind, rollout in chosen.items():
                row = {"step": step, "kind": kind, **_rollout_row(rollout)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rollout_row(rollout: Rollout) -> dict[str, Any]:
    fields = ("reply", "tokens", "page", "problem", "rewards", "abstention", "answer", "verdict")
    return {
        "query_id": rollout.example.query_id,
        "key_point_number": rollout.key_point.number,
        **{name: getattr(rollout, name) for name in fields},
    }


def random_state() -> tuple[Any, ...]:
    """Return the state of every random number generator that a step draws from."""
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def restore_random_state(state: tuple[Any, ...]) -> None:
    """Set every random number generator to a state of `random_state`."""
    import torch

    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])


@contextmanager
def timed_phases(phases: defaultdict[str, float]) -> Iterator[None]:
    """Add up the seconds that TRL's own timers measure, the GPU's work included.

    Args:
        phases: Gets the seconds by the names of `PHASES`.
    """
    import torch
    from trl.extras.profiling import ProfilingContext

    measured: Mapping[str, str] = PHASES
    before = ProfilingContext.__enter__, ProfilingContext.__exit__
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def phase(context: Any) -> str | None:
        return measured.get(context.name.rpartition(".")[2])  # without the class's name

    def enter(self: Any) -> Any:
        if phase(self):
            synchronise()
        self.began = time.monotonic()
        return before[0](self)

    def leave(self: Any, *error: Any) -> Any:
        if name := phase(self):
            synchronise()
            phases[name] += time.monotonic() - self.began
        return before[1](self, *error)

    setattr(ProfilingContext, "__enter__", enter)  # noqa: B010 (mypy refuses an assignment)
    setattr(ProfilingContext, "__exit__", leave)  # noqa: B010
    try:
        yield
    finally:
        setattr(ProfilingContext, "__enter__", before[0])  # noqa: B010
        setattr(ProfilingContext, "__exit__", before[1])  # noqa: B010
