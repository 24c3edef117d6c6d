"""The entailment judge: does a passage of the answer entail the key point, or contradict it?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geo_utils.models.base import ModelError, Request, Sampling
from geo_utils.models.local import ENTAILMENT, entailment_prompt
from geo_utils.models.loops import gather_all
from geo_utils.roles.by_model import Completes
from geo_utils.roles.judges import Verdict, answer_sentences

_PASSAGE = 4  # sentences, about as long as the texts that such models were trained on
_LIKELY = 0.5


@dataclass(frozen=True)
class EntailmentJudge:
    """Judge that asks a cross-encoder for natural language inference about each passage.

    The answer supports the point if one of its passages, four sentences that overlap by two,
    entails it with a probability of at least one half; else it contradicts the point if one
    contradicts it with as much. No such model's agreement with hand labels has been measured here.

    Attributes:
        caller: Calls the cross-encoder; see `models.local.entailment_local`.
    """

    caller: Completes

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict, or an abstention with its reason."""
        passages = _passages(answer)
        if not passages:
            return Verdict("omitted", "the answer holds no sentence", 0.0)
        requests = (
            Request(
                "judge",
                entailment_prompt(passage, key_point),
                sampling=Sampling(temperature=0.0, max_tokens=1),
                choices=ENTAILMENT,
            )
            for passage in passages
        )
        try:
            found = await gather_all(map(self.caller.complete, requests))
        except ModelError as error:
            return Verdict(None, abstention=f"{error.kind}: {error}")

        def best(label: str) -> tuple[float, str]:
            chances = [math.exp((c.logprobs or {}).get(label, -math.inf)) for c in found]
            return max(zip(chances, passages, strict=True), key=lambda pair: pair[0])

        (entailed, where), (denied, against) = best("entailment"), best("contradiction")
        reason = f"P(entailment) = {entailed:.2f}, most in: {where}"
        if entailed >= _LIKELY:
            return Verdict("supported", reason, entailed)
        if denied >= _LIKELY:
            reason = f"P(contradiction) = {denied:.2f} in: {against}"
            return Verdict("contradicted", reason, entailed)
        return Verdict("omitted", reason, entailed)


def _passages(answer: str) -> list[str]:
    split, step = answer_sentences(answer), _PASSAGE // 2
    starts = range(0, max(len(split) - step, min(len(split), 1)), step)
    return [" ".join(split[start : start + _PASSAGE]) for start in starts]
