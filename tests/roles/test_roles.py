"""The offline engine, judge and rewriters."""

import pytest
from conftest import make_example, run
from measure_judge import roc_auc, support_scores

from geo_utils.citations import parse_answer
from geo_utils.corpus import KeyPoint, load_corpus
from geo_utils.lexical import SUPPORT_THRESHOLD, bm25, coverage
from geo_utils.roles.engines import Emphasis, ExtractiveEngine
from geo_utils.roles.judges import STRICT, LexicalJudge
from geo_utils.roles.rewriters import EDITS, EditRewriter
from geo_utils.text import sentences, words

QUERY = "how do tides work?"
POINT = KeyPoint(1, "The Moon raises two bulges of water.")


def answer(sources, query=QUERY, engine=None, sample_index=0):
    return run((engine or ExtractiveEngine()).answer(query, sources, sample_index))


class TestEngine:
    example = load_corpus()[0]

    def test_every_sentence_is_quoted_from_the_source_it_cites(self):
        found = answer(self.example.sources, self.example.query)
        parsed = parse_answer(found.text, 5)
        assert len(parsed.sentences) > 5
        assert not parsed.out_of_range and not parsed.unparsed
        for sentence in parsed.sentences:
            (source,) = sentence.citations
            page = " ".join(self.example.sources[source].replace("**", "").split())
            assert sentence.text.rstrip(".!?") in page

    def test_budget_is_kept_and_used(self):
        engine = ExtractiveEngine(word_budget=60)
        found = answer(self.example.sources, self.example.query, engine)
        count = sum(len(words(s.text)) for s in parse_answer(found.text, 5).sentences)
        assert 40 <= count <= 60

    def test_repeats_differ_and_each_is_reproducible(self):
        found = [
            answer(self.example.sources, self.example.query, sample_index=i).text for i in range(4)
        ]
        again = [
            answer(self.example.sources, self.example.query, sample_index=i).text for i in range(4)
        ]
        assert found == again
        assert len(set(found)) == 4

    def test_without_noise_repeats_are_equal(self):
        engine = ExtractiveEngine(temperature=0)
        assert answer(self.example.sources, engine=engine, sample_index=0) == answer(
            self.example.sources, engine=engine, sample_index=1
        )

    @pytest.mark.parametrize(
        ("emphasis", "emphasised"),
        [
            (
                Emphasis(1, 0, 0, 0),
                "Fish like cold water in spring. **Gulls nest on the high cliffs.**",
            ),
            (
                Emphasis(0, 1, 0, 0),
                "Fish like cold water in spring.\n## Gulls nest on the high cliffs.",
            ),
            (
                Emphasis(0, 0, 1, 0),
                "Gulls nest on the high cliffs. Fish like cold water in spring.",
            ),
            (
                Emphasis(0, 0, 0, 1),
                "Fish like cold water in spring. Gulls nest on the high cliffs. "
                "Gulls nest on the high cliffs.",
            ),
        ],
    )
    def test_each_kind_of_emphasis_attracts_by_its_weight_alone(self, emphasis, emphasised):
        plain = "Fish like cold water in spring. Gulls nest on the high cliffs."
        options = {"word_budget": 8, "temperature": 0.0}
        first = answer([emphasised], "sea", ExtractiveEngine(emphasis=emphasis, **options)).text
        blind = ExtractiveEngine(emphasis=Emphasis(0, 0, 0, 0), **options)
        assert first.startswith("Gulls")
        assert answer([plain], "sea", blind).text.startswith("Fish")

    def test_a_sentence_said_by_two_sources_is_taken_once(self):
        page = "The Moon raises two bulges of water."
        assert answer([page, page]).text.count("bulges") == 1

    @pytest.mark.parametrize("page", ["", "[1][2]", "[1] [2, 3].", "# Title", "Ok. Yes."])
    def test_nothing_to_quote_is_an_abstention(self, page):
        found = answer([page])
        assert found.text == ""
        assert "no source holds a usable sentence" in found.abstention

    def test_citations_inside_a_page_are_not_passed_on(self):
        found = answer(["Tides rise twice a day in most places [7]."])
        assert parse_answer(found.text, 1).out_of_range == ()

    @pytest.mark.parametrize(
        ("query", "page"),
        [
            ("潮汐是怎么形成的", "月球的引力使海水上涨。船只在港口等待。"),
            ("كيف يحدث المد", "يرفع القمر مياه البحر مرتين في اليوم. تنتظر السفن في الميناء."),
        ],
    )
    def test_other_scripts(self, query, page):
        found = answer([page, "An English page about nothing in particular."], query)
        assert parse_answer(found.text, 2).sentences[0].citations == (0,)


