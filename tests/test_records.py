import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date, datetime

import pandas as pd
import pytest
from conftest import PROJECT
from run_folders import HEADLINE, make_run, method_row

from geo_utils.notebooks import read_parameters
from geo_utils.parameters import ParameterError, default_parameters
from geo_utils.records import (
    Record,
    choose_records,
    conclusion,
    find_records,
    paired_differences,
    results,
)
from geo_utils.runs import locate_run, process_mark
from geo_utils.show.pages import changed_parameters, default_parameters_of
from geo_utils.weekly.params import WeeklyParams

LIFT = {"mean": 0.5, "low": 0.3, "high": 0.7, "n_examples": 30, "n_samples": 90}
DEFAULTS = default_parameters(PROJECT / "notebooks" / "05_weekly.ipynb")


def chosen(root, *names, since=None):
    found = choose_records(find_records(root), names, since)
    return [r.run_id for r in found.finished], [r.run_id for r in found.unfinished]


class TestStatus:
    @pytest.mark.parametrize(
        "content", ["", '{"status": "fini', "[]", "\x00", '{"status": "well"}', "[" * 99_999]
    )
    def test_a_torn_manifest_is_unreadable_and_says_so(self, tmp_path, content):
        folder = make_run(tmp_path, "20260101-100000000-aaaaaaaa")
        (folder / "manifest.json").write_text(content)
        (record,) = find_records(tmp_path)
        assert record.status == "unreadable" and "torn" in record.reason
        assert record.parameters == {} and record.seconds is None and results(record) == []

    def test_a_run_whose_process_is_gone_is_abandoned(self, tmp_path):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        for pid, host, status in (
            (ended.pid, platform.node(), "abandoned"),
            (os.getpid(), platform.node(), "started"),
            (ended.pid, "another-host", "started"),
        ):
            attempt = {"pid": pid, "host": host, "started_at": "2026-01-01T10:00:00+00:00"}
            root = tmp_path / f"{status}-{host}"
            make_run(root, "20260101-1", status="started", ended_at=None, attempts=[attempt])
            (record,) = find_records(root)
            assert record.status == status
            assert ("is gone" in record.reason) == (status == "abandoned")

    def test_another_process_of_the_same_number_is_not_the_run_s(self, tmp_path):
        """As after the machine was started again; and one that nobody has collected is gone."""
        sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        mark = process_mark(sleeping.pid)
        attempt = {"pid": sleeping.pid, "host": platform.node()}
        for given, status in ((mark, "started"), (mark - 3600, "abandoned"), (None, "started")):
            root = tmp_path / str(given)
            made = [attempt | {"process": given}]
            make_run(root, "20260101-1", status="started", ended_at=None, attempts=made)
            assert find_records(root)[0].status == status
        sleeping.stdin.close()
        while process_mark(sleeping.pid) is not None:
            time.sleep(0.01)
        assert find_records(tmp_path / str(mark))[0].status == "abandoned"
        sleeping.wait()

    @pytest.mark.parametrize(
        "changes",
        [
            {"status": "started", "attempts": [{"pid": 2**40, "host": platform.node()}]},
            {"started_at": "0001-01-01T00:00:00+14:00"},
            {"started_at": "9999-12-31T23:59:59-12:00"},
        ],
    )
    def test_numbers_and_times_that_cannot_be_hide_no_other_run(self, tmp_path, changes):
        make_run(tmp_path, "20260101-1", **changes)
        make_run(tmp_path, "20260102-1")
        assert "20260102-1" in chosen(tmp_path, since="2026-01-01")[0]

    def test_a_run_that_is_deleted_meanwhile_is_no_run_since(self, tmp_path):
        folder = make_run(tmp_path, "20260101-1")
        found = find_records(tmp_path)
        shutil.rmtree(folder)
        assert not choose_records(found, since="2026-01-01").unfinished

    def test_the_last_attempt_is_what_took(self, tmp_path):
        times = ["2026-01-01T10:00:00+00:00", "2026-01-03T10:00:00+00:00"]
        make_run(
            tmp_path, "20260101-1", attempts=[{"started_at": time} for time in times],
            ended_at="2026-01-03T10:01:05+00:00",
        )  # fmt: skip
        assert find_records(tmp_path)[0].seconds == 65

    def test_an_older_manifest_may_lack_anything(self, tmp_path):
        for entry in ("started_at", "ended_at", "attempts", "parameters", "provenance", "headline"):
            make_run(tmp_path / entry, "20260101-1", **{entry: None})
            (record,) = find_records(tmp_path / entry)
            assert record.status == "finished" and str(record) and record.provenance
            assert conclusion(record)
            assert chosen(tmp_path / entry, since="2026-01-01") == (["20260101-1"], [])


