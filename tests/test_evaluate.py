import asyncio
import dataclasses
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import make_example

from geo_utils import evaluate as evaluate_module
from geo_utils.corpus import load_corpus
from geo_utils.evaluate import draw_source_order, evaluate
from geo_utils.roles.engines import Answer, ExtractiveEngine
from geo_utils.roles.judges import LexicalJudge, Verdict
from geo_utils.roles.rewriters import EditRewriter, Rewrite
from geo_utils.summary import headline, summarise

CORPUS = load_corpus().examples[:6]
METHODS = ["original", "key_point", "paste_key_point"]


def offline(examples=CORPUS, methods=METHODS, **options):
    roles = {"engine": ExtractiveEngine(), "judge": LexicalJudge(), "rewriter": EditRewriter()}
    return evaluate(examples, methods, **(roles | options))


class TestTable:
    def test_one_row_a_sample_in_order(self):
        samples = offline(repeats=2)
        assert len(samples) == 6 * 3 * 2
        keys = samples[["query_id", "method", "repeat"]].itertuples(index=False, name=None)
        assert list(keys) == [(e.query_id, m, r) for e in CORPUS for m in METHODS for r in (0, 1)]
        assert samples["supported"].isin([0.0, 1.0]).all()
        assert ((samples["verdict"] == "supported") == (samples["supported"] == 1)).all()

    def test_the_same_twice_bit_for_bit(self):
        pd.testing.assert_frame_equal(offline(repeats=2), offline(repeats=2), check_exact=True)

    def test_changing_a_page_changes_only_its_query(self):
        pages = list(CORPUS[2].sources)
        pages[0] += " " + CORPUS[2].key_points[0].content
        changed = dataclasses.replace(CORPUS[2], sources=tuple(pages))
        before = offline(repeats=3)
        after = offline((*CORPUS[:2], changed, *CORPUS[3:]), repeats=3)
        same = before["query_id"] != changed.query_id
        pd.testing.assert_frame_equal(before[same], after[same], check_exact=True)
        assert not before[~same].equals(after[~same])

    def test_more_repeats_keep_the_first_ones(self):
        few, many = offline(repeats=1), offline(repeats=3)
        first = many[many["repeat"] == 0].reset_index(drop=True)
        pd.testing.assert_frame_equal(few, first, check_exact=True)

    def test_it_runs_under_a_running_event_loop(self):
        async def cell():
            return offline(repeats=1)

        pd.testing.assert_frame_equal(asyncio.run(cell()), offline(repeats=1))

    def test_an_error_in_a_role_is_raised_also_there(self):
        async def cell():
            return offline(methods=["original", "fluency"])

        with pytest.raises(ValueError, match="'fluency' needs a model"):
            asyncio.run(cell())

    def test_progress_counts_every_sample(self):
        seen = []
        offline(repeats=2, progress=lambda done, total: seen.append((done, total)))
        assert seen[0] == (0, 36) and seen[-1] == (36, 36)

    @pytest.mark.parametrize(
        ("examples", "repeats", "message"),
        [
            ([make_example(key_points=())], 1, "no example has a key point"),
            (CORPUS, 0, "repeats=0: must be at least 1"),
        ],
    )
    def test_nothing_to_do_is_an_error(self, examples, repeats, message):
        with pytest.raises(ValueError, match=message):
            offline(examples, repeats=repeats)


class TestPlacement:
    def test_the_place_is_uniform_and_the_others_keep_their_order(self):
        places = Counter()
        for i in range(3000):
            example = make_example(f"q{i}")
            placement = draw_source_order(example, seed=1)
            places[placement.place] += 1
            assert placement.order[placement.place] == example.target_id
            assert [j for j in placement.order if j != 1] == [0, 2]
        assert all(900 < n < 1100 for n in places.values()) and len(places) == 3

    def test_the_same_for_all_methods_and_repeats(self):
        samples = offline(repeats=3)
        assert (samples.groupby("query_id")["target_place"].nunique() == 1).all()
        assert samples["target_place"].nunique() > 1
        assert (samples.groupby("query_id")["key_point_number"].nunique() == 1).all()

    def test_the_engine_reads_the_rewritten_page_in_the_targets_place(self):
        read = []

        class Spy:
            async def answer(self, query, sources, sample_index=0):
                read.append((query, tuple(sources)))
                return Answer("Nothing [1].")

        samples = offline(engine=Spy(), methods=["original", "key_point"])
        for row, (query, sources) in zip(samples.itertuples(), read, strict=True):
            assert query == row.query
            assert sources[row.target_place] == row.page
            assert (row.page == next(e for e in CORPUS if e.query == query).target) == (
                row.method == "original"
            )


class Faulty:
    """Roles of which every third call, by query, cannot be had."""

    def __init__(self, role):
        self.role = role

    async def rewrite(self, method, example, key_point):
        if self.role == "rewriter" and method == "key_point" and example in CORPUS[::3]:
            return Rewrite("", "refused")
        return await EditRewriter().rewrite(method, example, key_point)

    async def answer(self, query, sources, sample_index=0):
        if self.role == "engine" and query == CORPUS[0].query and sample_index == 1:
            return Answer("", "blocked")
        return await ExtractiveEngine().answer(query, sources, sample_index)

    async def judge(self, key_point, answer):
        if self.role == "judge" and key_point.startswith("A"):
            return Verdict(None, abstention="unparsable")
        return await LexicalJudge().judge(key_point, answer)


