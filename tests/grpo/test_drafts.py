"""A draft reads on where the copy is; it costs no token and looks at nothing that is not there."""

import numpy as np
import pytest
from conftest import is_linear
from draft_rules import Text, by_text, ngram_draft, page_proposer, replayed, suffix_draft
from hypothesis import given
from hypothesis import strategies as st

PAGE = list(range(1, 60))  # tokens of a page; 100 and more are new ones


def rows(*texts, size=200, beyond=0):
    """Texts as vLLM keeps them: a row each, anything beyond the end."""
    found = np.full((len(texts), size), beyond, dtype=np.int32)
    for row, text in zip(found, texts, strict=True):
        row[: len(text)] = text
    return np.array([len(text) for text in texts]), found


def drafted(written, size=4, prompt=PAGE):
    """The draft after a text was written token by token."""
    proposer = page_proposer(size)
    for length in range(1, len(written) + 1):
        told = rows([*prompt, *written[:length]])
        (found,) = proposer.propose([[written[length - 1]]], *told)
    return found


@pytest.mark.parametrize(
    ("written", "ahead"),
    [
        ([1, 2, 3], [4, 5, 6, 7]),
        ([1, 2, 3, 100], [5, 6, 7, 8]),  # as if it stood for 4
        ([1, 2, 3, 100, 101], [6, 7, 8, 9]),  # for 4 and 5
        ([1, 2, 3, 100, 101, 102], [4, 5, 6, 7]),  # inserted
        ([1, 2, 3, 100, 5], [6, 7, 8, 9]),  # the copy goes on
        ([1, 2, 3, 100, 101, 102, 4], [5, 6, 7, 8]),
        ([1, 2, 3, 9], [10, 11, 12, 13]),  # left out: one token near the break is enough
        ([1, 2, 3, 50], [5, 6, 7, 8]),  # far away it is not
        ([1, 2, 3, 50, 51], [52, 53, 54, 55]),  # two are
        ([20, 21, 1, 2], [3, 4, 5, 6]),  # paragraphs moved
        ([100, 101, 102, 100, 101], [102, 100, 101, 102]),  # its own words, again and again
    ],
)
def test_it_goes_on_where_the_copy_broke(written, ahead):
    assert drafted(written) == ahead


def test_of_equal_phrases_the_next_on_the_page_counts():
    page = [7, 8, 1, 2, 3, 7, 8, 4, 5, 6, 7, 8, 9]
    assert drafted([7, 8, 1], prompt=page)[:2] == [2, 3]
    assert drafted([7, 8, 1, 2, 3, 100, 101, 102, 7, 8], prompt=page) == [4, 5, 6, 7]
    assert drafted([4, 5, 6, 7, 8], prompt=page)[:1] == [9]
    page = [7, 8, 1, 7, 8, 2, 5, 6, 9]
    assert drafted([5, 6, 100, 101, 102, 7, 8], prompt=page) == [2, 5, 6, 9]  # else the last before


