"""Synthetic experiments whose truth is known: the intervals have to hold it, 95 times in 100."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from conftest import make_example
from measure_verdicts import CHANCES, study

from geo_utils.corpus import load_corpus
from geo_utils.evaluate import evaluate
from geo_utils.key_point_prompt.headroom import (
    headroom_strata,
    headroom_table,
    unit_table,
    verdict,
)
from geo_utils.roles.engines import ExtractiveEngine
from geo_utils.roles.judges import LexicalJudge
from geo_utils.roles.rewriters import Rewrite
from geo_utils.statistics import cluster_mean, jackknife, paired_difference

SEEDS = range(100)
ENOUGH = 93
BASE = 1 / 2.2  # mean of the Beta(1, 1.2) that queries' probabilities are drawn from


def experiment(seed, lift, n=30, repeats=3):
    """One comparison: base and lifted answers of n queries, the truth being `lift`.

    Queries differ in how likely the point is and in how much the method helps; answers of one
    repeat share some of their luck, as paired answers do.
    """
    rng = np.random.default_rng(seed)
    base = rng.beta(1, 1.2, (n, 1))
    better = base + (1 - base) * rng.uniform(0, 2 * lift / (1 - BASE), (n, 1))
    luck = rng.random((n, repeats))
    own = np.where(rng.random((n, repeats)) < 0.6, luck, rng.random((n, repeats)))
    queries = np.arange(n).repeat(repeats)
    return (own < better).ravel().astype(float), (luck < base).ravel().astype(float), queries, rng


def held(truth, estimate):
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize("n", [12, 30, 120])
@pytest.mark.parametrize("lift", [0.0, 0.05, 0.2])
def test_a_true_lift_is_found(lift, n):
    hits = 0
    for seed in SEEDS:
        lifted, base, queries, _ = experiment(seed, lift, n)
        hits += held(lift, cluster_mean(lifted - base, queries))
    assert hits >= ENOUGH


@pytest.mark.parametrize("n", [12, 30, 120])
def test_a_probability_is_found(n):
    hits = 0
    for seed in SEEDS:
        _, base, queries, _ = experiment(seed, 0.0, n)
        hits += held(BASE, cluster_mean(base, queries, bounded=True))
    assert hits >= ENOUGH


def test_a_difference_has_the_interval_of_its_mean():
    lifted, base, queries, _ = experiment(0, 0.2)
    assert paired_difference(lifted, base, queries).estimate == cluster_mean(lifted - base, queries)


def test_a_shuffled_placebo_shows_no_lift():
    """Whatever a rewrite does for its own query, on another's page it does nothing."""
    hits = 0
    for seed in SEEDS:
        _, base, queries, rng = experiment(seed, 0.2)
        chance = np.random.default_rng(seed).beta(1, 1.2, (30, 1))
        placebo = (rng.random((30, 3)) < chance).ravel().astype(float)
        hits += held(0.0, cluster_mean(placebo - base, queries))
    assert hits >= ENOUGH


@pytest.mark.parametrize("seed", range(3))
def test_a_placebo_through_the_roles_covers_zero(seed):
    corpus = list(load_corpus())

    class Shuffled:
        async def rewrite(self, method, example, key_point):
            donor = corpus[(corpus.index(example) + 1) % len(corpus)]
            claim = f"{donor.key_points[0].content}\n\n" if method == "placebo" else ""
            return Rewrite(f"{claim}{example.target}")

    samples = evaluate(
        corpus, ["original", "placebo"], ExtractiveEngine(seed=seed), LexicalJudge(), 2,
        rewriter=Shuffled(), seed=seed,
    )  # fmt: skip
    wide = samples.pivot(index=["query_id", "repeat"], columns="method", values="supported")
    found = cluster_mean(
        (wide["placebo"] - wide["original"]).to_numpy(), wide.index.get_level_values(0)
    )
    assert np.isnan(found.low) or held(0.0, found)


def test_a_method_that_lies_is_praised_by_the_raw_and_not_by_the_strict_probability():
    """Half of its rewrites fail the gate: a true lift of 0.2 is a strict one of -0.127."""
    strict_truth = 0.5 * (BASE + 0.2) - BASE
    raw, strict = 0, 0
    for seed in SEEDS:
        lifted, base, queries, rng = experiment(seed, 0.2)
        honest = (rng.random(30) < 0.5).repeat(3)
        raw += held(0.2, cluster_mean(lifted - base, queries))
        strict += held(strict_truth, cluster_mean(lifted * honest - base, queries))
    assert raw >= ENOUGH and strict >= ENOUGH


