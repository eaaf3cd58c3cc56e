"""Bounds of intervals from resampled figures: percentiles, and BCa."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

Method = Literal["bca", "percentile"]
_ROUNDING = 16
"""Resampled means this many of their type's steps apart are one number."""


def mean_bounds(
    means: Float[np.ndarray, "figure resample"],
    clusters: Float[np.ndarray, "cluster figure"],
    *,
    method: Method,
    confidence: float,
) -> tuple[Float[np.ndarray, " figure"], Float[np.ndarray, " figure"]]:
    """Return bounds of means by either method."""
    if method == "bca":
        return bca_bounds(means, clusters, confidence=confidence)
    return percentile_bounds(means, confidence=confidence)


def percentile_bounds(
    resampled: Float[np.ndarray, "figure resample"], *, confidence: float
) -> tuple[Float[np.ndarray, " figure"], Float[np.ndarray, " figure"]]:
    """Return the quantiles of resampled figures at both ends of the interval."""
    # A vectorised full sort is faster here than selecting four order statistics.
    ordered = np.sort(resampled, axis=1)
    levels = ((1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0)
    low, high = (
        _row_quantile(ordered, np.full(len(ordered), level)) for level in levels
    )
    return low, high


def bca_bounds(
    means: Float[np.ndarray, "figure resample"],
    clusters: Float[np.ndarray, "cluster figure"],
    *,
    confidence: float,
) -> tuple[Float[np.ndarray, " figure"], Float[np.ndarray, " figure"]]:
    """Return bias-corrected and accelerated bounds of means (Efron 1987).

    A figure that is no mean is handed in by its pseudo-values: numbers per cluster
    whose mean is the estimate and whose deviations from it are `n - 1` times the
    jackknife's.
    """
    estimate = clusters.mean(axis=0)
    n, n_resamples = clusters.shape[0], means.shape[1]
    ordered = np.sort(means, axis=1)
    # Of numbers of few kinds, such as shares, many resamples are the estimate itself.
    rounding = _ROUNDING * np.finfo(means.dtype).eps
    tie = rounding * np.abs(clusters - estimate).max(axis=0)
    below = _below(ordered, estimate - tie, "left")
    equal = _below(ordered, estimate + tie, "right") - below
    # Kept off 0 and 1, where the normal quantile is infinite.
    edge = 0.5 / n_resamples
    z0 = ndtri(np.clip((below + 0.5 * equal) / n_resamples, edge, 1 - edge))
    # Leaving cluster i out of a mean shifts it by (mean - x_i) / (n - 1); the factor
    # cancels in the acceleration.
    shift = (clusters - estimate) / (n - 1)
    squares = shift * shift  # a power would take ten times as long
    square, cube = squares.sum(axis=0), (squares * shift).sum(axis=0)
    constant = np.ptp(clusters, axis=0) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        acceleration = np.where(constant, 0.0, cube / (6.0 * square**1.5))
    ends = []
    for level in ((1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0):
        z = z0 + ndtri(level)
        ends.append(_row_quantile(ordered, ndtr(z0 + z / (1.0 - acceleration * z))))
    low, high = (np.where(constant, estimate, end) for end in ends)
    return low, high


def _below(
    ordered: Float[np.ndarray, "figure resample"],
    ends: Float[np.ndarray, " figure"],
    side: Literal["left", "right"],
) -> Float[np.ndarray, " figure"]:
    """Return how many numbers of each sorted row lie below its end; NaN are above."""
    ends = ends.astype(ordered.dtype)
    rows = zip(ordered, ends, strict=True)
    return np.array([float(np.searchsorted(x, end, side)) for x, end in rows])


def _row_quantile(
    ordered: Float[np.ndarray, "figure resample"],
    level: Float[np.ndarray, " figure"],
) -> Float[np.ndarray, " figure"]:
    """Return one linearly interpolated quantile per sorted row; NaN for level NaN."""
    known = np.isfinite(level)
    position = np.where(known, level, 0.0) * (ordered.shape[1] - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, ordered.shape[1] - 1)
    rows = np.arange(len(ordered))
    share = position - below
    found = ordered[rows, below] * (1 - share) + ordered[rows, above] * share
    return np.where(known, found, np.nan)
