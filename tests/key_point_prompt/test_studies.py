"""The studies of notebook 03: tables worked by hand, and runs through the offline roles."""

import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import make_example, make_row
from hypothesis import given
from hypothesis import strategies as st

from geo_utils.certificate import Labels, answer_sha
from geo_utils.corpus import KeyPoint, choose_key_points, draw_queries, load_corpus
from geo_utils.evaluate import Scorer, evaluate
from geo_utils.key_point_prompt import adoption, headroom
from geo_utils.key_point_prompt.adoption import (
    adoption_change,
    adoption_order,
    adoption_table,
    page_claims,
    source_points,
)
from geo_utils.key_point_prompt.headroom import (
    best_rewrite,
    beta_no_variance_chance,
    headroom_table,
    no_variance_chance,
)
from geo_utils.key_point_prompt.judges import (
    accuracy_table,
    agreement_text,
    judge_again,
    judges_of,
    kappa_table,
    with_readers,
)
from geo_utils.key_point_prompt.params import (
    AdoptionOptions,
    HeadroomOptions,
    JudgeCheckOptions,
    PowerOptions,
)
from geo_utils.key_point_prompt.power import (
    PilotVariance,
    load_pilot,
    pilot_variance,
    power_table,
    priced,
    resolution_text,
)
from geo_utils.key_point_prompt.transfer import transfer_figure, transfer_loss, transfer_table
from geo_utils.models.loops import run_sync
from geo_utils.parameters import ParameterError
from geo_utils.roles.engines import Answer, ExtractiveEngine
from geo_utils.roles.judges import LexicalJudge, Verdict
from geo_utils.roles.rewriters import STRESSES, EditRewriter, Rewrite
from geo_utils.statistics import Estimate

CORPUS = load_corpus().examples[:4]
PAIRS = choose_key_points(CORPUS)
ROLES = (ExtractiveEngine(), LexicalJudge(), EditRewriter())


def quiet(done, total):
    pass


def ask(study, pairs, method, engine, judge, rewriter, options):
    """What a study's calls bring, of these pairs and roles."""
    roles = SimpleNamespace(engine=engine, judge=judge, rewriter=rewriter, extractor=None,
                            prompts=None, scorer=Scorer(engine, judge))  # fmt: skip
    params = SimpleNamespace(method=method, seed=0)
    setting = SimpleNamespace(params=params, options=options, roles=[roles], pairs=pairs)
    return study.ask(setting, quiet)


class TestRewritesOffline:
    def test_k_rewrites_are_k_different_pages_the_full_edit_first(self):
        for example, point in PAIRS:
            pages = [
                run_sync(EditRewriter().rewrite("key_point", example, point, i)).text
                for i in range(16)
            ]
            assert len(set(pages)) == 16 and example.target not in pages
            full = run_sync(EditRewriter().rewrite("key_point", example, point)).text
            assert pages[0] == full

    def test_they_are_drawn_from_the_example_and_end(self):
        example, point = PAIRS[0]
        first, again = (
            run_sync(EditRewriter().rewrite("key_point", example, point, 3)).text for _ in "ab"
        )
        assert first == again
        with pytest.raises(ValueError, match=f"has {len(STRESSES)} forms"):
            run_sync(EditRewriter().rewrite("key_point", example, point, len(STRESSES)))


class TestGroups:
    @given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.integers(2, 4))
    def test_the_chance_is_the_mean_over_all_sets(self, means, size):
        if size > len(means):
            return
        sets = list(itertools.combinations(means, size))
        brute = np.mean([np.prod(s) + np.prod([1 - p for p in s]) for s in sets])
        assert no_variance_chance(np.array(means), size) == pytest.approx(brute, abs=1e-9)

    def test_by_hand(self):
        # 1 and 1/2: both succeed 1/2, both fail 0
        assert no_variance_chance(np.array([1.0, 0.5]), 2) == pytest.approx(0.5)
        # uniform p: E[p^2 + (1-p)^2] = 2/3; no spread: the binomial's; all or nothing: 1
        assert beta_no_variance_chance(0.5, 1 / 12, 2) == pytest.approx(2 / 3)
        assert beta_no_variance_chance(0.9, 0.0, 8) == pytest.approx(0.9**8 + 0.1**8)
        assert beta_no_variance_chance(0.5, 0.25, 8) == 1.0


