"""From a rewriter's reply to its page: without thoughts, wrappers, echoes of the prompt, remarks.

What the original page says itself is never taken for one of these.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from itertools import islice

from geo_utils.models.replies import THOUGHTS, strip_thoughts
from geo_utils.roles.rewriters import Rewrite
from geo_utils.text import clean_text, content_words, numbers, stem, words

_CUT = "\0"  # stands where something was taken out; no clean text has one
_THOUGHT = re.compile(rf"(?is)<(?:{THOUGHTS})>.*?(?:</(?:{THOUGHTS})>|\Z)")
_CHAT = r"<[|｜][^|｜<>\n]{2,40}[|｜]>"
# What ends a turn in a chat, where a server leaves it in; what comes after is another's turn.
_TURN = re.compile(
    rf"(?:{_CHAT}|<start_of_turn>|\A|(?<=[.!?]))(?:assistant|model)(?:\n|{_CHAT})"
    rf"|{_CHAT}|</?s>(?=\s*(?:<|\Z))|\A<s>|<[be]os>|<end_of_turn>|\[\|endofturn\|\]|\[e~\["
    r"|\[/?INST\]|\n(?:User|Human): "
)
# Another's turn, with the mark that ends it.
_ASKED = re.compile(
    rf"(?s)(?:(?:{_CHAT}|<start_of_turn>)(?:user|system)(?:\n|{_CHAT})|<[|｜](?i:user|system)[|｜]>)"
    rf".*?(?:{_CHAT}|<end_of_turn>|\Z)|\[INST\](?:(?!\[INST\]).)*\[/INST\]"
    r"|\A(?:User|Human): .*?\n(?:Assistant|AI): "
)
_REFUSAL = re.compile(
    r"(?i)\W*(?:i(?:['’]m| am) (?:sorry|not able|unable)|sorry,|i can(?:not|['’]t)|as an ai)\b"
)
# A line, with the list that follows it.
_BLOCK = re.compile(r"(?m)^[^\n]*\S[^\n]*(?:\n\s*(?:[-*+•]|\d{1,3}[.)])\s[^\n]*|\n\|[^\n]*)*")
_ENDS = re.compile(r"[.!?…\])>]")  # a sentence, and no heading
# A sentence, or what stands before a colon, with a list's number before it; a line without words.
_BREAK = r"(?:(?<=[.!?:;…])[*_\"'”’)\]]{0,4}\s+|(?<=[。！？：；])|\n\s*)"
_PART = re.compile(rf"(?s)(?:[^\w\n]|[\d_])*+[^\W\d_].*?(?:{_BREAK}|\Z)|[^\n]*\n\s*|.+")
# A heading, a line that ends in a colon or an arrow, a line in a frame.
_LABEL = re.compile(r"^#|(?:[:：→]|[-=]>)[ *_]*$|^\s*(?:[*=~_<-]{2}|\[).*(?:[*=~_>-]{2}|\])$")
_UNDERLINE = re.compile(r"(?m)[-=]{3,}[ \t]*$")
_MYSELF = re.compile(r"\b(?:I|me)\b|\bkey point\b")

# What a page is wrapped in: a rule, a fence, a tag; the texts of a JSON object, also of one that is
# cut off or does not escape its quotation marks, and of Python's NAME = "..."; quotation marks.
_RULE = "-*_=<>#| \t"
_MARK = re.compile(
    r"(?m)^ {0,3}(?:`{3,}|~{3,})[ \t]*(?P<lang>[\w-]*)[^\n`]{0,40}$"
    r"|<(?P<close>/?)(?P<name>[A-Za-z][\w:-]{0,40})(?:\s[^<>\n]{0,200})?>"
)
_PROSE = ("", "markdown", "md", "text", "txt", "plaintext", "html", "xml", "json", "yaml")
_OBJECT = re.compile(r"(?:json\n)?\s*[\[{]\s*(?:\w{1,30}:\s?)?[\"'{]|\w{1,30} ?= ?[\"']")
_FIELD = re.compile(
    r"(?s)(?:[\"']?(\w{1,30})[\"']?\s{0,9}[:=]\s{0,9}|^\s?)\[?(\"{3}|'{3}|[\"'])(.*?)(?<!\\)"
    r"(?:\2\s{0,9},?\s{0,9}(?:\]\s{0,9})?(?=[}]|[\"']\w{1,30}[\"']\s{0,9}:|\Z)|\Z)"
)
_QUOTED = re.compile(r"(?s)(?:[\"`]{1,3}|'{3}|[“«「])([^\"”»」`]*)(?:[\"`]{1,3}|'{3}|[”»」])")
_BOXED = re.compile(  # of mathematics, and of XML
    r"(?s)[$\\\[(\s]{0,3}\\boxed\s?\{(?:\\text\{(.*)\}|(.*))\}[$\\\])\s]{0,3}|<!\[CDATA\[(.*)\]\]>"
    r"|\W{0,20}(?:BEGIN|START)\b[^\na-z]{0,40}\n(.*)\n\W{0,20}END\b[^\na-z]{0,40}"
)
# A fence or tag in which nothing is left.
_EMPTIED = re.compile(r"(?m)^(?:(```|~~~)\w*|<(\w{1,30})>)[\s\0]{0,99}\0\s*(?:\1|</\2>)$")


def _stems(text: str, every: bool = False) -> frozenset[str]:
    """Return the stems of a text's content words or of `every` word, "I've" as "I"."""
    plain = re.sub(r"['’](?:ve|d|m|ll|re|s)\b", "", text.lower().replace("z", "s"))
    stems = map(stem, words(plain)) if every else content_words(plain)
    return frozenset(each for each in stems if not each.isdigit())


