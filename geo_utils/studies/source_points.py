"""Key points of the other sources: the corpus's, a model's, or a sentence of the page."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from geo_utils.arrangement import NO_PROSE
from geo_utils.corpus import Example, KeyPoint
from geo_utils.loops import gather_all
from geo_utils.model_roles import Completes, extract_key_points
from geo_utils.models.base import ModelError
from geo_utils.text import content_words, sentences, words

_STAND_IN = "A claim that a model has yet to read off the page, in one sentence."
_WORDS = range(8, 41)  # of a sentence that can stand for a claim


@dataclass(frozen=True)
class SourcePoint:
    """The key point that a source wants said.

    Attributes:
        source: 0-based index of the source in the example.
        point: The claim.
        origin: `target` (the one under study), `corpus`, `model`, or `sentence`: one that was
            drawn from the page, word for word, so that it is easier to land than a claim in
            words of its own.
    """

    source: int
    point: KeyPoint
    origin: str


async def source_points(
    example: Example,
    chosen: KeyPoint,
    caller: Completes | None,
    prompts: Path | None = None,
    seed: int = 0,
    counting: bool = False,
) -> list[SourcePoint]:
    """Find one key point for each source.

    Args:
        example: The query with its sources.
        chosen: The target's key point.
        caller: A model that reads claims off pages for which the corpus brings none; None to draw
            a sentence of the page.
        prompts: Folder of the user's own templates.
        seed: Seed of the draw among a page's claims.
        counting: Take a stand-in where the model finds none, one a source, to count calls with.

    Returns:
        In the order of the sources; those for which nothing could be had are missing.
    """

    async def one(source: int) -> SourcePoint | None:
        if source == example.target_id:
            return SourcePoint(source, chosen, "target")
        held = example.source_key_points[source] if example.source_key_points else ()
        if held:
            return SourcePoint(source, _drawn(held, example, source, seed), "corpus")
        if caller is None:
            claims = page_claims(example.sources[source])
            origin = "sentence"
        else:
            bare = replace(example, target_id=source, key_points=())
            try:
                claims = (await extract_key_points(bare, caller, prompts)).key_points
            except ModelError:
                return None
            stand_in = f"{_STAND_IN} ({source})"
            claims, origin = claims or ((KeyPoint(1, stand_in),) if counting else ()), "model"
        if not claims:
            return None
        return SourcePoint(source, _drawn(claims, example, source, seed), origin)

    found = await gather_all(one(source) for source in range(len(example.sources)))
    return [point for point in found if point is not None]


def page_claims(page: str) -> tuple[KeyPoint, ...]:
    """Return the sentences of prose that could stand for a claim of the page, as key points."""
    prose = "\n".join(line for line in page.splitlines() if not NO_PROSE.match(line))
    fit = [s for s in sentences(prose) if len(words(s)) in _WORDS and content_words(s)]
    return tuple(KeyPoint(i, sentence, (sentence,)) for i, sentence in enumerate(fit, 1))


def _drawn(points: Sequence[KeyPoint], example: Example, source: int, seed: int) -> KeyPoint:
    return random.Random(f"{seed}|key point|{example.query_id}|{source}").choice(points)