class TestChoice:
    @pytest.fixture
    def root(self, tmp_path):
        make_run(tmp_path, "20260101-1")
        make_run(tmp_path, "20260102-1")
        make_run(tmp_path, "20260101-2", status="failed", reason="put right the day after")
        make_run(tmp_path, "20260103-1", status="interrupted", reason="signal SIGTERM")
        make_run(tmp_path, "20260103-2", status="planned", reason="dry run, nothing was spent")
        make_run(tmp_path, "20260101-3", variant="other", status="failed", reason="never worked")
        make_run(tmp_path, "20260104-1", notebook="03_key_point_prompt")
        (tmp_path / "cache" / "a" / "b").mkdir(parents=True)
        (tmp_path / "cache" / "a" / "b" / "manifest.json").write_text("{}")
        return tmp_path

    def test_the_newest_of_each_notebook_and_variant_and_what_failed_since(self, root):
        assert chosen(root) == (["20260102-1", "20260104-1"], ["20260103-1", "20260101-3"])

    def test_a_run_of_a_clock_that_ran_ahead_is_not_the_newest(self, root):
        make_run(root, "29990101-1")
        assert chosen(root)[0] == ["20260102-1", "20260104-1"]

    def test_everything_since_a_date(self, root):
        assert chosen(root, since="2026-01-02") == (["20260102-1", "20260104-1"], ["20260103-1"])
        assert chosen(root, since="2026-02-01") == ([], [])

    def test_named_runs_by_id_or_folder(self, root):
        folder = root / "02_baseline_rewrites/smoke/20260101-2"
        assert chosen(root, "20260101-1", str(folder)) == (["20260101-1"], ["20260101-2"])
        with pytest.raises(ValueError, match=r"'20269' is no run.*newest are: .*20260104-1"):
            chosen(root, "20269")


