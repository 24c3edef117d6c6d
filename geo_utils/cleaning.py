"""From a model's reply to the rewritten page that it holds."""

from __future__ import annotations

import re

from geo_utils.text import words

_THINKING = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_CLOSED_LATE = re.compile(r"^.*?</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(r"<(?:think|thinking|thought|reasoning)>.*", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^```[\w-]*[ \t]*\n(.*?)\n?```[ \t]*$", re.DOTALL)
_TAGS = re.compile(r"^\s*<(page|text|rewritten_text|rewrite)>\s*\n?(.*?)\n?\s*</\1>\s*$", re.DOTALL)
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok)\b[^\n]{0,120}|"
    r"(?:here(?:'s|\u2019s| is| are)|below is|this is|the following is)\b[^\n]{0,160}|"
    r"\**(?:rewritten|revised|updated|optimi[sz]ed) (?:text|page|version|article)\**)"
    r"[^\n]{0,40}:\**[ \t]*\n+",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'|\u2019)m sorry|i am sorry|sorry,|i can(?:not|'t|\u2019t)|"
    r"i(?:'m| am) (?:not able|unable)|as an ai)\b",
    re.IGNORECASE,
)
SHORTEST = 0.2


def clean_rewrite(reply: str, page: str) -> tuple[str, str | None]:
    """Take the page out of a reply: no thoughts, no fence, no preamble.

    Args:
        reply: What the model wrote.
        page: The page as it was, to tell a page from a refusal or a fragment.

    Returns:
        The page and None, or an empty text and the reason why the reply holds none: `empty`,
        `refused`, or `short` (under a fifth of the page's words).
    """
    text = _THINKING.sub("", reply)
    text = _OPEN.sub("", _CLOSED_LATE.sub("", text)).strip()
    for _ in range(2):  # a preamble before a fence, or inside one
        text = _PREAMBLE.sub("", text).strip()
        for wrapped in (_FENCE.match(text), _TAGS.match(text)):
            if wrapped:
                text = wrapped.groups()[-1].strip()
    if not text:
        return "", "empty: the reply holds no page"
    n, needed = len(words(text)), SHORTEST * len(words(page))
    if _REFUSAL.match(text) and n < max(needed, 120) and not _REFUSAL.match(page):
        return "", f"refused: {text[:120]}"
    if n < needed:
        return "", f"short: {n} words, under a fifth of the page's {len(words(page))}"
    return text, None
