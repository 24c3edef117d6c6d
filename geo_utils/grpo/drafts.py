"""Drafts for a rewriter: where the page in its prompt goes on, the copy is likely to.

vLLM checks a draft of several tokens in one step and keeps those that the policy would have drawn,
so that the distribution of what is written stays the policy's own. The rule keeps a place in the
prompt and reads on from there. Where the copy breaks, it looks for the last tokens in all that was
written, and goes on meanwhile as if a few tokens had been replaced, then as if more were inserted.
Every draft has the full length: vLLM runs its fastest graphs only where all sequences of a batch
have equally many tokens to check.

They pay where a policy copies enough. On an H200, with drafts of 7 tokens and 16 completions, a
0.5B model takes 0.63 to 0.71 of its time without, a 1.5B model 1.2 to 1.4 times it
(`outputs/reference/drafts.jsonl`), so that they are off unless a recipe asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.integer[Any]]
_COMPARED = 5  # last tokens that places are told apart by
_NEAR = 32  # tokens after a break in which one equal token is enough
_REPLACED = 2  # new tokens that are taken for as many of the page's
_KNOWN_BY = 8  # last tokens that a sequence is known again by


class Place(NamedTuple):
    """How far a text has copied from its own past.

    Attributes:
        after: Index of the token after the last one that was copied.
        new: Tokens written since then.
    """

    after: int = 0
    new: int = 0

    @property
    def next(self) -> int:
        """Index of the token whose copy is expected next."""
        return self.after + (self.new if self.new <= _REPLACED else 0)


def _followed(tokens: Tokens, read: int, place: Place) -> Place:
    """Return the place in a text (N,), given the one after its first `read` tokens, at least 1."""
    for end in range(read, len(tokens)):
        if tokens[place.next] == tokens[end]:
            place = Place(place.next + 1)
        elif (found := _found(tokens[: end + 1], place.after)) is not None:
            place = Place(found)
        else:
            place = Place(place.after, place.new + 1)
    return place


def _found(tokens: Tokens, near: int) -> int | None:
    """Return the index after the best earlier copy of the last tokens, None if there is none.

    The longest copy is best; of several, the first from `near` on, else the last before it.
    """
    last, length = len(tokens) - 1, 1
    ends = np.flatnonzero(tokens[:last] == tokens[last]) + 1
    while length < _COMPARED:
        longer = ends[ends > length]
        longer = longer[tokens[longer - length - 1] == tokens[last - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    if not len(ends):
        return None
    place = int(ends[min(int(np.searchsorted(ends, near)), len(ends) - 1)])
    return place if length > 1 or near <= place <= near + _NEAR else None


class PageProposer:
    """The rule as vLLM's V1 model runner asks for it: `method: custom_class`.

    Only tokens are told, and a sequence changes its row when another ends. So it is known again by
    its length and last tokens. Two that share both are at the same place, or one gets a worse
    draft, which costs time and changes nothing else.
    """

    def __init__(self, vllm_config: Any) -> None:
        """Read the length of drafts and of the longest text from vLLM's configuration."""
        self._size: int = vllm_config.speculative_config.num_speculative_tokens
        self._longest: int = vllm_config.model_config.max_model_len
        self._places: dict[tuple[int, bytes], Place] = {}

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: npt.NDArray[np.integer[Any]],
        token_ids_cpu: Tokens,
        **_: Any,
    ) -> list[list[int]]:
        """Return a draft for each sequence; an empty one where nothing can follow.

        Args:
            sampled_token_ids: What this step wrote; nothing where a prompt is still being read.
            num_tokens_no_spec: Tokens of each, these included, (B,).
            token_ids_cpu: Prompts and all that was written, (B, N); beyond its length a row holds
                anything.
        """
        drafts: list[list[int]] = []
        places: dict[tuple[int, bytes], Place] = {}
        for row, sampled in enumerate(sampled_token_ids):
            length = int(num_tokens_no_spec[row])
            size = min(self._size, self._longest - length)
            if not sampled or size < 1:
                drafts.append([])
                continue
            tokens, read = token_ids_cpu[row, :length], length - len(sampled)
            place = self._places.get(_known_by(tokens[:read]), Place())
            place = places[_known_by(tokens)] = _followed(tokens, read, place)
            ahead = tokens[place.next : place.next + size]
            drafts.append(np.resize(ahead, size).tolist())  # where the text ends, it begins again
        self._places = places
        return drafts


def _known_by(tokens: Tokens) -> tuple[int, bytes]:
    return len(tokens), tokens[-_KNOWN_BY:].tobytes()
