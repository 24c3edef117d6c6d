import numpy as np
import pytest

from geo_utils.statistics import (
    cluster_mean,
    cluster_ratio,
    cross_fitted,
    holm,
    interval_reach,
    level_spread,
    more_clusters,
    paired_difference,
)

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


def test_a_share_of_a_variance_stays_between_0_and_1():
    """As of ten queries whose rewrites vary less than chance alone makes them."""
    part = np.array([-0.06, -0.05, 0.01, -0.04, -0.06, 0.02, -0.03, -0.05, -0.02, -0.06])
    found = cluster_ratio(part, part + 0.2, range(10))
    assert (found.mean, found.low) == (0.0, 0.0) and 0 <= found.high < 0.1
    whole = cluster_ratio(np.full(10, 0.2), np.full(10, 0.2), range(10))
    assert whole.mean == 1.0 and np.isnan(whole.low)
    assert np.isnan(cluster_ratio(np.zeros(3), np.zeros(3), "abc").mean)


def test_a_share_has_the_interval_of_its_mean_where_the_whole_is_known():
    part = RNG.normal(0.4, 0.1, 40)
    found, mean = cluster_ratio(part, np.ones(40), range(40)), cluster_mean(part, range(40))
    assert (found.mean, found.low, found.high) == pytest.approx((mean.mean, mean.low, mean.high))


def test_the_best_is_scored_on_answers_that_did_not_choose_it():
    # Without the first answer the second option is best, and has a 0 there; without the second
    # or third the first is, or they tie.
    found = cross_fitted(np.array([[1.0, 1, 0], [0, 1, 1]]))
    np.testing.assert_allclose(found, [0.0, 1.0, 0.0])
    np.testing.assert_allclose(cross_fitted(np.array([[1.0, 1, np.nan], [0, 1, 1]])), [0.5, 1, 1])
    assert np.isnan(cross_fitted(np.array([[1.0], [0.0]]))).all()  # no other answer
    assert np.isnan(cross_fitted(np.full((2, 3), np.nan))).all()
    assert np.isnan(cross_fitted(np.empty((0, 3)))).all()  # nothing to choose from
    noise = RNG.random((400, 8, 4)) < 0.5
    assert abs(cross_fitted(noise.astype(float)).mean() - 0.5) < 0.05


def test_looking_widens_an_interval_and_more_so_for_few():
    reach = {n: interval_reach(n, looked=True) / interval_reach(n) for n in (5, 30, 100, 300)}
    assert reach[5] > reach[30] > reach[100] > 1.5 and reach[300] > 1.5
    # rho^2 = (2 log 20 + log(2 log 20 + 1)) / 100 = 0.0794; sqrt(2 (100 rho^2 + 1) /
    # (100 rho^2) log(sqrt(100 rho^2 + 1) / 0.05)) = 3.04, times 1.984 / 1.960 for Student's t
    assert interval_reach(100, looked=True) == pytest.approx(3.08, abs=0.01)
    values = RNG.random(30)
    once, often = (cluster_mean(values, range(30), looked=looked) for looked in (False, True))
    assert often.low < once.low and often.mean == once.mean


def test_the_spread_between_levels_by_hand():
    # Means 1/4, 1/2; the rest +-1/8: within 1/16, between 2 * 1/32 = 1/16
    found = level_spread(np.array([[0.0, 0.5], [0.5, 0.5]]))
    assert (found.mean, found.low, found.n_clusters, found.n_samples) == (0.0, 0.0, 2, 2)
    apart = level_spread(np.array([[0.1, 0.5], [0.2, 0.6], [0.1, 0.6]]))
    assert apart.mean == pytest.approx(np.std([0.4 / 3, 1.7 / 3], ddof=1), abs=0.01)
    assert 0 < apart.low < apart.mean < apart.high == 1.0
    assert np.isnan(level_spread(np.zeros((5, 1))).mean)


def test_how_many_more_clusters_decide():
    assert more_clusters(30, 0.2, 0.1) == 90  # half the width takes four times as many
    assert more_clusters(30, 0.1, 0.2) == 1
    assert more_clusters(30, 0.2, 0.01) is None  # 12,000: nobody knows a distance so small
    assert more_clusters(30, 0.1, 0.0) is None and more_clusters(30, np.nan, 0.1) is None