def sample_rows(*rows):
    columns = ["query_id", "key_point_number", "rewrite", "repeat", "stage", "supported"]
    return pd.DataFrame(rows, columns=columns)


class TestHeadroom:
    def test_by_hand(self):
        """Two queries, two rewrites, two answers: 1 1 | 0 1 and 0 0 | 1 1."""
        answers = {"a": [[1, 1], [0, 1]], "b": [[0, 0], [1, 1]]}
        fresh = {"a": [1, 0], "b": [1, 1]}
        rows = [
            (q, 1, i, j, "choose", float(x))
            for q, pages in answers.items()
            for i, page in enumerate(pages)
            for j, x in enumerate(page)
        ]
        rows += [(q, 1, 0, 2 + j, "fresh", float(x)) for q in fresh for j, x in enumerate(fresh[q])]
        table = headroom_table(sample_rows(*rows), [2])["mean"]
        assert table["mean of rewrites"] == pytest.approx((0.75 + 0.5) / 2)
        # a: means 1 and 1/2, answers' variance 0 and 1/2: 1/8 - 1/8; b: means 0 and 1: 1/2
        assert table["between rewrites"] == pytest.approx((0 + 0.5) / 2)
        assert table["between answers"] == pytest.approx((0.25 + 0) / 2)
        # of the means 3/4 and 1/2: 1/32, less their own 1/16 and 1/4, averaged
        assert table["between key points"] == pytest.approx(1 / 32 - (1 / 16 + 1 / 4) / 2)
        assert table["best of k, same answers"] == pytest.approx((0.25 + 0.5) / 2)
        # a: by the second answer both are best, their firsts 1 and 0; by the first, the first, 1;
        # fresh 1 and 0. b: the second is best, 1 and 1; fresh 1 and 1
        assert table["best of k, other answers"] == pytest.approx((2.5 / 4 - 0.75 + 1 - 0.5) / 2)
        assert table["gain of the best of k"] == pytest.approx(0.5 / np.sqrt(np.pi))
        assert table["no variance, G = 2"] == pytest.approx((0.5 + 0) / 2)
        assert table["useful groups in 1,000 calls, G = 2"] == pytest.approx(250 * 0.75)
        assert table["in the trainable band"] == 1.0

    @pytest.mark.parametrize(
        ("low", "high", "other", "word", "more"),
        [
            (0.07, 0.3, 0.1, "There is headroom", "the whole interval is more than 0.05"),
            (0.0, 0.04, 0.0, "There is little headroom", "the whole interval is less than 0.05"),
            (0.02, 0.3, 0.1, "Whether there is headroom is not decided",
             "the interval holds 0.05, what a training is worth: about 47 more queries"),
            (0.0, 0.3, 0.02, "Whether there is headroom is not decided", "more answers a rewrite"),
        ],
    )  # fmt: skip
    def test_the_words_follow_the_interval(self, low, high, other, word, more):
        ends = {"mean": [0.1, other, 0.3, 0.5], "low": [low, other - 0.08, 0.25, 0.4]}
        rows = ["gain of the best of k", "best of k, other answers", "best of k, same answers",
                "room above the mean"]  # fmt: skip
        table = pd.DataFrame(ends | {"high": [high, other + 0.08, 0.35, 0.6]}, index=rows)
        said = headroom.verdict(table.assign(n_queries=30))
        assert said.startswith(f"{word}: the best rewrite gains +0.100 [{low:+.3f}, {high:+.3f}]")
        assert "30 queries" in said and more in said

    def test_a_normal_best_of_two_by_hand(self):
        assert headroom.normal_best(2) == pytest.approx(1 / np.sqrt(np.pi))
        assert headroom.normal_best(8) == pytest.approx(1.4236, abs=1e-4)

    def test_an_abstention_is_no_zero_and_an_unscored_key_point_is_left_out(self):
        rows = [("a", 1, i, j, "choose", 1.0) for i in (0, 1) for j in (0, 1)]
        rows[0] = (*rows[0][:5], np.nan)
        rows += [("b", 1, i, j, "choose", np.nan) for i in (0, 1) for j in (0, 1)]
        table = headroom_table(sample_rows(*rows), [2])
        assert table["mean"]["mean of rewrites"] == 1.0
        assert table["n_units"]["mean of rewrites"] == 1
        assert table["n_units"]["between rewrites"] == 0  # one rewrite of a has one answer
        nothing = headroom_table(sample_rows(*(row for row in rows if row[0] == "b")), [2])
        assert nothing["mean"].isna().all() and nothing["n_units"]["mean of rewrites"] == 0

    def test_the_best_is_the_largest_mean_and_ties_are_drawn(self):
        rows = [{"rewrite": i, "supported": x} for i, x in ((0, 0.0), (1, 1.0), (2, 1.0))]
        drawn = {best_rewrite(rows, str(seed)) for seed in range(30)}
        assert drawn == {1, 2}
        assert best_rewrite([{"rewrite": 0, "supported": np.nan}], "0") is None

    def test_fresh_answers_are_new_and_only_the_bests(self):
        options = HeadroomOptions(rewrites=3, answers=2, fresh_answers=2)
        samples = ask(headroom, PAIRS, "key_point", *ROLES, options)
        assert len(samples) == 4 * (3 * 2 + 2)
        for _, part in samples.groupby("query_id"):
            chosen, fresh = (part[part["stage"] == stage] for stage in ("choose", "fresh"))
            assert set(chosen["repeat"]) == {0, 1} and set(fresh["repeat"]) == {2, 3}
            means = chosen.groupby("rewrite")["supported"].mean()
            assert means[fresh["rewrite"].iloc[0]] == means.max()
            assert fresh["rewrite"].nunique() == 1
        # the first rewrite's answers are those of the comparison
        same = evaluate(CORPUS, ["original", "key_point"], *ROLES[:2], 2)
        first = samples[(samples["rewrite"] == 0) & (samples["stage"] == "choose")]
        kept = same[same["method"] == "key_point"]
        assert first["answer"].tolist() == kept["answer"].tolist()

    def test_no_two_rewrites_share_an_answers_noise(self):
        class Spy:
            def __init__(self):
                self.asked = []

            async def answer(self, query, sources, sample_index=0):
                self.asked.append(sample_index)
                return await ExtractiveEngine().answer(query, sources, sample_index)

        spy, options = Spy(), HeadroomOptions(rewrites=3, answers=2, fresh_answers=4)
        samples = ask(headroom, PAIRS[:1], "key_point", spy, *ROLES[1:], options)
        assert len(set(spy.asked)) == len(spy.asked) == 3 * 2 + 4
        chosen = samples[samples["stage"] == "choose"]
        assert chosen.groupby("rewrite")["repeat"].agg(list).tolist() == [[0, 1]] * 3

    def test_equal_rewrites_have_no_variance_between_them(self):
        class Same:
            async def rewrite(self, method, example, key_point, sample_index=0):
                return Rewrite(example.target)

        options = HeadroomOptions(rewrites=8, answers=2, fresh_answers=1)
        engine = ExtractiveEngine(word_budget=80, temperature=0.3)
        samples = ask(
            headroom,
            choose_key_points(load_corpus().examples),
            "original",
            engine,
            LexicalJudge(),
            Same(),
            options,
        )
        found = headroom_table(samples, [2]).loc["between rewrites"]
        assert found["low"] < 0 < found["high"]

    def test_a_rewriter_that_fails_leaves_abstentions(self):
        class Refuses:
            async def rewrite(self, method, example, key_point, sample_index=0):
                lost = sample_index == 1 or example is CORPUS[0]
                return Rewrite("", "no") if lost else Rewrite(example.target)

        options = HeadroomOptions(rewrites=2, answers=2, fresh_answers=1)
        samples = ask(headroom, PAIRS, "key_point", *ROLES[:2], Refuses(), options)
        lost = samples[samples["abstention"].notna()]
        assert len(lost) == 4 + 3 * 2 and lost["supported"].isna().all()
        assert set(samples[samples["stage"] == "fresh"]["rewrite"]) == {0}


