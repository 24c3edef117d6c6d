"""From a rewriter's reply to its page: without thoughts, wrappers, echoes of the prompt, remarks.

What the original page says itself is never taken for one of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise

from geo_utils.models.replies import THOUGHTS, strip_thoughts
from geo_utils.roles.rewriters import Rewrite
from geo_utils.text import content_words, plain_line_breaks, word_spans, words

_SHORTEST = 0.2  # of the page's words
_CLOSED_LATE = re.compile(rf"^.*?</(?:{THOUGHTS})>", re.DOTALL | re.IGNORECASE)
_TAIL = re.compile(rf"\n[ \t]*<(?:{THOUGHTS})>.*", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(rf"</?(?:{THOUGHTS})>", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'|\u2019)m sorry|i am sorry|sorry,|i can(?:not|'t|\u2019t)|"
    r"i(?:'m| am) (?:not able|unable)|as an ai)\b",
    re.IGNORECASE,
)


def _stems(text: str) -> frozenset[str]:
    """Return the stems of a text's content words, of "I've" and "here's" without their endings."""
    plain = re.sub(r"['’](?:ve|d|m|ll|re|s)\b", "", " ".join(text.split()))
    return frozenset(stem for stem in content_words(plain) if not stem.isdigit())


# A reply speaks of its rewriting in few words: of the text, of what was done with it, and in talk
# around both. A sentence in such words is no page's if one of them tells.
_TEXT = _stems(
    """text page webpage version article content document passage copy draft rewrite output
    answer response result"""
)
_DEEDS = _stems(
    """rewrote rewritten rewrite write revise revised edited optimised optimized improve improved
    enhance enhanced polished simplified modified adapted made make keep kept preserve preserved
    maintain maintained retain retained ensure ensured emphasise emphasised emphasize emphasized
    stressed highlight highlighted place placed put leads restructured reordered rephrased reworded
    shortened shorten expanded added removed moved focused bolded used adjust help included"""
)
_TELLING = _stems(
    """sure certainly absolutely okay ok alright gladly understood rewrite rewritten rewriting
    rewrote revise revised revision edit edited edits optimise optimised optimisation optimize
    optimized optimization modifications changes changed different original version hope let feel
    emphasise emphasised emphasize emphasized rephrased reworded restructured readability
    instructions request requested regards count"""
)
_TALK = _stems(
    """thing course right pleasure got great problem happy glad task done yes thank thanks asked
    instructed please find see think know free useful helpful need anything else questions tweaks
    like want another go attached provided best assistant ai using user update updated improvements
    new final full entire complete log tl dr now bold italics shorter longer tone flow readable
    clarity clear clearer simple simpler easy easier fluent natural engaging concise accessible
    wording words phrase formatting format markdown paragraph sentence heading section beginning
    first top front end start structure list summary notes explanation rationale disclaimer key
    point main message meaning fact information language style reader audience engine search
    generative source rules query follow follows following likely cited fits works"""
)
_TALK |= _TEXT | _DEEDS | _TELLING
_POLITE = re.compile(
    r"\W*(?:t?here you (?:go|are)|here (?:it|they) (?:is|are)|here|got it|of course|no problem|"
    r"thank you|thanks|great|done|yes)\b\W*",
    re.IGNORECASE,
)
_MYSELF = re.compile(r"\b(?:I|me)\b|\bkey point\b")
_FRAMED = re.compile(r"\s*(?:[*=~_<-]{2}|\[).*(?:[*=~_>-]{2}|\]):?")
_END = re.compile(
    r"[\W_]*(?:the )?end(?: of)?(?: the)?(?: (?:rewritten|revised))?"
    r"(?: (?:page|text|rewrite|document|article|output))?[\W_]+",
    re.IGNORECASE,
)
_LAST_LINES = 40  # in which closing remarks are looked for
_LONGEST = 60  # words of a sentence that announces a page
# The end of a sentence, or of what stands before a colon.
_BREAK = re.compile(r"(?<=[.!?:;…])[*_\"'”’)\]]{0,4}\s+|(?<=[。！？：；])|\n\s*")
_LIST_MARK = re.compile(r"[\s>#*_•+-]{0,12}(?:\d{1,3}[.)]|[a-z][.)])?[\s*_]{0,4}")

