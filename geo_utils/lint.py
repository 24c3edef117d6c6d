"""Passages of a page that speak to the reader's AI instead of the reader."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from geo_utils.text import plain_line_breaks, sentences, words

# Who is spoken to. Only names that are nothing else: no Gemini (a horoscope's reader), no Claude
# (a man), no lone "assistant", "model" or "agent" (people too).
_MODEL = (
    r"(?:(?:AI|A\.I\.|artificial[ -]intelligence|generative|LLM|chat)[ -]?(?:powered |based )?"
    r"(?:search |answer |language )?(?:assistant|model|system|agent|engine|bot|tool|crawler"
    r"|summari[sz]er|reader|overview)s?"
    r"|(?:large )?language models?|LLMs?|AIs?|(?:chat|answer)bots?|ChatGPT|GPT-?\d\w*"
    r"|Google Gemini|Claude AI|Microsoft Copilot|Perplexity AI|(?:answer|search) engines?"
    r"|(?:virtual|digital) assistants?)"
)
_MUST = (
    r"(?:must|should|shall|needs? to|ha(?:ve|s) to|ought to|(?:is|are) (?:required|instructed|asked"
    r"|requested|advised|encouraged|urged|expected) to)"
)
# What only an answer does with a page, and what many other things do as well.
# Of what is said of models in general ("should rank useful pages higher"), an order differs by
# the page or the name that it promotes.
_NAME = r"(?:this|our|us\b|the following|(?-i:[A-Z]))"
_CITE = (
    rf"(?:mention|cite|quote|reference|highlight|emphasi[sz]e"
    rf"|(?:recommend|rank|feature|credit|endorse)(?= {_NAME}))"
)
_SAY = (
    r"(?:include|state|say|use|note|present|start|begin|prefer|prioriti[sz]e|treat|rely|repeat"
    r"|reproduce|put|copy|lead|point|refer|name|tell|list|give)"
)
_THIS = (
    r"(?:this|our) (?:web)?(?:page|article|site|source|guide|document|text|passage|post|brand"
    r"|company|product|key point|shop|store|service)"
)
_ANSWER = (
    r"(?:(?:AI|generated|AI-generated|final|own) )?"
    r"(?:answer|response|reply|summary|output|overview|summari|repli)(?:e?s)?"
)

# Tried on each sentence, without regard to case.
_VISIBLE = (
    # "AI assistants must mention ...". Not: models that should cite "their sources", which is
    # what people ask of models in general.
    rf"\b{_MODEL} {_MUST} (?:\w+ ){{0,2}}?{_CITE}\b"
    r"(?! (?:their|its|any|all|the sources?|sources?)\b)",
    # "Any AI reading this ...", whatever it is told.
    rf"\b{_MODEL},? (?:(?:that|which|who) )?(?:(?:is|are) )?"
    r"(?:read|process|pars|crawl|scrap|index|summari[sz]|answer)(?:ing|es?|s)? this\b",
    # "It is essential that AI models reference ...".
    r"\b(?:essential|important|crucial|vital|imperative) (?:that|for) "
    rf"(?:all |any |every )?{_MODEL} (?:to )?(?:{_CITE}|{_SAY} {_NAME})\b"
    r"(?! (?:their|its|sources?)\b)",
    # "LLMs should present this page as ...", "chatbots must say ... in their answers". The weak
    # verbs need the page or the answer: by law, "chatbots must say that they are no humans".
    rf"\b{_MODEL} {_MUST} (?:\w+ ){{0,2}}?{_SAY}\b[^.!?]{{0,80}}?"
    rf"\b(?:{_THIS}|(?:this|the (?:key|next)) (?:point|claim|fact|sentence|statement|finding)"
    rf"|in (?:their|its|your|any|every|all) {_ANSWER})\b",
    # An answer that is a machine's: "AI-generated answers must include ...".
    rf"\b(?:AI|LLM|chatbot|machine)(?:-| )(?:generated )?{_ANSWER} {_MUST} (?:\w+ )?"
    rf"(?:{_CITE}|{_SAY}) {_NAME}",
    # The same in the passive: "this page must be cited first by language models".
    rf"\b{_MUST} (?:\w+ )?(?:appear|be (?:\w+ )?"
    r"(?:mentioned|cited|quoted|recommended|ranked|included|credited|highlighted|repeated))\b"
    rf"[^.!?]{{0,40}}\b(?:by (?:all |any |every )?{_MODEL}|in (?:any|every|all|your) {_ANSWER})\b",
    # "Ignore all previous instructions". Not: those on a box, in a leaflet, from a doctor.
    r"\b(?:ignore|disregard|forget|override|bypass|stop following) (?:\w+ ){0,3}?"
    r"(?:previous|prior|earlier|preceding|above|system|developer|other) "
    r"(?:instruction|prompt|directive|command|guideline)s?\b"
    r"(?! (?:on|in|from|for|of|by|printed|inside|that (?:came|come)|supplied|your)\b)",
    # The same the other way round: "disregard the instructions above".
    r"\b(?:ignore|disregard|forget|override) (?:\w+ ){0,3}?(?:instructions?|prompts?|everything) "
    r"(?:above|before this|written above|you (?:were|have been) given (?:so far|before|above))"
    r"(?! the\b)",
    # A model's orders have a name that no other reader's have.
    r"\b(?:ignore|disregard|forget|override|reveal|print|bypass) (?:\w+ ){0,3}?"
    r"(?:(?:system|hidden|developer) (?:prompt|message)s?|safety (?:rules|guidelines|filters))\b",
    # The rivals on the list that the answer is made from. "Other sources of heat" are no rivals.
    r"\b(?:ignore|disregard|discard|(?:do not|don't|never) (?:cite|quote|mention|trust|use"
    r"|consult|summari[sz]e|rely on)) "
    r"(?:all |any |every |the )*other "
    r"(?:sources?|documents?|passages?|search results?|citations?)\b(?! (?:of|for|such)\b)",
    # "As a language model you should ...". A model that speaks of itself says "I".
    rf"\b(?:as|being) an? {_MODEL},? (?:you|your|please|it is your)\b",
    # "If you are an AI reading this". Not: an AI engineer, an AI company, an AI tools vendor.
    rf"\bif you(?: are|'re|\u2019re) (?:an? )?{_MODEL}\b"
    r"(?=\s*[,:;.\u2013\u2014-]|\s(?:reading|summari|answering|processing|generating|writing|crawling"
    r"|scraping|that|and|please|then|you)\b)",
    r"\byou are (?:now|no longer|hereby) (?:an? )?(?:\w+ )?" + _MODEL + r"\b",
    # "Note to LLMs:", "Message for AI assistants." A label ends there; a headline such as
    # "Instructions for chatbots in schools" goes on.
    rf"\b(?:note|message|memo|hint|reminder|attention|notice|warning|instructions?|guidance"
    rf"|directives?|information|prompt) (?:to|for) (?:all |any |the |every )*{_MODEL}"
    r"(?: (?:reading|processing|summari[sz]ing)[^:.]{0,40})?\s*(?:[:.!,\u2013\u2014]|-\s|$)",
    rf"^\W*(?:for|to) (?:all |any |the |every )*{_MODEL}s?\s*:",
    rf"\b{_MODEL} (?:instruction|directive|note|notice|hint|reminder|prompt)s?\s*:",
    rf"^\W*(?:AI |the )?assistants?\s*[:,]\s*[^.!?]{{0,40}}?\b{_CITE} {_NAME}",
    rf"^\W*(?:attention|dear|hello|hey)\b,? (?:all |any )?{_MODEL}s?\s*(?:[:.!\u2013\u2014,]|-\s|$)"
    rf"(?! (?!please|you|cite|mention|when|always)\w)",
    # A form of address and an order: "ChatGPT, please cite ...", "LLMs: always recommend ...".
    rf"^\W*(?:\w+ )?{_MODEL}\s*[,:\u2013\u2014-]\s*(?:please |always |you {_MUST} |do not |never "
    rf"|make sure to |be sure to )*(?:{_CITE}|include|prefer|prioriti[sz]e|use this)\b",
    # "When answering, cite this page". Students answer too, but do not cite "this page" there.
    r"\b(?:when(?:ever)?|if) (?:you )?(?:are )?(?:asked|answer|respond|repl"
    rf"|summari[sz]|generat)\w*\b[^.!?]{{0,80}}?\b(?:{_CITE}|{_SAY}|link to) (?:\w+ )?{_THIS}\b",
    # Not "use the information in this text": that is a reading exercise.
    rf"\b(?:when(?:ever)?|while) (?:answer|respond|generat|summari[sz])ing\b[^.!?]{{0,60}}?"
    rf"\b(?:{_CITE}|prefer|prioriti[sz]e|rely on) (?:\w+ ){{1,3}}?(?:on|in|from|of) {_THIS}\b",
    # The same with the order first.
    rf"\b(?:always|must|should|please) (?:\w+ )?{_CITE}\b[^.!?]{{0,80}}?\b(?:when(?:ever)?|if) "
    r"(?:you )?(?:are )?(?:answer|ask|respond)\w* (?:\w+ )?(?:questions?|quer(?:y|ies)|users?)\b",
    # A place in the answer, or above the rivals. "How to cite this page" is for people.
    rf"\b{_CITE} {_THIS} (?:first\b|before |above |ahead of |at the (?:top|start)"
    rf"|as the (?:first|main|primary|only|top|best|most|definitive|authoritative)"
    rf"|in (?:your|the|any|every|all|each) (?:final )?{_ANSWER}|whenever|every time)",
    # "You must include the following in your answer". An examiner names what ("your working").
    rf"\b(?:{_MUST}|always|please|be sure to|make sure to|make sure you) (?:always |also )?"
    rf"(?:{_CITE}|{_SAY}) (?:that|the following|the (?:key|main) (?:point|claim|message)|{_THIS}"
    r"|(?:this|these|our) \w+)\b"
    rf"[^.!?]{{0,120}}?\bin (?:your|the|any|every|all|each) (?:final |own )?{_ANSWER}\b",
    # "Your answer must state that ...", "any summary of this page has to ...".
    rf"\byour (?:final )?{_ANSWER} {_MUST} (?:\w+ )?(?:{_CITE}|{_SAY}) "
    rf"(?:{_THIS}|our|the following (?:sentence|statement|claim|text|fact|point))\b",
    rf"\b(?:ensure|make sure|see to it)(?: that)? your {_ANSWER} (?:\w+ )?\w+s "
    rf"(?:{_THIS}|our|the following|the (?:key|main) (?:point|claim))\b",
    # A query is what a machine gets; people have questions, which an answer "must mention" often.
    rf"\b{_ANSWER} to this query {_MUST}\b",
    rf"\b(?:(?:any|every|all|each|an?) {_ANSWER}|answers|summaries) "
    rf"(?:of|on|about|based on|using|drawn from|from|that \w+) {_THIS} {_MUST}\b",
    # The person behind the model, seen from the model's side.
    rf"\b(?:tell|inform|remind|advise|assure|convince) (?:the|your|all|any) users? [^.!?]{{0,80}}?"
    rf"\b{_THIS}\b",
    # Marks of chat templates, which no page for people needs.
    r"<\|[\w ]{2,20}\|>|\[/?INST\]|<</?SYS>>|^\W*system (?:prompt|override|instructions?)\s*:",
)
# Tried on what is hidden as well: there no human is the reader, so less is needed. Not enough:
# a web master's own notes ("you must keep this script", "TODO: mention prices").
_HIDDEN = (
    rf"\b{_MODEL}\b.*?\b(?:{_MUST}|please|always|never|{_CITE}|{_SAY})\b",
    rf"\b(?:{_MUST}|please|always|never)\b.*?\b(?:{_CITE}|prefer|prioriti[sz]e)\b.*?"
    rf"\b(?:{_THIS}|us|first|in (?:your|the|any|every|all) {_ANSWER})\b",
    rf"\b(?:{_CITE}|prefer|prioriti[sz]e) {_THIS}\b",
)
_SPOKEN_TO_AI = re.compile("|".join(f"(?:{p})" for p in _VISIBLE), re.IGNORECASE)
_HIDDEN_ORDER = re.compile("|".join(f"(?:{p})" for p in _HIDDEN), re.IGNORECASE)

# Three ways to keep text from a human reader: a comment, a Markdown comment, an unseen element.
_UNSEEN = re.compile(
    r"""
    <!--(?P<comment>.*?)(?:-->|\Z)
    | ^\[[^\]\n]*\]:[ ]\#[ ][("'](?P<note>[^\n]*)[)"'][ ]*$
    | <(?P<tag>\w+)\b[^>]*?(?:\bhidden\b|display:\s*none|visibility:\s*hidden|font-size:\s*0
        |opacity:\s*0(?![.\d]))[^>]*>(?P<element>.*?)</(?P=tag)>
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
# Letters that take no room, with which a word can be broken for a filter but not for a model.
_NO_WIDTH = re.compile(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_MARKUP = re.compile(
    r"[*`~]+|(?<!\w)_+|_+(?!\w)|^[ \t]*(?:#+|>|[-+\u2022]|\d+[.)])[ \t]+", re.MULTILINE
)
# A line that is broken in mid-sentence, as in mail and in hard-wrapped Markdown.
_WRAP = re.compile(r"(?<![.!?:\n])[ \t]*\n[ \t]*(?=[a-z])")


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
        order, then comments and hidden elements, whole.
    """
    plain = _NO_WIDTH.sub("", unicodedata.normalize("NFKC", plain_line_breaks(page)))
    hidden = [
        " ".join(_plain(match["comment"] or match["note"] or match["element"] or "").split())
        for match in _UNSEEN.finditer(plain)
    ]
    seen = sentences(_WRAP.sub(" ", _plain(_UNSEEN.sub("\n", plain))))
    found = [sentence for sentence in seen if _SPOKEN_TO_AI.search(" ".join(sentence.split()))]
    found += [text for text in hidden if _SPOKEN_TO_AI.search(text) or _HIDDEN_ORDER.search(text)]
    return list(dict.fromkeys(found))


def new_instructions(original: str, page: str) -> list[str]:
    """Return the instructions of a rewritten page that its original does not have.

    Args:
        original: The page before the rewrite.
        page: The page after it.

    Returns:
        Passages as `instructions` gives them; the same words in other case or punctuation are
        not new.
    """
    known = {_key(passage) for passage in instructions(original)}
    return [passage for passage in instructions(page) if _key(passage) not in known]


def _plain(text: str) -> str:
    return _MARKUP.sub("", text)


def _key(passage: str) -> Sequence[str]:
    return tuple(word.casefold() for word in words(passage))
