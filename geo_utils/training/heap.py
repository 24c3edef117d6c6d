"""Keeps Python's garbage collector out of the training step."""

from __future__ import annotations

import gc
from typing import Any

from transformers import TrainerCallback

_UNSETTLED = 2  # steps that still load and compile what stays for good


class SettledHeap(TrainerCallback):
    """Takes what the first steps of this process leave behind out of later collections.

    vLLM makes objects for each token, so that a step of 64 completions may set off a full
    collection; with PyTorch, Transformers and TRL loaded, one takes 0.3 s (on a CPU).
    """

    def __init__(self) -> None:
        """Begin with a heap that is not settled, also where a training is resumed."""
        self._left = _UNSETTLED

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the heap at the end of each of the first steps."""
        if self._left:
            self._left -= 1
            gc.collect()
            gc.freeze()
