"""TRL's GRPO trainer with the waiting taken out of its step.

Four schedules, each with what those before it have (the setting `reward.schedule`):

- `stock`: TRL's trainer, every phase after the other.
- `fused`: no padding before the tokens (`unpadded`), and vLLM's log-probabilities are corrected by
  those of the loss's own forward pass. TRL runs one more for that, of the same result.
- `early`: a completion's reward is asked for as soon as it is written. On policy.
- `ahead`: the next batch is generated, and its rewards asked for, before this one is trained on.
  A batch is trained on at most one step after its weights; the importance-sampling correction
  (with vLLM), or the clipped ratio to the weights that wrote it (without), makes up for that.

What is logged of a step is of the batch that it trained on. A resumed training generates the
batch that was under way anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from trl.extras.profiling import profiling_context
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad

from geo_utils.training.streaming import in_background, stream_completions
from geo_utils.training.unpadded import UnpaddedTrainer

_SAMPLING = {
    "sampling_logp_difference": ("mean", "max"),
    "importance_sampling_ratio": ("min", "mean", "max"),
}
Begin = Callable[[Mapping[str, Any], str], Coroutine[Any, Any, None]]


@dataclass
class _Batch:
    """A batch under way.

    Attributes:
        rows: The prompts' columns, one row a completion.
        step: The one that will train on it, from 1.
        prompts: What TRL's `_tokenize_prompts` returns.
        written: What TRL's `_generate_single_turn` returns: tokens, and vLLM's log-probabilities.
        rewards: One row a completion, one column a reward, (B, F).
        old: Log-probabilities under the weights that wrote it, (B, T), where needed.
        metrics: Figures of its rewards, logged in its step and not in the one before.
    """

    rows: Sequence[Mapping[str, Any]]
    step: int
    prompts: Any
    written: Future[Any]
    rewards: Future[Any] = field(default_factory=Future)
    old: torch.Tensor | None = None
    metrics: list[tuple[str, float]] = field(default_factory=list)


_JUDGED: ContextVar[_Batch | None] = ContextVar("batch whose rewards are worked out", default=None)


class OverlappedTrainer(UnpaddedTrainer):
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
        self._uses = self.args.steps_per_generation * self.num_iterations
        aligned = self.args.gradient_accumulation_steps % self._uses == 0
        self._early = schedule in ("early", "ahead")
        self._fused = schedule != "stock" and corrected and aligned
        self._ahead = schedule == "ahead"
        self.unpadded = schedule != "stock"
        self._served = self.use_vllm and self.vllm_mode == "server"
        self._now: _Batch | None = None
        self._next: _Batch | None = None
        self._fetched: Any = None
        self._skip = False
        self._loss_inputs: dict[str, Any] | None = None
        self._rows: Sequence[Mapping[str, Any]] = ()
        self._sampled: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        if self._early and self.use_vllm:
            stream_completions(self.vllm_generation, self._tell)

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
        fresh = self._step % self._uses == 0 or self._buffered_inputs is None
        if self._early and self.model.training and fresh:
            step = self.state.global_step + 1
            self._now = self._next or self._produce(generation_batch, step)
            self._next = None
            if self._ahead and self._fetched and step < self.state.max_steps:
                with profiling_context(self, "generate"):
                    self._now.written.result()  # weights must not change while it is written
                self._next = self._produce(self._fetched[0][0], step + 1)
        return super()._prepare_inputs(generation_batch)

    def _produce(self, rows: Sequence[Mapping[str, Any]], step: int) -> _Batch:
        """Write a batch with the present weights, and start on its rewards."""
        if self.use_vllm and self.state.global_step != self._last_loaded_step:
            with profiling_context(self, "sync_weights"):
                self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        with profiling_context(self, "_prepare_inputs"):
            prompts = super()._tokenize_prompts([row["prompt"] for row in rows])
        self._rows = rows
        if self._ahead and self._served:
            written = in_background(self._write, prompts[0])
        else:
            written = Future()
            written.set_result(self._write(prompts[0]))
        batch = _Batch(rows, step, prompts, written)
        batch.rewards = in_background(self._reward, batch)
        if self._ahead and not self.use_vllm:
            batch.old = self._log_probabilities(prompts[0], written.result()[0])
        return batch

    def _write(self, prompts: list[list[int]]) -> Any:
        """Return completions; with vLLM reads nothing that a training step changes."""
        if not self.use_vllm:
            return super()._generate_single_turn(prompts, None, {}, self.num_generations)
        timer = profiling_context(self, "vLLM.generate")
        _, ids, ranked, _ = self.vllm_generation.generate(
            prompts=prompts, images=None, num_generations=self.args.num_generations, profiler=timer
        )
        return ids, [[token[0] for token in tokens] for tokens in ranked]

    def _reward(self, batch: _Batch) -> Any:
        _JUDGED.set(batch)  # this thread's, and what it starts on TRL's event loop
        ids = batch.written.result()[0]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        rows = [{**row, "step": batch.step} for row in batch.rows]
        return super()._calculate_rewards(rows, [r["prompt"] for r in rows], completions, ids)

    def _log_metric(self, name: str, value: float) -> None:
        batch = _JUDGED.get()
        if batch is None:
            super()._log_metric(name, value)
        else:
            batch.metrics.append((name, value))

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self._now is None or not self.model.training:
            return super()._tokenize_prompts(prompts)
        return self._now.prompts

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
        for name, value in self._now.metrics:
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
            output["old_per_token_logps"] = self._now.old
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
        found: dict[str, list[torch.Tensor]] = {"difference": [], "ratio": []}
        for apart, mask, ratio in self._sampled:
            found["difference"].append(apart[mask & ~apart.isnan()].abs())
            found["ratio"].append(ratio[mask] if ratio.shape == mask.shape else ratio.flatten())
        self._sampled = []
        values = {name: torch.cat(parts) for name, parts in found.items()}
        for name, figures in _SAMPLING.items():
            of = values[name.rpartition("_")[2]]
            for figure in figures:
                value = getattr(of, figure)().item() if of.numel() else 0.0
                self._metrics["train"][f"sampling/{name}/{figure}"].append(value)

    def _log_probabilities(self, prompts: Any, completions: Any) -> torch.Tensor:
        """Return the log-probabilities of a batch under the present weights, (B, T)."""
        size = self.args.per_device_train_batch_size
        padded = []
        for ids, side in ((prompts, "left"), (completions, "right")):
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

    def _tell(self, place: int, ids: Sequence[int]) -> None:
        text = self.processing_class.decode(ids, skip_special_tokens=True)
        asyncio.run_coroutine_threadsafe(self._begin(self._rows[place], text), self.async_loop)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._saving()
        super()._save_checkpoint(*args, **kwargs)
