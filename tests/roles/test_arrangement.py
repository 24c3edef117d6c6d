"""Pages put in a new order, and the prompts that ask for it: nothing of a page is ever lost."""

from collections import Counter
from dataclasses import replace
from unittest import mock

import pytest
from conftest import make_example, run
from hypothesis import example as also
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_roles import BLOCKED, Echo

from geo_utils.corpus import KeyPoint
from geo_utils.roles.by_model import (
    ModelRewriter,
    NamedRewriters,
    PolicyRewriter,
    RewriteTask,
)
from geo_utils.roles.policies import PolicyCard, fitter
from geo_utils.roles.rewriters import Rewrite, arrange, is_tidy, numbered, page_units

PAGE = """# Tides

The sea rises twice a day. Boats wait for it.

- The Moon pulls.
- The Sun helps.
| place | height |
"""
POINT = KeyPoint(1, "Water follows the Moon.")
TABLE = "- The Moon pulls.\n- The Sun helps.\n| place | height |\n"


class TestUnits:
    @pytest.mark.parametrize(
        ("page", "units"),
        [
            ("", []),
            ("# Only a title\n", []),
            ("\n\n# Title\nOne. Two.", ["One.", "Two."]),
            ("# Title\n# Not the title", ["# Not the title"]),
            ("Dr. Ho came. He went.", ["Dr. Ho came.", "He went."]),
            ("One line\nanother line", ["One line", "another line"]),
            ("| a. b | c. d |\n|---|---|", ["| a. b | c. d |", "|---|---|"]),
            ("  ## A heading. Long.  ", ["## A heading. Long."]),
            ("潮汐。月亮。", ["潮汐。", "月亮。"]),
            ("Same. Same. Same.", ["Same.", "Same.", "Same."]),
        ],
    )
    def test_hand_worked(self, page, units):
        found = page_units(page)
        assert [unit.text for unit in found] == units
        assert all(page[unit.start : unit.end] == unit.text for unit in found)

    def test_a_prompt_shows_a_line_each(self):
        assert numbered(page_units("A  tide\tcame. It went.\n\n- e")) == (
            "[1] A tide came.\n[2] It went.\n[3] - e"
        )


class TestArrange:
    @pytest.mark.parametrize(
        ("reply", "page"),
        [
            ("[1][2][3][4][5]", PAGE),
            (" [1] [2],\n[3] ", PAGE),
            ("[99]", PAGE),
            ("[0][1]", PAGE),
            (
                "[2][1]",
                "# Tides\n\nBoats wait for it.\n\nThe sea rises twice a day.\n\n" + TABLE,
            ),
            (
                "[2][2][1][2]",
                "# Tides\n\nBoats wait for it.\n\nThe sea rises twice a day.\n\n" + TABLE,
            ),
            (
                "[1][K][2]",
                "# Tides\n\nThe sea rises twice a day.\n\nWater follows the Moon.\n\n"
                "Boats wait for it.\n\n" + TABLE,
            ),
            (
                "[K][K][K]",
                "# Tides\n\nWater follows the Moon.\n\nWater follows the Moon.\n\n"
                "The sea rises twice a day. Boats wait for it.\n\n" + TABLE,
            ),
            (
                "[2]**[K]**[1]",  # stars between two marks belong to the stressed one
                "# Tides\n\nBoats wait for it.\n\n**Water follows the Moon.**\n\n"
                "The sea rises twice a day.\n\n" + TABLE,
            ),
            (
                "**[1]****[2]**",
                "# Tides\n\n**The sea rises twice a day.** **Boats wait for it.**\n\n" + TABLE,
            ),
            ("**[1][2]**", PAGE),
            (
                "[1][2]**[3]****[5]**",
                "# Tides\n\nThe sea rises twice a day. Boats wait for it.\n\n"
                "- **The Moon pulls.**\n\n| place | height |\n\n- The Sun helps.\n",
            ),
        ],
    )
    def test_hand_worked(self, reply, page):
        assert arrange(PAGE, POINT.content, reply) == (page, None)

    @pytest.mark.parametrize("reply", ["", "  ", "1, 2", "[1] first", "[one]", "[12345]", "**"])
    def test_what_names_nothing_or_says_more_is_refused(self, reply):
        page, problem = arrange(PAGE, POINT.content, reply)
        assert page == "" and problem.startswith("unparsable") and repr(reply) in problem

    def test_a_sentence_that_was_not_shown_cannot_be_named(self):
        page, _ = arrange("One. Two. Three.", "K.", "[3][2]", shown=2)
        assert page == "Two.\n\nOne.\n\nThree.\n"

    def test_bold_is_not_put_into_bold(self):
        assert arrange("A **b** c.", "K.", "**[1]**")[0] == "A **b** c.\n"

    @pytest.mark.parametrize(
        ("reply", "tidy"),
        [
            ("[1][2]", True),
            ("**[K]**[2][K]", True),
            ("[1][1]", False),
            ("[3]", False),
            ("[0]", False),
            ("[K][K][K]", False),
            ("[1] and [2]", False),
        ],
    )
    def test_tidy(self, reply, tidy):
        assert is_tidy(reply, known=2) is tidy


