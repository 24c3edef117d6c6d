"""Rewriters of the target page: methods that need no model, and the table of all methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from geo_utils.corpus import Example, KeyPoint
from geo_utils.lexical import coverage
from geo_utils.text import STOPWORDS, sentences, words


@dataclass(frozen=True)
class Rewrite:
    """A rewritten page.

    Attributes:
        text: The whole page. Empty on an abstention.
        abstention: Reason for a missing rewrite.
    """

    text: str
    abstention: str | None = None


class Rewriter(Protocol):
    """Anything that rewrites an example's target page by a named method."""

    async def rewrite(self, method: str, example: Example, key_point: KeyPoint) -> Rewrite:
        """Return the target page, rewritten; only some methods look at the key point."""
        ...


@dataclass(frozen=True)
class EditRewriter:
    """Offline rewriter: edits that need no model.

    They stand in for the model-backed methods of the same name so that everything around them
    can be run; their figures say nothing about a model's rewrites.
    """

    async def rewrite(self, method: str, example: Example, key_point: KeyPoint) -> Rewrite:
        """Return the edited page.

        Raises:
            ValueError: The method needs a model.
        """
        if method not in EDITS:
            raise ValueError(
                f"method {method!r} needs a model; rewriter='offline' has {', '.join(EDITS)}"
            )
        return Rewrite(EDITS[method](example, key_point))


def make_rewriter(name: str) -> Rewriter:
    """Return the rewriter of a name.

    Raises:
        ValueError: Unknown name.
    """
    if name != "offline":
        raise ValueError(f"rewriter={name!r} is unknown; choose from offline")
    return EditRewriter()


def original(example: Example, key_point: KeyPoint) -> str:
    """Return the page as it is."""
    return example.target


def keyword_stuffing(example: Example, key_point: KeyPoint) -> str:
    """Append the query's content words to the end of every third sentence."""
    distinct = dict.fromkeys(w for w in words(example.query) if w.lower() not in STOPWORDS)
    pieces, last = [], 0
    for _, end in _locate(example.target, sentences(example.target))[1::3]:
        stop = end - (example.target[end - 1] in ".!?")
        pieces += [example.target[last:stop], f" ({', '.join(distinct)})" if distinct else ""]
        last = stop
    return "".join(pieces) + example.target[last:]


def easy_to_understand(example: Example, key_point: KeyPoint) -> str:
    """Put plain words for long ones and break sentences at semicolons."""
    text = _LONG_WORD.sub(_plain, example.target)
    return re.sub(r";\s+(\w)", lambda found: ". " + found.group(1).upper(), text)


def emphasise_key_point(example: Example, key_point: KeyPoint) -> str:
    """Lead with the key point in bold, set the sentences that carry it in bold, restate it last."""
    page = example.target
    for start, end in reversed(_locate(page, sorted(_carriers(page, key_point), key=page.find))):
        if "**" not in page[start:end] and not page[:start].endswith(("#", "# ", "**")):
            page = f"{page[:start]}**{page[start:end]}**{page[end:]}"
    title, body = _split_title(page)
    claim = _as_sentence(key_point.content)
    return f"{title}**{claim}**\n\n{body.rstrip()}\n\nThe main point: {claim}\n"


def paste_key_point(example: Example, key_point: KeyPoint) -> str:
    """Paste the key point on top of the page: the trivial attack."""
    return f"{_as_sentence(key_point.content)}\n\n{example.target}"


def repeat_key_point(example: Example, key_point: KeyPoint) -> str:
    """Paste the key point on top, in the middle and at the end: the trivial attack, three times."""
    claim = _as_sentence(key_point.content)
    paragraphs = re.split(r"\n{2,}", example.target)
    if len(paragraphs) == 1:
        paragraphs = example.target.splitlines()
    half = (len(paragraphs) + 1) // 2
    return "\n\n".join([claim, *paragraphs[:half], claim, *paragraphs[half:], claim])


