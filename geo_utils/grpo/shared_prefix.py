"""A group's prompt goes through the model once, and not once with every completion.

The completions of one prompt lie behind it in one row. Each attends to the prompt and to itself,
and its positions go on where the prompt ends:

    prompt without its last token | that token, completion 1 without its last | that token, ...
    positions 0 to p-2            | p-1, p, p+1, ...                          | p-1, p, p+1, ...

What a branch says at its k-th token is the log-probability of the completion's k-th. So every
log-probability, loss and gradient is what it is when each completion has a copy of the prompt to
itself, up to rounding. Several groups lie in one row, and see nothing of each other.

There are two ways to compute it: `flex`, PyTorch's FlexAttention, skips the blocks that nobody
sees (a GPU only: it has no backward pass on a CPU); `dense` masks them, in plain attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK = 128  # FlexAttention's, which its backward pass wants a row to be a multiple of
_ATTENTION = "sdpa_or_flex"
_SLAB = 4096  # rows of a mask that are held at once


@dataclass(frozen=True)
class Packed:
    """Prompts and completions in one row of L tokens.

    Attributes:
        ids: Tokens, (1, L).
        positions: Of each in its own prompt and completion, (1, L).
        labels: The token that each says the log-probability of; -100 for none, (1, L).
        segment: Number of the prompt or completion that a token belongs to, -1 for padding, (L,).
        prompt: Number of the prompt that it sees, its own for a prompt's tokens, (L,).
        places: Where in the row a completion's token is spoken of, (B, T); 0 where there is none.
        known: Whether there is one, (B, T).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segment: torch.Tensor
    prompt: torch.Tensor
    places: torch.Tensor
    known: torch.Tensor

    def unpacked(self, figures: torch.Tensor) -> torch.Tensor:
        """Return figures of the row's tokens, (1, L), as those of the completions, (B, T)."""
        return figures[0][self.places].masked_fill(~self.known, 0.0)


