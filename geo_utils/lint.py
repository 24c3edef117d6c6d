"""Passages of a page that speak to the reader's AI instead of the reader."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from geo_utils.text import (
    DELIMITER,
    DISGUISED,
    NO_WIDTH,
    is_mark,
    plain_line_breaks,
    sentences,
    words,
)


def _patterns() -> list[re.Pattern[str]]:
    """Return what is tried on each sentence, and what is tried on hidden text as well.

    There no human is the reader, so less is needed. Both are read from `data/instructions.txt`.
    """
    text = (files("geo_utils") / "data" / "instructions.txt").read_text(encoding="utf-8")
    text = re.sub(r"\n +", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    names: dict[str, str] = {}
    tried: dict[str, list[str]] = {"visible": [], "hidden": []}
    for line in filter(None, text.split("\n")):
        name, _, pattern = re.sub(r"<([A-Z]+)>", lambda m: names[m[1]], line).partition(": ")
        if name in tried:
            tried[name].append(f"(?:{pattern})")
        else:
            names[name] = pattern
    return [re.compile("|".join(patterns), re.IGNORECASE) for patterns in tried.values()]


_SPOKEN_TO_AI, _HIDDEN_ORDER = _patterns()
# Three ways to keep text from a human reader: a comment, a Markdown comment, an unseen element, of
# which this is the opening tag.
_UNSEEN = re.compile(
    r"""
    <!--(?P<comment>.*?)(?:-->|\Z)
    | ^\[[^\]\n]*\]:[ ]\#[ ][("'](?P<note>[^\n]*)[)"'][ ]*$
    | <(?P<tag>[a-z]\w*)\b(?P<attributes>[^<>]*)>
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_HIDES = re.compile(
    r"\bhidden\b|display:\s*none|visibility:\s*hidden|font-size:\s*0|opacity:\s*0(?![.\d])",
    re.IGNORECASE,
)
# Letters in characters that take no room, which some models read: each is 0xe0000 above its own.
_UNSEEN_LETTERS = re.compile("[\U000e0020-\U000e007e]+")
_MARKUP = re.compile(
    r"[*`~]+|(?<!\w)_+|(?<!_)_+(?!\w)|^[ \t]*(?:#+|>|[-+\u2022]|\d+[.)])[ \t]+", re.MULTILINE
)
# A line that is broken in mid-sentence, as in mail and in hard-wrapped Markdown.
_HTML = re.compile(r"</?s>|<source\b(?![^<>]*\bnumber\b)", re.IGNORECASE)  # struck out; of a video
_WRAP = re.compile(r"(?<![.!?:\n \t])[ \t]*\n[ \t]*(?=[a-z])")


def instructions(page: str) -> list[str]:
    """Return the passages of a page that are aimed at the reader's AI instead of the reader.

    A page may talk about AI, quote its rules and give orders to people; what counts is an order
    to the machine that answers from the page. English only. Words are matched, not meaning: an
    order put politely enough, or spelt with the letters of another script, is not found: of 18
    orders written after the patterns, 5 were found (8 once three patterns had been widened), and
    1 of 16 sentences for people was taken for one. So no hit is no proof. A page
    that quotes such orders, as an article on prompt injection does, has them as well, so a
    rewrite is judged by `new_instructions`.

    Args:
        page: The page, with or without Markdown and HTML.

    Returns:
        Each passage once, without markup and characters of no width: sentences in the page's
        order, then comments and hidden elements, whole, then marks that would end the page in a
        prompt, such as `</source>` and `<|im_end|>`.
    """
    spelt = ("".join(chr(ord(c) & 0x7F) for c in run) for run in _UNSEEN_LETTERS.findall(page))
    plain = NO_WIDTH.sub("", unicodedata.normalize("NFKC", plain_line_breaks(page)))
    shown, unseen = _parted(plain)
    unseen += spelt
    hidden = [" ".join(_plain(text).split()) for text in unseen]
    seen = sentences(_WRAP.sub(" ", _plain(shown)))
    found = [sentence for sentence in seen if _SPOKEN_TO_AI.search(" ".join(sentence.split()))]
    found += [text for text in hidden if _SPOKEN_TO_AI.search(text) or _HIDDEN_ORDER.search(text)]
    marks = [mark[0] for mark in DELIMITER.finditer(plain)]
    marks += [mark[0] for mark in DISGUISED.finditer(plain) if is_mark(mark[0])]
    found += [mark for mark in marks if not _HTML.match(html.unescape(mark))]
    return list(dict.fromkeys(found))


# One original has many rewrites, and a rewrite that was made for no key point stands for all.
_instructions = lru_cache(maxsize=4096)(instructions)


def new_instructions(original: str, page: str) -> list[str]:
    """Return the instructions of a rewritten page that its original does not have.

    Args:
        original: The page before the rewrite.
        page: The page after it.

    Returns:
        Passages as `instructions` gives them; the same words in other case or punctuation are
        not new.
    """
    known = {_key(passage) for passage in _instructions(original)}
    return [passage for passage in _instructions(page) if _key(passage) not in known]


def _parted(page: str) -> tuple[str, list[str]]:
    """Return what a human reader sees of a page, and the texts that are kept from them."""
    shown, hidden = [], []
    place, lowered = 0, page.lower()
    unclosed: set[str] = set()  # so that each is looked for in vain once
    for found in _UNSEEN.finditer(page):
        if found.start() < place:
            continue
        end, text = found.end(), found["comment"] or found["note"]
        if tag := (found["tag"] or "").lower():
            if tag in unclosed or not _HIDES.search(found["attributes"]):
                continue
            close = lowered.find(f"</{tag}>", end)
            if close < 0:
                unclosed.add(tag)
                continue
            end, text = close + len(tag) + 3, page[end:close]
        shown.append(page[place : found.start()])
        hidden.append(text or "")
        place = end
    return "\n".join([*shown, page[place:]]), hidden


def _plain(text: str) -> str:
    return _MARKUP.sub("", text)


def _key(passage: str) -> Sequence[str]:
    if DELIMITER.fullmatch(passage):
        return (passage.casefold(),)
    return tuple(word.casefold() for word in words(passage))