class TestBm25:
    def test_rare_words_and_short_documents_score_higher(self):
        scores = bm25(["moon", "tide"], [["tide"], ["moon"], ["tide", "sea", "ship"], ["sea"]])
        assert scores[1] > scores[0] > scores[2] > scores[3] == 0

    def test_no_documents(self):
        assert bm25(["moon"], []).shape == (0,)


class TestJudge:
    @pytest.mark.parametrize(
        ("claim", "text", "label"),
        [
            (POINT.content, "The Moon raises two bulges of water [1].", "supported"),
            (POINT.content, "Two bulges of water are raised. The Moon does it.", "supported"),
            (POINT.content, "Boats wait in the harbour.", "omitted"),
            (POINT.content, "", "omitted"),
            (POINT.content, "The Moon does not raise bulges of water.", "contradicted"),
            (
                "A new tide arrives every 12 hours.",
                "A new tide arrives every 6 hours.",
                "contradicted",
            ),
            (
                "A new tide arrives every 12 hours.",
                "A new tide arrives every 12 hours.",
                "supported",
            ),
            ("Rust does not harm it.", "Rust does harm it.", "contradicted"),
            ("Rust does not harm it.", "Rust never harms it [2].", "supported"),
            ("潮水每天上涨两次", "潮水每天上涨两次[1]。", "supported"),
            ("潮水每天上涨两次", "船在港口等待[1]。", "omitted"),
            ("the of and", "the of and", None),
            ("45 % of adults sleep badly.", "1. Adults: 45 % sleep badly.", "supported"),
            (
                "COVID-19 spreads within 2 metres.",
                "It spreads within 2 metres, COVID-19.",
                "supported",
            ),
            ("In 2019, 12 % left town.", "In 2019, 45 % left town.", "contradicted"),
        ],
    )
    def test_verdicts(self, claim, text, label):
        verdict = run(LexicalJudge().judge(claim, text))
        assert verdict.label == label
        assert verdict.explanation or verdict.abstention

    def test_support_needs_one_place(self):
        scattered = (
            "The Moon is far. Boats wait. Fish sleep. Two are here. Cats run. Bulges. Ice water."
        )
        assert run(LexicalJudge().judge(POINT.content, scattered)).label == "omitted"

    def test_what_was_said_before_counts_half_and_to_the_strict_judge_nothing(self):
        claim = "Volcanoes of Iceland heat houses in Reykjavik through pipes."
        text = (
            "Iceland has many volcanoes. They were feared for long. Today they heat houses through "
            "pipes. Reykjavik was first."
        )
        found = coverage(claim, sentences(text))
        assert found.score < SUPPORT_THRESHOLD < found.support() < found.anywhere == 1.0
        labels = [run(j.judge(claim, text)).label for j in (LexicalJudge(), STRICT)]
        assert labels == ["supported", "omitted"]

    def test_the_window_is_the_shortest_best_one(self):
        found = coverage(
            POINT.content, ["Boats wait.", "The Moon raises two bulges of water.", "Ok."]
        )
        assert (found.start, found.end, found.score) == (1, 2, 1.0)

    def test_it_tells_own_pages_from_foreign_ones(self):
        scores = support_scores(load_corpus().examples[:10])
        assert roc_auc(scores["own"], scores["other query"]) > 0.95
        assert (scores["other query"] >= SUPPORT_THRESHOLD).mean() < 0.01


