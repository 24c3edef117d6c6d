"""From an answer to its sentences and the sources that each of them cites.

Engines cite as `[1]`, `[1][2]`, `[1, 2]`, `[1-3]`, `[Source 1]`, `【1】`, before or after the
full stop. Sources are numbered from 1 in the text and from 0 in all that this module returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from geo_utils.text import sentences

_LABEL = (
    r"(?:sources?|citations?|cites?|refs?\.?|references?|docs?\.?|documents?|pages?|web|results?)"
)
_NUMBER = rf"(?:{_LABEL}\s*:?\s*|\^|#)?\d+"
_SEPARATOR = r"\s*(?:-|–|—|to|through|,\s*and|and|&|[,;，、])\s*|\s+"
BRACKET = re.compile(r"\[([^\[\]\n]{1,80})\]")
_INSIDE = re.compile(rf"{_NUMBER}(?:(?:{_SEPARATOR}){_NUMBER})*\s*[,;]?", re.IGNORECASE)
_ITEM = re.compile(r"(\d+)(?:\s*(?:-|–|—|to|through)\s*\D{0,12}?(\d+))?", re.IGNORECASE)
_LONGEST_RANGE = 100
# Other ways to write a bracket, brought to one form before anything is read.
_FORMS = (
    (re.compile(r"\\([\[\]])"), r"\1"),
    (re.compile(r"</?sup>", re.IGNORECASE), ""),
    (re.compile(r"[【［]\s*([^【】［］\n]{1,80}?)(?:†[^【】［］\n]*)?\s*[】］]"), r"[\1]"),
    (re.compile(r"\[(\[\d[^\[\]\n]{0,40}\])\]"), r"\1"),
    (re.compile(r"\[(\d+)\]\s*[-–—]\s*\[(\d+)\]"), r"[\1-\2]"),
    (re.compile(r"\*\*((?:\[\d[\d, -]*\])+)\*\*"), r"\1"),
    # The address of a linked citation, [1](https://...), with brackets of its own at most once.
    (
        re.compile(
            r"(?<=\])\((?:https?:|#|/)[^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?: \"[^\"\n]*\")?\)"
        ),
        "",
    ),
)
_RUN = r"(?:[ \t]{0,3}\[[^\[\]\n]{1,80}\])+"
# "Point.[1][2] Next": the citation belongs to the sentence before the stop. Before a lower-case
# word or a colon there is no such stop: an abbreviation ("et al. [1] found") or a list ("[1]: x").
_AFTER_STOP = re.compile(
    rf"([.!?。！？؟۔।][\"'”’»」_)*]*)({_RUN})(?![ \t]{{0,3}}[a-z:\[])(?=\s|$|[^\s\d.!?,;:])"
)
# A list of sources at the end is no part of what the answer says.
_REFERENCES = re.compile(
    r"\n+(?:[ \t]*[#*_]*(?:sources|references|citations)[*_]*:?[*_]*[ \t]*\n+"
    r"(?:[ \t]*(?:[-*][ \t]+)?\[\d+\][^\n]*(?:\n+|$))+"
    r"|(?:[ \t]*(?:[-*][ \t]+)?\[\d+\]:[^\n]*(?:\n+|$))+)\s*$",
    re.IGNORECASE,
)


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
        sentences: In order of appearance; a list of references at the end is left out.
        out_of_range: Cited numbers, as written, that name no source.
        unparsed: Bracketed texts with a digit that are no citation, such as `[Figure 2a]`.
    """

    sentences: tuple[CitedSentence, ...]
    out_of_range: tuple[int, ...] = ()
    unparsed: tuple[str, ...] = ()


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
    for paragraph, sentence in _sentences(answer):
        cited: dict[int, None] = {}
        for bracket in BRACKET.finditer(sentence):
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
        if parsed and cited and not re.search(r"\w", text):
            # Nothing but a mark, cut off by a quotation mark or a line break: it belongs to
            # what stands before.
            both = dict.fromkeys((*parsed[-1].citations, *cited))
            parsed[-1] = replace(parsed[-1], citations=tuple(both))
        elif text or cited:
            parsed.append(CitedSentence(text, tuple(cited), paragraph))
    return CitedAnswer(tuple(parsed), tuple(out_of_range), tuple(unparsed))


def strip_citations(text: str) -> str:
    """Remove citation marks, and the space before them, from a text."""
    bare = BRACKET.sub(
        lambda found: found.group() if citation_numbers(found.group(1)) is None else "",
        _one_form(text),
    )
    return re.sub(r"(?<![ \t])[ \t]+(?=[.!?,;:。]|$)", "", bare).strip()


def _sentences(answer: str) -> Iterator[tuple[int, str]]:
    text = _REFERENCES.sub("", _one_form(answer))
    for paragraph, block in enumerate(re.split(r"\n\s*\n", text)):
        for sentence in sentences(_AFTER_STOP.sub(_before_stop, block)):
            yield paragraph, sentence


def _one_form(text: str) -> str:
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


def _before_stop(found: re.Match[str]) -> str:
    stop, run = found.groups()
    if any(citation_numbers(inside) is None for inside in BRACKET.findall(run)):
        return found.group()
    return f" {run.strip()}{stop} "
