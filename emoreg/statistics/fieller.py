"""The interval of a ratio of two paired means in closed form."""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from emoreg.statistics.bootstrap import (
    Intervals,
    Missing,
    check_settings,
    complete_pairs,
)


def fieller_ratio(
    numerator: Float[np.ndarray, " above *figure"],
    denominator: Float[np.ndarray, " below *figure"],
    *,
    confidence: float = 0.95,
    missing: Missing = "refuse",
) -> Intervals:
    """Return the ratio of two paired means with Fieller's interval.

    All `R` for which a t-test of `numerator - R denominator` against zero, over
    clusters, does not reject (Fieller 1954,
    https://doi.org/10.1111/j.2517-6161.1954.tb00159.x). Where the mean denominator is
    itself not distinct from zero at that confidence the set has no end, and the bounds
    are infinite: no ratio should be told then. A check on `bootstrap_ratio`, which
    needs no normality, and is to be preferred for skewed readings.

    Args:
        numerator: One number per cluster and figure: slopes after.
        denominator: The same clusters in the same order: slopes before.
        confidence: Larger widens the interval.
        missing: As in `bootstrap_mean`; a cluster is dropped from both.

    Raises:
        ValueError: If shapes differ, and as `bootstrap_mean` does.

    Example:
        >>> before = np.array([2.0, 2.5, 3.0, 2.0, 2.5])
        >>> found = fieller_ratio(before / 2 + [0.1, -0.1, 0.0, 0.1, -0.1], before)
        >>> float(found.estimate), found.at().excludes(1.0)
        (0.5, True)
    """
    check_settings(1, confidence)
    pair, dropped = complete_pairs(numerator, denominator, missing=missing)
    n, shape = len(pair), numerator.shape[1:]
    above, below = pair.mean(axis=0)
    away = pair - pair.mean(axis=0)
    # Squared t quantile times the covariance of the two means.
    scale = stdtrit(n - 1, (1 + confidence) / 2) ** 2 / (n * (n - 1))
    aa, ab, bb = (
        scale * (away[:, i] * away[:, j]).sum(axis=0)
        for i, j in ((0, 0), (0, 1), (1, 1))
    )
    # (above - R below)^2 = aa - 2 R ab + R^2 bb, solved for R.
    square, cross = below**2 - bb, above * below - ab
    root = np.sqrt(np.maximum(cross**2 - square * (above**2 - aa), 0.0))
    bounded = square > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = above / below
        low = np.where(bounded, (cross - root) / square, -np.inf)
        high = np.where(bounded, (cross + root) / square, np.inf)
    return Intervals(
        estimate=estimate.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        n=n,
        dropped=dropped,
        confidence=confidence,
        method="fieller",
    )
