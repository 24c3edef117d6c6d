"""A policy sees and writes whole pages; what is cut all the same is counted."""

import pytest
from conftest import make_example
from tiny_model import make_tiny_model

from geo_utils.corpus import KeyPoint
from geo_utils.grpo.data import (
    policy_card,
    rows_of,
    split_queries,
    tell_lengths,
    with_lengths,
)
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import ParameterError
from geo_utils.runs import Run

SENTENCE = "The tide rises twice a day. "
EXAMPLES = [
    make_example(f"q{i}", sources=("Sea.", (SENTENCE * 4**i).strip(), "Ebb."),
                 key_points=(KeyPoint(1, "Tides rise."), KeyPoint(2, "Twice a day.")))
    for i in range(4)
]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("policy")))


def recipe(policy, **changes):
    own = {"policy.base": policy, "data.held_out": "0.25"} | changes
    return read_parameters("04_grpo", "default", list(own.items()))[2]


def told(params, policy, folder):
    run, split = Run(folder), split_queries(EXAMPLES, params)
    run.update()
    said = tell_lengths(params, split, policy, run)
    return said, run.manifest["lengths"], split


def test_no_page_is_cut_where_lengths_follow_the_corpus(policy, tmp_path):
    params = with_lengths(recipe(policy, **{"grpo.use_vllm": "true"}), EXAMPLES)
    card, rows = policy_card(params), rows_of(params, split_queries(EXAMPLES, params).train, policy)
    assert len(rows) == 6 and {row["shown"] for row in rows} == {-1}
    assert (card.max_completion_length, card.max_prompt_tokens) == (768, 1361)
    both = card.max_completion_length + card.max_prompt_tokens
    assert params.grpo["vllm_max_model_length"] == both
    said, lengths, _ = told(params, policy, tmp_path)
    assert lengths["to train on"] == {"pairs": 6, "cut": 0, "left_out": 0}
    assert "of 6 pages to train on 0 are cut to fit" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"data.max_prompt_tokens": "1000"},
        {"grpo.max_completion_length": "256"},
    ],
)
def test_what_is_cut_or_left_out_is_counted(policy, tmp_path, changes):
    params = with_lengths(recipe(policy, **changes), EXAMPLES)
    said, lengths, split = told(params, policy, tmp_path)
    rows = rows_of(params, split_queries(EXAMPLES, params).train, policy)
    cut, pairs = sum(row["shown"] > 0 for row in rows), len(split.train)
    lost = pairs - len(rows)
    assert lengths["to train on"] == {"pairs": pairs, "cut": cut, "left_out": lost}
    counts = [lengths[name] for name in ("to train on", "held out")]
    assert sum(found["cut"] + found["left_out"] for found in counts) == 2  # two points a page
    assert f"{cut} are cut to fit" in said


def test_lengths_that_follow_the_corpus_have_a_cap(policy, monkeypatch):
    monkeypatch.setattr("geo_utils.grpo.data.MOST_TOKENS", 1000)
    params = with_lengths(recipe(policy), EXAMPLES)
    assert (params.data.max_prompt_tokens, params.grpo["max_completion_length"]) == (1000, 768)


def test_lengths_that_cannot_be_had_are_refused(policy):
    changes = {"grpo.use_vllm": "true", "grpo.vllm_max_model_length": "1000"}
    with pytest.raises(ParameterError, match="vllm_max_model_length=1000 is too short for prom"):
        with_lengths(recipe(policy, **changes), EXAMPLES)
    with pytest.raises(ParameterError, match="an arrangement's do not follow its page; give num"):
        recipe(policy, **{"policy.method": "arrange_key_point"})
