"""TRL's GRPO trainer without padding before a row's tokens, and so without an attention mask.

TRL puts the end of all prompts into one column and pads both sides. What stands before a row's
tokens has to be masked, and with a mask PyTorch leaves its fastest attention. Here rows begin in
the first column and are cut to the longest of the micro-batch: padding comes after the tokens,
where causal attention does not look. Log-probabilities are TRL's up to rounding, as Qwen's
positions are relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl.extras.profiling import profiling_decorator
from trl.trainer.grpo_trainer import GRPOTrainer


class UnpaddedTrainer(GRPOTrainer):
    """GRPO on text whose passes for log-probabilities take no padding before the tokens.

    Attributes:
        unpadded: Whether they do; else they are TRL's.
    """

    unpadded = True

    @profiling_decorator
    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor,
        logits_to_keep: int, batch_size: int | None = None, compute_entropy: bool = False,
        compute_aux_loss: bool = False, **more: Any,
    ) -> Any:  # fmt: skip
        if compute_aux_loss or not self.unpadded:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy,
                compute_aux_loss, **more,
            )  # fmt: skip
        size = batch_size or input_ids.size(0)
        wanted = ("log_probs", "entropy") if compute_entropy else ("log_probs",)
        parts = zip(input_ids.split(size), attention_mask.split(size), strict=True)
        found = [self._scored(model, ids, mask, logits_to_keep, wanted) for ids, mask in parts]
        logps, *entropies = (torch.cat(part) for part in zip(*found, strict=True))
        return logps, entropies[0] if entropies else None, None

    def _scored(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int, wanted: Sequence[str]
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
        with self.accelerator.autocast():
            output = model(input_ids=moved, labels=labels, fused_lm_head=True)
        # What is said of a token stands one column before it.
        back = torch.arange(ids.size(1) - kept - 1, ids.size(1) - 1, device=ids.device) - begin
        back = back.clamp(0, len(column) - 2)
        outside = mask[:, -kept:] == 0
        return [getattr(output, name).gather(1, back).masked_fill(outside, 0.0) for name in wanted]