class TestHeadlines:
    def test_results_carry_interval_n_and_abstentions(self, tmp_path):
        record = Record(make_run(tmp_path, "20260101-1"))
        assert [(r.method, r.text, r.counts) for r in results(record)][1] == (
            "key_point", "0.900 [0.800, 1.000]", "n = 30 queries, 90 samples, 2 abstentions",
        )  # fmt: skip

    def test_any_other_number_is_shown_under_its_name(self, tmp_path):
        headline = {
            "gain": {"mean": 0.25, "low": 0.1, "high": 0.4, "p": 0.01, "n_queries": 15},
            "fastest": {"step_s": 2.5}, "settings": 7, "note": "text", "missing": None,
            "corrected lift over original": {
                "key_point": {"mean": 0.1, "raw": 0.2, "n_samples": 9, "n_labels": 4}
            },
        }  # fmt: skip
        record = Record(make_run(tmp_path, "20260101-1", headline=headline))
        assert [(r.quantity, r.text, r.counts) for r in results(record)] == [
            ("gain", "+0.250 [+0.100, +0.400]", "n = 15 queries"),
            ("fastest.step_s", "2.500", "n not recorded"),
            ("settings", "7", ""),
            ("corrected lift over original.key_point", "+0.100", "n = 9 samples, 4 labels"),
        ]

    @pytest.mark.parametrize(
        ("headline", "said"),
        [
            (HEADLINE,
             "Key point in the answer: original 0.400 [0.300, 0.500], keyword stuffing 0.500 "
             "[0.400, 0.600], key-point rewrite 0.900 [0.800, 1.000] (n = 30 queries, 90 samples, "
             "2 abstentions each)."),
            (HEADLINE | {"lift over": {"original": LIFT | {"p": 0.01}}},
             "The key-point rewrite clearly beats the original page, +0.500 [+0.300, +0.700] "
             "paired: original 0.400"),
            (HEADLINE | {"lift over": {"original": LIFT | {"p": 0.06}}},
             "The key-point rewrite does not clearly beat the original page, +0.500"),
            (HEADLINE | {"lift over": {"original": LIFT | {"mean": -0.5}}},
             "The key-point rewrite is clearly worse than the original page, -0.500"),
            ({"methods": {"original": method_row(0.1, 0.0, 0.2), "fluency": method_row(0.9, 0.8, 1),
                          "policy/before": method_row(0.2, 0.1, 0.3),
                          "policy/after": method_row(0.6, 0.5, 0.7, n_samples=80)},
              "gain": LIFT},
             "Training clearly raised the key-point probability on held-out queries, +0.500 "
             "[+0.300, +0.700] paired: original 0.100 [0.000, 0.200], fluency 0.900 [0.800, 1.000],"
             " policy before GRPO 0.200 [0.100, 0.300] (n = 30 queries, 90 samples, 2 "
             "abstentions each); trained policy 0.600 [0.500, 0.700] (n = 30 queries, 80 samples"),
            (HEADLINE | {"gain": LIFT | {"p": 0.06},
                         "verdict": "Not worth it: training is not above paste key point by 0.05"},
             "Not worth it: training is not above paste key point by 0.05. Training did not "
             "clearly change the key-point probability on held-out queries, +0.500"),
            ({"methods": {"original": method_row(0.4, 0.3, 0.5), "rules": method_row(0.9, 0.8, 1),
                          "fluency": method_row(0.8, 0.7, 0.9),
                          "previous methods (pooled over 2)": method_row(0.8, 0.7, 0.9)}},
             "Key point in the answer: original 0.400 [0.300, 0.500], previous methods (pooled "
             "over 2) 0.800 [0.700, 0.900], rules (as published) 0.900 [0.800, 1.000] (n"),
            ({"methods": {"original": method_row(None, None, None)}},
             "Key point in the answer: original no score (n"),
            ({"methods": {"original": {"key_point_probability": 0.3}}, "gain": 3,
              "lift over": [3]}, "Key point in the answer: original 0.300 (n not recorded)."),
            ({"fastest": {
                "setting": "ahead", "work": "16 x 512", "change": "One step ahead",
                "instead of": "parallel", "share of the time": {"mean": 0.42},
                "seconds": {"mean": 2.3, "low": 2.2, "high": 2.4, "n_steps": 4}}},
             "The fastest step with an engine is ahead, 2.300 [2.200, 2.400] s, median [quartiles] "
             "(16 x 512, n = 4 steps); one step ahead, saves 58% of the time of parallel."),
            ({"fastest": {"setting": "a", "change": "B", "instead of": "c",
                          "share of the time": {"mean": 0.9, "low": 0.8, "high": 1.1}}},
             "The fastest step with an engine is a; b, does not clearly change the time of c."),
            ({"fastest": {"setting": "a", "change": "B", "instead of": "c",
                          "share of the time": {"mean": 1.2, "low": 1.1, "high": 1.3}}},
             "The fastest step with an engine is a; b, adds 20% to the time of c."),
            ({"fastest": {"setting": "a", "share of the time": {"mean": 0.9}}},
             "The fastest step with an engine is a."),
            ({"gain": {"mean": -0.0001, "low": -0.1, "high": 0.1, "n_queries": 1}},
             "gain +0.000 [-0.100, +0.100] (n = 1 query)."),
            ({"fastest": 3, "settings": 7}, "fastest 3, settings 7."),
            ({}, "No headline recorded."),
        ],
    )  # fmt: skip
    def test_the_conclusion_is_a_sentence_of_the_headline(self, tmp_path, headline, said):
        record = Record(make_run(tmp_path, "20260101-1", headline=headline))
        assert conclusion(record).startswith(said)


class TestPaired:
    @pytest.fixture
    def make(self, tmp_path):
        def make(run_id, answers, **manifest):
            """`answers`: for each query and key point its verdicts, None for an abstention."""
            folder = make_run(tmp_path, run_id, **manifest)
            rows = [
                {"method": method, "query_id": query, "key_point": point, "supported": found}
                for (query, point), verdicts in answers.items()
                for found in verdicts
                for method in ("original", f"only in {run_id}")
            ]
            pd.DataFrame(rows).astype({"supported": object}).to_parquet(folder / "samples.parquet")
            return Record(folder)

        return make

    def test_runs_are_compared_key_point_by_key_point(self, make):
        shared = {(f"q{i}", "a"): [True, False] for i in range(4)}
        one = make("20260101-1", shared | {("q9", "a"): [True], ("q0", "b"): [None]})
        more = {(f"q{i}", "a"): [True] for i in range(3)} | {("q3", "a"): [True, False, None]}
        other = make("20260101-2", more | {("q9", "other"): [True], ("q0", "b"): [True]})
        (method,) = (found := paired_differences(one, other)).index
        row = found.loc[method]
        assert method == "original" and row["mean"] == pytest.approx(0.375)  # of .5 .5 .5 and 0
        assert (row["n_queries"], row["n_points"], row["lost"]) == (4, 4, 1)
        assert row["low"] == pytest.approx(0.375 - 0.125 * 3.1824463)  # Student's t, 3 degrees
        assert paired_differences(other, one).loc["original", "mean"] == pytest.approx(-0.375)

    def test_what_does_not_match_is_not_compared(self, make, tmp_path):
        one = make("20260101-1", {("q", "a"): [True]})
        elsewhere = make("20260101-2", {("q", "a"): [True]}, inputs={"corpus": "another"})
        others = make("20260101-3", {("q", "b"): [True]})
        torn = make("20260101-4", {("q", "a"): [True]})
        (torn.folder / "samples.parquet").write_bytes(b"PAR1")
        for other in (elsewhere, others, torn, Record(make_run(tmp_path, "20260101-5"))):
            assert paired_differences(one, other).empty


