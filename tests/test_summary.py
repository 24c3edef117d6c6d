"""The previous methods as one row, and a method against all that it has to beat."""

import numpy as np
import pandas as pd
import pytest

from geo_utils.roles.methods import pooled
from geo_utils.show.plots import ladder_figure, rival_figure, slopes_figure, verdict_figure
from geo_utils.show.tables import (
    answer_text,
    method_table,
    query_table,
    query_text,
    rival_findings,
)
from geo_utils.summary import (
    against,
    by_query,
    headline,
    leading,
    rivals_headline,
    rivals_in,
    summarise,
    with_pooled,
)
from geo_utils.visibility import FIGURES

NAN = np.nan
# By method: whether the answer supports the key point, for each of four queries.
SUPPORTED = {
    "original": [0, 0, 0, 0],
    "fluency": [1, 0, NAN, NAN],
    "rules": [0, 1, 1, NAN],
    "rules_truthful": [1, 1, 1, 1],
    "paste_key_point": [1, 1, 1, 0],
    "key_point": [1, 1, 1, 1],
}


def samples_of(supported, **columns):
    rows = []
    for i in range(4):
        for method, values in supported.items():
            row = dict.fromkeys([*FIGURES, "kept", "grounded", "page_words", "unchanged"], 0.5)
            row |= {"query_id": f"q{i}", "key_point_number": 1, "repeat": 0, "uncited": False}
            rows.append(row | {"method": method, "supported": values[i]} | columns)
    return pd.DataFrame(rows)


def of(*methods):
    return samples_of({method: SUPPORTED[method] for method in methods})


POOL = pooled(2)
SAMPLES = of(*SUPPORTED)


def answer(summary, about="key_point", corrected=None):
    return answer_text(summary, about, ["original", POOL], corrected, "src")


def test_no_interval_of_a_share_leaves_0_to_1():
    samples = of("original", "key_point")
    samples["kept"] = np.where(samples["query_id"] == "q0", 0.9, 1.0)
    samples["pawc"] = np.where(samples["query_id"] == "q0", 0.1, 0.0)
    row = summarise(samples).loc["key_point"]
    assert (row["kept"], row["kept_high"]) == (0.975, 1.0) and 0.85 < row["kept_low"] < 0.93
    assert (row["pawc"], row["pawc_low"]) == (0.025, 0.0) and 0.07 < row["pawc_high"] < 0.15


class TestAnswer:
    @pytest.mark.parametrize(
        ("clear", "difference", "said"),
        [
            (True, 0.5, ("**Key-point rewrite helps.**", "clearly more: +0.500")),
            (True, -0.5, ("**Key-point rewrite harms.**", "clearly fewer: -0.500")),
            (
                False,
                0.5,
                ("**Key-point rewrite is not shown to help.**", "not clearly different: +0.500"),
            ),
        ],
    )
    def test_it_answers_what_was_asked_and_claims_what_is_clear(self, clear, difference, said):
        summary = summarise(SAMPLES)
        summary.loc["key_point", ["clear", "difference"]] = clear, difference
        told = answer(summary)
        assert told.startswith(said[0]) and said[1] in told
        assert f"With {POOL} it is in 0.667 [" in told
        assert "n = 2 to 4 queries" in told and told.endswith("Source: src.")

    def test_what_has_no_score_is_said(self):
        summary = summarise(samples_of(SUPPORTED | {"key_point": [NAN] * 4}))
        assert answer(summary).startswith("With key-point rewrite no pair could be scored.")


class TestFigures:
    def test_the_ladder_steps_from_row_to_row(self):
        rows = [*rivals_in(summarise(SAMPLES).index), "key_point"]
        assert rows == ["original", POOL, "paste_key_point", "key_point"]
        bars = ladder_figure(summarise(SAMPLES), rows, "src").axes[0].patches
        widths = [bar.get_width() for bar in bars]
        assert widths == pytest.approx([2 / 3, 0.75 - 2 / 3, 0.25])

    def test_a_query_is_a_line_and_alike_ones_are_one(self):
        figure = slopes_figure(SAMPLES, "paste_key_point", "src")
        assert figure.get_suptitle().endswith("better on 3 queries, worse on 0, the same on 1")
        drawn = [tuple(line.get_ydata()) for line in figure.axes[0].lines]
        assert sorted(filter(None, drawn)) == [(0.0, 0.0), (0.0, 1.0)]

    def test_verdicts_add_up_and_contradictions_are_counted_among_the_misses(self):
        verdicts = ["supported", "omitted", "contradicted", None]
        samples = of("original", "key_point").assign(verdict=np.repeat(verdicts, 2))
        figure = verdict_figure(samples, "src")
        assert figure.get_suptitle().endswith("do not support the key point, 50.0% contradict it")
        assert sum(bar.get_width() for bar in figure.axes[0].patches) == pytest.approx(2.0)

    @pytest.mark.parametrize(
        ("verdict", "title"),
        [("supported", "Every scored answer supports the key point"),
         (None, "No answer was scored"),
         ("contradicted", "Of answers that do not support the key point, 100.0% contradict it")],
    )  # fmt: skip
    def test_where_all_verdicts_are_one_the_title_says_which(self, verdict, title):
        assert verdict_figure(of("original").assign(verdict=verdict), "src").get_suptitle() == title


