"""What earlier runs tell of a comparison: looks at a part of it, other judges and wordings."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from run_folders import make_run, method_row

from geo_utils.earlier import Earlier, components, earlier_runs, total_text
from geo_utils.key_point_prompt.studies import study_levels
from geo_utils.key_point_prompt.study import Found
from geo_utils.runs import Run
from geo_utils.statistics import cluster_mean

RNG = np.random.default_rng(5)


def samples_of(lift, n=30, repeats=3, rng=RNG):
    """A comparison of n queries: the original page at 0.3, the method above it by `lift`."""
    q, r = np.indices((n, repeats)).reshape(2, -1)
    parts = [
        {"query_id": [f"q{i}" for i in q], "key_point_number": 1, "repeat": r, "method": method,
         "supported": (rng.random(q.size) < chance).astype(float)}
        for method, chance in (("original", 0.3), ("key_point", 0.3 + lift))
    ]  # fmt: skip
    return pd.concat(map(pd.DataFrame, parts), ignore_index=True)


SETTINGS = {
    "engine": "gemini/e", "judge": "offline", "rewriter": "offline", "repeats": 3, "seed": 0,
    "sampling": {"judge_mode": "verdict"}, "corpus": {"name": "sample", "limit": None},
}  # fmt: skip


class TestEarlierRuns:
    def make(self, root, run_id, n=30, changes=(), variant="smoke", **manifest):
        corpus = SETTINGS["corpus"] | {"limit": n}
        given = SETTINGS | {"corpus": corpus, "methods": ["original", run_id]} | dict(changes)
        row = method_row(0.4, 0.3, 0.5, n_examples=n, n_samples=n * given["repeats"])
        entries = {
            "parameters": {"passed": {}, "resolved": given},
            "headline": {"methods": {"original": row}},
            "templates": {"engine_answer": "one"},
            "usage": {"served_by": ["e-001"]},
        }
        folder = make_run(root, run_id, variant=variant, **(entries | manifest))
        samples_of(0.2, n).to_parquet(folder / "samples.parquet")
        return Run(folder)

    def found(self, root, own, source="offline roles"):
        usage = SimpleNamespace(served_by={"e-001"})
        roles = SimpleNamespace(usage=usage, source=lambda: source)
        return earlier_runs(own, samples_of(0.2), roles)

    def test_a_run_that_was_looked_at_and_extended(self, tmp_path):
        self.make(tmp_path, "20260101-1", 10)
        self.make(tmp_path, "20260101-2", 10, variant="other")  # the same look
        self.make(tmp_path, "20260101-3", 30, {"repeats": 1})
        self.make(tmp_path, "20260101-4", 30)  # no part of it
        self.make(tmp_path, "20260101-5", 10, status="interrupted")
        self.make(tmp_path, "20260101-6", 10, {"seed": 1})
        self.make(tmp_path, "20260101-7", 10, provenance="SIMULATED by a stand-in")
        make_run(tmp_path, "20260101-8", headline={"methods": []})
        before = self.found(tmp_path, self.make(tmp_path, "20260102-1"))
        assert before == Earlier([(10, 30), (30, 30)], {})

    def test_runs_that_differ_in_one_thing_are_its_levels(self, tmp_path):
        self.make(tmp_path, "20260101-1", changes={"judge": "offline/strict"})
        self.make(tmp_path, "20260101-2", changes={"engine": "gemini/f"})
        self.make(tmp_path, "20260101-3", changes={"engine": "gemini/f", "judge": "gemini/f"})
        self.make(tmp_path, "20260101-4", templates={"engine_answer": "two", "unused": "x"})
        self.make(tmp_path, "20260101-5", usage={"served_by": ["e-002"]})
        torn = self.make(tmp_path, "20260101-6", changes={"judge": "gemini/f"})
        (torn.folder / "samples.parquet").write_bytes(b"torn")
        before = self.found(tmp_path, self.make(tmp_path, "20260102-1"))
        assert before.looks == []
        assert {source: list(made) for source, made in before.levels.items()} == {
            "judge": ["offline verdict", "offline/strict verdict"],
            "engine": ["gemini/e", "gemini/f"],
            "prompt wording": ["as shipped (20260102)", "as shipped (20260101)"],
            "model version": ["e-001", "e-002"],
        }

    def test_a_stand_ins_runs_are_no_part_of_a_real_one(self, tmp_path):
        self.make(tmp_path, "20260101-1", 10, provenance="SIMULATED by a stand-in")
        own = self.make(tmp_path, "20260102-1")
        assert self.found(tmp_path, own).looks == []
        assert self.found(tmp_path, own, "SIMULATED by a stand-in").looks == [(10, 30)]


class TestTotal:
    def test_alone_it_says_what_no_interval_holds(self):
        told = total_text(samples_of(0.2), "key_point", Earlier([], {}))
        assert "No earlier run looked at a part of these 30 queries" in told
        assert "has a standard error of 0.0" in told and "(30 queries)" in told
        assert "One judge, one prompt wording and one engine were run" in told

    def test_where_all_queries_agree_there_is_no_interval(self):
        samples = samples_of(0.2).assign(supported=0.0)
        told = total_text(samples, "key_point", Earlier([(10, 30)], {}))
        assert "Of 30 queries none differs in the lift of key-point rewrite (+0.000)" in told
        assert "nan" not in told
        one = total_text(samples_of(1.0, n=1), "key_point", Earlier([], {}))
        assert "of one query (+" in one and "none differs" not in one

    @pytest.mark.parametrize(("lift", "said"), [(0.6, "it still excludes 0"), (0.0, "does not")])
    def test_looks_are_told_with_an_interval_that_holds_under_them(self, lift, said):
        samples = samples_of(lift, rng=np.random.default_rng(1))
        told = total_text(samples, "key_point", Earlier([(10, 30)], {}))
        wide = samples.pivot(index=["query_id", "repeat"], columns="method", values="supported")
        change = (wide["key_point"] - wide["original"]).to_numpy()
        found = cluster_mean(change, wide.index.get_level_values(0).tolist(), looked=True)
        assert f"as {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], for" in told
        assert "looked at on 10 queries (30 samples) and then extended to 30 queries" in told
        assert said in told

    def test_components_stand_beside_the_sampling_error(self):
        levels = {
            "judge": {"a": samples_of(0.1), "b": samples_of(0.6), "c": samples_of(0.35)},
            "engine": {"one": samples_of(0.2), "without": samples_of(0.2).query("method == 'x'")},
        }
        found = components(levels["judge"]["a"], "key_point", levels)
        assert set(found) == {"sampling", "judge"}  # an engine alone has no spread
        assert 0.1 < found["judge"].mean < 0.5 and found["judge"].n_samples == 3
        told = total_text(levels["judge"]["a"], "key_point", Earlier([], levels))
        whole = np.hypot(found["sampling"].mean, found["judge"].mean)
        assert "Judge: between a, b, c the lift has a standard deviation of" in told
        assert f"All of these together: {whole:.3f}." in told

    def test_studies_bring_judges_of_the_same_answers_and_engines(self):
        samples = samples_of(0.2).assign(key_point="k")
        samples["answer"] = [f"a{i}" for i in range(len(samples))]
        judged = samples[["query_id", "key_point", "answer"]][:100].copy()
        said = samples["supported"].map({0.0: "omitted", 1.0: "supported"})[:100]
        judged["verdict: lexical"], judged["verdict: never"] = said, "omitted"
        judged["verdict: none"], judged["verdict: reader a"] = None, "supported"
        moved = pd.concat([samples.assign(engine=e, rewriter="this run's") for e in "ab"])
        moved = pd.concat([moved, moved.assign(engine="a", rewriter="another")])
        found = {"judges": Found("", tables={"samples": judged}),
                 "transfer": Found("", tables={"samples": moved})}  # fmt: skip
        levels = study_levels(found, samples)
        assert {source: list(made) for source, made in levels.items()} == {
            "judge": ["lexical", "never"], "engine": ["a", "b"],
        }  # fmt: skip
        first, never = levels["judge"].values()
        assert first["supported"][:100].equals(samples["supported"][:100])
        assert never["supported"][:100].eq(0).all() and first["supported"][100:].isna().all()
        assert len(levels["engine"]["a"]) == len(samples)
        off = {"judges": Found("off"), "transfer": Found("off")}
        assert study_levels(off, samples) == {}
