"""Rates over tasks that were tried several times, also where none or all came out."""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import betaincinv, stdtrit

from emoreg.statistics.bootstrap import Interval


def proportion(
    happened: Bool[np.ndarray, "cluster sample"], *, confidence: float = 0.95
) -> Interval:
    """Return how often something happened, with an interval over clusters.

    Korn and Graubard's: Clopper and Pearson's exact interval for `p n_e` of `n_e`
    tries. `n_e = p (1 - p) / V * (t_(N-1) / t_(n-1))^2` is the effective number of
    tries, `V = sd^2 / n` the variance of the mean of the `n` clusters' rates, `N` all
    tries, which `n_e` is never above (1998, https://www.jstor.org/stable/1390747).
    Where every cluster is alike, `V` is 0 and says nothing: there `n_e = n`, which is
    on the careful side.

    A bootstrap of what never happened has no width; this has.

    Args:
        happened: Each cluster's samples, as many for each.
        confidence: Of the interval.

    Raises:
        ValueError: With fewer than two clusters, or without samples.

    Example:
        >>> never = proportion(np.zeros((30, 4), bool))
        >>> never.estimate, never.low, round(never.high, 3)
        (0.0, 0.0, 0.116)
    """
    values = np.asarray(happened, bool)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise ValueError(
            "a rate must be over at least 2 clusters with samples each, got an array "
            f"of shape {values.shape}. Add tasks"
        )
    p, tries = float(values.mean()), _effective(values, confidence)
    tail, count = (1 - confidence) / 2, p * tries
    low = betaincinv(count, tries - count + 1, tail) if p > 0 else 0.0
    high = betaincinv(count + 1, tries - count, 1 - tail) if p < 1 else 1.0
    return Interval(estimate=p, low=float(low), high=float(high), n=len(values))


def difference_of_proportions(
    after: Bool[np.ndarray, "cluster sample"],
    before: Bool[np.ndarray, "cluster_before sample_before"],
    *,
    confidence: float = 0.95,
) -> Interval:
    """Return how much more often it happened after than before, on the same clusters.

    Both rates' own intervals `(l, u)`, put together as by Newcombe for paired data
    (method 10; 1998, https://pubmed.ncbi.nlm.nih.gov/9839354/): `d - sqrt(a^2 + b^2 -
    2 r a b)` with `a = p_after - l_after` and `b = u_before - p_before`, and likewise
    above. `r` is the correlation of the clusters' rates, a covariance above zero
    lessened by `1 / 2n`, so that clusters which are all alike leave a width; 0 where
    one of the rates is the same throughout.

    Args:
        after: Each cluster's samples.
        before: The same clusters', in the same order.
        confidence: Of the interval.

    Raises:
        ValueError: If they are of different numbers of clusters, and as `proportion`.
    """
    if len(after) != len(before):
        raise ValueError(
            "rates that are compared must be of the same clusters, got "
            f"{len(after)} and {len(before)}. Run the same tasks"
        )
    new, old = (proportion(x, confidence=confidence) for x in (after, before))
    rates = np.stack([np.asarray(x, float).mean(1) for x in (after, before)])
    r = _correlation(rates)
    change = new.estimate - old.estimate

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * r * a * b))

    below = reach(new.estimate - new.low, old.high - old.estimate)
    above = reach(new.high - new.estimate, old.estimate - old.low)
    return Interval(estimate=change, low=change - below, high=change + above, n=new.n)


def _correlation(rates: Float[np.ndarray, "2 cluster"]) -> float:
    """Return Newcombe's corrected correlation of two rows of rates."""
    spread = float(rates[0].std() * rates[1].std())
    if spread == 0:
        return 0.0
    together = float(np.cov(rates, ddof=0)[0, 1])
    if together > 0:
        together = max(0.0, together - 0.5 / rates.shape[1])
    return together / spread


def _effective(values: Bool[np.ndarray, "cluster sample"], confidence: float) -> float:
    """Return how many independent tries the samples are worth."""
    clusters, tries = len(values), values.size
    rates, p = values.mean(1), float(values.mean())
    variance = float(rates.var(ddof=1)) / clusters
    if variance == 0:
        return float(clusters)
    quantile = 1 - (1 - confidence) / 2
    ratio = stdtrit(tries - 1, quantile) / stdtrit(clusters - 1, quantile)
    return min(float(tries), p * (1 - p) / variance * float(ratio) ** 2)