@st.composite
def pages(draw):
    """Pages whose every sentence has a number of its own."""
    n = draw(st.integers(1, 12))
    title = draw(st.sampled_from(["", "# The title\n", "# The title\n\n", "\n# The title\n\n"]))
    text = ""
    for i in range(n):
        lead, end = draw(st.sampled_from([("", " "), ("", "\n\n"), ("- ", "\n"), ("3. ", "\n")]))
        lead = lead if not text or text.endswith("\n") else ""
        text += f"{lead}Fact a{i}z holds.{end}"
    return title + text


marks = st.builds(
    lambda name, stars: stars.replace("n", f"[{name}]"),
    st.sampled_from(["K", *map(str, range(14)), "9999"]),
    st.sampled_from(["n", "**n**", "**n", "n**"]),
)
replies = st.builds(
    lambda found, gap: gap.join(found),
    st.lists(marks, min_size=1, max_size=20),
    st.sampled_from(["", " ", "\n", ", "]),
)
KEY = "Κλειδί."


class TestNothingIsLost:
    @settings(deadline=None)
    @given(pages())
    def test_the_identity_reproduces_the_page(self, page):
        reply = "".join(f"[{i}]" for i in range(1, len(page_units(page)) + 1))
        assert arrange(page, KEY, reply) == (page.strip() + "\n", None)

    @settings(deadline=None)
    @given(pages(), replies, st.none() | st.integers(1, 12))
    def test_every_sentence_once_after_the_title_and_nothing_but_the_key_point(
        self, page, reply, shown
    ):
        found, problem = arrange(page, KEY, reply, shown)
        assert problem is None
        assert found.count(KEY) <= 2
        assert found.startswith("# The title") == ("# The title" in page)
        bare = found.replace(KEY, "").replace("**", "").split()
        assert Counter(bare) == Counter(page.split())

    @settings(deadline=None)
    @given(st.text(alphabet="ab .!?#-|`\"'()\n\t。1\u2028\x0b\r\x1c\u00a0", max_size=80), replies)
    @also("# \n#  \n\n# b", "[2][1]")
    @also("a\r\nb\x1cc", "[3]")
    def test_no_character_of_any_page_is_lost(self, page, reply):
        found, _ = arrange(page, KEY, reply)
        bare = found.replace(KEY, "").replace("**", "")
        assert Counter("".join(bare.split())) == Counter("".join(page.split()))


TASKS = [RewriteTask(method) for method in ("key_point", "arrange_key_point", "fluency", "rules")]


def example_of(page):
    return make_example(sources=("other", page, "third"), key_points=(POINT,))


def shown_of(card, example, point, count=len):
    """How many units a policy is shown whose tokens are what `count` counts."""
    tokenizer = mock.Mock(side_effect=lambda text, **_: {"input_ids": range(count(text))})
    tokenizer.apply_chat_template = lambda messages, **_: messages[0]["content"]
    return fitter(replace(card, max_completion_length=2**20), tokenizer)(example, point)


class TestFitting:
    PAGE = "One two three. Four five six. Seven eight nine."

    @pytest.mark.parametrize(
        ("budget", "shown"),
        # 6 words of instruction and key point, and 3 a sentence
        [(99, None), (15, None), (14, 2), (12, 2), (11, 1), (9, 1), (8, 0), (0, 0)],
    )
    def test_hand_worked(self, tmp_path, budget, shown):
        (tmp_path / "rewrite_key_point.md").write_text("Stress: $key_point\n$page\nEnd of task.")
        task, point = RewriteTask("key_point", tmp_path), KeyPoint(1, "Moon pulls.")
        example = example_of(self.PAGE)
        card = PolicyCard("key_point", str(tmp_path), max_prompt_tokens=budget)
        assert shown_of(card, example, point, lambda t: len(t.split())) == shown
        if shown:
            prompt = task.prompt(example, point, shown)
            kept = " ".join(self.PAGE.split()[: 3 * shown])
            assert prompt == f"Stress: Moon pulls.\n{kept}\nEnd of task."

    @pytest.mark.parametrize("task", TASKS, ids=lambda task: task.method)
    @settings(deadline=None, max_examples=30)
    @given(page=pages(), spare=st.integers(-5, 40))
    def test_as_many_sentences_as_fit_beside_whole_instructions(self, task, page, spare):
        example, whole = example_of(page), len(page_units(page))
        budget = len(task.prompt(example_of("x"), POINT)) + 12 * spare
        shown = shown_of(PolicyCard(task.method, max_prompt_tokens=budget), example, POINT)
        fitting = [k for k in range(1, whole) if len(task.prompt(example, POINT, k)) <= budget]
        if len(task.prompt(example, POINT)) <= budget:
            assert shown is None
        else:
            assert shown == max(fitting, default=0)
        for k in range(1, whole + 1):  # only the page is cut: the rest is the template's
            before, _, after = task.template.text.rpartition("$page")
            prompt = task.prompt(example, POINT, k)
            assert prompt.endswith(after.replace("$key_point", POINT.content))
            assert prompt.startswith(before.partition("$")[0])
            assert (POINT.content in prompt) == ("key_point" in task.method)
            assert f"Fact a{k - 1}z holds." in prompt and f"a{k}z" not in prompt

    def test_a_title_alone_has_no_sentence_to_fit(self):
        assert shown_of(PolicyCard(max_prompt_tokens=3), example_of("# Title"), POINT) == 0


