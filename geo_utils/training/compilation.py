"""A policy's layers compiled for training.

On an H200, with Qwen3-1.7B's shape, LoRA and 8 x 1,800 tokens: forward 0.09 s instead of 0.19 s,
backward 0.13 s instead of 0.27 s, at most 33 GiB instead of 47 GiB.
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
