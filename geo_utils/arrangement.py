"""A page as numbered sentences, and a new arrangement of them: no sentence is added or lost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from geo_utils.text import sentences

MOST_MENTIONS = 2
NO_PROSE = re.compile(r"\s*(?:#|\||```|---|===)")
_ITEM = re.compile(r"\s*(?:[-*+]\s+|\d+[.)]\s+)")
# Stress needs both pairs of stars: in [1]**[2]** the first pair belongs to the second mark.
_MARK = re.compile(r"(\*\*)?\[(K|\d{1,4})\](?(1)\*\*)")
_AROUND = " \t\r\n,*"


@dataclass(frozen=True)
class Unit:
    """A sentence of a page, or a line that is no prose.

    Attributes:
        text: As it stands in the page.
        start: First character's place in the page.
        end: One past its last.
    """

    text: str
    start: int
    end: int

    def in_bold(self) -> str:
        """Return the text in bold, where that breaks neither a table nor other bold."""
        if NO_PROSE.match(self.text) or "**" in self.text:
            return self.text
        item = _ITEM.match(self.text)
        lead = item.end() if item else 0
        return f"{self.text[:lead]}**{self.text[lead:]}**"


def page_units(page: str) -> list[Unit]:
    """Split a page into units, in order; a title on the first line belongs to none."""
    found: list[Unit] = []
    for line in re.finditer(r"[^\n]*\S[^\n]*", page):
        if not found and line.group().startswith("# ") and not page[: line.start()].strip():
            continue
        prose = not NO_PROSE.match(line.group())
        last = line.start()
        for part in sentences(line.group()) if prose else [line.group().strip()]:
            start = page.find(part, last, line.end())
            if start >= 0:
                last = start + len(part)
                found.append(Unit(part, start, last))
    return found


def numbered(units: list[Unit]) -> str:
    """Return units as a prompt shows them: a line each, its number in front."""
    return "\n".join(f"[{i}] {' '.join(unit.text.split())}" for i, unit in enumerate(units, 1))


def arrange(
    page: str, key_point: str, reply: str, shown: int | None = None
) -> tuple[str, str | None]:
    """Carry out an arrangement.

    The reply names sentences as `[2]`, the key point as `[K]`, stressed ones as `**[2]**`.
    Sentences that it leaves out follow in their old order, one that it names again stands once,
    the key point at most twice, and a number that no sentence has is passed over; so nothing of
    the page is lost and nothing but the key point can be added.

    Args:
        page: The page as it was.
        key_point: What `[K]` stands for.
        reply: What the model wrote.
        shown: How many units the model saw; default, all.

    Returns:
        The page and None, or an empty text and why the reply is no arrangement.
    """
    units = page_units(page)
    known = len(units) if shown is None else min(shown, len(units))
    marks = list(_MARK.finditer(reply))
    if _MARK.sub("", reply).strip(_AROUND) or not marks:
        return "", f"unparsable: no arrangement in {reply[:80]!r}"
    order: list[tuple[int | None, bool]] = []  # unit's index (None: key point), stressed
    for mark in marks:
        index = None if mark[2] == "K" else int(mark[2]) - 1
        said = sum(other == index for other, _ in order)
        exists = index is None or 0 <= index < known
        if exists and said < (MOST_MENTIONS if index is None else 1):
            order.append((index, bool(mark[1])))
    named = {index for index, _ in order}
    order += [(i, False) for i in range(len(units)) if i not in named]
    return _joined(page, units, key_point, order), None


def is_tidy(reply: str, known: int) -> bool:
    """Tell whether every mark of a reply does something: no number twice or without sentence."""
    marks = [mark[2] for mark in _MARK.finditer(reply)]
    numbers = [mark for mark in marks if mark != "K"]
    exist = all(1 <= int(number) <= known for number in numbers)
    once = len(set(numbers)) == len(numbers) and marks.count("K") <= MOST_MENTIONS
    return exist and once and not _MARK.sub("", reply).strip(_AROUND)


def _joined(
    page: str, units: list[Unit], key_point: str, order: list[tuple[int | None, bool]]
) -> str:
    """Write the units in order; neighbours of the old page keep what stood between them."""
    title = page[: units[0].start].strip() if units else page.strip()
    pieces = [title] if title else []
    before: int | None = -1  # the title
    end = len(page[: units[0].start].rstrip()) if units else 0
    for index, stressed in order:
        if index is None:
            text = f"**{key_point}**" if stressed else key_point
        else:
            text = units[index].in_bold() if stressed else units[index].text
        follows = index is not None and before is not None and index == before + 1
        gap = page[end : units[index].start] if follows else "\n\n"  # type: ignore[index]
        pieces.append((gap if pieces else "") + text)
        before, end = index, 0 if index is None else units[index].end
    return "".join(pieces) + "\n"
