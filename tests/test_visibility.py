import itertools
import math
import random
from functools import partial

import numpy as np
import pytest
from conftest import is_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_utils.visibility import visibility, visibility_from_sentences

FIGURES = ("word", "position", "pawc")


def plain_loop(paragraphs, n, base, figure):
    """GEO's formula read off the paper, one source at a time."""
    flat = list(itertools.chain(*paragraphs))
    scores = []
    for source in range(n):
        score = 0
        for i, (tokens, _, citations) in enumerate(flat):
            for number in citations:
                index = number - base
                if index == -1:
                    index = n - 1
                if index != source:
                    continue
                share = len([t for t in tokens if len(t) > 2]) if figure != "position" else 1
                if figure != "word" and len(flat) > 1:
                    share = share * math.exp(-i / (len(flat) - 1))
                score += share / len(citations)
        scores.append(score)
    total = sum(scores)
    return [s / total for s in scores] if total != 0 else [1 / n] * n


tokens = st.lists(st.sampled_from(["a", "of", "the", "tide", "rises", ".", "[", "1"]), max_size=12)
sentence = st.tuples(tokens, st.just(""), st.lists(st.integers(0, 8), max_size=4))
structure = st.lists(st.lists(sentence, max_size=6), max_size=4)


@settings(max_examples=1000, deadline=None)
@given(structure, st.integers(1, 7))
def test_upstream_conventions_are_exact(paragraphs, n):
    for convention, base in (("geo", 1), ("autogeo", 0)):
        found = visibility_from_sentences(paragraphs, n, convention)
        for figure in FIGURES:
            expected = plain_loop(paragraphs, n, base, figure)
            assert getattr(found, figure).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(structure, st.integers(1, 7))
def test_corrected_shares_sum_to_one_or_nothing(paragraphs, n):
    found = visibility_from_sentences(paragraphs, n)
    assert found.position.sum() == pytest.approx(0.0 if found.uncited else 1.0)
    for figure in FIGURES:
        shares = getattr(found, figure)
        assert shares.shape == (n,)
        assert (shares >= 0).all()
        assert not found.uncited or shares.sum() == 0


@pytest.mark.parametrize(
    ("answer", "word", "position", "pawc"),
    [
        # two sentences of three counted words each: weights 1 and 1/e
        (
            "Alpha beta gamma [1]. Delta epsilon zeta [2].",
            [0.5, 0.5],
            [1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1))],
            [1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1))],
        ),
        # one sentence shared by two sources
        ("Alpha beta gamma [1][2].", [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]),
        # words of up to two letters do not count; a repeated source counts once
        ("We go up [1]. Alpha is on [2] top [2].", [0, 1.0], None, [0, 1.0]),
        ("Nobody is cited.", [0, 0], [0, 0], [0, 0]),
        ("Only out of range [7].", [0, 0], [0, 0], [0, 0]),
    ],
)
def test_corrected_by_hand(answer, word, position, pawc):
    found = visibility(answer, 2)
    for figures, expected in zip(found, (word, position, pawc), strict=True):
        if expected is not None:
            np.testing.assert_allclose(figures, expected, atol=1e-12)


def test_conventions_differ_where_they_should():
    answer = "Alpha beta gamma [0]. Delta epsilon zeta [1]."
    assert visibility(answer, 3, "geo").word.tolist() == [0.5, 0, 0.5]
    assert visibility(answer, 3, "autogeo").word.tolist() == [0.5, 0.5, 0]
    assert visibility(answer, 3).word.tolist() == [1, 0, 0]
    for convention in ("geo", "autogeo"):
        silent = visibility("Nothing cited.", 4, convention)
        assert silent.pawc.tolist() == [0.25] * 4
        assert silent.uncited


def test_a_chinese_answer_has_words():
    found = visibility("潮水每天上涨两次[1]。船在等[2]。", 2)
    assert found.word[0] > found.word[1] > 0


@pytest.mark.parametrize(("n", "convention"), [(0, "corrected"), (-1, "geo"), (3, "GEO")])
def test_wrong_arguments_are_named(n, convention):
    with pytest.raises(ValueError, match=r"n_sources=|convention='GEO' is unknown; choose from"):
        visibility("Any [1].", n, convention)


@pytest.mark.parametrize("convention", ["corrected", "geo", "autogeo"])
def test_its_time_is_linear_in_the_answers_words(convention):
    draw = random.Random(0)
    vocabulary = ["tide", "moon", "harbour", "water", "rises", "every", "boat", "of", "the"]
    said = [
        f"The {' '.join(draw.choices(vocabulary, k=18))} [{draw.randint(1, 5)}]."
        for _ in range(100)
    ]
    assert is_linear(partial(visibility, n_sources=5, convention=convention), " ".join([*said, ""]))
