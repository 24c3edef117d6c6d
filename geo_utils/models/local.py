"""Models in this process, on Transformers or vLLM: calls that come together are one batch."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from geo_utils.models.base import Completion, FatalError, ModelError, Request, Takes
from geo_utils.models.replies import received

log = logging.getLogger(__name__)
_Job = tuple[Request, "Future[Completion]"]
_WINDOW_S = 0.02  # how long a batch waits for more after its first request
_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja")
_OTHER = {"trainer_state.json", "policy.json"}


def weights_id(model: str) -> str:
    """Return a name that changes with a folder's weights, tokenizer or base.

    Args:
        model: Folder, or the id of a model on the Hub, which is returned as it is.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.name not in _OTHER and path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        digest.update(weights_id(str(base)).encode())
    return f"{folder.name}@{digest.hexdigest()[:16]}"


class InProcess:
    """A model in this process; one worker thread hands the requests to it in batches.

    Requests of a batch share their sampling parameters; others wait for the next batch.

    Attributes:
        model: Folder or Hub id.
        cache_id: Its id in cache keys.
        takes: All sampling parameters.
    """

    takes = Takes()

    def __init__(
        self,
        model: str,
        cache_id: str,
        load: Callable[[], Any],
        generate: Callable[[Any, Sequence[Request]], Sequence[Completion]],
        max_batch: int,
    ) -> None:
        """Name the model; it is loaded by `probe` or the first call, which starts the worker.

        Args:
            model: Folder or Hub id.
            cache_id: Its id in cache keys.
            load: Returns what `generate` takes first.
            generate: Answers a batch, in order; runs in the worker thread.
            max_batch: Most prompts answered together.
        """
        self.model, self.cache_id = model, cache_id
        self._load, self._generate, self._max_batch = load, generate, max_batch
        self._loaded: Any = None
        self._queue: queue.Queue[_Job | None] = queue.Queue()
        self._held: list[_Job | None] = []  # None: the last has been asked
        self._thread: threading.Thread | None = None

    async def complete(self, request: Request) -> Completion:
        """Answer one request with the next batch that it fits into; see `LanguageModel`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        future: Future[Completion] = Future()
        self._queue.put((request, future))
        return await asyncio.wrap_future(future)

    async def probe(self) -> None:
        """Load the model."""
        self._ready()

    async def close(self) -> None:
        """End the worker after the batch under way, and let the model go."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()
        self._loaded = None

    def _ready(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            jobs = [job for job in batch if job[1].set_running_or_notify_cancel()]
            if not jobs:
                continue
            began = time.monotonic()
            try:
                completions = self._generate(self._ready(), [request for request, _ in jobs])
                for (_, future), completion in zip(jobs, completions, strict=True):
                    future.set_result(completion)
            except Exception as error:
                failure = error
                if not isinstance(error, ModelError | FatalError):
                    # Out of memory, a broken model: every later call too.
                    said = f"the local model failed: {type(error).__name__}: {error}"
                    failure = FatalError(said)
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(failure)
                continue
            spent, tokens = time.monotonic() - began, sum(c.tokens_out for c in completions)
            waiting = len(self._held) + self._queue.qsize()
            log.info(
                f"{len(jobs)} answers in {spent:.1f} s, {tokens / max(spent, 1e-9):.0f} tokens/s; "
                f"{waiting} wait, about {spent * waiting / len(jobs):.0f} s"
            )

    def _next_batch(self) -> list[_Job] | None:
        """Wait for a request, and return it with those that are there soon and are drawn alike."""
        if not self._held:
            self._held.append(self._queue.get())
        deadline = time.monotonic() + _WINDOW_S
        with contextlib.suppress(queue.Empty):
            while self._held[-1] is not None:
                self._held.append(self._queue.get(timeout=max(deadline - time.monotonic(), 0)))
        jobs = [job for job in self._held if job is not None]
        if not jobs:
            self._held = []
            return None
        drawn = [(request.sampling, request.choices) for request, _ in jobs]
        batch = [job for job, how in zip(jobs, drawn, strict=True) if how == drawn[0]]
        taken = set(map(id, batch[: self._max_batch]))
        self._held = [job for job in self._held if id(job) not in taken]
        return batch[: self._max_batch]


# Transformers makes weights on the meta device while it loads, for all threads of the process.
_LOADING = threading.Lock()


def _loaded(kind: str, model: str, device: str | None) -> tuple[Any, Any]:
    """Return tokenizer and model by a class of Transformers, on a device and ready to be asked.

    Raises:
        FatalError: They cannot be loaded.
    """
    import torch
    import transformers

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    writes = kind == "AutoModelForCausalLM"
    options: Any = {"dtype": torch.float32 if place == "cpu" else torch.bfloat16} if writes else {}
    side = {"padding_side": "left"} if writes else {}  # a text goes on where its prompt ends
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **side)
        with _LOADING:
            loaded: Any = getattr(transformers, kind).from_pretrained(model, **options).to(place)
    except (OSError, ValueError) as error:
        raise FatalError(f"model {model!r} cannot be loaded: {error}") from None
    return tokenizer, loaded.eval()


