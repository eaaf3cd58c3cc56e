"""Trend, equivalence and power against scipy, published values and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from emoreg.statistics.equivalence import equivalence
from emoreg.statistics.power import (
    clusters_needed,
    equivalence_power,
    paired_power,
    smallest_detectable_effect,
)
from emoreg.statistics.trend import page_trend, rank_correlations


def t_test_p(values, mean=0.0, **how):
    return np.asarray(scipy.stats.ttest_1samp(values, mean, **how)[1])


# -- trend -----------------------------------------------------------------------------

# Ten students' ratings of three ways to teach, in the order that is put to the test:
# the worked example of scipy's `page_trend_test`, L = 133.5 and exact p = 0.00182.
RATINGS = np.array(
    [
        *([3, 4, 3], [2, 2, 4], [3, 3, 5], [1, 3, 2], [2, 3, 2]),
        *([2, 4, 5], [1, 2, 4], [3, 4, 4], [2, 4, 5], [1, 3, 4]),
    ],
    dtype=float,
)


def test_page_has_the_worked_value():
    found = page_trend(RATINGS)
    assert found.method == "exact"
    assert found.statistic == 133.5
    assert found.p == pytest.approx(0.0018191161948127822)


def test_page_is_exact_by_all_orders():
    """Three clusters at three doses: all 216 orders, without ties."""
    values = np.array([[1.0, 2, 3], [1, 3, 2], [2, 1, 3]])
    orders = list(itertools.permutations([1, 2, 3]))
    level = [
        sum(np.dot([1, 2, 3], ranks) for ranks in triple)
        for triple in itertools.product(orders, repeat=3)
    ]
    found = page_trend(values)
    assert found.statistic == 14 + 13 + 13
    assert found.p == pytest.approx(np.mean(np.array(level) >= found.statistic))


def test_the_correlation_is_the_mean_of_spearmans():
    values = np.random.default_rng(0).normal(size=(7, 5, 2))
    found = page_trend(values)
    each = rank_correlations(values)
    for cluster, figure in itertools.product(range(7), range(2)):
        rho = scipy.stats.spearmanr(range(5), values[cluster, :, figure])[0]
        assert each[cluster, figure] == pytest.approx(rho)
    np.testing.assert_allclose(found.correlation, each.mean(axis=0))


def test_a_rise_is_found_and_a_fall_is_not():
    values = np.random.default_rng(0).normal(size=(20, 4)) + 0.5 * np.arange(4)
    assert page_trend(values).p < 0.001
    assert page_trend(values[:, ::-1]).p > 0.99
    # Clusters' own levels play no part.
    moved = page_trend(values + 100 * np.arange(20.0)[:, None])
    assert moved.p == page_trend(values).p


def test_page_is_uniform_under_the_null():
    values = np.random.default_rng(1).normal(size=(30, 4, 1500))
    p = page_trend(values + np.arange(30.0)[:, None, None]).p
    assert 0.035 <= (p <= 0.05).mean() <= 0.065


def test_a_trend_refuses_what_has_none():
    with pytest.raises(ValueError, match="3 doses or more"):
        page_trend(np.ones((5, 2)))
    with pytest.raises(ValueError, match="finite"):
        page_trend(np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]]))


# -- equivalence -----------------------------------------------------------------------


def test_both_tests_and_the_interval_are_scipys():
    values = np.random.default_rng(0).normal(0.2, 1.0, size=(25, 4))
    found = equivalence(values, (-0.5, 0.7))
    above = t_test_p(values, -0.5, alternative="greater")
    below = t_test_p(values, 0.7, alternative="less")
    np.testing.assert_allclose(found.p, np.maximum(above, below))
    plain = scipy.stats.t.interval(
        0.9, 24, loc=values.mean(axis=0), scale=scipy.stats.sem(values)
    )
    np.testing.assert_allclose([found.interval.low, found.interval.high], plain)
    assert found.interval.confidence == pytest.approx(0.9)


def test_equivalent_is_an_interval_within_the_margin():
    values = np.random.default_rng(1).normal(0.1, 1.0, size=(40, 300))
    found = equivalence(values, 0.4)
    within = (found.interval.low > -0.4) & (found.interval.high < 0.4)
    np.testing.assert_array_equal(found.equivalent, within)
    assert 0 < within.mean() < 1


def test_no_difference_found_is_not_no_difference():
    values = np.random.default_rng(2).normal(0.0, 5.0, size=12)
    assert t_test_p(values) > 0.05
    assert not equivalence(values, 1.0).equivalent


def test_not_worse_asks_on_one_side_alone():
    better = np.random.default_rng(0).normal(3.0, 1.0, size=30)
    assert not equivalence(better, 1.0).equivalent
    assert equivalence(better, (-1.0, math.inf)).equivalent
    assert not equivalence(-better, (-1.0, math.inf)).equivalent


def test_without_spread_only_the_margin_itself_is_in_doubt():
    assert equivalence(np.zeros(5), 0.1).p == 0.0
    assert equivalence(np.full(5, 0.5), 0.1).p == 1.0
    assert equivalence(np.full(5, 0.1), 0.1).p == 0.5


def test_on_the_margin_one_in_twenty_passes():
    values = np.random.default_rng(3).normal(0.5, 1.0, size=(60, 4000))
    assert 0.035 <= equivalence(values, 0.5).equivalent.mean() <= 0.065
    # Tokens as the unit would pass one in four.
    noise = 0.3 * np.random.default_rng(4).normal(size=(60, 8, 4000))
    tokens = (values[:, None] + noise).reshape(480, 4000)
    assert equivalence(tokens, 0.5).equivalent.mean() > 0.2


@pytest.mark.parametrize("margin", [0.0, -1.0, (1.0, -1.0)])
def test_an_empty_margin_is_refused(margin):
    with pytest.raises(ValueError, match="`margin`"):
        equivalence(np.ones(4), margin)


# -- power -----------------------------------------------------------------------------


def test_power_has_published_values():
    """G*Power: d = 1/3, n = 25 (Wuensch, "G*Power: t Tests"): .360.

    34 pairs for d_z = .5 and 199 for .2 at 80 % are its standard examples.
    """
    assert paired_power(1 / 3, 25) == pytest.approx(0.360, abs=5e-4)
    assert (clusters_needed(0.5), clusters_needed(0.2)) == (34, 199)
    assert paired_power(0.5, 34) >= 0.8 > paired_power(0.5, 33)


def test_the_rule_of_thumb_is_the_limit():
    """7.85 / d_z^2: 197, 88 and 32 clusters, two more with t's tails."""
    for d_z, rule in ((0.2, 197), (0.3, 88), (0.5, 32)):
        assert math.ceil(7.85 / d_z**2) == rule
        assert 1 <= clusters_needed(d_z) - rule <= 3
    assert smallest_detectable_effect(5000) == pytest.approx(
        (7.849 / 5000) ** 0.5, 1e-3
    )


