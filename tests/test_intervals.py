"""Intervals of effects, quantiles, ratios, slopes and seeds; and the examples."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import scipy.stats

import emoreg.statistics
from emoreg.statistics.bands import simultaneous_band
from emoreg.statistics.bootstrap import bootstrap_mean, bootstrap_ratio, resample_counts
from emoreg.statistics.effect_intervals import bootstrap_paired_effects
from emoreg.statistics.effects import bootstrap_cliffs_delta, paired_effects
from emoreg.statistics.fieller import fieller_ratio
from emoreg.statistics.quantiles import DECILES, quantile_shift
from emoreg.statistics.seeds import bootstrap_seeds, seed_interval
from emoreg.statistics.slopes import cluster_slopes


@pytest.mark.parametrize(
    "name", [found.name for found in pkgutil.iter_modules(emoreg.statistics.__path__)]
)
def test_the_examples_say_what_comes_out(name):
    module = importlib.import_module(f"emoreg.statistics.{name}")
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0


def pairs(n, sets, seed=0, shift=0.5):
    """Pairs of prompt means, each prompt with a level of its own."""
    generator = np.random.default_rng(seed)
    level = generator.normal(size=(n, sets))
    first = level + 0.6 * generator.normal(size=(n, sets))
    return first, level + shift + 0.6 * generator.normal(size=(n, sets))


# -- expansion -------------------------------------------------------------------------


def test_expanded_intervals_cover_with_few_clusters():
    values = np.random.default_rng(0).normal(size=(12, 4000))
    settings = {"n_resamples": 2000, "keep": False, "method": "percentile"}
    plain = bootstrap_mean(values, **settings)
    wide = bootstrap_mean(values, expand=True, **settings)
    assert 1 - plain.excludes(0.0).mean() < 0.925
    assert 0.93 <= 1 - wide.excludes(0.0).mean() <= 0.97
    assert wide.confidence == 0.95
    # As wide as t's for normal numbers; the same as before for many clusters.
    t = scipy.stats.t.interval(0.95, 11, scale=scipy.stats.sem(values))
    share = np.mean(wide.high - wide.low) / np.mean(t[1] - t[0])
    assert share == pytest.approx(1.0, abs=0.03)
    many = np.random.default_rng(1).normal(size=2000)
    close = [
        bootstrap_mean(many, n_resamples=500, expand=e).at() for e in (False, True)
    ]
    assert close[1].width == pytest.approx(close[0].width, rel=0.01)


def test_two_clusters_have_a_wide_interval_and_no_hole():
    """Their level rounds to 1, whose normal quantile is infinite."""
    found = bootstrap_mean(np.array([[1.0], [3.0]]), expand=True).at(0)
    assert (found.low, found.estimate, found.high) == (1.0, 2.0, 3.0)


def test_a_ratio_can_be_expanded_too():
    first, second = pairs(10, 1, shift=0.0)
    plain = bootstrap_ratio(second + 3, first + 3).at(0)
    wide = bootstrap_ratio(second + 3, first + 3, expand=True).at(0)
    assert plain.width < wide.width < 1.5 * plain.width


# -- effects ---------------------------------------------------------------------------


def test_bounds_of_effects_agree_with_scipy():
    first, second = pairs(40, 2)
    found = bootstrap_paired_effects(first, second, n_resamples=20_000)

    def d_z(one, two, axis=-1):
        gap = two - one
        return gap.mean(axis=axis) / gap.std(axis=axis, ddof=1)

    def d_av(one, two, axis=-1):
        spread = one.std(axis=axis, ddof=1) + two.std(axis=axis, ddof=1)
        return 2 * (two - one).mean(axis=axis) / spread

    for ours, effect in ((found.d_z, d_z), (found.d_av, d_av)):
        for k in range(2):
            theirs = scipy.stats.bootstrap(
                (first[:, k], second[:, k]),
                effect,
                paired=True,
                vectorized=True,
                n_resamples=20_000,
                method="BCa",
                rng=1,
            ).confidence_interval
            width = ours.at(k).width
            assert ours.at(k).low == pytest.approx(theirs.low, abs=0.04 * width)
            assert ours.at(k).high == pytest.approx(theirs.high, abs=0.04 * width)
    np.testing.assert_allclose(found.d_z.estimate, paired_effects(first, second).d_z)


def test_effects_do_not_see_the_unit_or_a_large_offset():
    first, second = pairs(30, 1)
    plain = bootstrap_paired_effects(first, second, n_resamples=500)
    moved = bootstrap_paired_effects(
        1e6 + 100 * first, 1e6 + 100 * second, n_resamples=500
    )
    np.testing.assert_allclose(moved.d_z.low, plain.d_z.low, rtol=1e-6)
    np.testing.assert_allclose(moved.d_av.high, plain.d_av.high, rtol=1e-6)


def test_intervals_of_effects_and_of_deltas_cover():
    first, second = pairs(32, 1500, seed=1)
    found = bootstrap_paired_effects(first, second, n_resamples=1000)
    d_z = 0.5 / np.sqrt(2 * 0.36)
    d_av = 0.5 / np.sqrt(1.36)
    assert 0.93 <= 1 - found.d_z.excludes(d_z).mean() <= 0.97
    assert 0.93 <= 1 - found.d_av.excludes(d_av).mean() <= 0.97
    few = bootstrap_cliffs_delta(first[:, :600], second[:, :600], n_resamples=1000)
    delta = float(1 - 2 * scipy.stats.norm.cdf(0.5 / np.sqrt(2 * 1.36)))
    assert 0.92 <= 1 - few.excludes(delta).mean() <= 0.98
    # Each prompt taken eight times over, as if tokens were prompts.
    naive = bootstrap_paired_effects(
        np.repeat(first[:, :300], 8, axis=0),
        np.repeat(second[:, :300], 8, axis=0),
        n_resamples=300,
    )
    assert 1 - naive.d_z.excludes(d_z).mean() < 0.7


# -- quantiles and bands ---------------------------------------------------------------


def test_quantiles_are_those_of_harrell_and_davis():
    first, second = pairs(37, 2)
    found = quantile_shift(first, second, n_resamples=50)
    for k in range(2):
        one, two = (
            scipy.stats.mstats.hdquantiles(sample[:, k], prob=DECILES).filled()
            for sample in (first, second)
        )
        np.testing.assert_allclose(found.first[:, k], one)
        np.testing.assert_allclose(found.shift[:, k], two - one, atol=1e-12)


@pytest.mark.parametrize("prompts", [15, 400])  # of many, a part is looked up
def test_a_resample_is_the_quantile_of_the_drawn_prompts(monkeypatch, prompts):
    first, second = pairs(prompts, 1)
    kept = {}

    def spy(estimate, resamples, **_):
        kept["resamples"] = resamples
        return estimate, estimate

    monkeypatch.setattr("emoreg.statistics.quantiles.simultaneous_band", spy)
    monkeypatch.setattr("emoreg.statistics.quantiles._CHUNK_NUMBERS", 4 * prompts)
    quantile_shift(first, second, n_resamples=30, seed=3)
    counts = resample_counts(prompts, n_resamples=30, seed=3)
    rows = np.repeat(np.arange(prompts), counts[7].astype(int))
    one, two = (
        scipy.stats.mstats.hdquantiles(sample[rows, 0], prob=DECILES).filled()
        for sample in (first, second)
    )
    np.testing.assert_allclose(kept["resamples"][7], two - one, atol=1e-12)


def test_the_band_covers_all_deciles_at_once_and_single_intervals_do_not():
    first, second = pairs(40, 400, seed=2)
    found = quantile_shift(first, second, n_resamples=600)
    inside = (found.low <= 0.5) & (found.high >= 0.5)
    assert 0.92 <= inside.all(axis=0).mean() <= 0.985
    each = [
        quantile_shift(first, second, levels=(level,), n_resamples=600)
        for level in (0.1, 0.5, 0.9)
    ]
    alone = [((one.low <= 0.5) & (one.high >= 0.5))[0] for one in each]
    assert np.mean(alone) > 0.92
    assert np.all(alone, axis=0).mean() < 0.9


def test_a_band_is_as_wide_as_the_points_are_many_and_unlike():
    rows = np.random.default_rng(0).normal(size=(20_000, 1)) * np.ones(5)
    strangers = np.random.default_rng(0).normal(size=(20_000, 5))
    alike, unlike = (
        simultaneous_band(np.zeros(5), each, n=10**6)[1][0]
        for each in (rows, strangers)
    )
    assert alike == pytest.approx(scipy.stats.norm.ppf(0.975), abs=0.05)
    sidak = scipy.stats.norm.ppf((1 + 0.95 ** (1 / 5)) / 2)
    assert unlike == pytest.approx(sidak, abs=0.05)
    few = simultaneous_band(np.zeros(5), rows, n=10)[1][0]
    assert few == pytest.approx(scipy.stats.t.ppf(0.975, 9) * np.sqrt(10 / 9), abs=0.07)
    with pytest.raises(ValueError, match="keep the resamples"):
        simultaneous_band(np.zeros(4), rows, n=10)


# -- slopes and ratios -----------------------------------------------------------------


def _dummies(values, exposure, clusters, covariates):
    """All levels and slopes in one design, by numpy."""
    own = (clusters[:, None] == np.unique(clusters)).astype(float)
    design = np.hstack([own, own * exposure[:, None], covariates])
    found = np.linalg.lstsq(design, values, rcond=None)[0]
    return found[own.shape[1] : 2 * own.shape[1]]


def test_slopes_are_those_of_one_design_with_all_prompts():
    generator = np.random.default_rng(0)
    clusters = generator.integers(0, 7, size=60)
    exposure = generator.integers(0, 4, size=60).astype(float)
    covariates = generator.normal(size=(60, 2)) + exposure[:, None]
    values = generator.normal(size=(60, 3)) + clusters[:, None]
    names, slopes = cluster_slopes(values, exposure, clusters, covariates=covariates)
    np.testing.assert_array_equal(names, np.arange(7))
    np.testing.assert_allclose(slopes, _dummies(values, exposure, clusters, covariates))
    plain = cluster_slopes(values, exposure, clusters)[1]
    np.testing.assert_allclose(
        plain, _dummies(values, exposure, clusters, covariates[:, :0])
    )


def test_a_failure_slope_is_failing_minus_passing():
    values = np.array([1.0, 3.0, 5.0, 2.0, 2.5, 9.0])
    failed = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    names, slopes = cluster_slopes(values, failed, ["a", "a", "a", "b", "b", "c"])
    assert names.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(slopes, [3.0, 0.5, np.nan])  # c never passes
    assert bootstrap_mean(slopes, missing="drop", n_resamples=9).dropped == 1


def test_what_goes_with_failure_is_taken_out():
    """Longer answers read higher, and failing ones are longer: no slope is left."""
    generator = np.random.default_rng(1)
    clusters, failed = np.repeat(np.arange(40), 6), np.tile([0.0, 1.0], 120)
    length = 2.0 * failed + generator.normal(size=240)
    values = 0.5 * length + 0.2 * generator.normal(size=240)
    raw = bootstrap_mean(cluster_slopes(values, failed, clusters)[1]).at()
    held = cluster_slopes(values, failed, clusters, covariates=length[:, None])[1]
    assert raw.low > 0.7
    assert abs(bootstrap_mean(held).at().estimate) < 0.1


def test_covariates_that_say_nothing_are_refused():
    failed, clusters = np.tile([0.0, 1.0], 3), np.repeat([0, 1, 2], 2)
    length = np.arange(6.0)[:, None]  # two rows a prompt leave nothing over
    with pytest.raises(ValueError, match="beyond level and slope"):
        cluster_slopes(np.ones(6), failed, clusters, covariates=length)
    with pytest.raises(ValueError, match="finite"):
        cluster_slopes(np.full(6, np.nan), failed, clusters)
    with pytest.raises(ValueError, match="same rows"):
        cluster_slopes(np.ones(6), failed, clusters[:5])


def test_fiellers_ends_are_where_the_t_test_turns():
    first, second = pairs(20, 3)
    below, above = first + 2.0, second + 1.0
    found = fieller_ratio(above, below, confidence=0.9)
    for k in range(3):
        for end in (found.low[k], found.high[k]):
            p = scipy.stats.ttest_1samp(above[:, k] - end * below[:, k], 0)[1]
            assert p == pytest.approx(0.1)
    close = bootstrap_ratio(above, below, confidence=0.9)
    assert np.abs(found.low - close.low).max() < 0.1


def test_a_ratio_to_nothing_has_no_end():
    noise = np.random.default_rng(1).normal(size=30)
    found = fieller_ratio(noise + 1, noise - noise.mean() + 0.01)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_fieller_covers():
    first, second = pairs(16, 3000, seed=3, shift=0.0)
    found = fieller_ratio(second + 1.0, first + 2.0)
    assert 0.94 <= 1 - found.excludes(0.5).mean() <= 0.96


# -- seeds -----------------------------------------------------------------------------


def runs(seeds, n, sets, spread, seed=0):
    """Readings of several trainings at the same prompts, about a mean of zero."""
    generator = np.random.default_rng(seed)
    values = spread * generator.normal(size=(seeds, 1, sets))
    values = values + 0.8 * generator.normal(size=(n, sets))
    return values + 0.6 * generator.normal(size=(seeds, n, sets))


def test_variances_are_those_of_the_analysis_of_variance():
    """Two-way layout by hand: total = seeds + prompts + rest."""
    values = runs(4, 11, 1, 0.5)[..., 0]
    found = seed_interval(values)
    mean, rows, columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    seeds = 11 * ((rows - mean) ** 2).sum()
    prompts = 4 * ((columns - mean) ** 2).sum()
    rest = ((values - mean) ** 2).sum() - seeds - prompts
    s, p, e = seeds / 3, prompts / 10, rest / 30
    assert found.seed_sd == pytest.approx(np.sqrt((s - e) / 11))
    assert found.prompt_sd == pytest.approx(np.sqrt((p - e) / 4))
    assert found.degrees == pytest.approx(
        (s + p - e) ** 2 / (s**2 / 3 + p**2 / 10 + e**2 / 30)
    )
    np.testing.assert_allclose(found.by_seed, rows)
    reach = scipy.stats.t.ppf(0.975, found.degrees) * np.sqrt((s + p - e) / 44)
    assert found.interval.high == pytest.approx(mean + reach)


def test_seeds_that_agree_leave_the_interval_of_prompts():
    """Copies of one training add nothing: a t interval over prompts is left."""
    one = np.random.default_rng(0).normal(size=30)
    found = seed_interval(np.stack([one, one, one])).interval
    plain = scipy.stats.t.interval(0.95, 29, loc=one.mean(), scale=scipy.stats.sem(one))
    np.testing.assert_allclose([found.low, found.high], plain)


def test_a_resample_draws_seeds_and_prompts():
    values = runs(3, 9, 2, 0.5)
    found = bootstrap_seeds(values, n_resamples=4000).interval
    generator = np.random.default_rng(1)
    slow = [
        values[generator.integers(0, 3, 3)][:, generator.integers(0, 9, 9)].mean((0, 1))
        for _ in range(4000)
    ]
    bounds = np.quantile(slow, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([found.low, found.high], bounds, atol=0.06)


def test_seeds_as_the_outer_level_cover_and_prompts_alone_do_not():
    values = runs(5, 40, 2000, spread=0.4, seed=1)
    found = seed_interval(values).interval
    assert 0.93 <= 1 - found.excludes(0.0).mean() <= 0.97
    two = bootstrap_seeds(values[..., :500], n_resamples=1000).interval
    alone = bootstrap_mean(values[..., :500].mean(axis=0), n_resamples=1000)
    assert 0.86 <= 1 - two.excludes(0.0).mean() <= 0.95
    assert 1 - alone.excludes(0.0).mean() < 0.8


def test_one_seed_is_refused():
    with pytest.raises(ValueError, match="at least 2 of them"):
        seed_interval(np.ones((1, 9)))
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_seeds(np.full((3, 9), np.nan))
