"""From an answer to its sentences and the sources that each of them cites.

Engines cite as `[1]`, `[1][2]`, `[1, 2]`, `[1-3]`, `[Source 1]`, `【1】`, before or after the
full stop. Sources are numbered from 1 in the text and from 0 in all that this module returns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from geo_utils.text import sentences

_LABEL = r"(?:sources?|refs?\.?|docs?\.?|documents?|references?)"
_BRACKET = re.compile(r"[\[【]([^\[\]【】\n]{1,80})[\]】](?:\(\S*?\))?")
_INSIDE = re.compile(
    rf"(?:{_LABEL}\s*#?\s*|\^|#)?\d+(?:\s*(?:-|–|—|to|through|,|;|&|and|,\s*and)\s*"  # noqa: RUF001
    rf"(?:{_LABEL}\s*#?\s*|\^|#)?\d+)*\s*[,;]?",
    re.IGNORECASE,
)
_ITEM = re.compile(r"(\d+)(?:\s*(?:-|–|—|to|through)\s*(?:\D{0,12})?(\d+))?", re.IGNORECASE)  # noqa: RUF001
_RUN = r"(?:\s*[\[【][^\[\]【】\n]{1,80}[\]】](?:\(\S*?\))?)+"
# "Point.[1][2] Next": the citation belongs to the sentence before the full stop.
_AFTER_STOP = re.compile(rf"([.!?。！？؟۔।][\"'”’)*]*)({_RUN})(?=\s|$|[A-Z\"“(*#\-])")  # noqa: RUF001
_LONGEST_RANGE = 100


@dataclass(frozen=True)
class CitedSentence:
    """One sentence of an answer.

    Attributes:
        text: The sentence without its citation marks.
        citations: 0-based sources it cites, each once, in order of appearance.
        paragraph: 0-based number of its paragraph.
    """

    text: str
    citations: tuple[int, ...]
    paragraph: int = 0


@dataclass(frozen=True)
class CitedAnswer:
    """An answer's sentences and what its citations got wrong.

    Attributes:
        sentences: In order of appearance.
        out_of_range: Cited numbers, as written, that name no source.
        unparsed: Bracketed texts with a digit that are no citation, such as `[Figure 2a]`.
    """

    sentences: tuple[CitedSentence, ...]
    out_of_range: tuple[int, ...] = ()
    unparsed: tuple[str, ...] = ()

    @property
    def is_uncited(self) -> bool:
        """Whether no sentence cites any source in range."""
        return not any(sentence.citations for sentence in self.sentences)


def citation_numbers(inside: str) -> list[int] | None:
    """Return the numbers of one bracket's inside, ranges spelt out.

    Args:
        inside: The text between the brackets, such as `1, 3-5` or `Source 2`.

    Returns:
        The numbers as written, or None if this is no citation.
    """
    if not _INSIDE.fullmatch(inside.strip()):
        return None
    numbers: list[int] = []
    for first, last in _ITEM.findall(inside):
        start, end = int(first), int(last or first)
        if not 0 <= end - start <= _LONGEST_RANGE:
            return None
        numbers.extend(range(start, end + 1))
    return numbers


def parse_answer(answer: str, n_sources: int) -> CitedAnswer:
    """Split an answer into sentences and resolve their citations.

    Args:
        answer: The engine's text; sources are cited by number, from 1.
        n_sources: How many sources the engine saw.

    Returns:
        Sentences with 0-based citations; numbers outside 1..n_sources and brackets that could
        not be read are reported, never guessed.
    """
    parsed: list[CitedSentence] = []
    out_of_range: list[int] = []
    unparsed: list[str] = []
    for paragraph, block in enumerate(re.split(r"\n\s*\n", answer)):
        for sentence in sentences(_AFTER_STOP.sub(_before_stop, block)):
            cited: dict[int, None] = {}
            for bracket in _BRACKET.finditer(sentence):
                numbers = citation_numbers(bracket.group(1))
                if numbers is None:
                    if any(map(str.isdigit, bracket.group(1))):
                        unparsed.append(bracket.group())
                    continue
                for number in numbers:
                    if 1 <= number <= n_sources:
                        cited[number - 1] = None
                    else:
                        out_of_range.append(number)
            text = strip_citations(sentence)
            if text or cited:
                parsed.append(CitedSentence(text, tuple(cited), paragraph))
    return CitedAnswer(tuple(parsed), tuple(out_of_range), tuple(unparsed))


def strip_citations(text: str) -> str:
    """Remove citation marks, and the space before them, from a text."""
    bare = _BRACKET.sub(
        lambda found: found.group() if citation_numbers(found.group(1)) is None else "", text
    )
    return re.sub(r"[ \t]+(?=[.!?,;:。]|$)", "", bare).strip()


def _before_stop(found: re.Match[str]) -> str:
    stop, run = found.groups()
    if any(citation_numbers(inside) is None for inside in _BRACKET.findall(run)):
        return found.group()
    return f" {run.strip()}{stop}"