def test_the_smallest_effect_has_just_that_power():
    for n, power in ((2, 0.8), (8, 0.8), (100, 0.95)):
        effect = smallest_detectable_effect(n, power=power)
        assert paired_power(effect, n) == pytest.approx(power, abs=1e-6)


def test_power_is_the_share_of_t_tests_that_find_it():
    values = np.random.default_rng(0).normal(size=(20, 10_000)) + 0.6
    found = np.mean(t_test_p(values) <= 0.05)
    assert paired_power(0.6, 20) == pytest.approx(found, abs=0.015)
    assert paired_power(0.0, 20) == pytest.approx(0.05)
    both = paired_power([-0.6, 9.9], 20)
    assert both.tolist() == pytest.approx([float(paired_power(0.6, 20)), 1.0])


def test_power_of_equivalence_is_the_share_that_passes():
    values = np.random.default_rng(1).normal(0.1, 1.0, size=(60, 10_000))
    passed = equivalence(values, 0.5).equivalent.mean()
    told = equivalence_power(60, margin=0.5, true=0.1)
    assert told == pytest.approx(passed, abs=0.015)
    assert equivalence_power(5, margin=0.1) < 0.05


def test_gsm8k_shows_two_points_only_if_nothing_changed():
    """1,319 items, 15 % discordant: SE 1.07 points (the guard's margin is 2)."""
    sd = 100 * math.sqrt(0.15)
    assert sd / math.sqrt(1319) == pytest.approx(1.07, abs=0.005)
    assert equivalence_power(1319, margin=2 / sd) < 0.4
    assert equivalence_power(1319, margin=3 / sd) > 0.7


def test_power_refuses_what_has_none():
    with pytest.raises(ValueError, match="2 clusters or more"):
        paired_power(0.5, 1)
    with pytest.raises(ValueError, match="must not be zero"):
        clusters_needed(0.0)
    with pytest.raises(ValueError, match="between alpha and 1"):
        smallest_detectable_effect(10, power=0.04)