# A reply speaks of its rewriting in few words: of the `text`, of its `deeds`, `agreeing`, and in
# `other` words around these. A sentence in such words is no page's if one of them is `telling`.
_LISTED = json.loads((files("geo_utils") / "data/talk.json").read_text(encoding="utf-8"))
# Signs of talk, and those of them that tell of rewriting; words that are nobody's; a page's owner;
# what of a text is counted.
_SIGN, _REWRITTEN, _PLAIN, _OURS, _COUNTED = (
    _stems(_LISTED.pop(kind), every=True)
    for kind in ("signs", "rewritten", "plain", "ours", "counted")
)
_WORDS = {kind: _stems(listed) for kind, listed in _LISTED.items()}
_TALK = frozenset[str]().union(*_WORDS.values())
_KNOWN = _TALK | _SIGN | _PLAIN
_TELLING = frozenset(_LISTED["telling"].split())


@dataclass(frozen=True)
class Asked:
    """What stands around the page in a rewriter's prompt, which a reply may repeat.

    Attributes:
        text: The instructions, with the prompt's tags.
        values: What is put in beside the page, by the names of its tags: key point, query, rules.
    """

    text: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


def clean_rewrite(reply: str, page: str, asked: Asked | None = None) -> Rewrite:
    """Take the page out of a rewriter's reply.

    Left out are thoughts; fences, tags, quotation marks and JSON around the page; what the reply
    repeats of its prompt, with its content; and what it says of the rewriting before and after
    the page. The last is known by its English words. What the page says itself stays; a sentence
    that the rewriter adds at an end may go, if all its words are general ("Read on for more.").

    Args:
        reply: What the model wrote.
        page: The page as it was.
        asked: What stood around it in the prompt.

    Returns:
        The page, or an abstention with the reason why the reply holds none: `empty`, `refused`,
        or `short` (under a fifth of the page's words). The echoes are counted either way.
    """
    reading = _Reading(page, asked or Asked())
    text = clean_text(reply).strip()
    if not _THOUGHT.search(page):  # a page about such tags keeps them
        text = _THOUGHT.sub("", strip_thoughts(text)).strip()
    if not _TURN.search(f"\n{page}"):
        turns = _TURN.split(_ASKED.sub("<eos>", text))
        text = next(filter(words, turns), "")
    text = reading.without_instructions(reading.without_values(text))
    text = reading.closed_up(reading.without_old_page(reading.closed_up(text)))
    text = reading.without_talk(reading.without_remarks(reading.unwrapped(text)))
    n, problem = len(words(text)), None
    if not text:
        problem = "empty: the reply holds no page"
    elif _REFUSAL.match(text) and n < max(reading.needed, 120) and not _REFUSAL.match(page):
        problem = f"refused: {text[:120]}"
    elif n < reading.needed:
        problem = "short: under a fifth of the page's words"
    return Rewrite("" if problem else text, problem, echoes=reading.echoes)