# What a page is wrapped in. What Markdown and HTML use themselves is none.
_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*([\w-]*)[^\n`]{0,40}$", re.MULTILINE)
_PROSE = frozenset(("", "markdown", "md", "text", "txt", "plaintext", "html", "xml", "json"))
_TAG = re.compile(
    r"<(?P<close>/?)(?P<name>[A-Za-z][\w:-]{0,40})(?:\s[^<>\n]{0,200})?>"
    r"|\[(?P<closed>/?)(?P<bracketed>[A-Za-z]\w{2,30})\](?!\()"
)
_MARKUP = frozenset(
    """a b blockquote br code details div dd dl dt em figure footer h1 h2 h3 h4 h5 h6 header hr i
    img li nav ol p pre s section small span strong sub summary sup table tbody td th thead tr u
    ul""".split()  # noqa: SIM905
)
_PAGE_NAME = re.compile(
    r"\w*(?:page|text|rewrit|revis|output|content|article|result|response|answer|document|final"
    r"|version)\w*",
    re.IGNORECASE,
)
_FIELD = re.compile(rf"[\"'](?:{_PAGE_NAME.pattern})[\"']\s{{0,9}}:\s{{0,9}}[\"']", re.IGNORECASE)
_NEXT_FIELD = re.compile(r"[\"']\s{0,9},?\s{0,9}(?:\}|[\"']\w{1,30}[\"']\s{0,9}:|\Z)")
_QUOTES = {'"' * 3: '"' * 3, "'" * 3: "'" * 3, '"': '"', "“": "”", "«": "»", "「": "」"}
# What ends a turn in a chat, where a server leaves it in; what comes after is another's turn.
_TURN = re.compile(
    r"<[|｜][^|｜<>\n]{2,40}[|｜]>(?:assistant\n)?|</s>|<end_of_turn>|\[\|endofturn\|\]|\[e~\[|\[/?INST\]"
)
_CUT = "\0"  # stands where something was taken out; no reply has one
_EMPTY_FENCE = re.compile(
    r"^(`{3,}|~{3,})[\w-]*[ \t]*\n[\s\0]{0,99}\0[\s\0]{0,99}^\1[ \t]*$", re.MULTILINE
)


@dataclass(frozen=True)
class Asked:
    """What stands around the page in a rewriter's prompt, which a reply may repeat.

    Attributes:
        text: The instructions, with the prompt's tags.
        values: What is put in beside the page, by the names of its tags: key point, query, rules.
    """

    text: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the prompt's tags, as `_plain` writes them."""
        tags = re.findall(r"</?([A-Za-z]\w*)", self.text)
        return frozenset(map(_plain, ("page", *self.values, *tags)))

    @cached_property
    def tag(self) -> re.Pattern[str]:
        """A tag of the prompt in any form: escaped, bold, with attributes, with wide brackets."""
        names = (name.replace("_", r"[\s_\\-]{0,2}") for name in sorted(self.names, key=len))
        return re.compile(
            r"(?P<mark>[*_`]{1,3})?(?:\\?[<＜‹]|&lt;)\s{0,3}(?P<close>[/／]?)\s{0,3}"
            rf"(?P<name>{'|'.join(names)})s?(?![\w-])[^<>\n]{{0,80}}?(?P<empty>/?)"
            r"\\?(?:[>＞›]|&gt;)(?(mark)(?P=mark))",
            re.IGNORECASE,
        )

    @property
    def sentences(self) -> frozenset[str]:
        """The instructions' sentences of three words and more."""
        return _instructions(self.text)[0]

    @property
    def runs(self) -> frozenset[str]:
        """All runs of four words in a line of the instructions."""
        return _instructions(self.text)[1]


@lru_cache(maxsize=64)
def _instructions(text: str) -> tuple[frozenset[str], frozenset[str]]:
    lines = text.split("\n")
    said = (_said(part) for line in lines for part in _parts(line))
    runs = (run for line in lines for run in _runs(_said(line)))
    return frozenset(sentence for sentence in said if sentence.count(" ") > 1), frozenset(runs)