def transformers_local(model: str, max_batch: int = 16, device: str | None = None) -> InProcess:
    """Return a causal language model by Transformers' own generation.

    Args:
        model: Folder or Hub id of a model with a chat template, or the folder of an adapter, which
            brings its base with it.
        max_batch: Most prompts generated together.
        device: Such as `cuda:1`; default, the first GPU, else the CPU.
    """

    def load() -> tuple[Any, Any]:
        tokenizer, loaded = _loaded("AutoModelForCausalLM", model, device)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, loaded

    return InProcess(
        model, weights_id(model), load, partial(_transformers_answers, model), max_batch
    )


def _transformers_answers(
    name: str, loaded: tuple[Any, Any], requests: Sequence[Request]
) -> list[Completion]:
    """Answer a batch with shared sampling; prompts are padded on the left.

    Each request has a draw of its own, so that its text does not hang on what else happened to
    be in the batch, which is a matter of milliseconds.
    """
    import torch

    tokenizer, model = loaded
    started = time.monotonic()
    first = requests[0]
    sent = InProcess.takes.sent(first.sampling)
    thinks = sent["thinking"] != "off"
    prompts = [chat_text(tokenizer, request.prompt, thinks) for request in requests]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    batch = batch.to(model.device)
    answers: list[dict[str, Any]] = []
    with torch.inference_mode():
        if first.choices:
            logits = model(**batch, logits_to_keep=1).logits[:, -1].float()
            for row in torch.log_softmax(logits, dim=-1):
                found = {
                    word: float(row[tokenizer.encode(word, add_special_tokens=False)[0]])
                    for word in first.choices
                }
                likeliest = max(found, key=lambda word: found[word])
                answers.append({"text": likeliest, "tokens_out": 1, "logprobs": found})
        else:
            hot = sent["temperature"] > 0
            # do_sample stays off: a model's own generation_config, such as Qwen3's top_k of
            # 20, must not leak in.
            tokens = model.generate(
                **batch,
                max_new_tokens=first.sampling.max_tokens + first.sampling.thoughts,
                do_sample=False,
                repetition_penalty=sent["repetition_penalty"],
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=_own_draws(requests, model.device) if hot else None,
            )
            ends = model.generation_config.eos_token_id
            ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
            for row in tokens:
                new = row[batch["input_ids"].shape[1] :].tolist()
                stop = next((i for i, token in enumerate(new) if token in ends), None)
                text = tokenizer.decode(new[:stop], skip_special_tokens=True)
                reason = "length" if stop is None else "stop"
                tokens_out = len(new[:stop])
                answers.append({"text": text, "tokens_out": tokens_out, "finish_reason": reason})
    shared: dict[str, Any] = {"latency_s": time.monotonic() - started, "served_by": name}
    return [
        Completion(tokens_in=int(mask.sum()), **answer, **shared)
        for answer, mask in zip(answers, batch["attention_mask"], strict=True)
    ]


def chat_text(tokenizer: Any, prompt: str, thinks: bool = False) -> str:
    """Return a prompt as the model reads it: in its chat template, without thinking or with."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinks,
    )
    return text


def _own_draws(requests: Sequence[Request], device: Any) -> Any:
    """Return a logits processor whose highest score is a draw, each row's from its own generator.

    Adding Gumbel noise to log-probabilities makes their maximum a sample of them.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    sent = InProcess.takes.sent(requests[0].sampling)
    warpers: Any = [TemperatureLogitsWarper(float(sent["temperature"]))]
    if sent["top_k"]:
        warpers.append(TopKLogitsWarper(sent["top_k"]))
    if sent["top_p"] < 1:
        warpers.append(TopPLogitsWarper(sent["top_p"]))
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


ENTAILMENT = ("entailment", "neutral", "contradiction")


def entailment_prompt(text: str, claim: str) -> str:
    """Return what `entailment_local` is asked: does the text entail the claim?"""
    return json.dumps([text, claim], ensure_ascii=False)