class TestPooled:
    def test_a_pair_counts_by_the_mean_of_the_methods_that_have_it(self):
        table = with_pooled(SAMPLES)
        rows = table[table["method"] == POOL].set_index("query_id")["supported"]
        assert rows.to_dict() == pytest.approx(
            {"q0": 0.5, "q1": 0.5, "q2": 1.0, "q3": NAN}, nan_ok=True
        )

    def test_it_is_a_row_behind_the_methods_that_it_pools(self):
        summary = summarise(SAMPLES)
        methods = [*SUPPORTED]
        assert list(summary.index) == [*methods[:3], POOL, *methods[3:]]
        row = summary.loc[POOL]
        assert row["key_point_probability"] == pytest.approx(2 / 3)
        assert (row["n_examples"], row["n_samples"], row["abstentions"]) == (3, 3, 1)
        assert row["difference"] == pytest.approx(2 / 3) and row["pairs_dropped"] == 1
        assert headline(summary)["methods"][POOL]["n_samples"] == 3

    @pytest.mark.parametrize("methods", [["rules"], ["rules_truthful"], ["paste_key_point"]])
    def test_one_method_or_none_is_not_pooled(self, methods):
        samples = of("original", *methods)
        assert with_pooled(samples) is samples

    def test_its_abstentions_are_not_counted_twice(self):
        assert "3 abstentions in all" in answer(summarise(SAMPLES))


class TestAgainst:
    def test_the_rivals_on_the_same_pairs(self):
        found = against(SAMPLES, "key_point")
        assert list(found.index) == ["original", POOL, "paste_key_point"]
        assert found["difference"].tolist() == pytest.approx([1.0, 1 / 3, 0.25])
        assert found["n_samples"].tolist() == [4, 3, 4]
        assert found["p_holm"].tolist() == pytest.approx(  # the smallest p counts thrice
            [3 * found["p_value"].iloc[0], *[min(2 * found["p_value"].iloc[1], 1.0)], 1.0]
        )
        told = rivals_headline(found)["lift over"][POOL]
        assert told["mean"] == pytest.approx(1 / 3) and told["abstentions"] == 1

    def test_a_single_previous_method_stands_for_itself(self):
        found = against(of("original", "rules", "key_point"), "key_point")
        assert list(found.index) == ["original", "rules"]

    def test_a_method_is_no_part_of_what_it_is_compared_with(self):
        assert list(against(SAMPLES, "rules").index) == ["original", "fluency", "paste_key_point"]

    def test_what_is_not_clear_is_not_claimed(self):
        found = against(SAMPLES, "key_point")
        clear = found.assign(clear=[True, True, False])
        for table, title in (
            (
                found.assign(clear=False),
                "Key-point rewrite is not clearly apart from original, previous",
            ),
            (
                clear,
                f"Key-point rewrite is clearly above original and {POOL}, not clearly apart from",
            ),
            (clear.assign(difference=-0.2), "Key-point rewrite is clearly below original and"),
        ):
            shown = rival_figure(table, "key_point", "src").get_suptitle()
            assert " ".join(shown.split()).startswith(title)
        lines = rival_findings(clear, "key_point").splitlines()
        assert f"against {POOL}**: **clearly better**, 100.0% and 66.7% of answers" in lines[1]
        assert "1 pairs dropped" in lines[1] and "**no clear difference**" in lines[2]
        worse = rival_findings(clear.assign(difference=-0.1), "key_point")
        assert "**clearly worse**" in worse

    def test_a_rival_without_any_score_is_said(self):
        samples = samples_of(SUPPORTED | {"paste_key_point": [NAN] * 4})
        told = rival_findings(against(samples, "key_point"), "key_point")
        assert "paste key point**: no pair could be scored" in told


