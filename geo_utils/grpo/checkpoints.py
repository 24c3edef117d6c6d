"""Where a training can start, stop and go on: interrupts, complete checkpoints."""

from __future__ import annotations

import json
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from geo_utils.files import read_jsonl, write_atomic
from geo_utils.roles.policies import TRAINER_FILES, torn_file
from geo_utils.runs import RunInterrupted, signals_handled

_STATE = "trainer_state.json"


def newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a training, or None.

    The trainer writes `trainer_state.json` last: a checkpoint whose state is missing or torn was
    cut short, and the one before it counts. One whose other files are torn or missing, as after a
    full disk or a power cut, is passed over with a warning: nothing could go on from it, or only
    without what the optimizer knew. Its step is what its state says; a copy may have any name.
    """
    steps = {path: checkpoint_step(path) for path in folder.glob("checkpoint-*")}
    complete = [(step, path) for path, step in steps.items() if step is not None]
    for _, path in sorted(complete, reverse=True):
        if (problem := _torn_or_missing(path)) is None:
            return path
        warnings.warn(f"{path} is passed over: {problem}", stacklevel=2)
    return None


def _torn_or_missing(folder: Path) -> str | None:
    """Say which files of a checkpoint the trainer could not go on from."""
    if problem := torn_file(folder):
        return problem
    needed = [name for name in TRAINER_FILES if name != "scaler.pt"]  # only of half precision
    needed += ["adapter_config.json"] * (folder / "adapter_model.safetensors").is_file()
    lost = [name for name in needed if not any(folder.glob(name))]
    return f"{', '.join(lost)} missing" if lost else None


def checkpoint_step(folder: Path | None) -> int | None:
    """Return the step that a checkpoint was saved after; None if there is no complete one."""
    if folder is None:
        return None
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        step = int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return step if step >= 0 else None


def go_on(trainer: Any, checkpoint: Path | None) -> None:
    """Train from a checkpoint, or from the start; one of the last step is taken as it is.

    A training that was cut off between its last step and its result would take one step too many.
    """
    if checkpoint and (checkpoint_step(checkpoint) or 0) >= trainer.args.max_steps:
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))


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

    received: signal.Signals | None = None
    _held = False

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

        with signals_handled(handle, *self.wanted):
            yield


def random_state() -> tuple[Any, ...]:
    """Return the state of every random number generator that a step draws from."""
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def save_now(trainer: Any, log: Any) -> None:
    """Save the state after the last whole step, wherever in the next one the training stands.

    Not while the weights are half changed, nor between the steps that share one generation: a
    training that goes on from there would generate anew.

    Args:
        trainer: TRL's.
        log: Its `TrainingLog`.
    """
    import torch

    step = trainer.state.global_step
    done = Path(trainer.args.output_dir) / f"checkpoint-{step}"
    state, whole = log.random_state, not log.changing and not step % log.block
    if not step or state is None or not whole or checkpoint_step(done) == step:
        return
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
    trainer.state.num_input_tokens_seen = log.tokens_seen
    trainer._save_checkpoint(trainer.model, trial=None)
    log.on_save(trainer.args, trainer.state, trainer.control)
