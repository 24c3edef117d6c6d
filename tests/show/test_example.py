"""The example to read: what changed, which passage a verdict rests on, and foreign text."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import make_example

from geo_utils.corpus import KeyPoint
from geo_utils.evaluate import draw_source_order, evaluate
from geo_utils.models.base import Request
from geo_utils.roles.engines import ExtractiveEngine
from geo_utils.roles.judges import LexicalJudge
from geo_utils.show.example import (
    answers_view,
    pages_view,
    prompts_view,
    question_view,
    telling_example,
)

EXAMPLE = make_example()
POINT = EXAMPLE.key_points[0].content
ROW = {
    "method": "key_point", "key_point": POINT, "target_place": 1, "page": EXAMPLE.target,
    "answer": "Boats wait. The Moon raises two bulges of water [2]. They sail.", "pawc": 0.5,
    "verdict": "supported", "explanation": "all of it", "abstention": None, "uncited": False,
}  # fmt: skip


def text(view):
    return re.sub(r"<style>.*?</style>", "", view.data, flags=re.DOTALL)


def test_the_first_query_that_the_method_turned_is_chosen():
    examples = [make_example("a"), make_example("b"), make_example("c")]
    samples = evaluate(examples, ["original", "key_point"], ExtractiveEngine(), LexicalJudge(), 2)
    for query, repeat, method, found in (("b", 1, "original", 0.0), ("a", 0, "key_point", np.nan)):
        chosen = samples["query_id"].eq(query) & samples["method"].eq(method)
        samples.loc[samples["method"].eq(method), "supported"] = 1.0
        samples.loc[chosen & samples["repeat"].eq(repeat), "supported"] = found
    example, point, repeat = telling_example(samples, examples, "key_point")
    assert (example.query_id, point, repeat) == ("b", EXAMPLE.key_points[0], 1)


def test_changes_are_marked_on_both_sides():
    page = EXAMPLE.target.replace("two bulges", "two **bulges**").replace("every 12 hours", "daily")
    shown = text(pages_view(EXAMPLE, ROW | {"page": page}))
    assert "<ins>**</ins>" in shown and "<ins>daily</ins>" in shown
    assert re.search("<del>every 12 hours?</del>", shown)


def test_a_page_that_is_missing_is_said_with_its_reason():
    lost = {"page": None, "abstention": "rewriter: 503: down", "verdict": np.nan, "answer": None}
    row = pd.Series(ROW | lost)
    assert "no page: rewriter: 503: down" in text(pages_view(EXAMPLE, row))
    shown = text(answers_view(EXAMPLE, row))
    assert ">abstained</span> Rewriter: 503: down." in shown


def test_the_passage_that_a_verdict_rests_on_is_underlined():
    other = ROW | {"method": "original", "answer": "Boats.", "verdict": "omitted", "uncited": True}
    shown = text(answers_view(EXAMPLE, other, ROW))
    (passage,) = re.findall(r"<u>(.*?)</u>", shown.partition("passage closest")[0])
    assert re.sub("<.*?>", "", passage).startswith("The Moon raises two bulges of water [2]")
    assert shown.index("Answer: original page") < shown.index("Answer: key-point rewrite")
    assert "All of it. The target has 50% of its visibility (PAWC)." in shown
    assert "The answer cites no source." in shown


@pytest.mark.parametrize("size", [7, 20, 75, None])
def test_an_excerpt_holds_what_matters_and_counts_the_rest(size):
    filler = " ".join(f"word{i}" for i in range(300))
    answer = f"{filler} The Moon raises two bulges of water. {filler}"
    shown = text(answers_view(EXAMPLE, ROW | {"answer": answer}, size=size))
    body = re.search(r'<div class="geo-box geo-whole".*?>(.*?)</div>', shown, re.DOTALL)[1]
    assert all(f"<mark>{word}</mark>" in body for word in ("Moon", "raises", "bulges", "water"))
    left_out = sum(map(int, re.findall(r"\(… (\d+) words?\)", body)))
    kept = re.findall(r"\w+", re.sub(r"<[^>]+>|\(… \d+ words?\)", "", body))
    assert len(kept) == (size or 607) and left_out == 607 - len(kept)


def test_the_target_is_named_among_the_sources_and_a_role_s_last_prompt_shown():
    order = draw_source_order(EXAMPLE)
    shown = text(question_view(EXAMPLE, EXAMPLE.key_points[0], order))
    assert re.search(rf"\[{order.place + 1}\] The Moon raises.*words, the target page\)", shown)
    requests = [Request("engine", "first"), Request("judge", "judge it"), Request("engine", "then")]
    prompts = text(prompts_view(requests))
    assert "then" in prompts and "judge it" in prompts and "first" not in prompts
    assert "No model was asked" in text(prompts_view([]))


def test_foreign_text_stays_text():
    evil = "<script>alert(1)</script>"
    example = make_example(
        query=evil, sources=(evil, f"{evil} page.", evil), key_points=(KeyPoint(1, evil),)
    )
    row = ROW | {"page": evil, "answer": f"{evil} [2].", "explanation": evil, "key_point": evil}
    order = draw_source_order(example)
    for view in (
        question_view(example, example.key_points[0], order),
        pages_view(example, row),
        answers_view(example, row),
        prompts_view([Request("engine", evil)]),
    ):
        assert "<script" not in view.data and "&lt;" in view.data
