import numpy as np
import pytest

from geo_utils.statistics import cluster_mean, holm, paired_difference

RNG = np.random.default_rng(7)


def clustered(n_clusters, size, p, spread=0.25):
    chance = np.clip(RNG.normal(p, spread, n_clusters), 0.02, 0.98).repeat(size)
    return (RNG.random(n_clusters * size) < chance).astype(float), np.arange(n_clusters).repeat(
        size
    )


def test_the_mean_is_over_samples_and_missing_ones_are_left_out():
    found = cluster_mean(np.array([1, 0, 1, np.nan, 1]), ["a", "a", "a", "b", "b"])
    assert found.mean == pytest.approx(0.75)
    assert (found.n_clusters, found.n_samples) == (2, 4)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    truth = np.clip(np.random.default_rng(1).normal(0.5, 0.25, 200_000), 0.02, 0.98).mean()
    covered = 0
    for _ in range(200):
        values, clusters = clustered(60, 4, 0.5)
        found = cluster_mean(values, clusters)
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 199


def test_clusters_not_samples_make_the_width():
    values = np.tile([0.0, 1.0], 15).repeat(20)
    clusters = np.arange(30).repeat(20)
    by_cluster = cluster_mean(values, clusters)
    by_sample = cluster_mean(values, np.arange(600))
    assert by_cluster.high - by_cluster.low > 3 * (by_sample.high - by_sample.low)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_agreement_of_all_clusters_is_no_certainty(value):
    found = cluster_mean(np.full(30, value), np.arange(10).repeat(3), bounded=True)
    assert found.mean == value
    assert found.high - found.low == pytest.approx(0.3085, abs=1e-4)  # Clopper-Pearson, n = 10


def test_nothing_scored_is_no_number():
    found = cluster_mean(np.array([np.nan, np.nan]), ["a", "b"])
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert found.n_samples == 0


def test_paired_difference_uses_pairs():
    base, clusters = clustered(80, 3, 0.4)
    lifted = np.where(RNG.random(base.size) < 0.3, 1.0, base)
    found = paired_difference(lifted, base, clusters)
    assert found.estimate.low > 0 and found.p_value < 0.001
    lifted[:6] = np.nan
    found = paired_difference(lifted, base, clusters)
    assert found.n_dropped == 6 and found.estimate.n_samples == base.size - 6


def test_without_an_effect_p_values_are_not_too_small():
    small = 0
    for _ in range(200):
        first, clusters = clustered(30, 2, 0.5, spread=0.1)
        second, _ = clustered(30, 2, 0.5, spread=0.1)
        small += paired_difference(first, second, clusters).p_value < 0.05
    assert small <= 20


def test_equal_columns_have_p_one():
    base, clusters = clustered(20, 2, 0.5)
    found = paired_difference(base, base, clusters)
    assert found.p_value == 1 and found.estimate.mean == 0


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([np.nan, 0.02, 0.5]), [np.nan, 0.04, 0.5])
    assert np.isnan(holm([np.nan])).all()


def test_one_query_has_no_test_and_no_crash():
    found = paired_difference(np.array([1.0, 1.0, np.nan]), np.zeros(3), ["a", "a", "b"])
    assert found.p_value == 1.0 and found.estimate.mean == 1.0 and found.n_dropped == 1