class TestAdoption:
    def test_every_source_has_a_point_and_its_origin(self):
        example, chosen = PAIRS[0]
        points = run_sync(source_points(example, chosen, None))
        assert [own.source for own in points] == list(range(5))
        target = points[example.target_id]
        assert target.origin == "target" and target.point == chosen
        for own in points:
            if own.origin == "sentence":
                assert own.point.content in example.sources[own.source]

    def test_the_corpus_brings_points_of_all_sources_where_it_has_them(self, rows_file):
        mine = [[{"point_content": f"Claim of page {i}."}] for i in range(3)]
        (example,) = load_corpus("jsonl", path=rows_file(make_row(source_key_points=mine)))
        points = run_sync(source_points(example, example.key_points[0], None))
        assert [p.origin for p in points] == ["corpus", "target", "corpus"]
        assert points[2].point.content == "Claim of page 2."
        with pytest.raises(ValueError, match="one list a page, 3 here"):
            load_corpus("jsonl", path=rows_file(make_row(source_key_points=mine[:2])))

    def test_headings_and_fragments_are_no_claims(self):
        page = "# Tides\n\nThe Moon raises two bulges of water on the Earth.\n\nRead more.\n"
        assert [p.content for p in page_claims(page)] == [
            "The Moon raises two bulges of water on the Earth."
        ]

    def test_the_first_so_many_adopt_and_one_answer_judges_all(self):
        asked = []

        class Spy:
            async def answer(self, query, sources, sample_index=0):
                asked.append((sample_index, tuple(sources)))
                return await ExtractiveEngine().answer(query, sources, sample_index)

        options = AdoptionOptions(repeats=2)
        samples = ask(adoption, PAIRS[:1], "key_point", Spy(), *ROLES[1:], options)
        assert len(asked) == 6 * 2 and len(samples) == 6 * 2 * 5
        order = adoption_order((*PAIRS[0], run_sync(source_points(*PAIRS[0], None))))
        for adopters, part in samples.groupby("adopters"):
            assert set(part[part["adopted"]]["source"]) == set(order[:adopters])
        # pages change one by one, in their places
        pages = [sources for index, sources in asked if index == 0]
        for before, after in itertools.pairwise(pages):
            assert sum(a != b for a, b in zip(before, after, strict=True)) == 1

    def test_the_table_by_hand(self):
        rows = [
            # adopters, source, adopted, supported
            (0, 0, False, 0.0), (0, 1, False, 1.0),
            (1, 0, True, 1.0), (1, 1, False, 1.0),
            (2, 0, True, 1.0), (2, 1, True, np.nan),
        ]  # fmt: skip
        samples = pd.DataFrame(rows, columns=["adopters", "source", "adopted", "supported"])
        samples = samples.assign(query_id="a", key_point_number=1, repeat=0, n_sources=2)
        table = adoption_table(samples)
        assert np.isnan(table.loc[0, "adopter"]) and table.loc[0, "other"] == 0.5
        assert (table.loc[1, "adopter"], table.loc[1, "gain"]) == (1.0, 1.0)
        assert table.loc[2, "adopter"] == 1.0 and table.loc[2, "abstentions"] == 1
        assert np.isnan(table.loc[2, "all_land"])  # one of two is not known
        assert adoption_change(samples)["difference"] == 0.0

    def test_one_source_is_refused(self):
        example = make_example(sources=("The Moon raises two bulges of water.",), target_id=0)
        pairs = [(example, example.key_points[0])]
        with pytest.raises(ValueError, match="no query has two sources with a key point"):
            ask(adoption, pairs, "key_point", *ROLES, AdoptionOptions())

    def test_a_failed_answer_is_an_abstention_of_all_its_points(self):
        class Blocked:
            async def answer(self, query, sources, sample_index=0):
                return Answer("", "blocked") if sample_index else Answer("Nothing [1].")

        options = AdoptionOptions(repeats=2)
        samples = ask(adoption, PAIRS[:1], "key_point", Blocked(), *ROLES[1:], options)
        lost = samples["repeat"] == 1
        assert (samples[lost]["abstention"] == "engine: blocked").all()
        assert samples[lost]["supported"].isna().all() and samples[~lost]["supported"].eq(0).all()


