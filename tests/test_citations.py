from functools import partial

import pytest
from conftest import growth
from hypothesis import given
from hypothesis import strategies as st

from geo_utils.citations import citation_numbers, parse_answer, strip_citations


@pytest.mark.parametrize(
    ("answer", "citations"),
    [
        ("Tides rise [1].", [(0,)]),
        ("Tides rise [1][2].", [(0, 1)]),
        ("Tides rise [1, 2].", [(0, 1)]),
        ("Tides rise [1,2,5].", [(0, 1, 4)]),
        ("Tides rise [1-3].", [(0, 1, 2)]),
        ("Tides rise [1–3].", [(0, 1, 2)]),
        ("Tides rise [Source 1].", [(0,)]),
        ("Tides rise [source 2, source 3].", [(1, 2)]),
        ("Tides rise [Sources 1 and 4].", [(0, 3)]),
        ("Tides rise 【1】.", [(0,)]),
        ("Tides rise 【1】【2】。", [(0, 1)]),
        ("Tides rise [^2].", [(1,)]),
        ("Tides rise [1](https://example.org/a).", [(0,)]),
        ("Tides rise. [1] Boats wait. [2]", [(0,), (1,)]),
        ("Tides rise.[1][2] Boats wait.[3]", [(0, 1), (2,)]),
        ("Tides rise.[1]\nBoats wait.", [(0,), ()]),
        ('He said "it rises."[1] Boats wait.', [(0,), ()]),
        ("Tides rise [1] and fall [1] twice [2].", [(0, 1)]),
        ("- Tides rise [3]\n- Boats wait [4]", [(2,), (3,)]),
        ("Nothing is cited here.", [()]),
        ('It was "caused by the moon." [1]. Winds matter here [2].', [(0,), (1,)]),
        ("潮汐每天两次。[1]风也有影响。[2]", [(0,), (1,)]),
        ("Приливы растут.[1]Ветер важен.[2]", [(0,), (1,)]),
        ("[1] says tides come. [2] reports that winds matter.", [(0,), (1,)]),
        ("The study by Smith et al. [1] found tides.", [(0,)]),
        ("Tides rise [1].\n\nReferences:\n[1] Tides.\n[2] Winds.", [(0,)]),
        ("Tides rise [1].\n\n[1]: http://a\n[2]: http://b", [(0,)]),
        ("Tides rise [1]–[3].", [(0, 1, 2)]),
        ("Tides rise \\[1\\].", [(0,)]),
        ("Tides rise [[2]](https://example.org/a_(b)).", [(1,)]),
        ("Tides rise **[2]**.", [(1,)]),
        ("Tides rise<sup>[1]</sup>. Boats wait.", [(0,), ()]),
        ("Tides rise 【2†source】.", [(1,)]),
        ("Tides rise ［1］.", [(0,)]),
        ("Tides rise [Source: 1] and [cite: 2].", [(0, 1)]),
        ("Tides rise [1 2].", [(0, 1)]),
        ("[1][2]", [(0, 1)]),
        ("潮水上涨[1]。船在等[2]。", [(0,), (1,)]),
        ("", []),
    ],
)
def test_citations_of_sentences(answer, citations):
    assert [s.citations for s in parse_answer(answer, 5).sentences] == citations


@pytest.mark.parametrize(
    ("answer", "out_of_range", "unparsed"),
    [
        ("A [0] b [6] c [2].", (0, 6), ()),
        ("See [Figure 2a] and [12 May].", (), ("[Figure 2a]", "[12 May]")),
        ("An aside [sic] is no citation.", (), ()),
        ("Odd [3-1] and [1-9999].", (), ("[3-1]", "[1-9999]")),
        ("In [2019], [3.5] and [1, p. 3].", (2019,), ("[3.5]", "[1, p. 3]")),
    ],
)
def test_what_went_wrong_is_reported(answer, out_of_range, unparsed):
    parsed = parse_answer(answer, 5)
    assert parsed.out_of_range == out_of_range
    assert parsed.unparsed == unparsed


def test_sentences_lose_their_marks_and_keep_their_paragraph():
    parsed = parse_answer("Tides rise. [1]\n\nBoats wait [2], always.", 2)
    assert [(s.text, s.paragraph) for s in parsed.sentences] == [
        ("Tides rise.", 0),
        ("Boats wait, always.", 1),
    ]


@pytest.mark.parametrize(
    ("inside", "numbers"),
    [
        ("1", [1]),
        ("2-4", [2, 3, 4]),
        ("1; 3 & 5", [1, 3, 5]),
        ("a1", None),
        ("", None),
        ("1.5", None),
    ],
)
def test_citation_numbers(inside, numbers):
    assert citation_numbers(inside) == numbers


def test_strip_citations_keeps_other_brackets():
    assert strip_citations("Rise [1], fall [2]. See [note].") == "Rise, fall. See [note]."


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=6))
def test_what_is_written_is_read(groups):
    answer = " ".join(
        f"Sentence number {i} ends here {''.join(f'[{c}]' for c in group)}."
        for i, group in enumerate(groups)
    )
    expected = [tuple(dict.fromkeys(c - 1 for c in group)) for group in groups]
    assert [s.citations for s in parse_answer(answer, 5).sentences] == expected


@given(st.text(max_size=300))
def test_any_text_can_be_parsed(text):
    for sentence in parse_answer(text, 3).sentences:
        assert all(0 <= c < 3 for c in sentence.citations)


@pytest.mark.parametrize(
    ("part", "times"), [("[", 50_000), ("[1", 20_000), ("[1][2]", 20_000), (".[1] ", 10_000)]
)
def test_hostile_answers_take_no_quadratic_time(part, times):
    parse = partial(parse_answer, n_sources=5)
    assert growth(parse, part * (times // 4), part * times) < 9  # 4 if linear, 16 if quadratic