def test_a_lie_about_the_number_is_no_support():
    example = make_example()
    lie = "A new tide arrives every 96 hours in a harbour."

    class Liar:
        async def rewrite(self, method, example, key_point):
            return Rewrite(lie if method == "liar" else example.target)

    point = type(example.key_points[0])(1, "A new tide arrives every 12 hours in a harbour.")
    example = make_example(key_points=(point,))
    samples = evaluate(
        [example], ["original", "liar"], ExtractiveEngine(), LexicalJudge(), 3, rewriter=Liar()
    )
    verdicts = samples.groupby("method")["verdict"].agg(set)
    assert verdicts["liar"] == {"contradicted"} and verdicts["original"] == {"supported"}


def rollouts(seed, spread, n=30, k=8, m=4, fresh=4):
    """Samples of n key points at 0.3, 0.5 or 0.7, whose rewrites lie `spread` above or below."""
    rng = np.random.default_rng(seed)
    chance = rng.choice([0.3, 0.5, 0.7], (n, 1)) + spread * rng.choice([-1, 1], (n, k))
    answers = (rng.random((n, k, m)) < chance[..., None]).astype(float)
    best = [rng.choice(np.flatnonzero(row == row.max())) for row in answers.mean(2)]
    again = (rng.random((n, fresh)) < chance[np.arange(n), best][:, None]).astype(float)
    q, i, j = np.indices((n, k, m)).reshape(3, -1)
    chosen = pd.DataFrame({"query_id": q, "rewrite": i, "repeat": j, "stage": "choose"})
    chosen["supported"] = answers.ravel()
    q, j = np.indices((n, fresh)).reshape(2, -1)
    anew = pd.DataFrame({"query_id": q, "rewrite": np.array(best)[q], "repeat": m + j})
    anew = anew.assign(stage="fresh", supported=again.ravel())
    return pd.concat([chosen, anew], ignore_index=True).assign(key_point_number=1)


@lru_cache
def tables(spread, fresh=4):
    return [headroom_table(rollouts(seed, spread, n=60, fresh=fresh), []) for seed in SEEDS]


class TestHeadroom:
    @pytest.mark.parametrize("spread", [0.0, 0.2])
    def test_the_components_are_found(self, spread):
        between_points = 0.04 * 2 / 3
        truths = {
            "between rewrites": spread**2,
            "between answers": 0.25 - between_points - spread**2,
            "between key points": between_points,
            "mean of rewrites": 0.5,
        }
        for name, truth in truths.items():
            hits = sum(t["low"][name] <= truth <= t["high"][name] for t in tables(spread))
            assert hits >= 90, name  # of 600 seeds at n = 30: 92.5 % to 94.5 %
            means = np.array([t["mean"][name] for t in tables(spread)])
            assert abs(means.mean() - truth) < 4 * means.std() / 10, name

    def test_the_raw_variance_of_rewrite_means_holds_answer_noise(self):
        units = unit_table(rollouts(0, 0.0, n=300))
        raw = np.mean([np.var(means, ddof=1) for means in units["rewrite_means"]])
        assert raw > 0.04 and abs(units["rewrite_variance"].mean()) < 0.01

    def test_other_answers_have_no_winners_curse(self):
        other = np.array([t["mean"]["best of k, other answers"] for t in tables(0.0)])
        same = np.array([t["mean"]["best of k, same answers"] for t in tables(0.0)])
        assert abs(other.mean()) < 0.02 and same.mean() > 0.2
        rows = [t.loc["best of k, other answers"] for t in tables(0.0)]
        assert sum(row["low"] <= 0 <= row["high"] for row in rows) >= ENOUGH

    def test_a_gain_of_017_is_not_called_little(self):
        """Four answers a rewrite choose badly, which is no reason to call the gain small."""
        said, held = [], 0
        for seed in range(150):
            rng = np.random.default_rng(seed)
            table = headroom_table(study(rng, CHANCES["normal"](rng, 30, 8)), [])
            gain = table.loc["gain of the best of k"]
            said.append(verdict(table))
            held += gain["low"] <= 0.17 <= gain["high"]
        assert held >= 140
        told = [text.partition(":")[0] for text in said]
        assert set(told) <= {"There is headroom", "Whether there is headroom is not decided"}
        assert all("30 queries" in text and "[" in text for text in said)

    def test_strata_are_made_by_other_answers_than_their_gain(self):
        gains = [headroom_strata(rollouts(seed, 0.0))["gain"] for seed in range(40)]
        assert abs(pd.DataFrame(gains)["20 to 80 %"].mean()) < 0.02


def test_the_jackknife_of_a_mean_is_its_t_interval():
    _, base, queries, _ = experiment(0, 0.0)
    found = jackknife(lambda kept: float(base[kept].mean()), queries.tolist())
    same = cluster_mean(base, queries)
    assert (found.mean, found.low, found.high) == pytest.approx((same.mean, same.low, same.high))