class TestTransfer:
    def rows(self, engine, supported):
        return pd.DataFrame(
            [
                (f"q{i}", 1, 0, engine, "own", method, value)
                for method, values in supported.items()
                for i, value in enumerate(values)
            ],
            columns=["query_id", "key_point_number", "repeat", "engine", "rewriter", "method",
                     "supported"],
        )  # fmt: skip

    def test_lift_and_loss_by_hand(self):
        first = self.rows("one", {"original": [0, 0, 0, 1], "key_point": [1, 1, 1, 1]})
        other = self.rows("two", {"original": [0, 1, 0, 1], "key_point": [0, 1, 1, np.nan]})
        samples = pd.concat([first, other], ignore_index=True)
        table = transfer_table(samples).set_index("engine")
        assert table["difference"].tolist() == [0.75, pytest.approx(1 / 3)]
        assert table["abstentions"].tolist() == [0, 1]
        (loss,) = transfer_loss(samples).to_dict("records")
        assert loss["engine"] == "two" and loss["difference"] == pytest.approx(1 / 3 - 1)

    def test_a_fall_is_named_where_it_is_clear_in_the_family_and_not_by_its_interval_alone(self):
        # The lift of 1 is lost for 6 of 12 queries: p = 1 / 32 alone, three times that of three.
        whole = {"original": [0] * 12, "key_point": [1] * 12}
        less = {"original": [0] * 12, "key_point": [0] * 6 + [1] * 6}
        for others, said in ((("less",), True), (("less", "same", "as"), False)):
            parts = [self.rows("one", whole)]
            parts += [self.rows(name, less if name == "less" else whole) for name in others]
            samples = pd.concat(parts, ignore_index=True)
            loss = transfer_loss(samples).set_index("engine")
            assert loss.loc["less", "high"] < 0
            figure = transfer_figure(transfer_table(samples), loss.reset_index(), "")
            assert ("clearly falls" in figure.get_suptitle().replace("\n", " ")) == said
            plt.close(figure)
        alone = self.rows("one", whole)
        figure = transfer_figure(transfer_table(alone), loss.iloc[:0].reset_index(), "")
        assert figure.get_suptitle() == "No other engine answered"


