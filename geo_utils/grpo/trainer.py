"""TRL's GRPO trainer with the waiting taken out of its step.

Four schedules, each with what those before it have (the setting `reward.schedule`):

- `stock`: TRL's trainer, every phase after the other.
- `fused`: no padding before the tokens, and vLLM's log-probabilities are corrected by those of the
  loss's own forward pass. TRL runs one more for that, of the same result.
- `early`: a completion's reward is asked for as soon as it is written. On policy.
- `ahead`: the next batch is generated, and its rewards asked for, before this one is trained on.
  A batch is trained on at most one step after its weights; the importance-sampling correction
  (with vLLM), or the clipped ratio to the weights that wrote it (without), makes up for that.

What is logged of a step is of the batch that it trained on. A resumed training generates the
batch that was under way anew.

TRL puts the end of all prompts into one column and pads both sides. What stands before a row's
tokens has to be masked, and with a mask PyTorch leaves its fastest attention. Without that padding
rows begin in the first column and are cut to the longest of the micro-batch: padding comes after
the tokens, where causal attention does not look. Log-probabilities are TRL's up to rounding, as
Qwen's positions are relative.

Where nothing forbids it, the completions of a group share one pass over their prompt (the setting
`reward.shared_prefix`; see `grpo.shared_prefix`). Micro-batches are then made of whole groups.

With `reward.refills`, `early` and `ahead` put other groups in place of those that teach nothing,
before the batch is trained on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate, compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trl.extras.profiling import profiling_context
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from geo_utils.grpo import shared_prefix
from geo_utils.grpo.groups import others, prompt_of, silent

log = logging.getLogger(__name__)
Tell = Callable[[int, Sequence[int]], None]
_AT_ONCE = 512  # prompts that vLLM gets together: a server's each have a thread


def stream_engine(llm: Any, tell: Tell) -> None:
    """Let colocated vLLM tell of each completion as it is finished, not when all are.

    Args:
        llm: vLLM's `LLM`; changed in place.
        tell: Called with the prompt's place in the batch and the completion's tokens; completions
            of one prompt are told under the first of its places.
    """
    places: dict[tuple[int, ...], int] = {}
    generate, step = llm.generate, llm.llm_engine.step

    def generate_and_note(prompts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        places.clear()
        for place, prompt in reversed(list(enumerate(prompts))):
            places[tuple(prompt["prompt_token_ids"])] = place
        return generate(prompts, *args, **kwargs)

    def step_and_tell() -> Any:
        outputs = step()
        for output in outputs:
            place = places.get(tuple(output.prompt_token_ids or ()))
            if output.finished and place is not None:
                for completion in output.outputs:
                    tell(place, completion.token_ids)
        return outputs

    llm.generate, llm.llm_engine.step = generate_and_note, step_and_tell


def stream_server(client: Any, tell: Tell) -> None:
    """Ask for each prompt by itself, all at once: a server answers a request as a whole.

    Args:
        client: TRL's client of a vLLM server; changed in place.
        tell: As in `stream_engine`.
    """
    generate = client.generate

    def one_by_one(prompts: Sequence[Any], features: Any = None, **kwargs: Any) -> Any:
        if features is not None or not prompts:
            return generate(prompts=prompts, features=features, **kwargs)

        def one(index: int) -> Any:
            answer = generate(prompts=[prompts[index]], **kwargs)
            for ids in answer["completion_ids"]:
                tell(index * kwargs.get("n", 1), ids)
            return answer

        calls = [in_background(one, index) for index in range(len(prompts))]
        answers = [call.result() for call in calls]
        return {
            name: None if answers[0][name] is None else [row for a in answers for row in a[name]]
            for name in answers[0]
        }

    client.generate = one_by_one


def in_background(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """Run something in a thread that keeps neither the process nor an interrupt waiting."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def row_scores(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int, wanted: Sequence[str]
) -> list[torch.Tensor]:
    """Return figures of the last tokens, (B, kept) each, 0 where a token does not count.

    Args:
        model: The policy.
        ids: Prompts and completions, (B, L).
        mask: Whether a token counts, (B, L); in each row, those that do follow each other.
        kept: How many of the columns are completions.
        wanted: Fields of the output of TRL's fused head.
    """
    begin, lengths = mask.argmax(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)
    column = torch.arange(int(lengths.max()), device=ids.device)
    before = (begin + column).clamp(max=ids.size(1) - 1)  # where TRL has the token
    moved = ids.gather(1, before)
    scored = (column < lengths) & (before >= ids.size(1) - kept)
    labels = moved.masked_fill(~scored, -100)
    output = model(input_ids=moved, labels=labels, fused_lm_head=True)
    # What is said of a token stands one column before it.
    back = torch.arange(ids.size(1) - kept - 1, ids.size(1) - 1, device=ids.device) - begin
    back = back.clamp(0, len(column) - 2)
    outside = mask[:, -kept:] == 0
    return [getattr(output, name).gather(1, back).masked_fill(outside, 0.0) for name in wanted]


