"""Paired changes against scipy and brute force, and silence where nothing changed."""

import json

import numpy as np
import pytest
import scipy.stats
from comparison_tables import FAMILIES, synthetic

from emoreg.comparison.changes import SIDES, change_rows
from emoreg.comparison.compare import compare
from emoreg.comparison.report import render
from emoreg.statistics.distances import bootstrap_wasserstein

READ = ("desperate", "calm", "upset", "worried", "serene", "proud", "guilty", "sad")


def measured(**changes):
    return synthetic(
        **{"emotions": READ, "layers": (9, 21), "n_prompts": 24, **changes}
    )


@pytest.fixture(scope="module")
def found():
    return compare(
        measured(),
        measured(scale=0.2, seed=1),
        arms={"control": measured(seed=2)},
        roles=FAMILIES,
        n_resamples=2000,
    )


def levels(found, arm, side, target):
    own = getattr(found.levels[arm], side)
    index = found.summary.index(found.audit_reader, "audit", target)
    return own[(slice(None), *index)]


def test_each_row_is_that_of_the_levels(found):
    changes = found.changes[0]
    for row in change_rows(changes):
        one, two = (levels(found, a, row.side, row.target) for a in ("before", "after"))
        gap = two - one
        assert row.mean.estimate == pytest.approx(gap.mean())
        assert row.d_z.estimate == pytest.approx(gap.mean() / gap.std(ddof=1))
        spread = (one.std(ddof=1) + two.std(ddof=1)) / 2
        assert row.d_av.estimate == pytest.approx(gap.mean() / spread)
        for value in (row.mean, row.d_z, row.d_av):
            assert value.low < value.estimate < value.high
        distance = scipy.stats.wasserstein_distance(one, two)
        assert row.wasserstein.estimate == pytest.approx(distance)
        ks: tuple[float, float] = tuple(scipy.stats.ks_2samp(one, two))
        assert row.ks == pytest.approx(ks[0])


def test_p_values_are_those_of_scipys_permutations(found):
    for row in change_rows(found.changes[0])[:6]:
        one, two = (levels(found, a, row.side, row.target) for a in ("before", "after"))
        other = scipy.stats.permutation_test(
            (two, one),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=4000,
            rng=np.random.default_rng(0),
        )
        assert row.p == pytest.approx(other.pvalue, abs=0.04)
        assert row.p <= row.p_readers


def test_a_planted_change_shows_where_it_was_planted(found):
    """The terms act on failing versions; passing ones are the control within."""
    rows = {(row.target, row.side): row for row in change_rows(found.changes[0])}
    for side in ("failing", "slope"):
        row = rows["audit distress", side]
        assert row.p_readers < 0.01
        assert row.mean.high < 0 < rows["calm", side].mean.low
        assert row.wasserstein.estimate > row.wasserstein_by_chance
    # 18 figures that nothing moved: the passing ones, at a level of one in a thousand.
    assert all(rows[t, "passing"].p > 0.001 for t in found.headline_targets)


def test_emotions_that_did_not_change_are_not_called_changed(found):
    q = found.changes[0].q
    assert set(q) == set(READ)
    assert max(q[e] for e in ("desperate", "calm", "upset", "serene")) < 0.01
    again = compare(measured(), measured(seed=5), roles=FAMILIES, n_resamples=1000)
    assert min(again.changes[0].q.values()) > 0.05  # the same model, measured twice


def test_after_is_held_against_the_control_arm_too(found):
    assert [c.against for c in found.changes] == ["before", "control"]
    index = SIDES.index("slope"), found.headline_targets.index("audit distress")
    place = found.summary.index(found.audit_reader, "audit", "audit distress")
    for own, figure in zip(
        found.changes,
        (found.summary.arms["after"].change, found.summary.beyond_control),
        strict=True,
    ):
        assert own.mean.at(*index) == figure.at(*place)


def test_the_deciles_are_shifted_by_what_was_added():
    more = compare(
        measured(), measured(extra=1.5), roles=FAMILIES, n_resamples=500
    ).changes[0]
    assert more.shifted == ("audit distress", "desperate", "calm")
    np.testing.assert_allclose(more.shifts["failing"].shift, 1.5, atol=1e-3)
    np.testing.assert_allclose(more.shifts["passing"].shift, 0.0, atol=1e-6)


def test_resampled_distances_are_scipys_with_weights():
    random = np.random.default_rng(0)
    one, two = random.normal(size=(2, 9, 2))
    two = np.round(two + 0.5, 1)
    interval = bootstrap_wasserstein(one, two, n_resamples=60, seed=3)
    counts = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=60)
    for k in range(2):
        drawn = [
            scipy.stats.wasserstein_distance(one[:, k], two[:, k], c, c) for c in counts
        ]
        ends = np.quantile(drawn, [0.025, 0.975])
        np.testing.assert_allclose((interval.low[k], interval.high[k]), ends)


def test_the_document_holds_them(found):
    document = json.loads(found.to_json())["changes"]
    own = document[0]
    assert (own["arm"], own["against"], own["n"]) == ("after", "before", 24)
    assert len(own["rows"]) == 3 * len(found.headline_targets)
    assert own["smallest_detectable_d_z"] == pytest.approx(0.598, abs=0.01)
    assert len(own["quantile_shifts"]["failing"]["calm"]["shift"]) == 9


def test_the_page_says_what_so_many_tasks_can_show(found):
    page = render(found)
    assert "With 24 tasks a mean change of 0.60 standard deviations" in page
    assert "counts all 8 emotions" in page


def test_equal_arms_have_no_effect_and_no_warning():
    table = measured(n_prompts=9)
    same = compare(table, table, roles=FAMILIES, n_resamples=200)
    row = change_rows(same.changes[0])[0]
    assert (row.mean.low, row.mean.high, row.wasserstein.estimate) == (0, 0, 0)
    assert row.p == 1
    assert np.isnan(row.d_z.estimate)
    assert "all alike" in render(same)


def test_two_prompts_have_no_block():
    few = measured(n_prompts=2)
    assert compare(few, few, roles=FAMILIES, n_resamples=100).changes == ()