def verdicts(**judges):
    table = pd.DataFrame(
        {f"verdict: {name}": given for name, given in judges.items()}, dtype=object
    )
    texts = {"query": "q?", "key_point": "k", "answer": [f"a{i}" for i in range(len(table))]}
    ids = [answer_sha("q", "k", text) for text in texts["answer"]]
    return table.assign(**texts, answer_sha=ids, query_id=[f"q{i % 5}" for i in range(len(table))])


Y, N, C = "supported", "omitted", "contradicted"


class TestAgreement:
    def test_kappa_by_hand(self):
        """Agree on 7 of 10, by chance 0.5: (0.7 - 0.5) / 0.5; what one lacks does not count."""
        table = verdicts(one=[Y] * 5 + [N] * 5 + [Y], two=[Y] * 4 + [N] + [Y, Y, N, C, N] + [None])
        (row,) = kappa_table(table).to_dict("records")
        assert row["kappa"] == pytest.approx((0.7 - 0.5) / 0.5)
        assert (row["agreement"], row["n_answers"], row["abstentions"]) == (0.7, 10, 1)
        assert row["low"] < row["kappa"] < row["high"]

    def test_a_judge_without_verdicts_has_no_row_and_one_verdict_no_kappa(self):
        table = verdicts(one=[Y] * 4, two=[None] * 4, three=[Y] * 4)
        found = kappa_table(table)
        assert list(found.index) == ["one – three"]
        assert np.isnan(found["kappa"].iloc[0]) and found["agreement"].iloc[0] == 1.0
        assert found["agreement_low"].iloc[0] < 1.0

    def test_judges_judge_the_same_answers_each_by_itself(self):
        samples = evaluate(CORPUS, ["original", "key_point"], *ROLES[:2], 2)
        judges = judges_of(LexicalJudge(), JudgeCheckOptions(), gives_soft=False)
        assert list(judges) == ["lexical", "lexical strict"]

        async def never(example, point, answer):
            return Verdict("omitted")

        table = judge_again(samples, CORPUS, judges | {"never": never})
        known = {answer_sha(r.query_id, r.key_point, r.answer): r.verdict
                 for r in samples.itertuples()}  # fmt: skip
        assert dict(zip(table["answer_sha"], table["verdict: lexical"], strict=True)) == known
        assert set(table["verdict: never"]) == {"omitted"}
        few = judge_again(samples, CORPUS, judges, answers=3)
        assert len(few) == 3 and set(few["answer_sha"]) < set(table["answer_sha"])
        labelled = set(table["answer_sha"]) - set(few["answer_sha"])
        few = judge_again(samples, CORPUS, judges, answers=3, first=labelled)
        assert set(few["answer_sha"]) <= labelled

    def test_readers_are_held_to_by_hand(self):
        """Of the 4 that both read alike 2 are supported; two finds one of them."""
        table = verdicts(one=[Y, Y, N, N, Y], two=[Y, N, None, N, Y])
        read = table.assign(reader_a=[Y, Y, N, C, Y], reader_b=[Y, Y, N, N, N])
        found = with_readers(table[::-1], Labels({}, read))
        assert found["verdict: reader a"].tolist() == [Y, C, N, Y, Y]
        accuracy = accuracy_table(found)
        assert list(accuracy.index) == ["one", "two"]
        one, two = accuracy.loc["one"], accuracy.loc["two"]
        assert (one["precision"], one["recall"], one["specificity"]) == (1.0, 1.0, 1.0)
        assert (two["recall"], two["n_recall"], two["abstentions"]) == (0.5, 2, 1)
        assert two["n_specificity"] == 1 and one["precision_low"] < 1.0 == one["precision_high"]
        assert "reader a – reader b" in kappa_table(found).index
        assert accuracy_table(table).empty
        assert accuracy_table(with_readers(table, Labels({}, read[:0]))).empty

    def test_the_worst_pair_is_named(self):
        rows = {"a – b": (0.9, 0.95), "a – c": (0.25, 0.625)}
        found = pd.DataFrame.from_dict(rows, orient="index", columns=["kappa", "agreement"])
        assert agreement_text(found) == (
            "Judges agree least at kappa 0.25 (a – c: 62% equal verdicts)"
        )
        assert agreement_text(found[:1]) == "A – b: kappa 0.90, 95% equal verdicts"
        assert "one and the same throughout" in agreement_text(found.assign(kappa=np.nan))