@dataclass(frozen=True)
class _Original:
    """The page as it was, by which its own words are known."""

    page: str

    @cached_property
    def said(self) -> str:
        return _said(self.page)

    @cached_property
    def sentences(self) -> frozenset[str]:
        lines = self.page.split("\n")
        return frozenset(_said(part) for line in lines for part in (line, *_parts(line)))

    @cached_property
    def runs(self) -> frozenset[str]:
        return frozenset(_runs(self.said))

    @cached_property
    def tags(self) -> frozenset[str]:
        names = re.findall(r"(?:[<＜]|&lt;|\[/)[/／]?\s?([A-Za-z][\w \\-]{0,30})", self.page)
        return frozenset(_plain(part) for name in names for part in (name, name.split()[0]))

    def has(self, text: str) -> bool:
        """Tell whether the page says a text, word for word."""
        return f" {_said(text)} " in f" {self.said} "

    def own(self, text: str) -> str:
        """Return a text if each of its sentences is the page's, else nothing."""
        said = [_said(part) for line in text.split("\n") for part in _parts(line)]
        return text.strip() if all(part in self.sentences for part in said if part) else ""


def clean_rewrite(reply: str, page: str, asked: Asked | None = None) -> Rewrite:
    """Take the page out of a rewriter's reply.

    Left out are thoughts; fences, tags, quotation marks and JSON around the page; what the reply
    repeats of its prompt, with its content; and what it says of the rewriting before and after
    the page. The last is known by its English words; what the page says itself stays.

    Args:
        reply: What the model wrote.
        page: The page as it was.
        asked: What stood around it in the prompt.

    Returns:
        The page, or an abstention with the reason why the reply holds none: `empty`, `refused`,
        or `short` (under a fifth of the page's words). The echoes are counted either way.
    """
    original, asked = _Original(page), asked or Asked()
    text = plain_line_breaks(reply).replace(_CUT, "").strip()
    if not _THOUGHT.search(page):  # a page about such tags keeps them
        text = strip_thoughts(_TAIL.sub("", text))
        text = _CLOSED_LATE.sub("", text).strip()
    if not _TURN.search(page):
        text = next((turn for turn in _TURN.split(text) if words(turn)), "")
    text, blocks = _without_blocks(text, original, asked)
    text, labels = _without_labels(text, original, asked)
    text, sentences = _without_instructions(text, original, asked)
    text, pages = _without_old_page(_closed_up(text, original), original, asked)
    text, wrappers = _unwrapped(text, original, asked)
    text, tags = _without_tags(text, original, asked)
    text = _without_remarks(_closed_up(text, original), original)
    echoes = blocks + labels + sentences + pages + wrappers + tags
    if not text:
        return Rewrite("", "empty: the reply holds no page", echoes=echoes)
    n, needed = len(words(text)), _SHORTEST * len(words(page))
    if _REFUSAL.match(text) and n < max(needed, 120) and not _REFUSAL.match(page):
        return Rewrite("", f"refused: {text[:120]}", echoes=echoes)
    if n < needed:
        return Rewrite("", "short: under a fifth of the page's words", echoes=echoes)
    return Rewrite(text, echoes=echoes)


def _said(text: str) -> str:
    """Return a text's words, without list marks, case and the two spellings of -ise."""
    found = _LIST_MARK.match(text)
    return " ".join(words(text[found.end() if found else 0 :].lower().replace("z", "s")))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().lower()).removesuffix("s")


def _runs(said: str) -> Iterator[str]:
    listed = said.split()
    for start in range(len(listed) - 3):
        yield " ".join(listed[start : start + 4])


def _parts(line: str) -> list[str]:
    """Split a line into sentences, and behind colons; put together they are the line."""
    parts: list[str] = []
    start = last = 0
    for end in (*(found.end() for found in _BREAK.finditer(line)), len(line)):
        if re.search(r"[^\W\d_]", line[last:end]) or end == len(line):
            parts.append(line[start:end])  # with a list's number before what it numbers
            start = end
        last = end
    return parts


def _is_talk(text: str) -> bool:
    return _stems(text) <= _TALK