def entailment_local(model: str, max_batch: int = 32, device: str | None = None) -> InProcess:
    """Return a cross-encoder that reads two texts and tells whether the first entails the second.

    It answers an `entailment_prompt` with the likeliest of `ENTAILMENT` and the log-probability of
    each; one without a label of its own, as contradiction in a model of two labels, is left out.

    Args:
        model: Folder or Hub id of a sequence-classification model trained on natural language
            inference; its `id2label` says which of its labels is which.
        max_batch: Most pairs read together.
        device: Such as `cuda:1`; default, the first GPU, else the CPU.
    """

    def load() -> tuple[Any, Any]:
        tokenizer, loaded = _loaded("AutoModelForSequenceClassification", model, device)
        if "entailment" not in _meanings(loaded):
            names = ", ".join(map(str, loaded.config.id2label.values()))
            raise FatalError(
                f"entailment model {model!r} tells {names} apart, and none of these is "
                "entailment: name a model trained on natural language inference, such as "
                "cross-encoder/nli-deberta-v3-base, or give its labels their names under "
                "`id2label` of its config.json"
            )
        return tokenizer, loaded

    return InProcess(model, weights_id(model), load, partial(_entailments, model), max_batch)


def _meanings(model: Any) -> list[str]:
    """Return for each label of a model, in its own order, which of `ENTAILMENT` it is."""
    named = [str(model.config.id2label[i]).lower() for i in range(model.config.num_labels)]
    known = {"entail": "entailment", "contra": "contradiction"}
    return [known.get(name[:6], "neutral") for name in named]


def _entailments(
    name: str, loaded: tuple[Any, Any], requests: Sequence[Request]
) -> list[Completion]:
    import torch

    tokenizer, model = loaded
    started, meanings = time.monotonic(), _meanings(model)
    texts, claims = zip(*(json.loads(request.prompt) for request in requests), strict=True)
    longest = min(tokenizer.model_max_length, 512)  # as such models were trained
    batch = tokenizer(
        list(texts),
        list(claims),
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=longest,
    ).to(model.device)
    with torch.inference_mode():
        logs = torch.log_softmax(model(**batch).logits.float(), dim=-1)
    answers = []
    for row, mask in zip(logs, batch["attention_mask"], strict=True):
        own = {label: [i for i, m in enumerate(meanings) if m == label] for label in ENTAILMENT}
        found = {k: float(torch.logsumexp(row[places], 0)) for k, places in own.items() if places}
        answers.append(
            Completion(
                max(found, key=lambda label: found[label]),
                tokens_in=int(mask.sum()),
                logprobs=found,
                latency_s=time.monotonic() - started,
                served_by=name,
            )
        )
    return answers


def vllm_local(model: str, device: str | None = None) -> InProcess:
    """Return a model on vLLM without a server.

    Args:
        model: Folder or Hub id.
        device: Such as `cuda:1`, of those that this process sees; default, the first.
    """

    def load() -> Any:
        try:
            from vllm import LLM
        except ImportError:
            raise FatalError(
                "vLLM is not installed; on a GPU machine: pip install -e '.[gpu]'"
            ) from None
        seen = {}
        if device is not None:  # the engine, a child process, is to see one GPU
            index, all_seen = device.rpartition(":")[2], os.environ.get("CUDA_VISIBLE_DEVICES")
            seen = {"CUDA_VISIBLE_DEVICES": all_seen.split(",")[int(index)] if all_seen else index}
        with mock.patch.dict(os.environ, seen):
            return LLM(model=model, enable_prefix_caching=True)

    return InProcess(model, weights_id(model), load, partial(_vllm_answers, model), max_batch=256)


def _vllm_answers(model: str, llm: Any, requests: Sequence[Request]) -> list[Completion]:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    started = time.monotonic()
    sent = InProcess.takes.sent(requests[0].sampling)
    thinks, settings = sent.pop("thinking") != "off", []
    for request in requests:
        longest = request.sampling.max_tokens + request.sampling.thoughts
        wanted: dict[str, Any] = {"max_tokens": longest}
        if request.choices:
            structured = StructuredOutputsParams(choice=list(request.choices))
            wanted = {"max_tokens": 1, "logprobs": 20, "structured_outputs": structured}
        elif request.schema:
            wanted["structured_outputs"] = StructuredOutputsParams(json=request.schema)
        settings.append(SamplingParams(**(sent | wanted)))
    outputs = llm.chat(
        [[{"role": "user", "content": request.prompt}] for request in requests],
        settings,
        use_tqdm=False,
        chat_template_kwargs={"enable_thinking": thinks},
    )
    latency_s, completions = time.monotonic() - started, []
    for output, request in zip(outputs, requests, strict=True):
        best = output.outputs[0]
        tokens = (best.logprobs[0] if request.choices and best.logprobs else {}).values()
        found = {(token.decoded_token or "").strip().lower(): token.logprob for token in tokens}
        completions.append(
            received(
                text=best.text,
                finish_reason=best.finish_reason,
                latency_s=latency_s,
                tokens_in=len(output.prompt_token_ids or ()),
                tokens_out=len(best.token_ids),
                tokens_cached=output.num_cached_tokens or 0,
                logprobs={word: found[word] for word in request.choices if word in found},
                served_by=model,
            )
        )
    return completions
