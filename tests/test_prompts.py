"""Each method's prompt asks what its original asks; the engine's shows how to cite."""

import re

import pytest
from conftest import make_example

from geo_utils.citations import parse_answer
from geo_utils.prompts import Template, load_template
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.methods import INVENTING, PREVIOUS

# What src/geo_functions.py of GEO (GEO-optim/GEO) asks by each method's prompt, autogeo/rewriters/
# core.py of AutoGEO (cxcscmu/AutoGEO) by the rules', and the study by the key point's; each with
# the words of ours that ask for it.
GEO = {
    "one of several sources": "from it and from other pages",
    "each line is cited": "cites for each line",
    "the owner wants weight in the answer": "more weight in the answer",
}
DEMANDS = {
    "authoritative": {
        "confident, expert, assertive": "confident, expert, assertive",
        "better than the other sources": "better source than all the others",
        "the page says so itself": "have the page say so itself",
        "guarantees and promises": "answers for every word.*Promise and persuade",
        "the reader is addressed": '"you", its reader',
        "two or three sentences at a time": "two or three together",
        "structure stays": "lists, line breaks and length stay",
        "nothing else added or removed": "add no content and remove none",
    },
    "cite_sources": {
        "credible sources": "credible sources",
        "may be invented, plausible": "may invent the sources if they sound plausible",
        "not as in papers": "never .* in the style of a research paper",
        "in running words": "in running words",
        "five or six": "five or six times",
        "readers heed it more": "heed this page before the others",
        "length and structure stay": "its length and its structure",
    },
    "quotation": {
        "more quotations": "more quotations",
        "may be made up": "may be made up",
        "of authorities": "people or institutions of standing",
        "more influential than the others": "more important and more influential than the others",
        "format stays": "Format, order, line breaks and lists stay",
        "nothing else added or removed": "add no content and remove none",
    },
    "statistics": {
        "positive and striking": "positive and striking",
        "at several places": "at several places",
        "may be hypothetical": "may be hypothetical",
        "exact numbers": "exact figure",
        "places first": "First choose the places",
        "inside sentences": "into a sentence that is there; no paragraph",
        "nothing else changes": "Leave all other sentences as they are",
        "ends where the text ends": "stop where the page stops, even if",
    },
    "fluency": {
        "sentences flow": "lead smoothly into one another",
        "clear and engaging": "clear and engaging",
        "all information stays": "every piece of information",
    },
    "unique_words": {
        "rare and unique": "rarer and more distinctive words",
        "not arbitrary": "none is put in at random",
        "meaning stays": "the meaning stay",
    },
    "easy_to_understand": {
        "simple language": "simple language",
        "statement by statement": "statement by statement",
        "nothing left out, added, changed": "leave nothing out, add nothing, change nothing",
        "the same length": "as long as before",
        "readers heed it more": "readers heed it before the others",
    },
    "technical_terms": {
        "technical terms and facts": "technical terms and, where they are needed, technical facts",
        "for readers who know": "readers who know the field",
        "nothing left out": "leave nothing out",
        "the same number of words": "as many words as before",
    },
    "keyword_stuffing": {
        "for search engines": "SEO",
        "at most ten": "new keywords, at most ten",
        "none that is there": "none of which the page already contains",
        "at different places": "at different places",
        "chosen by sentence first": "which keyword goes into the sentence",
    },
    "rules": {
        "one of several sources": "from it and from other pages",
        "each line is cited": "cites for each line",
        "as visible and influential as possible": "seen as much, and has as much influence",
        "quoted and cited more": "quoted and cited more often",
        "strictly by the rules": "strictly by the rules",
        "any other technique": "Any other method or technique is allowed",
        "relevance, authority, impact": "in relevance, in authority, in influence",
    },
    "key_point": {
        "one of RAG's reference texts": "RAG.*reference texts.*one of them",
        "prominent in the answer": "an answer .* states the key point prominently",
        "words of emphasis": "insert words and phrases that stress it",
        "bold, italics, underlining": "in bold, in italics or underlined",
        "restructuring": "restructure sentences and paragraphs",
        "expanding related sections": "may be expanded with context",
        "any other strategy": "Any other strategy",
        "nothing else": "update nothing, add nothing and delete nothing",
        "only the text": "Return the whole rewritten text alone",
    },
}
FORBIDS = {
    "authoritative": "claim nothing that the text does not",
    "cite_sources": "Invent no publication",
    "quotation": "Invent no speaker and no words",
    "statistics": "Invent no figure",
    "rules": "add none that it does not support",
}


def found_in(prompt, demands):
    plain = " ".join(prompt.split())
    return {name for name, pattern in demands.items() if re.search(pattern, plain)}


@pytest.mark.parametrize("method", [*PREVIOUS, "key_point"])
def test_a_prompt_asks_what_its_original_asks(method):
    demands = DEMANDS[method] | (GEO if method in PREVIOUS[:-1] else {})
    assert found_in(load_template(f"rewrite_{method}").text, demands) == set(demands)


@pytest.mark.parametrize("method", INVENTING)
def test_the_truthful_variant_alone_forbids_to_invent(method):
    published, truthful = (
        load_template(f"rewrite_{m}").text for m in (method, method + "_truthful")
    )
    assert FORBIDS[method] in truthful
    assert not re.search(r"(?i)invent no|claim nothing|does not support", published)


def test_both_variants_of_the_rules_hold_the_same_rules():
    example = make_example()
    prompts = [
        RewriteTask(m).prompt(example, example.key_points[0]) for m in ("rules", "rules_truthful")
    ]
    rules = [prompt.partition("<rules>")[2].partition("</rules>")[0] for prompt in prompts]
    assert rules[0] == rules[1] and rules[0].count("\n- ") >= 10


class TestEngine:
    def test_every_sentence_of_the_example_cites_as_the_parser_reads_it(self):
        text = load_template("engine_answer").text
        answer = re.search(r"^Answer: (.+)$", text, re.MULTILINE)[1]
        example = parse_answer(answer, 2)
        assert [sentence.citations for sentence in example.sentences] == [(0,), (1,), (0, 1)]
        assert not example.unparsed

    def test_the_sources_numbers_stand_again_below_them_and_no_word_of_a_page(self):
        values = {"query": "QUERY", "sources": ["FIRST", "SECOND", "THIRD"]}
        prompt = load_template("engine_answer").fill(values, values)
        head, _, tail = prompt.partition("</sources>")
        assert "[1], [2], [3]" in tail and not re.search("FIRST|SECOND|THIRD", tail)
        assert head.index("QUERY") < head.index("FIRST")

    def test_a_template_of_the_users_own_may_leave_the_numbers_out(self):
        values = {"query": "q", "sources": ["s"]}
        assert Template("t", "$query $sources").fill(values, values).startswith("q <source")
        with pytest.raises(ValueError, match=r"may use \$query, \$source_numbers, \$sources"):
            Template("t", "$query $sources $pages").fill(values, values)