class TestProposer:
    def test_a_draft_is_no_longer_than_what_may_follow(self):
        proposer = page_proposer(4, longest=62)
        lengths, found = rows([*PAGE, 1], [*PAGE, 1, 2], [*PAGE, 1, 2, 3], [*PAGE, 1])
        sampled = [[1], [1, 2], [1, 2, 3], []]  # the last still reads its prompt
        assert proposer.propose(sampled, lengths, found) == [[2, 3], [3], [], []]

    def test_what_lies_beyond_a_text_is_not_read(self):
        for beyond in (0, 1, 4):
            told = rows([*PAGE, 1, 2, 3, 100], beyond=beyond)
            assert page_proposer(4).propose([[100]], *told) == page_proposer(4).propose(
                [[100]], *rows([*PAGE, 1, 2, 3, 100], beyond=-1)
            )

    def test_a_sequence_is_known_again_in_another_row(self):
        one, other = [*PAGE, 1, 2, 3], [*range(60, 1, -1), 60, 59]
        still, moved = page_proposer(4), page_proposer(4)
        for proposer in (still, moved):
            proposer.propose([[3], [59]], *rows(one, other))
        assert still.propose([[100], [58]], *rows([*one, 100], [*other, 58])) == [
            [5, 6, 7, 8], [57, 56, 55, 54],
        ]  # fmt: skip
        assert moved.propose([[58], [100]], *rows([*other, 58], [*one, 100])) == [
            [57, 56, 55, 54], [5, 6, 7, 8],
        ]  # fmt: skip

    @given(
        st.lists(st.integers(0, 3), min_size=1, max_size=20),
        st.lists(st.integers(0, 4), min_size=2, max_size=20),
    )
    def test_any_text_gets_full_drafts_of_its_own_tokens_and_the_same_again(self, prompt, written):
        def noted(found):
            proposer = page_proposer(5)

            def propose(*told):
                found.append(proposer.propose(*told)[0])
                return [found[-1]]

            return propose

        first, again = [], []
        (text,) = replayed([Text(prompt, written)], noted(first))
        assert text.steps == len(first)
        replayed([Text(prompt, written)], noted(again))
        assert first == again
        assert all(len(d) == 5 and set(d) <= {*prompt, *written} for d in first)

    def test_a_step_takes_time_that_grows_with_the_text(self):
        def act(text):
            told = rows([*text, *range(100, 108)], size=len(text) + 8)
            page_proposer(7).propose([[*range(100, 108)]], *told)

        hard = [100, 101, 102, 103, 104, 105, 106, 5] * 1_250
        assert is_linear(act, hard)


class TestOtherRules:
    def test_vllms_rule_by_hand(self):
        tokens = np.array([1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3])
        assert ngram_draft(tokens, 3) == [4, 9, 2]  # the earliest of two copies of (2, 3)
        assert ngram_draft(np.array([2, 3, 1, 7, 2, 3, 1, 8, 7, 2, 3]), 3) == [1, 8, 7]  # longest
        assert ngram_draft(np.array([1, 2, 3, 4, 3]), 3) == []  # two tokens at least
        assert ngram_draft(np.array([1, 2, 1, 2]), 3) == [1, 2]  # to the end and no further
        assert ngram_draft(np.array([*range(1, 9), *range(3, 9)]), 2) == [3, 4]

    def test_it_is_vllms(self):
        vllm = pytest.importorskip("vllm.v1.spec_decode.ngram_proposer")
        dice = np.random.default_rng(0)
        for _ in range(2_000):
            tokens = dice.integers(0, dice.integers(2, 8), dice.integers(1, 60)).astype(np.int32)
            size, least, wider = (int(dice.integers(1, 6)) for _ in range(3))
            theirs = vllm._find_longest_matched_ngram_and_propose_tokens(
                tokens, least, least + wider, 10**6, size
            )
            assert ngram_draft(tokens, size, least, least + wider) == theirs.tolist()

    def test_a_suffix_drafts_what_followed_most_often_as_far_as_the_copy_is_long(self):
        tokens = np.array([1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 4, 9, 8, 1, 2])
        assert suffix_draft(tokens, 7) == [4, 9]  # behind two of three, and behind both of these
        assert suffix_draft(np.array([1, 2, 3, 4, 5, 6, 1, 2, 3]), 2) == [4, 5]
        assert suffix_draft(np.array([1, 2, 3]), 2) == []


def test_a_replay_counts_the_steps_by_hand():
    """The first token comes with the prompt, and each step writes one more than it accepts."""
    text = Text([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 5, 6, 0])
    steps = []

    def propose(sampled, lengths, found):
        steps.append((sampled[0], draft := by_text(ngram_draft, 3)(sampled, lengths, found)[0]))
        return [draft]

    replayed([text], propose)
    assert steps == [
        ([1], []), ([2], [3, 4, 5]), ([3, 4, 9], []), ([5], []), ([6], [1, 2, 3]),
    ]  # fmt: skip
    assert text.steps == 5 and text.tokens_a_step == 7 / 5
