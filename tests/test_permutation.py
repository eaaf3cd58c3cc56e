"""Sign flips, max-T and distances against brute force, scipy and published values."""

import itertools

import numpy as np
import pytest
import scipy.stats

from emoreg.statistics.distances import swapped_distances
from emoreg.statistics.effects import wasserstein_1
from emoreg.statistics.multiple import false_discovery
from emoreg.statistics.permutation import flip_signs, sign_flip

# Darwin's fifteen pairs of maize, eighths of an inch: Fisher, The Design of Experiments
# (1935), section 21, counts 863 of 2^15 sums that reach the observed 314.
DARWIN = [49.0, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


# -- sign flips ------------------------------------------------------------------------


def test_darwins_maize_has_fishers_p():
    values = np.array(DARWIN)
    found = sign_flip(values, n_flips=2**15)
    assert found.exact
    assert found.n_flips == 2**15
    assert found.p == 2 * 863 / 2**15
    assert sign_flip(values, n_flips=2**15, alternative="greater").p == 863 / 2**15
    # All that do not lie strictly above, the 28 ties included.
    assert sign_flip(values, n_flips=2**15, alternative="less").p == 1 - 835 / 2**15


def test_t_is_scipys():
    values = np.random.default_rng(0).normal(0.3, 1.0, size=(20, 3, 2))
    found = sign_flip(values, n_flips=100)
    assert found.p.shape == (3, 2)
    theirs = np.asarray(scipy.stats.ttest_1samp(values, 0)[0])
    np.testing.assert_allclose(found.t, theirs)


def test_drawn_flips_count_the_observed_one():
    values = np.random.default_rng(1).normal(5.0, 1.0, size=40)
    found = sign_flip(values, n_flips=199)
    assert not found.exact
    assert found.p == 1 / 200
    near = sign_flip(np.random.default_rng(2).normal(0.25, 1.0, size=(15, 8)))
    exact = sign_flip(
        np.random.default_rng(2).normal(0.25, 1.0, size=(15, 8)), n_flips=2**15
    )
    assert (near.exact, exact.exact) == (False, True)
    np.testing.assert_allclose(near.p, exact.p, atol=0.02)


def test_the_same_seed_gives_the_same_flips_to_every_call():
    values = np.random.default_rng(0).normal(0.3, 1.0, size=(30, 4))
    whole = sign_flip(values, n_flips=500)
    np.testing.assert_array_equal(sign_flip(values[:, 2], n_flips=500).p, whole.p[2])
    other = sign_flip(values, n_flips=500, seed=1)
    assert not np.array_equal(other.p, whole.p)


def test_chunks_do_not_change_the_p_values(monkeypatch):
    values = np.random.default_rng(0).normal(0.3, 1.0, size=(30, 7))
    whole = sign_flip(values, n_flips=500)
    monkeypatch.setattr("emoreg.statistics.permutation._CHUNK_NUMBERS", 200)
    split = sign_flip(values, n_flips=500)
    np.testing.assert_array_equal(split.p, whole.p)
    np.testing.assert_array_equal(split.p_max, whole.p_max)


def test_nothing_is_no_evidence_and_agreement_is_all_there_is():
    found = sign_flip(np.stack([np.zeros(5), np.full(5, 0.1)], axis=1))
    np.testing.assert_array_equal(found.t, [0.0, np.inf])
    np.testing.assert_array_equal(found.p, [1.0, 2 / 32])


def test_useless_input_is_refused():
    with pytest.raises(ValueError, match="`n_flips` must be at least 1"):
        sign_flip(np.ones(4), n_flips=0)
    gap = np.array([1.0, np.nan, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        sign_flip(gap)
    assert sign_flip(gap, missing="drop").dropped == 1


def _slow_max_t(values, alternative):
    """Step-down max-T spelled out, by t statistics of every flip."""
    orient = {"two-sided": np.abs, "greater": np.array, "less": np.negative}
    t = orient[alternative](scipy.stats.ttest_1samp(values, 0)[0])
    order = np.argsort(-t)
    counts = np.zeros(len(t))
    for signs in itertools.product([1, -1], repeat=len(values)):
        flipped = values * np.array(signs)[:, None]
        s = orient[alternative](scipy.stats.ttest_1samp(flipped, 0)[0])
        for rank in range(len(t)):
            rest = order[rank:]
            counts[rank] += s[rest].max() >= t[order[rank]] - 1e-9
    adjusted = np.empty(len(t))
    adjusted[order] = np.maximum.accumulate(counts / 2 ** len(values))
    return adjusted


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_max_t_is_the_step_down_of_all_flips(alternative):
    generator = np.random.default_rng(4)
    shared = generator.normal(size=(8, 1))
    values = shared + generator.normal([0.0, 1.2, 0.4, 0.0], 1.0, size=(8, 4))
    values[:, 3] *= 100.0  # units must not matter
    found = sign_flip(values, alternative=alternative)
    np.testing.assert_allclose(found.p_max, _slow_max_t(values, alternative))
    assert (found.p_max >= found.p).all()


def test_copies_of_a_figure_cost_nothing_and_strangers_do():
    generator = np.random.default_rng(0)
    one = generator.normal(0.45, 1.0, size=(30, 1))
    alone = sign_flip(one).p[0]
    copies = sign_flip(np.repeat(one, 50, axis=1))
    np.testing.assert_allclose(copies.p_max, alone)
    strangers = sign_flip(np.hstack([one, generator.normal(size=(30, 49))]))
    assert strangers.p_max[0] > 5 * alone


def test_p_is_uniform_for_clusters_and_not_for_tokens():
    generator = np.random.default_rng(0)
    n, tokens, sets = 24, 8, 2000
    data = generator.normal(size=(n, 1, sets)) + generator.normal(
        size=(n, tokens, sets)
    )
    p = sign_flip(data.mean(axis=1), n_flips=999).p
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001
    assert 0.035 <= (p <= 0.05).mean() <= 0.065
    naive = sign_flip(data.reshape(n * tokens, sets), n_flips=999).p
    assert (naive <= 0.05).mean() > 0.3


def test_max_t_errs_in_one_family_of_twenty():
    generator = np.random.default_rng(1)
    shared = generator.normal(size=(400, 20, 1))
    families = shared + generator.normal(size=(400, 20, 15))
    found = [sign_flip(family, n_flips=499) for family in families]
    any_false = np.mean([each.p_max.min() <= 0.05 for each in found])
    unadjusted = np.mean([each.p.min() <= 0.05 for each in found])
    assert any_false <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert any_false >= 0.02
    assert unadjusted > 0.15


def test_every_flip_occurs_once_when_all_are_tried():
    signs = flip_signs(5, n_flips=32, seed=0)
    assert len(np.unique(signs, axis=0)) == 32
    assert (signs[0] == 1).all()


# -- distances -------------------------------------------------------------------------


def test_distances_are_scipys():
    generator = np.random.default_rng(0)
    first = np.round(generator.normal(size=(20, 1, 3)), 1)  # with ties
    second = np.round(generator.normal(0.5, 2.0, size=(20, 1, 3)), 1)
    found = swapped_distances(first, second, n_flips=10)
    for k in range(3):
        one, two = first[:, 0, k], second[:, 0, k]
        assert found.ks[k] == pytest.approx(scipy.stats.ks_2samp(one, two)[0])
        assert found.wasserstein[k] == pytest.approx(wasserstein_1(one, two))


def test_every_cluster_weighs_the_same_however_many_numbers_it_has():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(9, 5)), generator.normal(1, 1, size=(9, 3))
    first[2:, 3:] = np.nan
    weights = 1 / (9 * (~np.isnan(first)).sum(axis=1, keepdims=True))
    there = ~np.isnan(first)
    plain = scipy.stats.wasserstein_distance(
        first[there],
        second.ravel(),
        np.broadcast_to(weights, first.shape)[there],
        np.full(27, 1 / 27),
    )
    assert swapped_distances(first, second).wasserstein == pytest.approx(plain)


def test_p_is_the_share_of_swapped_clusters():
    """All 64 swaps spelled out, with scipy's distances; whole numbers make ties."""
    generator = np.random.default_rng(3)
    first = generator.integers(0, 5, size=(6, 2)).astype(float)
    second = generator.integers(1, 7, size=(6, 2)).astype(float)
    found = swapped_distances(first, second)
    assert found.exact
    ks, area = [], []
    for swap in itertools.product([False, True], repeat=6):
        pick = np.array(swap)[:, None]
        one, two = np.where(pick, second, first), np.where(pick, first, second)
        ks.append(scipy.stats.ks_2samp(one.ravel(), two.ravel())[0])
        area.append(wasserstein_1(one.ravel(), two.ravel()))
    ks, area = np.array(ks), np.array(area)
    assert found.ks_p == np.mean(ks >= ks[0] - 1e-9)
    assert found.wasserstein_p == np.mean(area >= area[0] - 1e-9)
    assert found.wasserstein_null == pytest.approx(area.mean())


def test_a_change_of_shape_is_found_where_the_mean_stays():
    generator = np.random.default_rng(0)
    first = generator.normal(size=(60, 1))
    second = 2.5 * generator.normal(size=(60, 1))
    second -= second.mean() - first.mean()
    found = swapped_distances(first, second, n_flips=999)
    assert found.wasserstein_p < 0.01
    assert sign_flip((second - first)[:, 0]).p > 0.9


def test_distance_p_is_uniform_under_clustering_and_scipys_is_not():
    generator = np.random.default_rng(5)
    n, k, sets = 16, 4, 400
    one, two = (
        generator.normal(size=(n, 1, sets)) + 0.5 * generator.normal(size=(n, k, sets))
        for _ in range(2)
    )
    found = swapped_distances(one, two, n_flips=199)
    for p in (found.ks_p, found.wasserstein_p):
        assert 0.01 <= (p <= 0.05).mean() <= 0.085
    naive = [
        scipy.stats.ks_2samp(one[..., s].ravel(), two[..., s].ravel())[1]
        for s in range(sets)
    ]
    assert np.mean(np.array(naive) <= 0.05) > 0.15


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((3, 1)), np.ones((4, 1)), "same 2 clusters or more"),
        (np.ones((3, 1)), np.full((3, 1), np.inf), "infinities"),
        (np.ones((2, 2)), np.array([[1.0, np.nan], [np.nan, np.nan]]), "one without"),
    ],
)
def test_distances_refuse_what_they_cannot_compare(first, second, message):
    with pytest.raises(ValueError, match=message):
        swapped_distances(first, second)


# -- many p-values ---------------------------------------------------------------------


def test_the_four_of_benjamini_and_hochberg_are_rejected():
    """Benjamini and Hochberg 1995, section 4.1: four of fifteen; Bonferroni three."""
    p = np.array(
        [
            *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
            *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
        ]
    )
    assert (false_discovery(p) <= 0.05).sum() == 4
    assert (p * 15 <= 0.05).sum() == 3
    brute = [min(p[j] * 15 / (j + 1) for j in range(i, 15)) for i in range(15)]
    np.testing.assert_allclose(false_discovery(p), brute)
    harmonic = sum(1 / j for j in range(1, 16))
    any_ = np.minimum(np.array(brute) * harmonic, 1.0)
    np.testing.assert_allclose(false_discovery(p, dependence="any"), any_)


def test_what_was_not_tested_does_not_count():
    p = np.array([[0.01, np.nan], [0.02, 0.5]])
    found = false_discovery(p)
    assert np.isnan(found[0, 1])
    np.testing.assert_allclose(found[~np.isnan(p)], [0.03, 0.03, 0.5])
    assert np.isnan(false_discovery(np.array([np.nan]))).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_discovery(np.array([2.5]))