EDITS: dict[str, Callable[[Example, KeyPoint], str]] = {
    "original": original,
    "keyword_stuffing": keyword_stuffing,
    "easy_to_understand": easy_to_understand,
    "key_point": emphasise_key_point,
    "paste_key_point": paste_key_point,
    "repeat_key_point": repeat_key_point,
}


def _carriers(page: str, key_point: KeyPoint) -> list[str]:
    """Return the sentences that carry the key point: its spans, else the best window."""
    spans = [span for span in key_point.spans if span in page]
    if spans:
        return spans
    split = [s for s in sentences(page) if not s.startswith("#")]
    found = coverage(key_point.content, split)
    return split[found.start : found.end]


def _locate(page: str, parts: Iterable[str]) -> list[tuple[int, int]]:
    """Return (start, end) of parts that follow each other in the page, without overlaps."""
    places, last = [], 0
    for part in parts:
        start = page.find(part, last)
        if start >= 0:
            last = start + len(part)
            places.append((start, last))
    return places


def _split_title(page: str) -> tuple[str, str]:
    first, _, rest = page.partition("\n")
    return (f"{first}\n\n", rest.lstrip("\n")) if first.startswith("#") else ("", page)


def _as_sentence(claim: str) -> str:
    claim = claim.strip()
    return claim if claim.endswith((".", "!", "?", "。")) else f"{claim}."


_PLAIN = {
    "additional": "more", "additionally": "also", "approximately": "about", "assist": "help",
    "assistance": "help", "attempt": "try", "commence": "start", "commonly": "often",
    "component": "part", "components": "parts", "conclude": "end", "consequently": "so",
    "considerable": "large", "considerably": "much", "constitute": "make up",
    "construct": "build", "consume": "use", "contain": "hold", "currently": "now",
    "demonstrate": "show", "demonstrates": "shows", "determine": "find out",
    "diminish": "shrink", "discontinue": "stop", "elevated": "high", "eliminate": "remove",
    "employ": "use", "encounter": "meet", "endeavour": "try", "enhance": "improve",
    "entire": "whole", "establish": "set up", "evident": "clear", "examine": "look at",
    "exhibit": "show", "facilitate": "help", "frequently": "often", "fundamental": "basic",
    "furthermore": "also", "generate": "make", "however": "but", "identical": "same",
    "immediately": "at once", "implement": "carry out", "indicate": "show",
    "indicates": "shows", "initial": "first", "initially": "at first",
    "initiate": "start", "inhabit": "live in", "majority": "most part", "manufacture": "make",
    "maintain": "keep", "modify": "change", "moreover": "also", "necessary": "needed",
    "necessitate": "need", "numerous": "many", "objective": "goal", "observe": "see",
    "obtain": "get", "occasionally": "at times", "occur": "happen", "occurs": "happens",
    "participate": "take part", "perform": "do", "permit": "let", "portion": "part",
    "possess": "have", "previously": "before", "primarily": "mainly", "primary": "main",
    "principal": "main", "prohibit": "forbid", "purchase": "buy", "rapidly": "fast",
    "reduce": "cut", "regarding": "about", "remain": "stay", "remains": "stays",
    "require": "need", "required": "needed", "requires": "needs", "residence": "home",
    "retain": "keep", "select": "choose", "significant": "large",
    "significantly": "much", "subsequent": "later", "subsequently": "later",
    "substantial": "large", "sufficient": "enough", "terminate": "end", "therefore": "so",
    "transform": "change", "transmit": "send", "typically": "mostly",
    "utilisation": "use", "utilise": "use", "utilization": "use", "utilize": "use",
    "utilizing": "using", "virtually": "almost", "whereas": "while",
}  # fmt: skip
_LONG_WORD = re.compile(rf"\b(?:{'|'.join(_PLAIN)})\b", re.IGNORECASE)


def _plain(found: re.Match[str]) -> str:
    word = found.group()
    plain = _PLAIN[word.lower()]
    return plain.capitalize() if word[0].isupper() else plain
