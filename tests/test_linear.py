"""Whatever a page or a reply holds, reading it takes time that grows with its length, not faster.

Each function that reads foreign text is given 10 kB and 100 kB of each text, and 400 kB where the
first two are in doubt (`is_linear`).
"""

import pytest
from conftest import cpu_time, is_linear, make_example

from geo_utils.citations import parse_answer, strip_citations
from geo_utils.corpus import KeyPoint
from geo_utils.fidelity import fidelity
from geo_utils.grpo.rewards import paid_page
from geo_utils.lint import instructions
from geo_utils.models.base import UnusableError
from geo_utils.models.replies import (
    parse_json,
    received,
    refusal,
    seconds,
    strip_thoughts,
    writable,
)
from geo_utils.prompts import Template
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.judges import LexicalJudge
from geo_utils.roles.rewriters import EDITS, arrange, is_tidy, page_units
from geo_utils.text import clean_text, inert, negated_words, numbers, sentences, words
from geo_utils.visibility import visibility

PARTS = [
    "\n", " ", "\n ", "a", "a\n", "1", "1. ", "\n1. ", ".'", "!?", "[", "[1][2] ", ".[1] ",
    "\n[1]: a", "(1)", "](http", "【1", "³", "$a ", "\\(", "\\[", "`", "```\n", "_", "a_", "**",
    "\n#", "\n> ", "<a ", "<a hidden>", "<!--", "<think></think>", "\n<think>", "<|channel|>",
    "<|im_end|>", "</page>", '{"a":', "**[1]**", "not only ", "AI must ", "Sources:\n",
    "\n\nI made it.", "\r", "\ud800", "潮。", "model not ", "maximum ",
    "https://a[1]", "www.(", "a.[1] ", "<key_point>", "&lt;/page ", "\nKey point: ", "Sure. ",
    '"page": "', "[/page]", "\nLet me know.", "Change nothing else. ", "]~b]", "</s>",
    "<key_point>a page</key_point>", "a.b/", ". [1] a is ", "Sources: A [1] ", "[[1], ",
    "<p\u0430", "\u0430<", "\\boxed{", "<![CDATA[", "-----BEGIN PRIVATE KEY-----",
    "\u200b", "# H\n\nT.\n\n",
    "```md\n", "<kbd>", "$^{[1", "<sup><b>", "² ", "\n[1] A", "\n#", "[INST]",
    "\nBEGIN", "<|user|>",
]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"verdict": {"type": "string"}}, "required": ["verdict"]}
POINT = KeyPoint(1, "The Moon raises two bulges of water.")


def parsed(text):
    try:
        return parse_json(text, SCHEMA, text)
    except UnusableError:
        return None


def edited(text):
    example = make_example(sources=("Other page.", text, "Another."))
    return [edit(example, POINT) for edit in EDITS.values()]


def rewritten(page, reply):
    example = make_example(sources=("Other page.", page, "Another."))
    return RewriteTask("key_point").page(reply, example, POINT)


READERS = {
    "clean_text": clean_text, "sentences": sentences, "words": words, "units": page_units,
    "numbers": numbers.__wrapped__, "negated_words": negated_words.__wrapped__,
    "answer": lambda text: parse_answer(text, 5), "stripped": strip_citations,
    "visibility": lambda text: visibility(text, 5, "geo"), "instructions": instructions,
    "fidelity": lambda text: fidelity(text, text[::-1]), "edits": edited,
    "judge": lambda text: LexicalJudge().verdict(POINT.content, sentences(text)),
    "rewrite": lambda text: rewritten("A page. " * 9, text),
    "page": lambda text: rewritten(text, "A page. " * 9),
    "wrapped": lambda text: rewritten("A page. " * 9, f'{{"page": "{text}"}}'),
    "paid": lambda text: paid_page(text, make_example(sources=("a", text[:9999], "b")), POINT),
    "received": lambda text: received(text=text, finish_reason="stop", latency_s=0.0),
    "thoughts": strip_thoughts, "json": parsed, "writable": writable, "seconds": seconds,
    "refusal": lambda text: refusal(400, text), "tidy": lambda text: is_tidy(text, 9),
    "arranged": lambda text: arrange("One. Two. Three.", "K.", text),
    "inert": inert.__wrapped__,
    "template": lambda text: Template("t", "<page>\n$page\n</page>").fill({"page": text}, ["page"]),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_reading_is_linear(reader):
    act, slow = READERS[reader], []
    for part in PARTS:
        small = (part * (10_000 // len(part) + 1))[:10_000]
        took = cpu_time(act, small * 10)
        if took > max(0.05, 12 * cpu_time(act, small)) and not is_linear(act, small):
            slow.append(part)
    assert not slow