class TestFirstTable:
    def test_answers_that_cite_nothing(self):
        samples = SAMPLES.astype({"uncited": object})
        silent = samples["query_id"].isin(["q0", "q1", "q2"]) & samples["method"].ne("original")
        samples.loc[silent, "uncited"] = True
        samples.loc[samples["method"].eq("fluency") & samples["query_id"].eq("q3"), "uncited"] = (
            None
        )
        summary = summarise(samples)
        assert summary["uncited"].to_dict() == pytest.approx(
            {m: 0.0 if m == "original" else 1.0 if m == "fluency" else 0.75 for m in summary.index}
            | {POOL: 0.75}
        )
        shown = method_table(summary, "src").data["answers that cite nothing"]
        assert shown["rules (as published)"].startswith("0.750 [")
        assert "**The engine cites no source in 65.2% of 23 answers**" in answer(summary)
        assert "cites no source" not in answer(summarise(SAMPLES))

    def test_both_families_are_named_and_what_is_pooled(self):
        summary = summarise(SAMPLES)
        table = method_table(summary, "src")
        assert {"rules (as published)", "rules (truthful)", POOL} <= set(table.data.index)
        assert "fluency, rules (as published); without the truthful variants." in table.caption
        assert "lets the rewriter invent" in table.caption
        plain = method_table(summarise(of("original", "fluency")), "src").caption
        assert "Pooled" not in plain and "As published" not in plain


def repeated(**methods):
    """Rows of a samples table: for each method a list of queries, each a list of repeats."""
    rows = [
        {"query_id": f"q{q}", "key_point_number": 1, "repeat": r, "method": m, "supported": value}
        for m, queries in methods.items()
        for q, values in enumerate(queries)
        for r, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


class TestLeading:
    def test_the_best_leads_if_the_runner_up_is_clearly_behind(self):
        apart = repeated(
            original=[[0.0]] * 12, second=[[0.0]] * 9 + [[1.0]] * 3, best=[[1.0]] * 11 + [[0.0]]
        )
        assert leading(apart, "supported").to_dict() == {
            "original": False, "second": False, "best": True,
        }  # fmt: skip
        assert not leading(apart, "supported", among=["original", "second"]).any()

    def test_nobody_leads_with_p_one(self):
        """One query alone differs; then all do and alike, but there are three of them."""
        assert not leading(repeated(a=[[0]] * 9 + [[1]], b=[[0]] * 10), "supported").any()
        assert not leading(repeated(a=[[1, 1]] * 3, b=[[0, 0]] * 3), "supported").any()

    def test_a_pool_does_not_compete_and_a_lone_method_leads_nobody(self):
        samples = repeated(**{POOL: [[1.0]] * 12, "a": [[0.0]] * 12})
        assert not leading(samples, "supported").any()


class TestByQuery:
    def test_by_hand(self):
        found = by_query(
            repeated(original=[[0, 0], [1, 1], [1, 0], [1, 1]],
                     better=[[1, 1], [1, 1], [1, 1], [0, 1]]).assign(page="p")
        ).loc["better"]  # fmt: skip
        assert (found["wins"], found["ties"], found["losses"], found["n_queries"]) == (2, 1, 1, 4)
        assert found["net"] == 0.25 and (found["lowest_query"], found["lowest"]) == ("q3", -0.5)
        # By the second answer q0 1, q1 0, q2 1, q3 0: q1 and q3 tie, their firsts 0 and -1; by the
        # first q3 is lowest, its second 0.
        assert found["worst"] == (-0.5 + 0) / 2

    def test_one_answer_a_page_has_no_other_answers(self):
        found = by_query(repeated(original=[[0], [1]], a=[[1], [NAN]]).assign(page="p"))
        assert np.isnan(found.loc["a", "worst"]) and found.loc["a", "n_queries"] == 1
        assert "lowest" not in query_text(found, "a")

    def test_pages_that_several_queries_share(self):
        """Two pages of two queries, one of a single query, which has no worst."""
        samples = repeated(
            original=[[0, 0]] * 5, m=[[1, 1], [0, 0], [1, 1], [1, 1], [0, 0]]
        ).assign(page=lambda t: t["query_id"].map(dict(q0="a", q1="a", q2="b", q3="b", q4="c")))
        row = by_query(samples).loc["m"]
        assert (row["n_pages"], row["page_mean"], row["page_worst"]) == (2, 0.75, 0.5)
        assert "The worst query of a page changes by +0.500" in query_text(by_query(samples), "m")
        assert "worst of a page" in query_table(by_query(samples), "src").data
        whole = by_query(samples.assign(page=samples["query_id"])).loc["m"]
        assert whole["n_pages"] == 0
        # What the queries of a page share is no second draw.
        assert row["net_high"] - row["net_low"] > whole["net_high"] - whole["net_low"]

    def test_in_words(self):
        found = by_query(SAMPLES.assign(page=SAMPLES["query_id"]))
        assert list(found.index) == [*SUPPORTED][1:]
        told = query_text(found, "paste_key_point")
        assert "better than the original page on 3 of 4 queries, the same on 1 and worse on" in told
        assert "worst of a page" not in query_table(found, "src").data
        told = query_text(found.assign(n_pages=1, page_worst=NAN), "paste_key_point")
        assert "The worst query of a page" not in told