@contextmanager
def _without_adapter(trainer: Any) -> Iterator[None]:
    """Let a policy's adapter do nothing, in the trainer and, once it is synced, in vLLM."""
    off = [weight for name, weight in trainer.model.named_parameters() if ".lora_B." in name]
    kept = [weight.detach().clone() for weight in off]
    with torch.no_grad():
        for weight in off:
            weight.zero_()
    trainer._last_loaded_step = -1  # what vLLM holds is another policy
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(off, kept, strict=True):
                weight.copy_(before)
        trainer._last_loaded_step = -1


Begin = Callable[[Mapping[str, Any], str], Coroutine[Any, Any, None]]


@dataclass
class _Batch:
    """A batch under way.

    Attributes:
        rows: The prompts' columns, one row per completion.
        step: The one that will train on it, from 1.
        prompts: What TRL's `_tokenize_prompts` returns.
        written: What TRL's `_generate_single_turn` returns: tokens, and vLLM's log-probabilities.
        texts: What is written, as text.
        rewards: One row per completion, one column per reward, (B, F).
        old: Each completion's log-probabilities under the weights that wrote it, where needed.
        metrics: Figures of its rewards, logged in its step and not in the one before.
    """

    rows: Sequence[Mapping[str, Any]]
    step: int
    prompts: Any
    written: Future[Any]
    texts: Future[list[str]]
    rewards: Future[Any] = field(default_factory=Future)
    old: list[torch.Tensor] | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def take(self, places: Sequence[int], other: _Batch, size: int) -> None:
        """Put another batch's groups in place of some.

        Args:
            places: Numbers of the groups that go.
            other: Brings as many.
            size: Completions a group.
        """
        gone = [place * size + i for place in places for i in range(size)]

        def spliced(own: Any, new: Any) -> Any:
            found = list(own)
            for row, value in zip(gone, new, strict=True):
                found[row] = value
            return found

        both = zip(self.written.result(), other.written.result(), strict=True)
        self.written = settled([own and spliced(own, new) for own, new in both])
        self.texts = settled(spliced(self.texts.result(), other.texts.result()))
        rewards = spliced(self.rewards.result(), other.rewards.result())
        self.rewards = settled(torch.stack(rewards))
        self.rows = spliced(self.rows, other.rows)
        self.prompts = spliced(self.prompts[0], other.prompts[0]), *self.prompts[1:]
        self.old = self.old and spliced(self.old, other.old)
        for name in _SUMMED & other.metrics.keys():
            self.metrics[name] += other.metrics[name]


_SUMMED = {"reward/engine_calls", "reward/seconds"}  # over the rounds of a step


