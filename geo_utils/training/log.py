"""What a training leaves behind as it goes: figures, phases, rollouts, and a way to stop it."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from geo_utils.files import append_jsonl, read_jsonl, write_atomic
from geo_utils.policies import PolicyCard
from geo_utils.runs import RunInterrupted
from geo_utils.training.checkpoints import checkpoint_step
from geo_utils.training.phases import PhaseClock, synchronise
from geo_utils.training.rollouts import Rollout

with warnings.catch_warnings():  # it looks for widgets that a report could not show
    warnings.filterwarnings("ignore", message="IProgress not found")
    from transformers import TrainerCallback

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
        self.clock = PhaseClock()
        self.random_state: tuple[Any, ...] | None = None
        self._ended = self._drawn = time.monotonic()
        self._step_s = 0.0
        self.tokens_seen = 0
        self._rows = read_jsonl(self.folder / "metrics.jsonl")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.clock.clear()
        self._ended = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let signals through, now that the step before is logged."""
        if state.global_step % self.block == 0:
            self.interrupts.release()
        self.clock.phases["between steps"] += time.monotonic() - self._ended

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count what the loop does after a micro-batch."""
        self.clock.phases["between steps"] += time.monotonic() - self.clock.left

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let signals wait while the weights change."""
        self.interrupts.hold()
        self.changing = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the state that belongs to the weights; stop if a signal came."""
        synchronise()
        now = time.monotonic()
        self.clock.phases["optimizer"] += now - self.clock.left
        self._step_s += now - self._ended
        self._ended = now
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
        spent = {"phases": {**self.clock.phases, "step": self._step_s}}
        spent |= {"background": dict(self.clock.background)} if self.clock.background else {}
        rounded = {k: {n: round(t, 4) for n, t in v.items()} for k, v in spent.items()}
        row = {"step": state.global_step, "at": round(time.time(), 3), **clean, **rounded}
        append_jsonl(self.folder / "metrics.jsonl", [row])
        self._rows.append(row)
        self.clock.clear()
        self._step_s = 0.0
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
        rows = [{"step": step, "kind": k, **_rollout_row(rollout)} for k, rollout in chosen.items()]
        append_jsonl(self.folder / "rollouts.jsonl", rows)


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


def save_now(trainer: Any, log: TrainingLog) -> None:
    """Save the state after the last whole step, wherever in the next one the training stands.

    Not while the weights are half changed, nor between the steps that share one generation: a
    training that goes on from there would generate anew.
    """
    step = trainer.state.global_step
    done = Path(trainer.args.output_dir) / f"checkpoint-{step}"
    state, whole = log.random_state, not log.changing and not step % log.block
    if not step or state is None or not whole or checkpoint_step(done) == step:
        return
    restore_random_state(state)
    trainer.state.num_input_tokens_seen = log.tokens_seen
    trainer._save_checkpoint(trainer.model, trial=None)
    log.on_save(trainer.args, trainer.state, trainer.control)