def pilot_of(between, points, within, points_a_query=1.0):
    draws = np.tile([between, points, within], (50, 1))
    return PilotVariance(between, points, within, 9, 18, points_a_query, draws)


class TestPower:
    def pilot(self):
        """Differences 1 0 | 0 0 | 1 1: query means 1/2, 0, 1; within 1/2, 0, 0."""
        rows = [
            (f"q{i}", 1, j, method, value)
            for i, pair in enumerate([(1, 0), (0, 0), (1, 1)])
            for j, value in enumerate(pair)
            for method, value in (("original", 0.0), ("key_point", float(value)))
        ]
        names = ["query_id", "key_point_number", "repeat", "method", "supported"]
        return pd.DataFrame(rows, columns=names)

    def test_variances_by_hand(self):
        found = pilot_variance(self.pilot(), "key_point")
        assert found.within == pytest.approx(0.5 / 3)
        assert found.between == pytest.approx(0.25 - 0.5 / 3 / 2)
        assert (found.n_queries, found.n_pairs) == (3, 6)
        assert (found.between_points, found.points_a_query) == (0.0, 1.0)
        flat = self.pilot().assign(supported=0.0)
        assert pilot_variance(flat, "key_point") is None
        assert pilot_variance(self.pilot().query("query_id != 'q0'"), "key_point") is None

    def test_the_queries_are_the_textbooks(self):
        """Cohen: d = 0.5, two-sided 5 %, power 0.8, one sample: 34."""
        options = PowerOptions(lifts=[0.5], repeats=[1])
        unit = pilot_of(0.6, 0.0, 0.4)
        (row,) = power_table(unit, options).to_dict("records")
        assert (row["queries"], row["low"], row["high"]) == (34, 34, 34)

    def test_that_many_queries_have_that_power(self):
        rng = np.random.default_rng(0)
        spread = pilot_of(0.09, 0.0, 0.16)
        options = PowerOptions(lifts=[0.1], repeats=[4])
        n = int(power_table(spread, options)["queries"].iloc[0])
        means = 0.1 + rng.normal(0, np.sqrt(0.09 + 0.04), (4000, n))
        t = means.mean(1) / (means.std(1, ddof=1) / np.sqrt(n))
        assert 0.77 < (np.abs(t) > 1.98).mean() < 0.83

    def test_without_a_pilot_it_is_an_upper_bound(self):
        options = PowerOptions(lifts=[0.2], repeats=[3])
        bound = power_table(None, options).iloc[0]
        pilot = power_table(pilot_variance(self.pilot(), "key_point"), options).iloc[0]
        assert bound["queries"] > pilot["queries"] and np.isnan(bound["low"])
        assert bound["variance"] == "upper bound, no pilot"

    def test_the_cost_is_the_plans_scaled(self):
        plan = pd.DataFrame(
            {"calls": [60, 30, 20], "held": [0, 30, 0], "cost_usd": [6.0, 3.0, np.nan]},
            index=["engine", "judge", "rewriter"],
        )
        options = PowerOptions(lifts=[0.2], repeats=[6])
        needed = power_table(None, options)
        table = priced(needed, plan.drop(index="rewriter"), 10, 3)
        queries = table["queries"].iloc[0]
        # 60 answers for 10 queries x 3: 12 a query at 6 repeats, verdicts as many
        assert table["calls"].iloc[0] == np.ceil(24 * queries)
        assert table["cost_usd"].iloc[0] == pytest.approx(queries * (1.2 + 1.2))
        unknown = priced(needed, plan, 10, 3).iloc[0]
        assert np.isnan(unknown["cost_usd"]) and unknown["calls"] == np.ceil(26 * queries)

    def several(self, rng, n, points, repeats, spread=(0.3, 0.2, 0.25)):
        """Differences of n queries x points x repeats, normal, with a spread of each kind."""
        between, point, within = spread
        value = rng.normal(0.1, between, (n, 1, 1)) + rng.normal(0, point, (n, points, 1))
        value = value + rng.normal(0, within, (n, points, repeats))
        q, p, r = np.indices(value.shape).reshape(3, -1)
        names = {"query_id": q, "key_point_number": p, "repeat": r}
        own = pd.DataFrame(names | {"method": "key_point", "supported": value.ravel()})
        return pd.concat([own, own.assign(method="original", supported=0.0)], ignore_index=True)

    def test_it_says_what_a_corpus_can_resolve(self):
        """0.063 = 1.980 sqrt(v / 120): v = 0.1215."""
        pilot = pilot_of(0.1, 0.0, 0.0645)
        assert pilot.half_width(120, 3) == pytest.approx(0.063, abs=1e-4)
        told = resolution_text(pilot, 120, 3)
        assert told.startswith(
            "120 queries x 3 answers: the 95 % interval of a lift reaches 0.063 to each side, so "
            "that a smaller one cannot be told from none. The 0.023 that previous methods had in "
            "the earlier study is one; to find it with power 80 % takes about 1,"
        )
        assert "0.023" not in resolution_text(pilot_of(0.001, 0.0, 0.001), 120, 3)
        assert "reaches at most 0.836 to each side, whatever" in resolution_text(None, 8, 2)

    def test_a_corrected_lift_takes_more_queries(self):
        raw, corrected = Estimate(0.2, 0.1, 0.3, 30, 90), Estimate(0.15, -0.05, 0.35, 30, 90)
        pilot = pilot_of(0.1, 0.0, 0.06).corrected(raw, corrected)
        assert pilot.half_width(30, 3) == pytest.approx(
            2 * pilot_of(0.1, 0, 0.06).half_width(30, 3)
        )
        assert pilot.draws.mean() == pytest.approx(4 * 0.16 / 3)

    def test_key_points_of_a_query_are_no_repeats(self):
        """1 1 and 0 0, 1 0 and 0 0, 1 1 and 1 1: points' means 1 0, 1/2 0, 1 1."""
        cells = [[(1, 1), (0, 0)], [(1, 0), (0, 0)], [(1, 1), (1, 1)]]
        rows = [
            (f"q{i}", p, j, method, value)
            for i, query in enumerate(cells)
            for p, pair in enumerate(query)
            for j, value in enumerate(pair)
            for method, value in (("original", 0.0), ("key_point", float(value)))
        ]
        names = ["query_id", "key_point_number", "repeat", "method", "supported"]
        found = pilot_variance(pd.DataFrame(rows, columns=names), "key_point")
        # within a point: 1/2 in one of six; between points 1/2, 1/8, 0 less an error of 1/8 a query
        assert found.within == pytest.approx(0.5 / 6)
        assert found.between_points == pytest.approx((1 / 2 + 1 / 8 - 1 / 8) / 3)
        raw = np.var([1 / 2, 1 / 4, 1], ddof=1)
        assert found.between == pytest.approx(raw - (1 / 2 + 1 / 8) / 2 / 3)
        assert (found.points_a_query, found.n_queries, found.n_pairs) == (2.0, 3, 12)

    def test_their_variances_are_found_and_the_queries_hold(self):
        rng = np.random.default_rng(0)
        pilot = pilot_variance(self.several(rng, 4000, 6, 3), "key_point")
        assert pilot.between == pytest.approx(0.09, rel=0.1)
        assert pilot.between_points == pytest.approx(0.04, rel=0.1)
        assert pilot.within == pytest.approx(0.0625, rel=0.1)
        row = power_table(pilot, PowerOptions(lifts=[0.1], repeats=[1])).iloc[0]
        n = int(row["queries"])
        assert row["answers"] == n * 6
        rounds = self.several(rng, 1000 * n, 6, 1).query("method == 'key_point'")
        means = rounds.groupby("query_id")["supported"].mean().to_numpy().reshape(1000, n)
        t = means.mean(1) / (means.std(1, ddof=1) / np.sqrt(n))
        assert 0.76 < (np.abs(t) > 1.99).mean() < 0.84

    def test_a_query_is_priced_with_all_its_points(self):
        plan = pd.DataFrame(
            {"calls": [180], "held": [0], "cost_usd": [18.0]}, index=["engine"]
        )  # 10 queries x 6 points x 3 repeats
        options, several = PowerOptions(lifts=[0.2], repeats=[6]), pilot_of(0.09, 0.06, 0.36, 2.0)
        row = priced(power_table(several, options, 6.0), plan, 10, 3).iloc[0]
        same = power_table(pilot_of(0.09 + 0.06 / 6 + 0.36 / 36, 0, 0), options).iloc[0]
        assert row["queries"] == same["queries"] and row["answers"] == 36 * row["queries"]
        assert row["calls"] == 36 * row["queries"]
        assert row["cost_usd"] == pytest.approx(3.6 * row["queries"])


