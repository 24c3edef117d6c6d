"""What a run would call, counted without calling."""

from __future__ import annotations

from collections import Counter

from geo_utils.models.base import GUESSED, Completion, Request
from geo_utils.models.caller import Caller
from geo_utils.models.usage import CHARS_PER_TOKEN, estimated_tokens

# Tokens of a typical answer by role; a rewrite is about as long as the page in its prompt.
_TYPICAL_TOKENS = {"engine": 450, "judge": 50, "extractor": 500}


class Planner:
    """Stands in for a caller: held answers are given, others guessed and counted.

    Attributes:
        caller: Whose calls are counted.
        calls: Requests that would be sent, by role; equal ones once.
        held: Requests that the cache answers, by role.
        tokens_in: About how many prompt tokens would be sent, by role.
        tokens_out: About how many tokens would be answered, by role.
    """

    def __init__(self, caller: Caller) -> None:
        """Count for `caller`."""
        self.caller = caller
        self.calls: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.tokens_in: Counter[str] = Counter()
        self.tokens_out: Counter[str] = Counter()
        self._seen: set[str] = set()

    async def complete(self, request: Request) -> Completion:
        """Return the held answer, or a guess of about the length of the real one."""
        key, held = self.caller.peek(request)
        if held is not None:
            self.held[request.role] += 1
            return held
        tokens_out = _TYPICAL_TOKENS.get(request.role, estimated_tokens(request))
        if key not in self._seen:
            self._seen.add(key)
            self.calls[request.role] += 1
            self.tokens_in[request.role] += estimated_tokens(request)
            self.tokens_out[request.role] += tokens_out
        # Each guess is another text, so that what is asked about it is another request.
        text = request.prompt if request.role == "rewriter" else "x" * CHARS_PER_TOKEN * tokens_out
        text = f"{key[:12]} {text}"
        if request.choices:
            chances = dict.fromkeys(request.choices, -0.7)
            return Completion(text, logprobs=chances, finish_reason=GUESSED)
        parsed = {"verdict": "omitted", "reason": "", "verdicts": [], "key_points": []}
        return Completion(text, parsed if request.schema else None, finish_reason=GUESSED)