def _sees(
    segment: torch.Tensor, prompt: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """Tell which tokens see which: what comes before, in the own segment or its prompt.

    Padding sees padding, so that no row of the attention is empty.
    """
    theirs = segment[key]
    return (query >= key) & ((theirs == segment[query]) | (theirs == prompt[query]))


def pack(ids: torch.Tensor, mask: torch.Tensor, kept: int, multiple: int = 1) -> Packed:
    """Lay rows that share a prompt behind it, each prompt once.

    Rows share it where they follow each other; a prompt whose rows are apart is there twice.

    Args:
        ids: Prompts, padded on their left, and completions, padded on their right, (B, P + T).
        mask: Whether a token counts, (B, P + T).
        kept: T.
        multiple: The row is padded to a multiple of it.
    """
    width = ids.size(1)
    before = width - kept
    own, masked = ids[:, :before], mask[:, :before]
    same = ((own[1:] == own[:-1]) & (masked[1:] == masked[:-1])).all(dim=1)
    told = torch.stack([masked.sum(1), mask[:, before:].sum(1), same.new_zeros(len(ids)).long()])
    told[2, 1:] = same
    lengths: list[tuple[int, int, int]] = list(zip(*told.tolist(), strict=True))

    rows: list[tuple[np.ndarray[Any, Any], ...]] = []  # per segment: sources, positions, numbers
    places = np.zeros((len(lengths), kept), np.int64)
    length = number = shared = 0

    def append(row: int, columns: range, first: int, segment: int, prompt: int) -> None:
        nonlocal length
        source = row * width + np.arange(columns.start, columns.stop)
        position = np.arange(first, first + len(columns))
        rows.append((source, position, *np.full((2, len(columns)), [[segment], [prompt]])))
        length += len(columns)

    fresh = True  # whether the row's prompt is still to be laid down
    for row, (prompt, completion, follows) in enumerate(lengths):
        fresh = fresh or not follows
        if not completion:
            continue
        if fresh:
            shared, fresh = number, False
            append(row, range(before - prompt, before - 1), 0, shared, shared)
            number += 1
        places[row, :completion] = np.arange(length, length + completion)
        append(row, range(before - 1, before - 1 + completion), prompt - 1, number, shared)
        number += 1

    padding = -length % multiple if length else multiple
    rows.append(tuple(np.full((4, padding), [[0], [0], [-1], [-1]])))
    columns = np.stack([np.concatenate(part) for part in zip(*rows, strict=True)])
    source, positions, segment, prompt_of = torch.from_numpy(columns).to(ids.device)
    flat = ids.reshape(-1)
    spoken = segment != prompt_of
    following = flat[(source + 1).clamp(max=len(flat) - 1)]
    return Packed(
        ids=flat[source][None],
        positions=positions[None],
        labels=torch.where(spoken, following, -100)[None],
        segment=segment.int(),
        prompt=prompt_of.int(),
        places=torch.from_numpy(places).to(ids.device),
        known=mask[:, before:].bool(),
    )


def dense_mask(packed: Packed) -> torch.Tensor:
    """Return who sees whom, (1, 1, L, L)."""
    every = torch.arange(packed.ids.size(1), device=packed.ids.device)
    return _sees(packed.segment, packed.prompt, every[:, None], every[None, :])[None, None]


def block_mask(packed: Packed) -> BlockMask:
    """Return who sees whom for FlexAttention; the row's length is a multiple of `BLOCK`.

    Blocks that are seen whole need no mask, and those that nobody sees are left out. The mask is
    counted in slabs, so that a long row needs no square of its length.
    """
    length, segment, prompt = packed.ids.size(1), packed.segment, packed.prompt
    every = torch.arange(length, device=packed.ids.device)
    seen = torch.cat(
        [
            _sees(segment, prompt, slab[:, None], every[None, :])
            .view(-1, BLOCK, length // BLOCK, BLOCK)
            .sum(dim=(1, 3), dtype=torch.int32)
            for slab in every.split(_SLAB)
        ]
    )
    whole = seen == BLOCK * BLOCK

    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return _sees(segment, prompt, query, key)

    made: BlockMask = BlockMask.from_kv_blocks(
        *_ordered((seen > 0) & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(length, length),
    )
    return made


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many blocks of each row are meant, and all columns with those first."""
    blocks = blocks[None, None].int()
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.int().contiguous()


def scores(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int, wanted: Sequence[str], way: str
) -> list[torch.Tensor]:
    """Return figures of the completions' tokens, (B, T) each, 0 where a token does not count.

    Args:
        model: The policy, with TRL's fused head, which sees the completions' tokens alone.
        ids: Prompts and completions as in `pack`.
        mask: Likewise.
        kept: Likewise.
        wanted: Fields of the output of TRL's fused head.
        way: `flex` or `dense`.
    """
    packed = pack(ids, mask, kept, BLOCK if ids.is_cuda or way == "flex" else 1)
    # Without a mask Transformers takes positions that begin anew for another document.
    seen = block_mask(packed) if way == "flex" else dense_mask(packed)
    output = model(
        input_ids=packed.ids,
        position_ids=packed.positions,
        attention_mask=seen,
        shift_labels=packed.labels,
        fused_lm_head=True,
    )
    return [packed.unpacked(getattr(output, name)) for name in wanted]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **more: Any,
) -> Any:
    """Attend by FlexAttention where the mask is one of blocks, else as Transformers does."""
    one = flex_attention_forward if isinstance(attention_mask, BlockMask) else None
    return (one or sdpa_attention_forward)(module, query, key, value, attention_mask, **more)


def _base(model: Any) -> Any:
    """Return a model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def take_block_masks(model: Any) -> None:
    """Let a model take FlexAttention's masks beside those of plain attention.

    The mask decides, so that generation and TRL's own passes stay as they are, and a layer that
    is computed again for its gradient finds its own way.

    Args:
        model: A model of Transformers, with or without PEFT's wrapper; changed in place.
    """
    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    _base(model).config._attn_implementation = _ATTENTION


def obstacle(model: Any) -> str | None:
    """Return what in a model forbids it to share prompts; None where nothing does.

    Args:
        model: A model of Transformers, with or without PEFT's wrapper.
    """
    base = _base(model)
    config = base.config.get_text_config()
    layers = getattr(config, "layer_types", None) or []
    if dropout := getattr(config, "attention_dropout", 0.0):
        return f"attention_dropout={dropout} would be drawn once a group"
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            return f"dropout of {module.p} in {name} would be drawn once a group"
    other = [kind for kind in layers if kind != "full_attention"]
    if other or (not layers and getattr(config, "sliding_window", None)):
        return f"its layers are not all of full attention ({(other or ['sliding window'])[0]})"
    if config._attn_implementation not in ("sdpa", _ATTENTION):
        return f"its attention is {config._attn_implementation}, not sdpa"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return "it takes no position_ids"
    return None


def whole_groups(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the rows of a group beside each other again: groups stay shuffled, and rows do not.

    Args:
        parts: Micro-batches of TRL's, cut from one shuffled batch; `group` holds each row's number.
            A group comes where its first row was.
    """
    groups = torch.cat([part["group"] for part in parts]).tolist()
    first = {number: place for place, number in reversed(list(enumerate(groups)))}
    order = sorted(range(len(groups)), key=lambda place: first[groups[place]])  # stable
    size = len(groups) // len(parts)
    found: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in parts[0].items():
        if isinstance(value, torch.Tensor) and value.ndim:
            rows = torch.cat([part[name] for part in parts])[order]
            for part, own in zip(found, rows.split(size), strict=True):
                part[name] = own
        else:
            for part in found:
                part[name] = value
    return found