def test_a_smaller_draw_of_queries_is_part_of_a_larger():
    corpus = load_corpus().examples
    few, many = draw_queries(corpus, 5, 1), draw_queries(corpus, 12, 1)
    assert len(few) == 5 and set(few) < set(many)
    assert draw_queries(corpus, None, 1) == list(corpus)
    assert draw_queries([make_example(key_points=())], 3, 1) == []


def test_points_belong_to_the_page_that_their_quotes_stand_in(tmp_path):
    from geo_utils.corpus import points_of_pages

    pages = ("The sea rises.", "The Moon pulls.", "Boats wait.")
    (tmp_path / "q1.json").write_text(
        '{"key_points": {"x": [{"point_content": "A moon point.", "spans": ["The Moon pulls."]}],'
        ' "y": [{"point_content": "A sea point.", "spans": ["The sea rises."]}]}}'
    )
    found = points_of_pages("q1", pages, tmp_path)
    assert [[p.content for p in points] for points in found] == [
        ["A sea point."], ["A moon point."], [],
    ]  # fmt: skip
    assert points_of_pages("q2", pages, tmp_path) == ((), (), ())
    assert isinstance(found[0][0], KeyPoint)


@pytest.mark.parametrize("content", [b"", b"PAR1 torn", b"a,b\n1,2\n"])
def test_a_torn_pilot_is_named(tmp_path, content):
    (tmp_path / "samples.parquet").write_bytes(content)
    with pytest.raises(
        ParameterError, match=r"pilot='.*': cannot read samples.parquet .*, or run that one"
    ):
        load_pilot(str(tmp_path))