def settled(value: Any) -> Future[Any]:
    """Return a future that has its result."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


_JUDGED: ContextVar[_Batch | None] = ContextVar("batch whose rewards are worked out", default=None)


class OverlappedTrainer(GRPOTrainer):
    """GRPO on text by one of the schedules.

    Attributes:
        unpadded: Whether the passes for log-probabilities take no padding before the tokens.
        prompts: How they take a group's prompt: `flex` or `dense`, once, as `grpo.shared_prefix`
            has it; or `each`, with every completion.
        prompts_apart: Why with every completion, where that was not asked for.
    """

    args: Any  # TRL's are narrower than the base class says
    model: Any
    processing_class: Any
    pad_to_multiple_of: Any
    num_generations: Any
    _buffered_inputs: Any

    def __init__(
        self,
        *args: Any,
        schedule: str,
        begin: Begin,
        saving: Callable[[], None],
        resumed: Path | None = None,
        prompts: str = "each",
        prompts_apart: str | None = None,
        refills: int = 0,
        main: int = 0,
        **kwargs: Any,
    ):
        """Make the trainer.

        Args:
            *args: Of TRL's trainer.
            schedule: See the module.
            begin: Called with a row and a completion for it that is written; asks for its reward
                without waiting for it, on TRL's event loop.
            saving: Called before a checkpoint is written.
            resumed: The checkpoint that is gone on from.
            prompts: `each`; `flex` or `dense`; or `auto`, which is `flex` on a GPU and `dense` on
                a CPU, unless the model forbids it.
            prompts_apart: What forbids it already.
            refills: Most times in a step that groups which teach nothing are replaced.
            main: Column of the reward that has to differ in a group.
            **kwargs: Of TRL's trainer.

        Raises:
            ValueError: The model forbids to share prompts, and that was asked for.
        """
        super().__init__(*args, **kwargs)
        if refills and self.accelerator.num_processes > 1:
            raise ValueError(f"reward.refills={refills}: only one process can; set 0")
        self._refills, self._main = refills, main
        self._begin, self._saving, self._resumed = begin, saving, resumed
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        self._uses = self.args.steps_per_generation * self.num_iterations
        aligned = self.args.gradient_accumulation_steps % self._uses == 0
        self._ahead = schedule == "ahead"
        self._early = self._ahead or schedule == "early"
        self.unpadded = schedule != "stock"
        self._fused = self.unpadded and corrected and aligned
        self._served = self.use_vllm and self.vllm_mode == "server"
        self._now: _Batch | None = None
        self._next: _Batch | None = None
        self._fetched: Any = None
        self._skip = False
        self._loss_inputs: dict[str, Any] | None = None
        self._rows: Sequence[Mapping[str, Any]] = ()
        self._sampled: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._decode = self.processing_class.batch_decode
        if self._early:
            self.processing_class.batch_decode = self._decoded
        self.prompts_apart = prompts_apart
        self.prompts = self._way(prompts)
        if self._early and self.use_vllm:
            if self._served:
                stream_server(self.vllm_generation.vllm_client, self._tell)
            else:
                stream_engine(self.vllm_generation.llm, self._tell)

    def _way(self, asked: str) -> str:
        """Return how prompts go through the model, and make it fit for it."""
        if asked == "each":
            return asked
        base = self.accelerator.unwrap_model(self.model)
        problem = shared_prefix.obstacle(base)
        if self.aux_loss_enabled:
            problem = "the balance of its experts counts prompts as well"
        if not self.unpadded:
            problem = "the schedule is TRL's own"
        if problem and asked != "auto":
            raise ValueError(f"reward.shared_prefix={asked!r}: {problem}; choose auto or each")
        if problem:
            self.prompts_apart = problem
            log.warning("a prompt is computed with each of its completions: %s", problem)
            return "each"
        on_gpu = self.accelerator.device.type == "cuda"
        way = {"auto": "flex" if on_gpu else "dense"}.get(asked, asked)
        if way == "flex":
            shared_prefix.take_block_masks(base)
        return way

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Go on in the epoch of a checkpoint: each epoch draws its own order of prompts."""
        sampler: Any = super()._get_train_sampler(*args, **kwargs)
        if self._resumed is not None:
            state = json.loads((self._resumed / "trainer_state.json").read_text(encoding="utf-8"))
            for _ in range(int(state["epoch"] + 1e-6)):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return sampler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Look one batch ahead; at the end of an epoch there is none."""
        fetch = super().get_batch_samples
        if not self._ahead:
            return fetch(epoch_iterator, num_batches, device)
        found = self._fetched or fetch(epoch_iterator, num_batches, device)
        following = fetch(epoch_iterator, num_batches, device)
        self._fetched = following if following[0] else None
        return found

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Train on a micro-batch, timed."""
        with profiling_context(self, "training_step"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        fresh = self._step % self._uses == 0 or self._buffered_inputs is None
        if self._early and self.model.training and fresh:
            step = self.state.global_step + 1
            self._now = self._next or self._produce(generation_batch, step)
            self._next = None
            rounds = self._refilled(self._now)
            next(rounds, None)
            if self._ahead and self._fetched and step < self.state.max_steps:
                with profiling_context(self, "generate"):
                    self._now.written.result()  # weights must not change while it is written
                self._next = self._produce(self._fetched[0][0], step + 1)
            for _ in rounds:
                pass
            generation_batch = list(self._now.rows)
        inputs = super()._prepare_inputs(generation_batch)
        if self.prompts == "each" or not (fresh and self.model.training):
            return inputs
        self._buffered_inputs = shared_prefix.whole_groups(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _refilled(self, batch: _Batch) -> Iterator[None]:
        """Put other groups in place of those that teach nothing, round by round.

        Yields when a round is written and its rewards are asked for.
        """
        if not self._refills:
            return
        size, tried, replaced = int(self.args.num_generations), set(map(prompt_of, batch.rows)), 0
        for left in range(self._refills, -1, -1):
            with profiling_context(self, "_calculate_rewards"):
                rewards = batch.rewards.result()
            without = silent(rewards[:, self._main], size)
            rows = others(self.train_dataset, tried, len(without), f"{self.args.seed}|{batch.step}")
            if not rows or not left:
                for number in without:
                    rewards[number * size : (number + 1) * size] = torch.nan
                batch.metrics |= {"groups/replaced": replaced, "groups/silent": len(without)}
                break
            if self._next is not None:  # a server would tell of it under these rows
                self._next.written.result()
            other = self._produce([row for row in rows for _ in range(size)], batch.step)
            with profiling_context(self, "generate"):
                other.written.result()
            yield
            batch.take(without[: len(rows)], other, size)
            tried |= set(map(prompt_of, rows))
            replaced += len(rows)

    def _produce(self, rows: Sequence[Mapping[str, Any]], step: int) -> _Batch:
        """Write a batch with the present weights, and start on its rewards."""
        self._sync()
        with profiling_context(self, "_prepare_inputs"):
            prompts = self._tokens([row["prompt"] for row in rows])
        self._rows = rows
        if self._ahead and self._served:
            written = in_background(self._write, prompts[0])
        else:
            written = settled(self._write(prompts[0]))
        # TRL makes a tensor of each prompt, which takes five times as long from a list.
        quick = [np.array(ids) for ids in prompts[0]], *prompts[1:]
        texts = in_background(lambda: self._decode(written.result()[0], skip_special_tokens=True))
        batch = _Batch(rows, step, quick, written, texts)
        batch.rewards = in_background(self._reward, batch)
        if self._ahead and not self.use_vllm:
            batch.old = self._log_probabilities(prompts[0], written.result()[0])
        return batch

    def _sync(self) -> None:
        """Send vLLM the present weights, if it has others."""
        if self.use_vllm and self.state.global_step != self._last_loaded_step:
            with profiling_context(self, "sync_weights"):
                self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step

    def write_now(
        self, rows: Sequence[Mapping[str, Any]], seed: int, before: bool = False
    ) -> list[str]:
        """Return a completion for each row by the present weights, between two steps.

        What the training draws does not hang on it.

        Args:
            rows: The prompts.
            seed: Of the draw.
            before: By the weights before the training.
        """
        if self._next is not None:
            self._next.written.result()  # by the weights that it was begun with
        on_gpu = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        size = _AT_ONCE if self.use_vllm else self.args.generation_batch_size
        telling, self._rows, texts = self._rows, (), []
        with _without_adapter(self) if before else nullcontext(), torch.random.fork_rng(on_gpu):
            self._sync()
            torch.manual_seed(seed)
            for start in range(0, len(rows), size):
                prompts = [row["prompt"] for row in rows[start : start + size]]
                ids = self._write(super()._tokenize_prompts(prompts)[0], 1)[0]
                texts += self.processing_class.batch_decode(ids, skip_special_tokens=True)
        self._rows = telling
        return texts

    def _write(self, prompts: list[list[int]], n: int | None = None) -> Any:
        """Return completions; with vLLM reads nothing that a training step changes.

        Args:
            prompts: Tokens of each, every prompt as often as it is to be answered.
            n: How often that is, if not as in a group.
        """
        n = n or self.args.num_generations
        if not self.use_vllm:
            return super()._generate_single_turn(prompts, None, {}, n)
        timer = profiling_context(self, "vLLM.generate")
        _, ids, ranked, _ = self.vllm_generation.generate(
            prompts=prompts, images=None, num_generations=n, profiler=timer
        )
        return ids, [[token[0] for token in tokens] for tokens in ranked]

    def _reward(self, batch: _Batch) -> Any:
        _JUDGED.set(batch)  # this thread's, and what it starts on TRL's event loop
        ids = batch.written.result()[0]
        completions = [[{"role": "assistant", "content": text}] for text in batch.texts.result()]
        rows = [{**row, "step": batch.step} for row in batch.rows]
        return super()._calculate_rewards(rows, [r["prompt"] for r in rows], completions, ids)

    def _decoded(self, ids: Any, *args: Any, **options: Any) -> Any:
        """Decode; what TRL asks for a second time was decoded for its rewards."""
        now = self._now
        if now is not None and now.written.done() and ids is now.written.result()[0]:
            return now.texts.result()
        return self._decode(ids, *args, **options)

    def _log_metric(self, name: str, value: float) -> None:
        batch = _JUDGED.get()
        if batch is None:
            super()._log_metric(name, value)
        else:
            batch.metrics[name] = value

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self._now is None or not self.model.training:
            return self._tokens(prompts)
        return self._now.prompts

    def _tokens(self, prompts: list[Any]) -> Any:
        """Return what TRL's `_tokenize_prompts` does; a prompt that is repeated is read once."""
        if not self.unpadded:
            return super()._tokenize_prompts(prompts)
        fresh = [i == 0 or prompt != prompts[i - 1] for i, prompt in enumerate(prompts)]
        ids, *more = super()._tokenize_prompts(list(compress(prompts, fresh)))
        return [ids[number - 1] for number in accumulate(fresh)], *more

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if self._now is None or not self.model.training:
            return super()._generate_single_turn(*args, **kwargs)
        with profiling_context(self, "generate"):  # which only a server has still to finish
            return self._now.written.result()

    def _calculate_rewards(self, *columns: Any) -> Any:
        if self._now is None or not self.model.training:
            return super()._calculate_rewards(*columns)
        with profiling_context(self, "_calculate_rewards"):
            found = self._now.rewards.result()
        for name, value in self._now.metrics.items():
            super()._log_metric(name, value)
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._skip = self._fused and self.model.training
        output = super()._generate_and_score_completions(inputs)
        if self._fused and self.model.training:
            del output["old_per_token_logps"]
            for name in [n for n in self._metrics["train"] if n.startswith("sampling/")]:
                self._metrics["train"][name].pop()  # of the pass that was left out
        elif self._now is not None and self._now.old is not None and self.model.training:
            size = self.pad_to_multiple_of
            output["old_per_token_logps"] = pad(self._now.old, 0, "right", size)
        if self.prompts != "each":
            rows = torch.arange(len(output["prompt_ids"]), device=output["prompt_ids"].device)
            output["group"] = rows // self.num_generations
        if "importance_sampling_ratio" in output and not self._fused and self.model.training:
            ratio, mask = output["importance_sampling_ratio"], output["completion_mask"].bool()
            self._log_effective(ratio[mask] if ratio.shape == mask.shape else ratio.flatten())
        return output

    def _get_per_token_logps_and_entropies(self, *columns: Any, **options: Any) -> Any:
        model, ids, mask, kept = columns
        if self._skip:  # TRL's own pass for the correction; a ratio of NaN counts as 1
            self._skip = False
            return torch.full((len(ids), kept), torch.nan, device=ids.device), None, None
        with profiling_context(self, "_get_per_token_logps_and_entropies"):
            if self.unpadded and not options.get("compute_aux_loss"):
                size = options.get("batch_size") or len(ids)
                wanted = ["log_probs"] + ["entropy"] * bool(options.get("compute_entropy"))
                parts = zip(ids.split(size), mask.split(size), strict=True)
                scored = [self._scored(model, *part, kept, wanted) for part in parts]
                logps, *entropies = (torch.cat(part) for part in zip(*scored, strict=True))
                found = logps, entropies[0] if entropies else None, None
            else:
                found = super()._get_per_token_logps_and_entropies(*columns, **options)
        if self._loss_inputs is not None:
            self._correct(self._loss_inputs, found[0].detach())
        return found

    def _scored(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int, wanted: Sequence[str]
    ) -> list[torch.Tensor]:
        with self.accelerator.autocast():
            if self.prompts == "each":
                return row_scores(model, ids, mask, kept, wanted)
            return shared_prefix.scores(model, ids, mask, kept, wanted, self.prompts)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._loss_inputs = inputs if self._fused and self.model.training else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None

    def _correct(self, inputs: dict[str, Any], trained: torch.Tensor) -> None:
        """Set the importance-sampling ratio as TRL defines it, p of the trainer over p of vLLM.

        Args:
            inputs: The micro-batch; gets `importance_sampling_ratio`, (B, T) or (B, 1).
            trained: Log-probabilities by the trainer, (B, T).
        """
        mask = inputs["completion_mask"]
        apart = trained - inputs["sampling_per_token_logps"]
        difference = torch.nan_to_num(apart * mask)
        if self.vllm_importance_sampling_mode.startswith("sequence"):
            difference = difference.sum(dim=-1, keepdim=True)
        ratio = torch.exp(difference)
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if self.vllm_importance_sampling_mode.endswith("truncate"):
            ratio = torch.clamp(ratio, min=low, max=high)
        else:
            kept = (ratio >= (low or 0.0)) & (ratio <= (torch.inf if high is None else high))
            ratio = torch.where(kept, ratio, 0.0)
        inputs["importance_sampling_ratio"] = ratio
        self._sampled.append((apart, mask.bool(), ratio))
        if len(self._sampled) == self._uses:
            self._log_sampling()

    def _log_sampling(self) -> None:
        """Log what TRL logs of the correction, of all micro-batches of a generation."""
        apart = torch.cat([a[mask & ~a.isnan()].abs() for a, mask, _ in self._sampled])
        ratio = torch.cat(
            [r[mask] if r.shape == mask.shape else r.flatten() for _, mask, r in self._sampled]
        )
        self._sampled = []
        for name, values, figures in (
            ("sampling_logp_difference", apart, ("mean", "max")),
            ("importance_sampling_ratio", ratio, ("min", "mean", "max")),
        ):
            for figure in figures:
                value = getattr(values, figure)().item() if values.numel() else 0.0
                self._metrics["train"][f"sampling/{name}/{figure}"].append(value)
        self._log_effective(ratio)

    def _log_effective(self, ratio: torch.Tensor) -> None:
        """Log what share of equal weights the importance weights of all tokens are worth."""
        share = ratio.sum() ** 2 / (max(ratio.numel(), 1) * (ratio**2).sum()).clamp(min=1e-9)
        # Not under `sampling/`: what TRL logs there is taken back where its pass is left out.
        self._metrics["train"]["effective_sample_size"].append(share.item())

    def _log_probabilities(self, prompts: Any, completions: Any) -> list[torch.Tensor]:
        """Return each completion's log-probabilities under the present weights."""

        def padded(rows: Sequence[Sequence[int]], side: str) -> torch.Tensor:
            """Return tokens and mask, (2, B, columns)."""
            ids = [torch.tensor(row) for row in rows]
            masks, size = [torch.ones_like(row) for row in ids], self.pad_to_multiple_of
            both = pad(ids, self._tokenizer.pad_token_id, side, size), pad(masks, 0, side, size)
            return torch.stack(both).to(self.accelerator.device)

        prompt, completion = padded(prompts, "left"), padded(completions, "right")
        tokens, mask = torch.cat([prompt, completion], dim=2)
        kept, size = completion.size(2), self.args.per_device_train_batch_size
        score = self._get_per_token_logps_and_entropies
        quiet = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), quiet:
            found = score(self.model, tokens, mask, kept, batch_size=size)[0]
        return [row[: len(ids)] for row, ids in zip(found, completions, strict=True)]

    def _tell(self, place: int, ids: Sequence[int]) -> None:
        if not self._rows:  # what is written is not of the training
            return
        text = self.processing_class.decode(ids, skip_special_tokens=True)
        asyncio.run_coroutine_threadsafe(self._begin(self._rows[place], text), self.async_loop)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._saving()
        super()._save_checkpoint(*args, **kwargs)
