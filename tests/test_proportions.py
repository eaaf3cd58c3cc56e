"""Rates over tasks: scipy's exact interval, and coverage where tasks differ."""

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from emoreg.statistics.proportions import difference_of_proportions, proportion

TASKS, SAMPLES = 40, 4


def draw(seed: int, p: float, spread: float = 2.0) -> np.ndarray:
    """Tasks whose own rates follow a beta distribution of the mean `p`."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(p * spread, (1 - p) * spread, TASKS)
    return rng.random((TASKS, SAMPLES)) < rates[:, None]


@pytest.mark.parametrize("happened", [False, True])
def test_where_all_tasks_are_alike_it_is_the_exact_interval_of_the_tasks(
    happened: bool,
) -> None:
    found = proportion(np.full((30, 4), happened))
    exact = binomtest(30 * happened, 30).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.width > 0.1


def test_it_is_clopper_and_pearsons_for_the_effective_number_of_tries() -> None:
    values = draw(0, 0.3)
    rates, p = values.mean(1), values.mean()
    from scipy.stats import t

    ratio = t.ppf(0.975, TASKS * SAMPLES - 1) / t.ppf(0.975, TASKS - 1)
    tries = p * (1 - p) / (rates.var(ddof=1) / TASKS) * ratio**2
    found = proportion(values)
    low = beta.ppf(0.025, p * tries, tries - p * tries + 1)
    high = beta.ppf(0.975, p * tries + 1, tries - p * tries)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("p", [0.04, 0.3, 0.9])
def test_intervals_cover_where_samples_of_a_task_are_alike(p: float) -> None:
    def covers(interval: tuple[float, float]) -> bool:
        return interval[0] <= p <= interval[1]

    sets = [draw(seed, p) for seed in range(600)]
    mine = [proportion(values) for values in sets]
    own = np.mean([covers((i.low, i.high)) for i in mine])
    assert own > 0.93
    # The control: an interval that takes all tries as independent is too narrow.
    naive = [
        binomtest(int(v.sum()), v.size).proportion_ci(method="exact") for v in sets
    ]
    assert np.mean([covers((i.low, i.high)) for i in naive]) < min(0.93, own - 0.03)


def test_differences_of_paired_rates_cover() -> None:
    rng = np.random.default_rng(0)
    hits, truth = [], -0.15
    for _ in range(400):
        base = rng.beta(2, 2, TASKS)
        before = rng.random((TASKS, SAMPLES)) < base[:, None] * 0.7 + 0.3
        after = rng.random((TASKS, SAMPLES)) < base[:, None] * 0.7 + 0.15
        found = difference_of_proportions(after, before)
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) > 0.93


def test_a_difference_of_what_never_happened_is_not_known_to_be_none() -> None:
    never = np.zeros((30, 2), bool)
    found = difference_of_proportions(never, never)
    assert found.estimate == 0
    assert found.low < -0.1 < 0.1 < found.high


def test_pairs_that_are_all_alike_leave_a_width() -> None:
    values = np.array([[True], [False]] * 6)
    found = difference_of_proportions(values, values)
    assert found.estimate == 0
    assert found.low < -0.1 < 0.1 < found.high
    # Newcombe's own (method 10), from the fourfold table 6, 0, 0, 6.
    own, phi = proportion(values), (6 * 6 - 12 / 2) / (6 * 6)
    a, b = own.estimate - own.low, own.high - own.estimate
    assert found.low == pytest.approx(-((a * a + b * b - 2 * phi * a * b) ** 0.5))


def test_pairing_makes_a_difference_narrower() -> None:
    values = draw(3, 0.5, spread=0.5)
    with_pairs = difference_of_proportions(values, values).width
    shuffled = np.random.default_rng(0).permutation(values)
    assert with_pairs < 0.5 * difference_of_proportions(shuffled, values).width


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 clusters"):
        proportion(np.ones((1, 4), bool))
    with pytest.raises(ValueError, match="at least 2 clusters"):
        proportion(np.ones((4, 0), bool))
    with pytest.raises(ValueError, match="got 4 and 5"):
        difference_of_proportions(np.ones((4, 1), bool), np.ones((5, 1), bool))
