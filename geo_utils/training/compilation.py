"""A policy's layers compiled for training.

On an H200, with Qwen3-1.7B's shape, LoRA and 16 completions of 512 tokens in two micro-batches, a
step's loss forward takes 0.22 s instead of 0.41 s, and its backward pass 0.33 s instead of 0.61 s
(`server_gemini_parallel` and the same not compiled; a test compares these figures with the rows).
"""

from __future__ import annotations

import os
from typing import Any


def compile_layers(policy: Any) -> None:
    """Compile the decoder's layers in place, so that weights keep their names.

    One graph serves all layers at the length it was first met with, and a second one all lengths.

    Args:
        policy: A model of Transformers with an adapter of PEFT.
    """
    import torch._inductor.config as inductor

    # vLLM allows the process one thread, with which compiling takes minutes.
    inductor.compile_threads = len(os.sched_getaffinity(0))
    # Else the first layer's input needs no gradient, and the layer a graph of its own.
    policy.enable_input_require_grads()
    for layer in policy.get_base_model().model.layers:
        layer.compile()
