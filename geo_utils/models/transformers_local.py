"""A Transformers model in this process, batched; on a GPU, or a small one on the CPU."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from geo_utils.models.base import Completion, FatalError, Request
from geo_utils.models.batching import Batcher
from geo_utils.models.weights import weights_id

# Transformers makes weights on the meta device while it loads, for all threads of the process.
_LOADING = threading.Lock()


class TransformersLocal:
    """A causal language model by Transformers' own generation.

    Attributes:
        model: Folder or Hub id.
    """

    def __init__(self, model: str, max_batch: int = 16, device: str | None = None) -> None:
        """Name the model; it is loaded by `probe` or the first call.

        Args:
            model: Folder or Hub id of a causal language model with a chat template, or the folder
                of an adapter, which brings its base with it.
            max_batch: Most prompts generated together.
            device: Such as `cuda:1`; default, the first GPU, else the CPU.
        """
        self.model = model
        self.cache_id = weights_id(model)
        self._device = device
        self._loaded: tuple[Any, Any] | None = None
        self._batcher = Batcher(self._generate, max_batch)

    async def complete(self, request: Request) -> Completion:
        """Answer one request; see `LanguageModel`."""
        return await self._batcher.complete(request)

    async def probe(self) -> None:
        """Load the model."""
        self._load()

    async def close(self) -> None:
        """End the worker and let the model go."""
        self._batcher.close()
        self._loaded = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
                with _LOADING:
                    model: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype)
                    model.to(device)
            except (OSError, ValueError) as error:
                raise FatalError(f"model {self.model!r} cannot be loaded: {error}") from None
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            self._loaded = tokenizer, model.eval()
        return self._loaded

    def _generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer a batch with shared sampling; prompts are padded on the left.

        Each request has a draw of its own, so that its text does not hang on what else happened to
        be in the batch, which is a matter of milliseconds.
        """
        import torch

        tokenizer, model = self._load()
        started = time.monotonic()
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": request.prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for request in requests
        ]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        batch = batch.to(model.device)
        first = requests[0]
        if first.choices:
            return self._choose(requests, batch, started)
        draws = _own_draws(requests, model.device) if first.sampling.temperature > 0 else None
        with torch.inference_mode():
            # do_sample stays off: a model's own generation_config, such as Qwen3's top_k of 20,
            # must not leak in.
            tokens = model.generate(
                **batch,
                max_new_tokens=first.sampling.max_tokens,
                do_sample=False,
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=draws,
            )
        completions = []
        ends = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        for row, mask in zip(tokens, batch["attention_mask"], strict=True):
            new = row[batch["input_ids"].shape[1] :].tolist()
            stop = next((i for i, token in enumerate(new) if token in ends), None)
            kept = new if stop is None else new[:stop]
            completions.append(
                Completion(
                    text=tokenizer.decode(kept, skip_special_tokens=True),
                    tokens_in=int(mask.sum()),
                    tokens_out=len(kept),
                    finish_reason="length" if stop is None else "stop",
                    latency_s=time.monotonic() - started,
                    served_by=self.model,
                )
            )
        return completions

    def _choose(self, requests: Sequence[Request], batch: Any, started: float) -> list[Completion]:
        """Return the log-probabilities of each choice's first token."""
        import torch

        tokenizer, model = self._load()
        with torch.inference_mode():
            logits = model(**batch, logits_to_keep=1).logits[:, -1].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        completions = []
        for request, row, mask in zip(requests, logprobs, batch["attention_mask"], strict=True):
            found = {
                word: float(row[tokenizer.encode(word, add_special_tokens=False)[0]])
                for word in request.choices
            }
            completions.append(
                Completion(
                    text=max(found, key=lambda word: found[word]),
                    tokens_in=int(mask.sum()),
                    tokens_out=1,
                    latency_s=time.monotonic() - started,
                    logprobs=found,
                    served_by=self.model,
                )
            )
        return completions


def _own_draws(requests: Sequence[Request], device: Any) -> Any:
    """Return a logits processor whose highest score is a draw, each row's from its own generator.

    Adding Gumbel noise to log-probabilities makes their maximum a sample of them.
    """
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    sampling = requests[0].sampling
    warpers: Any = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    generators = [torch.Generator(device).manual_seed(_seed(request)) for request in requests]

    def draw(input_ids: Any, scores: Any) -> Any:
        for warper in warpers:
            scores = warper(input_ids, scores)
        rows = [torch.empty_like(scores[0]).exponential_(generator=g) for g in generators]
        return scores - torch.stack(rows).log()

    return LogitsProcessorList([draw])


def _seed(request: Request) -> int:
    said = f"{request.seed} {request.prompt}"
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=7).digest(), "big")
