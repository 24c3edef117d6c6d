import pytest

from geo_utils.text import content_words, negated_words, numbers, sentences, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Smith paid $3.50. He left.", ["Dr. Smith paid $3.50.", "He left."]),
        ("# A title\nA line", ["# A title", "A line"]),
        ("这是第一句。这是第二句！", ["这是第一句。", "这是第二句！"]),
        ("هل هذا سؤال؟ نعم هو.", ["هل هذا سؤال؟", "نعم هو."]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 1,300 or 3.5 tonnes.", ["It's", "1,300", "or", "3.5", "tonnes"]),
        ("co-op [1]", ["co", "op", "1"]),
        ("潮汐 tide", ["潮", "汐", "tide"]),
        ("كِتاب", ["كِتاب"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_content_words_are_stems_without_function_words():
    assert content_words("The batteries aren't charging at all") == ("batteri", "charg")


def test_numbers_ignore_thousands_separators():
    assert numbers("1,300 of 2.5 in 1999.") == {"1300", "2.5", "1999"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The tank does not rust", {"rust"}),
        ("The tank doesn't rust, and paint helps", {"rust"}),
        ("Not only rust but heat harms it", set()),
        ("It rusts, but paint does not rust", set()),
    ],
)
def test_negated_words(text, expected):
    assert negated_words(text) == expected