def _said(text: str) -> str:
    """Return a text's words, without a list's number, case and the two spellings of -ise."""
    bare = re.sub(r"^[\s>#*_•+-]{0,12}(?:\d{1,3}|[a-z])[.)]", "", text)
    return " ".join(words(bare.lower().replace("z", "s")))


def _names_page(name: str) -> bool:
    return bool(_stems(name.replace("_", " ")) & (_WORDS["text"] | _WORDS["deeds"]))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().lower()).removesuffix("s")


@lru_cache(maxsize=64)
def _runs(text: str) -> tuple[str, ...]:
    """Return all runs of four words in a line, and all sentences of three."""
    said = [_said(line).split() for line in text.split("\n")]
    runs = (" ".join(line[i : i + 4]) for line in said for i in range(len(line) - 3))
    return (*runs, *(x for x in map(_said, _PART.findall(text)) if x.count(" ") == 2))


@lru_cache(maxsize=64)  # a page is rewritten by many methods
def _read(page: str) -> tuple[frozenset[str], list[frozenset[str]], frozenset[str], float]:
    """Return a page's sentences, lines and stems, and than how many words none has fewer."""
    parts = frozenset(("", *map(_said, page.split("\n")), *map(_said, _PART.findall(page))))
    lines = [_stems(line, every=True) for line in page.split("\n")]
    return parts, lines, _stems(page), 0.2 * len(words(page))