class TestRewriters:
    corpus = load_corpus()

    @pytest.mark.parametrize("method", EDITS)
    def test_an_edit_keeps_the_page_and_says_what_it_should(self, method):
        for example in self.corpus:
            point = example.key_points[0]
            page = run(EditRewriter().rewrite(method, example, point)).text
            assert page == run(EditRewriter().rewrite(method, example, point)).text
            assert len(words(page)) >= 0.9 * len(words(example.target))
            assert (page == example.target) == (method == "original") or method.startswith("easy")
            if "key_point" in method:
                expected = {"paste_key_point": 1, "repeat_key_point": 3, "key_point": 2}[method]
                assert page.count(point.content) == expected

    def test_the_key_point_edit_sets_the_carrying_sentence_in_bold(self):
        example = make_example()
        page = run(EditRewriter().rewrite("key_point", example, POINT)).text
        assert page == (
            "**The Moon raises two bulges of water.**\n\n"
            "**The Moon raises two bulges of water.** A harbour sees a new tide every 12 hours.\n\n"
            "The main point: The Moon raises two bulges of water.\n"
        )

    def test_the_key_point_edit_stays_below_the_title(self):
        example = make_example(
            sources=("a", "# Tides\n\nThe Moon raises two bulges of water.", "b")
        )
        page = run(EditRewriter().rewrite("key_point", example, POINT)).text
        assert page.startswith("# Tides\n\n**The Moon")

    @pytest.mark.parametrize(
        ("method", "page", "expected"),
        [
            (
                "keyword_stuffing",
                "# Tides\n| a | b |\nOne is here. Two is here. Three is.",
                "# Tides\n| a | b |\nOne is here. Two is here (tides, work). Three is.",
            ),
            (
                "easy_to_understand",
                "Fish &amp; chips; see https://x.org/component/utilize ok; iPhone stays.",
                "Fish &amp; chips. See https://x.org/component/utilize ok; iPhone stays.",
            ),
            (
                "repeat_key_point",
                "One is here. Two is here.",
                "{}\n\nOne is here. {} Two is here.\n\n{}",
            ),
        ],
    )
    def test_an_edit_leaves_markup_alone(self, method, page, expected):
        example = make_example(sources=("a", page, "b"))
        found = run(EditRewriter().rewrite(method, example, POINT)).text
        assert found == expected.replace("{}", POINT.content)

    def test_bold_goes_inside_list_items_and_never_into_tables_bold_or_words(self):
        spans = ("Moon raises bulges here.", "Moon", "Mo")
        page = "- Moon raises bulges here.\n| Moon | x |\n**The Moon** Monday"
        example = make_example(sources=("a", page, "b"))
        point = KeyPoint(1, POINT.content, spans)
        found = run(EditRewriter().rewrite("key_point", example, point)).text
        assert "- **Moon raises bulges here.**\n| Moon | x |\n**The Moon** Monday" in found

    def test_keyword_stuffing_adds_the_querys_words(self):
        page = run(EditRewriter().rewrite("keyword_stuffing", make_example(), POINT)).text
        assert page.endswith("every 12 hours (tides, work).")

    def test_simpler_language(self):
        example = make_example(sources=("a", "However, utilize it; numerous ships do.", "b"))
        page = run(EditRewriter().rewrite("easy_to_understand", example, POINT)).text
        assert page == "But, use it. Many ships do."

    def test_a_method_that_needs_a_model_says_so(self):
        with pytest.raises(
            ValueError, match=r"'fluency' needs a model; rewriter='offline' has orig"
        ):
            run(EditRewriter().rewrite("fluency", make_example(), POINT))
