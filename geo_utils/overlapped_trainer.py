"""TRL's GRPO trainer with the waiting taken out of its step.

Four schedules, each with what those before it have (the setting `reward.schedule`):

- `stock`: TRL's order, every phase after the other.
- `fused`: vLLM's log-probabilities are corrected by those of the loss's own forward pass. TRL runs
  a pass of its own for that before it, with the same weights and so with the same result.
- `early`: a completion's reward is asked for as soon as it is written. On policy.
- `ahead`: the next batch is generated, and its rewards asked for, before this one is trained on.
  A batch is trained on at most one step after its weights; the importance-sampling correction
  (with vLLM), or the clipped ratio to the weights that wrote it (without), makes up for that.

What is logged of a step's completions, their lengths above all, is of the batch it generated; its
rewards are of the batch that it trained on. A resumed training generates the batch that was under
way anew.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from trl.extras.profiling import profiling_context
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from geo_utils.streaming import stream_completions

Begin = Callable[[Mapping[str, Any], str], Coroutine[Any, Any, None]]


@dataclass
class _Batch:
    """A batch under way.

    Attributes:
        generated: What TRL's `_generate` returns.
        rewards: One row a completion, one column a reward, (B, F).
        written: Log-probabilities under the weights that wrote it, (B, T), where needed.
    """

    generated: Future[Any]
    rewards: Future[Any]
    written: torch.Tensor | None = None


class OverlappedTrainer(GRPOTrainer):
    """GRPO by one of the schedules."""

    args: Any  # TRL's are narrower than the base class says
    model: Any
    processing_class: Any
    pad_to_multiple_of: Any

    def __init__(
        self, *args: Any, schedule: str, begin: Begin, saving: Callable[[], None], **kwargs: Any
    ):
        """Make the trainer.

        Args:
            *args: Of TRL's trainer.
            schedule: See the module.
            begin: Called with a row and a completion for it that is written; asks for its reward
                without waiting for it, on TRL's event loop.
            saving: Called before a checkpoint is written.
            **kwargs: Of TRL's trainer.
        """
        super().__init__(*args, **kwargs)
        self._begin, self._saving = begin, saving
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        uses = self.args.steps_per_generation * self.num_iterations
        aligned = self.args.gradient_accumulation_steps % uses == 0
        self._early = schedule in ("early", "ahead")
        self._fused = schedule != "stock" and corrected and aligned
        self._ahead = schedule == "ahead"
        self._served = self.use_vllm and self.vllm_mode == "server"
        self._now: _Batch | None = None
        self._next: _Batch | None = None
        self._fetched: Any = None
        self._skip = False
        self._loss_inputs: dict[str, Any] | None = None
        self._rows: Sequence[Mapping[str, Any]] = ()
        self._asked = threading.Event()
        if self._early and self.use_vllm:
            stream_completions(self.vllm_generation, self._asked.set, self._written)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Look one batch ahead; at the end of an epoch there is none."""
        fetch = super().get_batch_samples
        if not self._ahead:
            return fetch(epoch_iterator, num_batches, device)
        found = self._fetched or fetch(epoch_iterator, num_batches, device)
        self._fetched = fetch(epoch_iterator, num_batches, device)
        if not self._fetched[0]:
            self._fetched = None
        return found

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Train on a micro-batch, timed."""
        with profiling_context(self, "training_step"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        every = self.args.steps_per_generation * self.num_iterations
        fresh = self._step % every == 0 or self._buffered_inputs is None
        if self._early and self.model.training and fresh:
            self._now = self._next or self._produce(generation_batch)
            self._next = None
            more = self.state.global_step + 1 < self.state.max_steps
            if self._ahead and self._fetched and more:
                self._now.generated.result()  # the weights must not change while it is written
                self._next = self._produce(self._fetched[0][0])
        return super()._prepare_inputs(generation_batch)

    def _produce(self, rows: Sequence[Mapping[str, Any]]) -> _Batch:
        """Write a batch with the present weights, and start on its rewards."""
        if self.use_vllm and self.state.global_step != self._last_loaded_step:
            with profiling_context(self, "sync_weights"):
                self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        self._rows = rows
        prompts = [row["prompt"] for row in rows]
        write = super()._generate
        if self._ahead and self._served:
            self._asked.clear()
            generated = in_background(write, prompts)
            while not self._asked.wait(0.1) and not generated.done():
                continue  # it still reads the trainer's state
        else:
            generated = Future()
            generated.set_result(write(prompts))
        batch = _Batch(generated, in_background(self._reward, rows, prompts, generated))
        if self._ahead and not self.use_vllm:
            batch.written = self._log_probabilities(generated.result())
        return batch

    def _reward(self, rows: Any, prompts: Any, generated: Future[Any]) -> Any:
        found = generated.result()
        return super()._calculate_rewards(rows, prompts, found[3], found[1])

    def _generate(self, prompts: list[Any]) -> Any:
        if self._now is None or not self.model.training:
            return super()._generate(prompts)
        with profiling_context(self, "generate"):  # which only a server has still to finish
            return self._now.generated.result()

    def _calculate_rewards(self, *columns: Any) -> Any:
        if self._now is None or not self.model.training:
            return super()._calculate_rewards(*columns)
        with profiling_context(self, "_calculate_rewards"):
            return self._now.rewards.result()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._skip = self._fused and self.model.training
        output = super()._generate_and_score_completions(inputs)
        if self._fused and self.model.training:
            del output["old_per_token_logps"]
            for name in [n for n in self._metrics["train"] if n.startswith("sampling/")]:
                self._metrics["train"][name].pop()  # of the pass that was left out
        elif self._now is not None and self._now.written is not None:
            output["old_per_token_logps"] = self._now.written
        return output

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if self._skip:  # TRL's own pass for the correction; a ratio of NaN counts as 1
            self._skip = False
            shape = (input_ids.size(0), logits_to_keep)
            return torch.full(shape, torch.nan, device=input_ids.device), None, None
        found = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if self._loss_inputs is not None:
            self._correct(self._loss_inputs, found[0].detach())
        return found

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
        difference = torch.nan_to_num((trained - inputs["sampling_per_token_logps"]) * mask)
        tokens = difference[mask.bool()].abs()
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
        logged = self._metrics["train"]
        logged["sampling/sampling_logp_difference/mean"].append(tokens.mean().item())
        logged["sampling/importance_sampling_ratio/mean"].append(ratio.mean().item())

    def _log_probabilities(self, generated: Any) -> torch.Tensor:
        """Return the log-probabilities of a batch under the present weights, (B, T)."""
        size = self.args.per_device_train_batch_size
        padded = []
        for ids, side in zip(generated[:2], ("left", "right"), strict=True):
            rows = [torch.tensor(row) for row in ids]
            values = self._tokenizer.pad_token_id
            padded.append((
                pad(rows, values, side, self.pad_to_multiple_of),
                pad([torch.ones_like(row) for row in rows], 0, side, self.pad_to_multiple_of),
            ))  # fmt: skip
        device = self.accelerator.device
        tokens, mask = (torch.cat(part, dim=1).to(device) for part in zip(*padded, strict=True))
        kept = padded[1][0].size(1)
        quiet = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), quiet:
            found: torch.Tensor = self._get_per_token_logps_and_entropies(
                self.model, tokens, mask, kept, batch_size=size
            )[0]
        return found

    def _written(self, place: int, ids: Sequence[int]) -> None:
        text = self.processing_class.decode(ids, skip_special_tokens=True)
        asyncio.run_coroutine_threadsafe(self._begin(self._rows[place], text), self.async_loop)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._saving()
        super()._save_checkpoint(*args, **kwargs)


def in_background(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """Run something in a thread that does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
