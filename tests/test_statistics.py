"""Bootstrap intervals and effect sizes against scipy, brute force and hand cases."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from threadpoolctl import threadpool_info

from emoreg.statistics.bootstrap import (
    bootstrap_mean,
    bootstrap_ratio,
    resample_counts,
)
from emoreg.statistics.effects import (
    bootstrap_cliffs_delta,
    cliffs_delta,
    paired_effects,
    wasserstein_1,
)
from emoreg.statistics.pair_intervals import bootstrap_pair
from emoreg.statistics.threads import in_threads

SINGLE = 1e-6  # resampled deviations are in single precision


def resampled(intervals):
    assert intervals.resamples is not None
    return intervals.resamples


def crossing(ratio):
    assert ratio.crossing is not None
    return ratio.crossing


@pytest.fixture
def skewed():
    return np.random.default_rng(3).gamma(1.0, size=(40, 3))


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bounds_agree_with_scipy(skewed, method):
    ours = bootstrap_mean(skewed, method=method, n_resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (skewed,), np.mean, method=method, n_resamples=20_000, rng=1, axis=0
    ).confidence_interval
    width = ours.high - ours.low
    np.testing.assert_allclose(ours.estimate, skewed.mean(axis=0), rtol=1e-12)
    assert np.all(np.abs(ours.low - theirs.low) < 0.03 * width)
    assert np.all(np.abs(ours.high - theirs.high) < 0.03 * width)


def test_bca_moves_towards_the_tail_of_a_skewed_sample(skewed):
    """Negative control for the agreement: the two methods do differ here."""
    bca = bootstrap_mean(skewed, method="bca")
    plain = bootstrap_mean(skewed, method="percentile")
    assert np.all(bca.low > plain.low)
    assert np.all(bca.high > plain.high)


def test_ties_with_the_estimate_are_half_below_it(monkeypatch):
    """A share is often its resample too, whatever rounding makes of the numbers."""
    hits = (np.arange(40) < 13).astype(float)[:, None]
    odd = 0.1 * hits + 0.3  # no sum of these is exact
    found, moved = bootstrap_mean(hits), bootstrap_mean(odd)
    theirs = scipy.stats.bootstrap(
        (hits[:, 0],), np.mean, n_resamples=20_000, method="BCa", rng=0
    ).confidence_interval
    assert found.at(0).low == pytest.approx(theirs.low, abs=1 / 40)
    for end in ("low", "high"):
        same = 0.1 * getattr(found, end) + 0.3
        np.testing.assert_allclose(getattr(moved, end), same, rtol=SINGLE)
    # Control: ties that rounding breaks shift the interval.
    monkeypatch.setattr("emoreg.statistics.bounds._ROUNDING", 0)
    broken = bootstrap_mean(odd)
    assert not np.allclose(broken.low, moved.low) or not np.allclose(
        broken.high, moved.high
    )


def test_resamples_are_the_means_of_the_counted_clusters(skewed):
    kept = resampled(bootstrap_mean(skewed, n_resamples=50, seed=4))
    counts = resample_counts(40, n_resamples=50, seed=4)
    assert np.all(counts.sum(axis=1) == 40)
    rows = np.repeat(np.arange(40), counts[7].astype(int))
    np.testing.assert_allclose(kept[7], skewed[rows].mean(axis=0))


def test_chunks_do_not_change_the_bounds(skewed, monkeypatch):
    whole = bootstrap_mean(skewed, n_resamples=500)
    monkeypatch.setattr("emoreg.statistics.bootstrap._CHUNK_NUMBERS", 500)
    split = bootstrap_mean(skewed, n_resamples=500)
    np.testing.assert_allclose(split.low, whole.low, rtol=SINGLE)
    np.testing.assert_allclose(resampled(split), resampled(whole), rtol=SINGLE)


def test_figures_on_several_cores_are_those_of_one(monkeypatch):
    x = np.random.default_rng(0).normal(size=(30, 40))
    monkeypatch.setattr("emoreg.statistics.bootstrap._CHUNK_NUMBERS", 4_000)
    found = {}
    for most in (4, 1):
        monkeypatch.setattr("emoreg.statistics.threads.MOST", most)
        found[most] = bootstrap_mean(x, n_resamples=2_000)
    for name in ("estimate", "low", "high", "resamples"):
        assert np.array_equal(getattr(found[4], name), getattr(found[1], name))
    with pytest.raises(ZeroDivisionError):  # what fails in a thread is not lost
        in_threads(lambda k: 1 / k, [1, 0])
    assert in_threads(lambda k: k * k, range(9)) == [k * k for k in range(9)]


def test_threads_share_the_cores_with_their_products(monkeypatch):
    def most(_: int) -> int:
        pools = threadpool_info()
        return max(p["num_threads"] for p in pools if p["user_api"] == "blas")

    alone = most(0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2), raising=False)
    assert in_threads(most, range(2)) == [1, 1]
    assert in_threads(most, [0]) == [alone]  # one item has all of them
    assert most(0) == alone


def test_one_seed_pairs_the_resamples_of_two_calls(skewed):
    a, b = skewed[:, 0], skewed[:, 1]
    apart = resampled(bootstrap_mean(a)) - resampled(bootstrap_mean(b))
    spread = (a - b).std()
    np.testing.assert_allclose(
        apart, resampled(bootstrap_mean(a - b)), rtol=0, atol=SINGLE * spread
    )
    other = resampled(bootstrap_mean(b, seed=1))
    assert not np.allclose(resampled(bootstrap_mean(a)) - other, apart)


def test_ratio_is_the_quantile_of_paired_ratios():
    generator = np.random.default_rng(0)
    below = 2 + generator.normal(size=30)
    above = 0.5 * below + 0.1 * generator.normal(size=30)
    ratio = bootstrap_ratio(above, below)
    paired = resampled(bootstrap_mean(above)) / resampled(bootstrap_mean(below))
    assert ratio.at().low == pytest.approx(np.quantile(paired, 0.025))
    assert ratio.at().high == pytest.approx(np.quantile(paired, 0.975))
    assert crossing(ratio) == 0
    # Breaking the pairing must cost precision, or nothing was paired.
    loose = bootstrap_ratio(generator.permutation(above), below)
    assert loose.at().width > 2 * ratio.at().width


def test_ratio_over_nothing_reports_the_crossings():
    noise = np.random.default_rng(1).normal(size=30)
    ratio = bootstrap_ratio(noise + 1, noise - noise.mean() + 0.01)
    assert crossing(ratio) > 0.3


def test_constant_figures_have_an_interval_of_no_width():
    interval = bootstrap_mean(np.full((9, 2), 0.1)).at(1)
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_no_figures_are_no_error():
    assert bootstrap_mean(np.empty((5, 0))).low.shape == (0,)


def test_missing_clusters_are_refused_or_dropped_with_a_count():
    values = np.arange(12.0).reshape(6, 2)
    values[2, 1] = np.nan
    with pytest.raises(ValueError, match="found some in 1 of 6 clusters"):
        bootstrap_mean(values)
    dropped = bootstrap_mean(values, missing="drop")
    assert (dropped.n, dropped.dropped) == (5, 1)
    whole = bootstrap_mean(np.delete(values, 2, axis=0))
    np.testing.assert_array_equal(dropped.low, whole.low)
    ratio = bootstrap_ratio(values[:, 1], values[:, 0] + 1, missing="drop")
    assert ratio.n == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, np.inf, 2.0]), "infinities"),
        (np.array([1.0]), "at least 2 complete clusters, found 1 of 1"),
    ],
)
def test_useless_input_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values)


def test_coverage_holds_for_clusters_and_fails_for_tokens():
    """95 % intervals over 32 clusters cover; taking tokens as the unit does not."""
    generator = np.random.default_rng(0)
    simulations, n, tokens = 3000, 32, 12
    clusters = generator.normal(size=(n, simulations, 1))
    data = clusters + generator.normal(size=(n, simulations, tokens))
    means = data.mean(axis=2)
    for method in ("percentile", "bca"):
        interval = bootstrap_mean(means, method=method, n_resamples=2000, keep=False)
        covered = 1 - interval.excludes(0.0).mean()
        assert 0.93 <= covered <= 0.97, (method, covered)
    flat = data.transpose(0, 2, 1).reshape(n * tokens, simulations)[:, :500]
    naive = bootstrap_mean(flat, method="percentile", n_resamples=1000, keep=False)
    assert 1 - naive.excludes(0.0).mean() < 0.6


def test_a_pair_at_once_is_what_its_parts_are_alone(monkeypatch):
    monkeypatch.setattr("emoreg.statistics.bootstrap._CHUNK_NUMBERS", 2_000)
    generator = np.random.default_rng(7)
    before = generator.gamma(1.0, size=(30, 2, 3))
    after = 0.4 * before + 0.1 * generator.normal(size=before.shape)
    after[3, 0, 0] = np.nan
    wanted = np.array([[True, False, True], [False, True, True]])
    how: Any = {"n_resamples": 400, "seed": 2, "missing": "drop", "expand": True}
    found = bootstrap_pair(before, after, ratios=wanted, **how)
    kept = np.arange(30) != 3  # the prompt is left out of both
    del how["missing"]
    for own, values in (
        (found.first, before),
        (found.second, after),
        (found.change, after - before),
    ):
        alone = bootstrap_mean(values[kept], **how)
        for name in ("estimate", "low", "high"):
            np.testing.assert_allclose(getattr(own, name), getattr(alone, name))
    alone = bootstrap_ratio(after[kept][:, wanted], before[kept][:, wanted], **how)
    for name in ("estimate", "low", "high", "crossing"):
        ratio = getattr(found.ratio, name)
        np.testing.assert_allclose(ratio[wanted], getattr(alone, name), rtol=SINGLE)
        assert np.isnan(ratio[~wanted]).all()
    assert (found.ratio.n, found.ratio.dropped) == (29, 1)
    unlike = bootstrap_mean(after[kept] - before[kept], **(how | {"seed": 3}))
    assert not np.allclose(found.change.low, unlike.low)


def _brute_delta(first, second):
    return np.mean(np.sign(first[:, None] - second[None, :]))


def test_cliffs_delta_equals_all_pairs_with_ties():
    generator = np.random.default_rng(2)
    first = generator.integers(0, 6, size=(17, 4)).astype(float)
    second = generator.integers(1, 7, size=(23, 4)).astype(float)
    brute = [_brute_delta(first[:, k], second[:, k]) for k in range(4)]
    np.testing.assert_allclose(cliffs_delta(first, second), brute)


def test_cliffs_delta_by_hand():
    assert cliffs_delta(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert cliffs_delta(np.array([1.0, 1.0]), np.array([1.0])) == 0
    assert cliffs_delta(np.array([1.0, 3.0]), np.array([2.0])) == 0
    assert np.isnan(cliffs_delta(np.array([1.0, np.nan]), np.array([2.0])))


def test_cliffs_interval_resamples_pairs():
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=(2, 12, 3))
    first[:, 0] += 0.8
    first[:, 1:] = generator.integers(0, 3, size=(12, 2))  # ties
    second[:, 1:] = generator.integers(0, 3, size=(12, 2))
    found = bootstrap_cliffs_delta(first, second, n_resamples=200)
    counts = resample_counts(12, n_resamples=200, seed=0).astype(int)
    brute = [
        [_brute_delta(first[rows, k], second[rows, k]) for k in range(3)]
        for rows in (np.repeat(np.arange(12), drawn) for drawn in counts)
    ]
    np.testing.assert_allclose(resampled(found), brute, atol=1e-12)
    low, high = np.quantile(brute, [0.025, 0.975], axis=0)
    np.testing.assert_allclose((found.low, found.high), (low, high), atol=1e-12)


def test_paired_effects_by_hand():
    first, second = np.array([0.0, 2.0, 4.0]), np.array([1.0, 4.0, 7.0])
    effects = paired_effects(first, second)
    assert effects.d_z == pytest.approx(2.0 / 1.0)
    assert effects.d_av == pytest.approx(2.0 / ((2.0 + 3.0) / 2))
    assert np.isnan(paired_effects(first, first + 1).d_z)
    with pytest.raises(ValueError, match="same shape"):
        paired_effects(first, second[:2])


def test_wasserstein_of_a_shift_is_the_shift():
    sample = np.random.default_rng(0).normal(size=50)
    assert wasserstein_1(sample, sample + 0.7) == pytest.approx(0.7)
