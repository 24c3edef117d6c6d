"""Where the time of a training step goes."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# TRL's timers and the trainer's own, as the figures name them.
PHASES = {
    "sync_weights": "weight sync",
    "generate": "generation",
    "_get_per_token_logps_and_entropies": "old log-probabilities",
    "_calculate_rewards": "reward",
    "_prepare_inputs": "batch preparation",
    "compute_loss": "loss forward",
    "training_step": "backward",
}
LOOP = ("optimizer", "between steps")  # measured between the trainer's callbacks
_INSIDE = ("loss forward", "old log-probabilities")  # the loss's own forward pass is the loss's


@dataclass
class PhaseClock:
    """Exclusive seconds by phase: a phase inside another is taken out of it.

    Attributes:
        phases: Of the main thread; they add up to the step.
        background: Of all other threads; they run beside it.
        left: When the main thread last left its outermost phase.
    """

    phases: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    background: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    left: float = 0.0
    _open: threading.local = field(default_factory=threading.local)

    def enter(self, name: str) -> None:
        """Begin a phase, inside those that are open in this thread."""
        stack: list[list[Any]] = self._open.__dict__.setdefault("stack", [])
        if stack and (stack[-1][0], name) == _INSIDE:
            name = _INSIDE[0]
        stack.append([name, time.monotonic(), 0.0])

    def leave(self) -> None:
        """End the innermost open phase."""
        name, started, inside = self._open.stack.pop()
        now = time.monotonic()
        main = threading.current_thread() is threading.main_thread()
        (self.phases if main else self.background)[name] += now - started - inside
        if self._open.stack:
            self._open.stack[-1][2] += now - started
        elif main:
            self.left = now

    def clear(self) -> None:
        """Forget what was measured."""
        self.phases.clear()
        self.background.clear()


def synchronise() -> None:
    """Wait for the GPU, so that its work counts where it was asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def timed(clock: PhaseClock) -> Iterator[None]:
    """Let TRL's own timers drive a clock.

    Args:
        clock: Gets the seconds by the names of `PHASES`.
    """
    from trl.extras.profiling import ProfilingContext

    before = ProfilingContext.__enter__, ProfilingContext.__exit__

    def phase(context: Any) -> str | None:
        return PHASES.get(context.name.rpartition(".")[2])  # without the class's name

    def settled(act: Callable[[], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            synchronise()  # another thread would wait for the main one's work
        act()

    def enter(self: Any) -> Any:
        if name := phase(self):
            settled(lambda: clock.enter(name))
        return before[0](self)

    def leave(self: Any, *error: Any) -> Any:
        if phase(self):
            settled(clock.leave)
        return before[1](self, *error)

    setattr(ProfilingContext, "__enter__", enter)  # noqa: B010 (mypy refuses an assignment)
    setattr(ProfilingContext, "__exit__", leave)  # noqa: B010
    try:
        yield
    finally:
        setattr(ProfilingContext, "__enter__", before[0])  # noqa: B010
        setattr(ProfilingContext, "__exit__", before[1])  # noqa: B010
