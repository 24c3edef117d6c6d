"""Sentences and words of pages and answers, in any script, without downloads."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

import nupunkt
import regex
import Stemmer

# A character of a script written without spaces is a word of its own; elsewhere a word is a
# run of letters and marks, and a number keeps its separators (1,300 and 3.5 are one word each).
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"
    r"|\p{N}+(?:[.,]\p{N}+)*(?!\p{L})"
    r"|[\p{L}\p{M}\p{N}]+(?:['\u2019][\p{L}\p{M}]+)*"
)
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]")
# Full stops that nupunkt, trained on Latin scripts, does not know.
_FOREIGN_STOP = regex.compile(r"(?<=[。！？؟۔।])")  # noqa: RUF001
# No word is that long, and on a run of marks nupunkt takes quadratic time.
_TOO_LONG = regex.compile(r"\S{200}(?=\S)")
_PIECE = 3_000
_CLAUSE = regex.compile(r"(?i)[,;:()]|\b(?:but|because|although|while|whereas)\b")
_NOT_ONLY = regex.compile(r"(?i)\bnot (?:only|just|merely|simply|necessarily|to mention)\b")
_NUMBER = regex.compile(r"(?<!\w|\p{L}-|\d[.,])\d+(?:[.,]\d+)*")
_THOUSANDS = regex.compile(r"(?<=\d)[,'\u2019\u00a0\u2009\u202f](?=\d{3}\b)")
_LIST_NUMBER = regex.compile(r"(?m)^[ \t]*(?:#+[ \t]*)?\d+[.)]\s")
_CONTROL = regex.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_LINE_BREAK = regex.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")

# Characters that take no room, with which a word can be broken for a filter but not for a model.
NO_WIDTH = regex.compile(r"\p{Default_Ignorable_Code_Point}")


def _tags(names: Iterable[str]) -> str:
    """Return a pattern of tags of these names, from behind their first bracket, in any disguise."""
    # An underscore may be another sign of its kind, or none.
    signs = (["[_\\s-]?" if c == "_" else regex.escape(c) for c in name] for name in names)
    spelt = "|".join(f"{NO_WIDTH.pattern}*+".join(each) for each in signs)
    gap = rf"(?:\s|{NO_WIDTH.pattern})*+"
    end = r"(?![\w-])[^<>\uff1c\uff1e\ufe65]{0,80}[>\uff1e\ufe65]?"
    return rf"{gap}[\\/\uff0f]{{0,2}}{gap}(?:{spelt}){end}"


# What stands for an end of the text in a prompt or a chat: the prompt templates' own tags, and the
# marks by which a model's tokenizer or server knows turns, thoughts and tools. Most families write
# <|...|> (Qwen, Llama 3 and 4, Phi, Granite, GLM, Kimi, InternLM, Cohere; DeepSeek and Hunyuan with
# wide bars); the others have names of their own. Turns in plain words, such as "User:", are text.
_OWN = ("query", "sources", "source", "page", "key_points", "key_point", "answer", "rules")
DELIMITER = regex.compile(
    rf"""(?ix)
    [<\uff1c\ufe64] (?:
        {_tags(_OWN)}
      | [|\uff5c] (?!\s)(?:"|[^|\uff5c<>\n]{{2,60}})(?<!\s) [|\uff5c][>\uff1e] | \|\w{{2,30}}>
      | \w{{2,30}}\|> | /?[|\uff5c]{{1,2}}DSML[|\uff5c]                           # DeepSeek's tools
      | /?(?:
            s|[bes]o[pst]|eo[acdhmr]|pad|unk|sep|cls|predict|escape|ctrl\d{{1,3}}     # Yuan, Gemini
          | user|assistant|system|human|bot|role|instruction|response              # Laguna, Ziya
          | think|thinking|thought|tools|toolcall|available_tools|arg_(?:key|value)
          | \w{{2,12}}_(?:start|end|token|pad|patch|sep|prefix|middle|suffix|setting)
          | (?:tool|function)_(?:calls?|responses?|results?)
          | (?:start|end|begin|beginning)_(?:of|function)_[a-z]{{1,20}}
          | image|IMG_CONTEXT                                          # where a model sees
          | (?:seed|minimax|mm|longcat|think|mask|[be]os)[:_]\w{{1,30}}
          | _(?:user|bot|system|start|end)|\u7528\u6237|AI|[BCH]_[A-Z]{{1,4}}  # TeleChat, Baichuan
          | special_\d{{1,3}}|extra_(?:id_)?\d{{1,3}}|reserved_\d{{1,4}}|unused\d{{1,4}}  # Nemotron
        )[>\uff1e]
      | <?/?SYS>> )                                                               # Llama 2
    | (?-i:[\[\uff3b] (?:
          /?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|ARGS|CALL_ID
            |MODEL_SETTINGS|PREFIX|MIDDLE|SUFFIX|IMG(?:_BREAK|_END)?|TRANSCRIBE
            |(?:BEGIN_)?AUDIO|STREAMING_(?:PAD|WORD)|(?:NEXT|REPEAT)_AUDIO_TEXT)
        | [gs]MASK|BOS|EO[STP]|SE[AHP]|PAD|UNK|USER|BOT                       # GLM, Kimi, Skywork
        | \|/?[A-Za-z_]{{2,30}}\|                                                 # EXAONE, Jais
        | (?:unused|UNUSED_TOKEN_)\d{{1,3}}                                # Pangu, InternLM
      ) [\]\uff3d] | >>[A-Z_]{{4,20}}<<)                                          # and Falcon
    | \u25c1/?think\u25b7                                                        # Kimi-VL
    | \]~b\] | \]~!b\[ | \]![dp]~\[ | \[e~\[ | \]<\][^\[\]<>\n]{{1,40}}\[>\[        # MiniMax
    """
)
_OTHER = str.maketrans(
    dict.fromkeys("<\uff1c\ufe64[\uff3b\u25c1", "\u2039")
    | dict.fromkeys("]\uff3d", "\u203a")
    | {"&": "\uff06"}
)
# Every mark has one of these parts.
_PARTS = (
    *"<\uff1c\ufe64\uff3b\u25c1",
    "|]",
    "]~",
    "~[",
    "[unused",
    "[UNUSED",
    *(f"{end}]" for end in "STKDGPXEORAH"),
    *("&lt", "&LT", "&#"),
)

STOPWORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before
    being below between both but by can could did do does doing down during each either else ever
    every few for from further get gets got had has have having he her here hers him his how i if
    in into is it its itself just may me might more most much must my neither nor of off on once
    one only onto or other our ours out over own per rather same shall she should since so some
    such than that the their theirs them themselves then there these they this those though
    through thus to too under until up upon us very was we were what when where whether which
    while who whom whose why will with would yet you your yours""".split()  # noqa: SIM905
)
# The last two lines lack their apostrophe, as it is often typed.
NEGATORS = frozenset(
    """not no never none nothing neither nor cannot
    dont doesnt didnt isnt arent wasnt werent wouldnt couldnt shouldnt hasnt havent hadnt
    aint mustnt neednt cant wont""".split()  # noqa: SIM905
)

_stem = Stemmer.Stemmer("english").stemWord


def plain_line_breaks(text: str) -> str:
    """Return the text with every kind of line break as a line feed."""
    return _LINE_BREAK.sub("\n", text)


def clean_text(text: str) -> str:
    """Return the text with plain line breaks, without control characters and lone surrogates."""
    plain = _CONTROL.sub("", plain_line_breaks(text))
    return plain.encode("utf-8", "ignore").decode("utf-8")


# What may be a mark in letters of another width or script, or with entities of HTML in it.
DISGUISED = regex.compile(
    r"""(?ix) [<\uff1c\ufe64] (?=[^<>]{0,80}(?:&|[^\x00-\x7f]))
      [^<>\uff1c\uff1e\ufe64]{1,100} [>\uff1e]?
    | &(?:lt|\#0*60|\#x0*3c);? [^<>]{1,100}? (?:>|&(?:gt|\#0*62|\#x0*3e);?)"""
)
# Letters of Cyrillic, Greek and others, and signs, by the Latin ones that they look like.
_LOOKALIKES = str.maketrans(
    "\u0430\u0251\u03b1\u0441\u0501\u0435\u0261\u04bb\u0456\u03b9\u0131\u0458\u043a\u03ba\u04cf\u0578\u043e"
    "\u03bf\u0440\u03c1\u051b\u0433\u0455\u0442\u03c4\u03c5\u057d\u051d\u0445\u0443\u0585\u2044\u2215\u29f8"
    "\u01c0\u2223\u2502\u2758\u2010\u2013\u2212",
    "aaacdeghiiijkklnooppqrsttuuwxyo///||||---",
)


def is_mark(text: str, tags: tuple[str, ...] = ()) -> bool:
    """Tell whether a match of `DISGUISED` is a mark once its letters are Latin ones."""
    plain = unicodedata.normalize("NFKC", NO_WIDTH.sub("", html.unescape(text)))
    plain = "".join(map(_latin, plain))
    return bool(DELIMITER.match(plain) or (tags and _of(tags).match(plain)))


@lru_cache(maxsize=10_000)
def _latin(character: str) -> str:
    """Return the Latin letter or sign that a character looks like, nothing for a stroke over it."""
    known = character.lower().translate(_LOOKALIKES)
    name = unicodedata.name(character, "")  # such as LATIN LETTER SMALL CAPITAL R
    letter = None if known.isascii() else regex.search(r"LETTER(?: \S+)*? ([A-Z])$", name)
    return letter[1].lower() if letter else "" if unicodedata.combining(character) else known


@lru_cache(maxsize=1024)  # a page stands in many prompts
def inert(text: str, tags: tuple[str, ...] = ()) -> str:
    """Return the text with other brackets in what would end it in a prompt or a chat.

    Args:
        text: Any text.
        tags: Names of the prompt's tags beside those of the shipped templates.
    """
    # Without any, as nearly always, it takes a tenth of the time.
    if not any(part in text for part in _PARTS):
        return text
    text = DELIMITER.sub(lambda found: found[0].translate(_OTHER), text)
    if other := tuple(sorted(set(tags).difference(_OWN))):
        text = _of(other).sub(lambda found: found[0].translate(_OTHER), text)

    def plain(found: regex.Match[str]) -> str:
        return found[0].translate(_OTHER) if is_mark(found[0], other) else found[0]

    return DISGUISED.sub(plain, text)


@lru_cache(maxsize=64)
def _of(names: tuple[str, ...]) -> regex.Pattern[str]:
    return regex.compile(rf"(?i)[<\uff1c\ufe64]{_tags(names)}")


_ONE = regex.compile(
    r"(?<![\w.,/]|\w-|\bto )1 (?:(?:key|held-out|hand|scored|logged|more|engine|other) )?(?:queries"
    r"|(?:sample|abstention|answer|pair|point|step|page|label|repeat|verdict|call|rewrite|method|lift"
    r"|source|word|run|group|attempt|completion|slide|figure)s)\b"
)


def singular(text: str) -> str:
    """Return a sentence with its counts of one in the singular: "1 queries" becomes "1 query"."""
    return _ONE.sub(lambda one: one[0].removesuffix("s").replace("querie", "query"), text)


def capitalised(text: str) -> str:
    """Return the text with a capital first; all others, as of names, stay as they are."""
    return text[:1].upper() + text[1:]


def sentences(text: str) -> list[str]:
    """Split text into sentences; a line break always ends one.

    Args:
        text: Text of any script. Markdown marks are kept.

    Returns:
        The sentences, stripped, in order, without empty ones.
    """
    found: list[str] = []
    for line in _TOO_LONG.sub("\\g<0>\n", text).splitlines():
        for part in _FOREIGN_STOP.split(line):
            found += _tokenized(part.strip())
    return [sentence for sentence in found if sentence]


def _tokenized(text: str) -> Iterator[str]:
    """Yield the sentences of a line, a long one piece by piece, as nupunkt is not linear."""
    place = 0
    while place < len(text):
        piece = text[place : place + _PIECE]
        split = [str(sentence) for sentence in nupunkt.sent_tokenize(piece)]
        whole = place + len(piece) == len(text)
        if not whole and len(split) > 1:  # the last may go on in the next piece
            piece = piece[: piece.rindex(split.pop())]
        yield from (sentence.strip() for sentence in split)
        place += len(piece)


def words(text: str) -> list[str]:
    """Return the words of a text as written; punctuation is dropped."""
    return _WORD.findall(text)


def word_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, word) for each word of the text, in characters."""
    for match in _WORD.finditer(text):
        yield match.start(), match.end(), match.group()


def is_unspaced(word: str) -> bool:
    """Tell whether a word is one character of a script that is written without spaces."""
    return len(word) == 1 and _UNSPACED.match(word) is not None


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return the lower-case English Snowball stem; words of other scripts stay as they are."""
    return str(_stem(word.lower().replace("\u2019", "'").removesuffix("'s")))


@lru_cache(maxsize=100_000)
def content_words(text: str) -> tuple[str, ...]:
    """Return the stems of a text's words in order, without function words and negators."""
    lowered = (word.lower() for word in words(text))
    return tuple(
        stem(word)
        for word in lowered
        if word not in STOPWORDS and word not in NEGATORS and not word.endswith(("n't", "n\u2019t"))
    )


@lru_cache(maxsize=100_000)
def numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, without list numbers and those inside names (COVID-19).

    Thousands separators are removed.
    """
    return frozenset(_NUMBER.findall(_THOUSANDS.sub("", _LIST_NUMBER.sub("", text))))


@lru_cache(maxsize=100_000)
def negated_words(text: str, reach: int = 2) -> frozenset[str]:
    """Return the content stems that are negated wherever the text uses them.

    A negator reaches `reach` content words further in its clause; `not only`, `not just` and
    the like negate nothing.
    """
    negated: set[str] = set()
    plain: set[str] = set()
    for clause in _CLAUSE.split(_NOT_ONLY.sub(" ", text)):
        left = 0
        for word in (word.lower() for word in words(clause)):
            if word in NEGATORS or word.endswith(("n't", "n\u2019t")):
                left = reach
            elif word not in STOPWORDS:
                (negated if left else plain).add(stem(word))
                left = max(left - 1, 0)
    return frozenset(negated - plain)