class TestPage:
    @settings(deadline=None)
    @given(pages(), st.none() | st.integers(0, 12))
    def test_what_was_not_shown_follows_the_rewrite(self, page, shown):
        units = page_units(page)
        part = page if shown is None or shown >= len(units) else page[: units[shown].start]
        new = "Otters drink. " + part
        found = RewriteTask("key_point").page(new, example_of(page), POINT, shown)
        assert found.abstention is None
        assert found.text.split() == ["Otters", "drink.", *page.split()]

    @pytest.mark.parametrize("shown", [None, 1])
    def test_a_refusal_or_a_fragment_is_no_page(self, shown):
        page = "The sea rises and falls twice on every single day of the year. " * 3
        found = RewriteTask("key_point").page("", example_of(page), POINT, shown)
        assert found.text == "" and found.abstention.startswith("empty")
        found = RewriteTask("key_point").page("The sea.", example_of(page), POINT, shown)
        assert found.text == "" and found.abstention.startswith("short")

    def test_a_reply_is_weighed_against_the_part_that_was_shown(self):
        page = "One two three four. " + "Five six seven eight nine ten. " * 20
        task, example = RewriteTask("key_point"), example_of(page)
        assert task.page("One or two.", example, POINT, 1).text.startswith("One or two.\n\nFive")
        assert task.page("One or two.", example, POINT).abstention.startswith("short")


class TestRewriters:
    def test_a_model_arranges_by_numbers(self):
        caller = Echo("[2]**[K]**")
        found = run(ModelRewriter(caller).rewrite("arrange_key_point", example_of(PAGE), POINT))
        assert found.text.startswith(
            "# Tides\n\nBoats wait for it.\n\n**Water follows the Moon.**\n\nThe sea rises"
        )
        (request,) = caller.requests
        assert "[K] Water follows the Moon.\n[1] The sea rises twice a day.\n" in request.prompt
        assert request.prompt.rstrip().endswith("[5] | place | height |")

    def test_a_page_is_no_arrangement(self):
        found = run(ModelRewriter(Echo(PAGE)).rewrite("arrange_key_point", example_of(PAGE), POINT))
        assert found.text == "" and found.abstention.startswith("unparsable")

    def test_a_policy_sees_what_fits_and_the_rest_stays(self):
        caller = Echo("[2][1]")
        policy = PolicyRewriter(caller, RewriteTask("arrange_key_point"), lambda e, p: 2)
        found = run(policy.rewrite("policy/after", example_of("One. Two. Three."), POINT, 5))
        assert found.text == "Two.\n\nOne.\n\nThree.\n"
        assert "[2] Two." in caller.requests[0].prompt
        assert "Three" not in caller.requests[0].prompt
        assert caller.requests[0].sample_index == 5

    def test_a_policy_whose_prompt_holds_no_sentence_is_not_asked(self):
        caller = Echo("[1]")
        policy = PolicyRewriter(caller, RewriteTask("arrange_key_point"), lambda e, p: 0)
        found = run(policy.rewrite("p/x", example_of(PAGE), POINT))
        assert found.text == "" and found.abstention.startswith("not shown: no sentence")
        assert caller.requests == []

    def test_a_failure_is_an_abstention(self):
        policy = PolicyRewriter(Echo(error=BLOCKED), TASKS[0], lambda e, p: None)
        assert run(policy.rewrite("p/x", example_of(PAGE), POINT)).abstention == "blocked: SAFETY"

    def test_methods_with_rewriters_of_their_own(self):
        class Says:
            def __init__(self, word):
                self.word = word

            async def rewrite(self, method, example, key_point, sample_index=0):
                return Rewrite(f"{self.word} {method}")

        both = NamedRewriters(Says("other"), {"runs/a": Says("policy")})
        for method, text in (("runs/a", "policy runs/a"), ("fluency", "other fluency")):
            assert run(both.rewrite(method, example_of(PAGE), POINT)).text == text
