"""The rank of a page among all pages of a corpus, and what rewriting does to being found."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import make_example
from measure_retrieval import coverage, planted
from test_analyses import DEFAULTS
from test_models import Replica

from geo_utils.baseline_rewrites.analyses import add_analyses, analyse, rehearsals
from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.baseline_rewrites.retrieval import (
    ranks,
    retrieval,
    retrieval_figure,
    retrieval_findings,
    retrieval_table,
)
from geo_utils.corpus import load_corpus
from geo_utils.lexical import bm25
from geo_utils.models.base import Completion, UnusableError
from geo_utils.models.loops import run_sync
from geo_utils.parameters import ParameterError
from geo_utils.plan import plan_calls
from geo_utils.roles.make import make_roles
from geo_utils.text import content_words

CORPUS = [
    make_example("q1", query="moon tides", sources=("Boats wait.", "Moon tides rise.", "Tides.")),
    make_example("q2", query="bread dough", sources=("Dough.", "Bread dough rests.", "Salt.")),
]


def rows(*pages, query="q1", method="m", verdict="supported"):
    row = {"query_id": query, "method": method, "supported": 1.0, "verdict": verdict}
    return pd.DataFrame([row | {"page": page} for page in pages])


class TestRanks:
    def test_by_hand(self):
        pages = ("Moon tides rise.", "The sea rises.", "A tide, as boats know well enough.", None)
        found = ranks(rows(*pages), CORPUS, first=2)
        # The third names one word of two in more words than "Tides.", the second none.
        assert found["rank_bm25"].tolist()[:3] == [1, 6, 2] and np.isnan(found["rank_bm25"][3])
        assert (
            found["found_bm25"].tolist()[:3] == found["end_to_end_bm25"].tolist()[:3] == [1, 0, 1]
        )

    def test_a_policy_without_a_page_is_not_found_and_an_arm_has_no_rank(self):
        found = ranks(rows(None, verdict="no page"), CORPUS, 2)
        assert found["found_bm25"].tolist() == found["end_to_end_bm25"].tolist() == [0]
        assert ranks(rows(None, method="removed"), CORPUS, 2).isna().all(axis=None)

    def test_what_has_the_same_score_is_ranked_before(self):
        assert ranks(rows("Tides."), CORPUS, 1)["rank_bm25"].tolist() == [2]

    def test_it_is_the_rank_of_all_pages_with_the_one_replaced(self):
        corpus = list(load_corpus("sample", limit=4))
        pages = list(dict.fromkeys(page for e in corpus for page in e.sources))
        for example, other in pairwise(corpus):
            text = f"{other.target} {example.query}"
            replaced = [text if page == example.target else page for page in pages]
            scores = bm25(content_words(example.query), list(map(content_words, replaced)))
            wanted = int((scores >= scores[pages.index(example.target)]).sum())
            found = ranks(rows(text, query=example.query_id), corpus, 5)
            assert found["rank_bm25"].tolist() == [wanted]

    def test_dense_by_hand_and_what_has_no_vector(self):
        vectors = {
            "moon tides": [2, 0], "bread dough": [0, 1], "Boats wait.": [1, 1],
            "Moon tides rise.": [3, 0], "Tides.": [5, 1], "Dough.": [0, 2],
            "Bread dough rests.": [1, 9], "Rewritten.": [4, 1], "Worse.": [1, 2],
        }  # fmt: skip

        class Embedder:
            async def complete(self, request):
                if request.prompt not in vectors:
                    raise UnusableError("too long", "refused")
                return Completion(json.dumps(vectors[request.prompt]))

        pages = ("Moon tides rise.", "Rewritten.", "Worse.", "Unknown.")
        found = ranks(rows(*pages), CORPUS, 2, Embedder())
        # Cosines with the query: 1; 0.97, behind "Tides." alone; 0.45, behind "Boats wait." too.
        assert found["rank_dense"].tolist()[:3] == [1, 2, 3] and np.isnan(found["rank_dense"][3])
        assert found["end_to_end_dense"].tolist()[:3] == [1, 1, 0]
        del vectors["moon tides"]
        assert ranks(rows(*pages), CORPUS, 2, Embedder())["rank_dense"].isna().all()


class TestShown:
    def test_who_wins_the_answer_and_loses_the_retrieval_is_named(self):
        found = retrieval(planted(3, 120))
        told = retrieval_findings(found, 5, 600)
        assert "original page is among the first 5 of 600 pages for 0." in told
        assert "**Wins wins the answer and loses the retrieval**" in told and "Same" not in told
        assert "(n = 120 queries, 360 samples)" in told and "(n = 120 queries)" in told
        figure = retrieval_figure(found, "src", 5)
        assert figure.get_suptitle().replace("\n", " ").endswith("clearly found less often: wins")
        assert len(figure.axes) == 3 and "n = 120 queries" in figure.get_supxlabel()
        table = retrieval_table(found, 5, 600, "src")
        assert table.data["n samples"].tolist() == [360] * 3 and "src" in table.caption

    def test_a_gain_that_may_be_chance_is_not_claimed(self):
        found = retrieval(planted(3, 120))
        unclear = found.assign(found_clear=False, end_to_end_clear=False)
        assert retrieval_figure(unclear, "src", 5).get_suptitle().startswith("No method's page")
        both = found.assign(end_to_end=0.9, end_to_end_clear=True, end_to_end_difference=0.2)
        title = retrieval_figure(both.assign(found_clear=False), "src", 5).get_suptitle()
        assert "are clearly more often found and said than the original" in title
        assert "No method's page is clearly found less" in retrieval_findings(unclear, 5, 600)


def test_planted_truths_are_held():
    """A small version of `measure_retrieval.py`."""
    held, right = coverage(range(20), 30)
    assert np.mean(list(held.values())) >= 0.92 and min(held.values()) >= 0.8
    assert right >= 0.9


def test_dense_retrieval_on_a_server_is_planned_cached_and_shown(tmp_path):
    server = Replica(models=("e",))
    run_sync(server.__aenter__())
    values = DEFAULTS | {
        "methods": ["original", "paste_key_point"], "repeats": 2, "corpus": {"limit": 3},
        "analyses": {"embedder": "openai/e"}, "servers": {"openai/e": server.url},
        "paths": {"cache": str(tmp_path)},
    }  # fmt: skip
    params, corpus = BaselineRewritesParams.check(values), load_corpus("sample", limit=3)
    roles = make_roles(params)
    plan = plan_calls(roles, corpus, params.methods, also=rehearsals(roles, params.analyses))
    assert plan["calls"].to_dict() == {"embedder, analyses": 15 + 3 + 3}
    samples = roles.evaluate(corpus, params.methods)
    found, _ = add_analyses(samples.copy(), corpus, roles, params.analyses)
    other = make_roles(params)
    again, _ = add_analyses(samples.copy(), corpus, other, params.analyses)
    for made in (roles, other):
        run_sync(made.callers["embedder"].model.close())
    run_sync(server.__aexit__())
    assert len(server.texts) == 21  # nothing is asked twice
    assert found["rank_dense"].notna().all()
    pd.testing.assert_series_equal(found["rank_dense"], again["rank_dense"])
    found = analyse(found, params.analyses)["retrieval"]
    assert list(found.index.unique("retriever")) == ["bm25", "dense"]
    assert len(retrieval_figure(found, "src", 5).axes) == 5


@pytest.mark.parametrize("name", ["offline", "gemini/gemini-2.5-flash"])
def test_vectors_come_from_an_openai_server(name):
    with pytest.raises(ParameterError, match="write openai/ID, with its address under servers"):
        BaselineRewritesParams.check(DEFAULTS | {"analyses": {"embedder": name}})
