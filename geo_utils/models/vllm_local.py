"""A vLLM engine in this process: offline batches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from geo_utils.models.base import Completion, FatalError, Request
from geo_utils.models.batching import Batcher
from geo_utils.models.replies import received


class VllmLocal:
    """A model on vLLM without a server.

    Attributes:
        model: Folder or Hub id.
    """

    def __init__(
        self, model: str, max_batch: int = 256, device: str | None = None, **options: Any
    ) -> None:
        """Name the model; it is loaded by `probe` or the first call.

        Args:
            model: Folder or Hub id.
            max_batch: Most prompts handed over at once.
            device: Such as `cuda:1`, of those that this process sees; default, the first.
            **options: Of `vllm.LLM`, such as `gpu_memory_utilization`.
        """
        self.model = self.cache_id = model
        self._options, self._device = options, device
        self._llm: Any = None
        self._batcher = Batcher(self._generate, max_batch)

    async def complete(self, request: Request) -> Completion:
        """Answer one request; see `LanguageModel`."""
        return await self._batcher.complete(request)

    async def probe(self) -> None:
        """Load the model."""
        self._load()

    async def close(self) -> None:
        """End the worker and let the engine go."""
        self._batcher.close()
        self._llm = None

    def _load(self) -> Any:
        if self._llm is None:
            try:
                from vllm import LLM
            except ImportError:
                raise FatalError(
                    "vLLM is not installed; on a GPU machine: pip install -e '.[gpu]'"
                ) from None
            with _only(self._device):
                self._llm = LLM(model=self.model, enable_prefix_caching=True, **self._options)
        return self._llm

    def _generate(self, requests: Sequence[Request]) -> list[Completion]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        llm, started = self._load(), time.monotonic()
        settings = []
        for request in requests:
            structured = None
            if request.choices:
                structured = StructuredOutputsParams(choice=list(request.choices))
            elif request.schema:
                structured = StructuredOutputsParams(json=request.schema)
            settings.append(
                SamplingParams(
                    temperature=request.sampling.temperature,
                    top_p=request.sampling.top_p,
                    max_tokens=1 if request.choices else request.sampling.max_tokens,
                    logprobs=20 if request.choices else None,
                    structured_outputs=structured,
                )
            )
        outputs = llm.chat(
            [[{"role": "user", "content": request.prompt}] for request in requests],
            settings,
            use_tqdm=False,
            chat_template_kwargs={"enable_thinking": False},
        )
        return [
            _completion(output, request, time.monotonic() - started, self.model)
            for output, request in zip(outputs, requests, strict=True)
        ]


@contextmanager
def _only(device: str | None) -> Iterator[None]:
    """Let an engine that is started see one GPU: it runs in a child process of its own."""
    if device is None:
        yield
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = int(device.rpartition(":")[2])
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[index] if seen else str(index)
    try:
        yield
    finally:
        if seen is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = seen


def _completion(output: Any, request: Request, latency_s: float, model: str) -> Completion:
    best = output.outputs[0]
    logprobs = None
    if request.choices and best.logprobs:
        found = {
            (p.decoded_token or "").strip().lower(): p.logprob for p in best.logprobs[0].values()
        }
        logprobs = {word: found[word] for word in request.choices if word in found}
    return received(
        text=best.text,
        finish_reason=best.finish_reason,
        latency_s=latency_s,
        tokens_in=len(output.prompt_token_ids or ()),
        tokens_out=len(best.token_ids),
        tokens_cached=output.num_cached_tokens or 0,
        logprobs=logprobs,
        served_by=model,
    )