def test_parameters_that_are_not_the_default(tmp_path):
    _, _, params = read_parameters("02_baseline_rewrites", "smoke", [("calls.max_cost", "5")])
    resolved = params.model_dump(mode="json")
    parameters = {"passed": {"repeats": 3}, "resolved": resolved}
    record = Record(make_run(tmp_path, "20260101-1", parameters=parameters))
    usual = default_parameters_of("02_baseline_rewrites")
    changed = changed_parameters(record)
    assert changed["repeats"] == 3 and changed["calls.max_cost"] == 5
    assert "seed" not in changed and "variant" not in changed and usual["repeats"] == 5
    gone = Record(make_run(tmp_path, "20260101-1", notebook="09_gone", parameters=parameters))
    assert changed_parameters(gone) == {"repeats": 3}


class TestWeeklyParams:
    @pytest.fixture
    def check(self, tmp_path):
        make_run(tmp_path, "20260101-1")
        make_run(tmp_path, "20260102-1", notebook="05_weekly")

        def check(**changes):
            return WeeklyParams.check(DEFAULTS | {"paths": {"output": str(tmp_path)}} | changes)

        return check

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"since": "last week"}, "since: 'last week' is no date; write 2026-01-31"),
            ({"day": "tomorrow"}, "day: 'tomorrow' is no date; write 2026-01-31"),
            ({"since": 3}, "since=3: input should be a valid string"),
            ({"runs": ["nope"]}, "runs: 'nope' is no run: give a run folder"),
            ({"runs": "20260101-1"}, "runs='20260101-1': input should be a valid list"),
            ({"runs": ["20260101-1"], "since": "2026-01-01"}, "choose differently: give one"),
            ({"runs": ["05_weekly/default/20260102-1"]}, "is no run"),
            ({"notes": "nowhere.md"}, "'nowhere.md': no such file; copy params/05_weekly/notes.md"),
            ({"most_slides": 16}, "most_slides=16: input should be less than or equal to 15"),
            ({"pptx": True}, "pptx: python-pptx is not installed; type .venv/bin/pip install -e"),
            ({"least_queries": 0}, "least_queries=0: input should be greater than or equal to 1"),
            ({"note": "x"}, "'note' is no parameter; did you mean 'notes'?"),
        ],
    )
    def test_what_cannot_be_used_is_said(self, check, changes, message, monkeypatch):
        monkeypatch.setattr("geo_utils.weekly.params.find_spec", lambda name: None)
        with pytest.raises(ParameterError) as raised:
            check(**changes)
        assert message in str(raised.value)

    @pytest.mark.parametrize("given", [None, "2026-01-31", date(2026, 1, 31)])
    def test_the_day_is_settled_when_it_starts(self, check, monkeypatch, given):
        class Clock(datetime):
            day = 30

            @classmethod
            def now(cls, tz):
                return cls(2026, 1, cls.day, 23, 59, 59, tzinfo=tz)

        monkeypatch.setattr("geo_utils.weekly.params.datetime", Clock)
        params = check(day=given)
        before = locate_run("05_weekly", params).folder.name[-8:]
        Clock.day = 31
        settled = "2026-01-31" if given else "2026-01-30"
        assert params.day == settled and params.settled == {"day": settled}
        assert locate_run("05_weekly", params).folder.name[-8:] == before
        again = locate_run("05_weekly", check(day=given)).folder.name[-8:]
        assert (again == before) == (given is not None)  # tomorrow's deck is another
        day = read_parameters("05_weekly", "smoke")[1]["day"]  # the kernel is told
        assert day == "2026-01-31" and Clock.day == 31

    def test_a_deck_is_not_made_from_decks(self, check, tmp_path):
        with pytest.raises(ParameterError, match="a deck cannot be made from decks"):
            check(runs=[str(tmp_path / "05_weekly/smoke/20260102-1")])
        assert [r.run_id for r in check().records] == ["20260101-1"]

    def test_yaml_reads_a_date_as_one(self, check):
        assert check(since=date(2026, 1, 31)).since == "2026-01-31"
        assert json.dumps(check(since="2026-01-31").model_dump())
