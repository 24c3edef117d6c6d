"""From an answer to its sentences and the sources that each of them cites.

Engines cite as `[1]`, `[1][2]`, `[1, 2]`, `[1-3]`, `[Source 1]`, `【1】`, before or after the
full stop. Sources are numbered from 1 in the text and from 0 in all that this module returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from geo_utils.text import STOPWORDS, sentences

_LABEL = (
    r"(?:sources?|citations?|cites?|refs?\.?|references?|docs?\.?|documents?|quellen?|fuentes?|"
    r"fontes?|fonti|bronn?en?|källa|kilde|źródł[oa]|zdroj|kaynak|источник[аи]?|джерел[оа]|nguồn|"
    r"sumber|المصدر|来源|來源|出典|资料|文献|출처)"
)
_NUMBER = rf"(?:(?:{_LABEL}|web|results?)\s*[:：]?\s*)?[#^]?\d+\^?"
_SEPARATOR = r"\s*(?:[-–]|to|through|,\s*and|and|&|und|et|och|og|[yeoiи]|[,;，、和])\s*|\s+"
BRACKET = re.compile(r"\[([^\[\]\n]{1,80})\]")
_INSIDE = re.compile(rf"{_NUMBER}(?:(?:{_SEPARATOR}){_NUMBER})*\s*[,;]?", re.IGNORECASE)
_ITEM = re.compile(r"(\d+)(?:\s*(?:-|to|through)\s*\D{0,12}?(\d+))?", re.IGNORECASE)
_DASH = re.compile("[\u2010-\u2015\u2212]")
_LONGEST_RANGE = 100
# Brackets in code and mathematics are indices and intervals. Dollar signs are a formula's where no
# space follows the first or comes before the last, as for Pandoc: prices are none.
_CODE = re.compile(
    r"""(
      ````+.*?(?:````|\Z) | ```.*?``` | ```[\w+-]{0,20}[ \t]*\n.*\Z
    | ~~~~+.*?(?:~~~~|\Z) | ~~~.*?(?:~~~|\Z)
    | `[^`\n]+` | !\[[^\[\]\n]{0,80}\](?=\()
    | <(?:code|pre|kbd|samp|var|tt|math|script)\b[^<>]{0,80}>.{0,4000}?
        </(?:code|pre|kbd|samp|var|tt|math|script)>
    | \\begin\{[a-z*]{1,20}\}.{0,2000}?\\end\{
    | \$\$.{1,2000}?\$\$
    | (?<![\\$\w])\$(?=[^\s$])(?!\^\{?\[?[\d,;\ –-]{1,20}\]?\}?\$)[^$\n]{1,300}?(?<=[^\s\\])\$(?!\w)
    | \\\((?:(?!\\\().){1,500}?\\\)
    | \\\[(?!\s*\[?\^?\d[\d,;\s–-]{0,40}(?:\\{1,2}\]|\]\())(?:(?!\\\[).){1,2000}?\\\]
    )|(
      (?:[∈=]|\b(?:CI|interval|range|scale|scores?|ratings?|values?|array|vector|tuple|regex|[a-z])
        (?:\ (?:in|of|from|to|between))?:?|["']\w{1,40}["']:|\b[a-z]\ in)\s{0,3}
        \[-?\d[\d.]{0,12}\s*[,–-]\s*-?\d[^\[\]\n]{0,40}\]
    | \[\[[^\[\]\n]{1,30},[^\[\]\n]{1,30}\](?:\s*,\s*\[[^\[\]\n]{1,60}\])+\]
    | \[-?\d[\d.]{0,9}\s?[,–-]\s?-?\d[\d.]{0,9}\]
        (?=\s?(?:%|°[CF]?|[mkcµ]?[mg]|ml|m?s|h|[kM]?Hz|years|days|hours|minutes|percent)(?!\w))
    | (?<=\w=)\[\d{1,3}\] | \[\d-\d\](?=\+|\{\d) | (?<=[A-Za-z_]\()\[\d[\d.\s]*,[\d.,\s]*\](?=\))
    | \w\[\d{1,2}\](?=\\\w|\.(?:html?|txt|pdf|py|js|css|png|jpe?g|gif|csv|json|xml|docx?|zip|md)\b)
    | /\w{1,40}\[\d{1,2}\](?=/\w) | (?<==\s)\w{1,40}\[\d{1,2}\]
    | (?<!\w)(?=\w{1,60}_\w)(?=\w{0,60}[A-Za-z])[^\W_]\w{1,80}(?<!_)(?:\[[^\[\]\n]{1,40}\])+
    | (?<![\w.])(?:arr|argv|args|df|matrix|vec|nums?|buf)(?:\[[^\[\]\n]{1,40}\])+
    | (?<![\w.])\w{1,40}\.argv\[\d+\] | \b(?:In\ ?|Out)\[\d+\]:
    | \w\((?!e?s\))[^()\n]{0,40}\)\[\d+\]
    | \b\w+\[\d+\](?=\s?={1,2}\s)
    | (?<![\w.])(?:(?<!\d\ )[b-z]\[\d+\]|[a-z]\[\d+\](?=\s?[-+*/=<>])|[A-Z]\[\d+,\s?\d+\])
    )""",
    re.VERBOSE | re.DOTALL,
)
# Where neither finds something, _CODE and _ADDRESS find nothing, and are slow to say so.
_MAYBE_CODE = re.compile(r"[`~<\\$]|\S\[|\[-?\d[\d.]{0,12}\s*[,–-]|\bIn \[")
_MAYBE_ADDRESS = re.compile(r"/|www\.|doi:", re.IGNORECASE)
# A fence around prose: one that says so, or around all of it.
_PROSE = re.compile(
    r"```(?:markdown|md|te?xt)[ \t]*\n((?:(?!```).)*)```|\A\s*```[ \t]*\n((?:(?!```).)*)```\s*\Z",
    re.S,
)
# \ue004 stands between an address and the citation behind it, which would else look like an index.
_HIDDEN = str.maketrans("[]()", "\ue000\ue001\ue002\ue003")
_INDEX = str.maketrans("[]", "\ue005\ue006")
_SHOWN = str.maketrans("\ue000\ue001\ue002\ue003\ue005\ue006", "[]()[]", "\ue004")
# An address has brackets of its own, as in ?sort[1]=up and http://[::1]/; those at its end are
# citations.
_ADDRESS = re.compile(
    r"(?:https?://|www\.|\bdoi:\s?|\b[a-z\d-]{1,63}(?:\.[a-z\d-]{1,63}){1,9}/)"
    r"(?:[^\s<>()\"`【】]|\([^\s<>()]{0,200}\)){1,2000}",
    re.IGNORECASE,
)
_OWN = re.compile(
    r"(?:\[[^\[\]]{0,80}\]){1,20}(?=[A-Za-z0-9_/=]|[?&#%~+@.:-][a-z0-9\[%])|(?<=//)\[[\da-f:.]+\]"
)
_RAISED_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_RAISE = str.maketrans("0123456789", _RAISED_DIGITS)
_LOWER = str.maketrans(_RAISED_DIGITS + "⁻˒·", "0123456789-,,")
_RAISABLE = r"\[?\d{1,3}(?:\s*[,;–-]\s*\d{1,3}){0,20}\]?"
_SUP = (
    rf"(?:<sup\b[^<>]{{0,200}}>\s*(?:<\w[^<>]{{0,300}}>\s*){{0,2}}{_RAISABLE}\s*(?:</\w+>\s*){{0,3}}"
    rf"</sup>|\$\^(?:\{{{_RAISABLE}\}}|\d)\$|\\textsuperscript\{{{_RAISABLE}\}}|&sup[123];)"
)
_RAISED = re.compile(
    rf"({_SUP}(?:(?:[\s,]|<sup>,</sup>){{0,3}}{_SUP}){{0,20}})"
    rf"|(?<![⁻⁺{_RAISED_DIGITS}])"
    rf"⁽?([{_RAISED_DIGITS}]{{1,3}}(?:[⁻˒,·–-]?\s?[{_RAISED_DIGITS}]{{1,3}}){{0,20}})⁾?(?![⁺⁻])",
    re.IGNORECASE,
)
# A year, and a name that ends in a number: COVID-19, CO₂.
_YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d\Z|[^\W\d_]{2}-?[\d₀-₉]{1,3}\Z")
_WORD = re.compile(r"[^\W\d_]+\Z")
# Words of three letters and more that are raised to a power.
_POWERS = re.compile(
    r"(?i)sec|min|mol|rad|sin|cos|tan|log|exp|(?:kilo|centi|milli|deci)?met(?:re|er)s?|nmi|miles?|"
    r"feet|foot|inch(?:es)?|yards?|acres?|hectares?|pixels?"
)
_SOURCE = rf"{_LABEL}\s*[:：]?\s*#?\d+"
# Other ways to write a bracket, brought to one form before anything is read.
_FORMS = (
    (re.compile(r"\\{1,2}([\[\]])"), r"\1"),
    (
        re.compile(
            r"&(?:#91|#x5b|l(?:sq|brac)[bk]);(\d[\d, -]{0,40})&(?:#93|#x5d|r(?:sq|brac)[bk]);", re.I
        ),
        r"[\1]",
    ),
    (re.compile(r"</?sup\b[^<>]{0,200}>", re.IGNORECASE), ""),
    (
        re.compile(r"\[\s{0,9}\d{1,3}(?:[,;]\s{0,9}\d{1,3}){0,20}\s{0,9}\]"),
        lambda all: " ".join(all[0].split()),
    ),
    (
        re.compile(r"[【［〔〖]\s*([^【】［］〔〕〖〗\n]{1,80}?)(?:†[^【】［］\n]*)?\s*[】］〕〗]"),
        r"[\1]",
    ),
    (re.compile(rf"(?i)\[(?:{_LABEL}:?\s?)?((?:\[\d[^\[\]\n]{{0,40}}\],?\s?){{1,20}})\]"), r"\1"),
    (re.compile(r"\[(\d+)\]\s*[-–—]\s*\[(\d+)\]"), r"[\1-\2]"),
    # The address of a linked citation, [1](https://...), with brackets of its own at most once.
    (
        re.compile(
            r"(?<=\])\((?:https?:|mailto:|#|\.{0,2}/|[\w-]{1,40}\.(?:html?|pdf|md)\b)"
            r"[^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?: [\"'][^\"'\n]*[\"'])?\)"
        ),
        "",
    ),
    # (Source 2), (see sources 1 and 3)
    (
        re.compile(
            rf"[(（](?:see )?\s*({_SOURCE}(?:(?:{_SEPARATOR})(?:{_SOURCE}|#?\d+)){{0,20}})\s*[)）]",
            re.IGNORECASE,
        ),
        lambda found: f"[{', '.join(re.findall(r'[0-9]+(?:[ ]?[-–][ ]?[0-9]+)?', found[1]))}]",
    ),
    # ([1], [2], and [3]), **[1]**
    (re.compile(r"(?<=\d\])\s{0,3}[,;]\s{0,3}(?:and\s)?(?=\[\^?\d+\])"), ""),
    (re.compile(r"\(((?:\[\^?\d[\d, -]{0,40}\]\s?){1,20})\)"), r"\1"),
    (re.compile(r"\^(?=\[\d[\d, -]{0,40}\])|(?<=\d\])\^"), ""),
    (re.compile(r"(\*{1,3}|_{1,3}|\^)((?:\[\^?\d[\d, -]{0,40}\]){1,20})\1"), r"\2"),
)
_RUN = r"(?:[ \t]{0,3}\[[^\[\]\n]{1,80}\])+"
# "Point.[1][2] Next": the citation belongs to the sentence before the stop. Before a lower-case
# word or a colon there is no such stop: an abbreviation ("et al. [1] found") or a list ("[1]: x").
# Some names begin a sentence in lower case: iPhones, de Gaulle, and what "is" or "has" something.
_PARTICLE = re.compile(r"(?:d[aeiu]|de[lnr]|del?la|v[ao]n|ter|ten|bin|ibn|al|el|l[ae])[ -][A-Z]")
_LOWER_NAME = (
    rf"(?:[a-z]{{1,20}}-?[A-Z\d]|[a-z]-[a-z]{{2}}|{_PARTICLE.pattern}"
    rf"|(?!(?:{'|'.join(sorted(STOPWORDS))}|also|now|thus|others)\b)[a-z][a-z.-]{{1,20}}"
    r"\ (?:is|are|was|were|has|have|had)\b)"
)
_AFTER_STOP = re.compile(
    rf"([.!?…。！？؟۔।](?:[\"'“”’»」_)*]|[ \xa0\u202f]»)*)({_RUN})"
    rf"(?![ \t]{{0,3}}(?:[:\[]|(?!{_LOWER_NAME})[a-z]))(?=\s|$|[^\s\d.!?,;:]|[,;]\s)"
)
# In a paragraph that begins with a mark and ends in none, they stand before what they are for.
_LEADING = re.compile(r"\s*\[\^?\d[\d, -]{0,40}\][ \t]?[^\W\d_a-z]")
# What may be a citation and is not read: a number in parentheses at a sentence's end, which may be
# an equation's as well, and rarer marks.
_UNREAD = re.compile(
    r"(?<=[\w()])\s?(\(\d{1,2}(?:\s*[,;–-]\s*\d{1,2}){0,20}\))(?=\s*[.!?。(),;:]|\s*$)"
    r"|([①-⑳]|（\d{1,2}）|\{\d{1,2}\}|\^\d{1,2}\^|[<«‹⟨⟦❲『「]\d{1,2}[>»›⟩⟧❳』」]|\\cite\{\w{1,20}\}"
    rf"|`\[\d{{1,2}}\]`|<(?i:{_LABEL})\b[^<>\n]{{0,40}}?(?<!\d)\d{{1,2}}\b[^<>\n]{{0,9}}>"
    rf"|<(?i:{_LABEL})>\s?\d{{1,2}}\s?</|\((?i:[^()\n]{{0,40}}\b{_SOURCE}\b)[^()\n]{{0,40}}\))"
)
# A list of sources at the end is no part of what the answer says.
_TITLED = (
    r"(?:(?:list[ae]? (?:of|de|des|der|das)|cited|referenced|for|used|all|the|here are the|"
    r"zitierte|verwendete|\d{1,2}\.) ){0,2}(?:(?:source|reference|ref)(?:s|\(s\)| list)?|"
    r"citations|bibliography|"
    r"(?:works|literature) cited|(?:foot|end)notes|further reading|resources|"
    r"quellen?(?:angaben|verzeichnis|liste)?|referenzen|nachweise|einzelnachweise|"
    r"literatur(?:verzeichnis|angaben)?|références|bibliographie|sitographie|ouvrages|"
    r"fuentes|referencias|bibliograf[ií]a|sitograf[ií]a|fonti|riferimenti|"
    r"fontes|referências|bronnen(?:lijst)?|literatuur(?:lijst)?|verwijzingen|"
    r"käll(?:or|förteckning)|referens(?:er|lista)|kilde(?:r|liste)|lähteet|lähdeluettelo|viitteet|"
    r"źródła|zdroje|források|irodalom|surse|источники|ссылки|список литературы|джерела|"
    r"використані джерела|kaynaklar|kaynakça|πηγές|(?:ال)?(?:مصادر|مراجع)(?: والمراجع)?|منابع|"
    r"מקורות|स्रोत|संदर्भ|(?:参考|參考|引用|参照|信息|数据)?(?:文献|文獻|资料|資料|链接|リンク|网[站址])?"
    r"(?:来源|來源)|(?:参考|參考|引用)?(?:文献|文獻|资料|資料|链接|リンク|网[站址])|"
    r"引用元?|参照|参考|參考|出典|情報源|"
    r"출처|참고 ?문헌|참고 ?자료|nguồn|tài liệu tham khảo|sumber|referensi|daftar pustaka|"
    r"แหล่งที่มา|อ้างอิง|referenties|viri|sklici|izvori|prameny?|literat[uú]ra|referenc(?:e|ie|er)|"
    r"referanser|heimildir|allikad|šaltiniai|avoti|atsauces|przypisy|referințe|hivatkozások|"
    r"burimet|mənbələr|rujukan|mga sanggunian|vyanzo|bronne|erreferentziak|referències|"
    r"примечания|литература|източници|извори|крыніцы|примітки|βιβλιογραφία|παραπομπές|"
    r"աղբյուրներ|წყაროები|ذرائع|حوالہ جات|(?:তথ্য)?সূত্র|ஆதாரங்கள்|மேற்கோள்கள்|మూలాలు|ಉಲ್ಲೇಖಗಳು|"
    r"അവലംബം|સંદર્ભ|ਹਵਾਲੇ)"
    r"(?: (?:used|quoted|below|bibliogr\w{3,9}|consult\w{2,5}|cit[aeé]\w{1,5}|utili[sz]\w{2,5})"
    r"| (?:in|for) (?:this|the) (?:answer|response)){0,2}(?: \([\w ]{1,20}\))?"
)
_TITLE = rf"{_TITLED}(?: (?:and|&|und|et|y|e|og|och|и|та) (?:links|{_TITLED}))?"
_TAGGED = re.compile(
    r"</[a-z]\w{0,20}>|<(?!(?:sources|references|citations)>)[a-z][^<>\n]{0,40}>", re.IGNORECASE
)
_HEADING = re.compile(rf"[\W_]*{_TITLE}[\W_]*", re.IGNORECASE)
_BULLET = r"[ \t]*(?:[-*•·–>+・◦▪●■‣][ \t]*)?"
_MARK = (
    rf"(?:[*`\\]{{0,3}}[\[［【]{{1,2}}(?:(?i:{_LABEL}) )?\^?\d+(?:[,;–-]\s?\d+){{0,9}}"
    r"\^?\\?[\]］】]{1,2})"
)
_MARK_ANYWHERE = re.compile(_MARK)
_HEADING_AND_LIST = re.compile(
    rf"[\W_]*{_TITLE}[*_ \t]*[:：→][*_ \t]*(?:{_MARK}|\[[^\]\n]{{1,200}}\]\(http"
    r"|\(?\d{1,3}(?:[.):\]]|[\d,;，、 ]*\W*$)|<?https?://|www\."
    rf"|(?-i:(?:(?:[A-Z][\w.&'’-]{{0,30}}\s{{1,2}}){{1,6}}{_MARK}[,;.]?\s{{0,2}}){{1,20}}$))",
    re.IGNORECASE,
)
# On the last line of the answer itself.
_LIST_BEHIND = re.compile(
    rf"(?<=[.!?\])])[ \t]{{1,9}}[*_(]{{0,3}}{_TITLE}[*_]{{0,2}}[ \t]?[:：][*_ \t]{{0,9}}"
    rf"{_MARK}[:.]?[ \t]{{1,9}}[^\W\d_][^\n]*\Z",
    re.IGNORECASE,
)
# Under such a heading, and without one. A point of the answer ends in its citation.
_NUMBERED = re.compile(
    rf"{_BULLET}(?:{_MARK}|\(?\^?(?:\d{{1,3}}|[⁰-⁹¹²³]{{1,2}}|[a-z](?=\)))[.):\]^\s]|[①-⑳]"
    rf"|\[[^\]\n]{{1,200}}\](?:\(|\W*$)|<?https?://|www\.|{_SOURCE})",
    re.IGNORECASE,
)
_LISTED = re.compile(
    rf"{_NUMBERED.pattern}|[ \t]*\||[ \t]*[-*•·–>+][ \t](?![^\n]*\s{_MARK}\W*$)|[ \t]{{2,}}\S",
    re.IGNORECASE,
)
# Under a rule, such as ---, or of numbers of which the answer cites half.
_MARKED = re.compile(
    rf"{_BULLET}(?={_MARK})\D*(\d+)[^\]】］]*[\]】］*_.:`]{{1,4}}[ \t]*(?![^\n]*{_MARK}|[a-z \t])"
)
_CONTINUED = re.compile(rf"[ \t]{{2,}}+(?!{_BULLET}(?:{_MARK}|\^?\d{{1,3}}[.)]))|\s*$")
_RULED = re.compile(r"[-*_]{3,}\s*")
_LISTED_ALONE = re.compile(
    rf"{_BULLET}(?:\[\^?\d+\][ \t]*:|{_MARK}[ \t]*(?:<?https?://|www\.|doi:|\[[^\]\n]{{1,200}}\]\(http"
    rf"|(?:[a-z\d-]{{1,40}}\.){{1,4}}[a-z]{{2,12}}(?:/\S{{0,300}})?\s*$)"
    rf"|{_MARK}[^\n]{{0,300}}?(?:https?://|www\.)\S{{0,300}}[^\s).]\s*$"
    r"|\^?\d{1,3}[.)][ \t]*<?https?://)",
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
    inside = _DASH.sub("-", inside)
    if not _INSIDE.fullmatch(inside.strip()):
        return None
    numbers: list[int] = []
    for first, last in _ITEM.findall(inside):
        start, end = int(first), int(last or first)
        if not 0 <= end - start <= _LONGEST_RANGE:
            return None
        numbers.extend(range(start, end + 1))
    return None if 0 in numbers and len(numbers) > 1 else numbers  # [0, 1] is an interval


@lru_cache(maxsize=8192)  # one answer is read for many key points and analyses
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
    listed = list(_sentences(answer))
    cited: dict[int, None] = {}
    for (paragraph, sentence), following in zip(listed, [*listed[1:], (-1, "")], strict=False):
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
        indices = re.findall(r"\ue005[^\ue005\ue006]*\d[^\ue005\ue006]*\ue006", sentence)
        unparsed += [index.translate(_SHOWN) for index in indices]
        unparsed += [one or other for one, other in _UNREAD.findall(sentence.translate(_SHOWN))]
        text = _bare(sentence)
        if cited and not re.search(r"\w", text):
            # Nothing but a mark, cut off by a quotation mark or a line break: it belongs to what
            # stands before, and at the head of a paragraph to what comes.
            begins = not parsed or parsed[-1].paragraph != paragraph
            if begins and following[0] == paragraph:
                continue
            if parsed:
                both = dict.fromkeys((*parsed[-1].citations, *cited))
                parsed[-1] = replace(parsed[-1], citations=tuple(both))
                cited = {}
                continue
        if text or cited:
            parsed.append(CitedSentence(text, tuple(cited), paragraph))
        cited = {}
    return CitedAnswer(tuple(parsed), tuple(out_of_range), tuple(unparsed))


def strip_citations(text: str) -> str:
    """Remove citation marks, and the space before them, from a text."""
    return _bare(_one_form(text))


def _bare(text: str) -> str:
    bare = BRACKET.sub(
        lambda found: found.group() if citation_numbers(found.group(1)) is None else "", text
    )
    return re.sub(r"(?<![ \t])[ \t]+(?=[.!?,;:。]|$)", "", bare).strip().translate(_SHOWN)


def _sentences(answer: str) -> Iterator[tuple[int, str]]:
    text = _one_form(_without_references(answer))
    for paragraph, block in enumerate(re.split(r"\n\s*\n", text)):
        leads = _LEADING.match(block) and not re.search(r"\][\W_]{0,9}$", block[-12:])
        for sentence in sentences(_AFTER_STOP.sub(r"\1\n\2" if leads else _before_stop, block)):
            yield paragraph, sentence


def _without_references(text: str) -> str:
    """Cut off a list of sources at the end, with its heading, or of linked marks without one.

    Up to three lines behind it, such as "I hope this helps!", stay.
    """
    lines = _LIST_BEHIND.sub("", text).split("\n")
    bare = [_TAGGED.sub("", line) for line in lines]
    end, behind = len(lines), list[str]()
    while end and len(behind) <= 3 and not _begins_list(bare[end - 1]):
        end -= 1
        behind += [lines[end]] if bare[end].strip("-=_* \t") else []
    if not end or len(behind) > 3 or any(map(_MARK_ANYWHERE.search, behind)):
        return "\n".join(lines)
    if behind and lines[end].strip():  # not set off
        return "\n".join(lines)
    rest = lines[end:] if behind else []
    listed, begin = _NUMBERED if behind else _LISTED, 0
    for place in range(end - 1, -1, -1):
        line = bare[place]
        ruled = _RULED.fullmatch(line) and place and not lines[place - 1].strip()
        below = list(filter(None, lines[place + 1 : end])) if ruled else []
        if _is_heading(line) or (below and all(map(_MARKED.match, below))):
            while place and not lines[place - 1].strip("-*_= \t"):
                place -= 1
            return "\n".join(lines[:place] + rest)
        if line.strip("-=_* \t") and not listed.match(line):
            begin = place + 1
            break
    entries = [place for place in range(begin, end) if not _CONTINUED.match(bare[place])]
    alone = end  # where a list without a heading begins
    if len(entries) > 1 and not lines[begin].strip():
        open_ended = (_MARKED.match(bare[x]) for x in entries if bare[x].rstrip(" *_")[-1:] != ".")
        numbers = {int(found[1]) for found in open_ended if found}
        said = re.findall(r"\S ?[\[【]([^\[\]【】\n]{1,40})[\]】]", "\n".join(lines[:begin]))
        known = numbers.intersection(n for each in said for n in citation_numbers(each) or ())
        alone = entries[0] if 2 * len(known) >= len(numbers) == len(entries) else end
    for place in reversed(entries):
        if not _LISTED_ALONE.match(bare[place]):
            break
        alone = min(alone, place)
    return "\n".join(lines[:alone] + rest) if any(map(str.strip, lines[:alone])) else text


def _is_heading(bare: str) -> bool:
    return bool(_HEADING.fullmatch(bare) or _HEADING_AND_LIST.match(bare))


def _begins_list(bare: str) -> bool:
    return _LISTED.match(bare) is not None or _is_heading(bare)


@lru_cache(maxsize=256)  # parsed and stripped, one after the other
def _one_form(text: str) -> str:
    text = _PROSE.sub(lambda found: found[1] or found[2] or "", text)
    if _MAYBE_ADDRESS.search(text):
        text = _ADDRESS.sub(_own_hidden, text)
    parts = _CODE.split(text) if _MAYBE_CODE.search(text) else [text]
    for place, part in enumerate(parts):
        if place % 3:
            parts[place] = (part or "").translate(_HIDDEN if place % 3 == 1 else _INDEX)
            continue
        part = _RAISED.sub(_raised, part)
        for form, replacement in _FORMS:
            part = form.sub(replacement, part)
        parts[place] = part
    return "".join(parts)


def _own_hidden(found: re.Match[str]) -> str:
    """Return an address whose own brackets are hidden, set off from citations behind it."""
    hidden = _OWN.sub(lambda own: own[0].translate(_HIDDEN), found[0])
    return re.sub(r"(?<=[\w)])\[", "\ue004[", hidden, count=1)


def _raised(found: re.Match[str]) -> str:
    """Return a raised number as a citation, or as the power that it is.

    It is a citation in brackets, and after a word, a year or a mark; a power after one or two
    letters, a unit, another number and a closing parenthesis; before a letter it is an isotope's.
    """
    plain = re.sub(r"<[^<>]*>|[\[\]]", " ", found[1]) if found[1] else found[2].translate(_LOWER)
    number = ", ".join(re.findall(r"\d+(?:\s*[–-]\s*\d+)?", plain))
    text, start = found.string, found.start()
    head = text[max(start - 24, 0) : start]
    before = head.rstrip(" \t\xa0")
    cited = before[-1:] in ".,;:!?…\"'“”’»›%]" and bool(before)
    if word := _WORD.search(before):
        spelt = len(word[0]) >= 3 or word[0] > "\u2e7f"  # a word of Chinese has one or two
        cited = spelt and not _POWERS.fullmatch(word[0])
    elif before[-1:].isdigit():
        cited = _YEAR.search(before) is not None
    if head != before and text[found.end() : found.end() + 1].isalnum():
        cited = False
    cited |= "[" in re.sub("<[^<>]*>", "", found[0])
    return f"[{number}]" if cited else (found[2] and found[0]) or number.translate(_RAISE)


def _before_stop(found: re.Match[str]) -> str:
    stop, run = found.groups()
    if any(citation_numbers(inside) is None for inside in BRACKET.findall(run)):
        return found.group()
    following = found.string[found.end() : found.end() + 40].lstrip()
    if (stop.startswith(".") and following[:1].isdigit()) or following[:1].islower():
        # An abbreviation's dot ends nothing: "in the U.S. [1] tides are low", "approx. [1] 3 m".
        before = found.string[max(found.start() - 20, 0) : found.start()].split(" ")[-1]
        first = next(iter(sentences(f"It {before}{stop} {following}")), "")
        if len(first) > len(f"It {before}{stop}") and not _PARTICLE.match(following):
            return found.group()
        return f" {run.strip()}{stop}\n"
    return f" {run.strip()}{stop}" + ("\n" if stop[-1] in "“»」" else " ")