class TestAbstentions:
    @pytest.mark.parametrize("role", ["rewriter", "engine", "judge"])
    def test_a_failure_is_never_a_zero(self, role):
        samples = offline(repeats=2, **{role: Faulty(role)})
        lost = samples[samples["abstention"].notna()]
        assert 0 < len(lost) < len(samples)
        assert lost["abstention"].str.startswith(f"{role}: ").all()
        assert lost["supported"].isna().all() and lost["verdict"].isna().all()
        if role != "judge":  # without an answer there is no visibility either
            assert lost[["word", "position", "pawc", "answer_words"]].isna().all(axis=None)
        kept = samples[samples["abstention"].isna()]
        assert kept[["supported", "word", "position", "pawc"]].notna().all(axis=None)

    def test_it_drops_out_of_its_own_pair_only(self):
        samples = offline(repeats=2, rewriter=Faulty("rewriter"))
        summary = summarise(samples)
        assert summary.loc["key_point", "abstentions"] == 4
        assert summary.loc["key_point", "pairs_dropped"] == 4
        assert summary.loc["key_point", "n_examples"] == 4
        assert summary.loc["paste_key_point", "pairs_dropped"] == 0
        assert summary.loc["original", "n_samples"] == 12

    def test_a_method_that_always_abstains_has_no_number(self):
        class Refuses:
            async def rewrite(self, method, example, key_point):
                return Rewrite("", "no") if method == "key_point" else Rewrite(example.target)

        summary = summarise(offline(rewriter=Refuses(), methods=["original", "key_point"]))
        assert np.isnan(summary.loc["key_point", "key_point_probability"])
        row = headline(summary)["methods"]["key_point"]
        assert row["key_point_probability"] is None and row["ci_low"] is None
        assert row["n_samples"] == 0 and row["abstentions"] == 6


def test_headline_has_the_promised_fields():
    found = headline(summarise(offline()))
    assert list(found) == ["methods"] and list(found["methods"]) == METHODS
    assert set(found["methods"]["original"]) == {
        "key_point_probability",
        "ci_low",
        "ci_high",
        "n_examples",
        "n_samples",
        "abstentions",
        "word",
        "position",
        "pawc",
        "uncited",
    }


def test_shuffled_rewrites_lose_the_lift():
    """The placebo: pages rewritten for another key point must not raise this one."""

    class Shuffled:
        async def rewrite(self, method, example, key_point):
            donor = ALL[(ALL.index(example) + 1) % len(ALL)]
            return Rewrite(f"{donor.key_points[0].content}\n\n{example.target}")

    ALL = list(load_corpus())
    real = summarise(offline(ALL, ["original", "paste_key_point"], repeats=2))
    placebo = summarise(offline(ALL, ["original", "x"], repeats=2, rewriter=Shuffled()))
    assert real.loc["paste_key_point", "difference_low"] > 0.1
    assert placebo.loc["x", "difference"] < 0.05


class TestPolicyFailures:
    def test_a_policy_that_writes_no_page_has_failed_and_a_lost_one_has_not(self):
        class Fails:
            def __init__(self, own):
                self.own = own

            async def rewrite(self, method, example, key_point):
                if method == "original":
                    return Rewrite(example.target)
                return Rewrite("", "unparsable: no arrangement", self.own)

        own = offline(methods=["original", "policy/after"], rewriter=Fails(True))
        failed = own[own["method"] == "policy/after"]
        assert (failed["supported"] == 0).all() and (failed["pawc"] == 0).all()
        assert set(failed["verdict"]) == {"no page"} and failed["abstention"].isna().all()
        assert set(failed["explanation"]) == {"unparsable: no arrangement"}
        lost = offline(methods=["original", "policy/after"], rewriter=Fails(False))
        assert lost[lost["method"] == "policy/after"]["supported"].isna().all()


class TestCounter:
    def told(self, monkeypatch, capsys, *moments, spent=None):
        """What a log that is no terminal gets of 200 samples, at (seconds, how many are done)."""
        now = [0.0]
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
        monkeypatch.setattr("geo_utils.evaluate.time.monotonic", lambda: now[0])
        counter = evaluate_module.Counter("samples", spent)
        for now[0], done in moments:
            counter(done, 200)
        return capsys.readouterr().err.splitlines()

    def test_a_log_gets_a_line_a_minute_with_rate_spend_and_time_left(self, monkeypatch, capsys):
        moments = (0.0, 0), (10.0, 20), (61.0, 122), (70.0, 140), (100.0, 200)
        assert self.told(monkeypatch, capsys, *moments, spent=lambda: 0.0125) == [
            "122 of 200 samples, 61 s, 2.0 a second, 0.0125 US dollars, about 39 s left",
            "200 of 200 samples, 100 s, 2.0 a second, 0.0125 US dollars",
        ]

    def test_what_was_done_before_makes_nothing_look_faster(self, monkeypatch, capsys):
        assert self.told(monkeypatch, capsys, (5.0, 100), (66.0, 161)) == [
            "161 of 200 samples, 61 s, 1.0 a second, about 39 s left"
        ]

    def test_slow_work_is_told_in_seconds_each(self, monkeypatch, capsys):
        (line,) = self.told(monkeypatch, capsys, (0.0, 0), (120.0, 2))
        assert line == "2 of 200 samples, 120 s, 60.0 s each, about 11880 s left"

    def test_a_kernel_hands_it_to_the_command_line(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setenv(evaluate_module.PROGRESS, str(tmp_path / "progress"))
        self.told(monkeypatch, capsys, (0.0, 0), (2.0, 50))
        assert (tmp_path / "progress").read_text().startswith("50 of 200 samples, 2 s")
