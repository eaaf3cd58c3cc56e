"""Bands that hold for all their points at once."""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, stdtrit


def simultaneous_band(
    estimate: Float[np.ndarray, "*point"],
    resamples: Float[np.ndarray, " resample *same"],
    *,
    n: int,
    confidence: float = 0.95,
) -> tuple[Float[np.ndarray, "*point"], Float[np.ndarray, "*point"]]:
    """Return a band that holds all points together with the given confidence.

    `estimate +- c * se`, with `se` each point's standard deviation over the resamples
    and `c` the quantile, over resamples, of the largest deviation from the estimate
    in units of `se` (the sup-t band; Montiel Olea and Plagborg-Moller 2019,
    https://doi.org/10.1002/jae.2656). It is as wide as each point's own interval
    needs to be for the worst of them, and takes their correlation into account.

    A bootstrap of `n` clusters spreads too little by `sqrt((n - 1) / n)` and has the
    normal's tails for t's. Both are made good, as Hesterberg (2015, section 5.3,
    https://doi.org/10.1080/00031305.2015.1089789) does for percentiles: `c` becomes
    `sqrt(n / (n - 1))` times t's quantile, `n - 1` degrees of freedom, at the normal's
    level of `c`.

    Args:
        estimate: One number per point: a quantile, a layer, a reader.
        resamples: The same from each resample, as `Intervals.resamples` keeps them.
        n: The clusters that were resampled; few of them widen the band.
        confidence: Larger widens the band.

    Raises:
        ValueError: If the shapes differ or there are fewer than two resamples or
            clusters.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(4000, 3))
        >>> low, high = simultaneous_band(np.zeros(3), rows, n=100)
        >>> bool((high > 1.96 * rows.std(axis=0)).all())  # three at once need more
        True
    """
    if min(len(resamples), n) < 2 or resamples.shape[1:] != estimate.shape:
        raise ValueError(
            "A band needs 2 clusters and 2 resamples or more of the estimate's shape, "
            f"found {n}, and {resamples.shape} for {estimate.shape}; keep the "
            "resamples (`keep=True`)."
        )
    size = math.prod(estimate.shape)
    middle, drawn = estimate.reshape(size), resamples.reshape(len(resamples), size)
    spread = drawn.std(axis=0, ddof=1)
    scale = np.where(spread > 0, spread, np.inf)
    largest = (np.abs(drawn - middle) / scale).max(axis=1, initial=0.0)
    critical = ndtr(-np.quantile(largest, confidence))
    reach = -stdtrit(n - 1, critical) * np.sqrt(n / (n - 1)) * spread
    shape = estimate.shape
    return (middle - reach).reshape(shape), (middle + reach).reshape(shape)
