"""From a model's reply to the rewritten page that it holds."""

from __future__ import annotations

import re

from geo_utils.models.replies import strip_thoughts
from geo_utils.text import words

_CLOSED_LATE = re.compile(r"^.*?</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
_TAIL = re.compile(r"\n\s*<(?:think|thinking|thought|reasoning)>.*$", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
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
    text = reply.strip()
    if not _TAG.search(page):  # a page about such tags keeps them
        text = strip_thoughts(_TAIL.sub("", text))
        text = _CLOSED_LATE.sub("", text).strip()
    preamble = _PREAMBLE.match(text)
    if preamble and not page.lstrip().startswith(preamble.group().strip()):
        text = text[preamble.end() :].strip()
    for wrapping in (_FENCE, _TAGS):
        found = wrapping.match(text)
        inner = found.groups()[-1] if found else ""
        if found and "\n```" not in f"\n{inner}" and not page.lstrip().startswith("```"):
            text = inner.strip()
    if not text:
        return "", "empty: the reply holds no page"
    n, needed = len(words(text)), SHORTEST * len(words(page))
    if _REFUSAL.match(text) and n < max(needed, 120) and not _REFUSAL.match(page):
        return "", f"refused: {text[:120]}"
    if n < needed:
        return "", f"short: {n} words, under a fifth of the page's {len(words(page))}"
    return text, None