def _without_blocks(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Cut the prompt's blocks, such as the key point's, with what is in them.

    A tag that is never closed takes along what was asked, where that follows, and nothing else.
    """
    for name in {
        found for found in re.findall(r"\[/(\w{1,30})\]", text) if _plain(found) in asked.names
    }:
        text = re.sub(rf"\[(/?{name})\]", r"<\1>", text)
    following: dict[str, re.Match[str]] = {}  # by name: the next tag of that name
    cuts: list[tuple[int, int]] = []
    tags = list(asked.tag.finditer(text))
    everything = f" {_said(text)} " if 0 < len(tags) < 40 else ""
    for tag in reversed(tags):
        name = _plain(tag["name"])
        after, following[name] = following.get(name), tag
        if tag["close"] or tag["empty"] or name == "page":
            continue
        value = next((v for other, v in asked.values.items() if _plain(other) == name), "")
        if after and after["close"]:
            line = text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()]
            inline = re.search(r"[^\W_]", line) is not None
            inside = text[tag.end() : after.start()]
            only = original.has(inside) and everything.count(f" {_said(inside)} ") == 1
            if _is_echo(_said(inside), value, inline, only):
                cuts.append((tag.start(), after.end()))
                continue
        if end := _leading(text, tag.end(), value):
            cuts.append((tag.start(), end))
    return _cut(text, cuts[::-1]), len(cuts)


def _is_echo(said: str, value: str, inline: bool, only: bool) -> bool:
    """Tell whether what a tag of the prompt holds is no page text.

    It may be: within a line, a passage that the tag marks; the only copy of a sentence of the
    page; and the whole page, in the wrong tag.
    """
    if not said or said == _said(value):
        return not (said and inline and only)
    return not inline and not only and said.count(" ") < 2 * len(words(value)) + 20


def _leading(text: str, place: int, value: str) -> int:
    """Return where a value ends that the text says from a place on, word for word; else 0."""
    wanted, end = _said(value).split(), 0
    spans = word_spans(text[place : place + 3 * len(value) + 100])
    for word in wanted:
        _, end, said = next(spans, (0, 0, ""))
        if said.lower().replace("z", "s") != word:
            return 0
    closing = re.compile(r"[.!?;*_\"'”’)\]`]{0,8}").match(text, place + end)
    return closing.end() if wanted and closing else 0


def _without_labels(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Cut headings with what was asked under them: "**Key point:** The Moon ..."."""
    cuts: list[tuple[int, int]] = []
    for name, value in asked.values.items():
        label = re.compile(
            r"^[ \t>#*_•\d.)\[(-]{0,12}(?:(?:the|target|main|given|your|search) )?"
            rf"{name.replace('_', '[ _-]?')}\b[^\n:：]{{0,30}}?[*_\])]{{0,3}}[ \t]{{0,9}}"
            r"(?:[:：]|\n|[-–—=])[\s*_:=>\"“'–—-]{0,20}",
            re.IGNORECASE | re.MULTILINE,
        )
        for found in label.finditer(text):
            end = _leading(text, found.end(), value)
            if end and not original.has(text[found.start() : end]):
                cuts.append((found.start(), end))
    return _cut(text, sorted(cuts)), len(cuts)


def _without_instructions(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Cut sentences of the instructions, with what a colon introduces: what was asked, a note."""
    lines, count, said = text.split("\n"), 0, _said(text)
    short = (sentence for sentence in asked.sentences if sentence.count(" ") == 2)
    if asked.runs.isdisjoint(_runs(said)) and not any(sentence in said for sentence in short):
        return text, 0  # as nearly always
    for place, line in enumerate(lines):
        if not _repeats(line, 0.0, original, asked):
            continue
        kept, parts = [], _parts(line)
        while parts:
            part = parts.pop(0)
            if not _repeats(part, 0.6, original, asked):
                kept.append(part)
                continue
            kept.append(_CUT)
            count += 1
            if ":" in part[-6:]:
                rest = "".join(parts)
                end = max((_leading(rest, 0, value) for value in asked.values.values()), default=0)
                if re.match(r"\s*(?:[-*+•]|\d+[.)])", line) and len(words(rest)) < _LONGEST:
                    end = len(rest)
                parts = _parts(rest[end:]) if end else parts
        lines[place] = "".join(kept)
    return "\n".join(lines), count


def _repeats(text: str, share: float, original: _Original, asked: Asked) -> bool:
    """Tell whether more than a share of a text's words is the instructions' and not the page's."""
    said, covered = _said(text), set[int]()
    if said in asked.sentences and said not in original.sentences:
        return True
    for start, run in enumerate(_runs(said)):
        if run in asked.runs and run not in original.runs:
            covered.update(range(start, start + 4))
    return len(covered) > share * (said.count(" ") + 1)


def _without_old_page(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Cut the page as it was from before a rewrite of it, or in its tags from behind one."""
    total, needed = len(words(text)), (1 + _SHORTEST) * len(original.said.split())
    if total < needed:
        return text, 0
    tags = [tag for tag in asked.tag.finditer(text) if _plain(tag["name"]) == "page"]
    for tag, after in pairwise(tags):
        inside = text[tag.end() : after.start()]
        if after["close"] and not tag["close"] and _said(inside) == original.said:
            return _closed_up(_cut(text, [(tag.start(), after.end())]), original), 1
    labels = [part for part in re.finditer(r"^[^\n]{1,99}$", text, re.MULTILINE) if part.start()]
    for label in [part for part in labels if _leads_up(part[0], original)][:4]:
        if original.said and f" {original.said} " in f" {_said(text[: label.start()])} ":
            return text[label.end() :].strip(), 1
    return text, 0


def _without_tags(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Cut tags of the prompt that are left; what stands between them stays."""
    left = [tag for tag in asked.tag.finditer(text) if _plain(tag["name"]) not in original.tags]
    return _cut(text, [tag.span() for tag in left]), len(left)


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Put a mark in place of each span that no earlier one covers."""
    pieces, last = [], 0
    for start, end in spans:
        if start >= last:
            pieces += [text[last:start], _CUT]
            last = end
    return "".join([*pieces, text[last:]])


def _closed_up(text: str, original: _Original) -> str:
    """Return a text without the marks of what was cut out, and lines in which nothing else was."""
    if _CUT not in text:
        return text
    lines: list[str] = []
    closing = False
    for line in _EMPTY_FENCE.sub(_CUT, text).split("\n"):
        if _CUT in line:
            rest = re.sub(rf"[ \t]*{_CUT}[ \t{_CUT}]*", " ", line).rstrip()
            line = rest.lstrip() if line.lstrip().startswith(_CUT) else rest
            closing = not re.search(r"[^\W\d_]", line)
            if closing:  # with what led up to it
                while lines and (not lines[-1].strip() or _leads_up(lines[-1], original)):
                    lines.pop()
                continue
        elif closing and not line.strip():
            continue
        lines += ["", line] if closing and lines else [line]
        closing = False
    return "\n".join(lines).strip()


def _leads_up(line: str, original: _Original) -> bool:
    label = line.rstrip(" *_").endswith((":", "：")) or line.startswith("#") or _FRAMED.match(line)
    return bool(label) and _is_talk(line) and not original.own(line)


def _unwrapped(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Return what a text announces, quotes, fences or tags, and how many of that are echoes."""
    echoes = 0
    for _ in range(8):
        inner, keys = _from_json(text.strip(), original, asked)
        inner, tags = _from_tags(_from_fence(inner, original), original, asked)
        inner = _from_quotes(_from_rules(inner, original), original)
        inner = inner[_opening(inner, original) :].strip()
        echoes += keys + tags
        if inner == text:
            break
        text = inner
    return text, echoes


def _opening(text: str, original: _Original) -> int:
    """Return where sentences end that announce the page, or talk to whom it was written for."""
    place = 0
    while found := _BREAK.search(text, place):
        part = text[place : found.start()]
        stems = _stems(part)
        framed = "\n" in found[0] and _FRAMED.match(part)
        label = framed or part.rstrip(" *_").endswith((":", "："))
        telling = bool(stems & _TELLING) or (label and stems & _TEXT) or _POLITE.fullmatch(part)
        chat = place and _MYSELF.search(part)  # "Sure! I am happy to help."
        if not (telling or chat) or not stems <= _TALK or len(words(part)) > _LONGEST:
            break
        if _said(part) in original.sentences:
            break
        place = found.end()
    return place


def _from_json(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Return the page that a JSON object holds, and how many of its keys are the prompt's."""
    if not text.startswith(("{", "[{")) or original.page.lstrip()[:1] in ("{", "["):
        return text, 0
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        value = None
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, dict):
        texts = {key: said for key, said in value.items() if isinstance(said, str)}
        named = [key for key in texts if _PAGE_NAME.fullmatch(key)] or list(texts)
        page = max(named, key=lambda key: len(texts[key]), default="")
        keys = sum(_plain(key) in asked.names for key in texts if key != page)
        return (texts[page].strip(), keys) if named else (text, 0)
    if not (found := _FIELD.search(text)):
        return text, 0
    # Cut off, or with quotation marks that are not escaped.
    inner = _NEXT_FIELD.split(text[found.end() :])[0]
    try:
        return str(json.loads(f'"{inner}"', strict=False)), 0
    except ValueError:
        return inner.replace("\\n", "\n").replace('\\"', '"'), 0


def _from_fence(text: str, original: _Original) -> str:
    """Return what stands in a fence around the page."""
    fences = list(_FENCE.finditer(text))
    if not fences or fences[0][2].lower() not in _PROSE:
        return text
    first, last = fences[0], fences[-1]
    inside, outside = text[first.end() : last.start()], len(text) - last.end()
    if first.start() == 0 and not _FENCE.match(original.page.lstrip()):
        if len(fences) == 1:  # never closed
            return text[first.end() :].strip()
        # Of a page that holds fences itself, the last one may be its own.
        wide = len(first[1]) > 3 or first[2].lower() in ("markdown", "md")
        closed = last[0].strip() == first[1] and (len(fences) == 2 or (wide and not outside))
        return inside.strip() if closed and outside <= len(inside) else text
    if _FENCE.search(original.page):
        return text
    if len(fences) == 2 and 2 * len(inside) > len(text):
        around = original.own(text[: first.start()]), original.own(text[last.end() :])
        return f"{around[0]}\n\n{inside.strip()}\n\n{around[1]}".strip()
    return text[: last.start()].strip() if len(fences) == 1 and not outside else text


def _from_tags(text: str, original: _Original, asked: Asked) -> tuple[str, int]:
    """Return what stands in a tag around the page, and 1 if the tag is the prompt's."""
    opening, closing, name = None, None, ""
    for tag in _TAG.finditer(text):
        found = _plain(tag["name"] or tag["bracketed"])
        known = _PAGE_NAME.fullmatch(found) is not None
        if (tag["name"] or tag["bracketed"]).lower() in _MARKUP or found in original.tags:
            continue
        if tag["close"] or tag["closed"]:
            closing = tag if found == name or not opening else closing
        elif opening is None and (known or not tag.start()):
            opening, name = tag, found
    if opening and closing:
        inside = text[opening.end() : closing.start()].strip()
        before, after = text[: opening.start()].strip(), text[closing.end() :].strip()
        if 2 * len(inside) < len(text) or ((before or after) and not _PAGE_NAME.fullmatch(name)):
            return text, 0
        parts = original.own(before), inside, original.own(after)
        return "\n\n".join(filter(None, parts)), int(name in asked.names)
    lone = opening or closing  # cut off, or begun before the reply
    if lone is None or not lone["name"] or not _PAGE_NAME.fullmatch(lone["name"]):
        return text, 0
    if lone.start() if opening else len(text) - lone.end():
        return text, 0
    return _cut(text, [lone.span()]).strip(_CUT + " \n"), int(_plain(lone["name"]) in asked.names)


def _from_quotes(text: str, original: _Original) -> str:
    for opening, closing in _QUOTES.items():
        if text.startswith(opening) and not original.page.lstrip().startswith(opening):
            inside = text[len(opening) : -len(closing)]
            return inside.strip() if text.endswith(closing) and closing not in inside else text
    return text


def _from_rules(text: str, original: _Original) -> str:
    """Return a text without rules around it, and without a last line that says that it ends."""
    rule = "-*_= \t"
    lines, own = text.split("\n"), original.page.strip().split("\n")
    while lines and not lines[0].strip(rule) and own[0].strip(rule):
        lines.pop(0)
    while lines and (
        (not lines[-1].strip(rule) and own[-1].strip(rule))
        or (_END.fullmatch(lines[-1]) and not original.own(lines[-1]))
    ):
        lines.pop()
    return "\n".join(lines).strip()


def _without_remarks(text: str, original: _Original) -> str:
    """Cut off what a reply says at its end of the rewriting, from the first such line on."""
    lines = text.split("\n")
    for place in range(max(len(lines) - _LAST_LINES, 1), len(lines)):
        if _is_remark(lines[place], original):
            kept = "\n".join(lines[:place])
            if 2 * len(kept) >= len(text):
                return _from_rules(_closed_up(f"{kept}\n{_CUT}", original), original)
    return text


def _is_remark(line: str, original: _Original) -> bool:
    """Tell whether a line speaks of the rewriting: mostly in its words, and in one that tells."""
    part, *others = _parts(line)
    if others and part.rstrip(" *_").endswith(":") and _is_talk(part):  # "Note: I kept all facts."
        part += others[0]
    stems = _stems(part)
    if len(stems & _TALK) < 0.7 * len(stems) or not stems or original.has(part):
        return False
    mine = _MYSELF.search(part) is not None and bool(stems & _DEEDS)
    return mine or bool(stems & _TELLING)