class _Reading:
    """A reply as it is read by what is known of its prompt and of the page.

    Attributes:
        echoes: How many pieces of the prompt were taken out so far.
    """

    def __init__(self, page: str, asked: Asked) -> None:
        self.page, self.asked, self.echoes = page.strip(), asked, 0
        self.sentences, self.lines, self.stems, self.needed = _read(page)
        tags = re.findall(r"(?:[<＜]|&lt;|\[/)[/／]?\s?([A-Za-z][\w\\-]{0,30})", page)
        self.tags = {"table", "ul", "ol", "pre", *map(_plain, tags)}  # none of these is a wrapper
        # What was asked, word for word in any punctuation; rules are among the instructions.
        asks = [_said(value).split() for value in asked.values.values() if value not in asked.text]
        said = "|".join(r"[\W_]{0,9}".join(map(re.escape, each)) for each in asks if each)
        self.value = (
            rf"[\W_]{{0,20}}(?:{said.replace('s', '[sz]') or _CUT})(?![a-z0-9])"
            r"[.!?;*_\"'”’)\]`]{0,8}(?: \|)?"
        )
        # A tag of the prompt in any form: escaped, bold, with attributes, with other brackets.
        names = {"page", *asked.values, *re.findall(r"</?([A-Za-z]\w*)", asked.text)}
        self.names = set(map(_plain, names)) - self.tags
        self.name = "|".join(sorted(self.names)).replace("_", r"[\s_\\-]{0,2}") or _CUT
        self.tag = (
            rf"(?:\[/?(?:{self.name})s?\](?!\()|(?P<bold>[*_`]{{1,3}})?(?:\\?[<＜‹]|&lt;)\s{{0,3}}"
            rf"[/／]?\s{{0,3}}(?:{self.name})s?(?![\w-])[^<>\n]{{0,80}}?\\?(?:[>＞›]|&gt;|$)"
            r"(?(bold)(?P=bold)))"
        )

    def own(self, text: str) -> bool:
        """Tell whether each sentence of a text is the page's."""
        return all(_said(part) in self.sentences for part in _PART.findall(text))

    def rewords(self, text: str) -> bool:
        """Tell whether one line of the page has nearly all words of a text."""
        said = _stems(text, every=True)
        return any(4 * len(said & line) > 3 * len(said) for line in self.lines)

    def without_values(self, text: str) -> str:
        """Cut what was asked under its name or in its tag, and what else is in such a tag."""

        def cut(found: re.Match[str]) -> str:
            said = found["said"].strip()
            kept = self.own(said) and found.string.count(said) <= self.page.count(said)
            return found[0] if kept else _CUT

        label = (
            # What begins a line, or a parenthesis behind a sentence;
            r"(?im)(?P<said>(?:(?:^(?:[ \t<>＜‹\\`#*_•\d.)\[(|-]{0,12}|&lt;)|(?<=[\w.!?] )\()"
            # the name, as in "The key point to stress";
            r"(?:(?:the|target|main|given|your|search) |<b>(?:\w+ )?)?"
            rf"(?!page)(?:{self.name})\b[^\n:：]{{0,30}}?"
            # a colon, a dash, the end of a tag or line;
            r"[*_)]{0,3}[ \t]{0,9}(?:[:：>＞|\]]|&gt;|\n|[-–—=])(?:</b>)?[\s*_`:=>|\"“'–—-]{0,20}"
            # or any tag that emphasises nothing, and is closed behind the value.
            r"|<(?!(?:[abipqu]|em|strong|mark|code|span|div|li|t[dh]|h\d)\b)(?P<any>\w{1,20})>)"
            rf"{self.value}(?(any)\s{{0,9}}</(?P=any)>|(?:\s{{0,9}}(?:{self.tag}|</\w{{1,20}}>))?))"
        )
        block = rf"(?im)^[ \t]*<(?!page)((?:{self.name})s?)>(?P<said>[^<]{{0,400}})</\1>"
        return re.sub(block, cut, re.sub(label, cut, text))

    def without_instructions(self, text: str) -> str:
        """Cut sentences of the prompt, with what a colon introduces: what was asked, a note."""
        asked = set(_runs(self.asked.text)).difference(_runs(self.page))
        if asked.isdisjoint(_runs(text)):
            return text  # as nearly always
        lines = text.split("\n")
        for place, line in enumerate(lines):
            note = re.match(r"\s*[-*+•\d]", line) and len(words(line)) < 60
            kept, colon = "", False
            for part in _PART.findall(line):
                if colon and (note or re.fullmatch(rf"(?i){self.value}", part.strip())):
                    continue
                runs = enumerate(_runs(part))
                covered = {i + j for i, run in runs if run in asked for j in range(4)}
                echo = len(covered) > 0.6 * len(_said(part).split())
                kept, colon = kept + (_CUT if echo else part), echo and ":" in part[-6:]
            lines[place] = kept
        return "\n".join(lines)

    def without_old_page(self, text: str) -> str:
        """Cut the page as it was, in its tags or before a heading that announces another."""
        page = _said(self.page)
        if not page or len(words(text)) < len(page.split()) + self.needed:
            return text
        for found in re.finditer(r"(?i)<page>([^<]*)</page>", text):
            if _said(found[1]) == page:
                return f"{text[: found.start()]}{_CUT}{text[found.end() :]}"
        headings = (x for x in re.finditer(r"(?m)^[^\n]{1,99}$", text) if self.leads_up(x[0]))
        for heading in list(headings)[:4]:
            if f" {page} " in f" {_said(text[: heading.start()])} ":
                return _CUT + text[heading.end() :]
        return text

    def closed_up(self, text: str) -> str:
        """Return a text without the marks of cuts, counted, and lines in which nothing else was."""
        self.echoes += text.count(_CUT)
        lines, gap = list[str](), False
        for line in _EMPTIED.sub(_CUT, text).split("\n"):
            rest = " ".join(filter(None, map(str.strip, line.split(_CUT))))
            if _CUT in line and (not re.search(r"[^\W\d_]", rest) or self.leads_up(rest)):
                while lines and (not lines[-1].strip() or self.leads_up(lines[-1])):
                    lines.pop()
                gap = True
            elif rest or not gap:
                lines += [""] * (gap and _CUT not in line) + [rest if _CUT in line else line]
                gap = False
        return "\n".join(lines).strip()

    def leads_up(self, line: str) -> bool:
        """Tell whether a line is a heading, and not the page's, of what comes or was cut."""
        return bool(_LABEL.search(line)) and _stems(line) <= _TALK and not self.own(line)

    def unwrapped(self, text: str) -> str:
        """Return what a text announces, quotes, fences or tags, without tags of the prompt."""
        for _ in range(16):
            inner = self.edged(self.enclosed(self.from_fields(text)))
            inner = inner if inner != text else inner[self.opening(inner) :].strip()
            if inner == text:
                break
            text = inner
        return self.closed_up(re.sub(rf"(?im){self.tag}", _CUT, text))

    def from_fields(self, text: str) -> str:
        """Return the page that a JSON object holds."""
        fields = _FIELD.findall(text) if _OBJECT.match(text) else []
        if not fields or _OBJECT.match(self.page):
            return text
        page = max(fields, key=lambda each: (_names_page(each[0]), len(each[2])))
        self.echoes += sum(_plain(each[0]) in self.names for each in fields if each is not page)
        try:
            return str(json.loads(f'"{page[2]}"', strict=False)).strip()
        except ValueError:
            return str(page[2]).replace("\\n", "\n").replace('\\"', '"').strip()

    def enclosed(self, text: str) -> str:
        """Return what stands in a fence or a tag around the page, with what else is the page's."""
        same = re.sub(r"\[(/?[A-Za-z]\w{2,30})\](?!\()", r"<\1>", text)  # as long; [TEXT] is a tag
        marks: dict[str, list[tuple[bool, re.Match[str]]]] = {}
        for mark in _MARK.finditer(same):
            name = _plain(mark["name"] or "")  # a fence has none
            closes = mark["close"] or (not name and (name in marks or mark.end() == len(text)))
            marks.setdefault(name, []).append((bool(closes), mark))
        for name, found in list(marks.items())[:50]:
            fenced = not name and re.search("```|~~~", self.page)
            starts = [mark.span() for closes, mark in found if not closes]
            ends = [mark.span() for closes, mark in found if closes]
            begin, start = starts[0] if starts else (0, 0)
            end, stop = ends[-1 if name or fenced else 0] if ends else (len(text), len(text))
            # The page stands in what names one, or in a pair of marks around it all. Where one of
            # them is missing it was cut off, or begun before the reply.
            known = _names_page(name) if name else found[0][1]["lang"] in _PROSE
            alone = not begin and starts and ends and len(found) == 2
            whole = ends if begin else starts or _stems(text[stop:]) <= _TALK
            own = name in self.tags or (
                fenced and (begin or len(found) % 2 or self.page[0] in "`~")
            )
            if (known or alone) and whole and 2 * (end - start) >= len(text) and not own:
                self.echoes += name in self.names
                kept = (x.strip() if self.own(x) else "" for x in (text[:begin], text[stop:]))
                return f"\n\n{text[start:end].strip()}\n\n".join(kept).strip()
        return text

    def edged(self, text: str) -> str:
        """Return a text without rules, quotation marks and a box around it."""
        lines, own = text.split("\n"), self.page.split("\n")
        if own[0][:1] != ">" and all(line[:1] in (">", "") for line in lines):
            lines = [line.removeprefix(">").removeprefix(" ") for line in lines]
        left = deque(lines)
        for end, drop in ((0, left.popleft), (-1, left.pop)):
            while left and not left[end].strip(_RULE) and own[end].strip(_RULE):
                drop()
        text = "\n".join(left).strip()
        held = _QUOTED.fullmatch(text) or _BOXED.fullmatch(text)
        if held and self.page[:1] != text[:1]:
            text = str(held[held.lastindex or 0]).strip()
        return text

    def masked(self, text: str) -> str:
        """Return a text of the same length without quotations of what was asked."""
        return re.sub(rf"(?i)[\"“]{self.value}", lambda found: re.sub(".", " ", found[0]), text)

    def opening(self, text: str) -> int:
        """Return where sentences end that announce the page, or talk to whom it was written for."""
        end = 0
        for found in islice(_PART.finditer(self.masked(text)), 40):
            part, stems = found[0].rstrip(), _stems(found[0])
            own = self.page.startswith(part) or (words(part) and self.own(part))
            if own or not stems <= _TALK or part[:1] in "{`" or found.end() == len(text):
                break
            label = _LABEL.search(part) or _UNDERLINE.match(text, found.end())
            about = _WORDS["agreeing"] | (_WORDS["text"] if label or end else frozenset())
            mine = _MYSELF.search(part) if stems else end
            if stems & about or mine or self.tells(part):
                end = found.end()
        return end

    def tells(self, part: str) -> bool:
        """Tell whether a sentence speaks of the rewriting."""
        stems = _stems(part)
        if part[-1:] == "?" or len(stems & _TALK) < 0.7 * len(stems):
            return False
        return not (_TELLING.isdisjoint(_said(part).split()) or self.rewords(part))

    def without_remarks(self, text: str) -> str:
        """Cut off what the last 40 lines say of the rewriting, from the first such line on."""
        lines, masked = text.split("\n"), self.masked(text).split("\n")
        for place in range(max(len(lines) - 40, 1), len(lines)):
            part, *others = _PART.findall(masked[place]) or [""]
            if others and self.leads_up(part.rstrip()):
                part += others[0]
            kept = lines[:place]
            if self.tells(part.rstrip()) and 2 * len("\n".join(kept)) >= len(text):
                while kept and (not kept[-1].strip(_RULE) or self.leads_up(kept[-1])):
                    kept.pop()
                return "\n".join(kept).strip()
        return text

    def without_talk(self, text: str) -> str:
        """Leave out what talks at both ends: paragraphs, headings with what stands below them."""
        spans = deque(found.span() for found in _BLOCK.finditer(text))
        paragraphs = len(spans)
        for place, step, drop in ((0, 1, spans.popleft), (-1, -1, spans.pop)):
            reach = 1
            while reach < min(len(spans), 7) and paragraphs - len(spans) < 40:
                near, far, beyond = (spans[place + step * each] for each in (0, reach - 1, reach))
                block, end = text[min(near, far)[0] : max(near, far)[1]], min(far, beyond)[1]
                if self.talks(block, last=step < 0 and reach == 1):
                    for _ in range(reach):
                        drop()
                    reach = 1
                elif _ENDS.search(text, end - 4, end):
                    break
                else:
                    reach += 1
        if len(spans) == paragraphs:
            return text
        return self.unwrapped(text[spans[0][0] : spans[-1][1]]) if spans else ""

    def talks(self, block: str, last: bool = False) -> bool:
        """Tell whether a paragraph speaks of the rewriting or to its user, and not of the page.

        Words are weighed against each other; the weights were chosen on 400 remarks and on the
        paragraphs at the ends of 881 recorded replies and 150 pages.

        Args:
            block: The paragraph, with a heading or a list.
            last: Nothing comes after it; no page ends in a heading.
        """
        own = any(words(part) and self.own(part) for part in _PART.findall(block))
        if own or not words(block) or self.rewords(block):
            return False
        said, stems = _stems(block, every=True), _stems(block)
        signs, other = said & _SIGN, stems - _KNOWN
        new, theirs = signs.difference(*self.lines), (other & self.stems) | (said & _OURS)
        counts = () if said & _COUNTED else numbers(block)
        line, label = "\n" not in block, re.search(r":\W*$", block)
        ended = re.search(rf"(?:{_ENDS.pattern})\W{{0,3}}$|:", block)
        if line and not last and (block[0] == "#" or not ended):
            plain = -4  # a heading
        else:
            plain = min(len(stems - other - signs), 3 * len(signs) or last or not (line and label))
        talk = plain + len(signs) + 2 * len(new) + 8 * bool(new & _REWRITTEN)
        return (not stems and not counts) or talk > 2 * (len(other) + len(counts) + 3 * len(theirs))
