"""Keeps Python's garbage collector out of the training step."""

from __future__ import annotations

import gc
from typing import Any

from transformers import TrainerCallback

_SETTLED = 2  # steps after which what is loaded and compiled stays for good


class SettledHeap(TrainerCallback):
    """Takes what the first steps leave behind out of later collections.

    vLLM makes an object for each token, so that a step of 64 completions sets off a full
    collection, and each would walk all of PyTorch, Transformers, TRL and vLLM: 0.3 s.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the heap at the end of each of the first steps."""
        if state.global_step <= _SETTLED:
            gc.collect()
            gc.freeze()
